"""Find the rank and the node that a line is about."""

import re
from collections.abc import Callable
from typing import Protocol

from .facts import Line


class Place(Protocol):
    """A line with the lines above it."""

    line: Line

    @property
    def below(self) -> Callable[[int], list[str]]: ...

    def before(self, num_lines: int) -> str: ...


#: Prefixes that launchers and notebooks put before each line of a worker.
PREFIX = re.compile(
    r"^(?:\d{4}-\d\d-\d\dT[\d:.]+Z:? ?)?(?:\[\d+,\d+\](?:<std(?:err|out)>)?: ?|\(\w+ (?:pid|ip)=[^)]{1,80}\) ?|"
    r"[\d.]+s\t\d+\t|\[rank\d{1,6}\]:? ?|\[default\d{1,6}\]: ?|\d{1,6}: )"
)
RANK_IN_LINE = tuple(
    re.compile(p)
    for p in (
        r"^\[rank(\d{1,6})\]",
        r"\[[Rr]ank (\d{1,6})\]",
        r"^\[default(\d{1,6})\]:",
        r"^\[\d+,(\d{1,6})\](?:<std(?:err|out)>)?:",
        r"\b[Rr]ank[ :=]+(\d{1,6})\b",
        r"-- Process (\d{1,6}) terminated",
        r"\btasks? (\d{1,6})[:,-]",
        r"^(\d{1,6}): ",
    )
)
RANK_ABOVE = re.compile(
    r"-- Process (\d{1,6}) terminated with the following error|^\[rank(\d{1,6})\]:.*Traceback", re.M
)
NODE_IN_LINE = tuple(
    re.compile(p)
    for p in (
        r"\b[Nn]ode failure on ([\w.-]+)",
        r"\*\*\* (?:JOB|STEP) \S+ ON ([\w.-]+) CANCELLED",
        r"error: ([A-Za-z][\w.-]*): tasks? [\d,-]+:",
        r"^\[?([A-Za-z][\w.-]*):\d+:\d+\]? \[\d+\]",
        r"^\[([A-Za-z][\w.-]+)\] Rank \d",
        r"launch[^\n]*failed on node ([\w.-]+)",
        r"\bon node ([A-Za-z][\w.-]*\d[\w.-]*)",
        r"^\s*host\s+: ([\w.-]+)",
    )
)


def of(hit: Place) -> tuple[int | None, str | None]:
    """Return rank and node; None where the line and the traceback above it do not say."""
    text = hit.line.text
    rank = next((int(m[1]) for p in RANK_IN_LINE if (m := p.search(text))), None)
    node = next((m[1].removesuffix(".") for p in NODE_IN_LINE if (m := p.search(text))), None)
    if "Root Cause (first observed failure)" in text:
        block = "\n".join(hit.below(8))
        m, n = re.search(r"\brank\s+: (\d{1,6})", block), re.search(r"\bhost\s+: ([\w.-]+)", block)
        return int(m[1]) if m else None, n[1] if n else None
    if rank is None and re.search(r"Error|Exception", text):
        above = list(RANK_ABOVE.finditer(hit.before(40)))
        rank = int(above[-1][1] or above[-1][2]) if above else None
    return rank, node
