"""Held-out quality against training time."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..analysis.measures import time_to_quality
from ..config.naming import Layout
from . import lines, panels, style, ticks
from .page import Entry, size_mm
from .study import Study

TITLE = "Quality against time"
CAPTION = (
    "Mean PSNR over the held-out photographs against training time (steps and densification; starting up and"
    " evaluating not counted). One line per run, one panel per scene and strategy. Dashed: the quality to "
    "reach, the baseline's final PSNR less 0.1 dB. Beside every layout: the training time at which its curve "
    "first crosses the dashed line (straight between two evaluations), median over the repeats, or how many of "
    "them reached it. A run that failed ends in a cross, a degraded one in a diamond; their causes stand below."
)
EMPTY = "no run has been evaluated yet"
COLUMNS = (
    "scene",
    "strategy",
    "layout",
    "ranks",
    "repeat",
    "status",
    "cause",
    "step",
    "elapsed_s",
    "psnr",
    "target_psnr",
    "time_to_target_s",
)
Row = dict[str, Any]

_LOST = ("failed", "degraded", "unknown")
_TARGET = {"color": style.GREY, "linestyle": (0, (4, 2)), "linewidth": 0.8}
_MAX_PANELS = 24


def data(study: Study) -> list[Row]:
    targets = {(p["scene"], p["strategy"]): p.get("target_psnr") for p in study.points}
    rows = []
    for record in study.records:
        run = record.run
        target = targets.get((run.scene, run.strategy))
        key = {
            "scene": run.scene,
            "strategy": run.strategy,
            "layout": run.layout,
            "ranks": record.world_size,
            "repeat": run.repeat,
            "status": record.status,
            "cause": None if record.failure is None else record.failure.cause,
            "target_psnr": target,
            "time_to_target_s": None if target is None else time_to_quality(record.metrics.curve, target),
        }
        known = [p for p in record.metrics.curve if p.psnr is not None]
        rows += [key | {"step": p.step, "elapsed_s": p.elapsed_s, "psnr": p.psnr} for p in known]
    return sorted(
        rows,
        key=lambda r: (r["scene"], r["strategy"], Layout.parse(r["layout"]), r["repeat"], r["elapsed_s"]),
    )


def plot(rows: list[Row]) -> Any:
    names = list(dict.fromkeys((r["scene"], r["strategy"]) for r in rows))
    shown = names[:_MAX_PANELS]
    notes = (
        [f"first {len(shown)} of {len(names)} panels; all are in the csv"] if len(shown) < len(names) else []
    )
    layouts = sorted({r["layout"] for r in rows})
    sheet = panels.Sheet(
        titles=shown,
        columns=panels.num_columns(len(shown)),
        xlabel="training time [s]",
        ylabel="held-out PSNR [dB]",
        ticks_mm=3.0,
        own_x=True,
    )
    has_target = any(r["target_psnr"] is not None for r in rows)
    key = [Entry("quality to reach", _TARGET)] if has_target else []
    figure, axes = sheet.draw(key=[*key, *lines.trouble_key(rows)], notes=notes, trouble=_trouble(rows))
    for ax, (scene, strategy) in zip(axes, shown, strict=True):
        _panel(ax, [r for r in rows if (r["scene"], r["strategy"]) == (scene, strategy)], layouts)
    return figure


def _trouble(rows: Sequence[Row]) -> list[str]:
    ended = {(r["scene"], r["strategy"], r["layout"], r["repeat"]): r for r in rows if r["status"] in _LOST}
    counts = Counter(
        lines.trouble_word(f"{scene} {strategy} {layout}", r["status"], r["cause"])
        for (scene, strategy, layout, _), r in ended.items()
    )
    return [text if n == 1 else f"{text} (x{n})" for text, n in counts.items()]


def _panel(ax: Any, rows: Sequence[Row], all_layouts: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    _time_axis(ax, rows)
    target = rows[0]["target_psnr"]
    layouts = sorted({r["layout"] for r in rows}, key=lambda x: (Layout.parse(x).world_size, Layout.parse(x)))
    handles = []
    for layout in layouts:
        look = style.series_style(layout, all_layouts) | {"linewidth": 0.9, "markersize": 3.2}
        runs: dict[int, list[Row]] = {}
        for r in rows:
            if r["layout"] == layout:
                runs.setdefault(r["repeat"], []).append(r)
        for curve in runs.values():
            _curve(ax, curve, look)
        handles.append(Line2D([], [], **look, label=f"{layout}{_outcome([c[0] for c in runs.values()])}"))
    if target is not None:
        ax.axhline(target, zorder=1, gid="target", **_TARGET)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.04 * (high - low))
    ax.yaxis.set_major_locator(ticks.linear(size_mm(ax)[1]))
    legend = ax.legend(
        handles=handles, title=None if target is None else f"time to {target:.2f} dB", fontsize=6, title_fontsize=6,
        alignment="left", handlelength=2.2, labelspacing=0.25, borderpad=0.3, borderaxespad=0.2, framealpha=0.85,
        edgecolor="none",
    )  # fmt: skip
    legend.set_gid("reached")


def _outcome(runs: Sequence[Row]) -> str:
    """When a layout's successful runs got to the quality to reach; without one, how they ended."""
    succeeded = [r for r in runs if r["status"] == "ok"]
    if not succeeded:
        return f": {runs[0]['status']}"
    if succeeded[0]["target_psnr"] is None:
        return ""
    times = [r["time_to_target_s"] for r in succeeded if r["time_to_target_s"] is not None]
    if not times:
        return ": not reached"
    if len(times) < len(succeeded):
        return f": {len(times)} of {len(succeeded)} runs"
    median = statistics.median(times)
    return f": {median:.0f} s" if median >= 10 else f": {median:.1f} s"


def _time_axis(ax: Any, rows: Sequence[Row]) -> None:
    """From zero; logarithmic where the longest run takes more than eight times the shortest."""
    runs: dict[tuple[str, int], float] = {}
    for r in rows:
        if r["status"] == "ok":
            runs[r["layout"], r["repeat"]] = max(r["elapsed_s"], runs.get((r["layout"], r["repeat"]), 0.0))
    first, last = min(r["elapsed_s"] for r in rows), max(r["elapsed_s"] for r in rows)
    if not runs or max(runs.values()) <= 8 * min(runs.values()) or first <= 0:
        ax.set_xlim(0, 1.06 * last or 1.0)
        ax.xaxis.set_major_locator(ticks.linear(size_mm(ax)[0] / 1.5))
        return
    ax.set_xscale("log")
    ax.set_xlim(first / 1.2, last * 1.2)
    ticks.set_log(ax.xaxis, ticks.decimal(first / 1.2, last * 1.2, size_mm(ax)[0] / 1.5))


def _curve(ax: Any, curve: Sequence[Row], look: dict[str, Any]) -> None:
    times, values = [r["elapsed_s"] for r in curve], [r["psnr"] for r in curve]
    ax.plot(times, values, zorder=3, **look if len(curve) > 1 else look | {"markersize": 5})
    status = curve[0]["status"]
    if status in _LOST:
        mark = lines.DEGRADED if status == "degraded" else lines.FAILED
        gid = "degraded" if status == "degraded" else "failed"
        ax.plot(times[-1], values[-1], zorder=5, gid=gid, **mark)
