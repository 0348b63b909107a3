"""Call Slurm's commands and parse what they print.

Every call has a time limit and no shell; output is asked for in the forms meant for programs (`-h -o`, `--parsable2`).
Formats checked against Slurm 22.05; the fields used here are unchanged up to 25.05.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from ..errors import UserError

INSTALL_HINT = (
    "Slurm's client commands must be on PATH (Debian/Ubuntu: apt-get install slurm-client; "
    "on a cluster: module load slurm)."
)


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


#: The user's own settings of output and filters, which would change what is parsed here.
_USER_SETTINGS = ("SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "SLURM_TIME_FORMAT")


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Copy `environ` for Slurm's commands: no filters, no formats, ISO times."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_USER_SETTINGS)}
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


def wait_for_slurm(patience_s: float = 60, pause_s: float = 5) -> None:
    """Return once `squeue` answers, which a restarting controller may take a while to do.

    Raises `UserError` with Slurm's own words where it does not within `patience_s`, or at once without its commands.
    """
    elsewhere = "on a machine without Slurm: --profile profiles/local"
    if not available():
        raise UserError(f"no Slurm here: squeue and sbatch were not found. {INSTALL_HINT} Or, {elsewhere}")
    began, said = time.monotonic(), False
    while True:
        try:
            slurm("squeue", "-h", "--me", "-o", "%i", timeout_s=20)
            return
        except SlurmError as e:
            last = e.text.splitlines()[-1] if e.text else "no message"
            words = re.sub(r"^squeue: (error: |fatal: )?", "", last.strip())[:300]
            if time.monotonic() - began + pause_s > patience_s:
                raise UserError(
                    f"no Slurm answers: `squeue` says: {words}. Nothing was submitted. Fix: run `scontrol ping` "
                    f"on this machine until a controller is UP, and then the same command again; {elsewhere}"
                ) from None
            if not said:
                print(f"dist3dgs: Slurm does not answer ({words}); asking again", file=sys.stderr, flush=True)
                said = True
            time.sleep(pause_s)


def rows(text: str, fields: int, separator: str = "|") -> list[list[str]]:
    """Split `-o 'a|b|c'` output into stripped fields; the last keeps the rest, shorter lines are skipped."""
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


def parse_gpus(gres: str) -> dict[str, int]:
    """Count the GPUs of a gres or tres text by type: `gpu:h100:4(S:0-1),nvme:1` gives {"h100": 4}, `gpu:2` {"": 2}.

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
