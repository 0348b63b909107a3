"""Computation over communication, R, against the number of ranks."""

from typing import Any

from ..scaling.measures import R_PAYS
from . import lines, panels, style, ticks
from .page import Entry, size_mm
from .ranks import Ranks
from .study import Study

TITLE = "Computation over communication"
CAPTION = (
    "R: seconds that one rank computes over the seconds that N ranks communicate, for the same images. Filled marks: "
    "derived from the speedup S over one rank, R = 1 / (1/S - 1/N), so it counts every loss. Hollow marks: measured, "
    "from the timers around the collectives. Dashed: R = 3, below which data-parallel training was found not to pay. "
    "Needs a run on one rank. Both axes are logarithmic."
)
EMPTY = "no run on several ranks to compare with one rank yet"
COLUMNS = (*lines.COLUMNS, "definition")
Row = lines.Row

_PAYS = {"color": style.GREY, "linestyle": (0, (4, 2)), "linewidth": 0.8}
_MEASURED = {"linestyle": "none", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 0.9}


def data(study: Study) -> list[Row]:
    rows = []
    for point in study.points:
        for definition in ("derived", "measured"):
            if (value := point.get(f"r_{definition}")) is not None:
                row = lines.mark(point, point["scene"], "ok", value, None, None, point["n_ok"])
                rows.append(row | {"definition": definition})
    return rows


def plot(rows: list[Row]) -> Any:
    cells = [
        lines.Cell(
            c.title,
            [r for r in c.rows if r["definition"] == "derived"],
            [r for r in c.rows if r["definition"] == "measured"],
        )
        for c in lines.by_scene(rows)
    ]
    grey = {"color": style.GREY, "marker": "o", "linestyle": "none"}
    key = [
        Entry("R = 3", _PAYS),
        Entry("derived from the speedup", grey),
        Entry("measured", _MEASURED | {"marker": "o", "markeredgecolor": style.GREY}),
    ]
    return lines.figure(cells, "R, log scale", _behind, key=key)


def _behind(ax: Any, cell: lines.Cell, ranks: Ranks) -> None:
    values = [v for v in (*lines.extremes(cell.rows), *lines.extremes(cell.other_rows), R_PAYS) if v > 0]
    if len(values) == 1:
        panels.plain(ax)
        return
    low, high = min(values) / 1.6, max(values) * 1.6
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ticks.set_log(ax.yaxis, ticks.decimal(low, high, size_mm(ax)[1]))
    ax.axhline(R_PAYS, zorder=1, gid="pays", **_PAYS)
    for name in ranks.series:
        look = style.series_style(name, ranks.series)
        points = [r for r in cell.other_rows if r["series"] == name]
        ax.plot(
            [ranks.at(r["ranks"], name, r["layout"]) for r in points], [r["value"] for r in points], zorder=4,
            **_MEASURED | {"marker": look["marker"], "markeredgecolor": look["color"]},
        )  # fmt: skip
