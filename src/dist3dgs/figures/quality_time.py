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
    "Mean PSNR over the held-out photographs against training time (steps and densification; starting up and "
    "evaluating not counted). One line per run, one panel per scene and strategy. Dashed: the quality to "
    "reach, the baseline's final PSNR less 0.1 dB. Below each panel, for every layout: the training time at "
    "which its curve first crosses the dashed line (straight between two evaluations), median over the "
    "repeats, or how many of them reached it. The time axes of all panels are of one kind, linear or "
    "logarithmic. A run that failed ends in a cross, a degraded one in a diamond; their causes stand below."
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
_WORDS_PT, _WORDS_MM = 6.0, 2.6


def data(study: Study) -> list[Row]:
    # A point without a success has none.
    targets = {
        (p["scene"], p["strategy"]): p["target_psnr"]
        for p in study.points
        if p.get("target_psnr") is not None
    }
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
    """Return a panel per scene and strategy, below each the times to the quality to reach."""
    shown = list(dict.fromkeys((r["scene"], r["strategy"]) for r in rows))
    parts = [[r for r in rows if (r["scene"], r["strategy"]) == name] for name in shown]
    layouts = sorted({r["layout"] for r in rows}, key=Layout.parse)
    columns = panels.num_columns(len(shown))
    room = panels.panel_width_mm(len(shown), columns)
    words = [style.wrap(_words(part), room, _WORDS_PT) for part in parts]
    log = any(_spans_decades(part) for part in parts)
    sheet = panels.Sheet(
        titles=shown,
        columns=columns,
        xlabel="training time [s], log scale" if log else "training time [s]",
        ylabel="held-out PSNR [dB]",
        ticks_mm=3.5 + _WORDS_MM * max(map(len, words)),
        own_x=True,
    )
    looks = {x: style.series_style(x, layouts) | {"linewidth": 0.9, "markersize": 3.2} for x in layouts}
    has_target = any(r["target_psnr"] is not None for r in rows)
    key = [Entry(layout, look) for layout, look in looks.items()]
    key += [Entry("quality to reach", _TARGET)] if has_target else []
    figure, axes = sheet.draw(key=[*key, *lines.trouble_key(rows)], trouble=_trouble(rows))
    for ax, part, text in zip(axes, parts, words, strict=True):
        _panel(ax, part, looks, log)
        height = size_mm(ax)[1]
        for i, line in enumerate(text):
            y = -(4.0 + _WORDS_MM * (i + 0.5)) / height
            ax.text(
                0, y, line, transform=ax.transAxes, fontsize=_WORDS_PT, va="center_baseline", color=style.INK,
                gid="reached",
            )  # fmt: skip
    return figure


def _words(rows: Sequence[Row]) -> str:
    """List when each layout reached the quality, e.g. `time to 25.82 dB: n1g1: 123 s, n1g2: not reached`."""
    runs: dict[str, dict[int, Row]] = {}
    for r in sorted(rows, key=lambda r: (Layout.parse(r["layout"]).world_size, Layout.parse(r["layout"]))):
        runs.setdefault(r["layout"], {}).setdefault(r["repeat"], r)
    target = rows[0]["target_psnr"]
    head = [] if target is None else [f"time to {target:.2f} dB:"]
    each = [f"{layout}{_outcome(list(repeats.values()))}" for layout, repeats in runs.items()]
    return " ".join([*head, ", ".join(text.replace(" ", "\u00a0") for text in each)])


def _trouble(rows: Sequence[Row]) -> list[str]:
    ended = {(r["scene"], r["strategy"], r["layout"], r["repeat"]): r for r in rows if r["status"] in _LOST}
    counts = Counter(
        lines.trouble_word(f"{scene} {strategy} {layout}", r["status"], r["cause"])
        for (scene, strategy, layout, _), r in ended.items()
    )
    return [text if n == 1 else f"{text} (x{n})" for text, n in counts.items()]


def _panel(ax: Any, rows: Sequence[Row], looks: dict[str, dict[str, Any]], log: bool) -> None:
    _time_axis(ax, rows, log)
    target = rows[0]["target_psnr"]
    runs: dict[tuple[str, int], list[Row]] = {}
    for r in rows:
        runs.setdefault((r["layout"], r["repeat"]), []).append(r)
    for (layout, _), curve in runs.items():
        _curve(ax, curve, looks[layout])
    if target is not None:
        ax.axhline(target, zorder=1, gid="target", **_TARGET)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.04 * (high - low))
    ax.yaxis.set_major_locator(ticks.linear(size_mm(ax)[1]))


def _outcome(runs: Sequence[Row]) -> str:
    """Describe when a layout's successful runs reached the target quality; without any, how its runs ended."""
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


def _spans_decades(rows: Sequence[Row]) -> bool:
    """Return True if the longest successful run takes more than eight times the shortest."""
    runs: dict[tuple[str, int], float] = {}
    for r in rows:
        if r["status"] == "ok":
            runs[r["layout"], r["repeat"]] = max(r["elapsed_s"], runs.get((r["layout"], r["repeat"]), 0.0))
    return bool(runs) and max(runs.values()) > 8 * min(runs.values())


def _time_axis(ax: Any, rows: Sequence[Row], log: bool) -> None:
    """Set a linear axis from zero, or a logarithmic one around all times above zero."""
    times = [r["elapsed_s"] for r in rows if r["elapsed_s"] > 0 or not log]
    if not log or not times:
        ax.set_xlim(0, 1.06 * max(times, default=1.0) or 1.0)
        ax.xaxis.set_major_locator(ticks.linear(size_mm(ax)[0] / 1.5))
        return
    first, last = min(times) / 1.2, max(times) * 1.2
    ax.set_xscale("log")
    ax.set_xlim(first, last)
    ticks.set_log(ax.xaxis, ticks.decimal(first, last, size_mm(ax)[0] / 1.5))


def _curve(ax: Any, curve: Sequence[Row], look: dict[str, Any]) -> None:
    times, values = [r["elapsed_s"] for r in curve], [r["psnr"] for r in curve]
    ax.plot(times, values, zorder=3, **look if len(curve) > 1 else look | {"markersize": 5})
    status = curve[0]["status"]
    if status in _LOST:
        mark = lines.DEGRADED if status == "degraded" else lines.FAILED
        gid = "degraded" if status == "degraded" else "failed"
        ax.plot(times[-1], values[-1], zorder=5, gid=gid, **mark)
