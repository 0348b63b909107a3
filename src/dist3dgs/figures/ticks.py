"""Round numbers for axes, as many as there is room for."""

import math
from typing import Any

#: Height that a number needs to stand clear of its neighbours.
_ROOM_MM = 5.0


def linear(height_mm: float) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=max(3, int(height_mm / 6)), steps=[1, 2, 2.5, 5, 10])


def decimal(low: float, high: float, room_mm: float) -> list[float]:
    """Choose ticks of a logarithmic axis: 1-2-5, 1-3 or powers of ten; evenly spaced where it spans less than these."""
    from matplotlib.ticker import MaxNLocator

    most = max(2, int(room_mm / _ROOM_MM))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        # From the power's decimal form, so that a tick at 0.3 is not at 0.30000000000000004.
        found = [v for k in powers for m in mantissas if low <= (v := float(f"{m}e{k}")) <= high]
        enough = 2 if mantissas == (1,) and high > 20 * low else min(3, most)
        if enough <= len(found) <= most:
            return found
    if len(found) > most:
        return found[:: math.ceil(len(found) / most)]
    return [float(v) for v in MaxNLocator(nbins=min(most, 5)).tick_values(low, high) if low <= v <= high]


def binary(low: float, high: float, room_mm: float) -> list[float]:
    """Choose ticks of a logarithmic axis of ratios: powers of two, with 0.75, 1.5 and 3 where few of them are seen."""
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    most = max(2, int(room_mm / _ROOM_MM))
    every = math.ceil(len(powers) / most)
    found = [2.0**k for k in powers if k % every == 0]
    between = [v for v in (0.75, 1.5, 3.0) if low <= v <= high]
    return sorted([*found, *between]) if high / low < 6 and len(found) + len(between) <= most else found


def set_log(axis: Any, values: list[float], unit: str = "") -> None:
    """Ticks at these values alone, written as plain numbers, thousands as k and millions as M from 10k on."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{_short(v)}{unit}"))


def _short(value: float) -> str:
    """Write 200000 as 200k and 3000000 as 3M: long numbers would run into the panel on their left."""
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if value >= max(factor, 1e4):
            return f"{value / factor:g}{letter}"
    return f"{value:g}"
