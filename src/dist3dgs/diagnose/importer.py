"""Foreign logs become records, which stand in tables and figures beside our own runs."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import sha256
from ..names import Point
from ..record import (
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
from .jobs import by_job
from .machines import GpuUse
from .scan import Scan, scan
from .summary import LogSummary, summarise
from .verdict import Diagnosis, judge

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


def import_record(
    paths: Sequence[Path | str], *, scene: str, layout: str, strategy: str = "imported", repeat: str = "r0",
    results: Path = Path("results"), force: bool = False,
) -> tuple[RunRecord, Path]:  # fmt: skip
    """Record of one job from its logs and where it belongs.

    Raises `UserError` for a bad name, logs that cannot be read or have nothing in them, files of several jobs, a record
    of one of our own runs in the same place, and, unless `force`, for a layout that the log contradicts or another
    log's record in the same place.
    """
    point = Point.parse(scene, strategy, layout, repeat)
    path = point.folder(Path(results)) / "record.json"
    if len(jobs := by_job([Path(p) for p in paths])) > 1:
        first = " ".join(map(str, jobs[0]))
        raise UserError(
            f"these are logs of {len(jobs)} jobs; import one at a time, e.g.: dist3dgs import {first}"
        )
    found = scan(paths)
    if all(f.format in ("empty", "missing") for f in found.files):
        raise UserError(
            f"{found.files[0].path}: nothing is written in it, so there is nothing to make a record of"
        )
    summary = summarise(found)
    if not force:
        _check_layout(point, summary)
    verdict = judge(found, summary, {"devices_asked": point.layout.world_size})
    record = _record(point, found, summary, verdict)
    if path.exists():
        _check_place(path, record, force)
    return record, path


def _check_layout(point: Point, s: LogSummary) -> None:
    """A record in the wrong place would count as another size's."""
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
    """The first number from this repeat's on that has no record."""
    number = int(folder.name[1:])
    while folder.with_name(f"r{number}").joinpath("record.json").exists():
        number += 1
    return number


def _record(point: Point, found: Scan, summary: LogSummary, verdict: Diagnosis) -> RunRecord:
    failure = verdict.failure()
    images = _images(found, summary)
    seed = found.facts.get("seed")
    metrics, wrong = _metrics(summary, images)
    return RunRecord(
        run=Run(
            scene=point.scene, strategy=point.strategy, layout=str(point.layout), repeat=point.repeat, seed=seed,
            settings=_settings(found, summary),
        ),
        status=verdict.status,
        failure=_portable(failure),
        metrics=metrics,
        reasons=_reasons(summary, images) | wrong,
        environment=Environment(hosts=summary.nodes, devices=_devices(found, summary, point.layout.world_size)),
        provenance=Provenance(
            slurm_job_id=summary.job_id, source="imported", started_at=summary.started_at,
            finished_at=_finished_at(summary), evidence_sha256=_digests(summary),
        ),
    )  # fmt: skip


def _digests(s: LogSummary) -> dict[str, str]:
    there = [Path(f.path) for f in s.files if f.format not in ("missing", "unreadable")]
    return {path.name: sha256(path) for path in there}


def _portable(failure: Failure | None) -> Failure | None:
    """Evidence by file name alone: the folder is one machine's."""
    if failure is None:
        return None
    evidence = [Evidence(file=Path(e.file).name, line=e.line, text=e.text) for e in failure.evidence]
    return failure.model_copy(update={"evidence": evidence})


def _settings(found: Scan, s: LogSummary) -> dict[str, object]:
    """What the log states of how the program was set."""
    stated = {
        "trainer": s.trainer, "method": found.facts.get("method"), "steps": s.iterations_asked or s.iterations,
        "devices": s.devices_used,
    }  # fmt: skip
    return {name: value for name, value in stated.items() if value is not None} if s.trainer else {}


def _images(found: Scan, s: LogSummary) -> int | None:
    """Training images seen, where the trainer says how many a step takes on each device."""
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


def _metrics(s: LogSummary, images: int | None) -> tuple[Metrics, dict[str, str]]:
    phases: dict[str, float] = {}
    for name, seconds in s.phases_s.items():
        name = PHASES.get(name, name)
        phases[name] = phases.get(name, 0.0) + seconds
    per_step = s.step_s if s.step_s_kind != "per epoch" else None
    stepping = s.phases_s.get("stepping")
    rate = next((r.mean for r in s.throughput if r.unit == "img/s"), None)
    if rate is None and images and stepping:
        rate = images / stepping
    values = dict(
        total_s=s.total_s,
        train_s=stepping,
        phases_s=phases,
        steps=s.iterations,
        step_s=per_step,
        steps_per_s=1 / per_step.mean if per_step is not None and per_step.mean > 0 else None,
        images=images,
        images_per_s=rate,
        peak_host_gib=s.host_peak_gib,
        peak_gpu_gib=s.gpu_peak_gib,
        num_gaussians=s.num_gaussians,
        psnr=s.quality.get("psnr"),
        ssim=s.quality.get("ssim"),
        lpips=s.quality.get("lpips"),
        loss=s.quality.get("loss"),
        accuracy=s.quality.get("accuracy", s.quality.get("train_accuracy")),
        epochs=s.epochs,
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


def _devices(found: Scan, s: LogSummary, world: int) -> list[str]:
    """Names as nvidia-smi gave them; `GPU` where the log only says that they are."""
    named = [g.name for g in s.gpus if g.name]
    kind = found.facts.get("device_type")
    on_gpu = s.devices_asked is not None or kind == "cuda" or (s.trainer in GPU_TRAINERS and kind is None)
    return named or (["GPU"] * min(s.devices_used or s.devices_asked or world, 4096) if on_gpu else [])
