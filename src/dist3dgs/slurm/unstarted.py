"""Attempts that never began: sbatch refused the job, or it died before the launcher started.

Written down like any other attempt, so that retries are counted, the point gets its row and the evidence is kept.
"""

import json
import time
from pathlib import Path
from typing import Any

from ..evidence import Attempt, attempts, new_attempt
from ..files import write_json, write_text
from ..matrix import run_digest
from ..record import Cause
from .attempts import CAUSE_OF_STATE, job_end, log_cause, read_tail
from .commands import SlurmError


def refuse(point: Path, spec_text: str, note: str) -> Attempt:
    """sbatch refused the job, for the reason in `note`."""
    ended = {"cause": "submission_rejected", "note": note, "at": time.time()}
    return _write(point, spec_text, ended, None, note + "\n")


def note_unstarted(
    point: Path, job: int, log: Path | None, spec_text: str, held: str | None = None
) -> str | None:
    """Write down a failed Slurm job that left no attempt; what was noted, or None if the launcher had started in it.

    Args:
        log: the job's own log, which becomes the attempt's; None or absent where not even that was begun.
        held: why Slurm held the job, if it never started for that.
    """
    if any((a.launch().get("slurm") or {}).get("job_id") == job for a in attempts(point)):
        return None
    text = read_tail(log) if log is not None else ""
    if f"Slurm job {job}: " in text:  # the launcher's own words: it decided against an attempt
        return None
    try:
        state, ending, at = job_end(job)
    except SlurmError as e:
        state, ending, at = "", f"Slurm does not say how ({e.text})", None
    cause, line = ("node_failure", held) if held else _cause(state, log)
    note = f"Slurm job {job} ended before the launcher started: {ending}" + (f"; {line}" if line else "")
    ended = {"cause": cause, "note": note, "at": at or time.time()}
    _write(point, spec_text, ended, {"job_id": job, "log": str(log) if log else None}, text or note + "\n")
    return note


def _cause(state: str, log: Path | None) -> tuple[Cause, str | None]:
    """Cause and decisive line: Slurm's word, else what the job's log says."""
    if state in CAUSE_OF_STATE:
        return CAUSE_OF_STATE[state], None
    if log is None or not log.is_file():
        return "unknown", "the job left no log"
    if found := log_cause(log):
        return found[0], f"{log.name}: {found[1]}"
    from ..diagnose import diagnose  # the rules for any program's logs, which few jobs need

    diagnosis = diagnose([log])
    known = [e.text for e in diagnosis.evidence] if diagnosis.cause != "unknown" else []
    last = [line.strip() for line in read_tail(log).splitlines() if line.strip()][-1:]
    line = (known or last or ["the job's log is empty"])[-1]
    return diagnosis.cause or "unknown", f"{log.name}: {line[:500]}"


def _write(
    point: Path, spec_text: str, ended: dict[str, Any], slurm: dict[str, Any] | None, log_text: str
) -> Attempt:
    attempt = new_attempt(point)
    facts = {
        "spec_digest": run_digest(spec_text), "spec": json.loads(spec_text), "attempt": attempt.number,
        "status": "failed", "argv": [], "ended": ended, "started_at": ended["at"], "finished_at": ended["at"],
        "slurm": slurm,
    }  # fmt: skip
    write_json(attempt.launch_path, facts)
    write_text(attempt.log_path, log_text)
    return attempt
