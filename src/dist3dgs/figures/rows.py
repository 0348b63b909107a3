"""Panels of horizontal rows: a panel per scene, in it a row per strategy and layout, all of one height."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import lines, style, ticks
from .page import EDGE_MM, Entry, Page, body_room_mm, size_mm

_TITLE_MM, _TICKS_MM, _LABEL_MM, _BETWEEN_MM, _RIGHT_MM = 4.4, 5.0, 4.0, 3.0, 2.5
#: The column of strategies is as wide as the longest name, within these bounds.
_STRATEGY_MM, _MOST_STRATEGY_MM, _LAYOUT_MM = 15.0, 22.0, 10.5
#: Rows are this high; one column of panels more is taken before they are lower than the second, and a figure of more
#: rows than fit at the third is taller than a page.
_ROW_MM, _COMFORTABLE_MM, _LEAST_MM = 4.6, 3.0, 2.1
_MAX_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """A scene and its rows: (strategy, layout or other label) of each."""

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Rows:
    """The drawn page; row i of a panel is centred at y = i + 0.5 of its axes."""

    figure: Any
    axes: list[Any]
    row_mm: float


def draw(
    panels: Sequence[Panel], xlabel: str, *, key: Sequence[Entry] = (), notes: Sequence[str] = (),
    trouble: Sequence[str] = (),
) -> Rows:  # fmt: skip
    """Lay out all panels; no row is left out, however many there are."""
    room = body_room_mm(style.DOUBLE_MM, key=key, notes=notes, trouble=trouble) - _LABEL_MM
    columns, row_mm = _fit([len(p.rows) for p in panels], room)
    grid = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [_TITLE_MM + row_mm * max(len(p.rows) for p in part) + _TICKS_MM for part in grid]
    page = Page(style.DOUBLE_MM, sum(heights) + _LABEL_MM, key=key, notes=notes, trouble=trouble)
    pitch = (page.width_mm - EDGE_MM - _RIGHT_MM + _BETWEEN_MM) / columns
    size_pt = 6.0 if row_mm >= 2.6 else 5.0
    widest = max(
        (style.width_mm(name, size_pt) + 1.0 for panel in panels for name, _ in panel.rows), default=0.0
    )
    gutter = min(max(_STRATEGY_MM, widest), _MOST_STRATEGY_MM) + _LAYOUT_MM
    axes, top = [], page.top_mm
    for part, height in zip(grid, heights, strict=True):
        for i, panel in enumerate(part):
            left = EDGE_MM + i * pitch
            _words(page, panel, left, top, row_mm, pitch - _BETWEEN_MM, gutter, size_pt)
            ax = page.axes(
                left + gutter, top + _TITLE_MM, pitch - _BETWEEN_MM - gutter, row_mm * len(panel.rows)
            )
            ax.set_ylim(len(panel.rows), 0)
            ax.set_yticks([])
            ax.grid(False, axis="y")
            ax.grid(True, axis="x")
            axes.append(ax)
        top += height
    page.text((page.width_mm + gutter) / 2, top + 1.5, xlabel, size_pt=7, ha="center")
    return Rows(page.figure, axes, row_mm)


def _fit(num_rows: Sequence[int], room_mm: float) -> tuple[int, float]:
    """Choose the number of columns and the height of a row."""
    for columns in range(1, _MAX_COLUMNS + 1):
        highest = [max(num_rows[i : i + columns]) for i in range(0, len(num_rows), columns)]
        row_mm = (room_mm - len(highest) * (_TITLE_MM + _TICKS_MM)) / sum(highest)
        if row_mm >= _COMFORTABLE_MM or columns >= len(num_rows):
            break
    return columns, min(_ROW_MM, max(_LEAST_MM, row_mm))


def _words(
    page: Page, panel: Panel, left: float, top: float, row_mm: float, width_mm: float, gutter_mm: float,
    size_pt: float,
) -> None:  # fmt: skip
    page.text(
        left, top + 2.2, style.fit(panel.title, width_mm, 7, bold=True), size_pt=7, weight="bold", gid="title"
    )
    for i, (strategy, label) in enumerate(panel.rows):
        y = top + _TITLE_MM + (i + 0.5) * row_mm
        name = style.fit(label, _LAYOUT_MM - 1.2, size_pt)
        page.text(left + gutter_mm - 1.0, y, name, size_pt=size_pt, ha="right", gid="name")
        if i == 0 or panel.rows[i - 1][0] != strategy:
            short = style.fit(strategy, gutter_mm - _LAYOUT_MM - 1.0, size_pt)
            page.text(left, y, short, size_pt=size_pt, color=style.GREY, gid="name")


def from_zero(ax: Any, largest: float) -> None:
    """Set a linear axis from zero, with room for a mark at the end of the longest bar."""
    ax.set_xlim(0, 1.06 * largest or 1.0)
    ax.xaxis.set_major_locator(ticks.linear(size_mm(ax)[0] / 1.4))


def stack(
    ax: Any, i: int, parts: Mapping[str, float], looks: Mapping[str, Mapping[str, Any]], status: str
) -> None:
    """Draw row i as a stacked bar; one that did not succeed is paler and ends in its mark."""
    left = 0.0
    for name, value in parts.items():
        alpha = 1.0 if status == "ok" else 0.45
        ax.barh(i + 0.5, value, left=left, height=0.72, alpha=alpha, zorder=2, **looks[name])
        left += value
    if status != "ok":
        mark, gid = (lines.DEGRADED, "degraded") if status == "degraded" else (lines.FAILED, "failed")
        ax.plot(left, i + 0.5, clip_on=False, zorder=5, gid=gid, **mark | {"markersize": 4.5})


def nice_log(ax: Any, low: float, high: float) -> None:
    """Set a logarithmic axis around these values, with plain numbers."""
    low, high = low / 1.35, high * 1.35
    if math.isclose(low, high):
        low, high = low / 2, high * 2
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks.set_log(ax.xaxis, ticks.decimal(low, high, size_mm(ax)[0] / 1.8))
