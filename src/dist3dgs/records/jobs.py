"""Join the measurements of a point's jobs, where blocks train in jobs of their own.

Times are those of the jobs that must follow each other: the coarse training, the block that takes longest, the merge.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.naming import COARSE
from ..runs.record import JobMetrics, Metrics
from .evidence import RunEvidence
from .metrics import block_numbers

#: Of the jobs that follow each other, the sum.
_SUMMED = ("total_s", "timed_steps", "compute_s")
#: Of all jobs, the largest or the sum.
_LARGEST = ("peak_rss_gib", "peak_host_gib", "peak_gpu_gib")
_OF_ALL = ("lost_s", "lost_gpu_hours")
MERGE = "merge"


def join(
    run: RunEvidence, measured: Mapping[str, Metrics], reasons: dict[str, str]
) -> tuple[Metrics, dict[str, str]]:
    """Return the metrics of the whole point, and their reasons.

    Args:
        run: evidence of the job that merges.
        measured: of each job by name, `merge` among them.
        reasons: why numbers of that job are null, or what they leave out.
    """
    merge, blocks = measured[MERGE], [m for name, m in measured.items() if name not in (COARSE, MERGE)]
    numbers = block_numbers(run)
    if COARSE in run.parts:
        numbers = block_numbers(run.parts[COARSE]) | numbers
    values: dict[str, Any] = {"jobs": [_job(run, name, m, numbers) for name, m in measured.items()]}
    reasons = {k: v for k, v in reasons.items() if k not in (*_SUMMED, "step_s", "images_per_s")}
    if COARSE not in measured or len(blocks) < int(run.spec["parallel"]["blocks"]):
        gone = "the folders of some of the point's parts are gone"
        return merge.model_copy(update=values | dict.fromkeys(_SUMMED)), reasons | dict.fromkeys(
            _SUMMED, gone
        )
    slowest = max(blocks, key=lambda m: m.total_s or 0.0)
    line = [measured[COARSE], slowest, merge]
    values |= {name: _known(sum, line, name) for name in _SUMMED}
    values |= {name: _known(max, list(measured.values()), name) for name in _LARGEST}
    values |= {name: _known(sum, list(measured.values()), name) for name in _OF_ALL}
    values |= {name: _by_name([getattr(m, name) for m in line]) for name in ("phases_s", "step_parts_s")}
    values |= {
        "step_s": slowest.step_s,
        "curve": [*measured[COARSE].curve, *merge.curve],
        **_rates(line, merge),
    }
    values["ranks"] = [
        b.ranks[0].model_copy(
            update={"rank": i} | {f"block_{k}": n[i] for k, n in numbers.items() if i < len(n)}
        )
        for i, b in enumerate(blocks)
        if b.ranks
    ]
    reasons |= {
        "train_s": "coarse training, the block that took longest, and the merge",
        "step_s": "of the block that took longest",
        "images_per_s": "images per step / mean seconds of the steps of the coarse training, of the block that took "
        "longest and after the merge",
    }
    return merge.model_copy(update=values), reasons


def _job(run: RunEvidence, name: str, metrics: Metrics, numbers: Mapping[str, Sequence[int]]) -> JobMetrics:
    """Describe one job. numbers: of the blocks, by what is counted."""
    evidence = run.parts.get(name, run)
    summary, place = evidence.summary, name.removeprefix("block-")
    of_block = {k: n[int(place)] for k, n in numbers.items() if place.isdigit() and int(place) < len(n)}
    grown = [e["num_gaussians"] for e in evidence.events_of_attempts if "num_gaussians" in e][-1:]
    return JobMetrics(
        name=name,
        status="ok" if summary.status == "ok" else "failed",
        host=summary.host,
        slurm_job_id=str(summary.job_id) if summary.job_id else None,
        attempts=len(evidence.earlier) + 1,
        total_s=metrics.total_s,
        train_s=metrics.train_s,
        lost_s=metrics.lost_s,
        **({"gaussians": next(iter(grown), None)} | of_block),
    )


def _rates(line: Sequence[Metrics], merge: Metrics) -> dict[str, float | None]:
    """Return steps and images per second over the steps of the jobs that follow each other."""
    timed = [(m.timed_steps or 0, m.step_s.mean) for m in line if m.step_s is not None]
    steps = sum(n for n, _ in timed)
    if not steps or not merge.images or not merge.steps:
        return {"steps_per_s": None, "images_per_s": None}
    mean_s = sum(n * s for n, s in timed) / steps
    return {"steps_per_s": 1 / mean_s, "images_per_s": merge.images / merge.steps / mean_s}


def _known(combine: Any, metrics: Sequence[Metrics], name: str) -> Any:
    """Combine what is known of a metric; None where nothing is."""
    values = [value for m in metrics if (value := getattr(m, name)) is not None]
    return combine(values) if values else None


def _by_name(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part.get(name, 0.0) for part in parts) for part in parts for name in part}
