"""The cluster's partitions, and in each the nodes of one kind, from sinfo and scontrol.

A partition is seldom of one kind: two GPU nodes among a thousand others, several generations of GPUs, nodes that are
down for repair. What is true of one node of it need not be of another.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import UserError
from ..units import MIB, expand_hosts, parse_bytes, parse_duration_s
from .client import SlurmError, blocks, parse_gpus, require, rows, slurm

#: Slices of a GPU (MIG): a1_1g.5gb or 1g.10gb: a rank needs a whole one, and NCCL joins no slices.
_SLICE = re.compile(r"\d+g\.\d+gb", re.IGNORECASE)
#: Beginnings of node states in which no job will start.
_BROKEN = ("down", "drain", "fail", "unknown", "inval", "perfctrs", "future", "error")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Identical nodes of a partition: GPUs of one type and number, or none. CPUs and memory are minima."""

    name: str
    default: bool
    up: bool
    max_time_s: float
    max_nodes: float
    num_nodes: int
    num_up: int
    num_idle: int
    cpus_per_node: int
    mem_mb_per_node: float
    most_cpus: int  # of its largest node
    most_mem_mb: float
    gpus_per_node: int
    gpu_type: str | None
    priority: int
    preemptible: bool
    accounts: tuple[str, ...] = ()  # that may use it; (): all
    qos: tuple[str, ...] = ()  # that may be used in it; (): all

    @property
    def num_gpus(self) -> int:
        """GPUs of nodes that work."""
        return self.num_up * self.gpus_per_node

    def __str__(self) -> str:
        return f"{self.name} ({self.gpu_type})" if self.gpu_type else self.name


def read_partitions() -> list[Partition]:
    """All partitions this user can see, kind by kind. Raises `UserError` where Slurm does not answer."""
    require()
    try:
        lines = rows(slurm("sinfo", "-h", "-e", "-o", "%R|%a|%l|%D|%c|%m|%G|%T"), 8)
        shown = {b["PartitionName"]: b for b in blocks(slurm("scontrol", "-o", "show", "partition"))}
        by_tier = re.search(r"PreemptType\s*=\s*preempt/partition_prio", slurm("scontrol", "show", "config"))
    except SlurmError as e:
        raise UserError(f"cannot read the cluster's partitions: {e}") from None
    preempted = {name for name in shown if _yields_nodes(name, shown)} if by_tier else set()
    kinds: dict[tuple[str, str | None, int], list[list[str]]] = {}
    for line in lines:
        for gpu_type, gpus in whole_gpus(line[6]).items() or [(None, 0)]:
            kinds.setdefault((line[0].rstrip("*"), gpu_type, gpus), []).append(line)
    return [
        _kind(name, gpu_type, gpus, mine, shown.get(name, {}), preemptible=name in preempted)
        for (name, gpu_type, gpus), mine in kinds.items()
    ]


def whole_gpus(gres: str) -> dict[str | None, int]:
    """GPUs of a node by type (None: untyped), slices not counted."""
    return {
        kind or None: count for kind, count in parse_gpus(gres).items() if count and not _SLICE.search(kind)
    }


def _yields_nodes(name: str, shown: Mapping[str, dict[str, str]]) -> bool:
    """Return True if a partition's jobs may be stopped for those of a higher tier: only where the two share a node."""
    mine = shown[name]
    modes = set(mine.get("PreemptMode", "OFF").upper().split(",")) - {"GANG", "WITHIN"}
    if modes <= {"OFF"}:
        return False
    nodes, tier = set(expand_hosts(mine.get("Nodes", ""))), _tier(mine)
    return any(
        _tier(other) > tier and not nodes.isdisjoint(expand_hosts(other.get("Nodes", "")))
        for other in shown.values()
    )


def _tier(block: Mapping[str, str]) -> int:
    return int(block.get("PriorityTier", "1"))


def _kind(
    name: str,
    gpu_type: str | None,
    gpus: int,
    lines: list[list[str]],
    block: dict[str, str],
    *,
    preemptible: bool,
) -> Partition:

    def count(of: Iterable[list[str]]) -> int:
        return sum(int(line[3]) for line in of)

    working = [line for line in lines if not line[7].startswith(_BROKEN) and "*" not in line[7]]
    cpus, memories = (
        [int(line[4].rstrip("+")) for line in lines],
        [parse_bytes(line[5], bare=MIB) / MIB for line in lines],
    )
    cpu_limit, mem_limit = _limit(block, "MaxCPUsPerNode"), _limit(block, "MaxMemPerNode")
    return Partition(
        name=name,
        default=block.get("Default") == "YES",
        up=lines[0][1] == "up",
        max_time_s=parse_duration_s(lines[0][2], bare_s=60),
        max_nodes=_limit(block, "MaxNodes"),
        num_nodes=count(lines),
        num_up=count(working),
        num_idle=count(line for line in working if line[7].startswith("idle")),
        cpus_per_node=int(min(cpu_limit, *cpus)),
        mem_mb_per_node=min(mem_limit, *memories),
        most_cpus=int(min(cpu_limit, max(cpus))),
        most_mem_mb=min(mem_limit, max(memories)),
        gpus_per_node=gpus,
        gpu_type=gpu_type,
        priority=_tier(block),
        preemptible=preemptible,
        accounts=_allowed(block, "AllowAccounts"),
        qos=_allowed(block, "AllowQos"),
    )


def sizes(p: Partition, workers: int) -> dict[str, int | float]:
    """Settings of the site block: each of `workers` ranks' share of a node, 4 % of the memory left to the system."""
    usable_gib = p.mem_mb_per_node * 0.96 / 1024
    longest = 7 * 24 * 60 if math.isinf(p.max_time_s) else int(p.max_time_s // 60)
    return {
        "cpus_per_gpu": max(1, p.cpus_per_node // workers),
        "mem_gib_per_gpu": max(1.0, math.floor(10 * (usable_gib - 1) / workers) / 10),
        "max_mem_gib": math.floor(10 * usable_gib) / 10,
        "runtime_min": min(120, longest),
        "max_runtime_min": longest,
    }


def _limit(block: dict[str, str], key: str) -> float:
    return float(block[key]) if block.get(key, "").isdigit() else math.inf


def _allowed(block: dict[str, str], key: str) -> tuple[str, ...]:
    words = block.get(key, "ALL")
    return () if words in ("ALL", "(null)", "") else tuple(words.split(","))
