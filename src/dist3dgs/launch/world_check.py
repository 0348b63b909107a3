"""Before anything is loaded: do the layers agree about how many workers there are?

The layout asked for, the Slurm allocation, the srun step and the devices that are visible are compared by the
launcher. The training process goes on with its table: torchrun's world and the ranks that really joined.
"""

import itertools
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.matrix import AnySpec
from ..config.naming import Layout
from ..monitoring.nvml import identities
from ..runs.attempts import Attempt
from ..slurm.allocation import Allocation, Step, step

#: What each layer says, by its name: one table from the launcher to the last rank.
Layers = dict[str, Any]
#: Folder of the driver's device files.
DEVICES = Path("/dev")
SMI_TIMEOUT_S = 20.0
#: An index or a UUID (CUDA takes its beginning too) of a GPU or of an instance of one.
_DEVICE = re.compile(r"\d+|(GPU|MIG)-\S+")


@dataclass
class World:
    """Each layer's view of the world; the disagreement that is refused, and the one that was asked for ("" if none)."""

    layers: Layers
    message: str = ""
    warning: str = ""
    uses_gpus: bool = False


def refusal(problem: str, layers: Mapping[str, Any]) -> str:
    """The one form in which a disagreement is told: what is wrong and what to change, then what each layer says."""
    width = max(map(len, layers), default=0)
    return "\n".join(
        [f"allocation mismatch: {problem}", *(f"  {k:<{width}}  {v}" for k, v in layers.items())]
    )


def check_world(spec: AnySpec, allocation: Allocation | None, here: Step | None = None) -> World:
    """Compare the layers. `allocation`: None outside Slurm. `here`: this process's srun step, asked when None."""
    layout = Layout.parse(spec.layout)
    here = step() if here is None else here
    gpus = visible_gpus() if spec.hardware.device != "cpu" else None
    uses_gpus = bool(gpus) or spec.hardware.device == "cuda"
    layers = layers_of(spec) | {"Slurm allocation": "none" if allocation is None else str(allocation)}
    if here.tasks > 1:
        layers["srun step"] = f"{here.tasks} tasks, this is task {here.task}"
    layers["visible GPUs"] = "not used" if gpus is None else f"{len(gpus)} on this node"
    world = World(layers, uses_gpus=uses_gpus)
    problem = None
    if here.tasks > 1:
        problem = (
            f"srun started this launcher {here.tasks} times, and each would start all ranks of {layout}; start it "
            "once: srun --nodes=1 --ntasks=1, or without srun in the batch script, and ask for the job with "
            "--ntasks-per-node=1"
        )
    elif allocation is not None:
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
        world.message = refusal(problem, layers)
    return world


def layers_of(spec: AnySpec, environ: Mapping[str, str] = os.environ) -> Layers:
    """The table so far: the launcher's, where it started this process and told where it writes, else the layout."""
    layout = Layout.parse(spec.layout)
    asked = {"layout": f"{layout.nodes} node(s) x {layout.workers_per_node} worker(s)"}
    folder = environ.get("DIST3DGS_ATTEMPT")
    return asked | ((Attempt(Path(folder)).summary().world or {}) if folder else {})


def visible_gpus() -> list[str]:
    """Return UUIDs or indices of the NVIDIA GPUs this process may use, without importing torch.

    A GPU that is split (MIG) counts as its instances. Where nvidia-smi is missing or too slow, NVML is asked, and
    last the driver's device files.
    """
    found, listed = _gpus_of_smi(), listed_devices()
    if not found:
        found = [gpu.uuid or str(gpu.index) for gpu in identities()]
    if not found:
        files = [path for path in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
        found = [str(number) for number in sorted(int(path.name.removeprefix("nvidia")) for path in files)]
    return found if listed is None or not found else listed


def listed_devices(environ: Mapping[str, str] = os.environ) -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES; None where it is not set.

    As CUDA reads them: up to the first that names no GPU, such as -1 or the NoDevFiles of a Slurm job without GPUs.
    """
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    return list(itertools.takewhile(_DEVICE.fullmatch, entries))


def _gpus_of_smi() -> list[str]:
    """Return UUIDs as nvidia-smi lists them; [] where it is missing, fails or takes too long."""
    rows = [line.split(",") for line in _smi("--query-gpu=uuid,mig.mode.current", "--format=csv,noheader")]
    if not rows:  # drivers before 450 do not know MIG
        rows = [line.split(",") for line in _smi("--query-gpu=uuid", "--format=csv,noheader")]
    # Other lines are remarks: no devices, a lost GPU.
    rows = [row for row in rows if _DEVICE.fullmatch(row[0].strip())]
    if all(len(row) < 2 or row[1].strip() != "Enabled" for row in rows):
        return [row[0].strip() for row in rows]
    split = {row[0].strip() for row in rows if len(row) > 1 and row[1].strip() == "Enabled"}
    uuids = [match[1] for line in _smi("-L") if (match := re.search(r"\(UUID: ([^)]+)\)", line))]
    return [uuid for uuid in uuids if uuid not in split]


def _smi(*options: str) -> list[str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", *options], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
