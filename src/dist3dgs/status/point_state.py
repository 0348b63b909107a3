"""Find what a point is doing now, for `dist3dgs status`, the terminal of a run and its summary alike.

From the point's files, and from Slurm's queue where there is one.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from ..config.matrix import read_spec
from ..config.naming import COARSE, PARTS, Point, how_to_make
from ..errors import UserError
from ..runs.attempts import Attempt, attempts, read_state
from ..runs.causes import cause_words
from ..runs.events import EventTail
from ..runs.launch_summary import FILE, LaunchSummary, load_or_empty
from ..runs.record import RunRecord, load_record
from ..slurm.queue import Job

State = Literal[
    "waiting",  # nothing has started
    "queued",  # a Slurm job waits
    "running",
    "silent",  # running, but without an event for a long time: it may be hung, or its node gone
    "retrying",  # an attempt has failed; the next has not been submitted yet
    "stopped",  # with Snakemake: it goes on from its checkpoint when it is started again
    "ended",  # the record is not made yet
    "ok",
    "degraded",
    "failed",
    "unknown",
    "unreadable",
    "excluded",
]
#: States in which a point has a record, and so is done.
DONE: frozenset[State] = frozenset({"ok", "degraded", "failed", "unknown"})
#: States of points that have a failure to look into.
BAD: frozenset[State] = frozenset({"degraded", "failed", "unknown", "unreadable"})

#: States of a job that goes on, those that say most first.
LIVE: tuple[State, ...] = ("silent", "running", "retrying", "stopped", "queued")

#: An attempt without a new event for this long is called silent.
SILENT_S = 600.0
#: Bytes from the end of an event file that are read first: a refresh must stay cheap.
TAIL_BYTES = 65536
#: Characters of a line of evidence that are quoted.
QUOTED = 90


@dataclass(frozen=True, kw_only=True)
class PointState:
    """One point's state."""

    point: Point
    state: State
    detail: str = ""
    attempt: int | None = None
    """number of the newest attempt"""
    step: int | None = None
    parts: tuple[str, ...] = ()
    """of a point whose blocks train in jobs of their own: the parts that wait or run"""
    after: str | None = None
    """why the attempt before the one that waits or runs ended, in words"""
    record: Path | None = None
    """the record, where there is one"""

    @property
    def text(self) -> str:
        """The detail, and of a queued point why it is queued again."""
        again = f"; again after: {self.after}" if self.state == "queued" and self.after else ""
        return self.detail + again

    @property
    def is_starting(self) -> bool:
        """True if a job has started and its ranks have not come to a step yet."""
        return self.state == "running" and self.step is None

    @property
    def command(self) -> str | None:
        """The command that says why a point failed and what to change; None where nothing is wrong."""
        if self.record is None or self.state not in BAD:
            return None
        if self.state == "unreadable":
            return how_to_make(self.record, "") or None
        return f"dist3dgs diagnose {self.record}"


@dataclass
class AttemptProgress:
    """The newest facts of an attempt's events, read on from where the last look ended."""

    attempt: Attempt
    last_t: float | None = None
    step: int | None = None
    step_s: float | None = None
    phase: str | None = None
    """the phase rank 0 is in"""
    _tail: EventTail = field(init=False)

    def __post_init__(self) -> None:
        self._tail = EventTail(self.attempt.folder, TAIL_BYTES)

    def read(self) -> "AttemptProgress":
        """Take in the lines written since the last call. A torn last line is left for the next one."""
        for event in self._tail.new():
            if _is_number(event.get("t")):
                self._take(event)
        return self

    def _take(self, event: dict[str, Any]) -> None:
        self.last_t = max(event["t"], self.last_t or event["t"])
        kind, step = event.get("event"), event.get("step")
        if kind in ("step", "progress", "resume") and isinstance(step, int) and not isinstance(step, bool):
            self.step = max(step, self.step or 0)
        if kind == "step" and _is_number(event.get("step_s")):
            self.step_s = event["step_s"]
        if event.get("rank") == 0 and isinstance(event.get("phase"), str):
            if kind == "enter":
                self.phase = event["phase"]
            elif kind == "leave" and self.phase == event["phase"]:
                self.phase = None

    def describe(self, num_steps: int | None) -> str:
        """Describe step, rate and time left, or the phase before the first step."""
        if self.step is None:
            return f"starting ({self.phase})" if self.phase not in (None, "startup", "step") else "starting"
        parts = [f"step {self.step}/{num_steps}" if num_steps else f"step {self.step}"]
        if self.step == num_steps:
            parts.append(
                {"evaluate": "evaluating", "checkpoint": "saving"}.get(self.phase or "", "finishing")
            )
        elif self.step_s and num_steps:
            parts += [f"{rate(1 / self.step_s)}", f"{duration((num_steps - self.step) * self.step_s)} left"]
        return ", ".join(parts)


def state_of(
    point: Point,
    folder: Path,
    *,
    num_steps: int | None = None,
    jobs: Sequence[Job] = (),
    jobs_at: float | None = None,
    since: float | None = None,
    tails: dict[Path, AttemptProgress] | None = None,
) -> PointState:
    """Say what a point is doing now, and before its last job what its parts are doing.

    Args:
        folder: the point's folder.
        num_steps: of the run; read from the newest attempt where None.
        jobs: jobs in Slurm's queue that train the point or a part of it.
        jobs_at: Unix seconds of the look at the queue; None: now. An attempt that began later has left the queue.
        since: Unix seconds; what an earlier run of the workflow finished does not count. For points that are trained
            again.
        tails: event readers to go on with, by folder of the attempt; a caller that looks again and again keeps one.
    """
    names = {p.name for p in Path(folder, PARTS).glob("*")} | {j.part for j in jobs if j.part}
    own = _state_of_job(point, folder, num_steps, [j for j in jobs if not j.part], jobs_at, since, tails)
    if not names or own.state in LIVE:
        return own
    parts = {}
    for name in sorted(names, key=lambda name: (name != COARSE, len(name), name)):
        part = replace(point, part=name)
        mine = [j for j in jobs if j.part == name]
        parts[name] = _state_of_job(part, Path(folder, PARTS, name), None, mine, jobs_at, since, tails)
    return _of_parts(own, folder, parts)


def _of_parts(own: PointState, folder: Path, parts: Mapping[str, PointState]) -> PointState:
    """Sum up the parts of a point, unless they have ended and its last job says more."""
    live = {name: state for name, state in parts.items() if state.state in LIVE}
    ended = {
        name: load_or_empty(folder / PARTS / name / FILE) for name, s in parts.items() if s.state == "ended"
    }
    bad = [
        f"{name}: {cause_words(s.final_cause or 'unknown')}" for name, s in ended.items() if s.status != "ok"
    ]
    if not live and own.state != "waiting":
        return own
    said = [f"{name}: {state.text or state.state}" for name, state in live.items()]
    done = (
        [f"{len(ended) - len(bad)} part{'s' * (len(ended) - len(bad) != 1)} done"]
        if len(ended) > len(bad)
        else []
    )
    first = next((s for kind in LIVE for s in live.values() if s.state == kind), own)
    return replace(
        first,
        point=own.point,
        detail="; ".join([*said, *bad, *done]),
        step=max((s.step for s in live.values() if s.step is not None), default=None),
        parts=tuple(live),
    )


def _state_of_job(
    point: Point,
    folder: Path,
    num_steps: int | None,
    jobs: Sequence[Job],
    jobs_at: float | None,
    since: float | None,
    tails: dict[Path, AttemptProgress] | None,
) -> PointState:
    """Say what the job of a point or a part is doing; arguments as of `state_of`, `jobs` its own alone."""
    tried = attempts(folder)
    newest = tried[-1] if tried else None
    summary = newest.summary() if newest else LaunchSummary()
    finished = summary.finished_at if summary.published or summary.status == "ok" else None
    if since is not None and finished is not None and finished < since:
        newest, summary = None, LaunchSummary()
    pending = next((j for j in jobs if j.state == "PENDING"), None)
    own_job, status, began = summary.job_id, summary.status, summary.started_at
    ended_cause = summary.ended.cause if summary.ended else None
    runs = newest is not None and status in (None, "running") and not ended_cause
    requeued = pending is not None and pending.id == own_job
    requeued = requeued and (jobs_at is None or began is None or began < jobs_at)
    if (
        newest is not None
        and runs
        and not requeued
        and not _is_judged(newest, summary, folder / "record.json")
    ):
        return _running(point, newest, summary, num_steps, tried, tails)
    after = None
    if newest is not None and runs:
        after = "preemption or a lost node"  # Slurm has put the job back into its queue
    elif newest is not None and not summary.published and status != "ok":
        after = _ending(newest)
    number = None if newest is None else newest.number
    if pending is not None:
        detail = waiting_words(pending)
        return PointState(point=point, state="queued", detail=detail, attempt=number, after=after)
    started = next((j for j in jobs if j.id != own_job and j.state in ("RUNNING", "CONFIGURING")), None)
    if started is not None:
        detail = f"starting, Slurm job {started.id} on {started.nodes or 'its nodes'}"
        return PointState(point=point, state="running", detail=detail, attempt=number, after=after)
    record = folder / "record.json"
    if record.is_file() and (since is None or record.stat().st_mtime >= since):
        return _recorded(point, record, number)
    if newest is None:
        return PointState(point=point, state="waiting")
    prefix = _prefix(newest)
    if status == "ok" or summary.published:
        detail = f"{prefix}{status}; the record is not made yet"
        return PointState(point=point, state="ended", detail=detail, attempt=number)
    if status in ("failed", "refused") and not _is_retried(summary):
        detail = f"{prefix}{after}; the record is not made yet"
        return PointState(point=point, state="ended", detail=detail, attempt=number)
    if (status == "stopped" and not summary.final_cause) or status == "interrupted":
        step = read_state(newest, summary).step
        at = f"at step {step}" if step else "before its first step"
        return PointState(point=point, state="stopped", detail=f"{prefix}{at}", attempt=number, step=step)
    return PointState(point=point, state="retrying", detail=f"{prefix}{after}", attempt=number, after=after)


def _is_retried(summary: LaunchSummary) -> bool:
    """Return True if the login node still decides about a failed attempt in a Slurm job."""
    return summary.slurm is not None and not summary.published


def _is_judged(attempt: Attempt, summary: LaunchSummary, record: Path) -> bool:
    """Return True if a record has been made since the attempt began, so that the attempt is not running any more."""
    try:
        made = record.stat().st_mtime
        return (summary.started_at or attempt.folder.stat().st_mtime) <= made
    except OSError:
        return False


def _prefix(attempt: Attempt) -> str:
    return f"attempt {attempt.number}, " if attempt.number else ""


def _ending(attempt: Attempt) -> str:
    """Describe the end of an attempt in words."""
    seen = read_state(attempt)
    at = f" at step {seen.step}" if seen.step else ""
    return f"{cause_words(seen.cause) if seen.cause else seen.status}{at}"


def _recorded(point: Point, path: Path, attempt: int | None) -> PointState:
    try:
        record = load_record(path)
    except UserError:
        detail = f"{path} is no record; delete it and make it again"
        return PointState(point=point, state="unreadable", detail=detail, record=path)
    return PointState(
        point=point,
        state=record.status,
        detail=_verdict(record),
        attempt=attempt,
        step=record.failure.step if record.failure else None,
        record=path,
    )


def _verdict(record: RunRecord) -> str:
    """Describe a record: quality and time, or the cause of its failure with the line that proves it."""
    failure = record.failure
    if failure is None:
        psnr = "" if record.metrics.psnr is None else f"PSNR {record.metrics.psnr:.2f} dB"
        total = "" if record.metrics.total_s is None else duration(record.metrics.total_s)
        return ", ".join(part for part in (psnr, total) if part)
    where = f" in {failure.phase}" if failure.phase else ""
    where = where if failure.step is None else f" at step {failure.step}"
    line = quoted(failure.evidence[0].text) if failure.evidence else ""
    return f"{cause_words(failure.cause)}{where}" + (f": {line}" if line else "")


def _running(
    point: Point,
    attempt: Attempt,
    summary: LaunchSummary,
    num_steps: int | None,
    tried: list[Attempt],
    tails: dict[Path, AttemptProgress] | None,
) -> PointState:
    tail = (tails if tails is not None else {}).setdefault(attempt.folder, AttemptProgress(attempt)).read()
    if num_steps is None:
        num_steps = steps_of(summary)
    before = tried[-2] if len(tried) > 1 else None
    earlier = before.summary() if before is not None else LaunchSummary()
    after = _ending(before) if before and earlier.status != "ok" and not earlier.published else None
    began = tail.last_t
    detail = _prefix(attempt) + tail.describe(num_steps)
    if began is None:  # its ranks import and meet, or it has died before it could say so
        began = summary.started_at or attempt.folder.stat().st_mtime
    silent_s = time.time() - began
    state: State = "running"
    if silent_s > SILENT_S:
        state, words = "silent", "no event" if tail.last_t is not None else "no sign of life"
        if tail.last_t is None:
            detail = f"{_prefix(attempt)}{words} for {duration(silent_s)}"
        else:
            detail = f"{detail}; {words} for {duration(silent_s)}"
    return PointState(
        point=point, state=state, detail=detail, attempt=attempt.number, step=tail.step, after=after
    )


def steps_of(summary: LaunchSummary) -> int | None:
    """Return the number of optimiser steps of an attempt's run; None if its summary has no settings."""
    with contextlib.suppress(UserError, TypeError):
        return read_spec(summary.spec, "launch.json").last_step
    return None


def state_line(state: PointState) -> str:
    """Describe a point in one line."""
    if state.is_starting:
        return f"{state.point}: {state.detail}"
    return f"{state.point}: {state.state}" + (f", {state.detail}" if state.detail else "")


def waiting_words(job: Job) -> str:
    """Say what a queued job waits for, by Slurm's reason."""
    reason = "" if job.reason.strip("()") in ("", "None") else f", {job.reason.strip('()')}"
    when = job.start.removeprefix(time.strftime("%Y-%m-%dT")).removesuffix(":00")
    start = "" if job.start in ("N/A", "") else f", expected to start {when}"
    never = f": will never start, {job.waits_for_ever}" if job.waits_for_ever else ""
    return f"Slurm job {job.id}{reason}{start}{never}"


def totals(states: Iterable[State]) -> str:
    """Count the points in each state, the finished ones first."""
    counts = Counter(states)
    order = [*("ok", "degraded", "failed", "unknown", "unreadable", "ended", "running", "silent"), *counts]
    return ", ".join(f"{counts[s]} {s}" for s in dict.fromkeys(order) if counts[s])


def quoted(text: str, width: int = QUOTED) -> str:
    """Fit a line of a log on one line of a terminal: no control characters, cut where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else line[: width - 3] + "..."


def rate(steps_per_s: float) -> str:
    return f"{steps_per_s:.1f} steps/s" if steps_per_s >= 1 else f"{1 / steps_per_s:.1f} s/step"


def duration(seconds: float) -> str:
    minutes, s = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {s:02} s" if minutes else f"{s} s"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
