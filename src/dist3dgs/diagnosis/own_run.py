"""Turn what our launcher and ranks leave behind into hits, and locate the failure by the events.

The root cause is chosen among these hits and those of log lines alike, in `root_cause`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.naming import Layout
from ..logs.facts import Line
from ..logs.readers.events import Placed, RunEvents, time_of
from ..runs.launch_summary import FILE, Ended, LaunchSummary, load_or_empty
from ..runs.record import Evidence, HungCollective
from .hang import last_sign
from .root_cause import BY_NAME, OWN
from .rules import Hit, Rule, all_rules, error_hit, takers
from .scan import Scan

#: Causes that the scheduler or the launcher states -> the rule with the remedy.
RULE_OF_END = {
    "time_limit": "time-limit",
    "host_oom": "oom-killer",
    "node_failure": "node-lost",
    "cancelled": "cancelled",
    "submission_rejected": "submission-refused",
    "preempted": "preempted",
    "killed": "killed-by-signal",
    "unknown": "worker-failed",
}
#: NCCL's watchdog on a rank that waited, before it aborts the process.
WATCHDOG = re.compile(r"\bRank (\d+)\]\s+Watchdog caught collective operation timeout")
PID = re.compile(r"\b(?:pid|PID):? (\d+)")
SIGKILL_CODES = (-9, 137)
#: Rules of which the flight recorder knows the rank.
HANGS = ("collective-timeout", "no-step")


def is_summary(path: Path) -> bool:
    """Return True for a summary that our launcher or our judge wrote: nothing in it was printed by a job."""
    if not path.is_file():
        return False
    if path.name == FILE:
        return load_or_empty(path).spec_digest is not None
    return path.name == "record.json" and {"run", "status", "metrics"} <= _read_json(path).keys()


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def launch_context(paths: Sequence[Path]) -> dict[str, Any]:
    """Read context for `diagnose` from the launch.json among `paths`."""
    path = next((p for p in paths if p.name == FILE and is_summary(p)), None)
    return {} if path is None else context_of(load_or_empty(path), path)


def context_of(launch: LaunchSummary, path: Path) -> dict[str, Any]:
    """Return the context of an attempt: its launch.json, where that is, and the exit code in it."""
    return {
        "own_run": True,
        "launch": None if launch.is_empty else launch,
        "launch_file": str(path),
        "exit_code": launch.returncode,
    }


def add_hits(scan: Scan, context: Mapping[str, Any]) -> None:
    """Turn `error` events and the launcher's summary into hits, in order of time."""
    launch: LaunchSummary | None = context.get("launch")
    events = scan.events
    if not launch and events is not None and events.end is not None and events.end[0].get("status") == "ok":
        return
    found = [(time_of(e) or 0.0, hit) for e, line in _errors(events) if (hit := judge_error(e, line, events))]
    if launch:
        found += _of_launch(scan, launch, str(context.get("launch_file") or "launch.json"), bool(found))
        _name_sigkill(scan, launch)
    if events is not None and events.num_events and context.get("signal") == 9 and not events.errors:
        found.append((math.inf, _killed(events, context)))
    for order, (_, hit) in enumerate(sorted(found, key=lambda x: x[0])):
        hit.file_index, hit.order = OWN, order
        scan.hits.append(hit)


def _errors(events: RunEvents | None) -> list[Placed]:
    return [] if events is None else sorted(events.errors, key=lambda e: time_of(e[0]) or 0.0)


def judge_error(event: Mapping[str, Any], line: Line, events: RunEvents | None = None) -> Hit | None:
    """Find the rule that takes an `error` event (type, message, traceback) of one of our ranks; None if none does.

    Args:
        line: place of the event; its text is replaced by `TYPE: MESSAGE`.
        events: of the run, for the steps before it and the host of the rank.
    """
    text = f"{event.get('type') or 'Error'}: {event.get('message') or ''}"[:4096].strip()
    trace = str(event.get("traceback") or "")[-20_000:].splitlines()
    steps = events.furthest_step if events is not None else 0
    hit = error_hit(Line(line.file, line.number, text), trace, steps)
    if hit is None:
        return None
    hit.event = event
    hit.rank, hit.phase, hit.step = event.get("rank"), event.get("phase"), event.get("step")
    hit.node = events.hosts.get(hit.rank) if events is not None and hit.rank is not None else None
    return hit


def _killed(events: RunEvents, context: Mapping[str, Any]) -> Hit:
    """Return a hit for the SIGKILL of a rank that the caller saw."""
    last = events.last_step_line
    text = f"rank {context.get('rank')} ended by signal 9 (SIGKILL)"
    line = Line(last.file if last else "launch.json", last.number if last else None, text)
    hit = Hit(BY_NAME["killed-by-signal"], 0, line, OWN, 0)
    rank = context.get("rank")
    hit.rank = rank if isinstance(rank, int) else None
    hit.steps_before, hit.step = events.last_step, events.last_step or None
    return hit


def _of_launch(scan: Scan, launch: LaunchSummary, file: str, ranks_spoke: bool) -> list[tuple[float, Hit]]:
    """List hits with their Unix times: a refusal, an end from outside, a stall, a full disk."""
    events, ended = scan.events, launch.ended or Ended()
    finished = launch.finished_at or math.inf
    found: list[tuple[float, Hit]] = []

    def add(t: float, rule: Rule, text: str, place: Line | None = None) -> None:
        line = place or Line(file, None, text, ended.at)
        found.append((t, Hit(rule, 0, line, OWN, 0, steps_before=events.last_step if events else 0)))

    signal_t = events.signal_t() if events is not None else None
    if cause := ended.cause:
        # What came after the first rank was told to stop came of the stop.
        end_t = min(signal_t or math.inf, ended.at or finished)
        add(end_t, _rule_of_end(cause, str(ended.note)), str(ended.note))
    elif launch.status == "stopped":
        add(signal_t or finished, BY_NAME["cancelled"], f"stopped by {launch.signal or 'a signal'}")
    if refusal := launch.refused:
        log = str(Path(file).with_name("train.log"))
        add(-math.inf, BY_NAME["duplicate-gpu"], refusal, Line(log, 1, refusal))
    if launch.stalled and not ranks_spoke:
        # It began to stall before anybody stopped it.
        add(-math.inf, BY_NAME["no-step"], _stall(events, launch, ended.at or finished))
    if (full := launch.disk_full) is not None:
        hit = error_hit(Line(file, None, full), (), 0)
        found += [(finished if ended.cause else -math.inf, hit)] if hit is not None else []
    return found


def _stall(events: RunEvents | None, launch: LaunchSummary, end_t: float) -> str:
    """Say for how long no event came before the launcher ended the run."""
    last = last_sign(events) if events is not None else None
    begin_t = (launch.started_at or end_t) if last is None else time_of(last[0]) or end_t
    what = "no event at all in" if last is None else "no event after it for"
    return f"{what} {end_t - begin_t:.0f} s, until the launcher ended the run"


def _rule_of_end(cause: str, note: str) -> Rule:
    """Choose the rule for a stated cause: that which takes the note, else the first of the cause."""
    if cause in RULE_OF_END:
        return BY_NAME[RULE_OF_END[cause]]
    named = next((rule for rule, _ in takers(note) if rule.cause == cause), None)
    return named or next((r for r in all_rules() if r.cause == cause), BY_NAME["worker-failed"])


def _name_sigkill(scan: Scan, launch: LaunchSummary) -> None:
    """Call a rank's SIGKILL `killed`: the launcher watches the job's memory itself and would have said so."""
    killed = [h for h in scan.hits if h.rule.name == "killed" and re.search(r"exit ?code.*-9", h.line.text)]
    if killed or launch.returncode in SIGKILL_CODES:
        for hit in scan.hits:
            if hit.rule.name == "killed":
                hit.rule = BY_NAME["killed-by-signal"]


def fewer_devices(events: RunEvents | None, launch: LaunchSummary) -> list[Evidence]:
    """Return the evidence that a run which ended well left ranks out or devices idle; [] if it did not."""
    events = events or RunEvents()
    layout = Layout.parse((launch.spec or {})["layout"])
    world = layout.world_size
    devices = {(events.hosts.get(rank), d) for rank, d in events.device_ids.items() if d != "cpu"}
    num_hosts = max(1, len({host for host, _ in devices}))
    idle = bool(devices) and events.visible_devices > world // num_hosts
    if len(events.device_ids) >= world and not (devices and len(devices) < world) and not idle:
        return []
    text = f"{world} workers asked for by {layout}, {len(devices) or len(events.device_ids)} in use"
    text += f", {events.visible_devices} devices given on a node" if idle else ""
    evidence = [Evidence(file=min(events.events_of, default="launch.json"), line=None, text=text)]
    if warning := launch.world_warning:
        evidence.insert(0, Evidence(file="train.log", line=1, text=warning))
    return evidence


class Place:
    """Location of a failure of our own run: phase, step, rank, node.

    Args:
        root: the root cause; None if there is none.
        hits: all hits, those of the same cause first.
        events: of the run.
        hang: the collective that the ranks hung on.
    """

    def __init__(
        self, root: Hit | None, hits: Sequence[Hit], events: RunEvents, hang: HungCollective | None = None
    ) -> None:
        errors = _errors(events)
        event = root.event if root is not None else None
        noticed = event or (errors[0][0] if errors else None)
        self.rank = _silent_rank(root, hits, events)
        if hang is not None and hang.culprits and root is not None and root.rule.name in HANGS:
            self.rank = hang.culprits[0]
        if self.rank is not None:
            # The silent rank got as far as those that worked in step with it.
            self.phase = events.phase_of(self.rank)
        else:
            self.phase = str((noticed or {}).get("phase") or events.phase_of(0))
            self.rank = event.get("rank") if event is not None else None
        if noticed is not None:
            self.step = noticed.get("step")
        elif self.rank is not None:
            self.step = events.furthest_step
        else:
            self.step = events.last_step if events.last_step_line is not None else None
        self.node = _node(events, self.rank)


def _node(events: RunEvents, rank: int | None) -> str | None:
    """Return the host of a rank; of a run on one host that host, whichever rank it was."""
    if rank in events.hosts:
        return events.hosts[rank]
    return next(iter(events.hosts.values())) if len(set(events.hosts.values())) == 1 else None


def _silent_rank(root: Hit | None, hits: Sequence[Hit], events: RunEvents) -> int | None:
    """Return the rank that was killed, or that the others waited for; None if a rank reported another error.

    Where NCCL aborted those who waited, its watchdog's lines name them.
    """
    event = root.event if root is not None else None
    if event is not None and event.get("type") == "CollectiveTimeout":
        # The ranks that wait time out before the silent one writes an event, if it ever does.
        heard = {e.get("rank"): time_of(e) or 0.0 for e, _ in reversed(_errors(events))}
        return max(events.hosts, key=lambda rank: heard.get(rank, math.inf), default=None)
    if event is not None:
        return None
    if root is not None and root.rule.name == "collective-timeout":
        waited = {int(rank) for rank in _matches(Path(root.line.file), WATCHDOG)}
        return min(events.hosts.keys() - waited, default=None) if waited else None
    killed = [h for h in hits if h.rule.name == "killed-by-signal"]
    pids = {int(m[1]) for h in killed for m in PID.finditer(h.line.text)}
    ranks = (h.rank for h in killed if h.rank is not None)
    return next((rank for rank, pid in events.pids.items() if pid in pids), next(ranks, None))


def _matches(path: Path, pattern: re.Pattern[str]) -> list[str]:
    """Collect the pattern's first group from each line of a log that matches: every rank counts, not a sample."""
    try:
        with path.open(encoding="utf-8", errors="replace") as f:
            return [found[1] for line in f if (found := pattern.search(line))]
    except OSError:
        return []
