"""Figures, one per file, drawn from tables and records alone.

Each figure module has `TITLE`, `CAPTION` (one paragraph that says how everything in it is defined), `EMPTY` (what is
said where there are no rows), `COLUMNS`, `data(study) -> rows` and `plot(rows) -> figure`, which is given at least one
row: what is drawn is what stands in the csv beside it.
"""

import importlib
from pathlib import Path
from typing import Any

from ..errors import UserError

#: In the order of the report.
NAMES = (
    "speedup",
    "quality_time",
    "efficiency",
    "throughput",
    "step_time",
    "compute_to_comm",
    "phases",
    "memory",
    "prediction",
    "resources",
    "journey",
)


def draw(name: str, runs_csv: Path, points_csv: Path, records: list[Path], out_base: Path) -> list[Path]:
    """Write `out_base`.svg, .png, .pdf and .csv; the same inputs give the same bytes. Returns their paths."""
    from ..analysis.tables import write_table
    from . import page, style
    from .study import Study

    module = _module(name)
    rows = [_printable(r) for r in module.data(Study.load(Path(runs_csv), Path(points_csv), records))]
    out_base = Path(out_base)
    with style.styled():
        figure = module.plot(rows) if rows else page.message(f"{module.TITLE}: {module.EMPTY}")
        pictures = style.save(figure, out_base)
    table = out_base.with_name(f"{out_base.name}.csv")
    write_table(table, rows, module.COLUMNS)
    return [*pictures, table]


def caption(name: str) -> str:
    """Return the figure's caption: what it shows and how that is defined."""
    text: str = _module(name).CAPTION
    return text


def title(name: str) -> str:
    text: str = _module(name).TITLE
    return text


def _printable(row: dict[str, Any]) -> dict[str, Any]:
    """A terminal code from a log or a name would make an svg unreadable."""
    return {
        name: "".join(c if c.isprintable() else " " for c in v) if isinstance(v, str) else v
        for name, v in row.items()
    }


def _module(name: str) -> Any:
    if name not in NAMES:
        raise UserError(f"figure {name!r}: not known; known figures: {', '.join(NAMES)}")
    return importlib.import_module(f".{name}", __package__)
