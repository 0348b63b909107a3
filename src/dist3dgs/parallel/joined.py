"""The ranks that really joined, compared with the layout and with each other before anything is loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..names import Layout


class WorldMismatch(UserError):
    """The layers do not agree about the world."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """What one rank says of itself."""

    rank: int
    host: str
    device: str
    """`cpu`, or the GPU's UUID."""
    visible_devices: int
    """GPUs this rank could use; 0 where it computes on the CPU."""
    spec_digest: str
    torch: str


def check_members(members: Sequence[Member], layout: Layout) -> None:
    """Raise `WorldMismatch`, with a table of the ranks and the setting to change, if the world is not the layout's.

    Members as gathered, in rank order.
    """
    problem = _problem(members, layout)
    if problem:
        rows = "\n".join(
            f"  rank {m.rank:<4} host {m.host}  device {m.device}  GPUs visible {m.visible_devices}  torch {m.torch}"
            for m in members
        )
        raise WorldMismatch(f"the ranks that joined do not make up {layout}: {problem}\n{rows}")


def _problem(members: Sequence[Member], layout: Layout) -> str:
    world = layout.world_size
    if len(members) != world:
        return f"{len(members)} joined, {world} are wanted; start one rank per worker: torchrun or srun decide that"
    per_host = Counter(m.host for m in members)
    if sorted(per_host.values()) != [layout.workers_per_node] * layout.nodes:
        seen = ", ".join(f"{n} on {host}" for host, n in sorted(per_host.items()))
        return (
            f"ranks per host: {seen}; wanted {layout.workers_per_node} on each of {layout.nodes} host(s). "
            "Check --nnodes and --nproc-per-node, and that hosts have names of their own"
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
        if m.device != "cpu" and m.visible_devices > layout.workers_per_node:
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
    """The same on no two GPUs: the UUID; `cpu` for the CPU."""
    if device.type != "cuda":
        return "cpu"
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device))
