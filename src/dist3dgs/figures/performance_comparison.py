"""Expected, best possible and measured wall time of every point."""

import statistics
from collections.abc import Sequence
from typing import Any

from . import lines, rows, style
from .page import Entry
from .study import Study

TITLE = "Expected, possible, measured"
CAPTION = (
    "Wall time from launch to end, for the baseline's amount of work. Expected (bar across): the baseline's "
    "time over how many times more ranks. Best possible (triangle): this run's serial phases plus the "
    "baseline's stepping over how many times more ranks, so what perfect communication would reach. Measured "
    "(dot): stepping and what recurs with it (densification, evaluation, checkpoints) scaled to the "
    "baseline's work where a run did more or less. Medians over the runs of a point; a cross or diamond at "
    "the edge: runs that failed or are degraded. The time axis is logarithmic."
)
EMPTY = "no run to compare with a baseline yet"
COLUMNS = (
    *("scene", "strategy", "layout", "status", "n", "baseline"),
    *("expected_s", "best_possible_s", "measured_s", "reason"),
)
Row = dict[str, Any]

_EXPECTED = {"color": style.INK, "marker": "|", "markersize": 7, "markeredgewidth": 1.2, "linestyle": "none"}
_POSSIBLE = {
    "color": "white", "marker": "<", "markersize": 4.6, "markeredgecolor": style.GREEN, "markeredgewidth": 0.9,
    "linestyle": "none",
}  # fmt: skip
_MEASURED = {"color": style.BLUE, "marker": "o", "markersize": 4.0, "linestyle": "none"}
_MARKS = {"expected_s": _EXPECTED, "best_possible_s": _POSSIBLE, "measured_s": _MEASURED}


def data(study: Study) -> list[Row]:
    """Return a row per point and outcome; what no run of it knows is left out, with the reason."""
    sizes = {p["layout"]: (p["ranks"], p["nodes"]) for p in study.points}
    groups: dict[tuple[str, ...], list[Row]] = {}
    for p in study.performance:
        scene, strategy, layout, _ = p["run"].split("/")
        groups.setdefault((scene, strategy, layout, p["status"]), []).append(p)
    found = []
    for (scene, strategy, layout, status), part in groups.items():
        row: Row = {"scene": scene, "strategy": strategy, "layout": layout, "status": status, "n": len(part)}
        for name in _MARKS:
            known = [p[name] for p in part if p[name] is not None]
            row[name] = statistics.median(known) if known else None
        row["baseline"] = next((p["baseline"] for p in part if p["baseline"]), None)
        row["reason"] = next((p["reason"] for p in part if p["reason"]), None)
        found.append(row)
    if not any(r["expected_s"] for r in found):
        return []
    return sorted(found, key=lambda r: (r["scene"], r["strategy"], sizes[r["layout"]], r["status"] != "ok"))


def plot(table: list[Row]) -> Any:
    """Return a panel per scene, a row per point."""
    scenes = [[r for r in table if r["scene"] == s] for s in dict.fromkeys(r["scene"] for r in table)]
    names = {"expected_s": "expected", "best_possible_s": "best possible", "measured_s": "measured"}
    marks = [r | {"panel": r["scene"], "series": r["strategy"], "cause": r["reason"]} for r in table]
    sheet = rows.draw(
        [rows.Panel(part[0]["scene"], [(r["strategy"], r["layout"]) for r in part]) for part in scenes],
        "wall time [s], log scale",
        key=[*(Entry(names[name], look) for name, look in _MARKS.items()), *lines.trouble_key(marks)],
        notes=_notes(table),
    )
    for ax, part in zip(sheet.axes, scenes, strict=True):
        values = [r[name] for r in part for name in _MARKS if r[name]]
        if not values:
            ax.set_xticks([])
        else:
            rows.nice_log(ax, min(values), max(values))
        for i, r in enumerate(part):
            _row(ax, i + 0.5, r)
    return sheet.figure


def _row(ax: Any, y: float, r: Row) -> None:
    if r["measured_s"] and r["expected_s"]:
        ends = sorted((r["measured_s"], r["expected_s"]))
        ax.plot(ends, [y, y], color=style.LIGHT_GREY, linewidth=0.9, zorder=1)
    for name, look in _MARKS.items():
        if r[name]:
            ax.plot(r[name], y, zorder=3, gid=name, **look)
    if r["status"] != "ok":
        mark, gid = (lines.DEGRADED, "degraded") if r["status"] == "degraded" else (lines.FAILED, "failed")
        ax.plot(
            0.02,
            y,
            transform=ax.get_yaxis_transform(),
            clip_on=False,
            zorder=5,
            gid=gid,
            **mark | {"markersize": 4.5},
        )


def _notes(table: Sequence[Row]) -> list[str]:
    """Say why a row has no measured mark; alike ones are counted."""
    counts: dict[str, int] = {}
    for r in table:
        if r["measured_s"] is None and r["reason"]:
            counts[r["reason"]] = counts.get(r["reason"], 0) + 1
    return [f"{n} row{'s' if n > 1 else ''} not measured: {reason}" for reason, n in counts.items()]
