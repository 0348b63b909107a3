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
#: From the middle of a mark to the end of the axis.
_MARK_MM = 1.5
_TICK_LENGTH_PT = 2.5


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
    def _groups(self) -> dict[int, list[int]]:
        """Numbers of nodes by number of ranks: the marks of each are a group, those on fewest nodes at the tick."""
        return {
            size: sorted({nodes for ranks, nodes, _ in self.layouts if ranks == size}) or [1]
            for size in self.sizes
        }

    @cached_property
    def _most_groups(self) -> int:
        return max(map(len, self._groups.values()))

    @cached_property
    def _gap_octaves(self) -> float:
        """Between the two nearest ticks."""
        pairs = zip(self.sizes, self.sizes[1:], strict=False)
        return min((math.log2(b / a) for a, b in pairs), default=2 * math.log2(_MARGIN))

    @cached_property
    def _group_share(self) -> float:
        """Most that a group may take of the distance between ticks."""
        return min(0.4, 0.8 / self._most_groups)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Ends of the axis; the last tick's groups are inside."""
        margin, span = math.log2(_MARGIN), math.log2(self.sizes[-1] / self.sizes[0])
        others = len(self._groups[self.sizes[-1]]) - 1
        most = max(margin, (others + 0.5) * self._group_share * self._gap_octaves)
        across_mm = _DODGE_PT * style.MM_PER_PT * (len(self.series) - 1)
        wanted_mm = (others + 0.5) * across_mm + others * _GROUP_MM + _MARK_MM
        wanted = wanted_mm * (margin + span + most) / self.width_mm
        right = max(margin, min(most, wanted))
        return self.sizes[0] / _MARGIN, self.sizes[-1] * 2**right

    @cached_property
    def _octave_mm(self) -> float:
        return self.width_mm / math.log2(self.limits[1] / self.limits[0])

    @cached_property
    def _gap_mm(self) -> float:
        """Between the two nearest ticks."""
        return self._gap_octaves * self._octave_mm if len(self.sizes) > 1 else self.width_mm

    @cached_property
    def _apart_mm(self) -> float:
        """Between the marks of neighbouring series."""
        room = self._group_share * self._gap_mm
        if self._most_groups > 1:
            room -= min(_GROUP_MM, room / 4)
        return min(_DODGE_PT * style.MM_PER_PT, room / max(len(self.series), 1))

    @cached_property
    def _group_mm(self) -> float:
        """Between the middles of neighbouring groups."""
        return min(self._apart_mm * (len(self.series) - 1) + _GROUP_MM, self._group_share * self._gap_mm)

    @cached_property
    def _names(self) -> list[list[str]]:
        return [[name for r, _, name in self.layouts if r == size] for size in self.sizes]

    @cached_property
    def _is_labelled_by_group(self) -> bool:
        """True if there is room for the layouts' names below each group, not all below the tick."""
        widest = max((style.width_mm(name, _TICK_PT) for _, _, name in self.layouts), default=0.0) + 0.8
        fits = widest <= self._group_mm and (self._most_groups - 1) * self._group_mm + widest <= self._gap_mm
        return self._most_groups > 1 and fits and not self.upright

    @cached_property
    def upright(self) -> bool:
        """True if the labels must stand on end, because side by side they would overlap."""
        texts = [str(size) for size in self.sizes] + [name for names in self._names for name in names]
        return len(self.sizes) > 1 and max(style.width_mm(t, _TICK_PT) for t in texts) + 0.8 > self._gap_mm

    @property
    def height_mm(self) -> float:
        """Height of the labels below a panel."""
        if not self.upright:
            return _LINE_MM * max(label.count("\n") + 1 for label in self._labels) + 1.0
        return max(style.width_mm(label, _TICK_PT) for label in self._labels) + 1.0

    @property
    def _labels(self) -> list[str]:
        pairs = zip(self.sizes, self._names, strict=True)
        if self.upright:
            return [f"{', '.join(names)}  {size}" for size, names in pairs]
        if self._is_labelled_by_group:
            return ["\n".join([str(s), *self._named(s, g[0])]) for s, g in self._groups.items()]
        return ["\n".join([str(size), *names]) for size, names in pairs]

    def _named(self, size: int, nodes: int) -> list[str]:
        return [name for r, n, name in self.layouts if (r, n) == (size, nodes)]

    def apply(self, axes: Any) -> None:
        from matplotlib.ticker import NullLocator

        axes.set_xscale("log", base=2)
        axes.set_xlim(*self.limits)
        axes.set_xticks(self.sizes, self._labels, rotation=90 if self.upright else 0)
        axes.xaxis.set_minor_locator(NullLocator())
        if self._is_labelled_by_group:
            others = [(s, i, n) for s, g in self._groups.items() for i, n in enumerate(g) if i]
            at = [self.shifted(size, i * self._group_mm) for size, i, _ in others]
            labels = ["\n".join(["", *self._named(size, nodes)]) for size, _, nodes in others]
            axes.set_xticks(at, labels, minor=True)
            major = axes.xaxis.get_major_ticks()[0]
            axes.tick_params(axis="x", which="minor", length=0, pad=major.get_pad() + _TICK_LENGTH_PT)

    def at(self, ranks: float, series: str, layout: str | None = None) -> float:
        """Return where a mark stands: beside those of other series, and right of layouts on fewer nodes."""
        place = self.series.index(series) - (len(self.series) - 1) / 2
        nodes = next((n for r, n, name in self.layouts if (r, name) == (ranks, layout)), None)
        groups = self._groups.get(int(ranks), [])
        group = groups.index(nodes) if nodes in groups else 0
        return self.shifted(ranks, place * self._apart_mm + group * self._group_mm)

    def shifted(self, ranks: float, by_mm: float) -> float:
        return float(ranks * 2 ** (by_mm / self._octave_mm))


def series_key(names: Sequence[str]) -> list[Entry]:
    return [Entry(name, style.series_style(name, names)) for name in names]
