"""The axis of ranks that all panels of a figure share, and the key to its series."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import style
from .page import Entry

_TICK_PT, _LINE_MM = 6.5, 2.7
#: Neighbouring series stand apart by this much, so that equal values are seen as several.
_DODGE_PT = 2.4
_MARGIN = 1.35
#: Between the groups of marks of two layouts with as many ranks.
_GROUP_MM = 3.0


@dataclass(frozen=True)
class Ranks:
    """Ranks on a logarithmic axis, a tick per number of ranks with its layouts below it."""

    layouts: tuple[tuple[int, int, str], ...]
    """(ranks, nodes, name) of every layout in the figure."""
    series: tuple[str, ...]
    width_mm: float
    """Width of a panel."""

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], width_mm: float) -> "Ranks":
        layouts = sorted({(r["ranks"], r["nodes"], r["layout"]) for r in rows if r["layout"]})
        return cls(tuple(layouts), tuple(sorted({r["series"] for r in rows})), width_mm)

    @cached_property
    def sizes(self) -> list[int]:
        return sorted({ranks for ranks, _, _ in self.layouts}) or [1]

    @cached_property
    def limits(self) -> tuple[float, float]:
        return self.sizes[0] / _MARGIN, self.sizes[-1] * _MARGIN

    @cached_property
    def _octave_mm(self) -> float:
        return self.width_mm / math.log2(self.limits[1] / self.limits[0])

    @cached_property
    def _gap_mm(self) -> float:
        """Between the two nearest ticks."""
        pairs = zip(self.sizes, self.sizes[1:], strict=False)
        return min((math.log2(b / a) * self._octave_mm for a, b in pairs), default=self.width_mm)

    @cached_property
    def _names(self) -> list[list[str]]:
        return [[name for r, _, name in self.layouts if r == size] for size in self.sizes]

    @cached_property
    def upright(self) -> bool:
        """True if the labels must stand on end, because side by side they would overlap."""
        texts = [str(size) for size in self.sizes] + [name for names in self._names for name in names]
        return len(self.sizes) > 1 and max(style.width_mm(t, _TICK_PT) for t in texts) + 0.8 > self._gap_mm

    @property
    def height_mm(self) -> float:
        """Height of the labels below a panel."""
        if not self.upright:
            return _LINE_MM * (1 + max(map(len, self._names))) + 1.0
        return max(style.width_mm(label, _TICK_PT) for label in self._labels) + 1.0

    @property
    def _labels(self) -> list[str]:
        pairs = zip(self.sizes, self._names, strict=True)
        if self.upright:
            return [f"{', '.join(names)}  {size}" for size, names in pairs]
        return ["\n".join([str(size), *names]) for size, names in pairs]

    def apply(self, axes: Any) -> None:
        from matplotlib.ticker import NullLocator

        axes.set_xscale("log", base=2)
        axes.set_xlim(*self.limits)
        axes.set_xticks(self.sizes, self._labels, rotation=90 if self.upright else 0)
        axes.xaxis.set_minor_locator(NullLocator())

    def at(self, ranks: float, series: str, layout: str | None = None) -> float:
        """Return where a mark stands: beside those of other series, and right of layouts on fewer nodes."""
        place = self.series.index(series) - (len(self.series) - 1) / 2
        apart_mm = min(_DODGE_PT * style.MM_PER_PT, 0.4 * self._gap_mm / len(self.series))
        alike = [name for r, _, name in self.layouts if r == ranks]
        group_mm = min(apart_mm * (len(self.series) - 1) + _GROUP_MM, 0.4 * self._gap_mm)
        groups = alike.index(layout) if layout in alike else 0
        return self.shifted(ranks, place * apart_mm + groups * group_mm)

    def shifted(self, ranks: float, by_mm: float) -> float:
        return float(ranks * 2 ** (by_mm / self._octave_mm))


def series_key(names: Sequence[str]) -> list[Entry]:
    return [Entry(name, style.series_style(name, names)) for name in names]
