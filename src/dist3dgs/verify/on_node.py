"""Run the checks on a node of the cluster, in a Slurm job of their own."""

import json
import subprocess
import sys
from collections.abc import Sequence

from ..config.naming import Layout
from ..errors import UserError
from ..launch import commands
from ..slurm import client
from ..slurm.resources import layout_resources
from ..slurm.site import Site
from ..slurm.submission import explain, sbatch_argv
from .setup import Result

#: Limit of the job; it takes seconds.
NODE_RUNTIME_MIN, NODE_MEM_MB, NODE_CPUS = 10, 4000, 2


def on_a_node(site: Site, partition: str, given: Sequence[str]) -> tuple[str, list[Result]]:
    """Run the checks in a short Slurm job that asks for what a job of layout n1g1 does. Returns host and results.

    Raises `UserError` where Slurm does not take or cannot start the job.
    """
    client.require()
    chosen = partition or (site.cpu_partition if site.gpu_request == "none" else site.gpu_partition)
    if chosen == "auto":
        raise UserError(
            "site.gpu_partition is auto: name the partition to look at: dist3dgs verify --on-node PARTITION "
            "(dist3dgs partitions compares them)"
        )
    request = layout_resources(Layout(1, 1), site) | {
        "slurm_partition": chosen or "",
        "runtime": NODE_RUNTIME_MIN,
    }
    request |= {"mem_mb": min(int(request["mem_mb"]), NODE_MEM_MB)}
    request |= {"cpus_per_task": min(int(request["cpus_per_task"]), NODE_CPUS)}
    argv = ["srun", "--job-name=dist3dgs-verify", *sbatch_argv(request, site.account)[1:]]
    argv += commands.wrapped(commands.Software(modules=tuple(site.modules)), uses_gpus=False)
    argv += [sys.executable, "-m", "dist3dgs.cli", "verify", "--json", *given]
    print(f"a job in partition {chosen or '(default)'} looks at its node; Ctrl-C gives up", file=sys.stderr)
    # Remove the variables of a job this may run in: srun would take them for options.
    environ = {
        k: v for k, v in client.environment().items() if not k.startswith("SLURM_") or k == "SLURM_CONF"
    }
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environ
    )
    try:
        value = json.loads(done.stdout)
        return str(value["host"]), [Result(**r) for r in value["checks"]]
    except (ValueError, KeyError, TypeError):
        text = (done.stderr or done.stdout).strip()
    refusal = explain(text, request, account=str(site.account))
    if refusal.known:
        raise UserError(f"no node could be looked at: {refusal}")
    raise UserError(f"no node could be looked at: srun ended with status {done.returncode}: {text[-2000:]}")
