"""Turn arguments of the command line into readable files: pipes, gzip, folders, our own runs.

A folder is a run of ours, or holds runs (a results folder, or what is below it), or the logs of jobs. Programs,
documents and settings are no logs: in a README the words of an error prove nothing.
"""

import gzip
import os
import re
import select
import shlex
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
from ..logs.readers import binary_format_of, format_of
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
HEAD_BYTES = 8192
#: Files that the launcher writes into an attempt's folder, see dist3dgs.runs.attempts.
EVIDENCE = ("launch.json", "train.log")
#: Below a folder that holds runs: of a layout, a strategy, a scene, a whole study.
RUN_FOLDERS = ("r*", "n*g*/r*", "*/n*g*/r*", "*/*/n*g*/r*")
#: Files of a folder that are logs only if a reader knows their format.
NO_LOGS = re.compile(
    r"\.(?:md|rst|tex|bib|html|css|svg|xml|csv|tsv|json|toml|ya?ml|cfg|ini|conf|lock|cff|diff|patch"
    r"|pyi?|ipynb|(?:ba)?sh|sbatch|slurm|smk|[chmr]|cc|[ch]pp|cuh?|rs|go|jl|js|ts|java)$"
    r"|^(?:readme|licen[cs]e|copying|notice|authors|contributing|changelog|version|citation|requirements|makefile"
    r"|dockerfile|snakefile|cmakelists)(?:\.|$)",
    re.IGNORECASE,
)


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
        named = {Path(p) for p in paths}
        found.notes += [
            f"{run} is read too: the launcher's summary"
            for run in found.runs
            if named.isdisjoint((run, *run.parents))
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
    if (run := _run_in(folder)) is not None:
        found.runs.append(run)
        return
    if runs := _runs_below(folder):
        found.runs += runs
        found.notes.append(f"{folder}: {len(runs)} run{'s' * (len(runs) != 1)} below it")
        return
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    logs = [p for p in files[:MAX_FILES_OF_FOLDER] if _is_log(p)]
    if not logs:
        raise UserError(f"{folder}: {_no_input(folder, len(files))}")
    found.notes.append(
        f"{folder}: {len(logs)} of its {_files(len(files))} {'is' if len(logs) == 1 else 'are'} read"
    )
    found.logs += logs


def _run_in(folder: Path) -> Path | None:
    return next((folder / n for n in ("launch.json", "record.json") if is_summary(folder / n)), None)


def _runs_below(folder: Path) -> list[Path]:
    """List the runs of a layout's, a strategy's, a scene's or a study's folder."""
    for pattern in RUN_FOLDERS:
        if runs := [run for f in sorted(folder.glob(pattern)) if (run := _run_in(f)) is not None]:
            return runs
    return []


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _no_input(folder: Path, num_files: int) -> str:
    """Say what was expected of a folder that holds neither runs nor logs, and the next command."""
    here = f"none of its {_files(num_files)} is a log" if num_files else "no file is in it"
    results = folder if folder.name == "results" else folder / "results"
    studies = [f for f in (results, *sorted(results.glob("*/"))) if f != folder and _runs_below(f)]
    command = (
        f"dist3dgs diagnose {shlex.quote(str(studies[0]))}"
        if studies
        else "dist3dgs diagnose job.out job.err"
    )
    return (
        f"no run and no logs are in this folder ({here}); expected a results folder, a run's folder "
        f"(results/SCENE/STRATEGY/n1g2/r0), or a job's logs, files or their folder. Try: {command}"
    )


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


def _is_log(path: Path) -> bool:
    """Return True for text that a program may have printed and for formats that a reader knows."""
    try:
        with path.open("rb") as f:
            head = f.read(HEAD_BYTES)
    except OSError:
        return False
    if binary_format_of(head) is not None:
        return True
    if not head or looks_binary(head):
        return False
    if NO_LOGS.search(path.name) or head.startswith(b"#!"):
        return format_of(head.decode("utf-8", "replace")) is not None
    return True
