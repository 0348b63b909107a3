"""Names written at the ends of lines instead of a legend."""

from collections.abc import Sequence
from typing import Any


def spread_apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as needed so that neighbours are `gap` apart, within [low, high] where they "
    "fit."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    floor = low
    for i in order:
        placed[i] = max(positions[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def direct_labels(axes: Any, ends: Sequence[tuple[float, str, str]], *, fontsize: float = 6.5) -> None:
    """Write each (y in data units, text, colour) at the right edge of the axes, moved apart where they would overlap.

    Call when the axes' limits are final.
    """
    if not ends:
        return
    figure = axes.figure
    if not hasattr(figure, "height_settled"):
        # The layout gives the axes their height. Laying out is slow with many panels, and all get the same height.
        figure.draw_without_rendering()
        figure.height_settled = True
    height_pt = axes.get_window_extent().height / figure.dpi * 72
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    wanted = [float(to_axes.transform((x, y))[1]) for y, _, _ in ends]
    lines = max(text.count("\n") for _, text, _ in ends) + 1
    placed = spread_apart(wanted, 1.25 * lines * fontsize / height_pt, 0.02, 1.0)
    for (_, text, colour), y in zip(ends, placed, strict=True):
        axes.annotate(
            text, (1.0, y), xycoords="axes fraction", xytext=(2, 0), textcoords="offset points", ha="left",
            va="center", color=colour, fontsize=fontsize, annotation_clip=False,
        )  # fmt: skip
