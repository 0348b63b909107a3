"""Figures of a value over the number of ranks, one panel per scene (or per definition), one line per strategy.

All share one table: a row is one mark. `status` is ok (median of `n` repeats, `low` and `high` the extremes), degraded
(a run that finished without doing what it was asked: hollow, not joined), or failed (a cross at the foot of the panel
with the cause).
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from . import style
from .labels import direct_labels
from .study import Study

Row = dict[str, Any]
_MAX_FOOTER = 8
COLUMNS = (
    "panel",
    "series",
    "layout",
    "ranks",
    "nodes",
    "status",
    "n",
    "value",
    "low",
    "high",
    "cause",
    "note",
)


def point_marks(
    study: Study, column: str, panel: Callable[[Row], str] = lambda row: row["scene"]
) -> list[Row]:
    """One row per point with a value in `column`, with the repeats' extremes."""
    return [
        mark(
            row,
            panel(row),
            "ok",
            row[column],
            row.get(f"{column}_min"),
            row.get(f"{column}_max"),
            row["n_ok"],
        )
        for row in study.points
        if row.get(column) is not None
    ]


def trouble_marks(
    study: Study, column: str | None, panel: Callable[[Row], str] = lambda row: row["scene"]
) -> list[Row]:
    """One row per (point, cause) that did not succeed; degraded runs keep what they measured in `column`."""
    marks: dict[tuple[Any, ...], Row] = {}
    for run in study.not_ok():
        status = "degraded" if run["status"] == "degraded" else "failed"
        value = run.get(column) if column and status == "degraded" else None
        key = (panel(run), run["strategy"], run["layout"], status, run["cause"], value)
        if key in marks:
            marks[key]["n"] += 1
        else:
            marks[key] = mark(run, panel(run), status, value, None, None, 1, run["cause"] or "unknown")
    return list(marks.values())


def mark(
    row: Row, panel: str, status: str, value: Any, low: Any, high: Any, n: int, cause: str | None = None
) -> Row:
    return {
        "panel": panel,
        "series": row["strategy"],
        "layout": row["layout"],
        "ranks": row["ranks"],
        "nodes": row["nodes"],
        "status": status,
        "n": n,
        "value": value,
        "low": low,
        "high": high,
        "cause": cause,
        "note": None,
    }


def grid(num_panels: int, *, panel_height_mm: float = 52.0) -> tuple[Any, list[Any]]:
    """A figure with one axes per panel: one fills a column, more share the page three abreast."""
    columns = min(num_panels, 3)
    rows = math.ceil(num_panels / columns)
    width = style.SINGLE_MM if num_panels == 1 else style.DOUBLE_MM
    if num_panels == 1:
        panel_height_mm = 62.0
    figure = style.new_figure(width, 8 + panel_height_mm * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[num_panels:]:
        unused.remove()
    return figure, axes[:num_panels]


def draw_panel(axes: Any, rows: Sequence[Row], all_series: Sequence[str], *, label: bool = True) -> None:
    """Lines through the successful points, marks for the others, ticks at the layouts, names at the lines' "
    "ends."""
    layouts = sorted({(r["ranks"], r["nodes"], r["layout"]) for r in rows})
    ok = [r for r in rows if r["status"] == "ok"]
    ends = []
    for name in sorted({r["series"] for r in ok}):
        line = sorted((r for r in ok if r["series"] == name), key=lambda r: (r["ranks"], r["nodes"]))
        look = style.series_style(name, all_series)
        _error_bars(axes, line, look["color"])
        joined = [r for i, r in enumerate(line) if i == 0 or line[i - 1]["ranks"] != r["ranks"]]
        axes.plot([r["ranks"] for r in joined], [r["value"] for r in joined], zorder=3, **look)
        # The same number of ranks on more nodes: marked, but a line through both would say nothing.
        others = [r for r in line if r not in joined]
        axes.plot(
            [r["ranks"] for r in others],
            [r["value"] for r in others],
            zorder=3,
            **look | {"linestyle": "none"},
        )
        ends.append((line[-1]["value"], name, style.ink(look["color"])))
    ranks_axis(axes, layouts)
    _degraded(axes, [r for r in rows if r["status"] == "degraded" and r["value"] is not None])
    lost = [r for r in rows if r["status"] == "failed" or (r["status"] == "degraded" and r["value"] is None)]
    failed(axes, lost)
    if not ok:
        empty(axes)
    elif label:
        direct_labels(axes, ends)


def _error_bars(axes: Any, line: Sequence[Row], colour: str) -> None:
    for r in line:
        if r["n"] > 1 and r["low"] is not None and r["high"] is not None:
            axes.errorbar(
                r["ranks"],
                r["value"],
                yerr=[[max(r["value"] - r["low"], 0)], [max(r["high"] - r["value"], 0)]],
                color=colour,
                capsize=2,
                elinewidth=0.7,
                capthick=0.7,
                zorder=2,
            )


def ranks_axis(axes: Any, layouts: Sequence[tuple[int, int, str]]) -> None:
    """Logarithmic in ranks, a tick per number of ranks with its layouts under it."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ranks = sorted({r for r, _, _ in layouts}) or [1]
    axes.set_xscale("log", base=2)
    axes.set_xlim(ranks[0] / 1.35, ranks[-1] * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(ranks))
    axes.xaxis.set_minor_locator(NullLocator())
    names = ["\n".join(name for r, _, name in layouts if r == number) for number in ranks]
    axes.set_xticks(ranks, [f"{number}\n{name}".rstrip() for number, name in zip(ranks, names, strict=True)])
    axes.set_xlabel("ranks (layout below)")


def _degraded(axes: Any, rows: Sequence[Row]) -> None:
    for r in rows:
        axes.plot(
            r["ranks"], r["value"], marker="d", markersize=6, color="white", markeredgecolor=style.FAILED,
            markeredgewidth=1.1, linestyle="none", zorder=5, gid="degraded",
        )  # fmt: skip


def failed(axes: Any, rows: Sequence[Row]) -> None:
    """A cross at the foot of the panel over the layout that failed; the footer says why."""
    by_ranks: dict[int, list[Row]] = {}
    for r in sorted(rows, key=lambda r: (r["ranks"], r["nodes"], r["series"], r["cause"])):
        by_ranks.setdefault(r["ranks"], []).append(r)
    for ranks, group in by_ranks.items():
        for i in range(min(len(group), 4)):
            offset = 0.05 * (i - (min(len(group), 4) - 1) / 2)
            axes.plot(
                ranks * 2 ** (offset * _octaves(axes)), 0.04, marker="X", markersize=5.5, color=style.FAILED,
                markeredgecolor="white", markeredgewidth=0.5, transform=axes.get_xaxis_transform(),
                linestyle="none", clip_on=False, zorder=6, gid="failed",
            )  # fmt: skip


def footer(figure: Any, rows: Sequence[Row]) -> None:
    """Below all panels: what every cross and diamond stands for."""
    scenes = {r.get("scene") or r["panel"] for r in rows}
    strategies = {r["series"] for r in rows}
    counts: dict[str, dict[str, int]] = {}
    for r in rows:
        if r["status"] not in ("failed", "degraded"):
            continue
        where = [r.get("scene") or r["panel"]] if len(scenes) > 1 else []
        where += [r["series"]] if len(strategies) > 1 else []
        symbol = "◇" if r["status"] == "degraded" and r["value"] is not None else "✖"
        per_panel = counts.setdefault(
            f"{symbol} {' '.join([*where, r['layout']])}: {r['status']}, {r['cause']}", {}
        )
        per_panel[r["panel"]] = per_panel.get(r["panel"], 0) + r["n"]
    times = {text: max(per_panel.values()) for text, per_panel in counts.items()}
    items = [text if n == 1 else f"{text} (x{n})" for text, n in times.items()]
    if len(items) > _MAX_FOOTER:
        items = [*items[: _MAX_FOOTER - 1], f"and {len(items) - _MAX_FOOTER + 1} more: see runs.csv"]
    write_footer(figure, items)


def write_footer(figure: Any, trouble: Sequence[str]) -> None:
    """Small lines below all panels that say what went wrong; the figure grows by their height."""
    if not trouble:
        return
    room = 140 if figure.get_figwidth() > 5 else 66
    lines = [line for text in trouble for line in textwrap.wrap(text, room, subsequent_indent="   ")]
    figure.set_figheight(figure.get_figheight() + len(lines) * 0.105)
    figure.supxlabel(
        "\n".join(lines), x=0.01, ha="left", fontsize=5.8, linespacing=1.3, color=style.ink(style.FAILED)
    )


def _octaves(axes: Any) -> float:
    low, high = axes.get_xlim()
    return math.log2(high / low)


def empty(axes: Any, text: str = "no successful run yet") -> None:
    """Say in the middle of a panel why there is no line."""
    axes.text(
        0.5, 0.55, text, transform=axes.transAxes, ha="center", va="center", color=style.GREY, fontsize=8
    )


def value_figure(rows: Sequence[Row], ylabel: str, *, factor: float = 1.0, ideal: bool = False) -> Any:
    """One panel per scene of a value that starts at zero; `ideal` adds the first point's value per rank, "
    "extended."""
    panels = sorted({r["panel"] for r in rows}) or [""]
    figure, axes = grid(len(panels))
    all_series = sorted({r["series"] for r in rows})
    footer(figure, rows)
    for ax, panel in zip(axes, panels, strict=True):
        part = [scaled(r, factor) for r in rows if r["panel"] == panel]
        ax.set_title(panel)
        ax.set_ylabel(ylabel)
        values = [v for r in part for v in (r["value"], r["high"]) if v is not None]
        if values:
            ax.set_ylim(0, 1.12 * max(values))
        else:
            ax.set_yticks([])  # an axis without a value claims nothing
        if ideal:
            _ideal(ax, part, all_series)
        draw_panel(ax, part, all_series)
    return figure


def scaled(row: Row, factor: float) -> Row:
    return row | {k: row[k] * factor for k in ("value", "low", "high") if row[k] is not None}


def _ideal(axes: Any, rows: Sequence[Row], all_series: Sequence[str]) -> None:
    for name in sorted({r["series"] for r in rows if r["status"] == "ok"}):
        line = sorted((r["ranks"], r["value"]) for r in rows if r["series"] == name and r["status"] == "ok")
        (first, value), last = line[0], max(r["ranks"] for r in rows)
        if last > first:
            colour = style.series_style(name, all_series)["color"]
            axes.plot(
                [first, last], [value, value * last / first], ":", color=colour, lw=0.8, alpha=0.7, zorder=1
            )
