"""Cost against time, with the layouts that no other beats in both."""

from collections.abc import Sequence
from typing import Any

from ..analysis import rank_unit
from . import panels, style, ticks
from .page import Entry, size_mm
from .ranks import series_key
from .study import Study

TITLE = "Cost against time"
CAPTION = (
    "What it costs to be faster: hours of all ranks (GPU-hours where a rank is a GPU) against hours of "
    "waiting. Where the baseline has a held-out PSNR, both are of the training until that quality (less 0.1 "
    "dB) is reached; elsewhere of the whole run from launch to end. A mark is a strategy and layout, its "
    "number that of the ranks; a line is a Pareto front: no other point with the same baseline is both cheaper and "
    "faster. Points that miss the quality or were not timed are listed below. Both axes are logarithmic; "
    "points further left are faster, points further down cheaper."
)
EMPTY = "no run has reached the quality of a baseline yet"
COLUMNS = (
    "scene",
    "strategy",
    "layout",
    "ranks",
    "nodes",
    "n",
    "status",
    "of",
    "time_s",
    "rank_hours",
    "unit",
    "on_front",
    "front",
)
Row = dict[str, Any]

_FRONT = {"color": style.GREY, "linestyle": "-", "linewidth": 0.9}
_NUMBER_PT = 5.5


def data(study: Study) -> list[Row]:
    """Return a row per point that succeeded; one without a time (`status` not_drawn) has the reason in `of`."""
    rows: list[Row] = []
    units = {
        (r.run.scene, r.run.strategy, r.run.layout): rank_unit(r) for r in study.records if r.status == "ok"
    }
    for scene in study.scenes:
        points = [p for p in study.points if p["scene"] == scene and p["n_ok"]]
        # Hours of other hardware or settings are not comparable, nor those of a workload's variants.
        baselines = {_baseline(p) for p in points}
        part = [_row(p) | {"unit": units.get((scene, p["strategy"], p["layout"]), "rank")} for p in points]
        for baseline in baselines:
            alike = [
                r
                for r, p in zip(part, points, strict=True)
                if _baseline(p) == baseline and r["status"] == "ok"
            ]
            for r in alike:
                r["on_front"] = not any(_beats(other, r) for other in alike)
                r["front"] = " ".join(filter(None, baseline))
        rows += part
    return rows if any(r["status"] == "ok" for r in rows) else []


def _baseline(p: Row) -> tuple[str | None, ...]:
    return p["hardware"], p.get("baseline_strategy"), p.get("baseline_layout")


def _row(p: Row) -> Row:
    row = {name: p[name] for name in ("scene", "strategy", "layout", "ranks", "nodes")} | {"n": p["n_ok"]}
    if p.get("target_psnr") is not None:
        time_s, of = p.get("time_to_quality_s"), "time to equal quality"
    else:
        time_s, of = p.get("total_s"), "whole run"
    if not time_s or p["outcome"] == "missed_quality":
        return row | {
            "status": "not_drawn",
            "of": "misses the quality" if p["outcome"] == "missed_quality" else "not timed",
        }
    return row | {"status": "ok", "of": of, "time_s": time_s, "rank_hours": time_s * p["ranks"] / 3600}


def _beats(a: Row, b: Row) -> bool:
    """Return True if a is no worse than b in both time and cost, and better in one."""
    worse = a["time_s"] > b["time_s"] or a["rank_hours"] > b["rank_hours"]
    return not worse and (a["time_s"], a["rank_hours"]) != (b["time_s"], b["rank_hours"])


def plot(rows: list[Row]) -> Any:
    """Return a panel per scene, each with its own axes."""
    drawn = [r for r in rows if r["status"] == "ok"]
    scenes = list(dict.fromkeys(r["scene"] for r in drawn))
    # Those of the rows that are not drawn too: a strategy has the same look in every figure.
    series = sorted({r["strategy"] for r in rows})
    shown = {r["strategy"] for r in drawn}
    hours = max(r["time_s"] for r in drawn) >= 3600
    unit, factor = ("h", 1 / 3600) if hours else ("min", 1 / 60)
    minutes = max(r["rank_hours"] for r in drawn) < 1
    units = {r["unit"] for r in drawn}
    name = units.pop() if len(units) == 1 else "rank"
    of = " or ".join(dict.fromkeys(r["of"] for r in drawn))
    sheet = panels.Sheet(
        titles=[(scene, "") for scene in scenes],
        columns=panels.num_columns(len(scenes)),
        xlabel=f"{of} [{unit}], log scale",
        ylabel=f"cost [{name}-{'minutes' if minutes else 'hours'}], log scale",
        ticks_mm=3.0,
        own_x=True,
    )
    figure, axes = sheet.draw(
        key=[
            *(Entry(e.name, e.look | {"linestyle": "none"}) for e in series_key(series) if e.name in shown),
            Entry("Pareto front; numbers: ranks", _FRONT),
        ],
        notes=_notes(rows),
    )
    for ax, scene in zip(axes, scenes, strict=True):
        part = [
            r | {"x": r["time_s"] * factor, "y": r["rank_hours"] * (60 if minutes else 1)}
            for r in drawn
            if r["scene"] == scene
        ]
        _panel(ax, part, series)
    return figure


def _notes(rows: Sequence[Row]) -> list[str]:
    """List what is not drawn; scenes that lack the same are counted."""
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for r in rows:
        if r["status"] != "ok":
            layouts = groups.setdefault((r["of"], r["strategy"]), {})
            layouts[r["layout"]] = layouts.get(r["layout"], 0) + 1
    many = len({r["scene"] for r in rows}) > 1
    return [
        f"not drawn, {why}: {strategy} "
        + ", ".join(
            f"{layout} ({n} scene{'s' if n > 1 else ''})" if many else layout for layout, n in layouts.items()
        )
        for (why, strategy), layouts in groups.items()
    ]


def _panel(ax: Any, rows: Sequence[Row], series: Sequence[str]) -> None:
    ax.grid(True, axis="both")
    for axis, name, room in ((ax.xaxis, "x", size_mm(ax)[0] / 1.6), (ax.yaxis, "y", size_mm(ax)[1])):
        low, high = min(r[name] for r in rows) / 1.5, max(r[name] for r in rows) * 1.5
        (ax.set_xscale if name == "x" else ax.set_yscale)("log")
        (ax.set_xlim if name == "x" else ax.set_ylim)(low, high)
        ticks.set_log(axis, ticks.decimal(low, high, room))
    for with_baseline in dict.fromkeys(r.get("front") for r in rows):
        on_front = (r for r in rows if r.get("on_front") and r.get("front") == with_baseline)
        front = sorted(on_front, key=lambda r: (r["x"], -r["y"]))
        ax.plot([r["x"] for r in front], [r["y"] for r in front], zorder=2, gid="front", **_FRONT)
    for r in rows:
        look = style.series_style(r["strategy"], series) | {"linestyle": "none"}
        ax.plot(r["x"], r["y"], zorder=3, gid="point", **look)
    _numbers(ax, rows)


def _numbers(ax: Any, rows: Sequence[Row]) -> None:
    """Write the ranks beside the marks, clear of each other and of the marks, those of the front first."""
    width, height = size_mm(ax)
    corner = ax.transData.transform
    box = ax.get_window_extent()
    scale = width / box.width

    def at(r: Row) -> tuple[float, float]:
        x, y = corner((r["x"], r["y"]))
        return (x - box.x0) * scale, (y - box.y0) * scale

    taken = [(x - 0.9, y - 0.9, x + 0.9, y + 0.9) for x, y in map(at, rows)]
    for r in sorted(rows, key=lambda r: not r.get("on_front")):
        text = str(r["ranks"])
        w, h = style.width_mm(text, _NUMBER_PT), 1.9
        x, y = at(r)
        for dx, dy in ((1.3, 1.4), (-1.3 - w, 1.4), (1.3, -1.4 - h), (-1.3 - w, -1.4 - h)):
            frame = (x + dx, y + dy, x + dx + w, y + dy + h)
            inside = frame[0] > 0 and frame[1] > 0 and frame[2] < width and frame[3] < height
            if inside and not any(_overlap(frame, other) for other in taken):
                taken.append(frame)
                place = ((x + dx) / width, (y + dy) / height)
                ax.text(
                    *place, text, transform=ax.transAxes, fontsize=_NUMBER_PT, color=style.INK, gid="ranks"
                )
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
