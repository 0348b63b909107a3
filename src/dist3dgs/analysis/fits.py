"""Fit scaling laws to throughput over ranks, and say where a law cannot describe the data.

==========  =====================================================  ======================================
law         throughput of p ranks                                  source
==========  =====================================================  ======================================
amdahl      lambda p / (1 + sigma (p - 1))                         Amdahl 1967; same global batch
gustafson   lambda (sigma + (1 - sigma) p)                         Gustafson 1988; batch grows with p
usl         lambda p / (1 + sigma (p - 1) + kappa p (p - 1))       Gunther 2008, Universal Scalability Law
==========  =====================================================  ======================================

sigma is the serial share, between 0 and 1; kappa >= 0 is the cost of ranks waiting for each other pairwise and makes
throughput fall beyond p* = sqrt((1 - sigma) / kappa). Each law is linear in positive coefficients (of the time per
image, or of throughput for Gustafson), so the fit is `scipy.optimize.nnls` over relative errors: no starting values.
Intervals are from a seeded bootstrap of the residuals.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Row = dict[str, Any]
Law = Literal["amdahl", "gustafson", "usl"]
NAMES: dict[Law, str] = {"amdahl": "Amdahl", "gustafson": "Gustafson", "usl": "USL"}
#: A law that misses a point by more than this does not describe the data (docs/decisions/0050).
MAX_MISS = 0.25
#: Laws whose corrected Akaike criteria differ by less than this are not told apart (Burnham and Anderson 2002, 2.6).
AICC_MARGIN = 2.0
BOOTSTRAPS, INTERVAL = 200, 0.9


@dataclass(frozen=True, kw_only=True)
class ScalingFit:
    """A fitted law. Believe it only where `problem` is None and `checked` is true."""

    law: Law
    rate_one: float
    """Fitted throughput of one rank (lambda), in the unit of the data."""
    sigma: float
    """Serial share, 0 to 1."""
    kappa: float
    """Pairwise coherency cost; 0 but for the USL."""
    sigma_interval: tuple[float, float] | None
    """90 % bootstrap interval of sigma; None where nothing is left to resample."""
    num_sizes: int
    """Number of different numbers of ranks in the data."""
    num_points: int
    max_relative_error: float
    """Largest |fitted / measured - 1| of the throughput."""
    aicc: float | None
    """Akaike's criterion corrected for few points; None where num_points is at most the parameters + 1."""
    falls: bool
    """The data falls somewhere as ranks grow."""

    @property
    def num_parameters(self) -> int:
        return 3 if self.law == "usl" else 2

    @property
    def checked(self) -> bool:
        """More sizes than parameters: only then can the data contradict the law."""
        return self.num_sizes > self.num_parameters

    @property
    def problem(self) -> str | None:
        """Why this law cannot describe the data, or None."""
        if self.falls and self.law != "usl" and self.max_relative_error > 0.02:
            return "throughput falls as ranks are added, which this law cannot express"
        if self.max_relative_error > MAX_MISS:
            return f"it misses a point by {100 * self.max_relative_error:.0f} %"
        return None

    @property
    def peak_ranks(self) -> float | None:
        """Ranks at which throughput peaks (p*), or None where it never falls."""
        if self.kappa <= 0:
            return None
        return math.sqrt(max(1 - self.sigma, 0.0) / self.kappa)

    def _peak(self) -> str:
        if self.peak_ranks is None:
            return "no peak"
        return (
            "falls from the first rank on"
            if self.peak_ranks < 1
            else f"peak near {self.peak_ranks:.0f} ranks"
        )

    def throughput(self, ranks: float) -> float:
        return float(_rate(self.law, (self.rate_one, self.sigma, self.kappa), np.float64(ranks)))

    def speedup(self, ranks: float, baseline_ranks: float = 1) -> float:
        return self.throughput(ranks) / self.throughput(baseline_ranks)

    def describe(self) -> str:
        """Return the fitted law in one line, with its problem if it has one."""
        name = NAMES[self.law]
        if self.problem:
            return f"{name}: does not describe this data: {self.problem}"
        terms = f"serial share {100 * self.sigma:.1f} %"
        if self.sigma_interval is not None and self.checked:
            low, high = self.sigma_interval
            terms += f" (90 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        if self.law == "usl":
            terms += f", coherency {self.kappa:.2g}"
            terms += f", {self._peak()}"
        if not self.checked:
            return (
                f"{name}: {terms} (drawn through {self.num_sizes} sizes with {self.num_parameters} "
                "parameters: nothing left to check it with)"
            )
        return (
            f"{name}: {terms} ({self.num_sizes} sizes, off by at most {100 * self.max_relative_error:.1f} %)"
        )


def fitted_points(series: Sequence[Row], points: Sequence[Row]) -> list[Row]:
    """Choose the rows of points.csv that a law of one series is fitted to: one hardware, one kind of scaling.

    The baseline is among them, whichever strategy ran it. Of layouts with equal ranks the one on fewest nodes counts:
    ranks on more nodes are another machine.
    """
    rated = [
        p
        for p in series
        if p.get("images_per_s") and p.get("scaling") in ("baseline", "strong", "throughput")
    ]
    if not rated:
        return []
    last = max(rated, key=lambda p: p["ranks"])
    key = tuple(last.get(name) for name in ("scene", "baseline_strategy", "baseline_layout", "hardware"))
    kinds = {"baseline", last["scaling"]}
    chosen: dict[int, Row] = {}
    for p in [*points, *rated]:
        own = p in rated or (p["scene"], p["strategy"], p["layout"]) == key[:3]
        same = (
            tuple(p.get(name) for name in ("scene", "baseline_strategy", "baseline_layout", "hardware"))
            == key
        )
        if own and same and p.get("images_per_s") and p.get("scaling") in kinds:
            before = chosen.get(p["ranks"])
            if before is None or p["nodes"] < before["nodes"]:
                chosen[p["ranks"]] = p
    return [chosen[ranks] for ranks in sorted(chosen)]


def fit_amdahl(ranks: Sequence[int], throughput: Sequence[float]) -> ScalingFit | None:
    """Fit Amdahl's law; None with fewer than two sizes. Raises ValueError for impossible data."""
    return _fit("amdahl", ranks, throughput)


def fit_gustafson(ranks: Sequence[int], throughput: Sequence[float]) -> ScalingFit | None:
    """Fit Gustafson's law; None with fewer than two sizes. Raises ValueError for impossible data."""
    return _fit("gustafson", ranks, throughput)


def fit_usl(ranks: Sequence[int], throughput: Sequence[float]) -> ScalingFit | None:
    """Fit the Universal Scalability Law; None with fewer than three sizes. Raises ValueError for impossible data."""
    return _fit("usl", ranks, throughput)


def told_apart(fits: Sequence[ScalingFit]) -> str | None:
    """Say whether the data can tell these laws apart, in one sentence; None with fewer than two that describe it."""
    fits = [f for f in fits if f.problem is None]
    if len(fits) < 2:
        return None
    names = " and ".join([", ".join(NAMES[f.law] for f in fits[:-1]), NAMES[fits[-1].law]])
    known = [f for f in fits if f.aicc is not None]
    if len(known) < len(fits):
        points = fits[0].num_points
        return f"{points} points cannot tell {names} apart: measure at more numbers of ranks, or repeat."
    first, second = sorted(known, key=lambda f: f.aicc or 0.0)[:2]
    margin = (second.aicc or 0.0) - (first.aicc or 0.0)
    if margin < AICC_MARGIN:
        return f"The data does not tell {names} apart (AICc differs by {margin:.1f}; from {AICC_MARGIN:.0f} it would)."
    return f"{NAMES[first.law]} describes the data best (AICc lower by {margin:.1f})."


Parameters = tuple[float, float, float]
"""(lambda, sigma, kappa)"""


def _rate(law: Law, parameters: Parameters, p: np.ndarray | np.float64) -> np.ndarray | np.float64:
    """Return throughput of `p` ranks."""
    rate_one, sigma, kappa = parameters
    if law == "gustafson":
        return rate_one * (sigma + (1 - sigma) * p)
    return rate_one * p / (1 + sigma * (p - 1) + kappa * p * (p - 1))


def _fit(law: Law, ranks: Sequence[int], throughput: Sequence[float]) -> ScalingFit | None:
    p, x = np.asarray(ranks, np.float64), np.asarray(throughput, np.float64)
    if p.shape != x.shape or np.any(p < 1) or not np.all(np.isfinite(x)) or np.any(x <= 0):
        raise ValueError("ranks and throughput: equal lengths, ranks >= 1, throughput finite and > 0")
    num_parameters = 3 if law == "usl" else 2
    sizes = np.unique(p)
    if len(sizes) < num_parameters:
        return None
    parameters = _solve(law, p, x)
    fitted = np.asarray(_rate(law, parameters, p))
    n, k = len(p), num_parameters
    aicc = None
    if n > k + 1:
        # A floor under the residuals, so that rounding does not decide between laws that fit exactly.
        mean_square = max(float(np.mean((x / fitted - 1) ** 2)), 1e-6)
        aicc = n * math.log(mean_square) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    medians = [float(np.median(x[p == size])) for size in sizes]
    return ScalingFit(
        law=law,
        rate_one=parameters[0],
        sigma=parameters[1],
        kappa=parameters[2],
        sigma_interval=_interval(law, p, fitted, x / fitted - 1, k) if n > k else None,
        num_sizes=len(sizes),
        num_points=n,
        max_relative_error=float(np.max(np.abs(fitted / x - 1))),
        aicc=aicc,
        falls=any(b < a for a, b in itertools.pairwise(medians)),
    )


def _solve(law: Law, p: np.ndarray, x: np.ndarray) -> Parameters:
    """Fit the law's coefficients, all >= 0, to relative errors."""
    from scipy.optimize import nnls

    if law == "gustafson":
        # x = lambda sigma + lambda (1 - sigma) p
        serial, parallel = nnls(np.stack([1 / x, p / x], axis=1), np.ones_like(p))[0]
        rate_one = serial + parallel
        return float(rate_one), float(serial / rate_one), 0.0
    # p / x = (1 - sigma) / lambda + sigma / lambda p + kappa / lambda p (p - 1)
    columns = [x / p, x, x * (p - 1)][: 3 if law == "usl" else 2]
    parallel, serial, *coherency = nnls(np.stack(columns, axis=1), np.ones_like(p))[0]
    one = parallel + serial
    if one <= 0:  # everything grows with the pairs: no law of this kind fits
        one = serial = 1e-12
    return float(1 / one), float(serial / one), float(coherency[0] / one) if coherency else 0.0


def _interval(
    law: Law, p: np.ndarray, fitted: np.ndarray, residuals: np.ndarray, k: int
) -> tuple[float, float]:
    """90 % interval of sigma from resampled relative residuals, widened for the `k` parameters that the fit spent."""
    rng = np.random.default_rng(0)
    scaled = residuals * math.sqrt(len(p) / (len(p) - k))
    resampled = (fitted * (1 + rng.choice(scaled, len(p))) for _ in range(BOOTSTRAPS))
    sigmas = [_solve(law, p, np.maximum(x, 1e-9 * fitted))[1] for x in resampled]
    low, high = np.quantile(sigmas, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)
