"""Rates from this study's own records: the model, scaled to what was measured on this hardware."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from ..config.models import Strategy, TrainSettings
from ..config.naming import Layout
from ..runs.record import RunRecord
from .collectives import collectives_of
from .machine import Machine
from .model import MODELLED, Predictor, Rates
from .workload import Workload, workload_of

#: Phases of a run outside its steps and evaluations, which do not depend on the layout to first order.
_FIXED_PHASES = ("startup", "load", "init", "export", "checkpoint")
#: Views differ in cost, and so does one view from one time to the next (docs/benchmarks/distributed.md).
IMBALANCE = 0.08
#: No interval is narrower than this: a repetition on the same machine differs by as much.
LEAST_ERROR = 0.05
#: Error of a layout of which no record exists, where the records show none: worst of the held-out segments of own runs.
UNSEEN_ERROR = 0.2


@dataclass(frozen=True)
class Segment:
    """Steps between two evaluations of a run."""

    record: RunRecord
    layout: Layout
    images_per_step: float
    gaussians: float
    """Mean number of the whole model."""
    steps: int
    step_s: float


def segments(record: RunRecord) -> list[Segment]:
    """Cut a run at its evaluations; [] where its curve has no numbers of Gaussians, or of a degraded run."""
    m = record.metrics
    if record.status != "ok" or not m.steps or not m.images:
        return []
    known = [c for c in m.curve if c.num_gaussians]
    found, step, elapsed_s, gaussians = [], 0, 0.0, 0.0
    for c in known:
        n = float(c.num_gaussians or 0)
        if c.step > step and c.elapsed_s > elapsed_s:
            seconds = (c.elapsed_s - elapsed_s) / (c.step - step)
            mean = (gaussians + n) / 2 if gaussians else n
            layout = Layout.parse(record.run.layout)
            found.append(Segment(record, layout, m.images / m.steps, mean, c.step - step, seconds))
        step, elapsed_s, gaussians = c.step, c.elapsed_s, n
    return found


def calibrate(
    records: Sequence[RunRecord], machine: Machine, size_px: tuple[int, int], fallback: Predictor
) -> Predictor | None:
    """Fit the rates to records of one scene on one hardware; None where they do not hold enough.

    Work per image, per Gaussian and of the optimiser come from the smallest layout; what larger ones take beyond it is
    the time of an exchange. Rates that the records cannot tell (memory of a GPU) stay those of `fallback`.

    Args:
        records: of one scene; others than successful ones are ignored.
        size_px: width and height of the photographs.
    """
    from scipy.optimize import nnls

    every = [s for r in records if _is_modelled(r) for s in segments(r)]
    if not every:
        return None
    least = min(s.layout.world_size for s in every)
    base = [s for s in every if s.layout.world_size == least]
    if len(base) < 2:
        return None
    optimiser = median([_optimiser_s(s.record) for s in base])  # per Gaussian held and step

    def rest(s: Segment) -> float:
        own = (
            s.gaussians
            if _workload(s.record, size_px).kind == "replicated"
            else s.gaussians / s.layout.world_size
        )
        comm = sum(
            c.seconds for c in collectives_of(_workload(s.record, size_px), s.layout, machine, s.gaussians)
        )
        return max(s.step_s - own * optimiser - comm, 0.0)

    rows = [[s.images_per_step / s.layout.world_size * x for x in (1.0, s.gaussians)] for s in base]
    right = [rest(s) for s in base]
    # Relative errors: a short step counts as much as a long one.
    (image_s, gaussian_s), _ = nnls(
        [[x / s.step_s for x in row] for row, s in zip(rows, base, strict=True)],
        [y / s.step_s for y, s in zip(right, base, strict=True)],
    )
    flops, bandwidth = machine.fp32_tflops.value * 1e12, machine.memory_gb_s.value * 1e9
    pixels = size_px[0] * size_px[1]
    rates = Rates(
        pixel_flop=float(image_s) * flops / pixels,
        image_bytes=float(gaussian_s) * bandwidth,
        step_bytes=optimiser * bandwidth,
        imbalance=IMBALANCE,
        memory_gb=_base_memory_gb(_used(base), size_px, fallback),
        gaussian_memory_bytes=fallback.rates.gaussian_memory_bytes,
        pixel_memory_bytes=fallback.rates.pixel_memory_bytes,
    )
    startup = median([sum(r.metrics.phases_s.get(name, 0.0) for name in _FIXED_PHASES) for r in _used(base)])
    made = Predictor(
        rates=rates,
        machine=machine,
        source=f"{len(_used(every))} records of this study",
        error_one=LEAST_ERROR,
        error_several=UNSEEN_ERROR,
        startup_s=startup,
        mean_share=median([_mean_share(r) for r in _used(base)]),
        calibrated=True,
    )
    larger = [s for s in every if s.layout.world_size > least]
    if larger:
        extra = median([s.step_s - _predicted(made, s, size_px) for s in larger])
        rates = Rates(**(vars(rates) | {"exchange_s": max(extra, 0.0)}))
        made = Predictor(**(vars(made) | {"rates": rates}))
    errors_one = [abs(_predicted(made, s, size_px) / s.step_s - 1) for s in base]
    errors_more = [abs(_predicted(made, s, size_px) / s.step_s - 1) for s in larger]
    return Predictor(
        **(
            vars(made)
            | {
                "error_one": max(LEAST_ERROR, median(errors_one)),
                "error_several": max(LEAST_ERROR, max(errors_more)) if errors_more else UNSEEN_ERROR,
            }
        )
    )


def predicted_train_s(predictor: Predictor, record: RunRecord, size_px: tuple[int, int]) -> float | None:
    """Predict the seconds that a recorded run spent in steps, from its own numbers of Gaussians."""
    found = segments(record)
    m = record.metrics
    if not found or not m.steps or not m.images:
        return None
    return sum(s.steps * _predicted(predictor, s, size_px) for s in found)


def workload_of_record(record: RunRecord, size_px: tuple[int, int]) -> Workload | None:
    """Make the workload of a run as it went: final number of Gaussians, images seen; None of foreign programs."""
    settings = record.run.settings
    if not isinstance(settings.get("train"), dict) or not isinstance(settings.get("parallel"), dict):
        return None
    train = TrainSettings.model_validate(settings["train"])
    strategy = Strategy.model_validate(settings["parallel"])
    asked = workload_of(train, strategy, Layout.parse(record.run.layout), size_px)
    n = record.metrics.num_gaussians
    if "gradient_rows" not in settings["parallel"]:  # recorded before rows were chosen
        asked = replace(asked, gradient_rows="all")
    if "shared_memory" not in settings["parallel"]:  # before ranks shared memory
        asked = replace(asked, optimizer_state="whole", shared_memory=False)
    held_out = len(record.metrics.views) or asked.held_out
    return Workload(**(vars(asked) | {"gaussians": float(n or asked.gaussians), "held_out": held_out}))


def _workload(record: RunRecord, size_px: tuple[int, int]) -> Workload:
    found = workload_of_record(record, size_px)
    return found or Workload(gaussians=1.0, width_px=size_px[0], height_px=size_px[1])


def _predicted(predictor: Predictor, s: Segment, size_px: tuple[int, int]) -> float:
    workload = _workload(s.record, size_px)
    workload = Workload(**(vars(workload) | {"batch": round(s.images_per_step)}))
    return predictor.step(workload, s.layout, s.gaussians).seconds


def _optimiser_s(record: RunRecord) -> float:
    """Return seconds of the optimiser per Gaussian held and step."""
    m = record.metrics
    found = segments(record)
    steps = m.timed_steps or m.steps
    if not found or not steps:
        return 0.0
    mean = sum(s.gaussians for s in found) / len(found)
    return m.step_parts_s.get("optimise", 0.0) / steps / mean


def _base_memory_gb(records: Sequence[RunRecord], size_px: tuple[int, int], fallback: Predictor) -> float:
    """Memory of a rank beside what grows with the model: measured peak less the prediction of the rest."""
    found = []
    for r in records:
        m = r.metrics
        peak_gib = m.peak_gpu_gib if m.peak_gpu_gib is not None else m.peak_rss_gib
        if peak_gib is not None:
            workload, layout = _workload(r, size_px), Layout.parse(r.run.layout)
            on_gpu = m.peak_gpu_gib is not None
            grown = (
                fallback.memory_gb(workload, layout).value if on_gpu else fallback.rank_0_gb(workload, layout)
            )
            found.append(peak_gib * 2**30 / 1e9 - (grown - fallback.rates.memory_gb))
    return max(0.0, median(found)) if found else fallback.rates.memory_gb


def _is_modelled(record: RunRecord) -> bool:
    """Return True for runs of our own with a strategy that the model knows, on all ranks of their layout.

    Not of `blocks`: its segments are of several phases.
    """
    parallel = record.run.settings.get("parallel")
    known = (
        isinstance(parallel, dict)
        and parallel.get("kind") in MODELLED
        and parallel.get("kind") != "blocks"
        and parallel.get("ranks") != "one"
    )
    m = record.metrics
    return known and not (m.images and m.steps and round(m.images / m.steps) % record.world_size)


def _mean_share(record: RunRecord) -> float:
    """Return mean number of Gaussians over a run's steps, as a share of its final one."""
    found = segments(record)
    mean = sum(s.steps * s.gaussians for s in found) / sum(s.steps for s in found)
    return min(1.0, mean / float(record.metrics.num_gaussians or found[-1].gaussians))


def _used(found: Sequence[Segment]) -> list[RunRecord]:
    seen: dict[int, RunRecord] = {id(s.record): s.record for s in found}
    return list(seen.values())
