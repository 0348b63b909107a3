"""Read a job's files in one pass: facts, progress and the lines that rules take, for summary and verdict alike."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..logs.jobs import Job, by_job
from ..logs.lines import clean, looks_binary, read_blocks
from ..logs.log_data import Added
from ..logs.readers import all_readers, binary_format_of, events, format_of
from .scan_result import FileInfo, Scan
from .text_reader import TextReader


def scan(paths: Sequence[Path | str], warmup_steps: int = 0, warmup_epochs: int = 0) -> Scan:
    """Read all `paths` (files of one job; a `Job` names it). Missing, empty and binary ones are noted.

    So many first steps and epochs are left out of the statistics of their times. A folder is refused.
    Raises `UserError` if nothing at all can be read.
    """
    if not paths:
        raise UserError("no log given; give the job's files, e.g.: dist3dgs diagnose job.out job.err")
    if not isinstance(paths, Job) and len(jobs := by_job(paths)) == 1:
        paths = jobs[0]
    result = Scan(
        job_id=paths.job_id if isinstance(paths, Job) else None,
        warmup_steps=warmup_steps,
        warmup_epochs=warmup_epochs,
    )
    for path in dict.fromkeys(Path(p) for p in paths):
        result.files.append(_scan_file(path, len(result.files), result))
    _read_events(result)
    if all(f.format in ("missing", "binary", "unreadable") for f in result.files):
        notes = "; ".join(f"{f.path}: {f.note}" for f in result.files)
        raise UserError(f"nothing to read: {notes}. Give text logs: dist3dgs diagnose job.out job.err")
    return result


def _read_events(result: Scan) -> None:
    """Read the event files together: each node of a run has its own."""
    if result.event_files:
        result.events = events.read(result.event_files)
        for f in result.files:
            f.lines = result.events.events_of.get(f.path, f.lines)


def _scan_file(path: Path, index: int, result: Scan) -> FileInfo:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; name the files in it: dist3dgs diagnose {path}/*.out {path}/*.err"
        )
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        return FileInfo(str(path), "unreadable", note="not a regular file; save its content to one")
    try:
        with path.open("rb") as f:
            head = f.read(1 << 16)
        size = path.stat().st_size
    except FileNotFoundError:
        return FileInfo(str(path), "missing", note="no such file")
    except OSError as e:
        return FileInfo(str(path), "unreadable", note=e.strerror or "cannot be read")
    if not head.strip(b"\0 \t\r\n"):
        return FileInfo(str(path), "empty", size, note="the file is empty")
    if (reader := binary_format_of(head)) is not None:
        return FileInfo(str(path), reader.FORMAT, size, note=reader.add(path, index, result).note)
    if looks_binary(head[:4096]):
        return FileInfo(str(path), "binary", size, note="not a text file")
    text = "\n".join(clean(raw) for raw in head[:8192].replace(b"\0", b"").splitlines()[:20])
    reader = format_of(text)
    kind, added = ("text", Added(blocks=read_blocks(path))) if reader is None else (
        reader.FORMAT, reader.add(path, index, result)
    )  # fmt: skip
    if added.blocks is None:
        return FileInfo(str(path), kind, size, note=added.note)
    for named in all_readers():
        if hasattr(named, "read_name"):
            named.read_name(path, result.facts)
    text_reader = TextReader(path, index, result)
    for block in added.blocks:
        text_reader.read(block)
    text_reader.close()
    return FileInfo(str(path), kind, size, text_reader.num_lines, added.note)
