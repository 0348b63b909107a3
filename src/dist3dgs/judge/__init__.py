"""From evidence to verdict: what the attempts of one point left behind becomes its record.

Fast and without torch, so that all runs can be judged again whenever the judge gets better.
"""

from pathlib import Path
from typing import Any

from ..evidence import Attempt
from ..files import sha256
from ..record import Cause, EarlierAttempt, Environment, Provenance, Run, RunRecord
from .case import Case
from .failure import failure, verdict
from .measure import measure

__all__ = ["Case", "cause_of", "judge", "verdict"]


def judge(launch_json: Path) -> RunRecord:
    """Make the record of the point whose `launch.json` this is. Raises `UserError` if it cannot be read."""
    case = Case.of(launch_json)
    metrics, reasons = measure(case)
    shared, neighbours, why = _co_tenancy(case)
    if shared is None:
        reasons["nodes_shared"] = why
    status, found = verdict(case)
    names = ("scene", "strategy", "layout", "repeat", "seed")
    return RunRecord(
        run=Run(**{k: case.spec[k] for k in names}, settings=case.spec),
        status=status,
        failure=found,
        metrics=metrics,
        reasons=reasons,
        earlier=[_earlier(case, attempt) for attempt in case.earlier],
        environment=_environment(case).model_copy(update={"nodes_shared": shared, "neighbours": neighbours}),
        provenance=_provenance(case),
    )


def cause_of(launch: dict[str, Any], attempt: Attempt) -> Cause:
    """The cause of an attempt that has just failed, for the decision whether to try again."""
    return failure(Case(launch, launch["spec"], [attempt])).cause


def _earlier(case: Case, attempt: Attempt) -> EarlierAttempt:
    """What became of an attempt that was followed by another."""
    launch = attempt.launch()
    alone = Case(launch, case.spec, [attempt])
    last_t = max((e["t"] for e in alone.events if isinstance(e.get("t"), int | float)), default=None)
    return EarlierAttempt(
        attempt=attempt.number,
        started_at=launch.get("started_at"),
        finished_at=launch.get("finished_at") or (launch.get("ended") or {}).get("at") or last_t,
        failure=None if launch.get("status") == "ok" else failure(alone),
    )


def _co_tenancy(case: Case) -> tuple[bool | None, dict[str, list[str]], str]:
    """Whether other jobs were on the run's nodes, in any attempt that it continues; which; why that is not known."""
    launches = [case.launch if a == case.last else a.launch() for a in case.story]
    told = [launch.get("co_tenancy") or {} for launch in launches]
    jobs: dict[str, set[str]] = {}
    for facts in told:
        for node, ids in (facts.get("jobs") or {}).items():
            jobs.setdefault(node, set()).update(ids)
    if any(facts.get("shared") for facts in told):
        return True, {node: sorted(ids) for node, ids in sorted(jobs.items())}, ""
    if not case.launch.get("slurm"):
        return None, {}, "not a Slurm job: what else ran on the machine was not looked at"
    return told[-1].get("shared"), {}, told[-1].get("reason") or "the launcher did not live to say"


def _environment(case: Case) -> Environment:
    starts = sorted(case.of_kind("start"), key=lambda e: e["rank"])
    versions = dict(starts[0].get("versions", {})) if starts else {}
    return Environment(
        hosts=sorted({e["host"] for e in starts if e.get("host")}) or [case.launch["host"]],
        devices=[e.get("device_name") or e.get("device") or "unknown" for e in starts],
        cpu=case.launch.get("cpu"),
        cores=case.launch.get("cores"),
        driver=case.launch.get("driver"),
        python=case.launch.get("python"),
        versions=versions,
    )


def _provenance(case: Case) -> Provenance:
    scene_digest = next((e["digest"] for e in case.events if e["event"] == "scene"), None)
    files = [
        case.last.launch_path,
        *case.last.event_files(),
        case.last.log_path,
        *case.last.resources_paths(),
    ]
    slurm = case.launch.get("slurm") or {}
    return Provenance(
        git_sha=case.launch.get("git_sha"),
        git_dirty=case.launch.get("git_dirty"),
        code_digest=case.launch.get("code_digest"),
        scene_digest=scene_digest,
        slurm_job_id=str(slurm["job_id"]) if slurm.get("job_id") else None,
        attempt=case.last.number,
        argv=[str(a) for a in case.launch.get("argv", [])],
        started_at=case.launch.get("started_at"),
        finished_at=case.launch.get("finished_at"),
        evidence_sha256={p.name: sha256(p) for p in files if p.is_file()},
    )
