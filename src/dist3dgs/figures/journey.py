"""The study's attempts in order: what was tried, what happened, what it cost."""

import textwrap
from collections.abc import Sequence
from typing import Any

from ..scaling import rank_unit
from ..scaling.journey import Attempt, attempts
from . import style
from .study import Study

TITLE = "The journey"
CAPTION = (
    "Every attempt in the order of its start, read downwards. Bars: what it cost in rank-hours (GPU-hours "
    "where a rank is a GPU) of everything that was allocated, used or not. Beside each: its outcome, with "
    "the cause where it did not succeed, and below it in grey what changed in the settings from the attempt "
    "before. Costs in GPU-hours and those of CPU ranks have axes of their own. "
    "Neighbours with the same outcome share a row where there are more than 24 attempts."
)
COLUMNS = (
    *("attempt", "last_attempt", "scene", "strategy", "layout", "repeat", "status", "cause", "changes"),
    *("rank_hours", "unit", "psnr", "images_per_s", "started_at"),
)
Row = dict[str, Any]
MAX_ROWS = 24
_MAX_DRAWN = 40
#: Width of a panel in lengths of its longest bar; the rest is for words.
_WIDTH = 2.6


def data(study: Study) -> list[Row]:
    story = attempts([r for r in study.records if r.status != "excluded"])
    rows = [_row(a) for a in story]
    return rows if len(rows) <= MAX_ROWS else _together(rows)


def _row(attempt: Attempt) -> Row:
    record = attempt.record
    return {
        "attempt": attempt.number,
        "last_attempt": attempt.number,
        **record.run.model_dump(include={"scene", "strategy", "layout", "repeat"}),
        "status": record.status,
        "cause": None if record.failure is None else record.failure.cause,
        "changes": "; ".join(attempt.changes) or None,
        "rank_hours": attempt.rank_hours,
        "unit": f"{rank_unit(record)}-hours",
        "psnr": record.metrics.psnr,
        "images_per_s": record.metrics.images_per_s,
        "started_at": record.provenance.started_at,
    }


def _together(rows: Sequence[Row]) -> list[Row]:
    """Neighbours with the same outcome as one row: successes of one scene and strategy, failures of one "
    "layout."""
    merged: list[Row] = []
    for row in rows:
        last = merged[-1] if merged else None
        keys = ["scene", "strategy", "status", "cause", "unit"] + (
            ["layout"] if row["status"] != "ok" else []
        )
        if last is None or any(last[k] != row[k] for k in keys):
            merged.append(dict(row))
            continue
        last["last_attempt"] = row["attempt"]
        last["layout"] = ", ".join(dict.fromkeys([*last["layout"].split(", "), row["layout"]]))
        last["rank_hours"] = (last["rank_hours"] or 0) + (row["rank_hours"] or 0)
        last["psnr"] = row["psnr"] if row["psnr"] is not None else last["psnr"]
        last["repeat"] = None
    return merged


def plot(rows: list[Row]) -> Any:
    drawn = rows[:_MAX_DRAWN]
    units = dict.fromkeys(r["unit"] for r in drawn)
    groups = [[r for r in drawn if r["unit"] == unit] for unit in units]
    sizes = [max(len(g), 2) for g in groups] or [2]
    figure = style.new_figure(style.DOUBLE_MM, min(10 + 12 * len(sizes) + 7.6 * sum(sizes), 340))
    axes = figure.subplots(len(sizes), squeeze=False, height_ratios=sizes)[:, 0]
    for ax, group in zip(axes, groups, strict=False):
        _panel(ax, group)
    if not groups:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "no attempt yet", transform=axes[0].transAxes, ha="center", color=style.GREY)
    if len(rows) > len(drawn):
        axes[0].set_title(f"first {len(drawn)} of {len(rows)} rows; all are in the csv")
    return figure


def _panel(ax: Any, rows: list[Row]) -> None:
    """Attempts whose cost is in one unit: those of a laptop's ranks cannot be seen beside those of GPUs."""
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    scale, unit = _unit(max((r["rank_hours"] or 0 for r in rows), default=0), rows[0]["unit"] == "GPU-hours")
    longest = max((r["rank_hours"] * scale for r in rows if r["rank_hours"]), default=1.0)
    ax.set_xlim(0, _WIDTH * longest)
    ticks = [t for t in ax.get_xticks() if t <= 1.05 * longest]
    ax.set_xticks(ticks)
    ax.spines.bottom.set_bounds(0, max(longest, ticks[-1]))
    ax.set_xlabel(f"cost [{unit}]", loc="left")
    for y, row in enumerate(rows):
        _attempt(ax, y, row, scale, longest)
    ax.set_yticks(range(len(rows)), [_name(r) for r in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(max(len(rows), 2) - 0.4, -0.6)


def _unit(largest: float, gpu: bool) -> tuple[float, str]:
    name = "GPU" if gpu else "rank"
    return (1.0, f"{name}-hours") if largest >= 1 else (60.0, f"{name}-minutes")


def _name(row: Row) -> str:
    number = (
        f"{row['attempt']}"
        if row["attempt"] == row["last_attempt"]
        else f"{row['attempt']}–{row['last_attempt']}"
    )
    layout = textwrap.shorten(row["layout"], 22, placeholder=" …")
    return (
        f"#{number}  {textwrap.shorten(row['scene'] + ' ' + row['strategy'], 34, placeholder='…')} {layout}"
    )


def _attempt(ax: Any, y: int, row: Row, scale: float, longest: float) -> None:
    look = {
        "ok": {"color": style.BLUE, "hatch": ""},
        "degraded": {"color": style.ORANGE, "hatch": "////"},
        "failed": {"color": style.FAILED, "hatch": "xxxx"},
    }.get(row["status"], {"color": style.LIGHT_GREY, "hatch": "...."})
    cost = None if row["rank_hours"] is None else row["rank_hours"] * scale
    ax.barh(y, cost or 0, height=0.6, edgecolor="#333333", linewidth=0.4, zorder=2, **look)
    text = "ok" if row["status"] == "ok" else f"{row['status']}: {row['cause']}"
    if row["psnr"] is not None:
        text += f", {row['psnr']:.2f} dB"
    text += ", cost not known" if cost is None else f", {cost:.2g} {'min' if scale > 1 else 'h'}"
    colour = "#333333" if row["status"] == "ok" else style.ink(look["color"])
    left = (cost or 0) + 0.02 * longest
    changed = row["changes"]
    ax.text(left, y - (0.16 if changed else 0), text, va="center", fontsize=6.5, color=colour, zorder=4)
    if changed:
        room = int(150 * (1 - (cost or 0) / longest / _WIDTH))
        short = textwrap.shorten(changed, room, placeholder=" …")
        ax.text(left, y + 0.28, short, va="center", fontsize=5.6, color=style.GREY, zorder=4)
