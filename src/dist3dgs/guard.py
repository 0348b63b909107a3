"""Before anything is loaded: do the layers agree about how many workers there are?

The layout asked for, the Slurm allocation and the devices that are visible are compared. The ranks that really
joined are compared again inside the run, by the training process.
"""

import os
import subprocess
from dataclasses import dataclass, field
from typing import Any

from .names import Layout
from .spec import RunSpec


@dataclass
class World:
    """What each layer says, what is wrong and refused, and what is wrong but was asked for ("" if nothing is)."""

    layers: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    warning: str = ""


def check_world(spec: RunSpec, allocation: Any) -> World:
    """Compare the layers. `allocation`: slurm.allocation.Allocation or None outside Slurm."""
    layout = Layout.parse(spec.layout)
    gpus = visible_gpus() if spec.hardware.device != "cpu" else None
    uses_gpus = bool(gpus) or spec.hardware.device == "cuda"
    layers: dict[str, Any] = {
        "layout": f"{layout.nodes} node(s) x {layout.workers_per_node} worker(s)",
        "Slurm allocation": "none" if allocation is None else f"{len(allocation.nodes)} node(s)",
        "visible GPUs": "not used" if gpus is None else len(gpus),
    }
    world = World(layers)
    problem = None
    if allocation is not None:
        problem = allocation.mismatch(layout, uses_gpus=uses_gpus)
    elif layout.nodes > 1:
        problem = (
            f"{layout} needs {layout.nodes} nodes but this is not a Slurm job; run it with "
            f"`snakemake --profile profiles/slurm`, or ask for n1g{layout.world_size}"
        )
    if problem is None and uses_gpus and gpus is not None and len(gpus) != layout.workers_per_node:
        more = "more" if len(gpus) > layout.workers_per_node else "fewer"
        problem = (
            f"{len(gpus)} GPU(s) are visible on this node, {more} than the {layout.workers_per_node} of {layout}; "
            f"ask for n{layout.nodes}g{max(1, len(gpus))}, or set CUDA_VISIBLE_DEVICES to {layout.workers_per_node} "
            "of them, or hardware.device: cpu"
        )
    if (
        problem is None
        and gpus == []
        and not uses_gpus
        and allocation is not None
        and allocation.gpus_per_node
    ):
        problem = (
            f"Slurm job {allocation.job_id} has {allocation.gpus_per_node} GPU(s) per node and none is visible here: "
            "the ranks would train on the CPU. See `nvidia-smi` on this node, or set hardware.device: cpu if that is "
            "meant"
        )
    started = spec.started.world_size
    if started != layout.world_size:
        layers["ranks started"] = started
        world.warning = (
            f"allocation mismatch: {layout.world_size} workers are allocated for {layout} and {started} rank is "
            f"started; the others idle for the whole run. The strategy asks for it with `ranks: one`\n"
        )
    if problem:
        table = "\n".join(f"  {name:<18} {value}" for name, value in layers.items())
        world.message = f"allocation mismatch: {problem}\n{table}"
    return world


def visible_gpus() -> list[str]:
    """UUIDs or indices of the NVIDIA GPUs this process may use, without importing torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout.split()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    if listed is None:
        return out
    return [d for d in listed.split(",") if d.strip() and d.strip() != "-1"]
