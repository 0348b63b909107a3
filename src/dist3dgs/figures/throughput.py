"""Training images (of workloads: samples, tokens) per second over ranks."""

from dataclasses import replace
from typing import Any

from . import lines, style, ticks
from .page import Entry, size_mm
from .ranks import Ranks
from .study import Study

TITLE = "Throughput"
CAPTION = (
    "Training images, of workloads their unit of work, per second by all ranks together, in steps after the "
    "warm-up; both axes are logarithmic, so that ideal scaling is a straight line of the same slope from every "
    "start. A mark is the median over repeats, whiskers their smallest and largest. Dotted: ideal, the "
    "throughput per rank of the smallest layout that succeeded, at every size."
)
EMPTY = "no run has measured its throughput yet"
COLUMNS = (*lines.COLUMNS, "unit")


def data(study: Study) -> list[lines.Row]:
    units = {p["scene"]: f"{p.get('unit_of_work') or 'image'}s/s" for p in study.points}
    rows = lines.point_marks(study, "images_per_s") + lines.trouble_marks(study, "images_per_s")
    return [r | {"unit": units.get(r["panel"], "images/s")} for r in rows]


def plot(rows: list[lines.Row]) -> Any:
    key = [Entry("ideal", lines.IDEAL)] if any(r["status"] == "ok" for r in rows) else []
    units = {r["panel"]: r["unit"] for r in rows}
    cells, label = lines.by_scene(rows), "throughput, log scale"
    if len(set(units.values())) == 1:
        label = f"throughput [{rows[0]['unit']}], log scale"
    else:  # programs with other units of work: each panel names its own
        cells = [replace(cell, subtitle=units[cell.title]) for cell in cells]
    return lines.figure(cells, label, _behind, key=key)


def _behind(ax: Any, cell: lines.Cell, ranks: Ranks) -> None:
    ideals = {name: ideal for name in ranks.series if (ideal := _ideal(cell, name, ranks.sizes[-1]))}
    values = [*lines.extremes(cell.rows), *(v for _, ends in ideals.values() for v in ends)]
    positive = [v for v in values if v > 0]
    if not positive:
        lines.panels.plain(ax)
        return
    low, high = min(positive) / 1.5, max(positive) * 1.2
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ticks.set_log(ax.yaxis, ticks.decimal(low, high, size_mm(ax)[1]))
    for name, (sizes, ends) in ideals.items():
        colour = style.series_style(name, ranks.series)["color"]
        x = [ranks.at(size, name) for size in sizes]  # through its series' first mark
        ax.plot(x, ends, zorder=1, gid="ideal", **lines.IDEAL | {"color": colour, "linewidth": 0.8})


def _ideal(cell: lines.Cell, name: str, last: int) -> tuple[list[int], list[float]] | None:
    """Return ranks and images/s of the ends of a series' ideal line."""
    line = sorted((r["ranks"], r["value"]) for r in cell.rows if r["series"] == name and r["status"] == "ok")
    if not line or line[0][0] == last:
        return None
    first, value = line[0]
    return [first, last], [value, value * last / first]
