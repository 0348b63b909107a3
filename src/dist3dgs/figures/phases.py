"""Where the wall time goes: phases stacked per layout."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from ..record import RunRecord
from ..tabulate import phase_order
from . import style
from .study import Study

TITLE = "Where the time goes"
CAPTION = (
    "Wall seconds per phase of a run, mean over its successful repeats (means add up, medians do not). Each "
    "phase is that of its slowest rank. Steps are split into computing and exposed communication, the part "
    "of the collectives that was not hidden behind computing, where it was measured. Other: the launcher's "
    "total less all phases. Only the stepping part can shrink with more ranks; the rest is what Amdahl's law"
    " is about. A run that failed is shown up to where it came, with a cross."
)
COLUMNS = ("scene", "strategy", "layout", "ranks", "nodes", "status", "n", "cause", "phase", "s")
Row = dict[str, Any]

_ORDER = ("startup", "load", "init", "compute", "communication", "step")


def data(study: Study) -> list[Row]:
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for r in study.records:
        if r.status == "excluded":
            continue
        cause = None if r.failure is None else r.failure.cause
        groups.setdefault((r.run.scene, r.run.strategy, r.run.layout, r.status, cause), []).append(r)
    ranks = {p["layout"]: (p["ranks"], p["nodes"]) for p in study.points}
    rows = []
    for (scene, strategy, layout, status, cause), records in groups.items():
        size = {"ranks": ranks[layout][0], "nodes": ranks[layout][1]}
        key = {
            "scene": scene,
            "strategy": strategy,
            "layout": layout,
            **size,
            "status": status,
            "cause": cause,
        }
        parts = mean_phases(records)
        for phase, seconds in parts.items() or [(None, None)]:
            rows.append(key | {"n": len(records), "phase": phase, "s": seconds})
    return sorted(
        rows, key=lambda r: (r["scene"], r["strategy"], r["ranks"], r["nodes"], r["status"] != "ok")
    )


def split_phases(record: RunRecord) -> dict[str, float]:
    """Phases of one run, with `step` split into compute and communication where known, and `other`."""
    m = record.metrics
    parts: dict[str, float] = {}
    for phase, seconds in m.phases_s.items():
        if phase == "step" and m.exposed_comm_s is not None:
            parts["compute"] = max(seconds - m.exposed_comm_s, 0.0)
            parts["communication"] = min(m.exposed_comm_s, seconds)
        else:
            parts["compute" if phase == "step" else phase] = seconds
    rest = 0.0 if m.total_s is None else m.total_s - sum(parts.values())
    if parts and rest > 0:
        parts["other"] = parts.get("other", 0.0) + rest
    return parts


def mean_phases(records: Sequence[RunRecord]) -> dict[str, float]:
    """Mean over records, in the order of drawing; a phase that one of them lacks counts as 0 s there."""
    each = [split_phases(r) for r in records]
    names = _ordered({name for parts in each for name in parts})
    return {name: sum(parts.get(name, 0.0) for parts in each) / len(each) for name in names}


def _ordered(names: Iterable[str]) -> list[str]:
    found = set(names)
    first = [p for p in _ORDER if p in found]
    return first + phase_order(found - set(first) - {"other"}) + [p for p in ("other",) if p in found]


def plot(rows: list[Row]) -> Any:
    bars = list(dict.fromkeys(_bar_key(r) for r in rows))
    wide = len({r["phase"] for r in rows if r["phase"]}) > 0
    height = 24 + 8.0 * max(len(bars), 1) + (4 if len({b[0] for b in bars}) > 1 else 0)
    figure = style.new_figure(style.DOUBLE_MM, min(height, 230))
    ax = figure.subplots()
    ax.set_xlabel("wall time [s]")
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    if not wide:
        ax.text(
            0.5,
            0.5,
            "no successful run yet",
            transform=ax.transAxes,
            ha="center",
            va="center",
            color=style.GREY,
        )
        ax.set_xticks([])
    longest = max((sum(r["s"] or 0 for r in rows if _bar_key(r) == b) for b in bars), default=1.0) or 1.0
    ax.set_xlim(0, (1.45 if any(b[3] != "ok" for b in bars) else 1.12) * longest)
    for i, key in enumerate(bars):
        _bar(ax, i, [r for r in rows if _bar_key(r) == key], longest)
    ax.set_yticks(range(len(bars)), [_bar_name(b, bars) for b in bars])
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    _legend(figure, _ordered({r["phase"] for r in rows if r["phase"]}))
    return figure


def _bar_key(r: Row) -> tuple[Any, ...]:
    return r["scene"], r["strategy"], r["layout"], r["status"], r["cause"]


def _bar_name(key: tuple[Any, ...], bars: Sequence[tuple[Any, ...]]) -> str:
    scene, strategy, layout, _, _ = key
    parts = [scene] if len({b[0] for b in bars}) > 1 else []
    parts += [strategy] if len({b[1] for b in bars}) > 1 or len(parts) else []
    return textwrap.shorten(" ".join(parts), 34, placeholder="…") + (f"  {layout}" if parts else layout)


def _bar(ax: Any, y: int, rows: Sequence[Row], longest: float) -> None:
    left, lost = 0.0, rows[0]["status"] != "ok"
    for r in rows:
        if not r["s"]:
            continue
        colour, hatch = style.phase_style(r["phase"])
        ax.barh(
            y, r["s"], left=left, height=0.66, color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.4,
            alpha=0.45 if lost else 1.0, zorder=2,
        )  # fmt: skip
        if r["s"] > 0.05 * longest:
            dark = colour in (style.BLUE, style.GREEN, "#8F8F8F")
            box = None if not hatch else {"facecolor": colour, "edgecolor": "none", "pad": 0.5}
            ax.text(
                left + r["s"] / 2, y, _seconds(r["s"]), ha="center", va="center", fontsize=6,
                color="white" if dark and not lost else "black", zorder=4, bbox=box,
            )  # fmt: skip
        left += r["s"]
    if lost:
        ax.plot(
            left,
            y,
            marker="X",
            markersize=6,
            color=style.FAILED,
            markeredgecolor="white",
            zorder=5,
            clip_on=False,
        )
        n = f" x{rows[0]['n']}" if rows[0]["n"] > 1 else ""
        text, colour = f"  {rows[0]['status']}: {rows[0]['cause']}{n}", style.ink(style.FAILED)
    else:
        text, colour = (
            f" {_seconds(left)} s" + (f"  (n = {rows[0]['n']})" if rows[0]["n"] > 1 else ""),
            "#333333",
        )
    ax.text(left, y, text, ha="left", va="center", fontsize=6, color=colour, zorder=5)


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _legend(figure: Any, phases: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    names = {"compute": "step: compute", "communication": "step: exposed communication"}
    handles = []
    for phase in phases:
        colour, hatch = style.phase_style(phase)
        handles.append(
            Patch(
                facecolor=colour,
                hatch=hatch,
                edgecolor="#333333",
                linewidth=0.4,
                label=names.get(phase, phase),
            )
        )
    if handles:
        figure.legend(
            handles=handles, loc="outside upper center", ncols=min(len(handles), 5), frameon=False, fontsize=6.5,
            handlelength=1.6, handleheight=1.0, columnspacing=1.2,
        )  # fmt: skip
