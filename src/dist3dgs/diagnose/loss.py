"""Whether the loss is a number, over a whole log, from line shapes alone."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re
from typing import TYPE_CHECKING

from .facts import Line
from .lines import Block, clean

if TYPE_CHECKING:
    from .text import TextReader

LOSS = re.compile(
    rb"(?i)(?<!val_)(?<!val )(?<!eval_)(?<!test_)(?<![a-z]scale )\bloss(?:es)?['\"]?\]?(?: \(train, val\))? *(?:[:=|]| is )? *\(?(-?nan|-?inf(?:inity)?|-?[\d.]+)(?:\b|$)"
)
MAX_SHAPES = 20_000
GRAD_NAN = re.compile(rb"(?i)'loss': 0\.0, 'grad_norm': nan")


class LossWatch:
    """The first of the NaN losses that no finite loss follows."""

    def __init__(self) -> None:
        self.kinds: dict[bytes, bool] = {}  # shape -> loss is finite
        self.without: set[bytes] = set()  # shapes that state no loss
        self.num_bad = 0
        self.num_good = 0
        self.first_bad: Line | None = None

    def read(self, reader: "TextReader", block: Block) -> None:
        """Take the losses of one block."""
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
        if num_bad and self.first_bad is None:
            first = kinds.index(False, begin)
            self.first_bad = Line(reader.path, block.number(first), clean(block.line(first)))
        self.num_bad += num_bad

    def _kind(self, shape: bytes, block: Block) -> bool | None:
        if shape in self.kinds:
            return self.kinds[shape]
        low = shape.lower()
        if b"loss" not in low:
            return None
        raw = block.line(block.last[shape])
        if GRAD_NAN.search(raw):
            kind = False
        elif m := LOSS.search(raw):
            kind = not m[1].lower().lstrip(b"-").startswith((b"nan", b"inf"))
        else:
            return None
        if len(self.kinds) < MAX_SHAPES:
            self.kinds[shape] = kind
        return kind
