"""Amdahl's law and the Universal Scalability Law, fitted to throughput over ranks.

X(p) = lambda p / (1 + sigma (p - 1) + kappa p (p - 1))

sigma is the serial share (Amdahl 1967, kappa = 0), kappa the cost of ranks waiting for each other pairwise (Gunther,
"A general theory of computational scalability based on rational functions", 2008); kappa > 0 makes throughput fall
beyond p* = sqrt((1 - sigma) / kappa): negative scaling.

p / X(p) is linear in (1/lambda, sigma/lambda, kappa/lambda), so the fit is a non-negative least squares over relative
errors of the time per image; no starting values and no iterations.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ScalingFit:
    """A fitted law. Use `checked` before believing it."""

    law: Literal["amdahl", "usl"]
    rate_one: float
    """Fitted throughput of one rank (lambda), in the unit of the data."""
    sigma: float
    """Serial share."""
    kappa: float
    """Pairwise coherency cost; 0 for Amdahl."""
    num_sizes: int
    """How many different numbers of ranks the data has."""
    num_points: int
    max_relative_error: float
    """Largest |fitted / measured - 1| of the throughput."""

    @property
    def num_parameters(self) -> int:
        return 2 if self.law == "amdahl" else 3

    @property
    def checked(self) -> bool:
        """More sizes than parameters: only then can the data contradict the law."""
        return self.num_sizes > self.num_parameters

    @property
    def peak_ranks(self) -> float | None:
        """Ranks at which throughput peaks (p*), or None where it never falls."""
        if self.kappa <= 0:
            return None
        return math.sqrt(max(1 - self.sigma, 0.0) / self.kappa)

    def throughput(self, ranks: float) -> float:
        return self.rate_one * ranks / (1 + self.sigma * (ranks - 1) + self.kappa * ranks * (ranks - 1))

    def speedup(self, ranks: float, baseline_ranks: float = 1) -> float:
        return self.throughput(ranks) / self.throughput(baseline_ranks)

    def describe(self) -> str:
        """One honest line."""
        name = "Amdahl" if self.law == "amdahl" else "USL"
        terms = f"serial share {100 * self.sigma:.1f} %"
        if self.law == "usl":
            terms += f", coherency {self.kappa:.2g}"
            terms += f", peak near {self.peak_ranks:.0f} ranks" if self.peak_ranks else ", no peak"
        if not self.checked:
            return (
                f"{name}: {terms} (drawn through {self.num_sizes} sizes with {self.num_parameters} "
                "parameters: nothing left to check it with)"
            )
        return (
            f"{name}: {terms} ({self.num_sizes} sizes, off by at most {100 * self.max_relative_error:.1f} %)"
        )


def fit_amdahl(ranks: Sequence[int], throughput: Sequence[float]) -> ScalingFit | None:
    """Fit X(p) with kappa = 0; None with fewer than two sizes."""
    return _fit("amdahl", ranks, throughput)


def fit_usl(ranks: Sequence[int], throughput: Sequence[float]) -> ScalingFit | None:
    """Fit X(p) with sigma, kappa >= 0; None with fewer than three sizes."""
    return _fit("usl", ranks, throughput)


def _fit(
    law: Literal["amdahl", "usl"], ranks: Sequence[int], throughput: Sequence[float]
) -> ScalingFit | None:
    p, x = np.asarray(ranks, np.float64), np.asarray(throughput, np.float64)
    if p.shape != x.shape or np.any(p < 1) or not np.all(np.isfinite(x)) or np.any(x <= 0):
        raise ValueError("ranks and throughput: equal lengths, ranks >= 1, throughput finite and > 0")
    num_parameters = 2 if law == "amdahl" else 3
    num_sizes = len(np.unique(p))
    if num_sizes < num_parameters:
        return None
    columns = np.stack([np.ones_like(p), p - 1, p * (p - 1)], axis=1)[:, :num_parameters]
    solution = _non_negative_least_squares(columns * (x / p)[:, None], np.ones_like(p))
    a, b = solution[0], solution[1]
    c = solution[2] if law == "usl" else 0.0
    fitted = p / (columns @ solution)
    return ScalingFit(
        law=law,
        rate_one=float(1 / a),
        sigma=float(b / a),
        kappa=float(c / a),
        num_sizes=num_sizes,
        num_points=len(p),
        max_relative_error=float(np.max(np.abs(fitted / x - 1))),
    )


def _non_negative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """argmin |a s - b| with s >= 0 and s[0] > 0, for a handful of columns: the best feasible support."""
    n = a.shape[1]
    best, best_error = np.zeros(n), math.inf
    for k in range(n):
        for extra in itertools.combinations(range(1, n), k):
            support = [0, *extra]
            part = np.linalg.lstsq(a[:, support], b, rcond=None)[0]
            if part[0] <= 0 or np.any(part < 0):
                continue
            solution = np.zeros(n)
            solution[support] = part
            error = float(np.sum((a @ solution - b) ** 2))
            if error < best_error:
                best, best_error = solution, error
    return best
