"""Parallel efficiency by its three definitions, side by side."""

import textwrap
from collections.abc import Sequence
from typing import Any

from . import lines, style
from .study import Study

TITLE = "Efficiency, by three definitions"
CAPTION = (
    "Efficiency is speedup over the baseline divided by how many times more ranks; 100 % is ideal. It has "
    "three definitions, which for one and the same hardware can differ by a factor of two. Strong: the "
    "global batch is the same at every size, ratio of images/s. Throughput: the batch per rank is the same, "
    "so the global batch grows with the ranks, ratio of images/s. Equal quality: ratio of the training times"
    " until the held-out PSNR reaches the baseline's final one less 0.1 dB. A definition that this study's "
    "settings do not measure stays empty and says why."
)
COLUMNS = (*lines.COLUMNS, "scene", "definition")
Row = lines.Row

PANELS = {"strong": "strong", "throughput": "throughput", "time_to_quality": "time to equal quality"}


def data(study: Study) -> list[Row]:
    rows: list[Row] = []
    for scene in study.scenes:
        points = [p for p in study.points if p["scene"] == scene]
        for definition, name in PANELS.items():
            extra = {"scene": scene, "definition": definition}
            panel = name if len(study.scenes) == 1 else f"{scene}: {name}"
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
    """The points of every strategy for which this definition compares at least two sizes."""
    known = [p for p in points if p.get(f"efficiency_{definition}") is not None]
    sizes: dict[str, set[str]] = {}
    for p in known:
        sizes.setdefault(p["strategy"], set()).add(p["layout"])
    return [p for p in known if len(sizes[p["strategy"]]) > 1]


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
    panels = list(dict.fromkeys(r["panel"] for r in rows)) or ["efficiency"]
    figure, axes = lines.grid(len(panels))
    all_series = sorted({r["series"] for r in rows})
    lines.footer(figure, rows)
    for ax, panel in zip(axes, panels, strict=True):
        part = [lines.scaled(r, 100) for r in rows if r["panel"] == panel]
        ax.set_title(panel[:1].upper() + panel[1:] if panel in PANELS.values() else panel)
        ax.set_ylabel("efficiency [%]")
        marks = [r for r in part if r["status"] != "note"]
        values = [r["value"] for r in marks if r["value"] is not None]
        ax.set_ylim(0, max([118, *(1.1 * v for v in values)]))
        ax.axhline(100, color=style.GREY, lw=1.0, ls=":", zorder=1, gid="ideal")
        note = next((r["note"] for r in part if r["status"] == "note"), None)
        if note:
            scene = part[0]["scene"]
            lines.ranks_axis(
                ax, sorted({(r["ranks"], r["nodes"], r["layout"]) for r in rows if r["scene"] == scene})
            )
            lines.failed(ax, [r for r in marks if r["status"] != "ok"])
            ax.text(
                0.5, 0.55, textwrap.fill(note, 26), transform=ax.transAxes, ha="center", va="center",
                color=style.GREY, fontsize=7,
            )  # fmt: skip
        else:
            lines.draw_panel(ax, marks, all_series, label=len({r["series"] for r in marks}) > 1)
    return figure
