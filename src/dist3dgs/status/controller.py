"""The Snakemake that runs a study, as other processes see it: a file in the results folder that it touches.

`dist3dgs status` reads it: where the Snakemake that should start them was killed, or its login node has gone, points
would wait for ever without a word.
"""

import atexit
import contextlib
import json
import os
import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_json
from ..slurm.allocation import node_name
from .point_state import duration

FILE = ".snakemake.json"
#: Seconds between touches of the file, and until a Snakemake that touches it no more is reported.
BEAT_S, SILENT_S = 10.0, 40.0


class Controller:
    """This process's Snakemake, at work on a study."""

    def __init__(self, results: Path, argv: Sequence[str]) -> None:
        self.path = Path(results, FILE)
        self.facts: dict[str, Any] = {
            "host": node_name(),
            "pid": os.getpid(),
            "arguments": list(argv[1:]),
            "ended_at": None,
        }
        self._stop = threading.Event()

    def begin(self) -> None:
        """Write the file and keep touching it until `end`, or the end of the process."""
        with contextlib.suppress(OSError):
            write_json(self.path, self.facts)
        threading.Thread(target=self._beat, name="dist3dgs controller", daemon=True).start()
        atexit.register(self.end, is_done=False)

    def end(self, is_done: bool) -> None:
        """Remove the file, or where points are left note that nobody is at work on them."""
        if self._stop.is_set():
            return
        self._stop.set()
        with contextlib.suppress(OSError):
            if is_done:
                self.path.unlink(missing_ok=True)
            else:
                write_json(self.path, self.facts | {"ended_at": time.time()})

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def missing_controller(results: Path) -> str | None:
    """Say that the Snakemake that was last at work on a study is not any more, and how to go on; None where it is.

    A process of this host is looked for; one of another host is gone when it has not touched its file for so long.
    """
    path = Path(results, FILE)
    try:
        facts, silent_s = json.loads(path.read_text(encoding="utf-8")), time.time() - path.stat().st_mtime
        host, pid, arguments = str(facts["host"]), int(facts["pid"]), [str(a) for a in facts["arguments"]]
        ended_at = facts["ended_at"]
    except (OSError, ValueError, TypeError, LookupError):
        return None
    command = shlex.join(["snakemake", *arguments])
    if ended_at is not None:
        return f"Snakemake has ended, {duration(time.time() - ended_at)} ago; to go on: {command}"
    # A killed Snakemake leaves its lock behind.
    unlock = f"{shlex.join(['snakemake', '--unlock', *arguments])} && {command}"
    if host == node_name() and not _is_there(pid):
        return f"Snakemake (process {pid}) is gone; to go on: {unlock}"
    if silent_s > SILENT_S:
        said = f"Snakemake (process {pid} on {host}) has given no sign of life for {duration(silent_s)}"
        return f"{said}; if it is gone, go on with: {unlock}"
    return None


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
