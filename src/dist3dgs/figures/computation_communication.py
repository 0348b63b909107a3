"""Computation and communication within a training step, stacked."""

from collections.abc import Sequence
from typing import Any

from . import lines, rows, style
from .page import Entry
from .study import Study

TITLE = "Computation and communication"
CAPTION = (
    "Mean seconds of a training step on the slowest rank, without evaluation and densification; the step time figure "
    "has the median. Computation: nothing is being communicated. Overlapped: collectives that run while the rank "
    "computes. Exposed communication: the rank waits for collectives. Median over successful repeats of each part. "
    "With as many images per rank at every size, computation stays and communication grows; with a fixed global batch, "
    "computation shrinks as 1/ranks."
)
EMPTY = "no run has timed its computation and communication yet"
COLUMNS = ("scene", "strategy", "layout", "ranks", "nodes", "n", "status", "cause", "part", "s")
Row = dict[str, Any]

PARTS = ("computation", "overlapped", "exposed communication")
_LOOKS: dict[str, dict[str, Any]] = {
    name: {"facecolor": colour, "hatch": hatch, "edgecolor": style.INK, "linewidth": 0.4}
    for name, (colour, hatch) in zip(
        PARTS, ((style.BLUE, ""), ("#CDE7F7", "////"), (style.ORANGE, "\\\\\\")), strict=True
    )
}


def data(study: Study) -> list[Row]:
    found: list[Row] = []
    for p in study.points:
        batch, compute = p.get("global_batch"), p.get("compute_s_per_image")
        if compute is None or not batch:
            continue
        # One rank has nothing to communicate, which its record leaves unknown.
        comm, exposed = p.get("comm_s_per_image") or 0.0, p.get("exposed_comm_s_per_image") or 0.0
        if p["ranks"] > 1 and p.get("exposed_comm_s_per_image") is None:
            continue
        hidden = min(max(comm - exposed, 0.0), compute)
        key = {name: p[name] for name in ("scene", "strategy", "layout", "ranks", "nodes")}
        seconds = (compute - hidden, hidden, exposed)
        found += [
            key | {"n": p["n_ok"], "status": "ok", "part": part, "s": s * batch}
            for part, s in zip(PARTS, seconds, strict=True)
        ]
    if not found:
        return []
    for m in lines.trouble_marks(study, None):
        row = {"scene": m["panel"], "strategy": m["series"]}
        found.append(row | {name: m[name] for name in ("layout", "ranks", "nodes", "n", "status", "cause")})
    return sorted(found, key=lambda r: (r["scene"], r["strategy"], r["ranks"], r["nodes"]))


def plot(table: list[Row]) -> Any:
    """Return a panel per scene."""
    seconds = [r["s"] for r in table if r.get("s") is not None]
    unit, factor = ("ms", 1e3) if max(seconds) < 1 else ("s", 1.0)
    scenes = [_bars([r for r in table if r["scene"] == s]) for s in dict.fromkeys(r["scene"] for r in table)]
    shown = [part for part in PARTS if any(r["s"] for r in table if r.get("part") == part)]
    marks: list[Row] = [r | {"panel": r["scene"], "series": r["strategy"]} for r in table]
    sheet = rows.draw(
        [
            rows.Panel(bars[0][0]["scene"], [(b[0]["strategy"], b[0]["layout"]) for b in bars])
            for bars in scenes
        ],
        f"mean time per step [{unit}]",
        key=[*(Entry(part, _LOOKS[part]) for part in shown), *lines.trouble_key(marks)],
        trouble=lines.trouble_words(marks),
    )
    for ax, bars in zip(sheet.axes, scenes, strict=True):
        parts = [{r["part"]: r["s"] * factor for r in bar if r["status"] == "ok"} for bar in bars]
        rows.from_zero(ax, max(sum(p.values()) for p in parts))
        for i, (bar, p) in enumerate(zip(bars, parts, strict=True)):
            rows.stack(ax, i, p, _LOOKS, bar[0]["status"])
    return sheet.figure


def _bars(scene: Sequence[Row]) -> list[list[Row]]:
    bars: dict[tuple[Any, ...], list[Row]] = {}
    for r in scene:
        bars.setdefault((r["strategy"], r["layout"], r["status"], r.get("cause")), []).append(r)
    return list(bars.values())
