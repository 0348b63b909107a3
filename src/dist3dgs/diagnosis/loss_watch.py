"""Find where losses and gradient norms become NaN or infinite for good, from line shapes alone."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ..logs.facts import Line
from ..logs.lines import Block, clean

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
MAX_SHAPES = 20_000


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
            elif len(self.without) < MAX_SHAPES:
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
        if len(self.kinds) < MAX_SHAPES:
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
