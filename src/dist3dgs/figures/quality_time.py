"""Held-out quality against training time."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..names import Layout
from . import style
from .labels import direct_labels
from .lines import write_footer
from .study import Study

TITLE = "Quality against time"
CAPTION = (
    "Mean PSNR over the held-out photographs against training time (steps and densification; starting up and"
    " evaluating not counted). One line per run, one panel per scene and strategy. Dashed: the quality to "
    "reach, the baseline's final PSNR less 0.1 dB. A run that failed ends in a cross with its cause."
)
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
)
Row = dict[str, Any]

_LOST = ("failed", "degraded", "unknown")
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.BLACK)


def data(study: Study) -> list[Row]:
    targets = {(p["scene"], p["strategy"]): p.get("target_psnr") for p in study.points}
    rows = []
    for record in study.records:
        run = record.run
        key = {
            "scene": run.scene,
            "strategy": run.strategy,
            "layout": run.layout,
            "ranks": record.world_size,
            "repeat": run.repeat,
            "status": record.status,
            "cause": None if record.failure is None else record.failure.cause,
            "target_psnr": targets.get((run.scene, run.strategy)),
        }
        known = [p for p in record.metrics.curve if p.psnr is not None]
        rows += [key | {"step": p.step, "elapsed_s": p.elapsed_s, "psnr": p.psnr} for p in known]
    return sorted(
        rows,
        key=lambda r: (r["scene"], r["strategy"], Layout.parse(r["layout"]), r["repeat"], r["elapsed_s"]),
    )


def plot(rows: list[Row]) -> Any:
    panels = list(dict.fromkeys((r["scene"], r["strategy"]) for r in rows)) or [("", "")]
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    width = style.SINGLE_MM if len(panels) == 1 else style.DOUBLE_MM
    figure = style.new_figure(width, 62 if len(panels) == 1 else 8 + 52 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for unused in axes[len(panels) :]:
        unused.remove()
    ended = {(r["scene"], r["strategy"], r["layout"], r["repeat"]): r for r in rows if r["status"] in _LOST}
    lost = Counter(f"✖ {s} {y} {x}: {r['status']}, {r['cause']}" for (s, y, x, _), r in ended.items())
    write_footer(figure, [text if n == 1 else f"{text} (x{n})" for text, n in lost.items()][:8])
    for ax, (scene, strategy) in zip(axes, panels, strict=False):
        _panel(ax, [r for r in rows if (r["scene"], r["strategy"]) == (scene, strategy)])
        ax.set_title(f"{scene}: {strategy}" if scene else "")
    return figure


def _panel(ax: Any, rows: Sequence[Row]) -> None:
    ax.set_xlabel("training time [s]")
    ax.set_ylabel("held-out PSNR [dB]")
    if not rows:
        ax.text(
            0.5, 0.5, "no evaluation yet", transform=ax.transAxes, ha="center", va="center", color=style.GREY
        )
        ax.set_xticks([])
        ax.set_yticks([])
        return
    layouts = sorted({r["layout"] for r in rows}, key=lambda x: (Layout.parse(x).world_size, Layout.parse(x)))
    ends = []
    for i, layout in enumerate(layouts):
        colour, marker = _COLOURS[i % len(_COLOURS)], style.SERIES_MARKERS[i % len(style.SERIES_MARKERS)]
        part = [r for r in rows if r["layout"] == layout]
        for repeat in sorted({r["repeat"] for r in part}):
            curve = [r for r in part if r["repeat"] == repeat]
            _curve(ax, curve, colour, marker, style.SERIES_LINES[i % len(style.SERIES_LINES)])
        finished = [r for r in part if r["status"] == "ok"]
        if not finished:
            continue
        last = max(finished, key=lambda r: r["elapsed_s"])
        ends.append((last["elapsed_s"], last["psnr"], layout, colour))
    _time_axis(ax, rows)
    low, high = ax.get_ylim()
    target = rows[0]["target_psnr"]
    labels = [(y, f"{text}, {x:.0f} s", style.ink(colour)) for x, y, text, colour in ends]
    if target is not None:
        low, high = min(low, target), max(high, target + 0.03 * (high - low))
        ax.axhline(target, color=style.GREY, ls=(0, (4, 2)), lw=0.8, zorder=1, gid="target")
        labels.append((target, f"to reach {target:.2f}", style.GREY))
    ax.set_ylim(low, high)
    direct_labels(ax, labels, fontsize=6)


def _time_axis(ax: Any, rows: Sequence[Row]) -> None:
    """From zero; logarithmic where the longest run takes more than eight times the shortest."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    runs: dict[tuple[str, int], float] = {}
    for r in rows:
        if r["status"] == "ok":
            runs[r["layout"], r["repeat"]] = max(r["elapsed_s"], runs.get((r["layout"], r["repeat"]), 0.0))
    first, last = min(r["elapsed_s"] for r in rows), max(r["elapsed_s"] for r in rows)
    if not runs or max(runs.values()) <= 8 * min(runs.values()) or first <= 0:
        ax.set_xlim(0, 1.06 * last)
        return
    ax.set_xscale("log")
    ax.set_xlim(first / 1.2, last * 1.2)
    ticks = [m * 10.0**k for k in range(-3, 8) for m in (1, 3) if first / 1.2 <= m * 10.0**k <= last * 1.2]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _curve(ax: Any, curve: Sequence[Row], colour: str, marker: str, line: Any) -> None:
    times, values = [r["elapsed_s"] for r in curve], [r["psnr"] for r in curve]
    size = 2.8 if len(curve) > 1 else 5
    ax.plot(
        times, values, color=colour, marker=marker, markersize=size, lw=0.9, linestyle=line,
        markeredgecolor="white", markeredgewidth=0.4, zorder=3,
    )  # fmt: skip
    if curve[0]["status"] in _LOST:
        ax.plot(
            times[-1], values[-1], marker="X", markersize=6, color=style.FAILED, markeredgecolor="white",
            linestyle="none", zorder=5, gid="failed",
        )  # fmt: skip
