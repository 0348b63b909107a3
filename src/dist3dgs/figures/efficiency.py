"""Parallel efficiency by its three definitions, side by side."""

from collections.abc import Sequence
from typing import Any

from . import lines, panels, ticks
from .page import Entry, size_mm
from .study import Study

TITLE = "Efficiency, by three definitions"
CAPTION = (
    "Efficiency is speedup over the baseline divided by how many times more ranks; 100 % is ideal. It has "
    "three definitions, which for one and the same hardware can differ by a factor of two. Strong: the "
    "global batch is the same at every size, ratio of images/s. Throughput: the batch per rank is the same, "
    "so the global batch grows with the ranks, ratio of images/s. Equal quality: ratio of the training times"
    " until the held-out PSNR reaches the baseline's final one less 0.1 dB. A definition that this study's "
    "settings do not measure is named below with the reason."
)
EMPTY = "no run to compare yet"
COLUMNS = (*lines.COLUMNS, "scene", "definition")
Row = lines.Row

HEADINGS = {
    "strong": "Strong scaling",
    "throughput": "Throughput scaling",
    "time_to_quality": "Time to equal quality",
}


def data(study: Study) -> list[Row]:
    rows: list[Row] = []
    for scene in study.scenes:
        points = [p for p in study.points if p["scene"] == scene]
        for definition, name in HEADINGS.items():
            extra = {"scene": scene, "definition": definition}
            panel = f"{scene}: {name}"
            measured = _measured(points, definition)
            rows += [_mark(p, panel, definition) | extra for p in measured]
            if not measured:
                note = lines.mark(points[0], panel, "note", None, None, None, 0)
                rows.append(note | extra | {"note": _why_empty(points, definition)})
            trouble = (
                m for m in lines.trouble_marks(study, None, lambda r: r["scene"]) if m["panel"] == scene
            )
            rows += [m | extra | {"panel": panel} for m in trouble]
    return rows


def _mark(point: Row, panel: str, definition: str) -> Row:
    value = point[f"efficiency_{definition}"]
    name = "speedup_time_to_quality" if definition == "time_to_quality" else "speedup"
    low, high = (value * point[f"{name}_{end}"] / point[name] for end in ("min", "max"))
    return lines.mark(point, panel, "ok", value, low, high, point["n_ok"])


def _measured(points: Sequence[Row], definition: str) -> list[Row]:
    """Return the points that this definition compares with a baseline, of any strategy, and those baselines."""
    known = [p for p in points if p.get(f"efficiency_{definition}") is not None]
    compared = {_baseline(p) for p in known if p["outcome"] != "baseline"}
    return [p for p in known if _baseline(p) in compared]


def _baseline(point: Row) -> tuple[Any, ...]:
    return tuple(point[name] for name in ("scene", "baseline_strategy", "baseline_layout", "hardware"))


def _why_empty(points: Sequence[Row], definition: str) -> str:
    if not any(p["n_ok"] for p in points):
        return "no successful run yet"
    others = [p for p in points if p["n_ok"] and p["layout"] != p["baseline_layout"]]
    if not others:
        return "needs a second layout that succeeded"
    if definition == "strong" and all(p["scaling"] == "throughput" for p in others):
        return "not measured: the global batch grows with the ranks here"
    if definition == "throughput" and all(p["scaling"] == "strong" for p in others):
        return "not measured: the global batch is the same at every size here"
    first = next((p for p in others if p["reason"]), None)
    return (
        "not measured"
        if first is None
        else f"not measured: {first['strategy']} {first['layout']}: {first['reason']}"
    )


def plot(rows: list[Row]) -> Any:
    """Return a row per scene, a column per definition that any scene measures (all of them where none does)."""
    scenes = sorted({r["scene"] for r in rows})
    measured = [d for d in HEADINGS if any(r["definition"] == d and r["status"] == "ok" for r in rows)]
    shown = measured or list(HEADINGS)
    rows = lines.scaled(rows, 100)
    cells = [
        lines.Cell(
            scene if definition == shown[0] else "",
            [r for r in rows if (r["scene"], r["definition"]) == (scene, definition)],
        )
        for scene in scenes
        for definition in shown
    ]
    top = max([118, *(1.1 * v for cell in cells for v in lines.extremes(cell.rows))])

    def behind(ax: Any, cell: lines.Cell, _: Any) -> None:
        note = next((r["note"] for r in cell.rows if r["status"] == "note"), None)
        ax.set_ylim(0, top)
        if note:
            panels.say(ax, note)
            return
        ax.yaxis.set_major_locator(ticks.linear(size_mm(ax)[1]))
        ax.axhline(100, zorder=1, gid="ideal", **lines.IDEAL)

    return lines.figure(
        cells,
        "efficiency [%]",
        behind,
        headings=[HEADINGS[d] for d in shown],
        key=[Entry("ideal", lines.IDEAL)] if measured else [],
        notes=_notes(rows, [d for d in HEADINGS if d not in shown]),
        relative=True,
    )


def _notes(rows: Sequence[Row], definitions: Sequence[str]) -> list[str]:
    """Why these definitions have no panel; scenes that say the same are one line."""
    notes = []
    for definition in definitions:
        scenes: dict[str, list[str]] = {}
        for r in rows:
            if r["definition"] == definition and r["status"] == "note":
                scenes.setdefault(r["note"], []).append(r["scene"])
        for note, names in scenes.items():
            where = "" if len(scenes) == 1 else f" ({', '.join(names)})"
            notes.append(f"{HEADINGS[definition]}{where}: {note}")
    return notes
