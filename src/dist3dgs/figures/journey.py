"""The study's attempts in order: what was tried, what happened, what it cost."""

from collections.abc import Sequence
from typing import Any

from ..analysis import rank_unit
from ..analysis.journey import Attempt, attempts
from . import style, ticks
from .page import EDGE_MM, Page, body_room_mm
from .study import Study

TITLE = "The journey"
CAPTION = (
    "Every attempt in the order of its start, read downwards. Bars: what it cost in rank-hours (GPU-hours "
    "where a rank is a GPU) of everything that was allocated, used or not. Beside each: its outcome, with "
    "the cause where it did not succeed, its cost and the wall time of that, and below it in grey what changed "
    "in the settings from the attempt before. Costs in GPU-hours and those of CPU ranks have axes of their own. "
    "Neighbours with the same outcome share a row where there are more than 24 attempts."
)
EMPTY = "no attempt yet"
COLUMNS = (
    *("attempt", "last_attempt", "scene", "strategy", "layout", "repeat", "status", "cause", "changes"),
    *("rank_hours", "unit", "wall_s", "psnr", "images_per_s", "started_at"),
)
Row = dict[str, Any]
MAX_ROWS = 24
_MAX_DRAWN = 40
_NAME_MM, _BARS_MM, _ROW_MM = 46.0, 40.0, 7.4
_PT, _SMALL_PT = 6.5, 6.0
_UNIT_MM, _FOOT_MM = 3.0, 8.5


def data(study: Study) -> list[Row]:
    journey = attempts([r for r in study.records if r.status != "excluded"])
    rows = [_row(a) for a in journey]
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
        "wall_s": record.metrics.total_s,
        "psnr": record.metrics.psnr,
        "images_per_s": record.metrics.images_per_s,
        "started_at": record.provenance.started_at,
    }


def _together(rows: Sequence[Row]) -> list[Row]:
    """Merge neighbours with the same outcome: successes of one scene and strategy, failures of one layout."""
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
        last["wall_s"] = (last["wall_s"] or 0) + (row["wall_s"] or 0)
        last["psnr"] = row["psnr"] if row["psnr"] is not None else last["psnr"]
        last["repeat"] = None
    return merged


def plot(rows: list[Row]) -> Any:
    drawn = rows[: min(_MAX_DRAWN, _room(rows))]
    groups = [[r for r in drawn if r["unit"] == unit] for unit in dict.fromkeys(r["unit"] for r in drawn)]
    notes = [f"first {len(drawn)} of {len(rows)} rows; all are in the csv"] if len(drawn) < len(rows) else []
    body = sum(_UNIT_MM + _ROW_MM * len(group) + _FOOT_MM for group in groups)
    page = Page(style.DOUBLE_MM, body, notes=notes)
    top = page.top_mm + _UNIT_MM
    for group in groups:
        _panel(page, top, group)
        top += _UNIT_MM + _ROW_MM * len(group) + _FOOT_MM
    return page.figure


def _room(rows: Sequence[Row]) -> int:
    units = len({r["unit"] for r in rows})
    return int((body_room_mm(style.DOUBLE_MM, notes=["…"]) - units * (_UNIT_MM + _FOOT_MM)) / _ROW_MM)


def _panel(page: Page, top: float, rows: list[Row]) -> None:
    """Select attempts whose cost has one unit: CPU rank-hours would be invisible beside GPU-hours."""
    ax = page.axes(_NAME_MM, top, _BARS_MM, _ROW_MM * len(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks([])
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    scale, unit = _unit(max((r["rank_hours"] or 0 for r in rows), default=0), rows[0]["unit"] == "GPU-hours")
    longest = max((r["rank_hours"] * scale for r in rows if r["rank_hours"]), default=1.0)
    ax.set_xlim(0, 1.03 * longest)
    ax.xaxis.set_major_locator(ticks.linear(_BARS_MM / 1.5))
    ax.set_xlabel(f"cost [{unit}]")
    for i, row in enumerate(rows):
        cost = None if row["rank_hours"] is None else row["rank_hours"] * scale
        ax.barh(
            i, cost or 0, height=0.58, edgecolor=style.INK, linewidth=0.4, zorder=2, **_look(row["status"])
        )
        _words(page, top + _ROW_MM * (i + 0.5), row, cost, unit)


def _look(status: str) -> dict[str, Any]:
    looks = {
        "ok": {"facecolor": style.BLUE, "hatch": ""},
        "degraded": {"facecolor": style.ORANGE, "hatch": "///"},
        "failed": {"facecolor": style.FAILED, "hatch": "xxx"},
    }
    return looks.get(status, {"facecolor": style.LIGHT_GREY, "hatch": "---"})


def _unit(largest: float, gpu: bool) -> tuple[float, str]:
    name = "GPU" if gpu else "rank"
    return (1.0, f"{name}-hours") if largest >= 1 else (60.0, f"{name}-minutes")


def _words(page: Page, y: float, row: Row, cost: float | None, unit: str) -> None:
    """Label the run on the left of its bar and the outcome on the right, in two lines each."""
    first, second = row["attempt"], row["last_attempt"]
    number = f"#{first}" if first == second else f"#{first}–{second}"
    x = EDGE_MM + max(style.width_mm(f"{number} ", _PT), 6.5)
    room = _NAME_MM - x - 1.5
    page.text(EDGE_MM, y - 1.4, number, size_pt=_PT, color=style.GREY)
    strategy = style.fit(row["strategy"], 0.65 * room, _PT)
    layouts = row["layout"].split(", ")
    layout = row["layout"] if len(layouts) < 3 else f"{layouts[0]} … {layouts[-1]}"
    layout = style.fit(layout, room - style.width_mm(f"{strategy}  ", _PT), _PT)
    page.text(x, y - 1.4, f"{strategy}  {layout}", size_pt=_PT, gid="name")
    page.text(
        x, y + 1.5, style.fit(row["scene"], room, _SMALL_PT), size_pt=_SMALL_PT, color=style.GREY, gid="name"
    )

    x = _NAME_MM + _BARS_MM + 2.5
    room = page.width_mm - x - EDGE_MM
    lines = style.wrap(row["changes"] or "", room, _SMALL_PT)
    if len(lines) > 1:  # one line, cut at its end: changes are told in the order of the settings
        lines = [_cut(row["changes"], room)]
    colour = style.INK if row["status"] == "ok" else style.ink(_look(row["status"])["facecolor"])
    outcome = style.fit(_outcome(row, cost, unit), room, _PT)
    page.text(x, y - (1.4 if lines else 0), outcome, size_pt=_PT, color=colour, gid="outcome")
    for line in lines:
        page.text(x, y + 1.5, line, size_pt=_SMALL_PT, color=style.GREY, gid="changes")


def _cut(text: str, room: float) -> str:
    """Cut a text to the room there is."""
    while text and style.width_mm(f"{text} …", _SMALL_PT) > room:
        text = text[:-1].rstrip()
    return f"{text} …"


def _outcome(row: Row, cost: float | None, unit: str) -> str:
    parts = ["ok" if row["status"] == "ok" else f"{row['status']}: {row['cause']}"]
    if row["psnr"] is not None:
        parts.append(f"{row['psnr']:.2f} dB")
    if cost is None:
        return ", ".join([*parts, "cost not known"])
    wall = f" ({_wall(row['wall_s'])} wall)" if row["wall_s"] is not None else ""
    return ", ".join([*parts, f"{cost:.3g} {unit}{wall}"])


def _wall(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
