"""Figures, one per file, drawn from tables and records alone.

Each figure module has `CAPTION` (one paragraph that says how everything in it is defined), `COLUMNS`,
`data(study) -> rows` and `plot(rows) -> figure`: what is drawn is what stands in the csv beside it.
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
    "phases",
    "memory",
    "resources",
    "journey",
)


def draw(name: str, runs_csv: Path, points_csv: Path, records: list[Path], out_base: Path) -> list[Path]:
    """Write `out_base`.svg, .png and .csv; the same inputs give the same bytes. Returns the three paths."""
    from ..tabulate import write_table
    from . import style
    from .study import Study

    module = _module(name)
    rows = module.data(Study.load(Path(runs_csv), Path(points_csv), records))
    out_base = Path(out_base)
    with style.styled():
        pictures = style.save(module.plot(rows), out_base)
    table = out_base.with_name(f"{out_base.name}.csv")
    write_table(table, rows, module.COLUMNS)
    return [*pictures, table]


def caption(name: str) -> str:
    """What the figure shows and how it is defined."""
    text: str = _module(name).CAPTION
    return text


def title(name: str) -> str:
    text: str = _module(name).TITLE
    return text


def _module(name: str) -> Any:
    if name not in NAMES:
        raise UserError(f"figure {name!r}: not known; known figures: {', '.join(NAMES)}")
    return importlib.import_module(f".{name}", __package__)
