"""One pass over a job's files: facts, progress and the lines that rules take. Both reading and judging stand on it."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from ..errors import UserError
from . import where
from .clock import Clock
from .facts import FactPattern, Facts, Line
from .lines import Block, clean, looks_binary, read_blocks
from .loss import LossWatch
from .readers import elastic, epochs, gsplat, metrics_csv, nerfstudio, nvidia_smi, psrecord, resources, sacct, slurm
from .readers import events as own_events
from .rules import HINTS, RULES, Hit, Tier
from .steps import FORMATS, StepFormat, StepSeries

#: Text patterns of all readers; every new line shape is shown to them.
FACTS: tuple[FactPattern, ...] = tuple(
    p for module in (nerfstudio, gsplat, elastic, slurm, sacct, epochs) for p in module.FACTS
)
#: How often lines of one shape are looked at after any rule or reader cared for the first. Of a shape whose numbers
#: matter (a metric that is printed again and again) the last one in each block is read after that.
REPEATS = 8
REPEATS_RANKS = 64
#: Step times are taken from every block of the first 8 MiB, then from every sixteenth and the last.
FULL_BLOCKS = 8
BLOCK_STRIDE = 16
MAX_SHAPES = 200_000
#: After this many differing shapes in one file (a dump, not a log) only lines with an alarming word are looked at.
MAX_CLOSE_LINES = 100_000
MAX_HITS = 20_000
MAX_OFTEN = 32
ALARMING = re.compile(rb"[Ee]rror|ERROR|Traceback|CANCELLED|[Kk]illed|oom|OOM|NCCL WARN|[Ff]ailed|FAILED|TIMEOUT|Xid")
MAX_SERIES = 32
TAIL_BYTES = 1 << 14
SLURM_LINE = re.compile(r"slurmstepd|srun:|CANCELLED")
#: Progress bars that are no training.
NO_TRAINING = re.compile(
    r"(?i)load|map\b|map \(|token|download|fetch|eval|valid|\btest|render|shard|extract|cach|generat|filter|truncat|"
    r"process|reading|undistort|match|convert|copy|upload|sanity|predict|creating|saving|packing|caption|sampling"
)


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
    facts: Facts = field(default_factory=Facts)
    series: dict[tuple[str, int | None], StepSeries] = field(default_factory=dict)
    hits: list[Hit] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    loss: LossWatch = field(default_factory=LossWatch)
    gpus: dict[str, nvidia_smi.GpuSamples] = field(default_factory=dict)
    processes: list[psrecord.ProcessSamples] = field(default_factory=list)
    nodes: list[resources.NodeSamples] = field(default_factory=list)
    diary: own_events.RunDiary | None = None
    first_time: dict[int, float] = field(default_factory=dict)
    last_time: dict[int, float] = field(default_factory=dict)
    last_stamped: dict[int, Line] = field(default_factory=dict)  # the last line with a time above any end from outside


def scan(paths: Sequence[Path | str]) -> Scan:
    """Read all `paths` (files of one job). Missing, empty and binary ones are noted; a folder is refused.

    Raises `UserError` if nothing at all can be read.
    """
    if not paths:
        raise UserError("no log given; give the job's files, e.g.: dist3dgs diagnose job.out job.err")
    result = Scan()
    for path in dict.fromkeys(Path(p) for p in paths):
        result.files.append(_scan_file(path, len(result.files), result))
    if all(f.format in ("missing", "binary", "unreadable") for f in result.files):
        notes = "; ".join(f"{f.path}: {f.note}" for f in result.files)
        raise UserError(f"nothing to read: {notes}. Give text logs: dist3dgs diagnose job.out job.err")
    return result


def _scan_file(path: Path, index: int, result: Scan) -> FileInfo:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the files in it: dist3dgs diagnose {path}/*.out {path}/*.err")
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
        result.diary = own_events.read(path)
        return FileInfo(str(path), "events", size, result.diary.num_events)
    if resources.sniff(text):
        result.nodes.append(resources.read(path))
        return FileInfo(str(path), "resources", size)
    if nvidia_smi.sniff(text):
        for key, gpu in nvidia_smi.read(path).items():
            result.gpus.setdefault(key, gpu)
        return FileInfo(str(path), "nvidia-smi", size)
    if psrecord.sniff(text):
        result.processes.append(psrecord.read(path))
        return FileInfo(str(path), "psrecord", size)
    if metrics_csv.sniff(text):
        series = metrics_csv.read(path, result.facts)
        result.series[series.format.name, None] = series
        return FileInfo(str(path), "metrics.csv", size)
    if sacct.sniff(text):
        sacct.read(path, result.facts)
    reader = TextReader(path, index, result)
    for block in read_blocks(path):
        reader.read(block)
    reader.close()
    return FileInfo(str(path), "sacct" if sacct.sniff(text) else "text", size, reader.last_block.number_at(len(reader.last_block.data)) if reader.last_block else 0)


class TextReader:
    """Reads one text log block by block into a `Scan`."""

    def __init__(self, path: Path, index: int, result: Scan) -> None:
        self.path, self.index, self.result = str(path), index, result
        self.clock = Clock()
        self.seen: set[bytes] = set()  # shapes that nobody needs to see again
        self.repeats: dict[bytes, int] = {}  # shapes that somebody cares for -> how often still
        self.often: dict[bytes, list[FactPattern]] = {}
        self.num_blocks = 0
        self.formats: list[StepFormat] = []
        self.tail = b""
        self.progress = result.progress.setdefault(index, Progress())
        self.offset = 0
        self.order = 0
        self.close_lines = 0
        self.last_block: Block | None = None

    def read(self, block: Block) -> None:
        hits = [hit for i in self._choose(block) for hit in self._look(block, i)]
        self.result.loss.read(self, block)
        self._look_often(block)
        self._steps(block, hits)
        self.result.hits.extend(hits[: max(0, MAX_HITS - len(self.result.hits))])
        self.tail = block.data[-TAIL_BYTES:]
        self.offset += len(block.data) + 1
        self.order += len(block.shapes)
        self.last_block = block
        self.num_blocks += 1

    def _look_often(self, block: Block) -> None:
        for shape in self.often.keys() & block.unique:
            i = len(block.shapes) - 1 - block.shapes[::-1].index(shape)
            self.result.facts.read(Line(self.path, None, clean(block.lines[i])), self.often[shape])

    def _choose(self, block: Block) -> list[int]:
        """Indices of the segments that may have to be looked at."""
        wanted = block.unique - self.seen
        if not wanted:
            return []
        chosen = [i for i, shape in enumerate(block.shapes) if shape in wanted]
        if self.close_lines > MAX_CLOSE_LINES:
            chosen = [i for i in chosen if ALARMING.search(block.lines[i])]
        if len(self.seen) > MAX_SHAPES:
            self.seen.clear()
        return chosen

    def _look(self, block: Block, i: int) -> list[Hit]:
        shape = block.shapes[i]
        if shape in self.seen:
            return []
        self.close_lines += 1
        text = clean(block.lines[i])
        line = Line(self.path, block.number(i), text, self.clock.read(text))
        if line.time is not None and self.clock.dated:
            self.result.first_time.setdefault(self.index, line.time)
        often = self.result.facts.read(line, FACTS)
        again = REPEATS_RANKS if often else 0
        for fmt in FORMATS:
            if fmt not in self.formats and fmt.pattern.search(block.lines[i]):
                if fmt.name != "key value" or not any(f.pattern.search(block.lines[i]) for f in self.formats):
                    self.formats.append(fmt)
                break
        hit = self._judge(block, line, i)
        if hit is not None:
            again = max(again, REPEATS_RANKS if hit.rule.tier == Tier.COMMUNICATION else REPEATS)
        left = self.repeats.get(shape, again) - 1
        if left > 0:
            self.repeats[shape] = left
        else:
            self.repeats.pop(shape, None)
            self.seen.add(shape)
            if often and len(self.often) < MAX_OFTEN:
                self.often[shape] = often
        return [hit] if hit else []

    def _judge(self, block: Block, line: Line, i: int) -> Hit | None:
        low = line.text.lower()
        if not any(word in low for word in HINTS):
            return None

        def context(n: int) -> list[str]:
            before = block.lines[max(0, i - n) : i]
            if len(before) < n:
                before = [*tail.split(b"\n")[-(n - len(before)) :], *before]
            return [clean(raw) for raw in before]

        def below(n: int) -> list[str]:
            return [clean(raw) for raw in block.lines[i + 1 : i + 1 + n]]

        tail = self.tail if i < 80 else b""
        bare = where.PREFIX.sub("", line.text)
        for rule in RULES:
            found = rule.match(bare)
            if found is None:
                continue
            hit = Hit(rule, found, line, self.index, self.order + i, context, below)
            hit.steps_above = lambda: self.progress.count + self._steps_above(block, i)
            hit.rank, hit.node = where.of(hit)
            if rule.accept is None or rule.accept(hit):
                return hit
        return None

    def _steps_above(self, block: Block, i: int) -> int:
        above = b"\n".join(block.lines[max(0, i - 400) : i])
        return sum(1 for fmt in self.formats if next(_training(fmt, above), None) is not None)

    def _steps(self, block: Block, hits: list[Hit]) -> None:
        """Run the active step formats over the block, and note how much progress stands before each hit."""
        starts: list[int] = []
        for fmt in self.formats:
            if self.num_blocks < FULL_BLOCKS or self.num_blocks % BLOCK_STRIDE == 0:
                self._series(fmt, block)
            if hits:
                starts += _training(fmt, block.data)
        starts.sort()
        if hits:
            ends = [0, *accumulate(len(line) + 1 for line in block.lines)]
            for hit in hits:
                at = ends[hit.order - self.order]
                hit.steps_before = self.progress.count + bisect_right(starts, at)
                hit.bytes_before = self.offset + at
        self._note_progress(block, starts)

    def _note_progress(self, block: Block, starts: list[int]) -> None:
        at = max((_last_training(fmt, block.data) for fmt in self.formats), default=-1)
        p = self.progress
        below = 0
        if at >= 0:
            p.count += max(len(starts), 1)
            p.bytes = self.offset + at
            start, below = block.data.rfind(b"\n", 0, at) + 1, block.data.find(b"\n", at)
            text = clean(block.data[start : below if below >= 0 else None])
            p.last, p.after_time = Line(self.path, block.number_at(at), text, self.clock.read(text)), None
        if p.last is not None and p.after_time is None and below >= 0:
            times = (self.clock.read(clean(raw)) for raw in block.data[below : below + TAIL_BYTES].split(b"\n"))
            p.after_time = next((t for t in times if t is not None), None)

    def _series(self, fmt: StepFormat, block: Block) -> None:
        all_series = self.result.series
        data = b"\n".join(dict.fromkeys(block.lines)) if fmt.redrawn else block.data
        for groups in fmt.pattern.findall(data):
            try:
                p = fmt.parse(groups if isinstance(groups, tuple) else (groups,))
            except (ValueError, OverflowError):
                continue
            if not 0 <= p.step < 1 << 62:
                continue
            key = (fmt.name, p.total)
            series = all_series.get(key)
            if series is None:
                if len(all_series) >= MAX_SERIES:
                    continue
                series = all_series[key] = StepSeries(fmt, p.total, _description(fmt, data, groups))
            series.add(p)

    def close(self) -> None:
        """Find the last times of day in the file."""
        if self.last_block is None:
            return
        for fmt in self.formats:
            self._series(fmt, self.last_block)
        lines = self.last_block.lines
        for i in range(len(lines) - 1, max(-1, len(lines) - 400), -1):
            text = clean(lines[i])
            time = self.clock.read(text)
            if time is None:
                continue
            if self.clock.dated:
                self.result.last_time.setdefault(self.index, time)
            if not SLURM_LINE.search(text):
                self.result.last_stamped[self.index] = Line(self.path, self.last_block.number(i), text, time)
                return


def _training(fmt: StepFormat, data: bytes) -> Iterator[int]:
    """Offsets of the format's lines in `data`, those of bars that are no training left out."""
    for m in fmt.pattern.finditer(data):
        if fmt.name != "tqdm" or not NO_TRAINING.search(_before(data, m.start())):
            yield m.start()


def _last_training(fmt: StepFormat, data: bytes) -> int:
    """Offset of the last progress line in `data`, -1 if there is none."""
    for start in (max(0, len(data) - (1 << 14)), 0):
        start = data.rfind(b"\n", 0, start) + 1
        last = max(_training(fmt, data[start:]), default=-1)
        if last >= 0 or start == 0:
            return start + last if last >= 0 else -1
    return -1


def _before(data: bytes, at: int) -> str:
    """What stands before a progress bar on its line: `Loading checkpoint shards:`."""
    start = max(data.rfind(b"\n", 0, at), at - 120)
    return clean(data[start + 1 : at])


def _description(fmt: StepFormat, data: bytes, groups: Sequence[bytes]) -> str:
    if fmt.name != "tqdm":
        return ""
    return next((_before(data, m.start()) for m in fmt.pattern.finditer(data) if m.groups() == groups), "")
