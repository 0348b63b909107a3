"""Seconds per training step over ranks."""

from typing import Any

from . import lines
from .study import Study

TITLE = "Step time"
CAPTION = (
    "Median seconds of one optimiser step after the warm-up, on the slowest rank, evaluation not "
    "counted. A mark is the median over repeats, whiskers their smallest and largest. With a fixed batch per"
    " rank a flat line is ideal (each step then sees more images); with a fixed global batch the time should"
    " fall as 1/ranks."
)
EMPTY = "no run has measured its steps yet"
COLUMNS = lines.COLUMNS


def data(study: Study) -> list[lines.Row]:
    return lines.point_marks(study, "step_s") + lines.trouble_marks(study, "step_s")


def plot(rows: list[lines.Row]) -> Any:
    measured = [r["value"] for r in rows if r["value"] is not None]
    unit, factor = ("ms", 1e3) if measured and max(measured) < 1 else ("s", 1.0)
    return lines.value_figure(lines.scaled(rows, factor), f"median step time [{unit}]")
