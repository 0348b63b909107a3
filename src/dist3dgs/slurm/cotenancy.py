"""Find out whether other jobs shared a run's nodes while it ran: its timings are then not those of the machine alone.

Other users' jobs come from squeue. Where the site hides them (`PrivateData=jobs`), a node's allocated CPUs against this
job's own say that somebody is there, if not who.
"""

import re
import threading
import time
from typing import Any

from ..units import expand_hosts, parse_time_stamp
from .allocation import Allocation
from .client import SlurmError, blocks, rows, slurm

#: Seconds between looks. squeue shows jobs for `MinJobAge` (300 s unless the site says otherwise) after their end, so
#: that nobody who came and went in between is missed.
EVERY_S = 120.0
#: For one answer of Slurm: a job that is told to end must not wait for a controller that is away.
PATIENCE_S = 5.0
#: Clocks of nodes and controller differ, and Slurm's times are whole seconds.
CLOCK_S = 1.5
#: Stands for jobs that this user may not see.
HIDDEN = "not visible"


class CoTenancy:
    """Looks at the nodes of `allocation` now and then, from a thread of its own, until stopped."""

    def __init__(self, allocation: Allocation, every_s: float = EVERY_S) -> None:
        self.allocation, self.every_s = allocation, every_s
        self.began = time.time()
        self._neighbours: dict[str, set[str]] = {}
        self._looks = 0
        self._problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="co-tenancy", daemon=True)

    def start(self) -> "CoTenancy":
        self._thread.start()
        return self

    def stop(self) -> dict[str, Any]:
        """Findings: `shared` (None: not known, for the `reason` given) and the other jobs' ids by node."""
        self._stop.set()
        self._thread.join(timeout=4 * PATIENCE_S)
        neighbours = {node: sorted(jobs) for node, jobs in sorted(self._neighbours.items())}
        shared = True if neighbours else (False if self._looks else None)
        return {"shared": shared, "jobs": neighbours, "reason": self._problem if shared is None else None}

    def _run(self) -> None:
        while True:
            last = self._stop.is_set()
            try:
                self._look()
            except (SlurmError, ValueError) as e:
                self._problem = f"Slurm did not say who was on the nodes: {e}"
            if last:
                return
            self._stop.wait(self.every_s)

    def _look(self) -> None:
        names = [node.name for node in self.allocation.nodes]
        shown = _ask("squeue", "-a", "-h", "-t", "all", "-w", ",".join(names), "-o", "%A|%T|%N|%S|%e")
        for job, state, nodes, start, end in rows(shown, 5):
            if job != str(self.allocation.job_id) and self._overlaps(state, start, end):
                for node in set(expand_hosts(nodes)) & set(names):
                    self._neighbours.setdefault(node, set()).add(job)
        own = _own_cpus(_ask("scontrol", "-d", "-o", "show", "job", str(self.allocation.job_id)))
        if not own and "jobs" in _private():
            raise ValueError("it hides other users' jobs (PrivateData), and does not show this job's CPUs")
        for block in blocks(_ask("scontrol", "-o", "show", "node", ",".join(names))):
            node, allocated = block.get("NodeName", ""), block.get("CPUAlloc", "")
            if node in own and allocated.isdigit() and int(allocated) > own[node]:
                self._neighbours.setdefault(node, {HIDDEN})
        self._looks += 1

    def _overlaps(self, state: str, start: str, end: str) -> bool:
        """Return True if a job was on its nodes at some moment of this run."""
        if state == "PENDING" or (started := parse_time_stamp(start)) is None:
            return False
        if state in ("RUNNING", "SUSPENDED", "COMPLETING", "STOPPED", "SIGNALING"):
            return started < time.time() + CLOCK_S
        ended = parse_time_stamp(end)
        return ended is not None and ended > self.began + CLOCK_S


def _ask(*argv: str) -> str:
    return slurm(*argv, timeout_s=PATIENCE_S)


def _private() -> list[str]:
    """Return what the cluster hides from its users."""
    found = re.search(r"^PrivateData\s*=\s*(\S+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return found[1].split(",") if found else []


def _own_cpus(details: str) -> dict[str, int]:
    """CPUs of a job on each of its nodes, from `scontrol -d show job` (`Nodes=gpu[01-02] CPU_IDs=0-3,8 Mem=...`)."""
    found: dict[str, int] = {}
    for nodes, ids in re.findall(r"\bNodes=(\S+) CPU_IDs=([0-9,-]+)", details):
        spans = [span.partition("-") for span in ids.split(",") if span]
        count = sum(int(last or first) - int(first) + 1 for first, _, last in spans)
        found |= dict.fromkeys(expand_hosts(nodes), count)
    return found
