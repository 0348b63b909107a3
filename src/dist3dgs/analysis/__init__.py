"""Scaling analysis: speedup, three named efficiencies, compute-to-communication ratio, fitted laws.

"4 GPUs" in the literature is 44 %, 78 % or 117 % efficient depending on which efficiency is meant, so every number
here carries the name of its definition:

==================== ===============================================================================================
strong               same global batch at every size: images/s ratio / ratio of ranks
throughput           same batch per rank, so that the global batch grows with the ranks: images/s ratio / ratio of ranks
time_to_quality      training time to the baseline's held-out PSNR: time ratio / ratio of ranks
==================== ===============================================================================================

The baseline is the smallest successful layout of the scene on the same hardware (points.py).
"""

from .fits import ScalingFit, fit_amdahl, fit_gustafson, fit_usl, fitted_points, told_apart
from .measures import (
    DEFINITIONS,
    QUALITY_TOLERANCE_DB,
    compute_to_comm,
    efficiency,
    global_batch,
    rank_hours,
    rank_unit,
    scaling_definition,
    time_to_quality,
)

__all__ = [
    "DEFINITIONS",
    "QUALITY_TOLERANCE_DB",
    "ScalingFit",
    "compute_to_comm",
    "efficiency",
    "fit_amdahl",
    "fit_gustafson",
    "fit_usl",
    "fitted_points",
    "global_batch",
    "rank_hours",
    "rank_unit",
    "scaling_definition",
    "time_to_quality",
    "told_apart",
]
