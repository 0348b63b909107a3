"""Import foreign logs as records, so that tables and figures compare them with our own runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config.naming import Point
from ..diagnosis.hardware_usage import GpuUse
from ..diagnosis.scan import Scan, scan
from ..diagnosis.summary import LogSummary, summarise
from ..diagnosis.verdict import Diagnosis, judge
from ..errors import UserError
from ..files import sha256
from ..logs.jobs import by_job
from ..runs.record import (
    Environment,
    Evidence,
    Failure,
    GpuTotals,
    Metrics,
    Provenance,
    RankMetrics,
    Run,
    RunRecord,
    load_record,
)

#: Trainers that have no other renderer.
GPU_TRAINERS = ("gsplat", "nerfstudio")
#: Phases of foreign trainers in our vocabulary (events.PHASES).
PHASES = {
    "environment": "startup",
    "caching": "load",
    "caching_eval": "load",
    "stepping": "step",
    "evaluation": "evaluate",
    "other": "other",
}


#: Formats that state no end of a job.
_TABLES = {"metrics.csv", "nvidia-smi", "psrecord", "resources"}
#: A sample counts as an image.
_IMAGE_RATES = ("img/s", "samples/s")

EpochStatistic = Literal["last", "mean", "median"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Options for importing a log, and facts that it does not state.

    Args:
        epochs: what stands for a run's seconds per epoch and throughput per epoch: the last epoch (as scaling
            workshops do, when caches are warm), or the mean or median over all.
        batch_per_rank, global_batch: images per step, on each rank or over all; at most one of them.
        warmup_steps, warmup_epochs: so many first ones are left out of step times, epoch times and throughput.
        device: name of the devices, where the log has none; runs on hardware of other names are not compared.
    """

    epochs: EpochStatistic = "last"
    batch_per_rank: int | None = None
    global_batch: int | None = None
    warmup_steps: int = 0
    warmup_epochs: int = 0
    device: str | None = None

    def settings(self) -> dict[str, object]:
        """Return what was given, as a record's settings name it."""
        batch = {"batch_per_rank": self.batch_per_rank, "global_batch": self.global_batch}
        given = {k: v for k, v in batch.items() if v is not None}
        warmup = {"warmup_steps": self.warmup_steps, "warmup_epochs": self.warmup_epochs}
        return ({"train": given} if given else {}) | {k: v for k, v in warmup.items() if v}

    def batch(self, world_size: int) -> int | None:
        """Return the images per step over all ranks, if given."""
        return self.batch_per_rank * world_size if self.batch_per_rank else self.global_batch

    def check(self) -> None:
        """Raise `UserError` for an impossible value."""
        for name in ("batch_per_rank", "global_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number of images of at least 1")
        for name in ("warmup_steps", "warmup_epochs"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 0")
        if self.batch_per_rank and self.global_batch:
            raise UserError(
                "give --batch-per-rank or --global-batch, not both: the layout says how many ranks"
            )


def import_record(
    paths: Sequence[Path | str], *, scene: str, layout: str, strategy: str = "imported", repeat: str = "r0",
    results: Path = Path("results"), force: bool = False, reading: Reading = Reading(),
) -> tuple[RunRecord, Path]:  # fmt: skip
    """Make the record of one job from its logs; return it and its path.

    Raises `UserError` for a bad name, logs that cannot be read or have nothing in them, files of several jobs, a
    warm-up that leaves nothing, a record of one of our own runs in the same place, and, unless `force`, for a layout
    that the log contradicts or another log's record in the same place.
    """
    reading.check()
    point = Point.parse(scene, strategy, layout, repeat)
    path = point.folder(Path(results)) / "record.json"
    if len(jobs := by_job([Path(p) for p in paths])) > 1:
        first = " ".join(map(str, jobs[0]))
        raise UserError(
            f"these are logs of {len(jobs)} jobs; import one at a time, e.g.: dist3dgs import {first}"
        )
    found = scan(paths, reading.warmup_steps, reading.warmup_epochs)
    if all(f.format in ("empty", "missing") for f in found.files):
        raise UserError(
            f"{found.files[0].path}: nothing is written in it, so there is nothing to make a record of"
        )
    summary = summarise(found)
    _check_warmup(found, reading)
    if not force:
        _check_layout(point, summary)
    verdict = judge(found, summary, {"devices_asked": point.layout.world_size})
    record = _record(point, found, summary, verdict, reading)
    if path.exists():
        _check_place(path, record, force)
    return record, path


def _check_layout(point: Point, s: LogSummary) -> None:
    """Refuse a layout that the log contradicts: the record would count for another size."""
    asked, world = s.devices_asked, point.layout.world_size
    if asked is not None and asked != world:
        said = f"{asked} devices were allocated"
    elif s.devices_used is not None and s.devices_used > world:
        said = f"{s.devices_used} devices were used"
    else:
        return
    raise UserError(
        f"--layout {point.layout} is {world} devices, and the log says that {said}; give the layout that the job was "
        "allocated, or --force if the log is wrong"
    )


def _check_warmup(found: Scan, reading: Reading) -> None:
    timed = [s for s in found.series.values() if s.warmup_rows or s.seconds or s.rates]
    if not timed or any(s.seconds or s.rates for s in timed):
        return
    epochs = timed[0].format.epochs
    name, what = ("--warmup-epochs", "epochs") if epochs else ("--warmup-steps", "steps")
    value = reading.warmup_epochs if epochs else reading.warmup_steps
    raise UserError(f"{name} {value} leaves none of the {timed[0].num_steps} {what} of the log; give fewer")


def _check_place(path: Path, record: RunRecord, force: bool) -> None:
    there = load_record(path)
    if there.provenance.source == "dist3dgs":
        raise UserError(
            f"{path} is the record of a run of our own; import under another --strategy or --repeat"
        )
    digests = there.provenance.evidence_sha256.values()
    if not force and not set(digests) & set(record.provenance.evidence_sha256.values()):
        raise UserError(
            f"{path} is the record of other logs ({', '.join(there.provenance.evidence_sha256) or 'unknown'}); "
            f"import as --repeat r{_free_repeat(path.parent)}, or in its place with --force"
        )


def _free_repeat(folder: Path) -> int:
    """Return the first number from this repeat's on that has no record."""
    number = int(folder.name[1:])
    while folder.with_name(f"r{number}").joinpath("record.json").exists():
        number += 1
    return number


def _record(
    point: Point, found: Scan, summary: LogSummary, verdict: Diagnosis, reading: Reading
) -> RunRecord:
    status, failure, reasons = verdict.status, verdict.failure(), {}
    if status == "unknown" and _is_whole_table(summary):
        status, failure = "ok", None
        reasons["status"] = (
            "a table of epochs alone: those it has are whole, whether more were asked for it does not say"
        )
    images = _images(found, summary, reading.batch(point.layout.world_size))
    seed = found.facts.get("seed")
    devices = _devices(found, summary, point.layout.world_size, reading)
    metrics, wrong = _metrics(summary, images, reading, point.layout.world_size)
    return RunRecord(
        run=Run(
            scene=point.scene, strategy=point.strategy, layout=str(point.layout), repeat=point.repeat, seed=seed,
            settings=_settings(found, summary) | _read_as(summary, reading),
        ),
        status=status,
        failure=_portable(failure),
        metrics=metrics,
        reasons=_reasons(summary, images) | reasons | wrong,
        environment=Environment(hosts=summary.nodes, devices=devices),
        provenance=Provenance(
            slurm_job_id=summary.job_id, source="imported", started_at=summary.started_at,
            finished_at=_finished_at(summary), evidence_sha256=_digests(summary),
        ),
    )  # fmt: skip


def _digests(s: LogSummary) -> dict[str, str]:
    there = [Path(f.path) for f in s.files if f.format not in ("missing", "unreadable")]
    return {path.name: sha256(path) for path in there}


def _portable(failure: Failure | None) -> Failure | None:
    """Cite evidence by file name alone: the folder is one machine's."""
    if failure is None:
        return None
    evidence = [Evidence(file=Path(e.file).name, line=e.line, text=e.text) for e in failure.evidence]
    return failure.model_copy(update={"evidence": evidence})


def _settings(found: Scan, s: LogSummary) -> dict[str, object]:
    """Collect the program's settings as far as the log states them."""
    stated = {
        "trainer": s.trainer, "method": found.facts.get("method"), "steps": s.iterations_asked or s.iterations,
        "devices": s.devices_used,
    }  # fmt: skip
    return {name: value for name, value in stated.items() if value is not None} if s.trainer else {}


def _is_whole_table(s: LogSummary) -> bool:
    """Return True if there is only a table with a time for every epoch, which does not state how a job ended."""
    formats = {f.format for f in s.files if f.format not in ("missing", "empty")}
    return "metrics.csv" in formats and formats <= _TABLES and s.epoch_s is not None


def _read_as(s: LogSummary, reading: Reading) -> dict[str, object]:
    per_epoch = s.epoch_s is not None or any(r.per_epoch for r in s.throughput)
    return ({"epoch_statistic": reading.epochs} if per_epoch else {}) | reading.settings()


def _images(found: Scan, s: LogSummary, batch: int | None) -> int | None:
    """Return the training images seen, if the trainer or a flag states how many a step takes."""
    if batch is not None:
        return None if s.iterations is None else batch * s.iterations
    per_step = found.facts.get("images_per_step")
    if per_step is None or s.iterations is None or s.devices_used is None:
        return None
    return per_step * s.iterations * s.devices_used


def _reasons(s: LogSummary, images: int | None) -> dict[str, str]:
    reasons = dict(s.reasons)
    if images is None:
        reasons["images"] = "the log does not say how many images a step takes"
    if s.started_at is None:
        reasons["started_at"] = "no line has a date and a time of day"
    return reasons


def _finished_at(s: LogSummary) -> float | None:
    return None if s.started_at is None or s.total_s is None else s.started_at + s.total_s


def _images_per_s(
    s: LogSummary, images: int | None, batch: int | None, epochs: EpochStatistic
) -> float | None:
    rate = next((r for unit in _IMAGE_RATES for r in s.throughput if r.unit == unit), None)
    if rate is not None:
        return float(getattr(rate, epochs)) if rate.per_epoch else rate.mean
    if images and (stepping := s.phases_s.get("stepping")):
        return images / stepping
    per_step = s.step_s if s.step_s_kind != "per epoch" else None
    return batch / per_step.mean if batch and per_step is not None and per_step.mean > 0 else None


def _metrics(
    s: LogSummary, images: int | None, reading: Reading, world_size: int
) -> tuple[Metrics, dict[str, str]]:
    phases: dict[str, float] = {}
    for name, seconds in s.phases_s.items():
        name = PHASES.get(name, name)
        phases[name] = phases.get(name, 0.0) + seconds
    per_step = s.step_s if s.step_s_kind != "per epoch" else None
    stepping = s.phases_s.get("stepping")
    values = dict(
        total_s=s.total_s,
        train_s=stepping,
        phases_s=phases,
        steps=s.iterations,
        step_s=per_step,
        steps_per_s=1 / per_step.mean if per_step is not None and per_step.mean > 0 else None,
        images=images,
        images_per_s=_images_per_s(s, images, reading.batch(world_size), reading.epochs),
        peak_host_gib=s.host_peak_gib,
        peak_gpu_gib=s.gpu_peak_gib,
        num_gaussians=s.num_gaussians,
        psnr=s.quality.get("psnr"),
        ssim=s.quality.get("ssim"),
        lpips=s.quality.get("lpips"),
        loss=s.quality.get("loss"),
        train_accuracy=s.quality.get("train_accuracy"),
        accuracy=s.quality.get("accuracy"),
        epochs=s.epochs,
        epoch_s=None if s.epoch_s is None else getattr(s.epoch_s, reading.epochs),
        gpus=[_gpu(g, s.total_s) for g in s.gpus],
        ranks=[RankMetrics(rank=r) for r in range(min(s.devices_used or 0, 4096))],
    )  # fmt: skip
    return Metrics.known(values)


def _gpu(g: GpuUse, total_s: float | None) -> GpuTotals:
    power = g.power_average_w
    return GpuTotals(
        gpu=g.gpu,
        memory_peak_gib=g.memory_peak_gib,
        memory_average_gib=g.memory_average_gib,
        memory_mode_gib=g.memory_mode_gib,
        utilisation_average_percent=g.utilisation_average_percent,
        power_average_w=power,
        energy_wh=power * total_s / 3600 if power is not None and total_s is not None else None,
    )


def _devices(found: Scan, s: LogSummary, world: int, reading: Reading) -> list[str]:
    """Return names as nvidia-smi or a flag gave them; `GPU` where the log only says that they are."""
    if named := [g.name for g in s.gpus if g.name]:
        return named
    kind = found.facts.get("device_type")
    on_gpu = s.devices_asked is not None or kind == "cuda" or (s.trainer in GPU_TRAINERS and kind is None)
    name = reading.device or ("GPU" if on_gpu or s.gpu_peak_gib is not None else None)
    return [name] * min(s.devices_used or s.devices_asked or world, 4096) if name else []
