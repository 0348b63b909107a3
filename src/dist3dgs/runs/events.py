"""Events of a training run: one JSON object per line, in one `events.NODE.jsonl` per node.

The ranks of a node append to the same file: a line is one `write` to a descriptor opened with O_APPEND, which never
interleaves with another process's on the same machine. Between machines that share an NFS folder it may, hence one file
per node. `read_events` merges them by time; a torn last line (the process was killed while writing) is skipped.
Runs of earlier versions have a single `events.jsonl`, which is read likewise.

Every event has `t` (Unix seconds), `rank` and `event`. The vocabulary:

==============  =====================================================================================
event           further fields
==============  =====================================================================================
start           world_size, host, pid, device, device_name, threads, versions {torch, gsplat, ...}, renderer
enter           phase: the rank goes into a phase (see `PHASES`)
leave           phase, s: it leaves it, after s seconds
resume          step, path: training goes on from a checkpoint
step            step, loss, num_gaussians, step_s (mean per step since the last such event), images, sh_degree
progress        phase, step, views: every few seconds, whatever the phase; views: of an evaluation, so far
densify         step, cloned, split, pruned, relocated, added (as the kind has them), num_gaussians, shards, s
blocks          step, phase (of a strategy of blocks, from now on), gaussians, trained, views: per block; cells, s
eval            step, elapsed_s (training seconds so far, evaluation not counted), psnr, ssim, lpips, views; of blocks
                seam_psnr, seam_share
digest          step, digests: one parameter digest per rank
comm            phase, op, bytes, s, exposed_s, calls: totals of one collective in one phase over the attempt, per rank
scene           digest, num_views: the packed scene in use
timing          phases_s, parts_s, step_s {median, mean, p5, p95}, steps, images, train_s: per rank, at the end
memory          peak_rss_gib, peak_gpu_gib (null on CPU): per rank, at the end
checkpoint      step, path, s
export          path, num_gaussians
warning         message
error           type, message, traceback, phase, step
signal          signal
end             status ("ok" or "stopped"), step
==============  =====================================================================================
"""

import heapq
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: In the order in which a run passes through them; `step` and those after it alternate.
PHASES = ("startup", "load", "init", "step", "densify", "evaluate", "checkpoint", "export")


#: Events that show a run going on.
PROGRESS = ("step", "progress", "densify", "eval", "checkpoint", "export")
#: Longer lines are not events: an event is one small `write`.
MAX_EVENT_BYTES = 1 << 22
#: A look at a growing file reads at most so much; the rest comes at the next one.
MAX_TAIL_BYTES = 4 * MAX_EVENT_BYTES
_TIME = re.compile(rb'"t": ?(\d{1,15}(?:\.\d+)?)[,}]')


class EventWriter:
    """Appends events of one rank; every line reaches the operating system at once."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.rank = Path(path), rank
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, event: str, **fields: Any) -> None:
        line = json.dumps({"t": round(time.time(), 4), "rank": self.rank, "event": event, **fields})
        os.write(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def events_path(folder: Path, node: str) -> Path:
    """Return the file that the ranks on `node` append their events to."""
    return Path(folder, f"events.{node}.jsonl")


def is_event_file(name: str) -> bool:
    """Return True for the name of an event file: of one node, or of all nodes of an older run."""
    return name == "events.jsonl" or (name.startswith("events.") and name.endswith(".jsonl"))


def event_files(folder: Path) -> list[Path]:
    """List all event files of a run's folder, sorted by name."""
    try:
        return sorted(p for p in Path(folder).iterdir() if is_event_file(p.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a file in order, or those of a folder's event files merged by time.

    Torn or foreign lines are skipped; a missing file or folder has no events.
    """
    files = event_files(path) if Path(path).is_dir() else [Path(path)]
    for _, _, raw in read_lines(files):
        if (event := parse_event(raw)) is not None:
            yield event


def read_lines(files: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Yield file, 1-based number and text of each line, those of several files merged by time.

    For readers that name lines or need not parse all of them: a run may have a million steps.
    """
    if len(files) == 1:  # in order by itself, whatever its times
        yield from _lines(files[0])
    else:
        for _, line in heapq.merge(*map(_timed, files), key=lambda pair: pair[0]):
            yield line


def parse_event(raw: bytes) -> dict[str, Any] | None:
    """Parse one line; None if it is torn or foreign."""
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


class EventTail:
    """Reads the events that a run in progress has written since the last look.

    Args:
        folder: of the attempt.
        first_bytes: of each file at most so many from its end are read at the first look; None: all.
    """

    def __init__(self, folder: Path, first_bytes: int | None = None) -> None:
        self.folder, self.first_bytes = Path(folder), first_bytes
        self._offsets: dict[Path, int] = {}  # of the first line that was not whole yet

    def new(self) -> list[dict[str, Any]]:
        """List events written since the last call by time, those without one first. A torn last line comes later."""
        events = [event for path in event_files(self.folder) for event in self._new_of(path)]
        return sorted(events, key=lambda e: e["t"] if isinstance(e.get("t"), int | float) else 0.0)

    def _new_of(self, path: Path) -> list[dict[str, Any]]:
        try:
            with path.open("rb") as f:
                start = 0 if self.first_bytes is None else max(0, f.seek(0, os.SEEK_END) - self.first_bytes)
                f.seek(self._offsets.get(path, start))
                start, text = f.tell(), f.read(MAX_TAIL_BYTES)
        except FileNotFoundError:
            return []
        whole = text.rfind(b"\n") + 1
        if not whole and len(text) == MAX_TAIL_BYTES:  # no event: step over it
            whole = len(text)
        self._offsets[path] = start + whole
        return [event for raw in text[:whole].split(b"\n") if (event := parse_event(raw)) is not None]


def _timed(path: Path) -> Iterator[tuple[float, tuple[Path, int, bytes]]]:
    """Yield lines with the time they are sorted by; never decreasing, so that merging keeps each file's order."""
    latest = 0.0
    for line in _lines(path):
        if found := _TIME.search(line[2], 0, 200):
            latest = max(latest, float(found[1]))
        yield latest, line


def _lines(path: Path) -> Iterator[tuple[Path, int, bytes]]:
    if not path.exists():
        return
    with path.open("rb") as f:
        number = 1
        while raw := f.readline(MAX_EVENT_BYTES):
            yield path, number, raw
            number += raw.endswith(b"\n")
