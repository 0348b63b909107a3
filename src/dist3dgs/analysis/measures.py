"""Compute measures of one run, or of a run and its baseline. Unknown stays None, never 0."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from ..errors import UserError
from ..runs import metrics
from ..runs.metrics import Metric
from ..runs.record import METRICS, QualityPoint, RunRecord, StepTime

Definition = Literal["strong", "throughput", "time_to_quality"]

#: Name -> how it is defined, as captions say it.
DEFINITIONS: dict[str, str] = {
    "strong": "strong scaling: the same global batch at every size; images/s against the baseline's, per rank",
    "throughput": "throughput scaling: the same batch per rank, so the global batch grows with the ranks; "
    "images/s against the baseline's, per rank",
    "time_to_quality": "time to equal quality: training seconds until the held-out PSNR reaches the "
    "baseline's, against the baseline's own seconds, per rank",
}

#: The quality to reach is the baseline's final PSNR less this. Without a tolerance, half of all equally good runs
#: would "never" reach it for noise in the last digit.
QUALITY_TOLERANCE_DB = 0.1

#: Where there is no PSNR: the validation accuracy to reach, over the baseline's. Of MLPerf Inference, whose closed
#: division asks for 99 % of the reference model's accuracy (Reddi et al. 2020).
ACCURACY_SHARE = 0.99


def global_batch(record: RunRecord) -> int | None:
    """Return images per optimiser step over all ranks: measured where possible, else from the settings."""
    m = record.metrics
    if m.images and m.steps:
        return max(1, round(m.images / m.steps))
    train = record.run.settings.get("train")
    if not isinstance(train, dict):
        return None
    total, per_rank = train.get("global_batch"), train.get("batch_per_rank")
    if isinstance(total, int):
        return total
    return per_rank * record.world_size if isinstance(per_rank, int) else None


def scaling_definition(
    batch: int | None, ranks: int, baseline_batch: int | None, baseline_ranks: int
) -> tuple[Definition | None, str | None]:
    """Name the scaling that a point's images/s shows against its baseline, or return None and why neither."""
    if batch is None or baseline_batch is None:
        return None, "global batch not known (of a log: dist3dgs import --batch-per-rank or --global-batch)"
    if batch == baseline_batch:
        return "strong", None
    if batch * baseline_ranks == baseline_batch * ranks:
        return "throughput", None
    return None, (
        f"global batch {batch} on {ranks} ranks against {baseline_batch} on {baseline_ranks}: "
        "neither the same in total nor per rank"
    )


def efficiency(speedup: float, ranks: int, baseline_ranks: int) -> float:
    """Return speedup over the baseline / how many times more ranks. 1 is ideal."""
    return speedup * baseline_ranks / ranks


def time_to_quality(curve: Sequence[QualityPoint], target_psnr: float) -> float | None:
    """Return training seconds at which the held-out PSNR [dB] first reaches `target_psnr`, or None if it never does.

    Between two evaluations PSNR is taken as linear in time. If the first evaluation is already above the target its
    time is returned: an upper bound.
    """
    known = [(p.elapsed_s, p.psnr) for p in curve if p.psnr is not None and math.isfinite(p.psnr)]
    previous: tuple[float, float] | None = None
    for elapsed_s, psnr in sorted(known):
        if psnr >= target_psnr:
            if previous is None:
                return elapsed_s
            t0, q0 = previous
            return t0 + (elapsed_s - t0) * (target_psnr - q0) / (psnr - q0)
        previous = (elapsed_s, psnr)
    return None


#: Below this R = T_compute / T_comm, communication takes more than N / (N + R) of the ideal speedup (the studies'
#: threshold for data-parallel training to pay).
R_PAYS = 3.0


def seconds_per_image(record: RunRecord, name: Literal["compute_s", "comm_s"] | str) -> float | None:
    """Return seconds of computation or communication in steps, per image of all ranks together; timed steps only."""
    m, batch = record.metrics, global_batch(record)
    seconds, steps = getattr(m, name), m.timed_steps or m.steps
    images = steps * batch if steps and batch else m.images  # programs that count epochs alone state no steps
    return None if seconds is None or not images else float(seconds / images)


def ratio_measured(compute_one_s: float | None, comm_s: float | None) -> float | None:
    """R = T_compute of one rank / T_comm of N ranks, for the same images.

    With S = 1 / (1/N + 1/R) this is the R that decides what N ranks gain. The computation left on each of N ranks over
    their communication (`compute_to_comm`) is R / N.
    """
    return None if compute_one_s is None or not comm_s else compute_one_s / comm_s


def ratio_derived(speedup: float, ranks: int) -> float | None:
    """Return the R that explains a speedup over one rank, R = 1 / (1/S - 1/N); None where nothing was lost."""
    lost = 1 / speedup - 1 / ranks
    return 1 / lost if ranks > 1 and lost > 0 else None


def compute_to_comm(record: RunRecord) -> float | None:
    """Return computation over communication on each of the run's ranks, within steps: R / N of `ratio_measured`.

    As recorded, else (step seconds - exposed communication) / all communication.
    """
    m = record.metrics
    if m.compute_to_comm is not None:
        return m.compute_to_comm
    step_s = m.phases_s.get("step")
    if step_s is None or not m.comm_s:
        return None
    exposed = m.exposed_comm_s if m.exposed_comm_s is not None else m.comm_s
    return max(step_s - exposed, 0.0) / m.comm_s


def rank_unit(record: RunRecord) -> Literal["GPU", "rank"]:
    """Name the unit of a rank's hours."""
    return "GPU" if any(d.lower() != "cpu" for d in record.environment.devices) else "rank"


def rank_hours(record: RunRecord) -> float | None:
    """Return hours of all ranks that were allocated, used or not: GPU-hours where a rank is a GPU."""
    total_s = record.metrics.total_s
    if total_s is not None and (jobs := record.metrics.jobs):  # of one rank each
        return sum(job.total_s or 0.0 for job in jobs) / 3600
    return None if total_s is None else total_s * record.world_size / 3600


def sent_mb_per_step(record: RunRecord) -> float | None:
    """Return MB that a rank sends in a step, mean over ranks and steps, densification included.

    None for one rank, and for records that do not say in which phase a collective was.
    """
    m = record.metrics
    known = [c for c in m.collectives if c.phase is not None and c.bytes_all_ranks is not None]
    if not m.timed_steps or not known:
        return None
    sent = sum(c.bytes_all_ranks or 0 for c in known if c.phase in ("step", "densify"))
    return sent / record.world_size / m.timed_steps / 1e6


def _of_step(name: str, *, over_repeats: metrics.Aggregation | None = None) -> Metric:
    """Make a column of one statistic of a run's step times."""

    def derive(record: RunRecord) -> float | None:
        step_s: StepTime | None = record.metrics.step_s
        return None if step_s is None else float(getattr(step_s, name))

    return Metric(
        name="step_s" if name == "median" else f"step_s_{name}",
        label="step" if name == "median" else f"step, {name}",
        unit="s",
        over_repeats=over_repeats,
        description="seconds per training step on the slowest rank, over the steps after the warm-up",
        derive=derive,
    )


#: Metrics that are computed from a record; one of a recorded metric's name fills in where the record has none.
DERIVED: dict[str, Metric] = {
    m.name: m
    for m in (
        _of_step("median", over_repeats="median"),
        _of_step("mean"),
        _of_step("p5"),
        _of_step("p95"),
        replace(METRICS["compute_to_comm"], derive=compute_to_comm),
        Metric(
            name="rank_hours",
            label="cost",
            unit="rank-hours",
            description="hours of all allocated ranks, used or not; of several jobs the sum over them",
            derive=rank_hours,
        ),
        Metric(
            name="global_batch",
            label="batch",
            unit="images",
            integer=True,
            over_repeats=None,
            description="images per optimiser step over all ranks",
            derive=global_batch,
        ),
        Metric(
            name="compute_s_per_image",
            label="computation per image",
            unit="s",
            derive=lambda record: seconds_per_image(record, "compute_s"),
        ),
        Metric(
            name="comm_s_per_image",
            label="communication per image",
            unit="s",
            derive=lambda record: seconds_per_image(record, "comm_s"),
        ),
        Metric(
            name="exposed_comm_s_per_image",
            label="exposed communication per image",
            unit="s",
            derive=lambda record: seconds_per_image(record, "exposed_comm_s"),
        ),
        Metric(
            name="sent_mb_per_step",
            label="sent per rank and step",
            unit="MB",
            description="payload that a rank sends in a step, densification included; mean over ranks and steps; "
            "MB: 10^6 bytes",
            derive=sent_mb_per_step,
        ),
    )
}


def known_metrics(records: Iterable[RunRecord] = ()) -> dict[str, Metric]:
    """Return the whole table: recorded, derived, of installed distributions, and of others found in `records`.

    Raises `UserError` where another distribution's metric has a name of ours.
    """
    own, outside = METRICS | DERIVED, metrics.added()
    if taken := own.keys() & outside.keys():
        raise UserError(
            f"entry points `{metrics.GROUP}`: {', '.join(sorted(taken))} is a metric of dist3dgs itself; give it "
            "another name"
        )
    found = own | outside
    for record in records:
        for name in record.metrics.added:
            found.setdefault(name, Metric(name=name, label=name, low=None))
    return found


def value(metric: Metric, record: RunRecord) -> float | None:
    """Return a metric of a run, or None where it is not known."""
    if metric.derive is not None and (metric.name in DERIVED or metric.name not in record.metrics.added):
        derived = metric.derive(record)
        return None if derived is None or metric.problem(derived) else derived
    if metric.name in METRICS:
        recorded: float | None = getattr(record.metrics, metric.name)
        return recorded
    return record.metrics.added.get(metric.name)
