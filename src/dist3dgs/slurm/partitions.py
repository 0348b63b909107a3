"""List the partitions this user may submit to, by node type.

From sinfo, scontrol and sacctmgr. Partitions are seldom uniform: two GPU nodes among a thousand others, several
generations of GPUs, nodes that are down for repair.
"""

import getpass
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
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
    """List all partitions this user can see, kind by kind. Raises `UserError` where Slurm does not answer."""
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
    """Count the GPUs of a node by type (None: untyped), without slices."""
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
    """Return each of `workers` ranks' share of a node as site settings; 4 % of the memory is left to the system."""
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


@dataclass(frozen=True, kw_only=True)
class Association:
    """Rights that one account gives this user."""

    account: str
    partition: str = ""  # "": all
    max_time_s: float = math.inf
    qos: tuple[str, ...] = ()
    default_qos: str = ""


@dataclass(frozen=True, kw_only=True)
class Rights:
    """A user's associations on this cluster, the default account's first. None where nothing is accounted for."""

    associations: Sequence[Association] = ()
    qos_max_s: tuple[tuple[str, float], ...] = ()

    def in_partition(self, p: Partition) -> tuple[str | None, str | None, float]:
        """Return (account, qos, longest time in seconds) for jobs in `p`; qos None: the account's default is right."""
        able = [
            a
            for a in self.associations
            if a.partition in ("", p.name) and (not p.accounts or a.account in p.accounts)
        ]
        if not able:
            return None, None, math.inf
        mine, limits = able[0], dict(self.qos_max_s)
        usual = mine.default_qos or (mine.qos[0] if len(mine.qos) == 1 else "normal")
        allowed = [q for q in mine.qos if not p.qos or q in p.qos]
        if not allowed or usual in allowed:
            return mine.account, None, min(mine.max_time_s, limits.get(usual, math.inf))
        # The longest of those that this partition takes.
        qos = max(allowed, key=lambda name: limits.get(name, math.inf))
        return mine.account, qos, min(mine.max_time_s, limits.get(qos, math.inf))


def read_rights(notes: list[str]) -> Rights:
    """Ask sacctmgr about this user on this cluster; adds to `notes` what the user should know."""
    user = os.environ.get("SLURM_USER") or getpass.getuser()
    try:
        default = rows(slurm("sacctmgr", "-nP", "show", "user", user, "format=user,defaultaccount"), 2)
        here = [f"cluster={name}"] if (name := _cluster()) else []
        wanted = "format=account,partition,maxwall,qos,defaultqos"
        found = rows(slurm("sacctmgr", "-nP", "show", "assoc", f"user={user}", *here, wanted), 5)
        limits = rows(slurm("sacctmgr", "-nP", "show", "qos", "format=name,maxwall"), 2)
    except SlurmError:
        notes.append("this cluster keeps no accounts (sacctmgr does not answer): none is given to sbatch")
        return Rights()
    usual = default[0][1] if default else ""
    associations = [
        Association(
            account=account, partition=partition, max_time_s=_time_s(wall), default_qos=default_qos,
            qos=tuple(q.lstrip("+-") for q in qos.split(",") if q),
        )
        for account, partition, wall, qos, default_qos in found
        if account
    ]  # fmt: skip
    associations.sort(key=lambda a: (a.account != usual, a.account))
    accounts = list(dict.fromkeys(a.account for a in associations))
    if len(accounts) > 1:
        notes.append(f"your accounts: {', '.join(sorted(accounts))}; {accounts[0]} comes first")
    return Rights(
        associations=associations, qos_max_s=tuple((name, _time_s(wall)) for name, wall in limits if name)
    )


def _cluster() -> str:
    """Return this cluster's name: one accounting may serve several."""
    pairs = (line.split("=", 1) for line in slurm("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}.get("ClusterName", "")


def _time_s(text: str) -> float:
    try:
        return parse_duration_s(text, bare_s=60)
    except ValueError:
        return math.inf
