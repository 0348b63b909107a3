"""The study at a glance: which points wait, run, are done, failed and why.

From the files, and from Slurm's queue where there is one. The end of a run of the workflow is summed up here too.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config.matrix import Study
from ..config.naming import PARTS, Point
from ..errors import UserError
from ..runs.attempts import ATTEMPTS
from ..slurm.queue import CACHE_S, Queue
from .controller import missing_controller
from .point_state import BAD, DONE, PointState, duration, state_line, state_of, totals

#: Every look reads the newest events of all points.
MIN_WATCH_S = 1.0
MAX_WATCH_S = 86_400.0
#: Points whose failure the summary of a run names one by one.
NAMED = 5
#: Commands that `status` prints.
COMMANDS = 10


def rows(study: Study, queue: Queue | None = None) -> Iterator[PointState]:
    """Yield states of the matrix's points, of those off the matrix, then of the points that are left out."""
    results = Path(study.config.results)
    matrix = {spec.point: spec.num_steps for spec in study.specs()}
    others = points_on_disk(results, matrix)
    for point in (*matrix, *others):
        jobs_at, jobs = time.time() - CACHE_S, queue.of_point_and_parts(point) if queue else ()
        yield state_of(point, point.folder(results), num_steps=matrix.get(point), jobs=jobs, jobs_at=jobs_at)
    for point, reason in study.exclusions():
        if point not in others:
            yield PointState(point=point, state="excluded", detail=reason)


def points_on_disk(results: Path, known: Iterable[Point]) -> list[Point]:
    """List points with a record or an attempt in the results folder, without the known ones."""
    found = set()
    for what in ("record.json", ATTEMPTS, PARTS):
        for path in Path(results).glob(f"*/*/*/r*/{what}"):
            try:
                found.add(Point.parse(*path.parent.relative_to(results).parts))
            except UserError:  # something else of that shape
                continue
    return sorted(found - set(known))


def show(study: Study, watch_s: float | None = None) -> None:
    """Print the table once, or again every `watch_s` seconds until Ctrl-C. Raises `UserError` below a second."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    if watch_s is not None and not MIN_WATCH_S <= watch_s <= MAX_WATCH_S:
        raise UserError(
            f"--watch {watch_s:g}: expected at least {MIN_WATCH_S:g} second between two looks, at most a day"
        )
    console, queue = Console(), Queue(results=study.config.results)
    states = list(rows(study, queue))
    try:
        if watch_s is None:
            console.print(_table(study, states))
            return
        with Live(_table(study, states), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(watch_s)
                states = list(rows(study, queue))
                table = Group(_table(study, states), *map(Text, _controller(study, states)))
                live.update(table, refresh=True)
    finally:
        for line in (*commands(states), *_controller(study, states)):
            print(line)  # as it is: a command that is wrapped cannot be copied


def _controller(study: Study, states: Iterable[PointState]) -> list[str]:
    """Say that nobody is at work on the points that are left, if that is known."""
    is_done = all(s.state in DONE | {"excluded", "unreadable"} for s in states)
    problem = None if is_done else missing_controller(Path(study.config.results))
    return [] if problem is None else ["", problem]


def commands(states: Iterable[PointState]) -> list[str]:
    """List commands that explain why points failed and what to change."""
    found = [command for s in states if (command := s.command)]
    if not found:
        return []
    more = [f"  and {len(found) - COMMANDS} more: the report has them all"] if len(found) > COMMANDS else []
    return ["", "Why, and what to change:", *(f"  {c}" for c in found[:COMMANDS]), *more]


_STYLES = {"ok": "green", "failed": "red", "degraded": "yellow", "silent": "yellow", "running": "cyan"}


def _table(study: Study, states: Sequence[PointState]) -> Any:
    from rich.console import Group
    from rich.text import Text

    matrix = set(study.points())
    inside = [s for s in states if s.point in matrix or s.state == "excluded"]
    outside = [s for s in states if s.point not in matrix and s.state != "excluded"]
    parts = [Text(totals(s.state for s in inside)), points_table(inside)]
    if outside:
        parts += [
            Text(f"\nnot in the study's matrix: {totals(s.state for s in outside)}"),
            points_table(outside),
        ]
    return Group(*parts)


def points_table(states: Iterable[PointState]) -> Any:
    """Make a table for rich, a row per point. Text, not markup: details quote log lines."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=12, overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for s in states:
        table.add_row(Text(str(s.point)), Text(s.state, style=_STYLES.get(s.state, "")), Text(s.text))
    return table


def summary(
    states: Sequence[PointState],
    *,
    report: Path | None = None,
    elapsed_s: float | None = None,
    status_command: str | None = "dist3dgs status",
) -> str:
    """Sum up a run of the workflow in a few lines: totals, cause of each failed point, the next command.

    Args:
        states: of all points that were asked for.
        report: the report of the study, whether or not it was made.
        elapsed_s: seconds that the run took; None where nothing was run.
        status_command: prints all points of this study; None where no command does.
    """
    took = f", {duration(elapsed_s)}" if elapsed_s is not None else ""
    lines = [f"{len(states)} point{'s' * (len(states) != 1)}: {totals(s.state for s in states)}{took}"]
    named = [
        s for s in states if s.state not in DONE - BAD and s.state not in ("waiting", "queued", "running")
    ]
    lines += [f"  {state_line(s)}" for s in named[:NAMED]]
    if len(named) > NAMED:
        lines.append(f"  and {len(named) - NAMED} more")
    if elapsed_s is not None and any(s.state not in DONE | BAD for s in states):
        lines.append("the same command goes on from here")
    if report is not None and _shows(report, states):
        lines.append(f"report: {os.path.relpath(report)}")
    found = [c for s in named if (c := s.command)]
    if found:
        command = status_command if len(found) > 1 and status_command else found[0]
        lines.append(f"why, and what to change: {command}")
    return "\n".join(lines)


def _shows(report: Path, states: Iterable[PointState]) -> bool:
    """Return True if a report was made from the records of all these points."""
    try:
        made = report.stat().st_mtime
        return all(s.record is not None and s.record.stat().st_mtime <= made for s in states)
    except OSError:
        return False
