"""Show a study on the terminal while Snakemake runs it: a line when a point changes its state, or a live table.

The Snakefile announces the study and the points of a run by `announce` and `begin`, in records of Snakemake's own
logger; `Terminal` (made by the plugin `snakemake_logger_plugin_dist3dgs`) reads them together with Snakemake's
events, looks at the points' files and at Slurm's queue, and prints. Snakemake's own output goes to its log file.
"""

import contextlib
import difflib
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..config.naming import Point
from ..console import FOLLOWED
from ..errors import UserError
from ..slurm.queue import CACHE_S, RULES, Job, Queue
from .controller import Controller
from .interrupt import INTERRUPTS
from .point_state import DONE, AttemptProgress, PointState, duration, quoted, state_line, state_of, totals
from .table import points_table, summary

#: Snakemake's logger; its module is not imported where Snakemake does not run.
LOGGER = logging.getLogger("snakemake.logging")
#: Attributes by which our records carry what they announce.
STUDY, RUN, END, SAID = "dist3dgs_study", "dist3dgs_run", "dist3dgs_end", "dist3dgs_said"
#: Seconds between looks at the points' files.
TICK_S = 1.0
#: Seconds between progress lines of a running point; longer where many run, so that lines stay readable.
PROGRESS_S, RUNNING_WITHOUT_PAUSE = 30.0, 10
#: Seconds until a failed training job that is not submitted again, and left no attempt, is reported.
COMPLAINT_S = 8.0
#: Rules whose jobs are reported in one line for all: they take seconds, and there is one per figure.
DRAWING = ("tabulate", "figure", "write_report")
#: Targets that are no files.
TARGETS = ("all", "train_all", "tables", "figures", "report")
#: Rules without a line: points have lines of their own, and targets do nothing.
SILENT_RULES = (*RULES, "record", "check", *TARGETS)
#: Rows of the live table that the terminal's height leaves.
MARGIN_ROWS = 6
NOTHING = "Nothing to be done"
#: Said after the first Ctrl-C, and after each more.
STOPPING = "stopping: runs in progress save a checkpoint and end; finished points are kept"
STOPPED = "stopped; finished points are kept, and the same command goes on"
STILL_STOPPING = "still stopping; finished points are kept, and the same command goes on"
#: Snakemake's line after SIGTERM, once in every turn of its scheduler, and what is said of it.
ENDS_LATER = "Will exit after finishing currently running jobs"
ENDING = "asked to end (SIGTERM): waiting for runs in progress, starting no more; the same command goes on"
#: Of a run that left jobs out.
INCOMPLETE = "At least one job did not complete successfully."


@dataclass
class FollowedStudy:
    """A study as the terminal needs it."""

    results: Path
    points: list[Point]
    num_steps: Callable[[Point], int | None]
    queue: Queue | None = None
    poll_s: float = 2.0
    """seconds between looks at the queue"""
    status_command: str | None = None
    """command that prints the status of this study; None where the command line has settings that it cannot take"""
    files: Sequence[str] = ()
    """paths of figures and records, as they are given as targets"""
    run: "FollowedRun | None" = None

    def summary(self, states: Sequence[PointState], elapsed_s: float | None = None) -> str:
        report, status = self.results / "report/report.html", self.status_command
        return summary(states, report=report, elapsed_s=elapsed_s, status_command=status)

    def target_hint(self, message: str) -> str | None:
        """Say which target was meant where Snakemake says that nothing makes one; None for other messages."""
        found = re.search(r"No rule to produce (.+) \(if you use input functions", message)
        if found is None:
            return None
        nearest = difflib.get_close_matches(found[1], [*TARGETS, *self.files], n=1)
        return (
            f"no such target: {found[1]}{f'; did you mean {nearest[0]}?' if nearest else '.'} Expected one of "
            f"{', '.join(TARGETS)}, or a file: {self.results}/SCENE/STRATEGY/n1g2/r0/record.json"
        )

    def states(self) -> list[PointState]:
        """Find the state of each point of the matrix, from its files and the queue."""
        return [self.state(p) for p in self.points]

    def state(
        self,
        point: Point,
        *,
        jobs: Sequence[Job] | None = None,
        jobs_at: float | None = None,
        since: float | None = None,
        tails: dict[Path, AttemptProgress] | None = None,
    ) -> PointState:
        if jobs is None:
            jobs_at = time.time() - CACHE_S
            jobs = self.queue.of_point_and_parts(point) if self.queue is not None else ()
        folder, steps = point.folder(self.results), self.num_steps(point)
        return state_of(point, folder, num_steps=steps, jobs=jobs, jobs_at=jobs_at, since=since, tails=tails)


@dataclass
class FollowedRun:
    """One run of Snakemake: the points it is asked for, and those of them that it trains or judges."""

    study: FollowedStudy
    points: list[Point]
    needed: set[Point]
    began: float = field(default_factory=time.time)
    controller: Controller | None = None

    def state(self, point: Point, **how: Any) -> PointState:
        return self.study.state(point, since=self.began if point in self.needed else None, **how)

    def states(self) -> list[PointState]:
        return [self.state(p) for p in self.points]


def announce(study: FollowedStudy) -> None:
    """Make the study known to the terminal; prints nothing."""
    LOGGER.info(None, extra={STUDY: study})


def begin(
    study: FollowedStudy, points: Iterable[Point], needed: Iterable[Point], logs: Sequence[str] = ()
) -> None:
    """Announce a run of Snakemake, and let the terminal follow it.

    Args:
        points: what the run is asked for.
        needed: those of them that are trained or judged.
        logs: Snakemake's own.
    """
    run = study.run = FollowedRun(study, list(points), set(needed))
    if run.needed:
        run.controller = Controller(study.results, sys.argv)
        run.controller.begin()
    if run.points:
        counts = totals(s.state for s in run.states())
        log = f"; full log: {os.path.relpath(logs[0])}" if logs else ""
        LOGGER.info(f"{_plural(len(run.points), 'point')}: {counts}{log}", extra={RUN: run})


def end(study: FollowedStudy) -> None:
    """Sum up the run."""
    run = study.run
    if run is not None and run.points:
        states = run.states()
        if run.controller is not None:
            run.controller.end(is_done=all(s.state in DONE for s in states))
        LOGGER.info(study.summary(states, time.time() - run.began), extra={END: True})


class Terminal:
    """Prints the progress of a run.

    Args:
        stream: where to.
        quiet: names of what Snakemake is told to be quiet about ("progress", "rules", "all").
        show_failed_logs: print the log of a job that failed.
        format: Snakemake's own text of a record.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: frozenset[str] = frozenset(),
        show_failed_logs: bool = False,
        nocolor: bool = False,
        format: Callable[[logging.LogRecord], str] = logging.LogRecord.getMessage,
    ) -> None:
        self.stream, self.quiet, self.show_failed_logs, self.format = stream, quiet, show_failed_logs, format
        self._nocolor = nocolor
        self._lock = threading.RLock()
        self._study: FollowedStudy | None = None
        self._run: FollowedRun | None = None
        self._held: list[str] = []
        self._warned: list[str] = []
        self._started = False
        self._jobs: dict[int, _RuleJob] = {}
        self._points: dict[Point, _Followed] = {}
        self._drawing = self._error_shown = False
        self._queued: tuple[float, dict[Point, list[Job]]] = (0.0, {})
        self._interrupts_said, self._ending = 0, False
        self._live: Any = None
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None
        # What local jobs print goes to their logs alone: their lines would come between ours.
        os.environ[FOLLOWED] = "1"

    # -- records of the logger

    def handle(self, record: logging.LogRecord) -> None:
        with self._lock:
            event = str(getattr(record, "event", None) or "")
            if event in _HANDLERS:
                _HANDLERS[event](self, record)
            elif (study := getattr(record, STUDY, None)) is not None:
                self._study = study
            elif (run := getattr(record, RUN, None)) is not None:
                self._begin(run, record.getMessage())
            elif getattr(record, END, False):
                self._stop_live()
                for point, followed in self._points.items():
                    self._look_at(point)
                    if (text := followed.complaint(0.0)) is not None:
                        self._line(text)
                self._write(record.getMessage())
            elif getattr(record, SAID, False):
                self._line(record.getMessage())
            elif record.levelno >= logging.WARNING:
                self._complaint(record)
            elif record.getMessage().startswith(ENDS_LATER):
                if not self._ending:
                    self._line(ENDING)
                self._ending = True
            elif record.levelno == logging.INFO and not event and not self._started and record.msg:
                self._held.append(self.format(record))

    def close(self) -> None:
        """Print what was held back if no job was run, and leave the terminal as it was."""
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join(10)
        with self._lock:
            self._stop_live()
            held, self._held = self._held, []
            if INTERRUPTS.count and self._run is None:  # a run of points ends with their summary
                self._write(STOPPED)
                return
            drawn_alone = self._drawing and self._run is None  # a run of points ends with their summary
            if drawn_alone and self._study is not None and not self._error_shown and "all" not in self.quiet:
                self._write(f"drawn: {self._study.results / 'figures'}")
                self._drawing = False
            if self._started or self._error_shown or "all" in self.quiet:
                return
            if self._study is not None and (nothing := [text for text in held if text.startswith(NOTHING)]):
                held = [*nothing, self._study.summary(self._study.states())]
            for text in held:
                self._write(text)

    def _job_info(self, record: Any) -> None:
        job = _RuleJob(record.jobid, record.rule_name, dict(record.wildcards or {}), list(record.log or ()))
        self._jobs[job.id] = job
        if job.rule in RULES and (point := job.point) is not None:
            self._followed(point).submitted(record.resources)
        elif job.rule in DRAWING and not self._drawing:
            self._drawing = True
            self._detail("tables, figures and report: started")
        elif job.rule not in (*DRAWING, *SILENT_RULES):
            self._detail(f"{job}: {'started' if record.local else 'submitted'}")

    def _job_finished(self, record: Any) -> None:
        job = self._jobs.get(record.job_id)
        if job is None:
            return
        job.running = False
        if job.point is not None and job.rule in (*RULES, "record"):
            self._look_at(job.point)
        elif job.rule not in (*DRAWING, *SILENT_RULES):
            self._detail(f"{job}: done, {duration(time.time() - job.began)}")

    def _job_error(self, record: Any) -> None:
        self._error_shown = True
        if INTERRUPTS.count:  # it was stopped, as the summary says
            return
        job = self._jobs.get(record.jobid) or _RuleJob(record.jobid, record.rule_name, {}, list(record.log))
        job.running = False
        log = next((p for path in record.log if (p := Path(path)).is_file()), None)
        last = _last_error(log) if log is not None else None
        where = f"; log: {log}" if log is not None else f"; no log was left ({', '.join(record.log)})"
        message = getattr(record, "rule_msg", None)
        text = f"{job} failed: {last or quoted(message or 'no message', 200)}{where}"
        reported = any(f"{job} failed: " in warning for warning in self._warned)  # by the executor
        if job.rule in RULES and job.point is not None:
            self._followed(job.point).failed(text)
        elif not reported:
            self._line(text)
        if self.show_failed_logs and log is not None:
            self._write(log.read_text(errors="replace"))

    def _error(self, record: logging.LogRecord) -> None:
        """Print an exception, unless it repeats a failed job that was reported with its log."""
        self._error_shown, shown_before = True, self._error_shown
        if INTERRUPTS.count:  # of a job that was stopped
            return
        text = self.format(record)
        kind = getattr(record, "exception", None)
        if (shown_before or self._ending) and text.rstrip().endswith(INCOMPLETE):
            return
        if kind in ("RuleException", "CalledProcessError") and "non-zero exit status" in text:
            return
        self._line(text)

    def _complaint(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if self._error_shown and text.startswith("Exiting because a job execution failed."):
            return
        self._warned.append(text)
        self._line(text)

    def _run_info(self, record: logging.LogRecord) -> None:
        self._started = True
        self._held = []

    def _nothing(self, record: logging.LogRecord) -> None:
        """Ignore events that are in Snakemake's log."""

    # -- the points

    def _begin(self, run: FollowedRun, text: str) -> None:
        self._run, self._started = run, True
        for point in run.points:
            self._followed(point)
        if not self.quiet:
            self._line(text)
        if self._is_terminal() and not self.quiet:
            self._start_live()
        self._ticker = threading.Thread(target=self._tick, name="dist3dgs terminal", daemon=True)
        self._ticker.start()

    def _followed(self, point: Point) -> "_Followed":
        if point not in self._points:
            known = self._run is not None and point not in self._run.needed
            state = self._run.state(point, jobs=()) if self._run else PointState(point=point, state="waiting")
            self._points[point] = _Followed(state, active=False)
            self._points[point].done = known and state.state in DONE
        return self._points[point]

    def _tick(self) -> None:
        asked_at = -math.inf
        while not self._stop.wait(TICK_S):
            try:
                active = self._active()
                queue = self._run.study.queue if self._run is not None else None
                poll_s = self._run.study.poll_s if self._run is not None else math.inf
                if queue is not None and time.monotonic() - asked_at >= poll_s:
                    # Not under the lock: Slurm may take its time.
                    jobs_at, jobs = time.time() - CACHE_S, {p: queue.of_point_and_parts(p) for p in active}
                    self._queued, asked_at = (jobs_at, jobs), time.monotonic()
                with self._lock:
                    self._say_interrupts()
                    for point in active:
                        self._look_at(point, *self._queued_jobs(point))
                    if self._live is not None:
                        self._live.update(self._table(), refresh=True)
            except Exception as e:  # the run goes on whatever becomes of its display
                with self._lock:
                    self._stop_live()
                    self._line(f"the points are not followed any more ({type(e).__name__}: {e})")
                return

    def _say_interrupts(self) -> None:
        said, self._interrupts_said = self._interrupts_said, INTERRUPTS.count
        if said < self._interrupts_said:
            self._line(STILL_STOPPING if said else STOPPING)

    def _active(self) -> list[Point]:
        with self._lock:
            return [p for p, f in self._points.items() if f.active and not f.done]

    def _queued_jobs(self, point: Point) -> tuple[Sequence[Job], float]:
        jobs_at, jobs = self._queued
        return jobs.get(point, ()), jobs_at

    def _look_at(self, point: Point, jobs: Sequence[Job] = (), jobs_at: float | None = None) -> None:
        """Print what has changed. `jobs`: of the point, as of `jobs_at`; none where its job has ended."""
        if self._run is None or point not in self._points:
            return
        followed = self._points[point]
        running = sum(1 for f in self._points.values() if f.state.state == "running")
        pause_s = PROGRESS_S * max(1.0, running / RUNNING_WITHOUT_PAUSE)
        state = self._run.state(point, jobs=jobs, jobs_at=jobs_at, tails=followed.tails)
        lines = followed.take(state, pause_s if "progress" not in self.quiet else math.inf)
        if (text := followed.complaint(COMPLAINT_S)) is not None:
            self._line(text)
        for text, important in lines:
            if followed.done:
                self._line(f"{text} {self._totals()}")
            elif important:
                self._line(text)
            elif self._live is None:
                self._detail(text)

    def _totals(self) -> str:
        done = [f.state.state for f in self._points.values() if f.done]
        counts = f": {totals(done)}" if done else ""
        return f"[{len(done)}/{len(self._points)} done{counts}]"

    # -- output

    def _detail(self, text: str) -> None:
        """Print a line that --quiet leaves out."""
        if not self.quiet & {"rules", "all"}:
            self._line(text)

    def _line(self, text: str) -> None:
        self._write(f"{time.strftime('[%H:%M:%S]')} {text}")

    def _write(self, text: str) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text, style=""), soft_wrap=True, highlight=False)
            return
        with contextlib.suppress(BrokenPipeError):
            print(text, file=self.stream, flush=True)

    def _is_terminal(self) -> bool:
        return self.stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def _start_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self.stream, no_color=self._nocolor)
        self._live = Live(self._table(), console=console, auto_refresh=False, transient=True)
        self._live.start()

    def _stop_live(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _table(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        states = [f.state for f in self._points.values()]
        rank = {"running": 0, "silent": 0, "queued": 1, "retrying": 1, "ended": 2, "waiting": 3}
        shown = sorted((s for s in states if s.state in rank), key=lambda s: rank[s.state])
        room = max(3, self._live.console.height - MARGIN_ROWS) if self._live is not None else len(shown)
        jobs = [
            Text(f"{job}: {duration(time.time() - job.began)}")
            for job in self._jobs.values()
            if job.running and job.rule not in (*RULES, "record")
        ]
        more = [Text(f"and {len(shown) - room} more")] if len(shown) > room else []
        return Group(Text(""), Text(self._totals()), points_table(shown[:room]), *more, *jobs[:3])


@dataclass
class _RuleJob:
    """A job as Snakemake reports it."""

    id: int
    rule: str
    wildcards: dict[str, str]
    log: list[str]
    began: float = field(default_factory=time.time)
    running: bool = True

    @property
    def point(self) -> Point | None:
        try:
            w = self.wildcards
            return Point.parse(w["scene"], w["strategy"], w["layout"], w["repeat"])
        except (KeyError, UserError):
            return None

    def __str__(self) -> str:
        if self.point is not None:
            what = self.wildcards.get("part", "") if self.rule in RULES else self.rule
            return f"{self.point}: {what}" if what else f"{self.point}"
        return " ".join((self.rule, *map(str, self.wildcards.values())))


@dataclass
class _Followed:
    """A point of the run, and what was last printed about it."""

    state: PointState
    active: bool
    done: bool = False
    tails: dict[Path, AttemptProgress] = field(default_factory=dict)
    _asked: list[tuple[int | None, int | None]] = field(default_factory=list)
    """memory (MB) and time (minutes) of each submission"""
    _said_again: int = 0
    _said_at: float = 0.0
    _said_step: int | None = None
    _unexplained: bool = False
    _complaint: tuple[float, str] | None = None

    def submitted(self, resources: Any) -> None:
        self.active, self._complaint = True, None
        self._asked.append((_number(resources, "mem_mb"), _number(resources, "runtime")))

    def failed(self, text: str) -> None:
        """Keep `text` about a failed job for the case that neither another attempt nor a record says why."""
        self._complaint = time.monotonic(), text

    def complaint(self, patience_s: float) -> str | None:
        if self._complaint is None or time.monotonic() - self._complaint[0] < patience_s:
            return None
        (_, text), self._complaint = self._complaint, None
        return None if self.done or self.state.after is not None or self.state.state == "stopped" else text

    def take(self, state: PointState, pause_s: float) -> list[tuple[str, bool]]:
        """Return lines about what has changed; True beside those that matter even with a live table."""
        if self.done:
            return []
        before, self.state = self.state, state
        lines = []
        changed = (before.state, before.attempt, before.parts) != (state.state, state.attempt, state.parts)
        again = len(self._asked) - 1
        if state.after is not None and again > self._said_again and state.state in ("queued", "running"):
            self._said_again = again
            lines.append((f"{state.point}: {state.after}, again{self._grown()}", True))
        if state.state in DONE or state.state == "unreadable":
            self.done = True
            lines.append((state_line(state), True))
        elif state.state == "queued":
            # Slurm gives its reason a moment after the submission.
            if changed and "," not in state.detail and not self._unexplained:
                self._unexplained, self.state = True, before
            elif changed:
                again_said = bool(lines)
                lines.append(
                    (state_line(state) if again_said else f"{state.point}: queued, {state.text}", False)
                )
        elif state.state in ("running", "silent"):
            now = time.monotonic()
            first_step = self._said_step is None and state.step is not None
            due = state.step != self._said_step and now - self._said_at >= pause_s
            if state.is_starting and before.state == "running":
                due = changed = False
            if changed or first_step or due:
                self._said_at, self._said_step = now, state.step
                lines.append((state_line(state), state.state == "silent"))
        return lines

    def _grown(self) -> str:
        """Return what this submission asks for and the one before did not."""
        if len(self._asked) < 2:
            return ""
        (memory, minutes), (memory_now, minutes_now) = self._asked[-2:]
        if memory and memory_now and memory_now > memory:
            return f" with {memory_now} MB"
        if minutes and minutes_now and minutes_now > minutes:
            return f" with {minutes_now} min"
        return ""


_HANDLERS: dict[str, Callable[[Terminal, Any], None]] = {
    "run_info": Terminal._run_info,
    "job_info": Terminal._job_info,
    "job_finished": Terminal._job_finished,
    "job_error": Terminal._job_error,
    "group_error": Terminal._complaint,
    "error": Terminal._error,
    **dict.fromkeys(
        (
            *("workflow_started", "shellcmd", "job_started", "group_info", "resources_info"),
            *("debug_dag", "progress", "rulegraph"),
        ),
        Terminal._nothing,
    ),
}


def _number(resources: Any, name: str) -> int | None:
    with contextlib.suppress(Exception):
        return int(str(dict(resources.items())[name]))
    return None


def _last_error(log: Path) -> str | None:
    """Find the error that a job's log ends with: the last line that starts with `error`, else the last one."""
    from ..slurm.outcome import read_tail

    lines = [line for line in read_tail(log).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return quoted((errors or lines)[-1].removeprefix("error: "), 300) if lines else None


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def stream_of(stdout: bool) -> TextIO:
    return sys.stdout if stdout else sys.stderr
