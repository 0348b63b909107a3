"""Calling Slurm's commands and reading what they print.

Every call has a time limit and no shell; output is asked for in the forms meant for programs (`-h -o`,
`--parsable2`).
Formats checked against Slurm 22.05; the fields used here are unchanged up to 25.05.
"""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence

from ..errors import UserError

INSTALL_HINT = (
    "Slurm's client commands must be on PATH (Debian/Ubuntu: apt-get install slurm-client; "
    "on a cluster: module load slurm)."
)

#: Words Slurm uses for "no limit" and "not known".
_NO_TIME = {"UNLIMITED", "INFINITE", "NOT_SET", "N/A", "INVALID", "PARTITION_LIMIT", "NONE", ""}


class SlurmError(RuntimeError):
    """A Slurm command failed. `text` is what it printed on standard error."""

    def __init__(self, argv: Sequence[str], returncode: int | None, text: str) -> None:
        self.argv, self.returncode, self.text = list(argv), returncode, text.strip()
        super().__init__(f"{argv[0]} failed ({returncode}): {self.text or 'no message'}")


def available() -> bool:
    """Return True if this machine has Slurm's client commands."""
    return shutil.which("squeue") is not None and shutil.which("sbatch") is not None


def require() -> None:
    """Raise `UserError` with the way to install them if Slurm's commands are missing."""
    if not available():
        raise UserError(f"squeue and sbatch were not found. {INSTALL_HINT}")


#: The user's own wishes for how these commands print, and for whom: not for what is read by a program.
_USERS_WISHES = ("SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "SLURM_TIME_FORMAT")


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environ` in which Slurm's commands print as they are read here: no filters, no formats, ISO times."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_USERS_WISHES)}
    return kept | {"SLURM_TIME_FORMAT": "standard"}


def slurm(*argv: str, timeout_s: float = 30, stdin: str | None = None) -> str:
    """Run a Slurm command and return its standard output.

    Raises `SlurmError` with the command's own message when it fails or takes longer than `timeout_s`.
    """
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=stdin,
            errors="replace",
            env=environment(),
        )
    except FileNotFoundError:
        raise SlurmError(argv, None, f"command not found. {INSTALL_HINT}") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(argv, None, f"no answer within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise SlurmError(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def rows(text: str, fields: int, separator: str = "|") -> list[list[str]]:
    """Split `-o 'a|b|c'` output into stripped fields; lines with too few fields are skipped, the last keeps
    the rest."""
    split = (line.split(separator, fields - 1) for line in text.splitlines() if line.strip())
    return [[field.strip() for field in row] for row in split if len(row) == fields]


def blocks(text: str) -> list[dict[str, str]]:
    """Read `scontrol show ... -o` (one object per line, `Key=Value` words) into dictionaries.

    A value runs up to the next ` Key=`, so that values with spaces (Comment, Reason, Command) stay whole.
    """
    key = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_:/]*)=")
    found = []
    for line in text.splitlines():
        marks = list(key.finditer(line))
        ends = [mark.start() for mark in marks[1:]] + [len(line)]
        block = {m.group(1): line[m.end() : end].strip() for m, end in zip(marks, ends, strict=True)}
        if block:
            found.append(block)
    return found


def parse_time_s(text: str) -> float:
    """Seconds of a Slurm duration: `minutes`, `mm:ss`, `hh:mm:ss`, `d-hh`, `d-hh:mm`, `d-hh:mm:ss`.

    `UNLIMITED` and the like give infinity. Raises ValueError on anything else.
    """
    text = text.strip()
    if text.upper() in _NO_TIME:
        return math.inf
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(f"not a Slurm time: {text!r}")
    days, a, b, c = match.groups()
    first, second, third = int(a), int(b or 0), int(c or 0)
    if days is not None:  # d-hh[:mm[:ss]]
        return int(days) * 86400 + first * 3600 + second * 60 + third
    if c is not None:  # hh:mm:ss
        return first * 3600 + second * 60 + third
    return first * 60 + second  # minutes or mm:ss


def unix_time(text: str) -> float | None:
    """Convert a time stamp of Slurm (local time, `2026-11-26T17:57:35`) to Unix seconds; None if it is none."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def format_time(seconds: float) -> str:
    """`3 min`, `4 h 10 min`, `2 d 3 h`: for people."""
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


def parse_gpus(gres: str) -> dict[str, int]:
    """GPUs of a gres or tres text, by type: `gpu:h100:4(S:0-1),nvme:1` gives {"h100": 4}, `gpu:2` gives {"":
    2}.

    Understands `sinfo %G`, `squeue %b` (`gres:gpu:4`, `gres/gpu:h100=4`) and `TresPerNode=gres/gpu:4`.
    """
    found: dict[str, int] = {}
    for item in re.split(r",(?![^(]*\))", gres):
        item = re.sub(r"\(.*?\)", "", item.strip())
        match = re.fullmatch(r"(?:gres[:/])?gpu(?:[:=](?!\d+$)([^:=]+))?(?:[:=](\d+))?", item)
        if match:
            kind = match.group(1) or ""
            found[kind] = found.get(kind, 0) + int(match.group(2) or 1)
    return found


def parse_mem_mb(text: str) -> float:
    """MB of a Slurm memory text (`12000M`, `12G`, `1.5T`, bare numbers are MB); `UNLIMITED` is infinity."""
    text = text.strip().rstrip("+nc")
    if text.upper() in _NO_TIME:
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"not a Slurm memory size: {text!r}")
    return (
        float(match.group(1))
        * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match.group(2).upper()]
    )


def expand_hosts(nodelist: str) -> list[str]:
    """Names of a Slurm host list: `gpu[01-03,7],cpu1` gives gpu01 gpu02 gpu03 gpu7 cpu1.

    Done here rather than by `scontrol show hostnames`, so that plans and tests need no Slurm. Several
    brackets in
    one name (`rack[1-2]n[1-4]`) are expanded left to right as Slurm does.
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip()):
        names.extend(_expand_one(part.strip()))
    return names


def _expand_one(part: str) -> Iterable[str]:
    match = re.match(r"([^\[]*)\[([^\]]+)\](.*)", part)
    if not match:
        return [part] if part else []
    head, ranges, tail = match.groups()
    middles: list[str] = []
    for item in ranges.split(","):
        low, dash, high = item.partition("-")
        if dash and low.isdigit() and high.isdigit():
            middles.extend(f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1))
        else:
            middles.append(item)
    return [head + middle + rest for middle in middles for rest in (_expand_one(tail) or [""])]
