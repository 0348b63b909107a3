"""Lines of a log, streamed: blocks of whole lines in bounded memory, without terminal escape codes.

A line ends at a newline; a carriage return starts a new *segment* of the same line (progress bars and redrawn
tables), so that line numbers agree with an editor's. Escape codes and NUL bytes are removed, wrong encodings are
decoded with replacement characters, a line longer than 128 KiB keeps its two ends.

Most lines of a training log repeat each other but for their numbers. `shapes` are the lines with digits, blanks and
bar characters removed: a line whose shape was seen before tells a rule nothing new, and 10 million lines have a
few hundred shapes. Everything that has to look at text looks at new shapes only; this, not a faster regular
expression, is what makes a 1 GB log readable in seconds (docs/decisions/0030-line-shapes.md).
"""

# ruff: noqa: E501 (a pattern is read best on one line)

import codecs
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, count
from pathlib import Path

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 17
MAX_TEXT = 4096
#: After so many queries the offsets of all segments of a block are computed at once.
FEW = 8
#: Within so many segments of a block's end, single segments are cut out instead of splitting it.
NEAR_END = 256
#: Removed to get a line's shape: digits, blanks, signs, and bytes of the bars that progress displays draw with.
NOT_SHAPE = b"0123456789.,:+- \t#=*" + bytes(range(0x80, 0x90)) + b"\x96\xe2"

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: Magic numbers of files that are no logs: ELF, zip (torch.save), gzip, PNG, JPEG, pickle, zstd, PDF.
BINARY_MAGIC = (b"\x7fELF", b"PK\x03\x04", b"\x1f\x8b", b"\x89PNG", b"\xff\xd8\xff", b"\x80\x02", b"\x28\xb5\x2f\xfd", b"%PDF")  # fmt: skip


def clean(raw: bytes) -> str:
    """Decode one raw line or segment for display: no escape or control characters, at most 4096 characters."""
    if len(raw) > MAX_TEXT:
        raw = raw[: MAX_TEXT // 2] + b" ... " + raw[-MAX_TEXT // 2 :]
    text = raw.decode("utf-8", "replace")
    if "\x1b" in text:
        text = ANSI.sub("", text)
    return CONTROL.sub("", text).rstrip()


class Block:
    """Some consecutive whole lines of a file, split into segments on demand."""

    def __init__(self, first_line: int, data: bytes) -> None:
        self.first_line = first_line  # number of the first segment's line, 1-based
        self._num_asked = 0
        self.data = data  # segments joined by \n; a segment that continues its line starts with \r

    @cached_property
    def lines(self) -> list[bytes]:
        """The segments."""
        return self.data.split(b"\n")

    @cached_property
    def shapes(self) -> list[bytes]:
        """Return the segments' shapes."""
        return self.data.translate(None, NOT_SHAPE).split(b"\n")

    @cached_property
    def last(self) -> dict[bytes, int]:
        """Each shape -> the last segment that has it."""
        return dict(zip(self.shapes, count()))

    def line(self, index: int) -> bytes:
        """Return one segment; near the block's end without splitting the whole."""
        back = len(self.shapes) - index
        if back > NEAR_END or "lines" in self.__dict__:
            return self.lines[index]
        return self.data.rsplit(b"\n", back)[-back]

    def offset(self, index: int) -> int:
        """Return the offset of segment `index` in `data`; near the block's ends without splitting the rest."""
        self._num_asked += 1
        if self._num_asked > FEW:
            return self._starts[index]
        back = len(self.shapes) - index
        if back <= NEAR_END:
            return len(self.data) - sum(map(len, self.data.rsplit(b"\n", back)[-back:])) - (back - 1)
        return sum(map(len, self.lines[:index])) + index

    def number(self, index: int) -> int:
        """Return the 1-based line number of segment `index`."""
        if b"\r" not in self.data:
            return self.first_line + index
        if self._num_asked > FEW:
            return self.first_line + index - self._continued[index]
        return self.first_line + index - self.data.count(b"\r", 1, self.offset(index) + 1)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(line) + 1 for line in self.lines)]

    @cached_property
    def _continued(self) -> list[int]:
        """Count, up to each segment, those that continue the line of the one before."""
        return [0, *accumulate(line.startswith(b"\r") for line in self.lines[1:])]


def looks_binary(head: bytes) -> bool:
    """Return True if a file's first bytes are not text in any encoding of logs."""
    if head.startswith(BINARY_MAGIC):
        return True
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or not head:
        return False
    strange = sum(head.count(c) for c in (*range(1, 7), *range(14, 27), *range(28, 32), 0x7F))
    return strange > len(head) // 20


def read_blocks(path: Path) -> Iterator[Block]:
    """Stream a text file as blocks of about 1 MiB."""
    with Path(path).open("rb") as f:
        head = f.read(4)
        f.seek(0)
        recode = None
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            recode = codecs.getincrementaldecoder("utf-16")("replace")
        carry, held, first_line = b"", b"", 1
        while chunk := f.read(BLOCK_BYTES):
            if recode is not None:
                chunk = recode.decode(chunk).encode("utf-8", "replace")
            data = carry + chunk
            end = max(data.rfind(b"\n"), data.rfind(b"\r"))
            if data[end:] == b"\r":  # its \n may be the next chunk's first byte
                end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, end))
            whole, carry = data[: end + 1], data[end + 1 :]
            if len(carry) > MAX_LINE_BYTES:
                carry = carry[: MAX_LINE_BYTES // 2] + carry[-MAX_LINE_BYTES // 2 :]
            if whole:
                if held:
                    yield _block(held, first_line)
                    first_line += held.count(b"\n")
                held = whole
        # A last line without a newline belongs to the block before it: readers look back from a file's end.
        if held or carry:
            yield _block(held + carry, first_line)


def _block(data: bytes, first_line: int) -> Block:
    if b"\0" in data:
        data = data.replace(b"\0", b"")
    if b"\r" in data:
        if b"\r\n" in data:
            data = data.replace(b"\r\n", b"\n")
        data = data.replace(b"\r", b"\n\r")
    return Block(first_line, data[:-1] if data.endswith(b"\n") else data)
