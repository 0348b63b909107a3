"""Speedup over the baseline, with the ideal line and the negative-scaling zone."""

from collections.abc import Sequence
from typing import Any

from ..scaling import fit_usl
from . import lines, style
from .labels import direct_labels
from .study import Study

TITLE = "Speedup"
CAPTION = (
    "Speedup over the baseline, the smallest layout of the same scene and strategy that succeeded. Filled "
    "marks: ratio of images/s, named by its definition: strong scaling where the global batch is the same at"
    " every size, throughput scaling where the batch per rank is. Hollow marks: ratio of the training times "
    "to equal quality (the baseline's final held-out PSNR less 0.1 dB). Whiskers: smallest and largest "
    "repeat. Dotted: ideal. Shaded: negative scaling, where more ranks are slower than the baseline. A "
    "fitted Universal Scalability Law (thin line) is drawn only where there are more sizes than its three "
    "parameters."
)
COLUMNS = (*lines.COLUMNS, "definition", "baseline_ranks")
Row = lines.Row

_NAMES = {
    "strong": "strong scaling",
    "throughput": "throughput scaling",
    "mixed": "batch neither fixed nor per rank",
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
    baselines = {
        (p["scene"], p["strategy"]): p["images_per_s"]
        for p in study.points
        if p["layout"] == p["baseline_layout"] and p["images_per_s"]
    }
    marks = lines.trouble_marks(study, "images_per_s")
    for m in marks:
        reference = baselines.get((m["panel"], m["series"]))
        m["value"] = m["value"] / reference if m["value"] and reference else None
    return marks


def _fits(study: Study) -> list[Row]:
    """Samples of the USL through each series with enough sizes; the law's words in `note`."""
    rows = []
    for scene in study.scenes:
        for strategy in study.strategies:
            points = [
                p
                for p in study.points
                if (p["scene"], p["strategy"]) == (scene, strategy)
                and p.get("images_per_s")
                and p.get("scaling") in ("baseline", "strong", "throughput")
            ]
            if len({p["scaling"] for p in points}) > 2:
                continue
            fit = (
                fit_usl([p["ranks"] for p in points], [p["images_per_s"] for p in points]) if points else None
            )
            if fit is None or not fit.checked:
                continue
            first, last = points[0]["ranks"], max(p["ranks"] for p in points)
            for i in range(33):
                ranks = first * (last / first) ** (i / 32)
                row = lines.mark(points[0], scene, "fit", fit.speedup(ranks, first), None, None, 0)
                rows.append(row | {"ranks": ranks, "layout": None, "nodes": None, "note": fit.describe()})
    return rows


def plot(rows: list[Row]) -> Any:
    panels = sorted({r["panel"] for r in rows}) or [""]
    figure, axes = lines.grid(len(panels), panel_height_mm=58)
    all_series = sorted({r["series"] for r in rows})
    lines.footer(figure, rows)
    for ax, panel in zip(axes, panels, strict=True):
        _panel(ax, [r for r in rows if r["panel"] == panel], panel, all_series)
    return figure


def _panel(ax: Any, rows: Sequence[Row], title: str, all_series: Sequence[str]) -> None:
    ax.set_title(title)
    ax.set_ylabel("speedup over the baseline")
    rate = [r for r in rows if r["status"] != "fit" and r.get("definition") != "time_to_quality"]
    quality = [r for r in rows if r.get("definition") == "time_to_quality"]
    ok = [r for r in rows if r["status"] == "ok"]
    last = max((r["ranks"] for r in rows if r["status"] != "fit"), default=1)
    _limits(ax, [r["value"] for r in rows if r["value"] is not None], last, ok)
    negative_zone(ax, wide=ax.figure.get_figwidth() < 5)
    lines.draw_panel(ax, rate, all_series, label=False)
    for name in sorted({r["series"] for r in quality}):
        look = style.series_style(name, all_series)
        line = sorted((r["ranks"], r["value"]) for r in quality if r["series"] == name)
        ax.plot(
            [x for x, _ in line], [y for _, y in line], linestyle="none", marker=look["marker"], markersize=7,
            markerfacecolor="none", markeredgecolor=look["color"], markeredgewidth=0.9, zorder=4,
        )  # fmt: skip
    for name in sorted({r["series"] for r in rows if r["status"] == "fit"}):
        samples = [r for r in rows if r["status"] == "fit" and r["series"] == name]
        ax.plot(
            [r["ranks"] for r in samples], [r["value"] for r in samples], color=style.GREY, lw=0.6, zorder=2
        )
    if ok:
        _ideal(ax, ok, last)
        _key(ax, ok, bool(quality))
        direct_labels(ax, _ends(rows, all_series))


def _key(ax: Any, ok: Sequence[Row], quality: bool) -> None:
    """What filled and hollow marks are, in the corner that the ideal line leaves free."""
    names = dict.fromkeys(_NAMES[r["definition"]] for r in ok if r["definition"] in _NAMES)
    text = [f"filled: images/s ({' or '.join(names) or 'one size only'})"]
    if quality:
        text.append("hollow: time to equal quality")
    ax.text(
        0.03, 0.985, "\n".join(text), transform=ax.transAxes, fontsize=5.8, color=style.GREY, ha="left", va="top",
        linespacing=1.3, zorder=1, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def _limits(ax: Any, values: Sequence[float], last: int, ok: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    first = min((r["baseline_ranks"] for r in ok if r.get("baseline_ranks")), default=1)
    room = 1.35 if ax.figure.get_figwidth() < 5 else 1.8  # for the key, which is wider in a narrow panel
    top = max([1.6, room * last / first, *(1.1 * room * v for v in values)])
    bottom = min([0.6, *(0.8 * v for v in values)])
    ax.set_yscale("log", base=2)
    ax.set_ylim(bottom, top)
    ticks = [2.0**k for k in range(-8, 14) if bottom <= 2.0**k <= top]
    if top / bottom < 6:
        ticks = sorted({*ticks, *(t for t in (0.75, 1.5, 3.0) if bottom <= t <= top)})
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))


def negative_zone(ax: Any, *, wide: bool) -> None:
    """Shade what is slower than the baseline."""
    bottom = ax.get_ylim()[0]
    ax.axhspan(
        bottom,
        1.0,
        facecolor="#F6E3D6",
        edgecolor="#E3BFA6",
        hatch="////",
        lw=0,
        zorder=0,
        gid="negative-scaling",
    )
    ax.axhline(1.0, color=style.GREY, lw=0.6, zorder=1)
    text = "negative scaling: slower than the baseline" if wide else "negative scaling"
    ax.text(
        0.985, 0.975, text, fontsize=5.5, ha="right", va="top",
        color=style.ink(style.FAILED), zorder=1,
        transform=_below_one(ax),
        bbox={"facecolor": "#F6E3D6", "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip


def _below_one(ax: Any) -> Any:
    """Axes coordinates whose top is the speedup of 1."""
    from matplotlib.transforms import Affine2D

    height = (ax.transScale.transform((1, 1.0)) - ax.transScale.transform((1, ax.get_ylim()[0])))[1]
    full = (ax.transScale.transform((1, ax.get_ylim()[1])) - ax.transScale.transform((1, ax.get_ylim()[0])))[
        1
    ]
    return Affine2D().scale(1, height / full) + ax.transAxes


def _ideal(ax: Any, ok: Sequence[Row], last: float) -> None:
    for first in sorted({r["baseline_ranks"] for r in ok}):
        if last > first:
            ax.plot([first, last], [1, last / first], ":", color=style.GREY, lw=1.0, zorder=1, gid="ideal")


def _ends(rows: Sequence[Row], all_series: Sequence[str]) -> list[tuple[float, str, str]]:
    """Labels at the lines' ends: the strategies and the ideal."""
    ends = []
    ok = [r for r in rows if r["status"] == "ok"]
    for name in sorted({r["series"] for r in ok}):
        line = [r for r in ok if r["series"] == name and r["definition"] != "time_to_quality"]
        if line:
            end = max(line, key=lambda r: (r["ranks"], r["nodes"]))
            ends.append((end["value"], name, style.ink(style.series_style(name, all_series)["color"])))
    last = max(r["ranks"] for r in rows if r["status"] != "fit")
    for first in sorted({r["baseline_ranks"] for r in ok}):
        if last > first:
            ends.append((last / first, "ideal", style.GREY))
    return ends
