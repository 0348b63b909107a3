"""The exact command lines that start a layout's ranks, inside a Slurm allocation or on this machine.

One node: `torchrun --standalone`, no inner srun. Several: one `srun` task per node, each running
`python -m dist3dgs.launch.node` (network interface, store host) and then torchrun with a c10d rendezvous on the head.

Why the details are as they are (each was met as a failure, see docs/decisions/0060-slurm-launch.md):

* the `SLURM_*` environment of the enclosing step is removed but for the job's identity, or the inner srun
  believes it owns one node and one task;
* `--overlap`, or the inner srun waits for ever for the resources the enclosing step holds;
* `--kill-on-bad-exit=1`, or the other nodes wait for the dead one until the collective times out;
* `--max-restarts=0`: a restart inside the job would hide a failure and start from nothing; retries are
  Snakemake's, from the checkpoint, with the reason written down;
* the port comes from the job id, so that two jobs on one node do not meet, and is tried before it is used.
"""

import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.naming import Layout
from ..errors import UserError
from ..runs.attempts import FLIGHT
from ..slurm.allocation import Allocation
from ..slurm.site import Site

#: Below Linux's ephemeral range (32768 and up), above services: 12,000 ports.
FIRST_PORT, NUM_PORTS = 20000, 12000
#: Coprime to NUM_PORTS, so that the ports tried for neighbouring job ids do not run into each other.
PORT_STRIDE = 997
PORT_TRIES = 32
#: The default of `hardware.join_timeout_s`. Nodes differ by minutes in how long `import torch` takes them on a busy
#: parallel file system.
JOIN_TIMEOUT_S = 300.0
#: Collectives that a rank remembers: those of some dozen steps; a dump of them has about 250 kB.
FLIGHT_ENTRIES = 512

#: What an inner srun must still know; everything else of the enclosing step must go.
KEPT_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_CLUSTER_NAME")
_DROPPED_PREFIXES = ("SLURM_", "SRUN_", "SBATCH_", "SALLOC_", "PMI_", "PMIX_")


@dataclass(frozen=True, kw_only=True)
class Software:
    """Way to the training software on a node, beyond the Python that runs the launcher.

    `modules` are loaded with the site's `module` command; `image` is an Apptainer/Singularity image that holds Python
    and dist3dgs, run with `--nv` when GPUs are used.
    """

    modules: tuple[str, ...] = ()
    image: str | None = None
    binds: tuple[str, ...] = ()
    container_command: str = "apptainer"
    python: str = sys.executable


def software_of(site: Site) -> Software:
    """Return the way to the training software that a site's settings name."""
    python = "python3" if site.image else sys.executable
    # Older sites have it under its former name. Where a module brings it, it is not here yet.
    former = not shutil.which("apptainer") and shutil.which("singularity")
    return Software(
        modules=tuple(site.modules), image=site.image, binds=tuple(site.binds), python=python,
        container_command="singularity" if former else "apptainer",
    )  # fmt: skip


def port_candidates(job_id: int) -> Iterator[int]:
    """Yield ports for a job in the order in which they are tried; the same on every node."""
    for k in range(PORT_TRIES):
        yield FIRST_PORT + (job_id + k * PORT_STRIDE) % NUM_PORTS


def port_is_free(port: int, host: str = "") -> bool:
    """Return True if a server could listen on `port` here now (all interfaces)."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as s:
        try:
            s.bind((host, port))
            return True
        except OSError:
            return False


def choose_port(job_id: int, is_free: Callable[[int], bool] = port_is_free) -> int:
    """Return the job's first free port. Call it on the head node, where the store will listen."""
    for port in port_candidates(job_id):
        if is_free(port):
            return port
    raise UserError(
        f"Slurm job {job_id}: none of {PORT_TRIES} ports between {FIRST_PORT} and "
        f"{FIRST_PORT + NUM_PORTS - 1} is free "
        "on this node. Leftover processes hold them: see `ss -ltnp`, or exclude the node (--exclude)."
    )


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Copy `environ` without what an enclosing Slurm step or torchrun left behind, but with the job's identity."""
    return {
        name: value
        for name, value in environ.items()
        if name in KEPT_VARIABLES
        or not (name.startswith(_DROPPED_PREFIXES) or name.startswith("TORCHELASTIC_"))
    }


def launch_environment(
    environ: Mapping[str, str], layout: Layout, allocation: Allocation | None, *, cpus_per_node: int
) -> dict[str, str]:
    """Return the environment of the launched command: cleaned if an srun follows, threads shared out among the workers.

    `OMP_NUM_THREADS` is the node's CPUs over its workers unless the user has set it.
    """
    several = allocation is not None and layout.nodes > 1
    result = clean_environment(environ) if several else dict(environ)
    result.setdefault("OMP_NUM_THREADS", str(max(1, cpus_per_node // layout.workers_per_node)))
    if several and allocation is not None:
        result["SLURM_JOB_ID"] = str(allocation.job_id)
    return result


def gpu_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that ranks on GPUs get unless the user has set them."""
    # CUDA numbers GPUs by speed unless told otherwise, NVML and nvidia-smi by their place: samples mean the rank's GPU.
    settings = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if "PYTORCH_CUDA_ALLOC_CONF" not in environ:  # its former name, which PyTorch reads first
        # Tensors of Gaussians grow at every densification: segments that grow with them leave no holes behind.
        settings["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return {name: value for name, value in settings.items() if name not in environ}


def flight_recorder(folder: Path, *, any_torch: bool = False) -> dict[str, str]:
    """Return the environment that switches torch's flight recorder on.

    Without stacks, for which a dump would wait for an interpreter that hangs; ranks write theirs themselves.

    Args:
        folder: where each rank's dump goes.
        any_torch: also by the names before torch 2.9, which a program of others may have; newer ones warn of them.
            The others are as in torch 2.13 (FlightRecorder.hpp, ProcessGroupNCCL.hpp).
    """
    prefix = str(folder / FLIGHT)
    settings = {
        "TORCH_FR_BUFFER_SIZE": str(FLIGHT_ENTRIES),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": prefix,
        "TORCH_INCLUDE_STACK_TRACE": "0",
    }
    if any_torch:
        settings["TORCH_NCCL_TRACE_BUFFER_SIZE"] = settings["TORCH_FR_BUFFER_SIZE"]
        settings["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] = prefix
    return settings


def torchrun_argv(
    layout: Layout,
    worker: Sequence[str],
    *,
    python: str,
    rendezvous: str | None = None,
    run_id: str = "none",
    join_timeout_s: float = JOIN_TIMEOUT_S,
) -> list[str]:
    """Return torchrun's command line for one node. `rendezvous` is `address:port` of the head, None for a single node.

    join_timeout_s: for the head's store to listen, and then for all nodes to join (torchrun: 60 s and 600 s).
    """
    argv = [python, "-m", "torch.distributed.run"]
    if rendezvous is None:
        argv += ["--standalone"]
    else:
        argv += [f"--nnodes={layout.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={run_id}"]
        wait_s = math.ceil(join_timeout_s)
        argv += [f"--rdzv-endpoint={rendezvous}", f"--rdzv-conf=join_timeout={wait_s},read_timeout={wait_s}"]
    # Without a log folder torchrun makes one in /tmp, and leaves it there; the ranks' output goes to train.log.
    argv += [f"--nproc-per-node={layout.workers_per_node}", "--max-restarts=0", f"--log-dir={os.devnull}"]
    return [*argv, *worker]


def launch_argv(
    layout: Layout,
    worker: Sequence[str],
    *,
    cpus_per_node: int,
    allocation: Allocation | None = None,
    port: int | None = None,
    uses_gpus: bool = False,
    software: Software | None = None,
    join_timeout_s: float = JOIN_TIMEOUT_S,
) -> list[str]:
    """Return the whole command line that starts all ranks of `layout`.

    Args:
        worker: what every rank runs, as torchrun takes it: `["-m", "dist3dgs.train.worker", ...]` or `["script.py",
        ...]`.
        cpus_per_node: CPUs of the one srun task on each node.
        allocation: this job's nodes, None outside Slurm.
        port: the rendezvous port on the head, from `choose_port`; derived from the job id when None.

    Raises:
        UserError: several nodes without an allocation, or an allocation of another size.
    """
    software = software or Software()
    if layout.nodes == 1:
        return [*wrapped(software, uses_gpus), *torchrun_argv(layout, worker, python=software.python)]
    if allocation is None:
        raise UserError(
            f"layout {layout} needs {layout.nodes} machines, and this is not a Slurm job. Run it with "
            f"`snakemake --profile profiles/slurm ...`, or on this machine as n1g{layout.world_size}."
        )
    if problem := allocation.mismatch(layout, uses_gpus=False):
        raise UserError(
            f"{problem}. The train rule asks for it with `resources: nodes`; see profiles/slurm/site.yaml."
        )
    port = port if port is not None else next(port_candidates(allocation.job_id))
    endpoint = f"{_bracketed(allocation.head.address)}:{port}"
    node = [software.python, "-m", "dist3dgs.launch.node", f"--head={allocation.head.address}"]
    node += [f"--peer={allocation.nodes[1].address}", "--"]
    torchrun = torchrun_argv(
        layout, worker, python=software.python, rendezvous=endpoint, run_id=str(allocation.job_id),
        join_timeout_s=join_timeout_s,
    )  # fmt: skip
    return [*_srun(layout, cpus_per_node), *wrapped(software, uses_gpus), *node, *torchrun]


def _srun(layout: Layout, cpus_per_node: int) -> list[str]:
    return [
        "srun",
        "--overlap",
        f"--nodes={layout.nodes}",
        f"--ntasks={layout.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus_per_node}",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        "--export=ALL",
    ]


def wrapped(software: Software, uses_gpus: bool) -> list[str]:
    """Return what comes before Python on a node: loaded modules, then the container."""
    argv: list[str] = []
    if software.modules:
        # Module names are arguments ("$1" ...), not text of the shell line.
        count = len(software.modules)
        load = " ".join(f'"${{{i}}}"' for i in range(1, count + 1))
        argv += [
            "bash",
            "-lc",
            f'module load {load} && shift {count} && exec "$@"',
            "bash",
            *software.modules,
        ]
    if software.image:
        argv += [software.container_command, "exec"]
        argv += ["--nv"] if uses_gpus else []
        argv += [f"--bind={bind}" for bind in software.binds]
        argv += [software.image]
    return argv


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
