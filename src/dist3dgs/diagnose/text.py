"""One text log, block by block: which lines are looked at, what they state, which rule takes them."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import where
from .clock import Clock
from .facts import FactPattern, FactTable, Line
from .lines import Block, clean
from .readers import elastic, ends, epochs, gsplat, nerfstudio, sacct, slurm
from .rules import Hit, Tier, takers
from .steps import FORMATS, StepFormat, StepSeries

if TYPE_CHECKING:
    from .scan import Scan

#: Text patterns of all readers; every new line shape is shown to them.
FACTS = FactTable(
    p for module in (nerfstudio, gsplat, elastic, slurm, sacct, epochs, ends) for p in module.FACTS
)
#: How often lines of one shape are looked at after any rule or reader cared for the first. Of a shape whose numbers
#: matter (a metric that is printed again and again) the last one in each block is read after that.
REPEATS = 8
REPEATS_RANKS = 64
#: Step times are taken from all of the first 8 MiB, then from the beginning of every sixteenth block, and a thousand
#: from the last one.
FULL_BLOCKS = 8
BLOCK_STRIDE = 16
SAMPLE_BYTES = 1 << 17
ROWS_PER_BLOCK = 1000
MAX_SHAPES = 200_000
#: After this many differing shapes in one file (a dump, not a log) only lines with an alarming word are looked at.
MAX_CLOSE_LINES = 30_000
#: And after this many of those only the end of the file.
MAX_ALARMS = 10_000
LAST_ALARMS = 300
MAX_HITS = 20_000
MAX_OFTEN = 32
ALARMING = re.compile(
    rb"[Ee]rror|ERROR|Traceback|CANCELLED|[Kk]illed|oom|OOM|NCCL WARN|[Ff]ailed|FAILED|TIMEOUT|Xid"
)
MAX_SERIES = 32
#: What torch's C++ side and torchrun call a warning: retries of a connection, a port that was taken at first, ...
TORCH_WARNING = re.compile(r"(?:\[rank\d+\]:)?(?:\[W[ \d]|W\d{4} [\d:.]+ \d+ )")
#: Lines of the job's script, shown by `set -x` or printed for the record: what might happen, not what did.
SCRIPT = re.compile(r"\++ |#(?:SBATCH|BSUB|PBS|!|\s)|(?:echo|export|if|then|fi|trap) ")
TAIL_BYTES = 1 << 14
SLURM_LINE = re.compile(r"slurmstepd|srun:|CANCELLED")
#: Progress bars that are no training.
NO_TRAINING = re.compile(
    r"(?i)load|map\b|map \(|token|download|fetch|eval|valid|\btest|render|shard|extract|cach|generat|filter|truncat|"
    r"process|reading|undistort|match|convert|copy|upload|sanity|predict|creating|saving|packing|caption|sampling"
)


class TextReader:
    """Reads one text log block by block into a `Scan`."""

    def __init__(self, path: Path, index: int, result: "Scan") -> None:
        self.path, self.index, self.result = str(path), index, result
        self.clock = Clock()
        self.seen: set[bytes] = set()  # shapes that nobody needs to see again
        self.repeats: dict[bytes, int] = {}  # shapes that somebody cares for -> how often still
        self.often: dict[bytes, list[FactPattern]] = {}
        self.rows: dict[bytes, StepFormat] = {}  # shapes of progress lines
        self.progress_shapes: set[bytes] = set()  # those of the training
        self.num_blocks = 0
        self.series_read = False  # of the last block
        self.last_row: tuple[Block, int] | None = None
        self.formats: list[StepFormat] = []
        self.tail = b""
        self.progress = result.progress_of(index)
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
        for shape in self.often.keys() & block.last.keys():
            line = Line(self.path, None, clean(block.line(block.last[shape])))
            self.result.facts.read(line, self.often[shape])

    def _choose(self, block: Block) -> list[int]:
        """Indices of the segments that may have to be looked at."""
        wanted = block.last.keys() - self.seen
        if not wanted or self.close_lines > MAX_CLOSE_LINES + MAX_ALARMS:
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
        often = self.result.facts.read(line, FACTS.candidates(text))
        again = REPEATS_RANKS if often else 0
        self._know_progress(block.lines[i], shape)
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

    def _know_progress(self, raw: bytes, shape: bytes) -> None:
        """Take note of a progress line's format and shape at first sight."""
        for fmt in FORMATS:
            m = fmt.pattern.search(raw)
            if m is None:
                continue
            if fmt not in self.formats:
                if fmt.name == "key value" and any(f.pattern.search(raw) for f in self.formats):
                    return
                self.formats.append(fmt)
            if len(self.rows) < MAX_SHAPES:
                self.rows[shape] = fmt
                if _is_training(fmt, raw, m.start()):
                    self.progress_shapes.add(shape)
            return

    def _judge(self, block: Block, line: Line, i: int) -> Hit | None:
        if SCRIPT.match(line.text) or TORCH_WARNING.match(line.text):
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
        for rule, found in takers(bare):
            hit = Hit(rule, found, line, self.index, self.order + i, context, below)
            hit.steps_above = lambda: self.progress.count + self._steps_above(block, i)
            hit.rank, hit.node = where.of(hit)
            if rule.accept is None or rule.accept(hit):
                return hit
        return None

    def _steps_above(self, block: Block, i: int) -> int:
        return sum(shape in self.progress_shapes for shape in block.shapes[max(0, i - 400) : i])

    def _steps(self, block: Block, hits: list[Hit]) -> None:
        """Run the active step formats over the block, and note how much progress stands before each hit."""
        self.series_read = self.num_blocks < FULL_BLOCKS
        if self.series_read:
            self._all_series(block)
        elif self.num_blocks % BLOCK_STRIDE == 0:
            self._all_series(Block(0, block.data[:SAMPLE_BYTES].rpartition(b"\n")[0]))
        rows: list[int] = []
        if hits and not self.progress_shapes.isdisjoint(block.last):
            rows = [i for i, shape in enumerate(block.shapes) if shape in self.progress_shapes]
        for hit in hits:
            hit.steps_before = self.progress.count + bisect_right(rows, hit.order - self.order)
            hit.bytes_before = self.offset + block.offset(hit.order - self.order)
        self._note_progress(block, len(rows))

    def _note_progress(self, block: Block, num_rows: int) -> None:
        p = self.progress
        below = 0
        if not self.progress_shapes.isdisjoint(block.last):
            last = max(block.last[shape] for shape in self.progress_shapes & block.last.keys())
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

    def _all_series(self, block: Block) -> None:
        """Take the progress of all displays in the block; of several, each from its own lines."""
        if len(self.formats) == 1 or self.close_lines > MAX_CLOSE_LINES:
            for fmt in self.formats:
                self._series(fmt, b"\n".join(dict.fromkeys(block.lines)) if fmt.redrawn else block.data)
            return
        mine: dict[str, list[bytes]] = {fmt.name: [] for fmt in self.formats}
        for line, found in zip(block.lines, map(self.rows.get, block.shapes), strict=True):
            if found is not None:
                mine[found.name].append(line)
        for fmt in self.formats:
            lines = mine[fmt.name]
            self._series(fmt, b"\n".join(dict.fromkeys(lines) if fmt.redrawn else lines))

    def _series(self, fmt: StepFormat, data: bytes) -> None:
        all_series = self.result.series
        rows = fmt.pattern.findall(data)
        if self.num_blocks >= FULL_BLOCKS and len(rows) > ROWS_PER_BLOCK:
            rows = [*rows[:: len(rows) // ROWS_PER_BLOCK], rows[-1]]
        for groups in rows:
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
            series.sampled = self.num_blocks >= FULL_BLOCKS
            series.add(p)

    def close(self) -> None:
        """Find the last times of day in the file."""
        if self.last_block is None:
            return
        if self.last_row is not None and self.progress.last is not None:
            block, row = self.last_row
            self.progress.last = replace(self.progress.last, number=block.number(row))
        if not self.series_read:
            self._all_series(self.last_block)
        if self.close_lines > MAX_CLOSE_LINES + MAX_ALARMS:
            self._look_at_the_end(self.last_block)
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

    def _look_at_the_end(self, block: Block) -> None:
        self.order -= len(block.shapes)
        alarming = [i for i, raw in enumerate(block.lines) if ALARMING.search(raw)][-LAST_ALARMS:]
        hits = [hit for i in alarming for hit in self._look(block, i)]
        for hit in hits:
            hit.bytes_before = self.offset - len(block.data) + block.offset(hit.order - self.order)
        self.result.hits.extend(hits)


def _is_training(fmt: StepFormat, data: bytes, at: int) -> bool:
    return fmt.name != "tqdm" or not NO_TRAINING.search(_before(data, at))


def _before(data: bytes, at: int) -> str:
    """What stands before a progress bar on its line: `Loading checkpoint shards:`."""
    start = max(data.rfind(b"\n", 0, at), at - 120)
    return clean(data[start + 1 : at])


def _description(fmt: StepFormat, data: bytes, groups: Sequence[bytes]) -> str:
    if fmt.name != "tqdm":
        return ""
    return next((_before(data, m.start()) for m in fmt.pattern.finditer(data) if m.groups() == groups), "")
