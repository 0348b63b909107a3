"""Find how a point's attempts ended, from their `launch.json`; of those that were killed, from Slurm.

An attempt that was killed cannot say why. `settle` asks Slurm afterwards and writes the answer into the attempt's
`launch.json` as `ended: {cause, note, at}`, so that the next attempt, the record and the tables rest on files alone.
"""

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.naming import Layout
from ..files import write_json
from ..runs.attempts import Attempt, attempts
from ..runs.causes import Cause
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
    "SUBMISSION_REFUSED": "submission_rejected",  # ours: see `refuse`
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


#: Status of an attempt whose job was cancelled because Snakemake was interrupted: neither a failure nor the user's wish
#: to end the run. `MARK` in the point's folder says since when such a cancellation is ours.
INTERRUPTED, MARK = "interrupted", ".interrupted"


@dataclass(frozen=True, kw_only=True)
class Try:
    """One attempt, as far as deciding about the next needs it."""

    number: int
    status: str  # running | ok | failed | stopped | refused, as the launcher left it; interrupted
    cause: Cause | None = None
    note: str | None = None
    step: int | None = None
    gpu_hours: float = 0.0
    lost: float = 1.0  # share of its steps that no checkpoint keeps
    slurm_job_id: int | None = None
    restarts: int = 0

    @property
    def running(self) -> bool:
        return self.status in ("running", "stopped") and self.cause is None

    @property
    def failed(self) -> bool:
        return self.status not in ("ok", INTERRUPTED) and not self.running


def read_try(attempt: Attempt, launch: dict[str, Any] | None = None) -> Try:
    """View of one attempt's files."""
    launch = attempt.launch() if launch is None else launch
    slurm_facts, ended = launch.get("slurm") or {}, launch.get("ended") or {}
    first, last, saved = progress(attempt) if launch.get("status") != "ok" else (0, None, 0)
    return Try(
        number=attempt.number,
        status=launch.get("status") or "running",
        cause=launch.get("cause") or ended.get("cause"),
        note=ended.get("note"),
        step=last,
        gpu_hours=_gpu_hours(launch, ended.get("at")),
        lost=1.0 - max(0, saved - first) / (last - first) if last is not None and last > first else 1.0,
        slurm_job_id=slurm_facts.get("job_id"),
        restarts=slurm_facts.get("restarts") or 0,
    )


def series(point: Path, spec_digest: str | None = None) -> list[Attempt]:
    """The attempts of the present try at a point: same run, and after the last one whose outcome was published or that
    `dist3dgs retry` asked to be followed by another."""
    present: list[Attempt] = []
    for attempt in attempts(point):
        launch = attempt.launch()
        foreign = spec_digest is not None and launch.get("spec_digest", spec_digest) != spec_digest
        done = launch.get("retry_at") or (launch.get("published") and collected(point, launch))
        present = [] if foreign or done else [*present, attempt]
    return present


def collected(point: Path, launch: dict[str, Any]) -> bool:
    """Return True if a record has been made since the attempt ended: then its result has reached the study."""
    try:
        made = (Path(point) / "record.json").stat().st_mtime
    except OSError:
        return False
    return made >= (launch.get("finished_at") or 0.0)


def settle(point: Path, spec_digest: str | None = None, me: tuple[int, int] | None = None) -> list[Try]:
    """The present series, after writing down how attempts ended that were killed before they could say so.

    `me` is the calling job's (Slurm id, restarts). An attempt whose job is alive elsewhere stays `running`.
    """
    return [_settled(attempt, me) for attempt in series(point, spec_digest)]


def _settled(attempt: Attempt, me: tuple[int, int] | None) -> Try:
    launch = attempt.launch()
    seen = read_try(attempt, launch)
    if not seen.running:
        return _out_of_memory(attempt, launch, me) or seen
    if not launch:
        with contextlib.suppress(OSError):
            if time.time() - attempt.folder.stat().st_mtime < STARTING_S and me is None:
                return seen
    end = _fate(launch, me)
    if end is None:
        return seen
    launch = {"attempt": attempt.number, **launch, "ended": end}
    launch.setdefault("status", "running")
    if end["cause"] == "cancelled" and _was_interrupted(attempt, launch):
        note = f"{end['note']}; cancelled by an interrupted Snakemake"
        launch |= {"status": INTERRUPTED, "ended": {"cause": None, "note": note, "at": end["at"]}}
    else:
        launch["cause"] = _judged(launch, attempt)
    write_json(attempt.launch_path, launch)
    return read_try(attempt, launch)


def _judged(launch: dict[str, Any], attempt: Attempt) -> Cause:
    """The cause as the record will have it: Slurm's word is one piece of evidence."""
    from ..records.build import cause_of  # the rules, which few attempts need

    return cause_of(launch, attempt)


def _out_of_memory(attempt: Attempt, launch: dict[str, Any], me: tuple[int, int] | None) -> Try | None:
    """An attempt whose launcher saw a rank killed, where Slurm says afterwards that its job ran out of memory.

    The launcher sees what the kernel killed on its own node only (`cgroup`). Asked once, when the job has ended.
    """
    job = (launch.get("slurm") or {}).get("job_id")
    if launch.get("cause") != "killed" or launch.get("ended") or launch.get("asked_slurm"):
        return None
    if job is None or (me is not None and me[0] == job):
        return None
    state, note, at = job_end(job)
    if state in LIVE_STATES:
        return None
    launch |= {"asked_slurm": True}
    if state == "OUT_OF_MEMORY" or _step_ran_out_of_memory(job):
        note = f"Slurm job {job}: {note}, OUT_OF_MEMORY"
        launch |= {
            "ended": {"cause": "host_oom", "note": note, "at": at or launch.get("finished_at") or time.time()}
        }
        launch["cause"] = _judged(launch, attempt)
    write_json(attempt.launch_path, launch)
    return read_try(attempt, launch)


def _step_ran_out_of_memory(job: int) -> bool:
    """Ask the accounting about steps: ranks of several nodes are a step, the job's state is the launcher's."""
    with contextlib.suppress(SlurmError):
        return any(
            row[0].startswith("OUT_OF_ME")
            for row in rows(slurm("sacct", "-nP", "-j", str(job), "-o", "State"), 1)
        )
    return False


def _fate(launch: dict[str, Any], me: tuple[int, int] | None) -> dict[str, Any] | None:
    """`ended` of a silent attempt, or None while its job lives."""
    facts = launch.get("slurm") or {}
    job, restarts = facts.get("job_id"), facts.get("restarts") or 0
    if job is None:
        note = "the launcher was killed before it could say why, outside Slurm or before it asked Slurm"
        return {"cause": "killed", "note": note, "at": launch.get("finished_at") or time.time()}
    if me is not None and me[0] == job:
        if me[1] > restarts:
            return requeue_reason(job)
        return {"cause": "killed", "note": f"killed within Slurm job {job}", "at": time.time()}
    state, note, at = job_end(job)
    if state in LIVE_STATES:
        return None
    cause: Cause = CAUSE_OF_STATE.get(state, "killed")
    found = log_cause(Path(facts["log"])) if facts.get("log") and cause == "killed" else None
    if found:
        cause, line = found
        note = f"{note}; {Path(facts['log']).name}: {line}"
    at = at or launch.get("finished_at") or time.time()
    return {"cause": cause, "note": f"Slurm job {job}: {note}", "at": at}


def mark_interrupted(point: Path) -> None:
    """Snakemake is about to cancel the jobs of this point because it was interrupted."""
    if (Path(point) / "attempts").is_dir():
        write_json(Path(point) / MARK, {"at": time.time()})


def _was_interrupted(attempt: Attempt, launch: dict[str, Any]) -> bool:
    """Return True if Snakemake was interrupted while the attempt ran."""
    try:
        marked = (attempt.folder.parent.parent / MARK).stat().st_mtime
    except OSError:
        return False
    return marked >= (launch.get("started_at") or 0.0)


def job_end(job: int) -> tuple[str, str, float | None]:
    """(state word, Slurm's own text, end in Unix seconds) of a job; the state is "" where Slurm has forgotten it.

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


def requeue_reason(job: int) -> dict[str, Any]:
    """Why Slurm put a running job back into its queue: from the accounting's duplicates (`sacct -D`)."""
    with contextlib.suppress(SlurmError):
        for state, ended in reversed(rows(slurm("sacct", "-nXPD", "-j", str(job), "-o", "State,End"), 2)):
            word = state.split()[0]
            if word in ("PREEMPTED", "NODE_FAIL"):
                note = f"Slurm job {job}: State={state} End={ended}, requeued"
                return {
                    "cause": CAUSE_OF_STATE[word],
                    "note": note,
                    "at": parse_time_stamp(ended) or time.time(),
                }
    note = (
        f"Slurm job {job}: requeued (preemption or a lost node; without accounting Slurm does not say which)"
    )
    return {"cause": "preempted", "note": note, "at": time.time()}


def log_cause(path: Path, tail_bytes: int = 65536) -> tuple[Cause, str] | None:
    """A cause that Slurm wrote at the end of the job's log, and its line."""
    lines = read_tail(path, tail_bytes).splitlines()
    for cause, pattern in LOG_CAUSES:
        for line in lines:
            if pattern.search(line):
                return cause, line.strip()[:500]
    return None


def read_tail(path: Path, tail_bytes: int = 65536) -> str:
    """The end of a log; "" where there is none."""
    try:
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - tail_bytes))
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def progress(attempt: Attempt) -> tuple[int, int | None, int]:
    """The step an attempt began at, the last its diary tells of, and the last that a checkpoint holds."""
    events = [e for e in attempt.events() if isinstance(e.get("step"), int)]
    of_kind = {kind: [e["step"] for e in events if e["event"] == kind] for kind in ("resume", "checkpoint")}
    first = max(of_kind["resume"], default=0)
    return first, max((e["step"] for e in events), default=None), max(of_kind["checkpoint"], default=first)


def _gpu_hours(launch: dict[str, Any], ended_at: float | None) -> float:
    if not launch.get("started_at"):
        return 0.0
    try:
        workers = Layout.parse(launch["spec"]["layout"]).world_size
    except (KeyError, TypeError):
        workers = 1
    seconds = (launch.get("finished_at") or ended_at or time.time()) - launch["started_at"]
    return max(0.0, seconds) / 3600 * workers
