"""The study at a glance: which points wait, run, are done, failed and why.

From the files alone; where there is a Slurm that answers, points without files yet are looked up in its queue.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .evidence import Attempt, attempts
from .matrix import Study
from .names import Point, how_to_make
from .slurm.jobs import Queue, describe
from .spec import RunSpec

#: An attempt without a new event for this long is called silent: it may be hung, or its node gone.
SILENT_S = 600.0
#: Bytes from the end of an event file that are read for the newest step: a refresh must stay cheap.
TAIL_BYTES = 65536
#: Every look reads the newest events of all points.
MIN_WATCH_S = 1.0
MAX_WATCH_S = 86_400.0


@dataclass(frozen=True)
class Row:
    """One point's state."""

    point: Point
    state: str
    """waiting, queued, running, silent, retrying, ended (no record yet), excluded, or the record's status"""
    detail: str = ""


def rows(study: Study, queue: Queue | None = None) -> Iterator[Row]:
    """One row per point of the matrix, in its order; then those that are left out."""
    for spec in study.specs():
        row = _row(spec.point, spec, spec.point.folder(Path(study.config.results)))
        jobs = queue.of_point(spec.point) if queue and row.state in ("waiting", "retrying") else []
        if jobs:
            number = f"{row.detail}; " if row.detail else ""
            row = Row(row.point, "queued", f"{number}job {jobs[0].id}: {describe(jobs[0])}")
        yield row
    for point, reason in study.exclusions():
        yield Row(point, "excluded", reason)


def _row(point: Point, spec: RunSpec, folder: Path) -> Row:
    record = folder / "record.json"
    tried = attempts(folder)
    if record.is_file() and not (tried and _trains_again(tried[-1], record)):
        return _recorded(point, record)
    if not tried:
        return Row(point, "waiting")
    newest = tried[-1]
    status = newest.launch().get("status")
    number = f"attempt {newest.number}, " if newest.number else ""
    if status in ("ok", "failed", "refused"):
        return Row(point, "ended", f"{number}{status}; the record is not made yet")
    if status not in (None, "running"):
        return Row(point, "retrying", f"{number}{status}")
    return _running(point, spec, newest, number)


def _trains_again(newest: Attempt, record: Path) -> bool:
    """Whether an attempt was started after the record of an earlier one was made, and has not ended."""
    launch = newest.launch()
    started = launch.get("started_at")
    running = launch.get("status") in (None, "running") and not launch.get("ended")
    return running and isinstance(started, int | float) and started > record.stat().st_mtime


def _recorded(point: Point, path: Path) -> Row:
    from .record import load_record

    try:
        record = load_record(path)
    except UserError:
        return Row(
            point, "unreadable", f"{path} is no record; delete it{how_to_make(path, ' and make it again: ')}"
        )
    if record.failure is not None:
        where = f" in {record.failure.phase}" if record.failure.phase else ""
        at = f" at step {record.failure.step}" if record.failure.step is not None else ""
        return Row(point, record.status, f"{record.failure.cause}{where}{at}; dist3dgs diagnose {path}")
    psnr = "" if record.metrics.psnr is None else f"PSNR {record.metrics.psnr:.2f} dB"
    total = "" if record.metrics.total_s is None else f", {_duration(record.metrics.total_s)}"
    return Row(point, record.status, psnr + total)


def _running(point: Point, spec: RunSpec, attempt: Attempt, number: str) -> Row:
    events = list(_tail(attempt.events_path))
    if not events:
        return _starting(point, attempt, number)
    last_t = max(e["t"] for e in events)
    steps = [e for e in events if e.get("event") == "step" and _is_number(e.get("step"), e.get("step_s"))]
    detail = f"{number}starting"
    if steps:
        newest = steps[-1]
        left_s = (spec.num_steps - newest["step"]) * newest["step_s"]
        rate = 1 / newest["step_s"] if newest["step_s"] else 0.0
        detail = (
            f"{number}step {newest['step']}/{spec.num_steps}, {rate:.1f} steps/s, {_duration(left_s)} left"
        )
    silent_s = time.time() - last_t
    if silent_s > SILENT_S:
        return Row(point, "silent", f"{detail}; no event for {_duration(silent_s)}")
    return Row(point, "running", detail)


def _starting(point: Point, attempt: Attempt, number: str) -> Row:
    """An attempt without an event: its ranks import and meet, or it has died before it could say so."""
    started = attempt.launch().get("started_at")
    if not isinstance(started, int | float):
        started = attempt.folder.stat().st_mtime
    quiet_s = time.time() - started
    if quiet_s > SILENT_S:
        return Row(point, "silent", f"{number}no sign of life for {_duration(quiet_s)}")
    return Row(point, "running", f"{number}starting")


def _is_number(*values: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """Events in the last part of a file."""
    import json

    try:
        with path.open("rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - TAIL_BYTES))
            lines = f.read().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("t"), (int, float)):
            yield event


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {s:02} s" if minutes else f"{s} s"


def show(study: Study, watch_s: float | None = None) -> None:
    """Print the table once, or again every `watch_s` seconds until Ctrl-C. Raises `UserError` below a second."""
    from rich.console import Console
    from rich.live import Live

    if watch_s is not None and not MIN_WATCH_S <= watch_s <= MAX_WATCH_S:
        raise UserError(
            f"--watch {watch_s:g}: expected at least {MIN_WATCH_S:g} second between two looks, at most a day"
        )
    console = Console()
    if watch_s is None:
        console.print(_table(study))
        return
    with Live(_table(study), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(watch_s)
            live.update(_table(study), refresh=True)


_STYLES = {"ok": "green", "failed": "red", "degraded": "yellow", "silent": "yellow", "running": "cyan"}


def _table(study: Study) -> Any:
    from collections import Counter

    from rich.table import Table
    from rich.text import Text

    found = list(rows(study, Queue(results=study.config.results)))
    counts = Counter(r.state for r in found)
    title = ", ".join(f"{n} {state}" for state, n in counts.most_common())
    table = Table("point", "state", "", title=title, box=None, title_justify="left")
    for r in found:
        # Text, not markup: causes quote log lines.
        table.add_row(Text(str(r.point)), Text(r.state, style=_STYLES.get(r.state, "")), Text(r.detail))
    return table
