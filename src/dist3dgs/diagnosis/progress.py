"""Follow a training through the lines of its log: progress displays, losses that become NaN, heartbeats."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..logs.facts import Line
from ..logs.lines import Block, clean
from ..logs.log_data import LogData
from ..logs.step_formats import FORMATS
from ..logs.step_series import StepFormat
from ..logs.timestamps import Clock
from ..units import parse_duration_s

#: Step times are taken from all of the first 8 MiB, then from the beginning of every sixteenth block, and a thousand
#: from the last one.
FULL_BLOCKS = 8
BLOCK_STRIDE = 16
SAMPLE_BYTES = 1 << 17
ROWS_PER_BLOCK = 1000
MAX_SERIES = 32
MAX_SHAPES = 200_000
#: Progress bars of other work than training.
NO_TRAINING = re.compile(
    r"(?i)load|map\b|map \(|token|download|fetch|eval|valid|\btest|render|shard|extract|cach|generat|filter|truncat|"
    r"process|reading|undistort|match|convert|copy|upload|sanity|predict|creating|saving|packing|caption|sampling"
)


class ProgressParser:
    """Knows a log's progress lines by their shapes, and adds their rows to the scan's series."""

    def __init__(self, index: int, result: LogData) -> None:
        self.index, self.result = index, result
        self.formats: list[StepFormat] = []
        self.rows: dict[bytes, StepFormat] = {}  # shapes of progress lines
        self.training: set[bytes] = set()  # those of the training
        self.num_blocks = 0
        self.is_read = False  # the last block

    def know(self, raw: bytes, shape: bytes) -> None:
        """Record a progress line's format and shape when it first appears."""
        for fmt in FORMATS:
            m = fmt.pattern.search(raw)
            if m is None:
                continue
            if fmt not in self.formats:
                if fmt.name.startswith("key value") and any(f.pattern.search(raw) for f in self.formats):
                    return
                self.formats.append(fmt)
            if len(self.rows) < MAX_SHAPES:
                self.rows[shape] = fmt
                if _is_training(fmt, raw, m.start()):
                    self.training.add(shape)
            return

    def read(self, block: Block, all_alike: bool) -> None:
        """Take a block's rows; of a long log only a sample. `all_alike`: not every line of it was classified."""
        self.is_read = self.num_blocks < FULL_BLOCKS
        if self.is_read:
            self.take(block, all_alike)
        elif self.num_blocks % BLOCK_STRIDE == 0:
            self.take(Block(0, block.data[:SAMPLE_BYTES].rpartition(b"\n")[0]), all_alike)
        self.num_blocks += 1

    def take(self, block: Block, all_alike: bool) -> None:
        """Take the progress of all displays in the block; of several, each from its own lines."""
        if len(self.formats) == 1 or all_alike:
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
            key = (self.index, fmt.name, p.total)
            series = all_series.get(key)
            if series is None:
                if len(all_series) >= MAX_SERIES * (self.index + 1):
                    continue
                series = self.result.series_of(self.index, fmt, p.total, _description(fmt, data, groups))
            series.sampled = self.num_blocks >= FULL_BLOCKS
            series.add(p)


def _is_training(fmt: StepFormat, data: bytes, at: int) -> bool:
    return fmt.name != "tqdm" or not NO_TRAINING.search(_before(data, at))


def _before(data: bytes, at: int) -> str:
    """Return the text before a progress bar on its line: `Loading checkpoint shards:`."""
    start = max(data.rfind(b"\n", 0, at), at - 120)
    return clean(data[start + 1 : at])


def _description(fmt: StepFormat, data: bytes, groups: Sequence[bytes]) -> str:
    if fmt.name != "tqdm":
        return ""
    return next((_before(data, m.start()) for m in fmt.pattern.finditer(data) if m.groups() == groups), "")


LOSS = re.compile(
    rb"(?i)(?<!val_)(?<!val )(?<!eval_)(?<!test_)(?<![a-z]scale )\bloss(?:es)?['\"]?\]?(?: \(train, val\))? *(?:[:=|]| is )? *\(?(-?nan|-?inf(?:inity)?|-?[\d.]+)(?:\b|$)"
)
NORM = re.compile(
    rb"(?i)\bgrad(?:ient)?[ _-]?norm['\"]?\]?(?: *[:=|])? *(-?nan|-?inf(?:inity)?|-?[\d.]+)(?:\b|$)"
)
#: Transformers prints a skipped loss as 0.
ZERO_LOSS = re.compile(rb"(?i)\bloss['\"]?: *0\.0+\b")
#: Rows with a NaN loss that prove divergence. NaN norm and loss in one row count twice.
NAN_ROWS = 2
#: Rows with a NaN norm that prove it where no loss is printed.
NORM_ROWS = 3
#: The same while the loss is finite: a gradient scaler starting at 2^16 may skip 16 steps until it fits.
SCALER_ROWS = 20
MAX_LOSS_SHAPES = 20_000


class NanWatch:
    """Finds where a metric becomes NaN or infinite for good."""

    def __init__(self, word: bytes, pattern: re.Pattern[bytes]) -> None:
        self.word, self.pattern = word, pattern
        self.kinds: dict[bytes, bool] = {}  # shape -> the value is finite
        self.without: set[bytes] = set()  # shapes without it
        self.num_bad = 0
        self.num_good = 0
        self.first_bad: Line | None = None
        self.twice = False  # the last bad row has two NaN values

    def read(self, path: str, block: Block) -> None:
        """Take the values of one block."""
        wanted: dict[bytes, bool] = {}
        for shape in block.last.keys() - self.without:
            kind = self._kind(shape, block)
            if kind is not None:
                wanted[shape] = kind
            elif len(self.without) < MAX_LOSS_SHAPES:
                self.without.add(shape)
        if not wanted:
            return
        if False not in wanted.values() and not self.num_bad:
            self.num_good += 1
            return
        kinds = list(map(wanted.get, block.shapes))
        num_good, begin = kinds.count(True), 0
        if num_good:
            begin = len(kinds) - kinds[::-1].index(True)
            self.num_good += num_good
            self.num_bad, self.first_bad = 0, None
        num_bad = kinds[begin:].count(False)
        if num_bad:
            last = len(kinds) - 1 - kinds[::-1].index(False)
            norm = NORM.search(block.line(last))
            self.twice = norm is not None and not _finite(norm)
            if self.first_bad is None:
                first = kinds.index(False, begin)
                self.first_bad = Line(path, block.number(first), clean(block.line(first)))
        self.num_bad += num_bad

    def _kind(self, shape: bytes, block: Block) -> bool | None:
        if shape in self.kinds:
            return self.kinds[shape]
        if self.word not in shape.lower():
            return None
        m = self.pattern.search(block.line(block.last[shape]))
        if m is None:
            return None
        kind = self._is_good(m, block.line(block.last[shape]))
        if len(self.kinds) < MAX_LOSS_SHAPES:
            self.kinds[shape] = kind
        return kind

    def _is_good(self, m: re.Match[bytes], raw: bytes) -> bool:
        norm = NORM.search(raw)
        return _finite(m) and not (norm and not _finite(norm) and ZERO_LOSS.search(raw))


def _finite(m: re.Match[bytes]) -> bool:
    return not m[1].lower().lstrip(b"-").startswith((b"nan", b"inf"))


class LossWatch:
    """Losses and gradient norms of one job."""

    def __init__(self) -> None:
        self.losses = NanWatch(b"loss", LOSS)
        self.norms = NanWatch(b"norm", NORM)

    def read(self, path: str, block: Block) -> None:
        """Take the losses and norms of one block."""
        self.losses.read(path, block)
        self.norms.read(path, block)

    def lost(self) -> Line | None:
        """Return the row where losses or norms become NaN or infinite for good, if enough such rows follow."""
        if self.losses.num_bad >= NAN_ROWS or (self.losses.num_bad and self.losses.twice):
            return self.losses.first_bad
        enough = SCALER_ROWS if self.losses.num_good else NORM_ROWS
        return self.norms.first_bad if self.norms.num_bad >= enough else None


BEAT = re.compile(
    r"(?i)\bheart[- _]?beats?\b|\bkeep[- ]?alive\b|\bstill (?:alive|inside|waiting|running|blocked|stuck|initiali[sz]ing|loading|compiling|working|here|busy|hanging|starting)\b|"
    r"\b(?:process(?:es)?|rank \d+|workers?|job|main thread|all ranks)(?: is| are)?:? alive\b|\balive\b|"
    r"\bwaiting\b|\bblocked (?:for|in|on|inside|at)\b|\bno (?:step|progress|output|iteration)s? (?:yet|so far|completed|done|finished)\b|\b0 (?:steps|iterations)\b|\b(?:GPU|CPU|SM)[ _]?(?:util\w*|usage|load)\b|"
    r"\b(?:status|state)[ =:]+(?:alive|running|waiting|idle|ok|init\w*|starting)\b|\b(?:status|monitor|watch(?:dog|er)?)\b[^\n]{0,60}\b(?:step|iter(?:ation)?)s?[ =:]+0\b"
)
#: Counters of work in such a line, which must not change.
COUNTER = re.compile(
    r"(?i)\b(?:global_?)?(?:steps?|iter(?:ation)?s?|epochs?|processed|done|samples|images|batch(?:es)?|tokens|files|bytes|progress|loss)\b[ =:#]*(\d[\d.]*)|(\d[\d.]*) ?%|\b(\d+)/\d+\b"
)
#: Percentages that count no work.
LOAD = re.compile(
    r"(?i)\b(?:util\w*|mem\w*|usage|load|busy)\b\D{0,4}\d+(?:\.\d+)? ?%|\d+(?:\.\d+)? ?% (?:util|mem|busy|load)\w*"
)
#: Stacks that faulthandler writes into a hang.
STACK = re.compile(r'\s+File "|Thread 0x|Current thread 0x|Timeout \(')
DURATION = re.compile(
    r"(?:\b\d+(?:\.\d+)? ?(?:seconds|secs?|s|minutes|mins?|m|hours?|hrs?|h)\b[, ]{0,2})+|\b(?:\d+:)?\d{1,2}:\d\d\b"
)
#: The first line of a job's end from outside.
STOPPED = re.compile(
    r"CANCELLED AT|DUE TO TIME LIMIT|Job step aborted|TIME ?LIMIT|walltime \d+ exceeded|TERM_RUNLIMIT"
)
#: Lines at a file's end that may belong to the job's end.
MAX_ENDING = 400
MAX_BEATS = 50_000


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """The heartbeats at the end of a file with nothing between them. `seconds` is None where they state no time."""

    first: Line
    last: Line
    count: int
    seconds: float | None


def heartbeats_at_the_end(lines: Iterable[Line]) -> Heartbeats | None:
    """Collect the heartbeats with which a file ends; None if its last line is another one.

    `lines` come newest first and begin above the end from outside.
    """
    first = last = None
    count, counters = 0, None
    for line in lines:
        if not line.text.strip() or STACK.match(line.text):
            continue
        if count >= MAX_BEATS or not BEAT.search(line.text):
            break
        now = COUNTER.findall(LOAD.sub("", line.text))
        if counters is not None and now and now != counters:
            break
        counters = now or counters
        first, last, count = line, last or line, count + 1
    if first is None or last is None or count < 2:
        return None
    return Heartbeats(first, last, count, _seconds_between(first.text, last.text))


def _seconds_between(first: str, last: str) -> float | None:
    """Return the seconds between two lines by their times of day, else by the durations that both state."""
    clock = Clock()
    begin, end = clock.read(first), clock.read(last)
    if begin is not None and end is not None:
        return end - begin
    pairs = zip(_durations(first), _durations(last), strict=False)
    return max((b - a for a, b in pairs if b > a), default=None)


def _durations(text: str) -> list[float]:
    found = []
    for m in DURATION.finditer(text):
        with suppress(ValueError):
            found.append(parse_duration_s(m[0]))
    return found
