"""Read from sacctmgr the accounts and qualities of service that a user may use, and their time limits."""

import getpass
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..units import parse_duration_s
from .client import SlurmError, rows, slurm
from .partitions import Partition


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
        """(account, qos, longest time in seconds) for jobs in `p`; qos None: the account's default is right."""
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
    """Ask sacctmgr about this user on this cluster; what to know is added to `notes`."""
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
    """This cluster's name: one accounting may serve several."""
    pairs = (line.split("=", 1) for line in slurm("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}.get("ClusterName", "")


def _time_s(text: str) -> float:
    try:
        return parse_duration_s(text, bare_s=60)
    except ValueError:
        return math.inf
