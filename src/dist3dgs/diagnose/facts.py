"""What a log states: job id, nodes, devices, phases, quality. Readers say which line states what."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .words import WordIndex


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
    `often`: the line comes again with other numbers, and each one counts; `some`: a few of them will do.
    `placed`: where the last one stands matters, however often it came before.
    """

    key: str
    pattern: re.Pattern[str]
    value: Callable[[re.Match[str]], Any] = lambda m: m[1]
    keep: Literal["first", "last", "max", "set", "list"] = "first"
    often: bool = False
    some: bool = False
    placed: bool = False


class FactTable:
    """All patterns, and which of them a line may have."""

    def __init__(self, patterns: Iterable[FactPattern]) -> None:
        self._patterns = tuple(patterns)
        self._index = WordIndex([p.pattern for p in self._patterns])

    def candidates(self, texts: Sequence[str]) -> list[list[FactPattern]]:
        """For each line the patterns that it may have."""
        return [[self._patterns[i] for i in found] for found in self._index.candidates_of(texts)]


MAX_LIST = 1000


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
        """Take what `line` states. Returns the patterns for which a line like it must be read again."""
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
    """True if it is known that `line` stands above `other`: lines of one shape are read after the others of a block."""
    if line.number is None or other.number is None or line.file != other.file:
        return False
    return line.number < other.number


def number(text: str) -> float:
    """A finite number with optional thousands separators. Raises ValueError."""
    value = float(text.replace(",", ""))
    if not abs(value) < 1e18:
        raise ValueError(text)
    return value


def expand_nodes(text: str) -> list[str]:
    """`sciml[2301-2302,2305],gpu7` -> names, at most 4096. Text that is no host list gives itself."""
    names: list[str] = []
    for part in re.findall(r"[^,\[\]\s]+(?:\[[^\]]*\][^,\s]*)?", text)[:4096]:
        m = re.fullmatch(r"([^\[\]]*)\[([\d,-]+)\]([^\[\]]*)", part)
        if not m:
            names.append(part)
            continue
        for item in m[2].split(","):
            low, _, high = item.partition("-")
            if not low.isdigit() or (high and not high.isdigit()):
                continue
            for i in range(int(low), min(int(high or low), int(low) + 4095) + 1):
                names.append(f"{m[1]}{i:0{len(low)}d}{m[3]}")
    return names[:4096]
