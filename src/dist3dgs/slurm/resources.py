"""Resources that a study's jobs ask Slurm for, as those of Snakemake's rules.

Details that matter (docs/decisions/0060-slurm-launch.md): `gres` and `mem_mb` are per node while the plugin's `gpu` is
per job and may be split over nodes; `tasks_per_gpu=0` keeps the plugin from turning GPUs into tasks; a rule that asks
for no GPU gets `--ntasks=1` unless `tasks` says otherwise, and one task cannot span two nodes; `--qos` in `slurm_extra`
is refused, it is a resource; `gres` takes no GPU type with a hyphen in it (a100-sxm4-80gb), `--gpus-per-node` does.
"""

import contextlib
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.matrix import Study
from ..config.models import Scene
from ..config.naming import Layout, Point
from ..errors import UserError
from ..predict.machine import load_machine, machine_names
from ..predict.preflight import Limits, PointChecks
from ..predict.study import of_type
from .retry import Decision
from .site import Site

Resources = dict[str, int | str]

#: Memory of Snakemake and the launcher, which run in every job beside the ranks.
BASE_MEM_MB = 1000
#: A job that only writes a verdict or waits for another one.
SMALL_MEM_MB, SMALL_RUNTIME_MIN = 1000, 10
#: Of an ingest job: what is left to Snakemake and to packing when structure from motion has used up its own limits.
INGEST_BASE_GIB, INGEST_BASE_MIN = 2.0, 10
#: GPU types that the plugin lets through in `gres`.
PLAIN_GPU_TYPE = re.compile(r"[A-Za-z0-9_.]+")
KEYS = (
    "nodes",
    "tasks",
    "tasks_per_gpu",
    "gres",
    "cpus_per_task",
    "mem_mb",
    "runtime",
    "slurm_partition",
    "slurm_extra",
)
#: Defaults that the profile gives rules that run beside Snakemake. Snakemake's own ask for the size of every job's
#: input, which a big study's dry-run pays for.
PROFILE_DEFAULTS = {"mem_mb": 1000, "disk_mb": 1000}
#: What decides each resource of a job, for those who set another one by `--default-resources`.
DECIDED_BY = {
    "slurm_account": "site.account",
    "slurm_partition": "site.gpu_partition (training) and site.cpu_partition (ingest)",
    "qos": "site.qos",
    "runtime": "site.runtime_min (training) and site.ingest_runtime_min",
    **dict.fromkeys(("mem", "mem_mb", "mem_mib"), "site.mem_gib_per_gpu (training) and site.ingest_mem_gib"),
    "cpus_per_task": "site.cpus_per_gpu (training) and site.ingest_cpus",
    **dict.fromkeys(("gres", "gpu", "gpus", "tasks_per_gpu"), "the point's layout, site.gpu_request and site.gpu_type"),
    **dict.fromkeys(("nodes", "tasks"), "the point's layout"),
    "slurm_extra": "the point's layout",
    "mpi": "dist3dgs, which starts the ranks itself",
}  # fmt: skip


def layout_resources(layout: Layout, site: Site, decision: Decision | None = None) -> Resources:
    """Return the resources of a training job of `layout`, all per node but `nodes` and `tasks` (one task per node)."""
    workers = layout.workers_per_node
    mem_mb = (site.mem_gib_per_gpu * 1024 * workers + BASE_MEM_MB) * (decision.mem_factor if decision else 1)
    runtime = site.runtime_min * (decision.runtime_factor if decision else 1)
    extra, gres = ["--ntasks-per-node=1"], ""
    if site.exclusive:
        extra.append("--exclusive")
    if site.gpu_request == "gres" and PLAIN_GPU_TYPE.fullmatch(site.gpu_type or "any"):
        gres = site.gpus_request(workers)
    elif site.gpu_request != "none":
        extra.append(f"--gpus-per-node={site.gpus_request(workers).removeprefix('gpu:')}")
    partition = site.cpu_partition if site.gpu_request == "none" else site.gpu_partition
    return {
        "nodes": layout.nodes,
        "tasks": layout.nodes,
        "tasks_per_gpu": 0,
        "gres": gres,
        "cpus_per_task": site.cpus_per_gpu * workers,
        "mem_mb": min(math.ceil(mem_mb), math.floor(site.max_mem_gib * 1024)),
        "runtime": min(math.ceil(runtime), site.max_runtime_min),
        "slurm_partition": partition or "",
        "slurm_extra": " ".join(extra),
        **qos(site),
    }


class MemoryCheck:
    """Return why memory cannot hold a point, by the models of `dist3dgs preflight`; None if it may, or none tells."""

    def __init__(self, study: Study, site: Site, config: Path = Path("config")) -> None:
        self.study, self.site, self.config = study, site, config

    def __call__(self, point: Point) -> str | None:
        return self._checks.memory_refusal(point) if self.site.check_memory else None

    @functools.cached_property
    def _checks(self) -> PointChecks:
        site, machine = self.site, None
        on_cpu = site.gpu_request == "none" or self.study.config.hardware.device == "cpu"
        with contextlib.suppress(UserError):  # the files of machines are the user's
            names = [] if on_cpu else of_type(site.gpu_type or "", machine_names(self.config))
            alike = [load_machine(name, self.config) for name in names]
            machine = max(alike, key=lambda m: m.memory_gb.value, default=None)
        limits = Limits(
            runtime_s=site.runtime_min * 60.0,
            longest_s=site.max_runtime_min * 60.0,
            mem_gib_per_rank=site.mem_gib_per_gpu,
            most_mem_gib=site.max_mem_gib,
        )
        return PointChecks(self.study, limits, machine, request_only=True)


def small_resources(site: Site, after: Sequence[int] = ()) -> Resources:
    """Return the resources of a job without training: one CPU for a few minutes, after the jobs `after` if given."""
    return {
        "nodes": 1,
        "tasks": 1,
        "tasks_per_gpu": 0,
        "gres": "",
        "cpus_per_task": 1,
        "mem_mb": SMALL_MEM_MB,
        "runtime": SMALL_RUNTIME_MIN,
        "slurm_partition": site.cpu_partition or "",
        "slurm_extra": f"--dependency=afterany:{':'.join(map(str, after))}" if after else "",
        **qos(site),
    }


def ingest_resources(scene: Scene, site: Site) -> Resources:
    """Return the resources of the job that ingests `scene`: limits of its structure from motion, within the site's."""
    sfm = scene.sfm
    return {
        "nodes": 1,
        "tasks": 1,
        "tasks_per_gpu": 0,
        "gres": "",
        "cpus_per_task": min(sfm.num_threads or site.ingest_cpus, site.ingest_cpus),
        "mem_mb": math.ceil(min(sfm.memory_gib + INGEST_BASE_GIB, site.ingest_mem_gib) * 1024),
        "runtime": min(math.ceil(sfm.timeout_s / 60) + INGEST_BASE_MIN, site.ingest_runtime_min),
        "slurm_partition": site.cpu_partition or "",
        "slurm_extra": "",
        **qos(site),
    }


def sfm_limits(scene: Scene, request: Resources | None = None) -> Resources:
    """Return the limits of the structure from motion of `scene`: memory in MiB and seconds, below those of its job.

    A job that is killed at its own limit cannot say which setting to raise.

    Args:
        request: of the job (`ingest_resources`); None where there is none.
    """
    mem_mb, seconds = scene.sfm.memory_gib * 1024, scene.sfm.timeout_s
    if request is not None:
        job_mb, job_s = float(request["mem_mb"]), float(request["runtime"]) * 60
        mem_mb = min(mem_mb, max(job_mb - INGEST_BASE_GIB * 1024, job_mb / 2))
        seconds = min(seconds, max(job_s - INGEST_BASE_MIN * 60, job_s / 2))
    return {"sfm_mem_mb": math.floor(mem_mb), "sfm_timeout_s": math.ceil(seconds)}


def contradiction(defaults: Mapping[str, Any], site: Site) -> str | None:
    """Say what decides a resource that `--default-resources` gives another value, or None.

    Every rule that runs on the cluster names these resources itself, so that a default of them would be ignored.

    Args:
        defaults: name and value of each default resource that is not Snakemake's own.
    """
    agreed = {"slurm_account": site.account, "qos": site.qos} | PROFILE_DEFAULTS
    if site.gpu_partition == site.cpu_partition:
        agreed["slurm_partition"] = site.cpu_partition
    for name, value in defaults.items():
        if name in DECIDED_BY and str(value).strip("'\"") != str(agreed.get(name)):
            return (
                f"--default-resources {name}={value} would decide nothing: {name} follows from {DECIDED_BY[name]}. "
                f"Change that, or for one run set it rule by rule: --set-resources train:{name}={value}"
            )
    return None


def qos(site: Site) -> Resources:
    """Return the quality of service as a resource; none without one, as an empty one would be handed on."""
    return {"qos": site.qos} if site.qos else {}


def rule_defaults(site: Site) -> Resources:
    """Return account, partition and quality of service of a rule that runs on the cluster.

    Not among the profile's `default-resources`: Snakemake evaluates those as Python, where the account 2024_01 is a
    number.
    """
    account: Resources = {"slurm_account": site.account} if site.account else {}
    partition: Resources = {"slurm_partition": site.cpu_partition} if site.cpu_partition else {}
    return account | partition | qos(site)


def rule_resources(
    plan: Callable[[Any, int], Resources], site: Site, keys: Sequence[str] = KEYS
) -> dict[str, Callable[..., int | str] | int | str]:
    """Make a Snakemake resource per key of `plan(wildcards, attempt)`: `resources: **rule_resources(plan, site)`.

    Snakemake works out the signatures of each function, and of its own `Resource.evaluate`, three times per function
    and job, which was a third of a big study's dry-run: they are worked out once and left where it looks first.
    """
    from snakemake.common import overwrite_function_params
    from snakemake.resources import Resource

    def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
        return {k: v for k, v in inspect.signature(function).parameters.items() if k != "self"}

    def one(key: str) -> Callable[..., int | str]:
        def value(wildcards: Any, attempt: int) -> int | str:
            return plan(wildcards, attempt)[key]

        overwrite_function_params(value, parameters(value))
        return value

    overwrite_function_params(Resource.evaluate, parameters(Resource.evaluate))
    # Snakemake calls each function for each job: what is the same for all is a plain value.
    return (
        rule_defaults(site) | {"tasks_per_gpu": 0} | {key: one(key) for key in keys if key != "tasks_per_gpu"}
    )
