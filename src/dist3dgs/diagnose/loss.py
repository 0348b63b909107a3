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
GRAD_NAN = re.compile(rb"(?i)'loss': 0\.0, 'grad_norm': nan")


class LossWatch:
    """The first of the NaN losses that no finite loss follows."""

    def __init__(self) -> None:
        self.kinds: dict[bytes, bool] = {}  # shape -> loss is finite
        self.num_bad = 0
        self.num_good = 0
        self.first_bad: Line | None = None
        self.last_good: Line | None = None

    def read(self, reader: "TextReader", block: Block) -> None:
        """Take the losses of one block."""
        wanted = {s: kind for s in block.unique if (kind := self._kind(s, block)) is not None}
        if not wanted:
            return
        if False not in wanted.values() and not self.num_bad:
            self.num_good += 1
            return
        for i, shape in enumerate(block.shapes):
            kind = wanted.get(shape)
            if kind is None:
                continue
            if kind:
                self.num_good += 1
                if self.num_bad:
                    self.num_bad, self.first_bad = 0, None
            else:
                self.num_bad += 1
                if self.first_bad is None:
                    self.first_bad = Line(reader.path, block.number(i), clean(block.lines[i]))

    def _kind(self, shape: bytes, block: Block) -> bool | None:
        if shape in self.kinds:
            return self.kinds[shape]
        low = shape.lower()
        if b"loss" not in low:
            return None
        raw = block.lines[block.shapes.index(shape)]
        if GRAD_NAN.search(raw):
            kind = False
        elif m := LOSS.search(raw):
            kind = not m[1].lower().lstrip(b"-").startswith((b"nan", b"inf"))
        else:
            return None
        if len(self.kinds) < 10_000:
            self.kinds[shape] = kind
        return kind
