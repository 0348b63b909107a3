"""The progress displays of one text log: which formats it has, and the rows of each."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .lines import Block, clean
from .series import StepFormat
from .steps import FORMATS

if TYPE_CHECKING:
    from .scan import Scan

#: Step times are taken from all of the first 8 MiB, then from the beginning of every sixteenth block, and a thousand
#: from the last one.
FULL_BLOCKS = 8
BLOCK_STRIDE = 16
SAMPLE_BYTES = 1 << 17
ROWS_PER_BLOCK = 1000
MAX_SERIES = 32
MAX_SHAPES = 200_000
#: Progress bars that are no training.
NO_TRAINING = re.compile(
    r"(?i)load|map\b|map \(|token|download|fetch|eval|valid|\btest|render|shard|extract|cach|generat|filter|truncat|"
    r"process|reading|undistort|match|convert|copy|upload|sanity|predict|creating|saving|packing|caption|sampling"
)


class Displays:
    """Knows a log's progress lines by their shapes, and adds their rows to the scan's series."""

    def __init__(self, index: int, result: "Scan") -> None:
        self.index, self.result = index, result
        self.formats: list[StepFormat] = []
        self.rows: dict[bytes, StepFormat] = {}  # shapes of progress lines
        self.training: set[bytes] = set()  # those of the training
        self.num_blocks = 0
        self.is_read = False  # the last block

    def know(self, raw: bytes, shape: bytes) -> None:
        """Take note of a progress line's format and shape at first sight."""
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
        """Take a block's rows, of a long log only some. `all_alike`: not every line of it was looked at."""
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
    """What stands before a progress bar on its line: `Loading checkpoint shards:`."""
    start = max(data.rfind(b"\n", 0, at), at - 120)
    return clean(data[start + 1 : at])


def _description(fmt: StepFormat, data: bytes, groups: Sequence[bytes]) -> str:
    if fmt.name != "tqdm":
        return ""
    return next((_before(data, m.start()) for m in fmt.pattern.finditer(data) if m.groups() == groups), "")
