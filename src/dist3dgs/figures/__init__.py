"""Figures, one per file, drawn from tables and records alone.

Each figure module has `TITLE`, `CAPTION` (one paragraph that says how everything in it is defined), `EMPTY` (what is
said where there are no rows), `COLUMNS`, `data(study) -> rows` and `plot(rows) -> figure`, which is given at least one
row: what is drawn is what stands in the csv beside it. `empty(study) -> text` may say more than `EMPTY`.

Another distribution adds figures by entry points of the group `dist3dgs.figures`, `name = "module"`: modules like ours.
"""

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError

#: Ours, in the order of the report.
NAMES = (
    "speedup",
    "quality_time",
    "efficiency",
    "cost_time",
    "throughput",
    "step_time",
    "compute_to_comm",
    "computation_communication",
    "phases",
    "performance_comparison",
    "memory",
    "prediction",
    "resources",
    "journey",
    "technical_challenges",
)
GROUP = "dist3dgs.figures"
_NEEDED = ("TITLE", "CAPTION", "EMPTY", "COLUMNS", "data", "plot")


@cache
def names() -> tuple[str, ...]:
    """Return the names of all figures: ours, then those of other distributions.

    Raises `UserError` for a module of theirs that cannot be imported or is no figure.
    """
    return (*NAMES, *_added())


@cache
def _added() -> dict[str, Any]:
    from ..runs.plugins import named_modules

    found = named_modules(GROUP)
    for name, module in found.items():
        if name in NAMES or not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            raise UserError(
                f"entry points `{GROUP}`: {name!r} cannot be the name of a figure; expected one of a-z, 0-9 and _ that "
                "no other figure has"
            )
        if lacking := [n for n in _NEEDED if not hasattr(module, n)]:
            raise UserError(
                f"entry points `{GROUP}`: {name} has no {', '.join(lacking)}; see dist3dgs/figures/__init__.py"
            )
    return found


def code_file(name: str) -> Path | None:
    """Return the file of a figure of another distribution, None for ours."""
    module = _added().get(name)
    return Path(module.__file__) if module is not None and module.__file__ else None


def draw(name: str, runs_csv: Path, points_csv: Path, records: list[Path], out_base: Path) -> list[Path]:
    """Write `out_base`.svg, .png, .pdf and .csv; the same inputs give the same bytes. Returns their paths."""
    from ..analysis.tables import write_table
    from . import page, style
    from .study import Study

    module = _module(name)
    study = Study.load(Path(runs_csv), Path(points_csv), records)
    rows = [_printable(r) for r in module.data(study)]
    out_base = Path(out_base)
    with style.styled(study.strategies):
        if rows:
            figure = module.plot(rows)
        else:
            why = module.empty(study) if hasattr(module, "empty") else module.EMPTY
            figure = page.message(f"{module.TITLE}: {why}")
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
    """Remove control characters: a terminal code from a log or a name would make an svg unreadable."""
    return {
        name: "".join(c if c.isprintable() else " " for c in v) if isinstance(v, str) else v
        for name, v in row.items()
    }


def _module(name: str) -> Any:
    if name in NAMES:
        return importlib.import_module(f".{name}", __package__)
    if name not in names():
        raise UserError(f"figure {name!r}: not known; known figures: {', '.join(names())}")
    return _added()[name]
