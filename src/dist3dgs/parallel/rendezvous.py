"""Compare the ranks that joined with the layout and with each other before anything is loaded.

They exchange messages over torchrun's store, before there is a process group: a rank that never joins is named after
`hardware.join_timeout_s`, and a wrong world ends before gloo or NCCL connects.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..config.naming import Layout
from ..errors import UserError
from ..launch.world_check import refusal

#: Delay before other ranks exit on a refusal, s: rank 0, whose error has the table, ends first.
STAY_S = 2.0


class WorldMismatch(UserError):
    """The launcher, Slurm, torchrun and the ranks disagree about the world."""


class RendezvousTimeoutError(UserError):
    """Some ranks never joined. Named like torchrun's own error, which means the same."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """Facts that one rank reports about itself."""

    rank: int
    host: str
    device: str
    """`cpu`, or the GPU's UUID."""
    visible_devices: int
    """GPUs this rank could use; 0 where it computes on the CPU."""
    spec_digest: str
    torch: str


def verify_world(
    store: dist.Store,
    me: Member,
    world_size: int,
    timeout_s: float,
    check: Callable[[Sequence[Member]], None],
) -> None:
    """Publish this rank's facts; rank 0 waits for all ranks and checks them, and all raise the error it finds.

    Args:
        store: torchrun's.
        me: facts of this rank.
        world_size: ranks to wait for.
        timeout_s: longest wait for the last rank.
        check: called on rank 0 with all members in rank order; raises `UserError`. The other ranks raise its first
            line only, since the table stands in rank 0's.

    Raises:
        RendezvousTimeoutError: ranks that have not joined after `timeout_s`, by number.
        WorldMismatch: raised by `check`.
    """
    store = dist.PrefixStore("dist3dgs", store)
    store.set(f"member{me.rank}", json.dumps(asdict(me)))
    if me.rank == 0:
        found: UserError | None = None
        try:
            check(_gather(store, world_size, timeout_s))
        except UserError as e:
            found = e
        store.set(
            "outcome", json.dumps([type(found).__name__, str(found).partition("\n")[0]] if found else [])
        )
        if found:
            raise found
        return
    try:
        # A little longer than rank 0: its error says more than this rank's timeout.
        store.wait(["outcome"], timedelta(seconds=timeout_s + STAY_S))
    except dist.DistError:
        raise _never([0], world_size, timeout_s) from None
    outcome = json.loads(store.get("outcome"))
    if outcome:
        time.sleep(STAY_S)
        kinds = {k.__name__: k for k in (WorldMismatch, RendezvousTimeoutError)}
        raise kinds.get(outcome[0], UserError)(f"{outcome[1]} (rank 0 has the table)")


def _gather(store: dist.Store, world_size: int, timeout_s: float) -> list[Member]:
    keys = [f"member{r}" for r in range(world_size)]
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except dist.DistError:
        missing = [r for r, key in enumerate(keys) if not store.check([key])]
        raise _never(missing, world_size, timeout_s) from None
    return [Member(**json.loads(text)) for text in store.multi_get(keys)]


def _never(missing: Sequence[int], world_size: int, timeout_s: float) -> RendezvousTimeoutError:
    ranks = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
    return RendezvousTimeoutError(
        f"rank(s) {ranks} of {world_size} did not join within {timeout_s:g} s (hardware.join_timeout_s). Look for them "
        "first in train.log: a node that has no Python, no GPU or no route to the head; if they only start slowly "
        "(imports from a busy file system), raise hardware.join_timeout_s"
    )


def check_members(
    members: Sequence[Member],
    layout: Layout,
    *,
    allocated: Layout | None = None,
    layers: Mapping[str, Any] | None = None,
) -> None:
    """Raise `WorldMismatch`, with the table of all layers and the setting to change, if the world is not the layout's.

    members: in rank order. layout: the ranks that are to be there. allocated: what they were given, where the strategy
    leaves some of it idle. layers: what the launcher and torchrun say.
    """
    problem = _problem(members, layout, allocated or layout)
    if problem:
        ranks = {
            f"rank {m.rank}": f"host {m.host}  device {m.device}  GPUs visible {m.visible_devices}  torch {m.torch}"
            for m in members
        }
        problem = f"the ranks that joined do not make up {layout}: {problem}"
        raise WorldMismatch(refusal(problem, {**(layers or {}), **ranks}))


def _problem(members: Sequence[Member], layout: Layout, allocated: Layout) -> str:
    world = layout.world_size
    if len(members) != world:
        return f"{len(members)} joined, {world} are wanted; start one rank per worker: torchrun or srun decide that"
    per_host = Counter(m.host for m in members)
    if sorted(per_host.values()) != [layout.workers_per_node] * layout.nodes:
        seen = ", ".join(f"{n} on {host}" for host, n in sorted(per_host.items()))
        return (
            f"ranks per host: {seen}; wanted {layout.workers_per_node} on each of {layout.nodes} host(s). "
            "Check --nnodes and --nproc-per-node, and that hosts have different names"
        )
    devices = Counter((m.host, m.device) for m in members if m.device != "cpu")
    shared = [(host, device) for (host, device), n in devices.items() if n > 1]
    if shared:
        return (
            f"two ranks on one device ({shared[0][1]} of {shared[0][0]}); give every rank its own: "
            "CUDA_VISIBLE_DEVICES must list as many GPUs as the layout has workers per node"
        )
    if devices and len(devices) != len(members):
        return "some ranks compute on GPUs and some on the CPU; set hardware.device"
    for m in members:
        if m.device != "cpu" and m.visible_devices > allocated.workers_per_node:
            return (
                f"{m.visible_devices} GPUs are visible on {m.host} and {layout.workers_per_node} would be used; "
                f"ask for n{layout.nodes}g{m.visible_devices}, or hide the others with CUDA_VISIBLE_DEVICES"
            )
    for what in ("spec_digest", "torch"):
        values = Counter(getattr(m, what) for m in members)
        if len(values) > 1:
            name = "settings (--spec)" if what == "spec_digest" else "PyTorch versions"
            return f"ranks have different {name}: {', '.join(sorted(values))}; start all from one environment"
    return ""


def device_identity(device: torch.device) -> str:
    """Return the GPU's UUID, unique among GPUs; `cpu` for the CPU."""
    if device.type != "cuda":
        return "cpu"
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device))
