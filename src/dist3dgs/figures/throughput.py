"""Training images per second over ranks."""

from typing import Any

from . import lines
from .study import Study

TITLE = "Throughput"
CAPTION = (
    "Training images rendered per second by all ranks together, in steps after the warm-up. A "
    "mark is the median over repeats, whiskers their smallest and largest. Dotted: the baseline's throughput"
    " per rank, extended."
)
COLUMNS = lines.COLUMNS


def data(study: Study) -> list[lines.Row]:
    return lines.point_marks(study, "images_per_s") + lines.trouble_marks(study, "images_per_s")


def plot(rows: list[lines.Row]) -> Any:
    return lines.value_figure(rows, "images / s", ideal=True)
