"""Judge our own runs by the table of rules: errors of the ranks, signals that the launcher saw."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..logs.facts import Line
from ..logs.readers.events import RunEvents
from ..runs import launch_summary
from ..runs.launch_summary import load_or_empty
from .rules import RULES, Hit, error_hit
from .scan_result import Scan


def is_summary(path: Path) -> bool:
    """Return True for a summary that our launcher or our judge wrote: nothing in it was printed by a job."""
    if not path.is_file():
        return False
    if path.name == launch_summary.FILE:
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
    launch = next((p for p in paths if p.name == launch_summary.FILE and is_summary(p)), None)
    return {} if launch is None else {"own_run": True, "exit_code": load_or_empty(launch).returncode}


def add_hits(scan: Scan, context: Mapping[str, Any]) -> None:
    """Turn `error` events into hits, in order of time, and a signal from the launcher into one."""
    events = scan.events
    if events is None:
        return
    index = next((i for i, f in enumerate(scan.files) if f.format == "events"), 0)
    if events.end is not None and events.end[0].get("status") == "ok":
        return
    errors = sorted(events.errors, key=lambda e: e[0]["t"] if isinstance(e[0].get("t"), int | float) else 0.0)
    for order, (event, line) in enumerate(errors):
        hit = judge_error(event, line, events.last_step)
        if hit is not None:
            hit.file_index, hit.order = index, order - len(errors)
            hit.node = events.hosts.get(hit.rank) if hit.rank is not None else None
            scan.hits.append(hit)
    if events.num_events and context.get("signal") == 9 and not errors:
        scan.hits.append(_killed(events, context, index))


def judge_error(event: Mapping[str, Any], line: Line, last_step: int) -> Hit | None:
    """Find the rule that takes an `error` event (type, message, traceback) of one of our ranks; None if none does.

    Args:
        line: place of the event; its text is replaced by `TYPE: MESSAGE`.
        last_step: the last training step before it.
    """
    text = f"{event.get('type') or 'Error'}: {event.get('message') or ''}"[:4096].strip()
    trace = str(event.get("traceback") or "")[-20_000:].splitlines()
    hit = error_hit(Line(line.file, line.number, text), trace, last_step)
    if hit is None:
        return None
    rank = event.get("rank")
    hit.rank = rank if isinstance(rank, int) else None
    hit.phase = event.get("phase") if isinstance(event.get("phase"), str) else None
    hit.step = event.get("step") if isinstance(event.get("step"), int) else None
    return hit


def _killed(events: RunEvents, context: Mapping[str, Any], index: int) -> Hit:
    rule = next(r for r in RULES if r.name == "killed-by-signal")
    text = f"rank {context.get('rank')} ended by signal 9 (SIGKILL)"
    last = events.last_step_line
    hit = Hit(
        rule, 0, Line(last.file if last else "launch.json", last.number if last else None, text), index, 0
    )
    rank = context.get("rank")
    hit.rank = rank if isinstance(rank, int) else None
    hit.node = events.hosts.get(hit.rank) if hit.rank is not None else None
    hit.steps_before, hit.step = events.last_step, events.last_step or None
    hit.phase = events.phase.get(hit.rank) if hit.rank is not None else None
    return hit
