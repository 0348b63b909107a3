"""Parse sizes, durations, time stamps and host lists as Slurm, PyTorch and the consoles of trainers print them.

The parsers raise ValueError on malformed text; `expand_hosts` returns text that is no host list as it is.
"""

import math
import re
import time
from collections.abc import Iterable
from itertools import chain, islice, product

MIB, GIB = 2**20, 2**30

#: Slurm's words for "no limit" and "unknown"; an empty field counts as one.
UNLIMITED = frozenset({"UNLIMITED", "INFINITE", "PARTITION_LIMIT", "NOT_SET", "N/A", "INVALID", "NONE", ""})

_NUMBER = r"(?:\d{1,18}(?:\.\d*)?|\.\d+)"
_SIZE = re.compile(rf"({_NUMBER}) ?(?:([KMGTP])(?:I?B)?|(B|BYTES?))?[+NC]{{0,2}}", re.ASCII)
_POWER = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_CLOCK = re.compile(
    rf"(?:(\d{{1,18}})(-| days?,? ))?(?:(?:(\d{{1,18}}):)?(\d{{1,18}}):)?({_NUMBER})", re.ASCII
)
_PART = re.compile(
    rf"({_NUMBER}) ?(us|µs|ms|s|m|h|d|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?)(?![a-z])[, ]{{0,2}}",
    re.ASCII,
)
_PARTS = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_UNIT_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

#: Slurm's own limit of the names in one list.
MAX_HOSTS = 64 * 1024
_HOSTS = re.compile(r"(?:\[[^\[\]\s]*\]|[^,\s])+")
_RANGES = r"\[\d{1,18}(?:-\d{1,18})?(?:,\d{1,18}(?:-\d{1,18})?)*\]"
_HOST_RANGES = re.compile(rf"[^\[\]]*(?:{_RANGES}[^\[\]]*){{1,8}}", re.ASCII)


def parse_bytes(text: str, bare: float = 1.0) -> float:
    """Parse a size such as `12G`, `1.5T`, `2.00 MiB`, `3.5 GB`, `512 bytes`, `64000+` or `4Gn` into bytes.

    Every prefix is a power of 1024, as in Slurm, PyTorch and nvidia-smi, whatever it is called.

    Args:
        text: the size; a trailing `+` (or more), `n` (per node) or `c` (per CPU) is ignored.
        bare: bytes of a number without a unit; `MIB` for Slurm's requests and limits.

    Returns:
        Bytes; infinity for `UNLIMITED` and the like.

    Raises:
        ValueError: anything else.
    """
    words = text.strip().upper()
    if words in UNLIMITED:
        return math.inf
    if not (m := _SIZE.fullmatch(words)):
        raise ValueError(f"not a size: {text!r}")
    return float(m[1]) * (1024.0 ** _POWER[m[2]] if m[2] else 1.0 if m[3] else bare)


def parse_duration_s(text: str, bare_s: float = 1.0) -> float:
    """Parse a duration into seconds.

    Clocks: `mm:ss`, `hh:mm:ss`, `d-hh`, `d-hh:mm`, `d-hh:mm:ss`, `2 days, 1:02:03`; the last number may have a
    fraction. Numbers with units: `4 m, 9 s`, `81.297 ms`, `4 h 10 min`, `3 minutes`.

    Args:
        text: the duration.
        bare_s: seconds of a number without a unit; 60 for Slurm's limits.

    Returns:
        Seconds; infinity for `UNLIMITED` and the like.

    Raises:
        ValueError: anything else.
    """
    text = text.strip()
    if m := _CLOCK.fullmatch(text):
        days, mark, first, second, last = m.groups()
        if mark == "-":  # Slurm's days-hours[:minutes[:seconds]]
            parts = zip((p for p in (first, second, last) if p), (3600.0, 60.0, 1.0), strict=False)
            return int(days) * 86400.0 + sum(float(part) * unit for part, unit in parts)
        seconds = float(last) * (1.0 if second or days else bare_s)
        return int(days or 0) * 86400.0 + int(first or 0) * 3600.0 + int(second or 0) * 60.0 + seconds
    if _PARTS.fullmatch(text):
        return sum(float(number) * _unit_s(unit) for number, unit in _PART.findall(text))
    if text.upper() in UNLIMITED:
        return math.inf
    raise ValueError(f"not a duration: {text!r}")


def format_duration(seconds: float) -> str:
    """Format seconds for people, with the two largest units: `20 s`, `3 min`, `4 h 10 min`, `2 d 3 h`."""
    if math.isinf(seconds):
        return "unlimited"
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def format_bytes(num_bytes: float) -> str:
    """Format a size for people: `512 MiB`, `1.5 GiB`."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= 0.1 * GIB else f"{num_bytes / MIB:.0f} MiB"


def parse_time_stamp(text: str) -> float | None:
    """Parse Slurm's local time `2025-03-01T12:00:09` into Unix seconds; None for `N/A`, `Unknown` and the like."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def expand_hosts(text: str, limit: int = MAX_HOSTS) -> list[str]:
    """Expand a host list such as `gpu[01-03,7],login` or `rack[1-2]n[1-4]` without asking Slurm.

    Of several brackets the last one counts fastest, and numbers keep the width of a range's first one, as in
    Slurm. A part that is no list (unclosed or nested brackets, letters in a range, a range that runs backwards)
    stands for itself.

    Args:
        text: names separated by commas or white space; text that an untrusted log states may be passed too.
        limit: names beyond so many are left out.
    """
    names: list[str] = []
    for part in islice(_HOSTS.findall(text), limit):
        names += islice(_names(part, limit), limit - len(names))
    return names


def _names(part: str, limit: int) -> Iterable[str]:
    if not _HOST_RANGES.fullmatch(part):
        return [part]
    pools = []
    for piece in re.findall(r"\[[^\]]*\]|[^\[\]]+", part):
        if piece[0] != "[":
            pools.append([piece])
            continue
        ranges = [item.partition("-") for item in piece[1:-1].split(",")]
        if any(int(low) > int(high or low) for low, _, high in ranges):
            return [part]
        numbers = (
            (f"{n:0{len(low)}d}" for n in range(int(low), int(high or low) + 1)) for low, _, high in ranges
        )
        pools.append(list(islice(chain.from_iterable(numbers), limit)))
    return map("".join, product(*pools))


def _unit_s(unit: str) -> float:
    return _UNIT_S[unit if unit in _UNIT_S else unit[0]]
