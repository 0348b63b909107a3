"""Facts that log lines state: job id, nodes, devices, phases, quality. The patterns are the readers'."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .regex_prefilter import WordIndex


@dataclass(frozen=True, slots=True)
class Line:
    """One cleaned line (or segment after a carriage return) and where it stands."""

    file: str
    number: int | None
    text: str
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    value: Any
    line: Line


@dataclass(frozen=True, slots=True)
class FactPattern:
    """A statement of fact in a log line.

    `keep`: the first, last or largest value, all different ones (`set`) or all (`list`, at most 1000).
    `often`: the line recurs with other numbers, and each counts; `some`: a few of them suffice.
    `placed`: the position of the last one matters, however often it occurred before.
    """

    key: str
    pattern: re.Pattern[str]
    value: Callable[[re.Match[str]], Any] = lambda m: m[1]
    keep: Literal["first", "last", "max", "set", "list"] = "first"
    often: bool = False
    some: bool = False
    placed: bool = False


class FactTable:
    """All patterns, with a prefilter for the lines that they may match."""

    def __init__(self, patterns: Iterable[FactPattern]) -> None:
        self._patterns = tuple(patterns)
        self._index = WordIndex([p.pattern for p in self._patterns])

    def candidates(self, texts: Sequence[str]) -> list[list[FactPattern]]:
        """List for each line the patterns that may match it."""
        return [[self._patterns[i] for i in found] for found in self._index.candidates_of(texts)]


MAX_LIST = 1000
#: Most host names kept of one list.
MAX_NODES = 4096


@dataclass
class Facts:
    """Facts by key, each with the line that states it."""

    one: dict[str, Fact] = field(default_factory=dict)
    many: dict[str, list[Fact]] = field(default_factory=dict)

    def add(self, key: str, value: Any, line: Line, keep: str = "first") -> None:
        if keep in ("set", "list"):
            found = self.many.setdefault(key, [])
            if len(found) < MAX_LIST and (keep == "list" or all(f.value != value for f in found)):
                found.append(Fact(value, line))
        elif (
            key not in self.one
            or (keep == "last" and not _above(line, self.one[key].line))
            or (keep == "max" and value > self.one[key].value)
        ):
            self.one[key] = Fact(value, line)

    def get(self, key: str) -> Any:
        return self.one[key].value if key in self.one else None

    def all(self, key: str) -> list[Any]:
        return [f.value for f in self.many.get(key, [])]

    def read(self, line: Line, patterns: Iterable[FactPattern]) -> list[FactPattern]:
        """Read the facts of `line`. Returns the patterns for which lines of its shape must be read again."""
        again = []
        for p in patterns:
            if m := p.pattern.search(line.text):
                try:
                    value = p.value(m)
                except (ValueError, OverflowError):
                    continue
                self.add(p.key, value, line, p.keep)
                if p.often or p.some:
                    again.append(p)
        return again


def _above(line: Line, other: Line) -> bool:
    """Return True if `line` surely stands above `other`: lines of one shape are read after the others of a block."""
    if line.number is None or other.number is None or line.file != other.file:
        return False
    return line.number < other.number


def number(text: str) -> float:
    """Parse a finite number with optional thousands separators. Raises ValueError."""
    return finite(float(text.replace(",", "")))


def finite(value: float) -> float:
    """Return `value`, a quantity that a log states. Raises ValueError where it is infinite, NaN or absurd."""
    if not abs(value) < 1e18:
        raise ValueError(value)
    return value
