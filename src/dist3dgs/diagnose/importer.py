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
    Metrics,
    Provenance,
    RankMetrics,
    Run,
    RunRecord,
)
from .scan import Scan, scan
from .summary import LogSummary, summarise
from .verdict import Diagnosis, judge

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
    results: Path = Path("results"),
) -> tuple[RunRecord, Path]:  # fmt: skip
    """Record of one job from its logs and where it belongs.

    Raises `UserError` for a bad name, logs that cannot be read, or a record of one of our own runs in the same place.
    """
    point = Point.parse(scene, strategy, layout, repeat)
    path = point.folder(Path(results)) / "record.json"
    if path.exists():
        from ..record import load_record

        if load_record(path).provenance.source == "dist3dgs":
            raise UserError(
                f"{path} is the record of a run of our own; import under another --strategy or --repeat"
            )
    found = scan(paths)
    summary = summarise(found)
    verdict = judge(found, summary, {"devices_asked": point.layout.world_size})
    return _record(point, found, summary, verdict), path


def _record(point: Point, found: Scan, summary: LogSummary, verdict: Diagnosis) -> RunRecord:
    failure = verdict.failure()
    seed = found.facts.get("seed")
    return RunRecord(
        run=Run(
            scene=point.scene, strategy=point.strategy, layout=str(point.layout), repeat=point.repeat, seed=seed,
            settings={"steps": summary.iterations_asked, "trainer": summary.trainer} if summary.trainer else {},
        ),
        status=verdict.status,
        failure=_portable(failure),
        metrics=_metrics(summary),
        reasons=summary.reasons,
        environment=Environment(hosts=summary.nodes, devices=_devices(summary)),
        provenance=Provenance(
            slurm_job_id=summary.job_id, source="imported", started_at=None, evidence_sha256=_digests(summary),
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


def _metrics(s: LogSummary) -> Metrics:
    phases: dict[str, float] = {}
    for name, seconds in s.phases_s.items():
        name = PHASES.get(name, name)
        phases[name] = phases.get(name, 0.0) + seconds
    per_step = s.step_s if s.step_s_kind != "per epoch" else None
    images = next((r.mean for r in s.throughput if r.unit == "img/s"), None)
    return Metrics(
        total_s=s.total_s,
        train_s=s.phases_s.get("stepping"),
        phases_s=phases,
        steps=s.iterations,
        step_s=per_step,
        steps_per_s=1 / per_step.mean if per_step is not None and per_step.mean > 0 else None,
        images_per_s=images,
        peak_host_gib=s.host_peak_gib,
        peak_gpu_gib=s.gpu_peak_gib,
        num_gaussians=s.num_gaussians,
        psnr=s.quality.get("psnr"),
        ssim=s.quality.get("ssim"),
        lpips=s.quality.get("lpips"),
        ranks=[RankMetrics(rank=r) for r in range(min(s.devices_used or 0, 4096))],
    )  # fmt: skip


def _devices(s: LogSummary) -> list[str]:
    return [g.name for g in s.gpus if g.name]
