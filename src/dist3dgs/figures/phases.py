"""Wall time by phase, stacked per layout."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..analysis.tables import phase_order
from ..runs.record import Metrics, RunRecord
from . import lines, style, ticks
from . import rows as panel_rows
from .page import EDGE_MM, Entry, Page, body_room_mm
from .study import Study

TITLE = "Where the time goes"
CAPTION = (
    "Wall seconds per phase of a run, mean over its successful repeats (means add up, medians do not). Each "
    "phase is that of its slowest rank. Steps are split into computing and exposed communication, the part of "
    "the collectives that was not hidden behind computing, where it was measured. Of a resumed run all "
    "attempts add up, their steps split as those since the last resume. Other: the launcher's total less all "
    "phases. Only the stepping part can shrink with more ranks; the rest is what Amdahl's law is about. A run "
    "that failed is shown up to where it came, with a cross, a degraded one in full with a diamond. The "
    "numbers beside a bar are its parts in seconds, each below its phase's name; more bars than a page has "
    "room for are drawn without them, in a panel per scene."
)
EMPTY = "no run has begun yet"
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
    ranks = {(p["scene"], p["strategy"], p["layout"]): (p["ranks"], p["nodes"]) for p in study.points}
    rows = []
    for (scene, strategy, layout, status, cause), records in groups.items():
        size = dict(zip(("ranks", "nodes"), ranks[scene, strategy, layout], strict=True))
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
    """Return phases of one run, with `step` split into compute and communication where known, and `other`."""
    m = record.metrics
    parts: dict[str, float] = {}
    for phase, seconds in m.phases_s.items():
        if phase == "step" and m.exposed_comm_s is not None:
            exposed = min(seconds, m.exposed_comm_s * _untimed(m))
            parts["compute"], parts["communication"] = seconds - exposed, exposed
        else:
            parts["compute" if phase == "step" else phase] = seconds
    rest = 0.0 if m.total_s is None else m.total_s - sum(parts.values())
    if parts and rest > 0:
        parts["other"] = parts.get("other", 0.0) + rest
    return parts


def _untimed(m: Metrics) -> float:
    """Return by how much the steps of a resumed run are more than those whose communication was measured."""
    return max(m.steps / m.timed_steps, 1.0) if m.steps and m.timed_steps else 1.0


def mean_phases(records: Sequence[RunRecord]) -> dict[str, float]:
    """Return mean over records, in the order of drawing; a phase that one of them lacks counts as 0 s there."""
    each = [split_phases(r) for r in records]
    names = _ordered({name for parts in each for name in parts})
    return {name: sum(parts.get(name, 0.0) for parts in each) / len(each) for name in names}


def _ordered(names: Iterable[str]) -> list[str]:
    found = set(names)
    first = [p for p in _ORDER if p in found]
    return first + phase_order(found - set(first) - {"other"}) + [p for p in ("other",) if p in found]


#: From left to right: strategy (scenes have rows of their own above theirs), layout, bars, numbers.
_GROUP_MM, _LAYOUT_MM, _MIN_BARS_MM, _NUMBER_MM = 27.0, 12.0, 40.0, 7.2
_HEAD_MM, _FOOT_MM = 16.0, 8.5
_BAR_MM, _MIN_BAR_MM = 5.0, 2.7
_PT = 6.0


def plot(rows: list[Row]) -> Any:
    """Return bars beside a table of their parts, whose head is the key; panels without numbers where there are many."""
    bars = list(dict.fromkeys(_bar_key(r) for r in rows))
    key, trouble = lines.trouble_key(rows), _trouble(bars)
    room = body_room_mm(style.DOUBLE_MM, key=key, trouble=trouble) - _HEAD_MM - _FOOT_MM
    at = _places(bars)
    num_rows = at[-1] + 1
    if num_rows > room / _MIN_BAR_MM:
        return _in_panels(rows, bars)
    pitch = min(_BAR_MM, room / num_rows)
    body = _HEAD_MM + pitch * num_rows + _FOOT_MM
    page = Page(style.DOUBLE_MM, body, key=key, trouble=trouble)

    phases = _ordered({r["phase"] for r in rows if r["phase"]})
    left = _GROUP_MM + _LAYOUT_MM
    merged = _small(rows, phases, int((page.width_mm - left - _MIN_BARS_MM) / _NUMBER_MM) - 1)
    phases = [p for p in phases if p not in merged or p == "other"]
    numbers = page.width_mm - EDGE_MM - _NUMBER_MM * (len(phases) + 1)
    top = page.top_mm + _HEAD_MM
    parts = {bar: _parts([r for r in rows if _bar_key(r) == bar], merged) for bar in bars}
    longest = max(sum(p.values()) for p in parts.values())
    ax = _axes(page, (left, top, numbers - left - 3.0, pitch * num_rows), longest)
    _head(page, numbers, top, phases)
    for i, bar in zip(at, bars, strict=True):
        _bar(ax, (i + 0.5) * pitch, pitch, bar, parts[bar])
        _numbers(page, top + (i + 0.5) * pitch, numbers, phases, bar, parts[bar])
    _groups(page, top, pitch, bars, at)
    return page.figure


def _places(bars: Sequence[tuple[Any, ...]]) -> list[int]:
    """Return the row of each bar; the row above a scene's first one is its name's."""
    scenes = list(dict.fromkeys(b[0] for b in bars))
    return [i + scenes.index(bar[0]) + 1 for i, bar in enumerate(bars)]


def _in_panels(rows: Sequence[Row], bars: Sequence[tuple[Any, ...]]) -> Any:
    """Every bar, in a panel per scene; the numbers are in the csv."""
    names = _ordered({r["phase"] for r in rows if r["phase"]})
    looks = {name: style.phase_look(name) for name in names}
    scenes = [[b for b in bars if b[0] == scene] for scene in dict.fromkeys(b[0] for b in bars)]
    key = [*(Entry(name, look) for name, look in looks.items()), *lines.trouble_key(rows)]
    sheet = panel_rows.draw(
        [panel_rows.Panel(part[0][0], [(b[1], b[2]) for b in part]) for part in scenes],
        "wall time [s]",
        key=key,
        notes=["the numbers are in phases.csv"],
        trouble=_trouble(bars),
    )
    by_bar: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        by_bar.setdefault(_bar_key(r), []).append(r)
    for ax, part in zip(sheet.axes, scenes, strict=True):
        parts = [_parts(by_bar[bar], set()) for bar in part]
        panel_rows.from_zero(ax, max(sum(p.values()) for p in parts))
        for i, (bar, p) in enumerate(zip(part, parts, strict=True)):
            panel_rows.stack(ax, i, p, looks, bar[3])
    return sheet.figure


def _bar_key(r: Row) -> tuple[Any, ...]:
    return r["scene"], r["strategy"], r["layout"], r["status"], r["cause"], r["n"]


def _parts(rows: Sequence[Row], merged: set[str]) -> dict[str, float]:
    parts: dict[str, float] = {}
    for r in rows:
        if r["phase"]:
            name = "other" if r["phase"] in merged else r["phase"]
            parts[name] = parts.get(name, 0.0) + r["s"]
    return {name: parts[name] for name in _ordered(parts)}


def _small(rows: Sequence[Row], phases: Sequence[str], columns: int) -> set[str]:
    """Phases for which there is no column: those that take least, drawn as `other` (imported logs can name many)."""
    if len(phases) <= columns:
        return set()
    total = {p: sum(r["s"] for r in rows if r["phase"] == p) for p in phases if p != "other"}
    return {"other", *sorted(total, key=lambda p: total[p])[: len(total) - columns + 1]}


def _axes(page: Page, box: tuple[float, float, float, float], longest: float) -> Any:
    """Place bars at millimetres from the top, like the text beside them."""
    ax = page.axes(*box)
    ax.set_ylim(box[3], 0)
    ax.set_xlim(0, 1.04 * longest or 1.0)
    ax.set_yticks([])
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    ax.set_xlabel("wall time [s]")
    ax.xaxis.set_major_locator(ticks.linear(box[2] / 1.5))
    return ax


def _bar(ax: Any, y: float, pitch: float, key: tuple[Any, ...], parts: dict[str, float]) -> None:
    status, left = key[3], 0.0
    for phase, seconds in parts.items():
        alpha = 1.0 if status == "ok" else 0.45
        ax.barh(y, seconds, left=left, height=0.7 * pitch, alpha=alpha, zorder=2, **style.phase_look(phase))
        left += seconds
    if status != "ok":
        mark = lines.DEGRADED if status == "degraded" else lines.FAILED
        ax.plot(
            left, y, clip_on=False, zorder=5, gid="degraded" if status == "degraded" else "failed", **mark
        )


def _groups(page: Page, top: float, pitch: float, bars: Sequence[tuple[Any, ...]], at: Sequence[int]) -> None:
    """Layouts beside the bars, a strategy beside its first, a scene's name above its bars, a line above each group."""
    from matplotlib.lines import Line2D

    before: tuple[Any, ...] = (None, None)
    for row, (scene, strategy, layout, _, _, n) in zip(at, bars, strict=True):
        y = top + (row + 0.5) * pitch
        name = style.fit(layout if n == 1 else f"{layout} ×{n}", _LAYOUT_MM - 1.5, _PT)
        page.text(_GROUP_MM + _LAYOUT_MM - 1.2, y, name, size_pt=_PT, ha="right")
        if before == (scene, strategy):
            continue
        is_new_scene, is_first = scene != before[0], before[0] is None
        before = scene, strategy
        room = _GROUP_MM - EDGE_MM - 1
        page.text(EDGE_MM, y, style.fit(strategy, room, _PT), size_pt=_PT, color=style.GREY, gid="title")
        if is_new_scene:
            room += _LAYOUT_MM
            short = style.fit(scene, room, _PT, bold=True)
            page.text(EDGE_MM, y - pitch, short, size_pt=_PT, weight="bold", gid="title")
        if not is_first:
            line_y = y - (1.5 if is_new_scene else 0.5) * pitch
            ends = [EDGE_MM, page.width_mm - EDGE_MM]
            page.paper.add_line(Line2D(ends, [line_y] * 2, color=style.LIGHT_GREY, linewidth=0.4))


def _head(page: Page, x: float, y: float, phases: Sequence[str]) -> None:
    """Draw each phase's colour and name above its column of numbers."""
    from matplotlib.patches import Rectangle

    names = {"communication": "exposed comm."}
    for i, phase in enumerate([*phases, "total"]):
        centre = x + _NUMBER_MM * (i + 0.5)
        if phase != "total":
            page.paper.add_patch(Rectangle((centre - 2.2, y - 2.6), 4.4, 2.4, **style.phase_look(phase)))
        name = style.fit(names.get(phase, phase), (_HEAD_MM - 4) * 2**0.5, _PT)
        page.text(
            centre - 0.4,
            y - 3.4,
            name,
            size_pt=_PT,
            rotation=45,
            rotation_mode="anchor",
            va="baseline",
            gid="head",
        )


def _numbers(
    page: Page, y: float, x: float, phases: Sequence[str], key: tuple[Any, ...], parts: dict[str, float]
) -> None:
    for i, phase in enumerate(phases):
        text = _seconds(parts[phase]) if phase in parts else "–"
        page.text(x + _NUMBER_MM * (i + 0.5) + 2.4, y, text, size_pt=_PT, ha="right", gid="number")
    total = _seconds(sum(parts.values())) if parts else "–"
    weight = "bold" if key[3] == "ok" else "normal"
    page.text(
        x + _NUMBER_MM * (len(phases) + 0.5) + 2.4,
        y,
        total,
        size_pt=_PT,
        ha="right",
        weight=weight,
        gid="number",
    )


def _trouble(bars: Sequence[tuple[Any, ...]]) -> list[str]:
    many = len({b[:2] for b in bars}) > 1
    words = []
    for scene, strategy, layout, status, cause, n in bars:
        if status != "ok":
            where = f"{scene} {strategy} {layout}" if many else layout
            words.append(lines.trouble_word(where, status, cause) + (f" (x{n})" if n > 1 else ""))
    return words


def _seconds(value: float) -> str:
    """Round to whole seconds where there are many, so that the numbers of a column stay distinct."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"
