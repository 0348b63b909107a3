"""Recognise lines that only show a process alive: heartbeats, `still waiting`, an unchanging status."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from ..logs.facts import Line
from ..logs.timestamps import Clock
from ..units import parse_duration_s

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


def at_the_end(lines: Iterable[Line]) -> Heartbeats | None:
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
