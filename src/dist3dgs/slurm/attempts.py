"""The attempts a point has had: one folder each under `attempts/`, with `attempt.json` beside the attempt's
evidence.

An attempt that was killed cannot say why. `settle` asks Slurm for it afterwards and writes the answer down,
so that
the next attempt, the tables and the story of the study rest on files alone.
"""

import contextlib
import re
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ..files import write_json
from ..names import Layout
from ..record import Cause, Model
from .commands import SlurmError, blocks, rows, slurm

FOLDER, FILE = "attempts", "attempt.json"

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
LIVE_STATES = frozenset(
    [
        "PENDING",
        "RUNNING",
        "CONFIGURING",
        "COMPLETING",
        "SUSPENDED",
        "STOPPED",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
    ]
)


class Attempt(Model):
    """One try at training a point."""

    number: int = Field(ge=1)
    status: Literal["running", "ok", "failed"] = "running"
    final: bool = Field(
        False, description="no further attempt follows: the point's outputs come from this one"
    )
    cause: Cause | None = None
    note: str | None = Field(None, description="what was seen, in words; with Slurm's own")
    phase: str | None = None
    step: int | None = None
    first_step: int = Field(0, description="step this attempt resumed from")
    spec_sha256: str | None = Field(
        None, description="digest of the run's spec: another spec, another series"
    )
    layout: str = "n1g1"
    slurm_job_id: int | None = None
    restarts: int = Field(0, description="how often Slurm had requeued the job when this attempt began")
    hosts: list[str] = Field([])
    mem_mb: int | None = None
    runtime_min: int | None = None
    loader_workers: int | None = None
    started_at: float = Field(description="Unix seconds")
    ended_at: float | None = None

    @property
    def gpu_hours(self) -> float:
        """Workers times hours, up to now for one that runs."""
        seconds = max(0.0, (self.ended_at or time.time()) - self.started_at)
        return seconds / 3600 * Layout.parse(self.layout).world_size


def folder(point: Path, number: int) -> Path:
    return Path(point) / FOLDER / f"{number:02d}"


def history(point: Path) -> list[Attempt]:
    """All attempts of the point in `point` (its results folder), oldest first. Unreadable ones are left
    out."""
    found = []
    for path in sorted(Path(point).glob(f"{FOLDER}/[0-9][0-9]*/{FILE}")):
        with contextlib.suppress(OSError, ValidationError):
            found.append(Attempt.model_validate_json(path.read_bytes()))
    return found


def series(attempts: list[Attempt], spec_sha256: str | None = None) -> list[Attempt]:
    """The attempts that belong to the present try at the point: those after the last final one, of the same
    spec."""
    present: list[Attempt] = []
    for attempt in attempts:
        if spec_sha256 is not None and attempt.spec_sha256 not in (None, spec_sha256):
            present = []
            continue
        present = [] if attempt.final else [*present, attempt]
    return present


def save(point: Path, attempt: Attempt) -> Attempt:
    write_json(folder(point, attempt.number) / FILE, attempt.model_dump(mode="json"))
    return attempt


def begin(point: Path, **fields: Any) -> Attempt:
    """Open the next attempt. The folder's creation is exclusive: two jobs can never share an attempt."""
    number = 1 + max(
        (int(p.name) for p in Path(point).glob(f"{FOLDER}/[0-9][0-9]*") if p.name.isdigit()), default=0
    )
    while True:
        try:
            folder(point, number).mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
    return save(point, Attempt(number=number, started_at=time.time(), **fields))


def end(point: Path, attempt: Attempt, **fields: Any) -> Attempt:
    """Close `attempt`; fields: status, cause, note, phase, step, final."""
    return save(point, attempt.model_copy(update={"ended_at": time.time(), **fields}))


def settle(point: Path, me: tuple[int, int] | None = None) -> list[Attempt]:
    """`history`, after writing down how attempts ended that were killed before they could say so.

    `me` is the calling job's (Slurm id, restarts): an attempt of the same job and fewer restarts ended by a
    requeue.
    An attempt whose job is still alive stays `running`.
    """
    attempts = history(point)
    for i, attempt in enumerate(attempts):
        if attempt.status != "running":
            continue
        verdict = _fate(attempt, me)
        if verdict is None:
            continue
        cause, note, ended_at = verdict
        changes = {"status": "failed", "cause": cause, "note": note, "ended_at": ended_at}
        attempts[i] = save(point, attempt.model_copy(update=changes))
    return attempts


def _fate(attempt: Attempt, me: tuple[int, int] | None) -> tuple[Cause, str, float] | None:
    """How a silent attempt ended, or None if its job lives."""
    now = time.time()
    if attempt.slurm_job_id is None:
        return "killed", "the launcher was killed on this machine before it could say why", now
    if me is not None and me[0] == attempt.slurm_job_id:
        if me[1] <= attempt.restarts:
            return "killed", "the launcher was killed and started again in the same job", now
        return requeue_reason(attempt.slurm_job_id)
    state, text, ended_at = job_end(attempt.slurm_job_id)
    if state in LIVE_STATES:
        return None
    note = f"Slurm job {attempt.slurm_job_id}: {text}"
    return CAUSE_OF_STATE.get(state, "killed" if state else "unknown"), note, ended_at or now


def job_end(job: int) -> tuple[str, str, float | None]:
    """(state word, Slurm's own text, end in Unix seconds) of a job; the state is "" where Slurm has
    forgotten it.

    Asks the controller first (it knows jobs for MinJobAge after their end), then the accounting where there
    is any.
    """
    with contextlib.suppress(SlurmError):
        shown = blocks(slurm("scontrol", "-o", "show", "job", str(job)))
        if shown:
            block = shown[0]
            text = " ".join(
                f"{k}={block[k]}" for k in ("JobState", "Reason", "ExitCode", "EndTime") if k in block
            )
            return block.get("JobState", "").split()[0], text, _unix(block.get("EndTime", ""))
    with contextlib.suppress(SlurmError):
        found = rows(slurm("sacct", "-nXP", "-j", str(job), "-o", "State,ExitCode,End"), 3)
        if found:
            state, code, ended = found[-1]
            return state.split()[0], f"State={state} ExitCode={code} End={ended}", _unix(ended)
    return "", "neither scontrol nor sacct knows it any more", None


def requeue_reason(job: int) -> tuple[Cause, str, float]:
    """Why Slurm put a running job back into its queue: from the accounting's duplicates (`sacct -D`)."""
    with contextlib.suppress(SlurmError):
        for state, ended in reversed(rows(slurm("sacct", "-nXPD", "-j", str(job), "-o", "State,End"), 2)):
            word = state.split()[0]
            if word in ("PREEMPTED", "NODE_FAIL"):
                return (
                    CAUSE_OF_STATE[word],
                    f"Slurm job {job}: State={state} End={ended}, requeued",
                    _unix(ended) or time.time(),
                )
    note = f"Slurm job {job} was requeued (preemption or a lost node; without accounting Slurm does not say which)"
    return "preempted", note, time.time()


def _unix(text: str) -> float | None:
    """Unix seconds of Slurm's local time stamp."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text):
        return None
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
