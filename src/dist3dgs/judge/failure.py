"""Status and, where it is not ok, the root cause: the rank that failed first, not the ranks that noticed."""

import math
import re
from collections.abc import Sequence
from typing import Any

from ..diagnose import diagnose
from ..diagnose.rules import classify, remedy
from ..errors import UserError
from ..record import Evidence, Failure, Status
from .case import Case
from .silence import no_progress

#: What mends a run that the scheduler ended, when no further attempt followed: the rule that says so.
_ENDED_RULES = {
    "time_limit": "time-limit",
    "host_oom": "oom-killer",
    "node_failure": "node-lost",
    "cancelled": "cancelled",
    "submission_rejected": "submission-refused",
}
#: Whose settings the remedies name.
_OURS = "dist3dgs"

#: What a rank says when another one has gone.
_NOTICED = re.compile(
    r"connection (reset|closed)|closed by peer|broken pipe|remote (worker|process)", re.IGNORECASE
)
#: What NCCL's watchdog says on a rank that waited, before it aborts the process.
_WATCHDOG = re.compile(r"\bRank (\d+)\]\s+Watchdog caught collective operation timeout")


def _tells_of_a_kill(line: str) -> bool:
    return "exitcode" in line and "-9" in line


def verdict(case: Case) -> tuple[Status, Failure | None]:
    """ok; degraded where not all it was given was used; failed with the root cause."""
    world = case.world_size
    if case.launch.get("status") == "ok":
        joined = {e["rank"] for e in case.of_kind("start")}
        devices = {
            (e.get("host"), e.get("device")) for e in case.of_kind("start") if e.get("device") != "cpu"
        }
        given = max((e.get("visible_devices") or 0 for e in case.of_kind("start")), default=0)
        idle = bool(devices) and given > world // max(1, len({host for host, _ in devices}))
        if len(joined) < world or (devices and len(devices) < world) or idle:
            used = len(devices) or len(joined)
            text = f"{world} workers asked for by {case.spec['layout']}, {used} in use"
            text += f", {given} devices given on a node" if idle else ""
            files = [p.name for p in case.last.event_files()] or ["launch.json"]
            evidence = [Evidence(file=case.name(files[0]), line=None, text=text)]
            if warning := case.launch.get("world_warning"):
                evidence.insert(0, Evidence(file=case.name("train.log"), line=1, text=warning))
            return "degraded", Failure(
                cause="allocation_mismatch",
                phase="startup",
                evidence=evidence,
                remedy=remedy("duplicate-gpu", _OURS),
            )
        return "ok", None
    return "failed", failure(case)


def failure(case: Case) -> Failure:
    first = _first_error(case)
    phase, step, rank = _where(case, first)
    chosen = _own_words(case, first, phase)
    rank = rank if rank is not None else chosen.rank
    return chosen.model_copy(
        update={
            "phase": chosen.phase or phase,
            "step": chosen.step if chosen.step is not None else step,
            "rank": rank,
            "node": chosen.node or _node(case, rank),
        }
    )


def _node(case: Case, rank: int | None) -> str | None:
    """Where a rank ran; of a run on one host that host, whichever rank it was."""
    hosts = {e["rank"]: e.get("host") for e in case.of_kind("start")}
    if rank in hosts:
        return hosts[rank]
    return next(iter(hosts.values())) if len(set(hosts.values())) == 1 else None


def _first_error(case: Case) -> dict[str, Any] | None:
    """The error that came first, not those of ranks which noticed that another was gone."""
    errors = sorted(case.of_kind("error"), key=lambda e: e["t"])
    own = [e for e in errors if not _NOTICED.search(str(e.get("message")))]
    if errors and not own and case.line_with(_tells_of_a_kill):
        return None  # a rank that could not write an event any more was first
    first = own or errors
    return first[0] if first else None


def _where(case: Case, error: dict[str, Any] | None) -> tuple[str, int | None, int | None]:
    """Phase, step and rank of the failure; without an error event, of the rank that fell silent first."""
    rank = _silent_rank(case, error)
    noticed = error or next(iter(sorted(case.of_kind("error"), key=lambda e: e["t"])), None)
    if rank is not None and noticed is not None:
        # Nobody knows better how far the one got that fell silent than those who worked in step with it.
        return _open_phase(case, rank), noticed.get("step"), rank
    if error is not None and error.get("phase"):
        return error["phase"], error.get("step"), error["rank"]
    if rank is not None:
        return _open_phase(case, rank), case.last_step, rank
    if not case.events:
        return "startup", None, None
    last_seen: dict[int, float] = {}
    for e in case.events:
        last_seen[e["rank"]] = e["t"]
    steps = [e["step"] for e in case.of_kind("step")]
    return _open_phase(case, 0), (steps[-1] if steps else None), None


def _silent_rank(case: Case, error: dict[str, Any] | None) -> int | None:
    """The rank that was killed, or that the others waited for in vain, if that was the failure.

    Where NCCL aborted those who waited, its watchdog's lines name them.
    """
    started = {e["rank"]: e.get("pid") for e in case.of_kind("start")}
    if error is not None and error["type"] == "CollectiveTimeout":
        # All who wait for it give up before it is heard of again, if it ever is (woken up to write its stacks).
        heard = {e["rank"]: e["t"] for e in reversed(case.of_kind("error"))}
        return max(started, key=lambda r: heard.get(r, math.inf), default=None)
    if error is None and (waited := case.matches(_WATCHDOG)):
        return min(started.keys() - {int(rank) for rank in waited}, default=None)
    killed = case.line_with(_tells_of_a_kill) if error is None else None
    pid = re.search(r"pid: (\d+)", killed[1]) if killed else None
    return next((r for r, p in started.items() if pid and p == int(pid[1])), None)


def _open_phase(case: Case, rank: int) -> str:
    """Return the innermost phase that the rank was in when it failed.

    A rank that was told to stop leaves all phases in order: then the one in which the signal reached it, else the one
    it left last.
    """
    stack, last = ["startup"], "startup"
    at_signal: str | None = None
    for e in case.events:
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


def _own_words(case: Case, error: dict[str, Any] | None, phase: str) -> Failure:
    log = case.name("train.log")
    ended = case.launch.get("ended")
    if (still := no_progress(case)) is not None:
        return still
    if ended and ended.get("cause"):  # killed or stopped from outside: the scheduler's own words
        evidence = [Evidence(file=case.name("launch.json"), text=ended["note"])]
        rule = _ENDED_RULES.get(ended["cause"])
        what_to_do = remedy(rule, _OURS) if rule else case.launch.get("closing_note")
        return Failure(cause=ended["cause"], phase=phase, evidence=evidence, remedy=what_to_do)
    if case.launch.get("refused"):
        evidence = [Evidence(file=log, line=1, text=case.launch["refused"])]
        mend = remedy("duplicate-gpu", _OURS)
        return Failure(cause="allocation_mismatch", phase="startup", evidence=evidence, remedy=mend)
    if error is not None:
        return _by_rule(case, error, phase)
    if (full := case.launch.get("disk_full")) is not None:  # no rank could write what became of it
        return _named(full, Evidence(file=case.name("launch.json"), text=full), phase)
    if case.launch.get("status") == "stopped":
        text = f"stopped by {case.launch.get('signal') or 'a signal'}"
        evidence = [Evidence(file=case.name("launch.json"), text=text)]
        note = "nothing to mend; the next attempt resumes from the last checkpoint"
        return Failure(cause="cancelled", phase=phase, evidence=evidence, remedy=note)
    killed = case.line_with(_tells_of_a_kill)
    if killed or case.launch.get("returncode") in (-9, 137):
        number, text = killed or (None, f"exit status {case.launch.get('returncode')}")
        evidence = [Evidence(file=log, line=number, text=text)]
        mend = remedy("killed-by-signal", _OURS)
        return Failure(cause="killed", phase=phase, evidence=evidence, remedy=mend)
    if (said := _by_log(case, phase)) is not None:
        return said
    text = f"exit status {case.launch.get('returncode')} and no error event"
    evidence = [Evidence(file=case.name("launch.json"), text=text)]
    return Failure(cause="unknown", phase=phase, evidence=evidence, remedy=f"read {case.last.log_path}")


def _by_log(case: Case, phase: str) -> Failure | None:
    """What the ranks and torchrun printed, where no rank came so far as to write an event; None if it says nothing."""
    try:
        verdict = diagnose(
            [case.last.log_path], {"own_run": True, "exit_code": case.launch.get("returncode")}
        )
    except UserError:
        return None
    found = verdict.failure()
    if found is None or found.cause == "unknown":
        return None
    evidence = [e.model_copy(update={"file": case.name("train.log")}) for e in found.evidence]
    # How far the ranks got their events know better than a reader of the log.
    where = phase if case.events else found.phase or phase
    return found.model_copy(update={"evidence": evidence, "phase": where})


def _by_rule(case: Case, error: dict[str, Any], phase: str) -> Failure:
    """An error event, named by the table of rules that foreign logs are judged by too."""
    text = f"{error['type']}: {error['message']}"
    evidence = case.evidence_of(error, text)
    return _named(text, evidence, phase, str(error.get("traceback") or "").splitlines(), case.last_step)


def _named(
    text: str, evidence: Evidence, phase: str, traceback: Sequence[str] = (), steps: int = 0
) -> Failure:
    rule = classify(text, traceback, steps)
    if rule is None:
        what = "read the traceback in train.log"
        return Failure(cause="code_error", phase=phase, evidence=[evidence], remedy=what)
    return Failure(cause=rule.cause, phase=phase, evidence=[evidence], remedy=rule.remedy_for(_OURS, text))
