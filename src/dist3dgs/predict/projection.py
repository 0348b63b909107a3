"""Project the time to finish: of a run from its first steps, of a training from its epoch times."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.models import RunSpec
from ..errors import UserError
from ..units import parse_duration_s
from .model import Interval

#: Steps at the start that compile, warm caches and allocate.
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class StepSeen:
    """Steps up to `step` since the one before it."""

    step: int
    step_s: float
    """Mean seconds of a step."""
    gaussians: float


@dataclass(frozen=True, kw_only=True)
class RunProjection:
    """A run that has begun."""

    step: int
    num_steps: int
    left_s: Interval
    """From its last step to the end of its steps."""
    total_s: Interval
    """Duration of this attempt, from its start."""
    rank_hours: Interval
    basis: str


@dataclass(frozen=True, kw_only=True)
class EpochProjection:
    """A training of `epochs` epochs on `ranks` ranks."""

    ranks: int
    epoch_s: float
    total_s: float
    speedup: float
    """Over the first row."""
    efficiency: float

    @property
    def rank_hours(self) -> float:
        return self.total_s * self.ranks / 3600


def steps_seen(events: Iterable[Mapping[str, Any]]) -> list[StepSeen]:
    """Read the steps of rank 0 from a run's events, of its newest start."""
    found: list[StepSeen] = []
    for event in events:
        if event.get("rank") != 0:
            continue
        if event["event"] in ("start", "resume"):
            found.clear()
        if event["event"] != "step":
            continue
        step, seconds, n = (event.get(k) for k in ("step", "step_s", "num_gaussians"))
        if isinstance(step, int) and isinstance(seconds, int | float) and seconds > 0:
            found.append(StepSeen(step=step, step_s=float(seconds), gaussians=float(n or 0)))
    return found


def project_run(seen: Sequence[StepSeen], spec: RunSpec, elapsed_s: float) -> RunProjection | None:
    """Project a run from the steps it has made; None where there are fewer than two events of steps.

    A step's time is taken as linear in the number of Gaussians, fitted to what was seen. Their number goes on growing
    as it did lately, until densification ends or `max_gaussians` is reached; the bounds are no growth at all and the
    largest number at once.

    Args:
        elapsed_s: seconds from the attempt's start to its last step.
    """
    if len(seen) < 2:
        return None
    num_steps, last = spec.num_steps, seen[-1]
    kept = [s for s in seen[1:] if s.step > _WARM_UP_SHARE * last.step] or [last]
    offset_s, slope_s = _line(kept)
    densify = spec.train.densify
    divide = spec.global_batch if spec.train.keep == "images" else 1
    until = min(num_steps, round(densify.stop_step / divide)) if densify.kind != "none" else 0
    most = max(float(densify.max_gaussians), last.gaussians)
    left = max(0, num_steps - last.step)

    def seconds(mean_gaussians: float) -> float:
        return left * max(offset_s + slope_s * mean_gaussians, 0.0)

    growing = max(0, until - last.step)
    half = kept[len(kept) // 2]
    per_step = 0.0
    if growing and last.step > half.step:
        per_step = max(0.0, (last.gaussians - half.gaussians) / (last.step - half.step))
    final = min(most, last.gaussians + per_step * growing)
    share = growing / left if left else 0.0
    noise = statistics.pstdev([s.step_s / max(offset_s + slope_s * s.gaussians, 1e-9) for s in kept])
    mean = share * (last.gaussians + final) / 2 + (1 - share) * final
    low = seconds(last.gaussians) * max(0.0, 1 - noise)
    high = seconds(most if growing else last.gaussians) * (1 + noise)
    value = min(max(seconds(mean), low), high)
    left_s = Interval(value, low, high)
    total = Interval(elapsed_s + value, elapsed_s + low, elapsed_s + high)
    ranks = spec.point.layout.world_size
    basis = f"{len(kept)} records of steps up to {last.step}, {last.gaussians:,.0f} Gaussians"
    if growing:
        basis += f", {final:,.0f} expected at step {until}"
    return RunProjection(
        step=last.step,
        num_steps=num_steps,
        left_s=left_s,
        total_s=total,
        rank_hours=total.scaled(ranks / 3600),
        basis=basis,
    )


def _line(seen: Sequence[StepSeen]) -> tuple[float, float]:
    """Fit step_s = offset + slope x Gaussians, both >= 0."""
    from scipy.optimize import nnls

    largest = max(s.gaussians for s in seen)
    if largest <= 0 or len({s.gaussians for s in seen}) < 3:
        return statistics.median(s.step_s for s in seen), 0.0
    (offset, slope), _ = nnls([[1.0, s.gaussians / largest] for s in seen], [s.step_s for s in seen])
    return float(offset), float(slope) / largest


def project_epochs(rows: Sequence[tuple[int, float]], epochs: int) -> list[EpochProjection]:
    """Project a training from seconds per epoch at several numbers of ranks, in the given order.

    Args:
        rows: (ranks, seconds of an epoch); speedups are over the first.
        epochs: of the whole training.
    """
    base_ranks, base_s = rows[0]
    return [
        EpochProjection(
            ranks=ranks,
            epoch_s=epoch_s,
            total_s=epoch_s * epochs,
            speedup=base_s / epoch_s,
            efficiency=base_s / epoch_s * base_ranks / ranks,
        )
        for ranks, epoch_s in rows
    ]


def parse_epoch(text: str) -> tuple[int, float]:
    """Read `RANKS=TIME`, e.g. 1=2.0h, 8=15min, 16=540s.

    Raises:
        UserError: it is neither.
    """
    ranks, _, duration = text.partition("=")
    try:
        seconds = parse_duration_s(duration)
    except ValueError:
        seconds = 0.0
    if not (ranks.isdigit() and int(ranks) and 0 < seconds < math.inf):
        raise UserError(f"{text!r}: expected RANKS=TIME of an epoch, e.g. 1=2.0h 8=15min 16=540s")
    return int(ranks), seconds
