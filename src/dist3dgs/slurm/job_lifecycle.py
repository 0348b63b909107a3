"""The launcher's turn inside a Slurm job: wait for another job of the point, then train, use a result, or close.

Used by `dist3dgs launch` when it runs in an allocation. Exit status 75 (EX_TEMPFAIL) tells Snakemake to submit the
point again; the resources of that submission come from the same decision, taken on the login node.
"""

import contextlib
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.naming import Layout
from ..files import write_json
from ..runs.attempts import attempts
from .allocation import Allocation
from .client import SlurmError
from .outcome import read_tail, settle
from .retry import Decision, decide
from .site import VARIABLE, Site

EX_TEMPFAIL = 75
WAIT_POLL_S = 5.0
#: A job for one CPU gets a whole core, which may be as many as this.
SMALL_CPUS = 8
#: A controller that is down for less than this is waited for.
PATIENCE_S = 600.0


def take(point: Path, spec_digest: str, allocation: Allocation, site: Site) -> Decision:
    """Decide this job's action, after every other running job of the point has ended."""
    silent_since: float | None = None
    while True:
        try:
            tries = settle(point, spec_digest, (allocation.job_id, allocation.restarts))
        except SlurmError as e:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
            print(f"Slurm does not answer ({e.text}); asking again", file=sys.stderr, flush=True)
            time.sleep(WAIT_POLL_S)
            continue
        decision = decide(tries, retry_gpu_hours=site.retry_gpu_hours)
        if decision.action == "train" and (why := _too_small(point, allocation, site)):
            # Submitted to wait for another job of the point, which has left the training to be done.
            print(f"Slurm job {allocation.job_id}: {why}; to be submitted anew", file=sys.stderr, flush=True)
            sys.exit(EX_TEMPFAIL)
        if decision.action != "wait":
            return decision
        print(f"{decision.reason}; waiting for it to end", file=sys.stderr, flush=True)
        time.sleep(WAIT_POLL_S)


def _too_small(point: Path, allocation: Allocation, site: Site) -> str | None:
    """Why a job that was submitted to wait or to close (`resources.small_resources`) cannot train."""
    layout = Layout.parse(Path(point).parent.name)
    has, needs = allocation.cpus_per_node or SMALL_CPUS + 1, site.cpus_per_gpu * layout.workers_per_node
    small = len(allocation.nodes) == 1 and allocation.gpus_per_node == 0 and has <= SMALL_CPUS
    lacks = has < needs or layout.nodes > 1 or site.gpu_request != "none"
    if small and lacks and os.environ.get(VARIABLE):
        return f"{has} CPU(s) on one node without a GPU cannot train {layout}"
    return None


#: Last words of an srun that asked about its job while the controller was away. It asks once.
_NO_CONTROLLER = re.compile(
    r"srun: error: Unable to confirm allocation.*(contact slurm controller|timed out|[Zz]ero [Bb]ytes)"
)


def srun_found_no_controller(log: Path) -> bool:
    """Return True if the last launch in `log` ended because srun found no controller, before any rank was started."""
    return any(_NO_CONTROLLER.search(line) for line in read_tail(log, 4096).splitlines()[-2:])


def after_failure(point: Path, spec_digest: str, allocation: Allocation, site: Site) -> Decision:
    """Decide if the attempt that has just failed in this job is followed by another."""
    tries = settle(point, spec_digest, (allocation.job_id, allocation.restarts))
    return decide([t for t in tries if not t.running], retry_gpu_hours=site.retry_gpu_hours)


def publish(point: Path, note: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Make the newest attempt the point's outcome: its summary becomes `launch.json` of the point.

    `facts` (spec, spec_digest) fill in what an attempt lacks that was killed before it wrote anything.
    """
    attempt = attempts(point)[-1]
    summary = {"attempt": attempt.number, "host": socket.gethostname(), **facts, **attempt.launch()}
    summary |= {"published": True, "closing_note": note}
    if summary.get("status") in (None, "running", "stopped"):
        summary["status"] = "lost"
    if summary.get("finished_at") is None:
        summary["finished_at"] = (summary.get("ended") or {}).get("at") or time.time()
    write_json(attempt.launch_path, summary)
    write_json(Path(point) / "launch.json", summary)
    return summary


@dataclass
class TimeLimit:
    """Remember if the job's time limit was why a run was stopped."""

    reached: bool = False
    note: str = ""


def margin_s(time_left_s: float) -> float:
    """Seconds before the allocation's end at which a run is stopped to leave a checkpoint: a tenth, 5 to 120 s."""
    return min(120.0, max(5.0, 0.1 * time_left_s))


@contextlib.contextmanager
def before_time_limit(allocation: Allocation | None, stop: Callable[[int], None]) -> Iterator[TimeLimit]:
    """Call `stop(SIGTERM)` shortly before the allocation ends.

    Slurm's own signal comes with KillWait (30 s by default), reaches Snakemake as well and leaves the job in state
    TIMEOUT; stopping first leaves a checkpoint, the evidence and a say in what happens next.
    """
    limit = TimeLimit()
    left = allocation.time_left_s if allocation is not None else None
    if allocation is None or left is None or math.isinf(left):
        yield limit
        return

    def reached() -> None:
        limit.reached = True
        limit.note = f"Slurm job {allocation.job_id}: stopped {margin_s(left):.0f} s before its time limit"
        print(limit.note, file=sys.stderr, flush=True)
        stop(signal.SIGTERM)

    timer = threading.Timer(max(0.0, left - margin_s(left)), reached)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()
