"""One pass over a job's files: facts, progress and the lines that rules take. Both reading and judging stand on it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .facts import Facts, Line
from .heartbeats import Heartbeats
from .jobs import Job, by_job
from .lines import Block, clean, looks_binary, read_blocks
from .loss import LossWatch
from .readers import events as own_events
from .readers import gsplat, metrics_csv, nvidia_smi, psrecord, resources, sacct
from .rules import Hit
from .series import StepFormat, StepSeries
from .text import TextReader


@dataclass
class FileInfo:
    """One file that was read, or not."""

    path: str
    format: str
    bytes: int = 0
    lines: int = 0
    note: str | None = None


@dataclass
class Progress:
    """Where progress lines stand in one text file."""

    count: int = 0
    bytes: int = 0
    last: Line | None = None
    after_time: float | None = None  # of the first line below `last` that has one


@dataclass
class Scan:
    """What one pass found."""

    files: list[FileInfo] = field(default_factory=list)
    job_id: str | None = None
    facts: Facts = field(default_factory=Facts)
    series: dict[tuple[int, str, int | None], StepSeries] = field(default_factory=dict)
    hits: list[Hit] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    loss: LossWatch = field(default_factory=LossWatch)
    smi: list[tuple[str, dict[str, nvidia_smi.GpuSamples]]] = field(
        default_factory=list
    )  # file's name, its GPUs
    processes: list[psrecord.ProcessSamples] = field(default_factory=list)
    nodes: list[resources.NodeSamples] = field(default_factory=list)
    diary: own_events.RunDiary | None = None
    first_time: dict[int, float] = field(default_factory=dict)
    last_time: dict[int, float] = field(default_factory=dict)
    last_stamped: dict[int, Line] = field(
        default_factory=dict
    )  # the last line with a time above any end from outside
    heartbeats: dict[int, Heartbeats] = field(default_factory=dict)  # with which a file ends
    timeless_below: dict[int, list[Line]] = field(default_factory=dict)  # lines without one below it
    warmup_steps: int = 0  # left out of the statistics of progress displays
    warmup_epochs: int = 0

    def series_of(
        self, index: int, fmt: StepFormat, total: int | None = None, description: str = ""
    ) -> StepSeries:
        """Add the series of a progress display of the file of that index."""
        warmup = self.warmup_epochs if fmt.epochs else self.warmup_steps
        series = StepSeries(fmt, total, description, warmup=warmup)
        self.series[index, fmt.name, total] = series
        return series

    def progress_of(self, index: int) -> Progress:
        return self.progress.setdefault(index, Progress())


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
