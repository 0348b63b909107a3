"""A figure laid out in millimetres: the key at the top, panels, and small lines of words at the foot.

Sizes are given, not computed by a layout engine, so a long name of a scene or strategy cannot shrink a panel: text is
shortened to the room it has. Positions are in millimetres from the top left corner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import style

EDGE_MM = 1.5
_KEY_PT, _KEY_ROW_MM, _SAMPLE_MM, _KEY_GAP_MM = 6.5, 3.7, 8.0, 3.5
_FOOT_PT, _FOOT_ROW_MM, _FOOT_GAP_MM, _BOTTOM_MM = 6.0, 2.7, 1.0, 0.5
_MAX_TROUBLE = 8


@dataclass(frozen=True)
class Entry:
    """A name of the key, and how the sample before it looks: a line's properties, or a patch's (`facecolor`)."""

    name: str
    look: dict[str, Any]


class Page:
    """Create a figure without a window system, as high as its key, body and foot together."""

    def __init__(
        self,
        width_mm: float,
        body_mm: float,
        *,
        key: Sequence[Entry] = (),
        notes: Sequence[str] = (),
        trouble: Sequence[str] = (),
    ) -> None:
        from matplotlib.figure import Figure

        room_mm = width_mm - 2 * EDGE_MM
        self.width_mm = width_mm
        self.top_mm = _above_mm(key, room_mm)
        foot = _foot(notes, trouble, room_mm)
        foot_top = self.top_mm + body_mm + _FOOT_GAP_MM
        self.height_mm = foot_top + _FOOT_ROW_MM * len(foot) + _BOTTOM_MM
        self.figure = Figure(figsize=(width_mm / 25.4, self.height_mm / 25.4))
        self.paper = self.figure.add_axes((0, 0, 1, 1), zorder=-1)
        self.paper.set_axis_off()
        self.paper.set_xlim(0, width_mm)
        self.paper.set_ylim(self.height_mm, 0)
        self.key(key, EDGE_MM, EDGE_MM, room_mm)
        for i, (line, colour) in enumerate(foot):
            self.text(EDGE_MM, foot_top + _FOOT_ROW_MM * (i + 0.5), line, size_pt=_FOOT_PT, color=colour)

    def axes(self, x_mm: float, y_mm: float, width_mm: float, height_mm: float) -> Any:
        """Add axes whose frame, without ticks and labels, has its top left corner there."""
        below = self.height_mm - y_mm - height_mm
        box = (x_mm / self.width_mm, below / self.height_mm)
        return self.figure.add_axes((*box, width_mm / self.width_mm, height_mm / self.height_mm))

    def text(self, x_mm: float, y_mm: float, text: str, *, size_pt: float, **look: Any) -> None:
        """One line, centred on `y_mm`."""
        properties: dict[str, Any] = {"va": "center_baseline", "color": style.INK, "fontsize": size_pt}
        self.paper.text(x_mm, y_mm, text, **properties | look)

    def key(self, entries: Sequence[Entry], x_mm: float, y_mm: float, room_mm: float) -> None:
        """Samples with their names, in reading order, in rows of `room_mm`."""
        for i, row in enumerate(_key_rows(entries, room_mm)):
            x, y = x_mm, y_mm + _KEY_ROW_MM * (i + 0.5)
            for entry in row:
                _sample(self.paper, entry.look, x, y)
                name = style.fit(entry.name, room_mm - _SAMPLE_MM, _KEY_PT)
                self.text(x + _SAMPLE_MM, y, name, size_pt=_KEY_PT, gid="key")
                x += _entry_mm(entry, room_mm) + _KEY_GAP_MM


def body_room_mm(
    width_mm: float, *, key: Sequence[Entry] = (), notes: Sequence[str] = (), trouble: Sequence[str] = ()
) -> float:
    """Return the largest height of a body, in mm, at which the figure is not shrunk on a printed page."""
    room_mm = width_mm - 2 * EDGE_MM
    foot_mm = _FOOT_GAP_MM + _FOOT_ROW_MM * len(_foot(notes, trouble, room_mm)) + _BOTTOM_MM
    return style.MAX_HEIGHT_MM - _above_mm(key, room_mm) - foot_mm


def size_mm(axes: Any) -> tuple[float, float]:
    """Return width and height of the axes' frame."""
    width, height = axes.figure.get_size_inches() * 25.4
    box = axes.get_position()
    return box.width * width, box.height * height


def key_fits(entries: Sequence[Entry], width_mm: float, height_mm: float) -> bool:
    """Return True if a key fits into a box with all of its names in full."""
    widest = max((_SAMPLE_MM + style.width_mm(e.name, _KEY_PT) for e in entries), default=0.0)
    return widest <= width_mm and _key_mm(entries, width_mm) <= height_mm


def message(text: str, *, width_mm: float = style.SINGLE_MM) -> Any:
    """Return a figure that only says why there is nothing to show."""
    lines = style.wrap(text, width_mm - 8, 8)
    page = Page(width_mm, 6 + 4 * len(lines))
    for i, line in enumerate(lines):
        page.text(
            width_mm / 2,
            page.top_mm + 5 + 4 * i,
            line,
            size_pt=8,
            ha="center",
            color=style.GREY,
            gid="message",
        )
    return page.figure


def _above_mm(key: Sequence[Entry], room_mm: float) -> float:
    return EDGE_MM + (_key_mm(key, room_mm) + 1.0 if key else 0.0)


def _key_mm(entries: Sequence[Entry], room_mm: float) -> float:
    return _KEY_ROW_MM * len(_key_rows(entries, room_mm))


def _key_rows(entries: Sequence[Entry], room_mm: float) -> list[list[Entry]]:
    rows: list[list[Entry]] = []
    left_mm = 0.0
    for entry in entries:
        needed_mm = _entry_mm(entry, room_mm)
        if not rows or needed_mm > left_mm:
            rows.append([])
            left_mm = room_mm
        rows[-1].append(entry)
        left_mm -= needed_mm + _KEY_GAP_MM
    return rows


def _entry_mm(entry: Entry, room_mm: float) -> float:
    return min(_SAMPLE_MM + style.width_mm(entry.name, _KEY_PT), room_mm)


def _sample(paper: Any, look: dict[str, Any], x: float, y: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    if "facecolor" in look:
        paper.add_patch(Rectangle((x + 1, y - 1.1), _SAMPLE_MM - 2.5, 2.2, **look))
        return
    ends = [x, x + (_SAMPLE_MM - 1.5) / 2, x + _SAMPLE_MM - 1.5]
    paper.add_line(Line2D(ends, [y] * 3, **look, markevery=[1]))


def _foot(notes: Sequence[str], trouble: Sequence[str], room_mm: float) -> list[tuple[str, str]]:
    lines = [
        (line, style.GREY) for text in notes for line in style.wrap(text, room_mm, _FOOT_PT, indent="   ")
    ]
    if len(trouble) > _MAX_TROUBLE:
        more = len(trouble) - _MAX_TROUBLE + 1
        trouble = [*trouble[: _MAX_TROUBLE - 1], f"and {more} more: see runs.csv"]
    colour = style.ink(style.FAILED)
    return lines + [
        (line, colour) for text in trouble for line in style.wrap(text, room_mm, _FOOT_PT, indent="   ")
    ]
