"""Turn arguments of the command line into readable files: pipes, gzip, folders, our own runs."""

import gzip
import os
import select
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from ..logs.lines import looks_binary
from ..runs.attempts import FLIGHT
from ..runs.events import is_event_file
from .own_run import is_summary

GZIP = b"\x1f\x8b"
#: An endless stream must not fill the disk.
MAX_SPOOLED_BYTES = 4 << 30
#: A pipe without data for this long is taken to have ended.
PIPE_PATIENCE_S = 60.0
MAX_FILES_OF_FOLDER = 1000
CHUNK = 1 << 20
#: Files that the launcher writes into an attempt's folder, see dist3dgs.runs.attempts.
EVIDENCE = ("launch.json", "train.log")


@dataclass
class InputFiles:
    """Text files to read, runs of our own, and notes about the arguments."""

    logs: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    """launch.json or record.json of our own runs"""
    notes: list[str] = field(default_factory=list)
    missing: bool = False
    """something that was named is not there or cannot be read"""
    names: dict[str, str] = field(default_factory=dict)
    """path of a temporary copy -> what it was given as"""

    def named(self, text: str) -> str:
        """Replace names of temporary copies in `text` by the names given."""
        for path, name in self.names.items():
            text = text.replace(path, name)
        return text


@contextmanager
def open_inputs(paths: Sequence[Path | str]) -> Iterator[InputFiles]:
    """Sort out `paths`: a log, `-`, a pipe, a .gz, a folder, or a run of our own (folder or JSON)."""
    found = InputFiles()
    with tempfile.TemporaryDirectory(prefix="dist3dgs-") as scratch:
        for path in dict.fromkeys(Path(p) for p in paths):
            _take(path, found, Path(scratch))
        found.runs = list(dict.fromkeys(found.runs))
        named = {Path(p) for p in paths} | {Path(p) / "launch.json" for p in paths}
        found.notes += [
            f"{run} is read too: the launcher's summary" for run in found.runs if run not in named
        ]
        # An attempt's files are judged together with its launch.json.
        ours = {run.parent for run in found.runs}
        found.logs = [
            log for log in dict.fromkeys(found.logs) if not (log.parent in ours and _is_evidence(log))
        ]
        yield found


def _take(path: Path, found: InputFiles, scratch: Path) -> None:
    if str(path) == "-":
        _spool(sys.stdin.buffer, "-", "stdin", found, scratch)
        return
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _take_folder(path, found)
        elif stat.S_ISFIFO(mode):
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as f:
                if select.select([f], [], [], PIPE_PATIENCE_S)[0]:
                    _spool(f, str(path), path.name, found, scratch)
                else:
                    found.missing = True
                    found.notes.append(f"{path}: nobody wrote to it for {PIPE_PATIENCE_S:.0f} s")
        elif is_summary(path):
            found.runs.append(path)
        elif _is_evidence(path) and is_summary(path.with_name("launch.json")):
            found.runs.append(path.with_name("launch.json"))
        elif _starts_with(path, GZIP):
            with gzip.open(path) as f:
                _spool(f, str(path), path.name.removesuffix(".gz"), found, scratch)  # type: ignore[arg-type]
        else:
            found.logs.append(path)
    except (OSError, EOFError, gzip.BadGzipFile) as e:
        found.missing = True
        found.notes.append(f"{path}: {getattr(e, 'strerror', None) or 'cannot be unpacked whole'}")


def _take_folder(folder: Path, found: InputFiles) -> None:
    run = next((folder / n for n in ("launch.json", "record.json") if is_summary(folder / n)), None)
    if run is not None:
        found.runs.append(run)
        return
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    texts = [p for p in files[:MAX_FILES_OF_FOLDER] if not _is_binary(p)]
    if not texts:
        raise UserError(
            f"{folder}: no text file is in this folder; name the job's logs: dist3dgs diagnose job.out job.err"
        )
    found.notes.append(f"{folder}: {len(texts)} of its {len(files)} files are read")
    found.logs += texts


def _spool(stream: BinaryIO, shown: str, name: str, found: InputFiles, scratch: Path) -> None:
    """Copy a stream to a file; if it breaks off, keep what arrived."""
    folder = scratch / str(len(found.names))
    folder.mkdir()
    copy = folder / (name or "stdin")
    found.names[str(copy)] = shown
    found.logs.append(copy)
    with copy.open("wb") as out:
        while out.tell() < MAX_SPOOLED_BYTES:
            chunk = _next(stream)
            if not chunk:
                return
            out.write(chunk)
        found.notes.append(f"{shown}: only its first {MAX_SPOOLED_BYTES >> 30} GiB are read")


def _next(stream: BinaryIO) -> bytes:
    while True:
        # read1 returns all that can be unpacked of a truncated file.
        chunk = getattr(stream, "read1", stream.read)(CHUNK)
        if chunk is not None:  # None: a pipe whose writer has not written yet
            return chunk
        if not select.select([stream], [], [], PIPE_PATIENCE_S)[0]:
            return b""


def _is_evidence(path: Path) -> bool:
    name = path.name
    return (
        name in EVIDENCE
        or is_event_file(name)
        or name.startswith(FLIGHT)
        or (name.startswith("resources.") and path.suffix == ".csv")
    )


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as f:
        return f.read(len(magic)) == magic


def _is_binary(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            head = f.read(4096)
    except OSError:
        return True
    return looks_binary(head) if head else True
