"""Speedup over the baseline, with the ideal line and the negative-scaling zone."""

from collections.abc import Sequence
from typing import Any

from ..analysis import fit_usl, fitted_points
from . import lines, style, ticks
from .page import Entry, size_mm
from .ranks import Ranks
from .study import Study

TITLE = "Speedup"
CAPTION = (
    "Speedup over the baseline: the smallest layout of the scene that succeeded on the same hardware with the "
    "same settings, whichever strategy ran it, or the one that the config names. A point on several ranks "
    "that is its own baseline, because nothing ran on fewer, has a cross-hair behind it. Filled marks: ratio "
    "of images/s (of epochs per hour where a log shows no other), named by its definition: strong scaling "
    "where the global batch is the same at every size, throughput scaling where the batch per rank is. Hollow "
    "marks: ratio of the training times to equal quality (the baseline's final held-out PSNR less 0.1 dB). "
    "Whiskers: smallest and largest ratio of any two repeats. Dotted: ideal. Shaded: negative scaling, where "
    "more ranks are slower than the baseline. A fitted Universal Scalability Law (thin line) is drawn only "
    "where there are more sizes than its three parameters and it describes them. Both axes are logarithmic. "
    "Marks of several strategies at one size stand side by side, layouts with as many ranks on more nodes to "
    "the right of them."
)
EMPTY = "no run to compare yet"
COLUMNS = (*lines.COLUMNS, "definition", "baseline_ranks")
Row = lines.Row

_NAMES = {
    "strong": "strong scaling",
    "throughput": "throughput scaling",
    "mixed": "batch neither fixed nor per rank",
    "unknown": "batch unknown",
}


def data(study: Study) -> list[Row]:
    rows = []
    for point in study.points:
        for column, definition in (
            ("speedup", point.get("scaling") or "mixed"),
            ("speedup_time_to_quality", None),
        ):
            if point.get(column) is None:
                continue
            low, high = point.get(f"{column}_min"), point.get(f"{column}_max")
            row = lines.mark(point, point["scene"], "ok", point[column], low, high, point["n_ok"])
            rows.append(
                row
                | {"definition": definition or "time_to_quality", "baseline_ranks": point["baseline_ranks"]}
            )
    return rows + _fits(study) + _trouble(study)


def _trouble(study: Study) -> list[Row]:
    """Failed and degraded runs; a degraded one at its images/s over the baseline's."""
    rates = {(p["scene"], p["strategy"], p["layout"]): p.get("images_per_s") for p in study.points}
    baselines = {
        (p["scene"], p["strategy"]): rates.get((p["scene"], p["baseline_strategy"], p["baseline_layout"]))
        for p in study.points
        if p.get("baseline_layout")
    }
    marks = lines.trouble_marks(study, "images_per_s")
    for m in marks:
        reference = baselines.get((m["panel"], m["series"]))
        m["value"] = m["value"] / reference if m["value"] and reference else None
    return marks


def _fits(study: Study) -> list[Row]:
    """Return samples of the USL through each series with enough sizes; the law's words in `note`."""
    rows = []
    for scene in study.scenes:
        for strategy in study.strategies:
            series = [p for p in study.points if (p["scene"], p["strategy"]) == (scene, strategy)]
            points = fitted_points(series, study.points)
            fit = (
                fit_usl([p["ranks"] for p in points], [p["images_per_s"] for p in points]) if points else None
            )
            if fit is None or not fit.checked or fit.problem:
                continue
            first, last = points[0]["ranks"], max(p["ranks"] for p in points)
            for i in range(33):
                ranks = first * (last / first) ** (i / 32)
                row = lines.mark(points[-1], scene, "fit", fit.speedup(ranks, first), None, None, 0)
                rows.append(row | {"ranks": ranks, "layout": None, "nodes": None, "note": fit.describe()})
    return rows


def plot(rows: list[Row]) -> Any:
    """Return one panel per scene, all with the same limits."""
    ideals = {r["panel"]: _ideals(rows, r["panel"]) for r in rows}
    ends = [line[-1][-1] for lines_ in ideals.values() for line in lines_]
    limits = _limits([*lines.extremes(rows), *ends])

    def behind(ax: Any, cell: lines.Cell, ranks: Ranks) -> None:
        if not any(r["status"] == "ok" for r in (*cell.rows, *cell.other_rows)):
            return
        _ratio_axis(ax, limits)
        for sizes, speedups in ideals[cell.title]:
            ax.plot(sizes, speedups, zorder=1, gid="ideal", **lines.IDEAL)
        _to_quality(ax, cell.other_rows, ranks)
        for name in ranks.series:
            fit = [r for r in cell.other_rows if r["status"] == "fit" and r["series"] == name]
            colour = style.series_style(name, ranks.series)["color"]
            x, y = [r["ranks"] for r in fit], [r["value"] for r in fit]
            ax.plot(x, y, zorder=2, gid="fit", **_FIT | {"color": colour})

    cells = [
        lines.Cell(c.title, [r for r in c.rows if _is_line(r)], [r for r in c.rows if not _is_line(r)])
        for c in lines.by_scene(rows)
    ]
    return lines.figure(cells, "speedup [×], log scale", behind, key=_key(rows), relative=True)


_QUALITY = {"linestyle": "none", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 0.9}
_FIT = {"linestyle": "-", "linewidth": 0.6}
_ZONE = {"facecolor": "#F6E3D6", "edgecolor": "#E3BFA6", "hatch": "////", "linewidth": 0}


def _is_line(row: Row) -> bool:
    """Ratios of images/s and what did not succeed; fits and times to equal quality are drawn around them."""
    return row["status"] != "fit" and row.get("definition") != "time_to_quality"


def _key(rows: Sequence[Row]) -> list[Entry]:
    grey = {"color": style.GREY, "marker": "o"}
    # With as many ranks as the baseline, strong and throughput scaling are one.
    larger = [r for r in rows if r.get("definition") in _NAMES and r["ranks"] != r["baseline_ranks"]]
    names = dict.fromkeys(_NAMES[r["definition"]] for r in larger)
    rate = f"images/s: {' or '.join(names)}" if names else "images/s"
    quality = _QUALITY | {"marker": "o", "markeredgecolor": style.GREY}
    entries = [
        Entry("ideal", lines.IDEAL) if any(_ideals(rows, r["panel"]) for r in rows) else None,
        Entry(rate, grey | {"linestyle": "none"})
        if any(r["status"] == "ok" and _is_line(r) for r in rows)
        else None,
        Entry("time to equal quality", quality)
        if any(r.get("definition") == "time_to_quality" for r in rows)
        else None,
        Entry("fitted Universal Scalability Law", _FIT | {"color": style.GREY})
        if any(r["status"] == "fit" for r in rows)
        else None,
        Entry("negative scaling: slower than the baseline", _ZONE)
        if any(r["status"] == "ok" for r in rows)
        else None,
    ]
    return [e for e in entries if e]


def _ideals(rows: Sequence[Row], panel: str) -> list[tuple[list[float], list[float]]]:
    """Return ranks and speedups at both ends of the ideal line of every baseline in a panel."""
    part = [r for r in rows if r["panel"] == panel and r["status"] != "fit"]
    last = max((r["ranks"] for r in part), default=1)
    first_sizes = sorted({r["baseline_ranks"] for r in part if r.get("baseline_ranks")})
    return [([first, last], [1, last / first]) for first in first_sizes if last > first]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    return min([0.6, *(0.8 * v for v in values if v > 0)]), max([1.6, *(1.25 * v for v in values)])


def _ratio_axis(ax: Any, limits: tuple[float, float]) -> None:
    """Logarithmic, with what is slower than the baseline shaded."""
    ax.set_yscale("log", base=2)
    ax.set_ylim(*limits)
    ticks.set_log(ax.yaxis, ticks.binary(*limits, size_mm(ax)[1]), "×")
    ax.axhspan(limits[0], 1.0, zorder=0, gid="negative-scaling", **_ZONE)
    ax.axhline(1.0, color=style.GREY, lw=0.6, zorder=1)


def _to_quality(ax: Any, rows: Sequence[Row], ranks: Ranks) -> None:
    for name in ranks.series:
        look = style.series_style(name, ranks.series)
        points = [r for r in rows if r.get("definition") == "time_to_quality" and r["series"] == name]
        ax.plot(
            [ranks.at(r["ranks"], name, r["layout"]) for r in points], [r["value"] for r in points], zorder=4,
            **_QUALITY | {"marker": look["marker"], "markeredgecolor": look["color"]},
        )  # fmt: skip
