"""Figures of a value over the number of ranks, one panel per scene (or per definition), one line per strategy.

All share one table: a row is one mark. `status` is ok (median of `n` repeats, `low` and `high` the extremes), degraded
(a run that finished without doing what it was asked: a hollow diamond, at the foot of the panel where it has no
value), or failed (a cross at the foot). No line goes on across a size that did not succeed. The causes stand below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import panels, style, ticks
from .page import Entry, size_mm
from .ranks import Ranks, series_key
from .study import Study

Row = dict[str, Any]
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
    "own_baseline",
)


def point_marks(
    study: Study, column: str, panel: Callable[[Row], str] = lambda row: row["scene"]
) -> list[Row]:
    """Return one row per point with a value in `column`, with the repeats' extremes."""
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
    """Return one row per (point, cause) that did not succeed; degraded runs keep what they measured in `column`."""
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
        "own_baseline": True if _own_baseline(row) else None,
    }


def _own_baseline(point: Row) -> bool:
    """Return True for a point on several ranks that is compared with itself, for want of a run on fewer."""
    return point.get("outcome") == "baseline" and point.get("baseline_is") == "smallest"


@dataclass(frozen=True)
class Cell:
    """One panel: its name and its marks."""

    title: str
    rows: Sequence[Row]
    other_rows: Sequence[Row] = ()
    """Drawn by the figure itself."""
    subtitle: str = ""


#: Behind a mark whose ratio is 1 because it is compared with itself.
OWN_BASELINE = {
    "color": style.INK,
    "marker": "+",
    "markersize": 13,
    "markeredgewidth": 0.8,
    "linestyle": "none",
}
_OWN_BASELINE_WORDS = "its own baseline: 1 by definition, no run on fewer ranks to compare with"
IDEAL = {"color": style.GREY, "linestyle": ":", "linewidth": 1.0}
FAILED = {
    "color": style.FAILED,
    "marker": "X",
    "markersize": 5.5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
    "linestyle": "none",
}
DEGRADED = {
    "color": "white",
    "marker": "d",
    "markersize": 6,
    "markeredgecolor": style.FAILED,
    "markeredgewidth": 1.1,
    "linestyle": "none",
}


def figure(
    cells: Sequence[Cell],
    ylabel: str,
    before: Callable[[Any, Cell, Ranks], None],
    *,
    headings: Sequence[str] = (),
    key: Sequence[Entry] = (),
    notes: Sequence[str] = (),
    relative: bool = False,
) -> Any:
    """Return a panel per cell; `before` sets the limits and what lies behind. All panels are drawn, however many.

    headings: of columns that belong together, for which cells come in groups of as many; several groups may stand
    abreast. relative: values are ratios to a baseline, and points that are their own are marked.
    """
    columns = len(headings) or panels.num_columns(len(cells))
    if headings:
        groups = len(cells) // len(headings)
        abreast = (
            panels.num_columns(groups)
            if len(headings) == 1
            else 2
            if len(headings) == 2 and groups > 5
            else 1
        )
        headings = [*headings] * abreast if len(headings) > 1 or abreast == 1 else []
        columns *= abreast
    rows = [r for cell in cells for r in (*cell.rows, *cell.other_rows)]
    ranks = Ranks.of(rows, panels.panel_width_mm(len(cells), columns))
    sheet = panels.Sheet(
        titles=[(cell.title, cell.subtitle) for cell in cells],
        columns=columns,
        headings=headings,
        xlabel="ranks (log scale), layouts below them",
        ylabel=ylabel,
        ticks_mm=ranks.height_mm,
    )
    own = relative and any(r.get("own_baseline") for r in rows)
    entries = [*series_key(ranks.series), *key, *([Entry(_OWN_BASELINE_WORDS, OWN_BASELINE)] if own else [])]
    entries += trouble_key(rows)
    picture, axes = sheet.draw(key=entries, notes=notes, trouble=trouble_words(rows))
    for ax, cell in zip(axes, cells, strict=True):
        ranks.apply(ax)
        before(ax, cell, ranks)
        for r in (*cell.rows, *cell.other_rows) if own else ():
            if r.get("own_baseline") and r["value"] is not None:
                x = ranks.at(r["ranks"], r["series"], r["layout"])
                ax.plot(x, r["value"], zorder=2, gid="own-baseline", **OWN_BASELINE)
        for name in ranks.series:
            _series(ax, [r for r in cell.rows if r["series"] == name], name, ranks)
        _trouble(ax, [r for r in cell.rows if r["status"] in ("failed", "degraded")], ranks)
        if not any(r["status"] in ("ok", "note") for r in (*cell.rows, *cell.other_rows)):
            panels.say(ax, "no successful run yet")
    return picture


def by_scene(rows: Sequence[Row]) -> list[Cell]:
    return [
        Cell(panel, [r for r in rows if r["panel"] == panel]) for panel in sorted({r["panel"] for r in rows})
    ]


def value_figure(rows: Sequence[Row], ylabel: str) -> Any:
    """Return one panel per scene of a value that starts at zero."""
    return figure(by_scene(rows), ylabel, lambda ax, cell, _: from_zero(ax, cell.rows))


def from_zero(axes: Any, rows: Sequence[Row]) -> None:
    """Limits of a linear axis that shows all of `rows`, none of them on its edge."""
    values = extremes(rows)
    if values:
        axes.set_ylim(0, 1.12 * max(values) or 1.0)
        axes.yaxis.set_major_locator(ticks.linear(size_mm(axes)[1]))
    else:
        panels.plain(axes)


def extremes(rows: Sequence[Row]) -> list[float]:
    return [v for r in rows for v in (r["value"], r["low"], r["high"]) if v is not None]


def scaled(rows: Sequence[Row], factor: float) -> list[Row]:
    return [r | {k: r[k] * factor for k in ("value", "low", "high") if r[k] is not None} for r in rows]


def _series(axes: Any, rows: Sequence[Row], name: str, ranks: Ranks) -> None:
    line = sorted((r for r in rows if r["status"] == "ok"), key=lambda r: (r["ranks"], r["nodes"]))
    look = style.series_style(name, ranks.series)
    joined = [r for i, r in enumerate(line) if i == 0 or line[i - 1]["ranks"] != r["ranks"]]
    # Equal ranks on more nodes get a mark but no line, which would mix two machines.
    others = [[r] for r in line if r not in joined]
    lost = {r["ranks"] for r in rows if r["status"] in ("failed", "degraded")} - {r["ranks"] for r in line}
    for part in [*_unbroken(joined, lost), *others]:
        x = [ranks.at(r["ranks"], name, r["layout"]) for r in part]
        axes.plot(x, [r["value"] for r in part], zorder=3, gid="line", **look)
    for r in line:
        if r["n"] > 1 and r["low"] is not None and r["high"] is not None:
            below, above = max(r["value"] - r["low"], 0), max(r["high"] - r["value"], 0)
            axes.errorbar(
                ranks.at(r["ranks"], name, r["layout"]), r["value"], yerr=[[below], [above]], color=look["color"],
                capsize=2, elinewidth=0.7, capthick=0.7, zorder=2,
            )  # fmt: skip


def _unbroken(line: Sequence[Row], lost: set[int]) -> list[list[Row]]:
    """Return the line in pieces, so that none goes on across a number of ranks at which nothing succeeded."""
    pieces: list[list[Row]] = []
    for r in line:
        if not pieces or any(pieces[-1][-1]["ranks"] < gap < r["ranks"] for gap in lost):
            pieces.append([])
        pieces[-1].append(r)
    return pieces


def _trouble(axes: Any, rows: Sequence[Row], ranks: Ranks) -> None:
    """Diamonds where something was measured; all else side by side at the foot, over its number of ranks."""
    at_foot: dict[int, list[Row]] = {}
    for r in sorted(rows, key=lambda r: (r["ranks"], r["nodes"], r["series"], r["cause"])):
        if r["status"] == "degraded" and r["value"] is not None:
            axes.plot(
                ranks.at(r["ranks"], r["series"], r["layout"]),
                r["value"],
                zorder=5,
                gid="degraded",
                **DEGRADED,
            )
        else:
            at_foot.setdefault(r["ranks"], []).append(r)
    for size, group in at_foot.items():
        shown = group[:4]
        for i, r in enumerate(shown):
            x = ranks.shifted(size, 1.7 * (i - (len(shown) - 1) / 2))
            axes.plot(
                x, 1.6 / size_mm(axes)[1], transform=axes.get_xaxis_transform(), clip_on=False, zorder=6,
                gid=r["status"], **(DEGRADED if r["status"] == "degraded" else FAILED),
            )  # fmt: skip


def trouble_key(rows: Sequence[Row]) -> list[Entry]:
    statuses = {r["status"] for r in rows}
    entries = [
        Entry("degraded: finished, not as asked", DEGRADED) if "degraded" in statuses else None,
        Entry("failed", FAILED) if statuses & {"failed", "unknown"} else None,
    ]
    return [e for e in entries if e]


def trouble_words(rows: Sequence[Row]) -> list[str]:
    """Explain every cross and diamond; marks of one run in several panels are one."""
    scenes = {r.get("scene") or r["panel"] for r in rows}
    strategies = {r["series"] for r in rows}
    counts: dict[str, dict[str, int]] = {}
    for r in rows:
        if r["status"] not in ("failed", "degraded"):
            continue
        where = [r.get("scene") or r["panel"]] if len(scenes) > 1 else []
        where += [r["series"]] if len(strategies) > 1 else []
        words = trouble_word(" ".join([*where, r["layout"]]), r["status"], r["cause"])
        per_panel = counts.setdefault(words, {})
        per_panel[r["panel"]] = per_panel.get(r["panel"], 0) + r["n"]
    times = {text: max(per_panel.values()) for text, per_panel in counts.items()}
    return [text if n == 1 else f"{text} (x{n})" for text, n in times.items()]


def trouble_word(where: str, status: str, cause: str | None) -> str:
    return f"{'◇' if status == 'degraded' else '✖'} {where}: {status}, {cause}"
