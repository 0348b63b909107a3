"""Read a workload's figures of merit and signs of success from what its ranks printed and wrote."""

import json
import math
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ..config.workloads import Criteria, FigureOfMerit

#: Processor time for all patterns of a run together: a backtracking regex must not stall the study.
TIME_LIMIT_S = 60.0
#: Share of it that each pattern has, however long those before it took: one bad pattern takes no other figure away.
LEAST_SHARE = 0.1
#: At most this many numbers, the last ones, are kept per rank and figure.
MAX_NUMBERS = 1_000_000

_STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda numbers: numbers[-1],
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
}
_OVER_RANKS: dict[str, Callable[[Sequence[float]], float]] = {
    "first": lambda numbers: numbers[0],
    "sum": sum,
    "mean": statistics.fmean,
    "max": max,
}


@dataclass
class Found:
    """Numbers read from a run's output, by name, and a reason for each that is missing."""

    values: dict[str, float] = field(default_factory=dict)
    #: How many numbers rank 0 had for each figure, warm-up included.
    counts: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unmet: list[str] = field(default_factory=list)


class TooSlow(Exception):
    """The patterns took longer than `TIME_LIMIT_S`."""


def find(
    criteria: Criteria, outputs: Sequence[Path], out: Path, num_ranks: int = 1, limit_s: float = TIME_LIMIT_S
) -> Found:
    """Read a finished run.

    Args:
        outputs: what the ranks printed, rank 0 first.
        out: the folder {out} of the run.
        num_ranks: ranks of the run, for files that each of them writes.
        limit_s: seconds of processor time for all patterns together, of which each has a tenth in any case; what a
            slower one would find is missing, with the reason.
    """
    found, deadline = Found(), time.process_time() + limit_s

    def left_s() -> float:
        return max(deadline - time.process_time(), LEAST_SHARE * limit_s)

    for name, figure in criteria.figures_of_merit.items():
        allowed_s = left_s()
        try:
            with _bounded(allowed_s):
                _read(name, figure, outputs, out, num_ranks, found)
        except TooSlow:
            found.missing[name] = f"its regex took longer than {allowed_s:.3g} s: {figure.regex}"
    allowed_s = left_s()
    try:
        with _bounded(allowed_s):
            found.unmet += _unmet(criteria, outputs, out)
    except TooSlow:
        found.unmet.append(f"the patterns of `success.lines` took longer than {allowed_s:.3g} s")
    return found


def _read(
    name: str, figure: FigureOfMerit, outputs: Sequence[Path], out: Path, num_ranks: int, found: Found
) -> None:
    missing = None
    if (file := figure.file or figure.json_file) is not None:
        ranks = range(1 if figure.over_ranks == "first" else num_ranks)
        by_rank, reasons = zip(*(_from_files(figure, file, out, rank) for rank in ranks), strict=True)
        missing = next(filter(None, reasons), None)
    else:
        asked = outputs[:1] if figure.over_ranks == "first" else outputs
        pattern = re.compile(str(figure.regex))
        by_rank = tuple(_matches(pattern, path) for path in asked)
        if not any(by_rank):
            missing = f"no line of the output matches {figure.regex}"
    found.counts[name] = len(by_rank[0]) if by_rank else 0
    left = [numbers[figure.skip :] for numbers in by_rank]
    if missing:
        found.missing[name] = missing
    elif not all(left):
        few = min(map(len, by_rank))
        found.missing[name] = f"{few} numbers on a rank, and the first {figure.skip} are left out as warm-up"
    else:
        of_rank = [_STATISTICS[figure.statistic](numbers) for numbers in left]
        value = figure.scale * _OVER_RANKS[figure.over_ranks](of_rank)
        if math.isfinite(value):
            found.values[name] = value
        else:
            found.missing[name] = f"it is {value}"


def _matches(pattern: re.Pattern[str], path: Path) -> list[float]:
    numbers = []
    for line in _lines(path):
        for match in pattern.finditer(line):
            try:
                numbers.append(float(match[1].replace(",", "")))
            except (TypeError, ValueError, AttributeError):
                continue
    return numbers[-MAX_NUMBERS:]


def _lines(path: Path) -> Iterator[str]:
    try:
        # A progress bar ends its lines with \\r.
        with path.open(encoding="utf-8", errors="replace", newline=None) as f:
            yield from f
    except OSError:
        return


def _from_files(figure: FigureOfMerit, name: str, out: Path, rank: int) -> tuple[list[float], str | None]:
    """Numbers of a rank in the files of this name below {out}, and why there are none."""
    name = name.replace("{rank}", str(rank))
    paths = sorted(out.glob(name), key=lambda path: _by_number(str(path.relative_to(out))))
    if not paths:
        return [], f"there is no file {name} in {{out}}"
    if figure.regex is not None:
        pattern = re.compile(figure.regex)
        found = [number for path in paths for number in _matches(pattern, path)]
        return found, None if found else f"no line of {name} in {{out}} matches {figure.regex}"
    numbers = []
    for path in paths:
        number, why = _from_json(path, str(figure.json_path))
        if number is None:
            return [], why
        numbers.append(number)
    return numbers, None


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort key: val_step999 comes before val_step6999."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _from_json(path: Path, keys: str) -> tuple[float | None, str]:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None, f"there is no file {path.name} in {{out}}"
    except ValueError as e:
        return None, f"{path.name} in {{out}} is not JSON ({e})"
    for key in keys.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return None, f"{path.name} in {{out}} has no {keys}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"{path.name} in {{out}}: {keys} is no number"
    return float(value), ""


def _unmet(criteria: Criteria, outputs: Sequence[Path], out: Path) -> list[str]:
    unmet = []
    for text in criteria.success.lines:
        pattern = re.compile(text)
        if not any(pattern.search(line) for path in outputs[:1] for line in _lines(path)):
            unmet.append(f"no line of the output matches {text}")
    for name in criteria.success.files:
        path = out / name
        if not path.is_file() or path.stat().st_size == 0:
            unmet.append(f"there is no file {name} in {{out}}, or it is empty")
    return unmet


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` within the block after so many seconds of processor time. Only the main thread is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
