"""Make the record of a point from the evidence of its attempts.

Fast and without torch, so that all runs can be judged again after the rules improve.
"""

from pathlib import Path

from ..diagnosis import Diagnosis, diagnose_attempt
from ..diagnosis.rules import all_rules
from ..files import sha256
from ..runs.attempts import ATTEMPTS, Attempt
from ..runs.causes import Cause
from ..runs.launch_summary import LaunchSummary, SharedNodes
from ..runs.record import (
    EarlierAttempt,
    Environment,
    Provenance,
    Run,
    RunRecord,
    load_record,
)
from .evidence import RunEvidence
from .metrics import measure


def judge(launch_json: Path) -> RunRecord:
    """Make the record of the point whose `launch.json` this is. Raises `UserError` if it cannot be read."""
    run = RunEvidence.of(launch_json)
    metrics, reasons = measure(run)
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
        earlier=[_earlier(run, attempt) for attempt in run.earlier],
        environment=_environment(run).model_copy(update={"nodes_shared": shared, "neighbours": neighbours}),
        provenance=_provenance(run),
    )


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
    return EarlierAttempt(
        attempt=attempt.number,
        started_at=summary.started_at,
        finished_at=summary.end_time or last_t,
        failure=None if summary.status == "ok" else alone.diagnose().failure(),
    )


def _co_tenancy(run: RunEvidence) -> tuple[bool | None, dict[str, list[str]], str]:
    """Return True if other jobs shared the run's nodes in any of its attempts, those jobs, and why it is unknown."""
    summaries = [run.summary if a == run.last else a.summary() for a in run.attempts]
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
    starts = sorted(run.of_kind("start"), key=lambda e: e["rank"])
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
    scene_digest = next((e["digest"] for e in run.events if e["event"] == "scene"), None)
    files = [
        run.last.launch_path,
        *run.last.event_files(),
        run.last.log_path,
        *run.last.resources_paths(),
        *run.last.flight_paths(),
    ]
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
        evidence_sha256={p.name: sha256(p) for p in files if p.is_file()},
    )
