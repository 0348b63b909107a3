"""Make the record of a point from the evidence of its attempts.

Fast and without torch, so that all runs can be judged again after the rules improve.
"""

from pathlib import Path
from typing import Any

from ..config.naming import COARSE, PARTS
from ..diagnosis import Diagnosis, diagnose_attempt
from ..diagnosis.rules import all_rules
from ..files import sha256
from ..runs.attempts import ATTEMPTS, Attempt, last_save
from ..runs.causes import Cause
from ..runs.launch_summary import LaunchSummary, SharedNodes
from ..runs.record import (
    EarlierAttempt,
    Environment,
    Metrics,
    Provenance,
    Run,
    RunRecord,
    load_record,
)
from ..workloads.process import output_paths
from . import jobs
from .evidence import RunEvidence
from .metrics import measure


def judge(launch_json: Path, criteria: dict[str, Any] | None = None) -> RunRecord:
    """Make the record of the point whose `launch.json` this is. Raises `UserError` if it cannot be read.

    criteria: of a workload, as the config has them now.
    """
    run = RunEvidence.of(launch_json, criteria)
    metrics, reasons, earlier = _measured(run)
    if run.parts:
        measured = {name: _measured(part)[0] for name, part in run.parts.items()}
        metrics, reasons = jobs.join(run, measured | {jobs.MERGE: metrics}, reasons)
    shared, neighbours, why = _co_tenancy(run)
    if shared is None:
        reasons["nodes_shared"] = why
    verdict = run.diagnose()
    names = ("scene", "strategy", "layout", "repeat", "seed")
    return RunRecord(
        run=Run(**{k: run.spec[k] for k in names}, settings=run.spec),
        status=verdict.status,
        failure=verdict.failure(),
        stragglers=verdict.stragglers,
        metrics=metrics,
        reasons=reasons,
        earlier=earlier,
        environment=_environment(run).model_copy(update={"nodes_shared": shared, "neighbours": neighbours}),
        provenance=_provenance(run),
    )


def _measured(run: RunEvidence) -> tuple[Metrics, dict[str, str], list[EarlierAttempt]]:
    """Return the metrics of one job, the reasons that go with them, and its earlier attempts."""
    metrics, reasons = measure(run)
    earlier = [_earlier(run, attempt) for attempt in run.earlier]
    metrics, why_lost = _with_losses(metrics, earlier)
    return metrics, reasons | why_lost, earlier


def _jobs(run: RunEvidence) -> dict[str, RunEvidence]:
    """Return the evidence of all jobs of a point by their folder in it, the last job's under an empty name."""
    return {f"{PARTS}/{name}/": part for name, part in run.parts.items()} | {"": run}


def verdict_of_run(path: Path) -> Diagnosis:
    """Return the verdict on the run, or the one attempt, whose launch.json or record.json this is.

    Raises `UserError` if it cannot be read.
    """
    if path.name == "record.json":
        record = load_record(path)
        return _diagnosis(record)
    if path.parent.parent.name == ATTEMPTS:
        return diagnose_attempt(Attempt(path.parent))
    return RunEvidence.of(path).diagnose()


def _diagnosis(record: RunRecord) -> Diagnosis:
    if record.failure is None:
        return Diagnosis(status=record.status, stragglers=record.stragglers)
    why = next((r.why for r in all_rules() if r.cause == record.failure.cause), None)
    return Diagnosis(
        status=record.status, explanation=why, stragglers=record.stragglers, **record.failure.model_dump()
    )


def cause_of(summary: LaunchSummary, attempt: Attempt) -> Cause:
    """Return the cause of an attempt that has just failed, to decide about a retry."""
    return diagnose_attempt(attempt, summary).cause or "unknown"


def _earlier(run: RunEvidence, attempt: Attempt) -> EarlierAttempt:
    """Describe the end of an attempt that was followed by another."""
    summary = attempt.summary()
    alone = RunEvidence(summary, run.spec, [attempt])
    last_t = max((e["t"] for e in alone.events if isinstance(e.get("t"), int | float)), default=None)
    start, end, lost_s = summary.started_at, summary.end_time or last_t, None
    if summary.status == "ok":
        lost_s = 0.0
    elif start is not None and end is not None:
        # What a checkpoint keeps is lost all the same if a later attempt began from zero.
        kept_until = last_save(attempt) if attempt in run.attempts else None
        lost_s = max(0.0, end - max(start, kept_until or start))
    return EarlierAttempt(
        attempt=attempt.number,
        started_at=start,
        finished_at=end,
        failure=None if summary.status == "ok" else alone.diagnose().failure(),
        lost_s=lost_s,
        lost_gpu_hours=None if lost_s is None else lost_s / 3600 * run.world_size,
    )


def _with_losses(metrics: Metrics, earlier: list[EarlierAttempt]) -> tuple[Metrics, dict[str, str]]:
    """Add what the earlier attempts lost, and a sentence that says of which; 0 without any."""
    seconds = [e.lost_s for e in earlier if e.lost_s is not None]
    hours = [e.lost_gpu_hours for e in earlier if e.lost_gpu_hours is not None]
    if len(seconds) < len(earlier):
        return metrics, {"lost_s": "start or end of an earlier attempt is not known"}
    metrics = metrics.model_copy(update={"lost_s": sum(seconds), "lost_gpu_hours": sum(hours)})
    parts = [
        f"attempt {e.attempt} ({e.failure.cause}): {e.lost_s:.1f} s"
        + (
            ", all of it"
            if e.started_at is not None and e.lost_s == (e.finished_at or 0) - e.started_at
            else ""
        )
        for e in earlier
        if e.failure is not None and e.lost_s
    ]
    return metrics, {"lost_s": "; ".join(parts)} if parts else {}


def _co_tenancy(run: RunEvidence) -> tuple[bool | None, dict[str, list[str]], str]:
    """Return True if other jobs shared the run's nodes in any of its attempts, those jobs, and why it is unknown."""
    summaries = [
        job.summary if a == job.last else a.summary() for job in _jobs(run).values() for a in job.attempts
    ]
    found = [summary.co_tenancy or SharedNodes() for summary in summaries]
    jobs: dict[str, set[str]] = {}
    for facts in found:
        for node, ids in facts.jobs.items():
            jobs.setdefault(node, set()).update(ids)
    if any(facts.shared for facts in found):
        return True, {node: sorted(ids) for node, ids in sorted(jobs.items())}, ""
    if run.summary.slurm is None:
        return None, {}, "not a Slurm job: what else ran on the machine was not looked at"
    return found[-1].shared, {}, found[-1].reason or "the launcher was killed before it could say"


def _environment(run: RunEvidence) -> Environment:
    blocks = [part for name, part in run.parts.items() if name != COARSE]
    starts = [e for job in blocks or [run] for e in sorted(job.of_kind("start"), key=lambda e: e["rank"])]
    versions = dict(starts[0].get("versions", {})) if starts else {}
    return Environment(
        hosts=sorted({e["host"] for e in starts if e.get("host")}) or [run.summary.host or "unknown"],
        devices=[e.get("device_name") or e.get("device") or "unknown" for e in starts],
        cpu=run.summary.cpu,
        cores=run.summary.cores,
        driver=run.summary.driver,
        python=run.summary.python,
        versions=versions,
    )


def _provenance(run: RunEvidence) -> Provenance:
    jobs_events = [e for job in _jobs(run).values() for e in job.events]
    scene_digest = next((e["digest"] for e in jobs_events if e["event"] == "scene"), None)
    files = {f"{folder}{p.name}": p for folder, job in _jobs(run).items() for p in _files(job.last)}
    summary = run.summary
    return Provenance(
        git_sha=summary.git_sha,
        git_dirty=summary.git_dirty,
        code_digest=summary.code_digest,
        scene_digest=scene_digest,
        slurm_job_id=str(summary.job_id) if summary.job_id else None,
        attempt=run.last.number,
        argv=summary.argv,
        started_at=summary.started_at,
        finished_at=summary.finished_at,
        evidence_sha256={name: sha256(p) for name, p in files.items() if p.is_file()},
    )


def _files(attempt: Attempt) -> list[Path]:
    """List the files that an attempt is judged by, whether they are there or not."""
    return [
        attempt.launch_path,
        *attempt.event_files(),
        attempt.log_path,
        *attempt.resources_paths(),
        *output_paths(attempt.folder),
        *attempt.flight_paths(),
    ]
