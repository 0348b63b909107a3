"""One pass over a job's files: facts, progress and the lines that rules take. Both reading and judging stand on it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UserError
from ..logs.jobs import Job, by_job
from ..logs.lines import Block, clean, looks_binary, read_blocks
from ..logs.readers import events as own_events
from ..logs.readers import gsplat, metrics_csv, nvidia_smi, psrecord, resources, sacct
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
    files = [f for f in result.files if f.format == "events"]
    if files:
        result.diary = own_events.read([Path(f.path) for f in files])
        for f in files:
            f.lines = result.diary.events_of.get(f.path, 0)


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
    if looks_binary(head[:4096]):
        return FileInfo(str(path), "binary", size, note="not a text file")
    text = "\n".join(clean(raw) for raw in head[:8192].replace(b"\0", b"").splitlines()[:20])
    if own_events.sniff(text):
        return FileInfo(str(path), "events", size)
    if resources.sniff(text):
        result.nodes.append(resources.read(path))
        return FileInfo(str(path), "resources", size)
    if nvidia_smi.sniff(text):
        gpus, note = nvidia_smi.read(path)
        if gpus:
            result.smi.append((_name(path, result), gpus))
        return FileInfo(str(path), "nvidia-smi", size, note=note)
    if psrecord.sniff(text):
        result.processes.append(psrecord.read(path))
        return FileInfo(str(path), "psrecord", size)
    if metrics_csv.sniff(text):
        metrics_csv.read(path, result.facts, lambda fmt: result.series_of(index, fmt))
        return FileInfo(str(path), "metrics.csv", size)
    blocks: Iterable[Block] = read_blocks(path)
    kind, note = "text", None
    if sacct.sniff(text):
        kind = "sacct"
        blocks, note = sacct.read(path, result.facts, result.job_id)
    gsplat.read_name(path, result.facts)
    reader = TextReader(path, index, result)
    for block in blocks:
        reader.read(block)
    reader.close()
    lines = reader.last_block.number(len(reader.last_block.lines) - 1) if reader.last_block else 0
    return FileInfo(str(path), kind, size, lines, note)


def _name(path: Path, result: Scan) -> str:
    """What tells a file's GPUs from another's: its name, with the folder or a number where that is taken."""
    taken = {name for name, _ in result.smi}
    choices = [path.stem, f"{path.parent.name}/{path.stem}", *(f"{path.stem}.{i}" for i in range(2, 10_000))]
    return next(name for name in choices if name not in taken)
