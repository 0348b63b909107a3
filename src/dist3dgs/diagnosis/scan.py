"""Read a job's files in one pass: facts, progress and the lines that rules take, for summary and verdict alike."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import UserError
from ..logs import attribution
from ..logs.facts import FactPattern, Line
from ..logs.jobs import Job, by_job
from ..logs.lines import Block, clean, looks_binary, read_blocks
from ..logs.log_data import Added, LogData
from ..logs.readers import all_readers, binary_format_of, events, fact_table, format_of
from ..logs.readers.events import RunEvents
from ..logs.timestamps import Clock
from ..runs.record import HungCollective
from .progress import MAX_ENDING, STOPPED, Heartbeats, LossWatch, ProgressParser, heartbeats_at_the_end
from .rules import Hit, Tier, candidates, takers

#: Lines of one shape examined after a rule or a reader took the first one. Of a shape whose numbers
#: matter (a metric printed repeatedly) the last one in each block is read after that.
REPEATS = 8
REPEATS_RANKS = 64
MAX_SHAPES = 200_000
#: After so many different shapes in one file (a dump, not a log) only lines with an alarming word are examined,
MAX_CLOSE_LINES = 20_000
#: and after so many of those only the end of the file.
MAX_ALARMS = 5_000
LAST_ALARMS = 300
#: Hits kept of one rule in one file, besides the last.
MAX_RULE_HITS = 200
#: Lines that are cleaned and prefiltered together.
BATCH = 256
#: Lines around a hit that its rule may inspect.
NUM_ABOVE, NUM_BELOW = 80, 8
MAX_OFTEN = 32
ALARMING = re.compile(
    rb"[Ee]rror|ERROR|Traceback|CANCELLED|[Kk]illed|oom|OOM|NCCL WARN|[Ff]ailed|FAILED|TIMEOUT|Xid"
)
#: What torch's C++ side and torchrun call a warning: retries of a connection, a port that was taken at first, ...
TORCH_WARNING = re.compile(r"(?:\[rank\d+\]:)?(?:\[W[ \d]|W\d{4} [\d:.]+ \d+ )")
#: Lines of the job's script, by `set -x` or printed for the record: they state what might happen, not what did.
SCRIPT = re.compile(r"\++ |#(?:SBATCH|BSUB|PBS|!|\s)|(?:echo|export|if|then|fi|trap) ")
TAIL_BYTES = 1 << 14
SLURM_LINE = re.compile(r"slurmstepd|srun:|CANCELLED")


@dataclass
class FileInfo:
    """One input file and the result of reading it."""

    path: str
    format: str
    bytes: int = 0
    lines: int = 0
    note: str | None = None


@dataclass
class Progress:
    """Positions of progress lines in one text file."""

    count: int = 0
    bytes: int = 0
    last: Line | None = None
    after_time: float | None = None  # of the first line below `last` that has one


@dataclass
class Scan(LogData):
    """Data of a job's logs, and the evidence for a verdict. Keys are the indices of `files`."""

    files: list[FileInfo] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    loss: LossWatch = field(default_factory=LossWatch)
    events: RunEvents | None = None
    hang: HungCollective | None = None
    first_time: dict[int, float] = field(default_factory=dict)
    last_time: dict[int, float] = field(default_factory=dict)
    #: The last line with a time above any end from outside.
    last_stamped: dict[int, Line] = field(default_factory=dict)
    #: Lines without a time below it.
    timeless_below: dict[int, list[Line]] = field(default_factory=dict)
    #: Heartbeats that a file ends with.
    heartbeats: dict[int, Heartbeats] = field(default_factory=dict)

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


class TextReader:
    """Reads one text log block by block into a `Scan`."""

    def __init__(self, path: Path, index: int, result: Scan) -> None:
        self.path, self.index, self.result = str(path), index, result
        self.clock = Clock()
        self.seen: set[bytes] = set()  # shapes that need not be examined again
        self.repeats: dict[bytes, int] = {}  # shapes that matter -> examinations left
        self.often: dict[bytes, list[FactPattern]] = {}
        self.parser = ProgressParser(index, result)
        self.last_row: tuple[Block, int] | None = None
        self.tail = b""
        self.progress = result.progress_of(index)
        self.offset = 0
        self.order = 0
        self.close_lines = 0
        self.last_block: Block | None = None
        self.cleaned: dict[int, str] = {}  # segments of this block
        self.row_places: tuple[int, list[int]] = (
            0,
            [],
        )  # how many shapes of progress lines, and where those lines are
        self.num_hits: dict[str, int] = {}
        self.late: dict[str, Hit] = {}  # last hit of rules with more than are kept

    @property
    def num_lines(self) -> int:
        """Lines read so far."""
        return self.last_block.number(len(self.last_block.lines) - 1) if self.last_block else 0

    def read(self, block: Block) -> None:
        """Take one block of the file."""
        self.cleaned, self.row_places = {}, (0, [])
        hits = self._look_at(block, self._choose(block))
        self.result.loss.read(self.path, block)
        self._look_often(block)
        self._steps(block, hits)
        self._keep(hits)
        self.tail = block.data[-TAIL_BYTES:]
        self.offset += len(block.data) + 1
        self.order += len(block.shapes)
        self.last_block = block

    def _keep(self, hits: Sequence[Hit]) -> None:
        """Keep the first hits of each rule and the very last one."""
        for hit in hits:
            name = hit.rule.name
            self.num_hits[name] = self.num_hits.get(name, 0) + 1
            if self.num_hits[name] <= MAX_RULE_HITS:
                self.result.hits.append(hit)
            else:
                self.late[name] = hit

    def _look_at(self, block: Block, chosen: Sequence[int]) -> list[Hit]:
        """Examine segments in their order; the prefilters run on a batch of them at once."""
        hits: list[Hit] = []
        for begin in range(0, len(chosen), BATCH):
            batch = [i for i in chosen[begin : begin + BATCH] if block.shapes[i] not in self.seen]
            texts = [self._clean(block, i) for i in batch]
            for i, facts, rules in zip(batch, fact_table().candidates(texts), candidates(texts), strict=True):
                hits += self._look(block, i, facts, rules)
        return hits

    def _clean(self, block: Block, i: int) -> str:
        text = self.cleaned.get(i)
        if text is None:
            text = self.cleaned[i] = clean(block.lines[i])
        return text

    def _look_often(self, block: Block) -> None:
        for shape in sorted(self.often.keys() & block.last.keys(), key=block.last.__getitem__):
            i, patterns = block.last[shape], self.often[shape]
            number = block.number(i) if any(p.placed for p in patterns) else None
            self.result.facts.read(Line(self.path, number, clean(block.line(i))), patterns)

    def _choose(self, block: Block) -> list[int]:
        """Choose the segments to examine; return their indices."""
        wanted = block.last.keys() - self.seen
        if not wanted or self.close_lines > MAX_CLOSE_LINES + MAX_ALARMS:
            return []
        chosen = [i for i, shape in enumerate(block.shapes) if shape in wanted]
        if self.close_lines > MAX_CLOSE_LINES:
            chosen = [i for i in chosen if ALARMING.search(block.lines[i])]
        if len(self.seen) > MAX_SHAPES:
            self.seen.clear()
        return chosen

    def _look(self, block: Block, i: int, facts: Sequence[FactPattern], rules: Sequence[int]) -> list[Hit]:
        shape = block.shapes[i]
        if shape in self.seen:
            return []
        self.close_lines += 1
        text = self._clean(block, i)
        line = Line(self.path, block.number(i), text, self.clock.read(text))
        if line.time is not None and self.clock.dated:
            self.result.first_time.setdefault(self.index, line.time)
        often = self.result.facts.read(line, facts)
        again = max((REPEATS_RANKS if p.often else REPEATS for p in often), default=0)
        self.parser.know(block.lines[i], shape)
        hit = self._judge(block, line, i, rules)
        if hit is not None:
            again = max(again, REPEATS_RANKS if hit.rule.tier == Tier.COMMUNICATION else REPEATS)
        left = self.repeats.get(shape, again) - 1
        if left > 0:
            self.repeats[shape] = left
        else:
            self.repeats.pop(shape, None)
            self.seen.add(shape)
            # A line whose values are added up must not be read twice.
            latest = [p for p in often if p.often and p.keep != "list"]
            if latest and len(self.often) < MAX_OFTEN:
                self.often[shape] = latest
        return [hit] if hit else []

    def _judge(self, block: Block, line: Line, i: int, rules: Sequence[int]) -> Hit | None:
        if not rules or SCRIPT.match(line.text):
            return None
        warning = TORCH_WARNING.match(line.text) is not None
        hit: Hit | None = None
        for rule, found in takers(attribution.PREFIX.sub("", line.text), rules):
            if warning and rule.tier != Tier.IGNORED:
                continue
            if hit is None:
                hit = Hit(rule, found, line, self.index, self.order + i, *self._around(block, i))
                hit.steps_above = lambda: self.progress.count + self._steps_above(block, i)
                hit.rank, hit.node = attribution.of(hit)
            hit.rule, hit.pattern = rule, found
            if rule.accept is None or rule.accept(hit):
                hit.steps_above = _none  # releases the block that the closure holds
                return hit
        return None

    def _around(self, block: Block, i: int) -> tuple[Callable[[int], list[str]], Callable[[int], list[str]]]:
        """Return accessors for the lines above and below a segment that do not keep the block in memory."""
        known = self.cleaned.get
        above = [known(j) or self._clean(block, j) for j in range(max(0, i - NUM_ABOVE), i)]
        below = [self._clean(block, j) for j in range(i + 1, min(i + 1 + NUM_BELOW, len(block.lines)))]
        tail = self.tail if i < NUM_ABOVE else b""

        def context(n: int) -> list[str]:
            if len(above) < n and tail:
                return [*map(clean, tail.split(b"\n")[-(n - len(above)) :]), *above]
            return above[max(0, len(above) - n) :]

        return context, lambda n: below[:n]

    def _steps_above(self, block: Block, i: int) -> int:
        known, places = self.row_places
        if known != len(self.parser.training):
            places = [j for j, shape in enumerate(block.shapes) if shape in self.parser.training]
            self.row_places = len(self.parser.training), places
        return bisect_left(places, i) - bisect_left(places, i - 400)

    def _steps(self, block: Block, hits: list[Hit]) -> None:
        """Run the active step formats over the block, and note how much progress stands before each hit."""
        self.parser.read(block, self.close_lines > MAX_CLOSE_LINES)
        rows: list[int] = []
        if hits and not self.parser.training.isdisjoint(block.last):
            rows = [i for i, shape in enumerate(block.shapes) if shape in self.parser.training]
        for hit in hits:
            hit.steps_before = self.progress.count + bisect_right(rows, hit.order - self.order)
            hit.bytes_before = self.offset + block.offset(hit.order - self.order)
        self._note_progress(block, len(rows))

    def _note_progress(self, block: Block, num_rows: int) -> None:
        p = self.progress
        below = 0
        if not self.parser.training.isdisjoint(block.last):
            last = max(block.last[shape] for shape in self.parser.training & block.last.keys())
            at = block.offset(last)
            below = at + len(block.line(last))
            p.count += max(num_rows, 1)
            p.bytes = self.offset + at
            text = clean(block.line(last))
            p.last, p.after_time = Line(self.path, None, text, self.clock.read(text)), None
            self.last_row = block, last  # its line number is counted once, at the end
        if p.last is not None and p.after_time is None and below >= 0:
            times = (
                self.clock.read(clean(raw)) for raw in block.data[below : below + TAIL_BYTES].split(b"\n")
            )
            p.after_time = next((t for t in times if t is not None), None)

    def close(self) -> None:
        """Find the last times of day in the file."""
        if self.last_block is None:
            return
        if self.last_row is not None and self.progress.last is not None:
            block, row = self.last_row
            self.progress.last = replace(self.progress.last, number=block.number(row))
        if not self.parser.is_read:
            self.parser.take(self.last_block, self.close_lines > MAX_CLOSE_LINES)
        if self.close_lines > MAX_CLOSE_LINES + MAX_ALARMS:
            self._look_at_the_end(self.last_block)
        self.result.hits.extend(self.late.values())
        lines = self.last_block.lines
        self._note_heartbeats(self.last_block)
        below = self.result.timeless_below.setdefault(self.index, [])
        for i in range(len(lines) - 1, max(-1, len(lines) - 400), -1):
            text = clean(lines[i])
            time = self.clock.read(text)
            if time is None:
                below.append(Line(self.path, self.last_block.number(i), text))
                continue
            if self.clock.dated:
                self.result.last_time.setdefault(self.index, time)
            if not SLURM_LINE.search(text):
                self.result.last_stamped[self.index] = Line(self.path, self.last_block.number(i), text, time)
                return

    def _note_heartbeats(self, block: Block) -> None:
        lines = block.lines
        end = len(lines)
        for i in range(end - 1, max(-1, end - MAX_ENDING), -1):
            if STOPPED.search(clean(lines[i])):
                end = i
        found = heartbeats_at_the_end(
            Line(self.path, block.number(i), clean(lines[i])) for i in range(end - 1, -1, -1)
        )
        if found is not None:
            self.result.heartbeats[self.index] = found

    def _look_at_the_end(self, block: Block) -> None:
        self.order -= len(block.shapes)
        alarming = [i for i, raw in enumerate(block.lines) if ALARMING.search(raw)][-LAST_ALARMS:]
        hits = self._look_at(block, alarming)
        for hit in hits:
            hit.bytes_before = self.offset - len(block.data) + block.offset(hit.order - self.order)
        self._keep(hits)


def _none() -> int:
    return 0
