"""Panels in rows and columns, all of one size, each with its name above it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import style
from .page import EDGE_MM, Entry, Page, body_room_mm, key_fits

#: Left of all panels: the y label and numbers; between columns: numbers.
_LEFT_MM, _BETWEEN_MM, _RIGHT_MM = 13.0, 9.5, 2.0
_TITLE_PT, _TITLE_MM, _SUBTITLE_MM, _HEADING_MM, _LABEL_MM = 7.0, 4.4, 2.9, 4.0, 3.8
_MIN_PANEL_MM = 10.0
_PANEL_MM = {1: 46.0, 2: 44.0, 3: 38.0, 4: 32.0}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Number of panels, and what all of them share."""

    titles: Sequence[tuple[str, str]]
    """Name and second line of every panel, in reading order; ("", "") belongs to the one on its left."""
    columns: int
    headings: Sequence[str] = ()
    """Headings of the columns."""
    xlabel: str
    ylabel: str
    ticks_mm: float
    """Height of the numbers below a panel."""
    band_mm: float = 0.0
    """Room between a panel and its name."""
    own_x: bool = False
    """True if every panel has its own x axis; otherwise only the lowest of a column has numbers below it."""

    @property
    def width_mm(self) -> float:
        return style.SINGLE_MM if len(self.titles) == 1 else style.DOUBLE_MM

    @property
    def panel_mm(self) -> float:
        """Width of one panel."""
        return panel_width_mm(len(self.titles), self.columns)

    def draw(
        self, *, key: Sequence[Entry] = (), notes: Sequence[str] = (), trouble: Sequence[str] = ()
    ) -> tuple[Any, list[Any]]:
        """The figure and the empty axes of its panels. The key fills a hole in the last row where it fits there."""
        num_rows = math.ceil(len(self.titles) / self.columns)
        above = _TITLE_MM + (_SUBTITLE_MM if any(second for _, second in self.titles) else 0) + self.band_mm
        below = self.ticks_mm + 2.0 if self.own_x else 1.5
        head = _HEADING_MM if self.headings else 0.0
        foot = _LABEL_MM + (0 if self.own_x else self.ticks_mm + 1.0)
        whole = body_room_mm(self.width_mm, key=key, notes=notes, trouble=trouble)
        room = (whole - head - foot) / num_rows - above - below
        height = max(_MIN_PANEL_MM, min(_PANEL_MM[self.columns], room))
        pitch = above + height + below

        hole = num_rows * self.columns - len(self.titles)
        hole_mm = hole * (self.panel_mm + _BETWEEN_MM) - _BETWEEN_MM + _RIGHT_MM
        # The panel above the hole has its numbers there.
        key_below = above if self.own_x else max(above, self.ticks_mm + 3.0)
        in_hole = hole > 0 and key_fits(key, hole_mm, above + height - key_below)
        body = head + num_rows * pitch + foot
        page = Page(self.width_mm, body, key=() if in_hole else key, notes=notes, trouble=trouble)
        top = page.top_mm + head
        if in_hole:
            filled = len(self.titles) % self.columns
            page.key(key, self._left(filled), top + (num_rows - 1) * pitch + key_below, hole_mm)
        for i, heading in enumerate(self.headings):
            text = style.fit(heading, self.panel_mm, _TITLE_PT)
            page.text(self._left(i), page.top_mm + 1.8, text, size_pt=_TITLE_PT, color=style.GREY)
        axes = []
        for i in range(len(self.titles)):
            row, column = divmod(i, self.columns)
            self._title(page, i, top + row * pitch)
            ax = page.axes(self._left(column), top + row * pitch + above, self.panel_mm, height)
            if not self.own_x and i + self.columns < len(self.titles):
                ax.tick_params(axis="x", which="both", labelbottom=False)
            axes.append(ax)
        middle = (self._left(0) + self._left(self.columns - 1) + self.panel_mm) / 2
        page.text(middle, page.top_mm + body - 1.8, self.xlabel, size_pt=7, ha="center")
        page.text(
            EDGE_MM + 1.0, top + (num_rows * pitch + above - below) / 2, self.ylabel, size_pt=7, ha="center",
            va="center", rotation=90,
        )  # fmt: skip
        return page.figure, axes

    def _left(self, column: int) -> float:
        return _LEFT_MM + column * (self.panel_mm + _BETWEEN_MM)

    def _title(self, page: Page, i: int, y_mm: float) -> None:
        name, second = self.titles[i]
        after = i + 1
        while after % self.columns and after < len(self.titles) and self.titles[after] == ("", ""):
            after += 1
        room = (after - i) * (self.panel_mm + _BETWEEN_MM) - _BETWEEN_MM + _RIGHT_MM
        x = self._left(i % self.columns)
        short = style.fit(name, room, _TITLE_PT, bold=True)
        page.text(x, y_mm + 2.2, short, size_pt=_TITLE_PT, weight="bold", gid="title")
        page.text(x, y_mm + 5.0, style.fit(second, room, 6.5), size_pt=6.5, color=style.GREY, gid="title")


def panel_width_mm(num_panels: int, columns: int) -> float:
    width = style.SINGLE_MM if num_panels == 1 else style.DOUBLE_MM
    return (width - _LEFT_MM - _RIGHT_MM - (columns - 1) * _BETWEEN_MM) / columns


def num_columns(num_panels: int) -> int:
    """Choose up to four columns; of three and four, the one that leaves fewer holes in the last row."""
    return max(num_panels, 1) if num_panels <= 4 else min((4, 3), key=lambda n: -num_panels % n)


def plain(axes: Any) -> None:
    """Remove numbers and grid from an axis without values."""
    axes.set_yticks([])
    axes.grid(False)


def say(axes: Any, text: str) -> None:
    """Write in the middle of an empty panel why it is empty."""
    from .page import size_mm

    width, _ = size_mm(axes)
    plain(axes)
    axes.text(
        0.5, 0.55, "\n".join(style.wrap(text, width - 4, 7)), transform=axes.transAxes, ha="center", va="center",
        color=style.GREY, fontsize=7, gid="message",
    )  # fmt: skip
