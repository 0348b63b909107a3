"""A repeated measurement: median, smallest, largest, how many."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median with the smallest and largest of `n` repeats. With n = 1 nothing is known about the noise."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Spread of the known, finite values; None where there is none."""
        known = [float(v) for v in values if v is not None and math.isfinite(v)]
        if not known:
            return None
        return cls(statistics.median(known), min(known), max(known), len(known))
