"""What the jobs of a study ask Slurm for, as the resources of Snakemake's rules.

Traps this stands on (docs/decisions/0060-slurm-launch.md): `gres` and `mem_mb` are per node while the
plugin's `gpu`
is per job and may be split over nodes; `tasks_per_gpu=0` keeps the plugin from turning GPUs into tasks; a
rule that
asks for no GPU gets `--ntasks=1` unless `tasks` says otherwise, and one task cannot span two nodes.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..names import Layout, Point
from . import attempts
from .jobs import Queue
from .retry import Decision, decide
from .settings import Site

Resources = dict[str, int | str]

#: Two Snakemakes and the launcher live in every job beside the ranks.
BASE_MEM_MB = 1000
#: A job that only writes a verdict or waits for another one.
SMALL_MEM_MB, SMALL_RUNTIME_MIN = 1000, 10
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


def layout_resources(layout: Layout, site: Site, decision: Decision | None = None) -> Resources:
    """Resources of one training job of `layout`, all per node but `nodes` and `tasks` (one task per node)."""
    workers = layout.workers_per_node
    mem_mb = (site.mem_gib_per_gpu * 1024 * workers + BASE_MEM_MB) * (decision.mem_factor if decision else 1)
    runtime = site.runtime_min * (decision.runtime_factor if decision else 1)
    extra = ["--ntasks-per-node=1"]
    if site.gpu_request == "gpus-per-node":
        extra.append(f"--gpus-per-node={site.gpus_request(workers).removeprefix('gpu:')}")
    if site.qos:
        extra.append(f"--qos={site.qos}")
    partition = site.cpu_partition if site.gpu_request == "none" else site.gpu_partition
    return {
        "nodes": layout.nodes,
        "tasks": layout.nodes,
        "tasks_per_gpu": 0,
        "gres": site.gpus_request(workers) if site.gpu_request == "gres" else "",
        "cpus_per_task": site.cpus_per_gpu * workers,
        "mem_mb": min(math.ceil(mem_mb), math.floor(site.max_mem_gib * 1024)),
        "runtime": min(math.ceil(runtime), site.max_runtime_min),
        "slurm_partition": partition or "",
        "slurm_extra": " ".join(extra),
    }


def small_resources(site: Site, after: list[int] | None = None) -> Resources:
    """Resources of a job without training: one CPU for a few minutes, after the jobs `after` if given."""
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
    }


class Planner:
    """Gives the `train` rule its resources, point by point and attempt by attempt.

    One per Snakemake process. Only when a point has a history (an `attempts` folder, or an attempt number
    above 1)
    are files read; the queue is asked once per few seconds, however many points there are.
    """

    def __init__(self, results: Path, site: Site, queue: Queue | None = None) -> None:
        self.results, self.site, self.queue = Path(results), site, queue or Queue()
        self._known: dict[tuple[Point, int], Resources] = {}

    def resources(self, point: Point, attempt: int, spec_sha256: str | None = None) -> Resources:
        key = (point, attempt)
        if key not in self._known:
            self._known[key] = self._plan(point, attempt, spec_sha256)
        return self._known[key]

    def _plan(self, point: Point, attempt: int, spec_sha256: str | None) -> Resources:
        folder = point.folder(self.results)
        me = None
        others = self.queue.of_point(point, but=_own_job())
        if others and _own_job() is None:
            return small_resources(self.site, after=[j.id for j in others])
        if attempt == 1 and not (folder / attempts.FOLDER).is_dir():
            return layout_resources(point.layout, self.site)
        settled = attempts.series(attempts.settle(folder, me), spec_sha256)
        decision = decide(settled, retry_gpu_hours=self.site.retry_gpu_hours)
        if decision.action != "train":
            return small_resources(self.site)
        return layout_resources(point.layout, self.site, decision)


def _own_job() -> int | None:
    from .allocation import job_id

    return job_id()


def digest(spec_text: str) -> str:
    """Digest of a run's spec (its one-line JSON), which ties attempts to what they tried."""
    return hashlib.sha256(spec_text.encode()).hexdigest()


def rule_resources(plan: Callable[[Any, int], Resources]) -> dict[str, Callable[..., int | str]]:
    """One Snakemake resource function per key of `plan(wildcards, attempt)`: `resources:
    **rule_resources(plan)`."""

    def one(key: str) -> Callable[..., int | str]:
        def value(wildcards: Any, attempt: int) -> int | str:
            return plan(wildcards, attempt)[key]

        return value

    return {key: one(key) for key in KEYS}
