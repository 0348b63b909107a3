"""Find the status and root cause of our own runs: the rank that failed first, not those that noticed."""

import math
import re
from typing import Any

from ..diagnosis import diagnose
from ..diagnosis.hang import patience_s
from ..diagnosis.own_run import judge_error
from ..diagnosis.rules import Hit, error_hit, remedy
from ..errors import UserError
from ..logs.facts import Line
from ..runs.events import PROGRESS
from ..runs.launch_summary import Ended
from ..runs.record import Evidence, Failure, Status
from .evidence import RunEvidence

#: Rules whose remedy applies to a run that the scheduler ended for good.
_ENDED_RULES = {
    "time_limit": "time-limit",
    "host_oom": "oom-killer",
    "node_failure": "node-lost",
    "cancelled": "cancelled",
    "submission_rejected": "submission-refused",
}
#: Ends from outside that a hanging run comes to.
_STOPS = ("time_limit", "cancelled")
#: Remedies name our own settings.
_OURS = "dist3dgs"

#: Errors of a rank whose peer has gone.
_NOTICED = re.compile(
    r"connection (reset|closed)|closed by peer|broken pipe|remote (worker|process)", re.IGNORECASE
)
#: NCCL's watchdog on a rank that waited, before it aborts the process.
_WATCHDOG = re.compile(r"\bRank (\d+)\]\s+Watchdog caught collective operation timeout")


def _reports_sigkill(line: str) -> bool:
    return "exitcode" in line and "-9" in line


def verdict(run: RunEvidence) -> tuple[Status, Failure | None]:
    """Return ok; degraded if it left devices of its allocation idle; failed with the root cause."""
    world = run.world_size
    if run.summary.status == "ok":
        joined = {e["rank"] for e in run.of_kind("start")}
        devices = {(e.get("host"), e.get("device")) for e in run.of_kind("start") if e.get("device") != "cpu"}
        given = max((e.get("visible_devices") or 0 for e in run.of_kind("start")), default=0)
        idle = bool(devices) and given > world // max(1, len({host for host, _ in devices}))
        if len(joined) < world or (devices and len(devices) < world) or idle:
            used = len(devices) or len(joined)
            text = f"{world} workers asked for by {run.spec['layout']}, {used} in use"
            text += f", {given} devices given on a node" if idle else ""
            files = [p.name for p in run.last.event_files()] or ["launch.json"]
            evidence = [Evidence(file=run.name(files[0]), line=None, text=text)]
            if warning := run.summary.world_warning:
                evidence.insert(0, Evidence(file=run.name("train.log"), line=1, text=warning))
            return "degraded", Failure(
                cause="allocation_mismatch",
                phase="startup",
                evidence=evidence,
                remedy=remedy("duplicate-gpu", _OURS),
            )
        return "ok", None
    return "failed", failure(run)


def failure(run: RunEvidence) -> Failure:
    first = _first_error(run)
    phase, step, rank = _where(run, first)
    chosen = _explain(run, first, phase)
    rank = rank if rank is not None else chosen.rank
    return chosen.model_copy(
        update={
            "phase": chosen.phase or phase,
            "step": chosen.step if chosen.step is not None else step,
            "rank": rank,
            "node": chosen.node or _node(run, rank),
        }
    )


def _node(run: RunEvidence, rank: int | None) -> str | None:
    """Return the host of a rank; of a run on one host that host, whichever rank it was."""
    hosts = {e["rank"]: e.get("host") for e in run.of_kind("start")}
    if rank in hosts:
        return hosts[rank]
    return next(iter(hosts.values())) if len(set(hosts.values())) == 1 else None


def _first_error(run: RunEvidence) -> dict[str, Any] | None:
    """Return the first error, not those of ranks which noticed that another was gone."""
    errors = sorted(run.of_kind("error"), key=lambda e: e["t"])
    own = [e for e in errors if not _NOTICED.search(str(e.get("message")))]
    if errors and not own and run.line_with(_reports_sigkill):
        return None  # a killed rank, which could write no event, was first
    first = own or errors
    return first[0] if first else None


def _where(run: RunEvidence, error: dict[str, Any] | None) -> tuple[str, int | None, int | None]:
    """Locate the failure: phase, step and rank; without an error event, those of the rank that stopped first."""
    rank = _silent_rank(run, error)
    noticed = error or next(iter(sorted(run.of_kind("error"), key=lambda e: e["t"])), None)
    if rank is not None and noticed is not None:
        # The silent rank got as far as those that worked in step with it.
        return _open_phase(run, rank), noticed.get("step"), rank
    if error is not None and error.get("phase"):
        return error["phase"], error.get("step"), error["rank"]
    if rank is not None:
        return _open_phase(run, rank), run.last_step, rank
    if not run.events:
        return "startup", None, None
    last_seen: dict[int, float] = {}
    for e in run.events:
        last_seen[e["rank"]] = e["t"]
    steps = [e["step"] for e in run.of_kind("step")]
    return _open_phase(run, 0), (steps[-1] if steps else None), None


def _silent_rank(run: RunEvidence, error: dict[str, Any] | None) -> int | None:
    """Return the rank that was killed, or that the others waited for, if that was the failure.

    Where NCCL aborted those who waited, its watchdog's lines name them.
    """
    started = {e["rank"]: e.get("pid") for e in run.of_kind("start")}
    if error is not None and error["type"] == "CollectiveTimeout":
        # The ranks that wait time out before the silent one writes an event, if it ever does.
        heard = {e["rank"]: e["t"] for e in reversed(run.of_kind("error"))}
        return max(started, key=lambda r: heard.get(r, math.inf), default=None)
    if error is None and (waited := run.matches(_WATCHDOG)):
        return min(started.keys() - {int(rank) for rank in waited}, default=None)
    killed = run.line_with(_reports_sigkill) if error is None else None
    pid = re.search(r"pid: (\d+)", killed[1]) if killed else None
    return next((r for r, p in started.items() if pid and p == int(pid[1])), None)


def _open_phase(run: RunEvidence, rank: int) -> str:
    """Return the innermost phase that the rank was in when it failed.

    A rank that was told to stop leaves all phases in order: then the one in which the signal reached it, else the one
    it left last.
    """
    stack, last = ["startup"], "startup"
    at_signal: str | None = None
    for e in run.events:
        if e["rank"] != rank:
            continue
        if e["event"] == "enter":
            stack.append(e["phase"])
        elif e["event"] == "leave" and stack and e["phase"] in stack:
            last = e["phase"]
            del stack[len(stack) - 1 - stack[::-1].index(last) :]
            if last == "startup":
                stack.clear()
        elif e["event"] == "signal" and at_signal is None:
            at_signal = stack[-1] if stack else last
    return stack[-1] if stack else at_signal or last


def _explain(run: RunEvidence, error: dict[str, Any] | None, phase: str) -> Failure:
    log = run.name("train.log")
    ended = run.summary.ended
    if (still := _no_progress(run)) is not None:
        return still
    if ended and ended.cause:  # killed or stopped from outside, as the scheduler states it
        evidence = [Evidence(file=run.name("launch.json"), text=ended.note or "")]
        rule = _ENDED_RULES.get(ended.cause)
        what_to_do = remedy(rule, _OURS) if rule else run.summary.closing_note
        return Failure(cause=ended.cause, phase=phase, evidence=evidence, remedy=what_to_do)
    if run.summary.refused:
        evidence = [Evidence(file=log, line=1, text=run.summary.refused)]
        what = remedy("duplicate-gpu", _OURS)
        return Failure(cause="allocation_mismatch", phase="startup", evidence=evidence, remedy=what)
    if error is not None:
        return _by_rule(run, error, phase)
    if (full := run.summary.disk_full) is not None:  # no rank could write an event
        hit = error_hit(Line("", None, full), (), 0)
        return _of_hit(hit, Evidence(file=run.name("launch.json"), text=full), phase)
    if run.summary.status == "stopped":
        text = f"stopped by {run.summary.signal or 'a signal'}"
        evidence = [Evidence(file=run.name("launch.json"), text=text)]
        note = "nothing to do; the next attempt resumes from the last checkpoint"
        return Failure(cause="cancelled", phase=phase, evidence=evidence, remedy=note)
    killed = run.line_with(_reports_sigkill)
    if killed or run.summary.returncode in (-9, 137):
        number, text = killed or (None, f"exit status {run.summary.returncode}")
        evidence = [Evidence(file=log, line=number, text=text)]
        what = remedy("killed-by-signal", _OURS)
        return Failure(cause="killed", phase=phase, evidence=evidence, remedy=what)
    if (said := _by_log(run, phase)) is not None:
        return said
    text = f"exit status {run.summary.returncode} and no error event"
    evidence = [Evidence(file=run.name("launch.json"), text=text)]
    return Failure(cause="unknown", phase=phase, evidence=evidence, remedy=f"read {run.last.log_path}")


def _by_log(run: RunEvidence, phase: str) -> Failure | None:
    """Judge the output of ranks and torchrun where no rank wrote an `error` event; None if it proves nothing."""
    try:
        verdict = diagnose([run.last.log_path], {"own_run": True, "exit_code": run.summary.returncode})
    except UserError:
        return None
    found = verdict.failure()
    if found is None or found.cause == "unknown":
        return None
    evidence = [e.model_copy(update={"file": run.name("train.log")}) for e in found.evidence]
    # Events locate the failure better than the log.
    where = phase if run.events else found.phase or phase
    return found.model_copy(update={"evidence": evidence, "phase": where})


def _by_rule(run: RunEvidence, error: dict[str, Any], phase: str) -> Failure:
    """Judge an error event by the table of rules."""
    cited = run.evidence_of(error)
    hit = judge_error(error, Line(cited.file, cited.line, cited.text), run.last_step)
    return _of_hit(hit, cited, phase)


def _of_hit(hit: Hit | None, cited: Evidence, phase: str) -> Failure:
    if hit is None:
        what = "read the traceback in train.log"
        return Failure(cause="code_error", phase=phase, evidence=[cited], remedy=what)
    shown = cited.model_copy(update={"text": hit.line.text})
    what = hit.rule.remedy_for(_OURS, hit.line.text)
    return Failure(cause=hit.rule.cause, phase=phase, evidence=[shown], remedy=what)


def _no_progress(run: RunEvidence) -> Failure | None:
    """Return the failure of a run that hung before it was stopped from outside; else None (`hang.patience_s`).

    A run that the launcher ended because no event came for twice the collectives' timeout hung too.
    """
    ended = run.summary.ended or Ended()
    end_t = ended.at or run.summary.finished_at
    stalled = bool(run.summary.stalled) and not run.of_kind("error")
    if end_t is None or not (stalled or ended.cause in _STOPS):
        return None
    if not run.events:
        return _never_began(run, end_t) if stalled else None
    progress = [e for e in run.events if e["event"] in PROGRESS]
    last = progress[-1] if progress else run.events[-1]
    silence_s = end_t - last["t"]
    if not stalled and silence_s < patience_s(_step_s(progress) if progress else None):
        return None
    what = f"no event after it for {silence_s:.0f} s, until {ended.note or 'the launcher ended the run'}"
    return Failure(
        cause="no_progress",
        step=last.get("step") if isinstance(last.get("step"), int) else None,
        evidence=[
            run.evidence_of(last),
            Evidence(file=run.name("launch.json"), text=what),
        ],
        remedy=remedy("no-step", _OURS),
    )


def _never_began(run: RunEvidence, end_t: float) -> Failure:
    """Describe ranks that never wrote an event: a slow file system, or an overloaded node."""
    began = run.summary.started_at or end_t
    text = f"no event at all in {end_t - began:.0f} s, until the launcher ended the run"
    evidence = [Evidence(file=run.name("launch.json"), text=text)]
    return Failure(cause="no_progress", phase="startup", evidence=evidence, remedy=remedy("no-step", _OURS))


def _step_s(progress: list[dict[str, Any]]) -> float:
    return max((e["step_s"] for e in progress if isinstance(e.get("step_s"), int | float)), default=0.0)
