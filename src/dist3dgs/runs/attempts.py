"""Attempts of a run: one folder each, and a summary whether it succeeded or not.

    results/{point}/launch.json                     the newest attempt's summary: the output of the train rule
    results/{point}/attempts/000/launch.json        settings, start and end (see runs/launch_summary.py)
    results/{point}/attempts/000/events.*.jsonl     what the ranks did, one file per node (see runs/events.py)
    results/{point}/attempts/000/train.log          everything the ranks printed
    results/{point}/attempts/000/flight.rank*       last collectives of each rank of a run that hung
    results/{point}/attempts/000/resources.*.csv    host and GPU samples, one file per node (see monitoring/sampler.py)
    results/{point}/checkpoints/, renders/, tensorboard/, point_cloud.ply

Attempts are never overwritten: the next one gets the next number.
"""

import hashlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.naming import Layout
from .causes import Cause
from .events import event_files, read_events
from .launch_summary import FILE, LaunchStatus, LaunchSummary, load_or_empty

ATTEMPTS = "attempts"
#: Names of flight recorder dumps begin so; the rank follows.
FLIGHT = "flight.rank"


@dataclass(frozen=True)
class Attempt:
    """One start of a run: its folder."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def launch_path(self) -> Path:
        return self.folder / FILE

    @property
    def log_path(self) -> Path:
        return self.folder / "train.log"

    def events(self) -> Iterator[dict[str, Any]]:
        """Read the events of all nodes, merged by time."""
        return read_events(self.folder)

    def event_files(self) -> list[Path]:
        return event_files(self.folder)

    def resources_paths(self) -> list[Path]:
        return sorted(self.folder.glob("resources.*.csv"))

    def flight_paths(self) -> list[Path]:
        """List the dumps of the ranks' flight recorders: ours, which state the step, then torch's own."""
        return sorted(self.folder.glob(f"{FLIGHT}*"), key=lambda p: (p.suffix != ".json", p.name))

    def summary(self) -> LaunchSummary:
        """Read its launch.json; an empty summary if the launcher was killed before it wrote one."""
        return load_or_empty(self.launch_path)


@dataclass(frozen=True, kw_only=True)
class AttemptState:
    """One attempt, with what the decision about the next one needs."""

    number: int
    status: LaunchStatus
    cause: Cause | None = None
    note: str | None = None
    step: int | None = None
    gpu_hours: float = 0.0
    lost: float = (
        1.0  # share of its steps, or of its time where steps are not known, that no checkpoint keeps
    )
    loader_workers: int | None = None
    slurm_job_id: int | None = None

    @property
    def running(self) -> bool:
        """True if its end is not known."""
        return self.status in ("running", "stopped") and self.cause is None

    @property
    def failed(self) -> bool:
        return self.status not in ("ok", "interrupted") and not self.running


def attempts(point_folder: Path) -> list[Attempt]:
    """List all attempts of a point, oldest first."""
    folder = Path(point_folder, ATTEMPTS)
    names = [p for p in folder.glob("[0-9]*") if p.is_dir() and p.name.isdigit()] if folder.is_dir() else []
    return [Attempt(p) for p in sorted(names, key=lambda p: int(p.name))]


def since_fresh_start(found: Sequence[Attempt]) -> list[Attempt]:
    """Select the last attempt and those before it whose checkpoints it continues."""
    first = len(found) - 1
    while first > 0 and any(e["event"] == "resume" for e in found[first].events()):
        first -= 1
    return list(found[max(first, 0) :])


def continued_attempts(point_folder: Path) -> list[Attempt]:
    """List the newest attempt of a point and those before it, under the same settings, that it continues."""
    found = attempts(point_folder)
    digest = found[-1].summary().spec_digest if found else None
    return since_fresh_start([a for a in found if a.summary().spec_digest == digest])


def open_attempts(point_folder: Path, spec_digest: str | None = None) -> list[Attempt]:
    """List the attempts that count for the next decision about a point, oldest first.

    They have the same settings and follow the last attempt whose outcome was collected or that `dist3dgs retry` closed.
    """
    found: list[Attempt] = []
    for attempt in attempts(point_folder):
        summary = attempt.summary()
        foreign = spec_digest is not None and (summary.spec_digest or spec_digest) != spec_digest
        closed = summary.retry_at or (summary.published and is_collected(point_folder, summary))
        found = [] if foreign or closed else [*found, attempt]
    return found


def is_collected(point_folder: Path, summary: LaunchSummary) -> bool:
    """Return True if a record was made after the attempt ended: its result has reached the study."""
    try:
        made = Path(point_folder, "record.json").stat().st_mtime
    except OSError:
        return False
    return made >= (summary.finished_at or 0.0)


def read_state(attempt: Attempt, summary: LaunchSummary | None = None) -> AttemptState:
    """Read an attempt's state from its files. summary: if it has been read already."""
    summary = attempt.summary() if summary is None else summary
    lost, last = 1.0, None
    if summary.status != "ok":
        first, last, saved = _steps(attempt)
        lost = _lost_time(attempt, summary)
        if last is not None and last > first:
            lost = 1.0 - max(0, saved - first) / (last - first)
    return AttemptState(
        number=attempt.number,
        status=summary.status or "running",
        cause=summary.final_cause,
        note=summary.ended.note if summary.ended else None,
        step=last,
        gpu_hours=_gpu_hours(summary),
        lost=lost,
        loader_workers=summary.loader_workers,
        slurm_job_id=summary.job_id,
    )


def new_attempt(point_folder: Path) -> Attempt:
    """Make the folder of the next attempt; safe against two launchers at once (the loser gets the next number)."""
    found = attempts(point_folder)
    number = found[-1].number + 1 if found else 0
    while True:
        folder = Path(point_folder, ATTEMPTS, f"{number:03d}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
            return Attempt(folder)
        except FileExistsError:
            number += 1


def publish(point_folder: Path, note: str, **facts: Any) -> LaunchSummary:
    """Make the newest attempt the point's outcome: copy its summary to the point's `launch.json`.

    `facts` (spec, spec_digest) complete the summary of an attempt that was killed before it wrote one.
    """
    attempt = attempts(point_folder)[-1]
    summary = attempt.summary().filled(attempt=attempt.number, host=socket.gethostname(), **facts)
    summary = summary.updated(published=True, closing_note=note)
    if summary.status in (None, "running", "stopped"):
        summary = summary.updated(status="lost")
    return summary.filled(finished_at=summary.end_time or time.time()).save(attempt.folder, point_folder)


def text_digest(text: str) -> str:
    """Return a short digest of a text, such as a spec's JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _steps(attempt: Attempt) -> tuple[int, int | None, int]:
    """Return the step an attempt began at, the last step in its events, and the last one in a checkpoint."""
    events = [e for e in attempt.events() if isinstance(e.get("step"), int)]
    of_kind = {kind: [e["step"] for e in events if e["event"] == kind] for kind in ("resume", "checkpoint")}
    first = max(of_kind["resume"], default=0)
    return first, max((e["step"] for e in events), default=None), max(of_kind["checkpoint"], default=first)


def last_save(attempt: Attempt) -> float | None:
    """Return when the attempt's last checkpoint was there, in Unix seconds; None without any."""
    times = [e.get("t") for e in attempt.events() if e["event"] == "checkpoint"]
    return max((t for t in times if isinstance(t, int | float)), default=None)


def _lost_time(attempt: Attempt, summary: LaunchSummary) -> float:
    """Return the share of an attempt's time after its last checkpoint; 1 without any."""
    saved, start, end = last_save(attempt), summary.started_at, summary.end_time
    if saved is None or start is None or end is None or end <= start:
        return 1.0
    return min(1.0, max(0.0, end - saved) / (end - start))


def _gpu_hours(summary: LaunchSummary) -> float:
    if not summary.started_at:
        return 0.0
    try:
        workers = Layout.parse((summary.spec or {})["layout"]).world_size
    except (KeyError, TypeError):
        workers = 1
    seconds = (summary.end_time or time.time()) - summary.started_at
    return max(0.0, seconds) / 3600 * workers
