"""Outcomes of a point's attempts that could not report them: killed ones, and those that never began.

A killed attempt cannot report why. `resolve_outcomes` asks Slurm afterwards and writes the answer into the attempt's
`launch.json`, so that the next attempt, the record and the tables need files alone. A job that sbatch refused, or that
died before its launcher started, is written down as an attempt (`record_refusal`, `record_unstarted`), so that it is
counted, the point gets its row and the evidence is kept.
"""

import contextlib
import json
import re
import time
from pathlib import Path

from ..config.matrix import load_spec, run_digest
from ..config.models import RunSpec
from ..config.naming import PARTS, how_to_make, point_folder
from ..errors import UserError
from ..files import write_json, write_text
from ..runs.attempts import (
    Attempt,
    AttemptState,
    attempts,
    new_attempt,
    open_attempts,
    publish,
    read_state,
)
from ..runs.causes import Cause
from ..runs.launch_summary import FILE, Ended, LaunchSummary, SlurmJob, load_or_empty
from ..units import parse_time_stamp
from .client import SlurmError, blocks, rows, slurm

#: Slurm's word for how a job ended -> our cause.
CAUSE_OF_STATE: dict[str, Cause] = {
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "OUT_OF_MEMORY": "host_oom",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
}
#: States in which a job may still do something.
LIVE_STATES = {
    *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "SIGNALING", "STAGE_OUT"),
}
#: What Slurm writes into a job's own log where the state says no more than FAILED; first match wins. Only lines of
#: Slurm's own daemons and srun: a training's log may speak of memory, and paths may be called anything.
_SLURM = r"^(?:slurmstepd|slurmd|srun)(?:-\S+)?: (?:error: )?"
LOG_CAUSES: list[tuple[Cause, re.Pattern[str]]] = [
    ("host_oom", re.compile(_SLURM + r".*(exceeded (job |step )?memory limit|oom[-_ ]?kill|Out Of Memory)")),
    ("time_limit", re.compile(_SLURM + r".*DUE TO TIME LIMIT")),
    ("node_failure", re.compile(_SLURM + r".*(DUE TO NODE FAILURE|NODE_FAIL|Node failure)")),
    ("preempted", re.compile(_SLURM + r".*DUE TO PREEMPTION")),
]
#: A folder without launch.json this young belongs to a launcher that is just starting.
STARTING_S = 60.0
#: A file in the point's folder: cancellations since its time are those of an interrupted Snakemake, not the user's.
MARK = ".interrupted"


def resolve_outcomes(
    point: Path, spec_digest: str | None = None, me: tuple[int, int] | None = None
) -> list[AttemptState]:
    """Read the states of a point's open attempts, after writing the outcome of those that were killed.

    Args:
        me: (Slurm id, restarts) of the calling job. An attempt whose job is alive elsewhere stays `running`.

    Raises:
        SlurmError: Slurm does not answer.
    """
    return [_resolve(attempt, me) for attempt in open_attempts(point, spec_digest)]


def _resolve(attempt: Attempt, me: tuple[int, int] | None) -> AttemptState:
    summary = attempt.summary()
    seen = read_state(attempt, summary)
    if not seen.running:
        return _out_of_memory(attempt, summary, me) or seen
    if summary.is_empty:
        with contextlib.suppress(OSError):
            if time.time() - attempt.folder.stat().st_mtime < STARTING_S and me is None:
                return seen
    ended = _poll_final_state(summary, me)
    if ended is None:
        return seen
    summary = summary.filled(attempt=attempt.number, status="running").updated(ended=ended)
    if ended.cause == "cancelled" and _was_interrupted(attempt, summary):
        note = f"{ended.note}; cancelled by an interrupted Snakemake"
        summary = summary.updated(status="interrupted", ended=Ended(cause=None, note=note, at=ended.at))
    else:
        summary = summary.updated(cause=_judged(summary, attempt))
    return read_state(attempt, summary.save(attempt.folder))


def _judged(summary: LaunchSummary, attempt: Attempt) -> Cause:
    """Return the cause as the record will have it; what Slurm says is one piece of evidence."""
    from ..records.build import cause_of  # the rules, which few attempts need

    return cause_of(summary, attempt)


def _out_of_memory(
    attempt: Attempt, summary: LaunchSummary, me: tuple[int, int] | None
) -> AttemptState | None:
    """Ask Slurm, once the job has ended, if a rank that was killed had run out of memory; None if not asked.

    The launcher sees the kernel's kills on its own node only.
    """
    job = summary.job_id
    if summary.cause != "killed" or summary.ended or summary.asked_slurm:
        return None
    if job is None or (me is not None and me[0] == job):
        return None
    state, note, at = job_end(job)
    if state in LIVE_STATES:
        return None
    summary = summary.updated(asked_slurm=True)
    if state == "OUT_OF_MEMORY" or _step_ran_out_of_memory(job):
        note = f"Slurm job {job}: {note}, OUT_OF_MEMORY"
        at = at or summary.finished_at or time.time()
        summary = summary.updated(ended=Ended(cause="host_oom", note=note, at=at))
        summary = summary.updated(cause=_judged(summary, attempt))
    return read_state(attempt, summary.save(attempt.folder))


def _step_ran_out_of_memory(job: int) -> bool:
    """Return True if the accounting has a step that ran out of memory: ranks on several nodes run in a step."""
    with contextlib.suppress(SlurmError):
        return any(
            row[0].startswith("OUT_OF_ME")
            for row in rows(slurm("sacct", "-nP", "-j", str(job), "-o", "State"), 1)
        )
    return False


def _poll_final_state(summary: LaunchSummary, me: tuple[int, int] | None) -> Ended | None:
    """Ask Slurm for the end of an attempt that reported none; None while its job lives."""
    facts = summary.slurm or SlurmJob()
    job = facts.job_id
    if job is None:
        note = "the launcher was killed before it could say why, outside Slurm or before it asked Slurm"
        return Ended(cause="killed", note=note, at=summary.finished_at or time.time())
    if me is not None and me[0] == job:
        if me[1] > facts.restarts:
            return _requeue_reason(job)
        return Ended(cause="killed", note=f"killed within Slurm job {job}", at=time.time())
    state, note, at = job_end(job)
    if state in LIVE_STATES:
        return None
    cause: Cause = CAUSE_OF_STATE.get(state, "killed")
    log = Path(facts.log) if facts.log else None
    if log is not None and cause == "killed" and (found := log_cause(log)):
        cause, line = found
        note = f"{note}; {log.name}: {line}"
    return Ended(cause=cause, note=f"Slurm job {job}: {note}", at=at or summary.finished_at or time.time())


def mark_interrupted(point: Path) -> None:
    """Note that an interrupted Snakemake is about to cancel the jobs of this point."""
    if (Path(point) / "attempts").is_dir():
        write_json(Path(point) / MARK, {"at": time.time()})


def _was_interrupted(attempt: Attempt, summary: LaunchSummary) -> bool:
    """Return True if Snakemake was interrupted while the attempt ran."""
    try:
        marked = (attempt.folder.parent.parent / MARK).stat().st_mtime
    except OSError:
        return False
    return marked >= (summary.started_at or 0.0)


def job_end(job: int) -> tuple[str, str, float | None]:
    """Return (state word, Slurm's own text, end in Unix seconds) of a job; "" as the state if Slurm has forgotten it.

    Asks the controller first (it knows jobs for MinJobAge after their end), then the accounting where there is any.
    A Slurm that does not answer at all raises `SlurmError`: no answer is not an ended job.
    """
    try:
        shown = blocks(slurm("scontrol", "-o", "show", "job", str(job)))
    except SlurmError as e:
        if "Invalid job id" not in e.text:
            raise
        shown = []
    if shown:
        block = shown[0]
        text = " ".join(
            f"{k}={block[k]}" for k in ("JobState", "Reason", "ExitCode", "EndTime") if k in block
        )
        return block.get("JobState", "").split()[0], text, parse_time_stamp(block.get("EndTime", ""))
    with contextlib.suppress(SlurmError):
        found = rows(slurm("sacct", "-nXP", "-j", str(job), "-o", "State,ExitCode,End"), 3)
        if found:
            state, code, ended = found[-1]
            return state.split()[0], f"State={state} ExitCode={code} End={ended}", parse_time_stamp(ended)
    return "", "neither scontrol nor sacct knows it any more", None


def _requeue_reason(job: int) -> Ended:
    """Find out why Slurm requeued a running job, from the accounting's duplicates (`sacct -D`)."""
    with contextlib.suppress(SlurmError):
        for state, ended in reversed(rows(slurm("sacct", "-nXPD", "-j", str(job), "-o", "State,End"), 2)):
            word = state.split()[0]
            if word in ("PREEMPTED", "NODE_FAIL"):
                note = f"Slurm job {job}: State={state} End={ended}, requeued"
                return Ended(cause=CAUSE_OF_STATE[word], note=note, at=parse_time_stamp(ended) or time.time())
    note = (
        f"Slurm job {job}: requeued (preemption or a lost node; without accounting Slurm does not say which)"
    )
    return Ended(cause="preempted", note=note, at=time.time())


def log_cause(path: Path, tail_bytes: int = 65536) -> tuple[Cause, str] | None:
    """Find a cause that Slurm wrote at the end of the job's log; return it and its line."""
    lines = read_tail(path, tail_bytes).splitlines()
    for cause, pattern in LOG_CAUSES:
        for line in lines:
            if pattern.search(line):
                return cause, line.strip()[:500]
    return None


def read_tail(path: Path, tail_bytes: int = 65536) -> str:
    """Read the end of a log; "" where there is none."""
    try:
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - tail_bytes))
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def record_failed_part(point: Path, spec_text: str) -> str | None:
    """End a job that goes on from others, of which one has failed: record that; return it in words.

    None if all have succeeded, or the job needs none.

    Args:
        point: folder of the job's attempts.
        spec_text: the spec of its run, one line of JSON.

    Raises:
        UserError: a job that it goes on from has not ended.
    """
    spec = load_spec(spec_text)
    for part in spec.needs if isinstance(spec, RunSpec) else []:
        path = Path(point_folder(point), PARTS, part, FILE)
        summary = load_or_empty(path)
        if summary.is_empty:
            raise UserError(
                f"{path}: {spec.point} goes on from this job, which has not ended{how_to_make(path)}"
            )
        if summary.status != "ok":
            cause: Cause = summary.final_cause or "unknown"
            note = f"{part} ended with {cause}, see {path}"
            ended = Ended(cause=cause, note=note, at=time.time())
            _write_attempt(point, spec_text, ended, None, note + "\n")
            publish(point, note)
            return note
    return None


def record_refusal(point: Path, spec_text: str, note: str) -> Attempt:
    """Record a job that sbatch refused, for the reason in `note`, as a failed attempt."""
    ended = Ended(cause="submission_rejected", note=note, at=time.time())
    return _write_attempt(point, spec_text, ended, None, note + "\n")


def record_unstarted(
    point: Path, job: int, log: Path | None, spec_text: str, held: str | None = None
) -> str | None:
    """Record a failed Slurm job that left no attempt; return the note, or None if the launcher had started in it.

    Args:
        log: the job's own log, which becomes the attempt's; None or absent where not even that was begun.
        held: why Slurm held the job, if it never started for that.
    """
    if any(a.summary().job_id == job for a in attempts(point)):
        return None
    text = read_tail(log) if log is not None else ""
    if f"Slurm job {job}: " in text:  # the launcher's own words: it decided against an attempt
        return None
    try:
        state, ending, at = job_end(job)
    except SlurmError as e:
        state, ending, at = "", f"Slurm does not say how ({e.text})", None
    cause, line = ("node_failure", held) if held else _unstarted_cause(state, log)
    note = f"Slurm job {job} ended before the launcher started: {ending}" + (f"; {line}" if line else "")
    slurm_job = SlurmJob(job_id=job, log=str(log) if log else None)
    _write_attempt(
        point, spec_text, Ended(cause=cause, note=note, at=at or time.time()), slurm_job, text or note + "\n"
    )
    return note


def _unstarted_cause(state: str, log: Path | None) -> tuple[Cause, str | None]:
    """Return cause and decisive line: Slurm's word, else what the job's log says."""
    if state in CAUSE_OF_STATE:
        return CAUSE_OF_STATE[state], None
    if log is None or not log.is_file():
        return "unknown", "the job left no log"
    if found := log_cause(log):
        return found[0], f"{log.name}: {found[1]}"
    from ..diagnosis import diagnose  # the rules for any program's logs, which few jobs need

    diagnosis = diagnose([log])
    known = [e.text for e in diagnosis.evidence] if diagnosis.cause != "unknown" else []
    last = [line.strip() for line in read_tail(log).splitlines() if line.strip()][-1:]
    line = (known or last or ["the job's log is empty"])[-1]
    return diagnosis.cause or "unknown", f"{log.name}: {line[:500]}"


def _write_attempt(
    point: Path, spec_text: str, ended: Ended, slurm_job: SlurmJob | None, log_text: str
) -> Attempt:
    attempt = new_attempt(point)
    LaunchSummary(
        spec_digest=run_digest(spec_text), spec=json.loads(spec_text), attempt=attempt.number, status="failed",
        argv=[], ended=ended, started_at=ended.at, finished_at=ended.at, slurm=slurm_job,
    ).save(attempt.folder)  # fmt: skip
    write_text(attempt.log_path, log_text)
    return attempt
