"""Ask Slurm what this job was given, and who else is on its nodes.

The environment is not trusted: in a batch script it describes the first node and the script's one task, in a step that
step, and another executor may have removed most of it.
"""

import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from ..config.naming import Layout
from ..errors import UserError
from ..runs.launch_summary import SharedNodes
from ..units import expand_hosts, parse_duration_s, parse_time_stamp
from .client import SlurmError, blocks, parse_gpus, rows, slurm


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the allocation. `address` is where other nodes reach it (Slurm's NodeAddr)."""

    name: str
    address: str


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A running job's share of the cluster. Node 0 is the head, where the batch script and so the launcher runs."""

    job_id: int
    nodes: tuple[Node, ...]
    gpus_per_node: int = 0
    tasks: int | None = None
    cpus_per_node: int | None = None
    partition: str | None = None
    time_left_s: float | None = None
    exclusive: bool = False  # whether its nodes are its own (--exclusive)
    restarts: int = 0  # how often Slurm has requeued this job
    log: str | None = None  # where Slurm writes the job's own output

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def __str__(self) -> str:
        tasks = "" if self.tasks is None else f", {self.tasks} task(s)"
        return f"job {self.job_id}: {len(self.nodes)} node(s) x {self.gpus_per_node} GPU(s){tasks}"

    def mismatch(self, layout: Layout, *, uses_gpus: bool) -> str | None:
        """Say how the allocation differs from what `layout` needs, or None if it fits exactly.

        Too much is a mismatch as well: four GPUs allocated and one used is the failure this project began with.
        """
        if len(self.nodes) != layout.nodes:
            return (
                f"layout {layout} needs {layout.nodes} node(s), Slurm job {self.job_id} has {len(self.nodes)}"
            )
        if uses_gpus and self.gpus_per_node != layout.workers_per_node:
            return (
                f"layout {layout} needs {layout.workers_per_node} GPU(s) per node, Slurm job {self.job_id} has "
                f"{self.gpus_per_node}"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Step:
    """This process's place among the copies that one srun started of it."""

    task: int = 0
    tasks: int = 1


def step(environ: Mapping[str, str] = os.environ) -> Step:
    """Return the srun step this process was started in; one task where there is none, as in a batch script.

    Not SLURM_NTASKS: in a batch script that is what the job asked for, and the script runs once all the same.
    """
    tasks, task = environ.get("SLURM_STEP_NUM_TASKS", ""), environ.get("SLURM_PROCID", "")
    if not tasks.isdigit() or not task.isdigit():
        return Step()
    return Step(task=int(task), tasks=int(tasks))


#: How long a job waits for the controller before it gives up, and how often it asks.
PATIENCE_S, POLL_S = 600.0, 3.0


def _answers(job: int) -> bool:
    try:
        slurm("squeue", "-h", "-j", str(job), "-o", "%i")
    except SlurmError as e:
        return "Invalid job id" in e.text
    return True


def wait_for_controller(job: int, patience_s: float) -> bool:
    """Return True if the controller answers, asking again for so many seconds."""
    end = time.monotonic() + patience_s
    while not (answers := _answers(job)) and time.monotonic() < end:
        print(f"Slurm job {job}: the controller does not answer; asking again", file=sys.stderr, flush=True)
        time.sleep(POLL_S)
    return answers


def job_id(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the Slurm job this process runs in, or None outside of one."""
    text = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID") or ""
    return int(text) if text.isdigit() else None


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return this machine's name in evidence: Slurm's name for the node in a job, else the host's."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def current(environ: Mapping[str, str] = os.environ) -> Allocation | None:
    """Return this process's allocation, or None outside Slurm. Raises `UserError` if Slurm cannot be asked."""
    job = job_id(environ)
    return None if job is None else read(job, patience_s=PATIENCE_S)


#: Holds the number of GPUs that the ranks of a node use, where the job was given the whole node.
GPUS_PER_NODE = "DIST3DGS_GPUS_PER_NODE"


def limit_gpus(environ: MutableMapping[str, str], gpus: int) -> None:
    """Show only the first `gpus` of the GPUs that Slurm lists: `--exclusive` gives a job all those of its nodes."""
    listed = [d for d in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip()]
    if len(listed) <= gpus:
        return
    environ["CUDA_VISIBLE_DEVICES"] = ",".join(listed[:gpus])
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):  # name all of them
        environ.pop(name, None)


def read(job: int, patience_s: float = 0.0) -> Allocation:
    """Ask squeue and scontrol for a running job's nodes, their addresses, GPUs and time left.

    A controller that does not answer is asked again for `patience_s`: jobs outlive its restarts.
    """
    wait_for_controller(job, patience_s)
    try:
        fields = rows(slurm("squeue", "-h", "-j", str(job), "-o", "%N|%P|%L|%b"), 4)
        if not fields or not fields[0][0]:
            raise UserError(
                f"Slurm job {job} has no nodes (is it still running?). Look at it: scontrol show job {job}"
            )
        nodelist, partition, left, gres = fields[0]
        names = expand_hosts(nodelist)
        shown = {b.get("NodeName", ""): b for b in blocks(slurm("scontrol", "-o", "show", "node", nodelist))}
        details = blocks(slurm("scontrol", "-o", "show", "job", str(job)))[0]
    except SlurmError as e:
        raise UserError(
            f"Slurm job {job}: cannot ask Slurm what it was given. {e}. If squeue works in a shell on this node, set "
            "SLURM_CONF to its configuration file."
        ) from None
    nodes = tuple(Node(name=n, address=reachable(n, shown.get(n, {}).get("NodeAddr", n))) for n in names)
    tasks = details.get("NumTasks", "")
    return Allocation(
        job_id=job,
        nodes=nodes,
        gpus_per_node=_gpus_per_node(details, gres, len(nodes)),
        tasks=int(tasks) if tasks.isdigit() else None,
        partition=partition,
        time_left_s=parse_duration_s(left, bare_s=60),
        cpus_per_node=node_cpus(details, len(nodes)),
        exclusive=details.get("OverSubscribe") == "NO",
        restarts=int(details.get("Restarts", "0") or 0),
        log=details.get("StdOut"),
    )


def _gpus_per_node(details: dict[str, str], gres: str, num_nodes: int) -> int:
    """Return the GPUs asked for per node, or a node's share of those of the whole job (`--gpus=8`)."""
    if per_node := parse_gpus(details.get("TresPerNode", "")) or parse_gpus(gres):
        return sum(per_node.values())
    total = parse_gpus(details.get("AllocTRES") or details.get("TRES", ""))
    # There the sum stands beside the types: gres/gpu=8,gres/gpu:a100=8.
    return math.ceil((total.get("") or sum(total.values())) / num_nodes)


def node_cpus(details: dict[str, str], num_nodes: int) -> int | None:
    """Return the CPUs of each of the job's nodes by the fields of `scontrol show job`; None where none tells."""
    per_task = details.get("CPUs/Task", "")
    if per_task.isdigit() and int(per_task) > 1:
        tasks = details.get("NumTasks", "")
        return int(per_task) * (math.ceil(int(tasks) / num_nodes) if tasks.isdigit() else 1)
    total = details.get("NumCPUs", "").split("-")[0]
    return max(1, int(total) // num_nodes) if total.isdigit() else None


def reachable(name: str, node_addr: str) -> str:
    """Return the address to use for a node: NodeAddr if it is a number or resolves, else the name if that resolves.

    Node names are often known to Slurm alone, and sometimes NodeAddr is a management name that compute nodes cannot
    resolve; an unresolvable head would otherwise show as a rendezvous timeout ten minutes later.
    """
    for candidate in (node_addr, name):
        try:
            socket.getaddrinfo(candidate, None)
            return candidate
        except OSError:
            continue
    raise UserError(
        f"node {name}: neither its NodeAddr {node_addr!r} nor its name resolves here. Ask the administrators for a "
        f"NodeAddr in slurm.conf, or add {name} to /etc/hosts."
    )


#: Seconds between looks. squeue shows jobs for `MinJobAge` (300 s unless the site says otherwise) after their end, so
#: that nobody who came and went in between is missed.
EVERY_S = 120.0
#: For one answer of Slurm: a job that is told to end must not wait for a controller that is away.
ANSWER_S = 5.0
#: Clocks of nodes and controller differ, and Slurm's times are whole seconds.
CLOCK_S = 1.5
#: Stands for jobs that this user may not see.
HIDDEN = "not visible"


class CoTenancy:
    """Finds out if other jobs share the nodes of `allocation`: a run's timings are then not those of the machine alone.

    A thread looks now and then until it is stopped. Other users' jobs come from squeue. Where the site hides them
    (`PrivateData=jobs`), a node's allocated CPUs against this job's own say that somebody is there, if not who.
    """

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

    def stop(self) -> SharedNodes:
        """Look a last time; return the other jobs' ids by node."""
        self._stop.set()
        self._thread.join(timeout=4 * ANSWER_S)
        neighbours = {node: sorted(jobs) for node, jobs in sorted(self._neighbours.items())}
        shared = True if neighbours else (False if self._looks else None)
        return SharedNodes(shared=shared, jobs=neighbours, reason=self._problem if shared is None else None)

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
    return slurm(*argv, timeout_s=ANSWER_S)


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
