"""Explain why sbatch refused a job, and ask it before a study begins.

Slurm's messages name the rule that was broken, and not always the right one (nine nodes asked of a partition of two may
be "more processors requested than permitted"), but neither the number nor the setting it came from. The numbers come
from comparing the request with the partition's nodes.
"""

import math
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..units import format_duration, parse_duration_s
from .client import SlurmError, blocks, environment, parse_gpus, slurm
from .partitions import Partition, read_partitions
from .site import SITE_FILE, Site

Resources = Mapping[str, int | str]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a job cannot be submitted or would never start."""

    reason: str
    remedy: str
    line: str  # Slurm's own
    transient: bool = False  # the same request may be taken later
    known: bool = True  # whether Slurm's words were understood

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}. Slurm said: {self.line}"


#: Slurm's messages about a request that is too large; `excess` finds out in which quantity.
_TOO_LARGE = re.compile(
    r"Requested time limit is invalid|PartitionTimeLimit|Node count specification invalid|PartitionNodeLimit"
    r"|Memory specification can ?not be satisfied|Requested memory|More processors requested"
    r"|Requested node configuration is not available|BadConstraints|PartitionConfig|Resources.*never"
    r"|Invalid generic resource|Invalid gres",
    re.IGNORECASE,
)
#: (Slurm's words, ours, what to do or a quantity of `REMEDIES`). `{...}` are filled from the request; first match wins.
_EXPLANATIONS: tuple[tuple[str, str, str], ...] = (
    (
        r"Invalid account|InvalidAccount|account .* appears to be invalid|Invalid job credential.*account",
        "account {account!r} is not known to this cluster, or may not use partition {slurm_partition!r}",
        "Set site.account in profiles/slurm/site.yaml to one of: sacctmgr show assoc user=$USER format=account",
    ),
    (
        r"Invalid partition name|invalid partition specified",
        "there is no partition {slurm_partition!r} here",
        "Write the profile for this cluster: dist3dgs site init --force; or set site.gpu_partition and "
        "site.cpu_partition to names that `sinfo -o %P` lists",
    ),
    (
        r"Requested time limit is invalid|PartitionTimeLimit",
        "{runtime} minutes are more than partition {slurm_partition!r} allows{max_time}",
        "time",
    ),
    (
        r"Node count specification invalid|PartitionNodeLimit",
        "{nodes} nodes are more than partition {slurm_partition!r} has or allows",
        "Ask for a smaller layout, or set another site.gpu_partition",
    ),
    (
        r"Invalid qos|InvalidQOS",
        "QOS {qos!r} is not known, or not for this account",
        "Set site.qos to one of: sacctmgr show assoc user=$USER format=qos",
    ),
    (
        r"Invalid feature",
        "no node has the constraint that was asked for",
        "Remove `constraint`; `sinfo -o %f` lists the features there are",
    ),
    (
        r"Invalid generic resource|Invalid gres",
        "the cluster knows no GPUs by the name in {gpus!r}",
        "Set site.gpu_type to a type that `sinfo -o %G` lists (or null), or site.gpu_request to gpus-per-node",
    ),
    (
        r"Memory specification can ?not be satisfied|Requested memory",
        "{mem_mb} MB per node are more than the nodes of partition {slurm_partition!r} have",
        "Lower site.mem_gib_per_gpu, or set site.max_mem_gib to the nodes' memory (sinfo -o %m)",
    ),
    (
        r"More processors requested",
        "{cpus_per_task} CPUs per node are more than the nodes of partition {slurm_partition!r} have",
        "Lower site.cpus_per_gpu (sinfo -o '%c %G')",
    ),
    (
        r"dependency problem|DependencyNeverSatisfied",
        "the job it waits for is gone",
        "Nothing to do: the next submission does not wait for it",
    ),
    (
        r"maximum number of jobs|job count limit|(QOS|Assoc)\w*(Submit|Jobs)",
        "the cluster or the account takes no more jobs at present",
        "Nothing to do: it is asked again. Fewer at once: `jobs` in profiles/slurm/config.yaml",
    ),
    (
        r"Required node not available|configuration not available now|temporarily unable to accept",
        "Slurm takes no such job at present",
        "Nothing to do: it is asked again. What is down or reserved: sinfo -R, scontrol show reservation",
    ),
    (
        r"Unable to contact slurm controller|Connection refused|no answer within|timed out|Zero Bytes were transmitted"
        r"|Transport endpoint is not connected|authentication error|backup controller|standby mode"
        r"|Unexpected message|resource temporarily unavailable|Communication connection failure",
        "the Slurm controller does not answer",
        "Wait and run the same command again; jobs that run are not affected (scontrol ping)",
    ),
    (
        r"Max(GRES|TRES|CPU|Node|Wall)|QOSMax|AssocMax|AssocGrp|QOSGrp|violates accounting/QOS policy",
        "the limits of account {account!r} or its QOS do not allow {nodes} node(s) with {gpus!r} for {runtime} minutes",
        "See the limits: sacctmgr show assoc user=$USER format=account,maxtresperjob,grptres,maxwall; "
        "or use another account",
    ),
    (
        r"Requested node configuration is not available|BadConstraints|PartitionConfig|Resources.*never",
        "no {nodes} node(s) of partition {slurm_partition!r} have {gpus!r}, {cpus_per_task} CPUs and {mem_mb} MB each"
        "{max_time}",
        "Compare with `sinfo -p {slurm_partition} -o '%D %c %m %G %l'`: ask for a smaller layout, or change "
        "site.gpu_type, site.cpus_per_gpu or site.mem_gib_per_gpu",
    ),
)
#: Reasons that pass by themselves, by their beginning.
_TRANSIENT = (
    "the Slurm controller does not answer",
    "the cluster or the account takes no more jobs",
    "Slurm takes no such job at present",
    "the job it waits",
)


def explain(
    text: str, request: Resources | None = None, *, for_ingest: bool = False, **facts: str
) -> Refusal:
    """Turn what sbatch (or `squeue %r`) said about `request` into a reason, a remedy and the decisive line.

    Where Slurm says that the request is too large, the partition's nodes are read to name what exactly is.
    """
    values: dict[str, Any] = {
        key: "?" for key in ("nodes", "slurm_partition", "cpus_per_task", "mem_mb", "runtime")
    }
    values |= {"account": None, "qos": None, "max_time": ""} | dict(request or {}) | facts
    values["gpus"] = _gpus(values)
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in text.splitlines() if line.strip()]
    large = next((line for line in lines if _TOO_LARGE.search(line)), None)
    if large and request and (too_much := excess(request, _kinds(request))):
        remedies = dict.fromkeys(REMEDIES[e.quantity][for_ingest] for e in too_much)
        return Refusal(reason="; ".join(e.reason for e in too_much), remedy=". ".join(remedies), line=large)
    for pattern, reason, remedy in _EXPLANATIONS:
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                todo = REMEDIES[remedy][for_ingest] if remedy in REMEDIES else remedy
                words, todo = reason.format(**values), todo.format(**values)
                return Refusal(reason=words, remedy=todo, line=line, transient=reason.startswith(_TRANSIENT))
    line = lines[-1] if lines else "nothing"
    return Refusal(
        reason="Slurm does not take the job",
        remedy="Ask the cluster's support about this line",
        line=line,
        known=False,
    )


def _gpus(values: Mapping[str, object]) -> str:
    match = re.search(r"--gpus-per-node=(\S+)", str(values.get("slurm_extra", "")))
    return str(values.get("gres") or (f"gpu:{match.group(1)}" if match else "no GPUs"))


def sbatch_argv(request: Resources, account: str | None) -> list[str]:
    """Return the sbatch options of a rule's resources, as the executor plugin writes them."""
    argv = ["sbatch"]
    argv += [f"--account={account}"] if account else []
    argv += [f"--partition={request['slurm_partition']}"] if request.get("slurm_partition") else []
    argv += [f"--time={request['runtime']}", f"--mem={request['mem_mb']}", f"--nodes={request['nodes']}"]
    argv += [f"--cpus-per-task={request['cpus_per_task']}"]
    argv += [f"--qos={request['qos']}"] if request.get("qos") else []
    argv += [f"--gres={request['gres']}"] if request.get("gres") else [f"--ntasks={request['tasks']}"]
    return [*argv, *str(request.get("slurm_extra", "")).split()]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Answer of `sbatch --test-only` to a request."""

    refusal: Refusal | None = None
    start: str | None = None  # Slurm's time stamp
    nodes: str | None = None


def test_only(request: Resources, account: str | None, *, for_ingest: bool = False) -> Forecast:
    """Ask Slurm whether it would take the request and when it would start; submits nothing."""
    argv = sbatch_argv(request, account)
    try:
        done = subprocess.run(
            [*argv, "--test-only", "--wrap=true"],
            capture_output=True,
            text=True,
            timeout=30,
            errors="replace",
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return Forecast(refusal=explain(f"sbatch: {e} timed out", request, account=str(account)))
    text = done.stderr + done.stdout
    if done.returncode == 0:  # taken, whatever it printed
        match = re.search(r"to start at (\S+) using \d+ processors on nodes (\S+)", text)
        return Forecast(start=match.group(1), nodes=match.group(2)) if match else Forecast()
    facts = {"account": str(account), "max_time": max_time(request)}
    return Forecast(refusal=explain(text, request, for_ingest=for_ingest, **facts))


@dataclass(frozen=True, kw_only=True)
class Excess:
    """One quantity of a request that a partition does not have."""

    quantity: str  # a key of REMEDIES
    reason: str


#: What to do about each quantity: for a training job, for an ingest job.
REMEDIES = {
    "nodes": (
        "Ask for a smaller layout, or set another site.gpu_partition (cpu_partition where ranks run on CPUs)",
        "",
    ),
    "type": ("Set site.gpu_type to a type that `sinfo -o %G` lists (or null)", ""),
    "gpus": ("Ask for a smaller layout (fewer GPUs per node), or set another site.gpu_partition", ""),
    "cpus": (
        "Lower site.cpus_per_gpu, or ask for fewer ranks per node (sinfo -o '%c %G')",
        "Lower site.ingest_cpus (sinfo -o %c)",
    ),
    "memory": (
        "Lower site.mem_gib_per_gpu, or set site.max_mem_gib to the nodes' memory (sinfo -o %m)",
        "Lower site.ingest_mem_gib to the nodes' memory (sinfo -o %m)",
    ),
    "time": (
        "Lower site.runtime_min and site.max_runtime_min: a run that meets its limit is resumed from its checkpoint",
        "Lower site.ingest_runtime_min to what site.cpu_partition allows (sinfo -o %l), or set another one",
    ),
}


def excess(request: Resources, kinds: Iterable[Partition]) -> list[Excess]:
    """Compare a request with the nodes of its partition, kind by kind, quantity by quantity.

    Returns what is too much on the kind that comes nearest; [] where one fits, or where `kinds` is empty.
    """
    found = [_excess_on(request, p) for p in kinds]
    return min(found, key=len, default=[])


def _excess_on(request: Resources, p: Partition) -> list[Excess]:
    def asked(key: str) -> float:
        try:
            return float(request.get(key, 0))
        except ValueError:
            return 0

    found: list[Excess] = []

    def compare(what: str, quantity: float, most: float, reason: str) -> None:
        if quantity > most:
            found.append(Excess(quantity=what, reason=reason))

    gpus = parse_gpus(_gpus(request))
    kind, num_gpus = next(iter(gpus.items()), ("", 0))
    nodes, most_nodes = asked("nodes"), min(p.num_nodes, p.max_nodes)
    there = f"{'has' if most_nodes == p.num_nodes else 'allows'} ({most_nodes:.0f})"
    compare("nodes", nodes, most_nodes, f"{nodes:.0f} nodes are more than partition {p.name!r} {there}")
    its_gpus = f"{p.gpus_per_node} {p.gpu_type or ''}".strip() if p.gpus_per_node else "none"
    words, its = _gpus(request), f"the nodes of partition {p.name!r} have"
    if num_gpus and kind and kind != p.gpu_type:
        compare("type", 1, 0, f"{words!r} per node is asked for, {its} other GPUs ({its_gpus})")
    else:
        compare("gpus", num_gpus, p.gpus_per_node, f"{words!r} per node is more than {its} ({its_gpus})")
    cpus = asked("cpus_per_task") * max(1.0, asked("tasks") / max(1.0, nodes))
    compare("cpus", cpus, p.most_cpus, f"{cpus:.0f} CPUs per node are more than {its} ({p.most_cpus})")
    mem_mb = asked("mem_mb")
    mem = f"{mem_mb:.0f} MB per node are more than {its} ({p.most_mem_mb:.0f})"
    compare("memory", mem_mb, p.most_mem_mb, mem)
    limit = f"partition {p.name!r} allows (its limit is {format_duration(p.max_time_s)})"
    compare(
        "time", asked("runtime") * 60, p.max_time_s, f"{asked('runtime'):.0f} minutes are more than {limit}"
    )
    return found


def _kinds(request: Resources) -> list[Partition]:
    """List the kinds of nodes of the request's partition; [] if Slurm does not answer or has no such one."""
    try:
        found = read_partitions()
    except (UserError, ValueError):
        return []
    name = request.get("slurm_partition")
    return [p for p in found if p.name == name or (not name and p.default)]


def missing_partitions(site: Site) -> list[str]:
    """List settings of `site` that name a partition this cluster does not have; [] if Slurm does not answer.

    Hidden partitions count as there.
    """
    try:
        shown = blocks(slurm("scontrol", "-a", "-o", "show", "partition", timeout_s=5))
    except SlurmError:
        return []
    there = {b.get("PartitionName") for b in shown}
    named = {"cpu_partition": site.cpu_partition}
    if site.gpu_request != "none":
        named |= {"gpu_partition": site.gpu_partition}
    return [f"site.{k}: {name}" for k, name in named.items() if name not in (None, "auto", *there)]


def check_partitions(site: Site, where: object = f"the profile's {SITE_FILE}") -> None:
    """Raise `UserError` where `site` names partitions that this cluster does not have."""
    if missing := missing_partitions(site):
        raise UserError(
            f"{where}: this cluster has no such partition: {', '.join(missing)}. Write the profile for this "
            "cluster: dist3dgs site init --force (or edit its site; `sinfo` lists the partitions)"
        )


def limit_problem(request: Resources, *, for_ingest: bool = False) -> Refusal | None:
    """Find what Slurm accepts and never starts: more than the partition's limits where they are not enforced."""
    partition = _partition(request)
    longest = parse_duration_s(partition.get("MaxTime", "UNLIMITED"), bare_s=60)
    if float(request["runtime"]) * 60 > longest:
        found = "PartitionTimeLimit (found before submission)"
        return explain(found, request, for_ingest=for_ingest, max_time=max_time(request))
    most = partition.get("MaxNodes", "UNLIMITED")
    if most.isdigit() and int(request["nodes"]) > int(most):
        return explain("PartitionNodeLimit (found before submission)", request)
    return None


def preflight(
    requests: Mapping[str, Resources], account: str | None, *, for_ingest: bool = False
) -> dict[str, Refusal]:
    """Find the problems of each named request, in a second or two, before anything is submitted."""
    problems: dict[str, Refusal] = {}
    for name, request in requests.items():
        problem = test_only(request, account, for_ingest=for_ingest).refusal
        problem = problem or limit_problem(request, for_ingest=for_ingest)
        if problem:
            problems[name] = problem
    return problems


def _partition(request: Resources) -> dict[str, str]:
    try:
        shown = blocks(slurm("scontrol", "-o", "show", "partition", str(request.get("slurm_partition", ""))))
    except SlurmError:
        return {}
    return shown[0] if shown else {}


def max_time(request: Resources) -> str:
    """Return the time limit of the request's partition in brackets; "" where there is none."""
    longest = parse_duration_s(_partition(request).get("MaxTime", "UNLIMITED"), bare_s=60)
    return "" if math.isinf(longest) else f" (its limit is {format_duration(longest)})"
