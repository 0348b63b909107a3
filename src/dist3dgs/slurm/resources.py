"""What the jobs of a study ask Slurm for, as the resources of Snakemake's rules.

Traps this stands on (docs/decisions/0060-slurm-launch.md): `gres` and `mem_mb` are per node while the
plugin's `gpu`
is per job and may be split over nodes; `tasks_per_gpu=0` keeps the plugin from turning GPUs into tasks; a
rule that
asks for no GPU gets `--ntasks=1` unless `tasks` says otherwise, and one task cannot span two nodes.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..evidence import ATTEMPTS, text_digest
from ..names import Layout, Point
from .allocation import job_id
from .attempts import Try, settle
from .commands import SlurmError
from .jobs import Queue
from .partitions import Offer, choose
from .retry import Decision, decide
from .settings import Site
from .submission import test_only
from .turn import refuse

Resources = dict[str, int | str]

#: Two Snakemakes and the launcher live in every job beside the ranks.
BASE_MEM_MB = 1000
#: A job that only writes a verdict or waits for another one.
SMALL_MEM_MB, SMALL_RUNTIME_MIN = 1000, 10
#: How long a controller that does not answer, or a queue that is full, is waited for before a submission.
REFUSAL_PATIENCE_S, REFUSAL_POLL_S = 600.0, 5.0
#: `gpu_partition: auto` lets the chooser decide; a choice this young is used again.
AUTO, CHOICE_S = "auto", 60.0
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

    One per Snakemake process. Only when a point has a history (an `attempts` folder, or an attempt number above 1)
    are files read; the queue is asked once per few seconds, however many points there are.
    """

    def __init__(
        self, results: Path, site: Site, queue: Queue | None = None, *, on_cluster: bool = True
    ) -> None:
        """`on_cluster`: False where the profile describes no cluster: nothing is asked of Slurm then."""
        self.on_cluster = on_cluster
        self.results, self.site, self.queue = Path(results), site, queue or Queue()
        self.own_job = job_id()
        self._chosen: dict[Layout, tuple[Offer | None, float]] = {}
        self._known: dict[tuple[Point, int], Resources] = {}

    def resources(self, point: Point, attempt: int, spec_text: str) -> Resources:
        """Resources of Snakemake's `attempt` (1, 2, ...) at `point`, whose spec is `spec_text` (one-line JSON)."""
        key = (point, attempt)
        if key not in self._known:
            self._known[key] = self._plan(point, attempt, spec_text)
        return self._known[key]

    def _plan(self, point: Point, attempt: int, spec_text: str) -> Resources:
        if not self.on_cluster:
            return layout_resources(point.layout, self.site)
        site = self._site_for(point.layout)
        if self.own_job is None and (others := self.queue.of_point(point)):
            say(f"{point}: Slurm job {others[0].id} already trains it; the new job waits for that one")
            return small_resources(self.site, after=[j.id for j in others])
        folder = point.folder(self.results)
        if attempt == 1 and not (folder / ATTEMPTS).is_dir():
            return layout_resources(point.layout, site)
        decision, tries = self._decide(folder, spec_text)
        if decision.action == "wait":
            return small_resources(
                self.site, after=[t.slurm_job_id for t in tries if t.running and t.slurm_job_id]
            )
        if decision.action != "train":
            return small_resources(self.site)
        wanted = layout_resources(point.layout, site, decision)
        if attempt == 1 or self.own_job is not None:
            return wanted
        return self._unless_refused(point, folder, spec_text, wanted)

    def _site_for(self, layout: Layout) -> Site:
        """The site, with `gpu_partition: auto` replaced by the partition where the layout would end first."""
        if self.site.gpu_partition != AUTO or self.own_job is not None:
            return self.site
        chosen, at = self._chosen.get(layout, (None, -math.inf))
        if time.monotonic() - at > CHOICE_S:
            chosen = choose(layout, self.site, self.site.runtime_min * 60.0)
            self._chosen[layout] = (chosen, time.monotonic())
            if chosen is not None:
                say(f"{layout}: partition {chosen.partition}, where it would end first")
        if chosen is None:
            return self.site
        return self.site.model_copy(update={"gpu_partition": chosen.partition, "gpu_type": chosen.gpu_type})

    def _decide(self, folder: Path, spec_text: str) -> tuple[Decision, list[Try]]:
        # In a job that Slurm has requeued, the earlier attempt of the same job has ended.
        me = None if self.own_job is None else (self.own_job, sys.maxsize)
        try:
            tries = settle(folder, text_digest(spec_text), me)
        except SlurmError as e:
            say(f"Slurm does not answer ({e.text}); {folder} is submitted as for a first attempt")
            return Decision(action="train", reason="Slurm does not answer"), []
        return decide(tries, retry_gpu_hours=self.site.retry_gpu_hours), tries

    def _unless_refused(self, point: Point, folder: Path, spec_text: str, wanted: Resources) -> Resources:
        """`wanted`, or the resources of a closing job where Slurm refuses it for good: then the reason is recorded."""
        end = time.monotonic() + REFUSAL_PATIENCE_S
        while (refusal := test_only(wanted, self.site.account).refusal) and refusal.transient:
            if time.monotonic() > end:
                return wanted
            say(f"{point}: {refusal}; asking again in {REFUSAL_POLL_S:.0f} s")
            time.sleep(REFUSAL_POLL_S)
        if refusal is None:
            return wanted
        say(f"{point} cannot be submitted: {refusal}")
        refuse(folder, json.loads(spec_text), text_digest(spec_text), str(refusal))
        return small_resources(self.site)


def say(text: str) -> None:
    """A line in Snakemake's own log."""
    print(f"dist3dgs: {text}", file=sys.stderr, flush=True)


def rule_resources(plan: Callable[[Any, int], Resources]) -> dict[str, Callable[..., int | str] | int]:
    """One Snakemake resource function per key of `plan(wildcards, attempt)`: `resources:
    **rule_resources(plan)`."""

    def one(key: str) -> Callable[..., int | str]:
        def value(wildcards: Any, attempt: int) -> int | str:
            return plan(wildcards, attempt)[key]

        return value

    # Snakemake inspects and calls each function for each job: what is the same for all is a plain value.
    return {"tasks_per_gpu": 0} | {key: one(key) for key in KEYS if key != "tasks_per_gpu"}
