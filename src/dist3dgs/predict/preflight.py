"""Check a request before it is submitted: host memory, accelerator memory, time, allocation, batch rule, disk.

Each finding is ok, warn or refuse, with the number, the threshold and the setting that changes it; `arithmetic` holds
the sum behind it. Nothing here asks Slurm or reads more than records and file sizes.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..config.matrix import AnySpec, Study
from ..config.models import RunSpec
from ..config.naming import Layout, Point
from ..config.workloads import WorkloadSpec
from ..errors import UserError
from .machine import Machine
from .model import CHECKPOINT_BYTES, Forecast, Predictor, checkpoint_gb
from .run_time import limit_min
from .study import SceneFacts, predictor_of, records_of, scene_facts, workload_at
from .workload import Workload

Status = Literal["ok", "warn", "refuse"]
#: Above this share of a memory, a request is warned of: what is not counted needs room too.
_TIGHT = 0.9
#: Of a rank with a GPU: the CUDA context and the libraries' pages, before any data.
GPU_PROCESS_GIB = 4.0
#: Of a rank on a CPU that nothing predicts: the demo's ranks have 0.53 GiB with 0.1 M Gaussians (results/reference).
CPU_PROCESS_GIB = 0.6
ADAM_BETA1 = 0.9
#: Checks whose refusal closes a point before its job is submitted; Slurm itself judges the others.
MEMORY_CHECKS = ("host memory", "GPU memory")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's answer."""

    check: str
    status: Status
    text: str
    """The number against its threshold."""
    setting: str = ""
    """Setting to change; empty if nothing is wrong."""
    arithmetic: tuple[str, ...] = ()

    def lines(self, *, explain: bool) -> list[str]:
        """Format for the terminal."""
        said = [f"{self.status:<7} {self.check:<18} {self.text}"]
        if self.setting:
            said.append(f"{'':<27}{self.setting}")
        return said + ([f"{'':<27}= {line}" for line in self.arithmetic] if explain else [])


def host_memory(
    *,
    ranks_per_node: int,
    process_gib: float,
    node_gib: float,
    workers: int = 0,
    worker_gib: float = 0.0,
    scene_gib: float = 0.0,
    checkpoint_gib: float = 0.0,
    what: str = "the node",
    setting: str = "site.mem_gib_per_gpu",
    assumed: bool = False,
) -> Finding:
    """Compare ranks x (process + data workers), the packed scene and a checkpoint with a node's memory.

    Args:
        workers: data-loading processes of each rank; our own training has none, other trainers may.
        worker_gib: resident size of one of them.
        scene_gib: the packed scene, which all ranks of a node share.
        checkpoint_gib: what rank 0 needs beside its process while a checkpoint is written.
        what: the threshold's name, as the text says it.
        assumed: the sizes are not measured, so that too much of them is a warning.
    """

    def need(count: int) -> float:
        return ranks_per_node * (process_gib + count * worker_gib) + shared_gib

    shared_gib = scene_gib + checkpoint_gib
    total = need(workers)
    saved = f" + {checkpoint_gib:.1f} GiB of a checkpoint on rank 0" if checkpoint_gib else ""
    arithmetic = (
        f"{ranks_per_node} ranks x ({process_gib:.1f} GiB + {workers} workers x {worker_gib:.1f} GiB)"
        f" + {scene_gib:.1f} GiB of scene{saved} = {total:.1f} GiB; {what}: {node_gib:.1f} GiB",
    )
    text = f"{total:.1f} GiB{' (assumed)' if assumed else ''} of {node_gib:.1f} GiB of {what}"
    if total <= _TIGHT * node_gib:
        return Finding(check="host memory", status="ok", text=text, arithmetic=arithmetic)
    status: Status = "refuse" if total > node_gib and not assumed else "warn"
    if workers and worker_gib and need(0) <= node_gib:
        largest = math.floor(((node_gib - shared_gib) / ranks_per_node - process_gib) / worker_gib)
        fix = f"at most {largest} workers per rank fit"
    else:
        most = math.floor((node_gib - shared_gib) / (process_gib + workers * worker_gib))
        fix = f"raise {setting}, or at most {max(most, 0)} ranks per node fit"
    return Finding(check="host memory", status=status, text=text, setting=fix, arithmetic=arithmetic)


def accelerator_memory(made: Predictor, forecast: Forecast) -> Finding:
    """Compare the predicted memory of a rank with its accelerator's; name the most Gaussians and the ranks that fit."""
    f, limit, r = forecast, forecast.memory_limit_gb, made.rates
    m = f.memory_gb
    phase = made.largest_phase(f.workload, f.layout)
    images = phase.images_of_rank(f.layout)
    own = phase.gaussians * phase.held_share(f.layout)
    arithmetic = (
        f"{r.memory_gb:.2f} GB + {r.gaussian_memory_bytes / 1e3:.2f} kB x {own:,.0f} Gaussians of a rank"
        f" + {r.pixel_memory_bytes:.0f} B x {f.workload.pixels:,} px x {images:g} images, and what travels"
        f" = {m.value:.1f} GB",
        f"bounds {m.low:.1f} to {m.high:.1f} GB; parameters, gradients and moments alone: 944 B x {own:,.0f} ="
        f" {own * 944 / 1e9:.1f} GB; {made.machine.accelerator}: {limit:g} GB",
    )
    text = f"{m.value:.1f} GB ({m.low:.1f} to {m.high:.1f}) of {limit:g} GB"
    status: Status = "refuse" if m.low > limit else "warn" if m.high > limit else "ok"
    if status == "ok":
        return Finding(check="GPU memory", status=status, text=text, arithmetic=arithmetic)
    fix = f"train.densify.max_gaussians: at most {_most_gaussians(made, f.workload, f.layout, limit):,} fit"
    ranks = _ranks_that_fit(made, f.workload, limit)
    if ranks:
        fix += f"; or {f.workload.gaussians:,.0f} on {ranks} ranks with a sharded strategy"
    return Finding(check="GPU memory", status=status, text=text, setting=fix, arithmetic=arithmetic)


def time_limit(forecast: Forecast, limit_s: float, longest_s: float, checkpoint_steps: int) -> Finding:
    """Compare the predicted run time with a job's limit; a run that meets it is resumed from its checkpoint.

    Args:
        limit_s: of a first attempt (site.runtime_min).
        longest_s: of any attempt (site.max_runtime_min).
        checkpoint_steps: steps between checkpoints.
    """
    total = forecast.total_s
    to_checkpoint = forecast.phases_s["startup"] + checkpoint_steps * forecast.step_s.low
    arithmetic = (
        f"{forecast.num_steps} steps x {1e3 * forecast.step.seconds:.1f} ms + startup and evaluation"
        f" = {total.value / 60:.1f} min, {total.low / 60:.1f} to {total.high / 60:.1f}; limit {limit_s / 60:.0f} min",
        f"first checkpoint after {checkpoint_steps} steps: {to_checkpoint / 60:.1f} min at the least",
    )
    text = f"{total.value / 60:.0f} min ({total.low / 60:.0f} to {total.high / 60:.0f}) of {limit_s / 60:.0f} min"
    if total.high <= limit_s:
        return Finding(check="time limit", status="ok", text=text, arithmetic=arithmetic)
    if to_checkpoint > longest_s:
        fix = "train.checkpoint_every: lower it, or raise site.max_runtime_min: no attempt would reach a checkpoint"
        return Finding(check="time limit", status="refuse", text=text, setting=fix, arithmetic=arithmetic)
    needed = math.ceil(total.high / 60)
    fix = (
        f"site.runtime_min: {needed} would hold it; a run that meets its limit is resumed from its checkpoint"
    )
    return Finding(check="time limit", status="warn", text=text, setting=fix, arithmetic=arithmetic)


def allocation(spec: AnySpec, layout: Layout, machine: Machine) -> Finding:
    """Compare a layout with the node and with the ranks that the strategy starts."""
    have, want = machine.workers_per_node, layout.workers_per_node
    started = spec.started.world_size
    text = f"{want} of {have} workers of a node, {started} of {layout.world_size} used"
    arithmetic = (f"{layout}: {layout.nodes} x {want}; {machine.accelerator}: {have} per node",)
    if want > have:
        fix = f"layouts: at most n{layout.nodes}g{have} on this node, or another --machine"
        status: Status = "warn" if machine.accelerator == "cpu" else "refuse"
        return Finding(check="allocation", status=status, text=text, setting=fix, arithmetic=arithmetic)
    if started < layout.world_size:
        fix = "the strategy's `ranks: one`: the others idle and are paid for; ranks: all"
        return Finding(check="allocation", status="warn", text=text, setting=fix, arithmetic=arithmetic)
    return Finding(check="allocation", status="ok", text=text, arithmetic=arithmetic)


def batch_rule(spec: RunSpec) -> Finding:
    """Check that the square-root rule and the schedules' counts keep their meaning at the global batch."""
    batch, train = spec.global_batch, spec.train
    beta1 = ADAM_BETA1**batch
    counts = {"train.sh_every": train.sh_every}
    if train.densify.kind != "none":
        counts |= {
            "train.densify.every": train.densify.every,
            "train.densify.reset_every": train.densify.reset_every,
        }
    below = [name for name, count in counts.items() if train.keep == "images" and count < batch]
    arithmetic = (
        f"learning rates x sqrt({batch}) = {math.sqrt(batch):.2f}, beta1 = 0.9^{batch} = {beta1:.3g}"
        f" (the linear rule 1 - {batch} x 0.1 = {1 - 0.1 * batch:.1f} is {'negative' if batch > 10 else 'positive'})",
        f"{spec.num_steps} optimiser steps; counts of images become steps by dividing by {batch}",
    )
    text = f"batch {batch}: rates x {math.sqrt(batch):.2f}, beta1 {beta1:.2g}, {spec.num_steps} steps"
    if spec.num_steps < 100:
        fix = (
            "train.steps: fewer than 100 optimiser steps are left; a smaller layout or batch, or keep: steps"
        )
        return Finding(check="batch rule", status="warn", text=text, setting=fix, arithmetic=arithmetic)
    if below:
        fix = f"{', '.join(below)}: less than the batch, so it happens in every step; raise it or use a smaller batch"
        return Finding(check="batch rule", status="warn", text=text, setting=fix, arithmetic=arithmetic)
    if beta1 < 0.01:
        fix = "global batch: nothing is left of Adam's momentum; the rule was shown for smaller batches"
        return Finding(check="batch rule", status="warn", text=text, setting=fix, arithmetic=arithmetic)
    return Finding(check="batch rule", status="ok", text=text, arithmetic=arithmetic)


def disk(folder: Path, spec: RunSpec, points: int) -> Finding:
    """Compare the checkpoints of all points with the free space below `folder`."""
    there = next(p for p in [Path(folder).absolute(), *Path(folder).absolute().parents] if p.exists())
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize / 1e9
    # One more than is kept: the new one is written before the oldest goes.
    each = (spec.train.keep_checkpoints + 1) * spec.train.densify.max_gaussians * CHECKPOINT_BYTES / 1e9
    arithmetic = (
        f"({spec.train.keep_checkpoints} + 1) checkpoints x {spec.train.densify.max_gaussians:,} Gaussians x"
        f" {CHECKPOINT_BYTES} B = {each:.1f} GB a point; {points} points; {free:.1f} GB free",
    )
    text = f"{each:.1f} GB a point, {each * points:.1f} GB for {points}; {free:.1f} GB free"
    if each > free:
        fix = "results: another folder, or train.keep_checkpoints: 1"
        return Finding(check="disk", status="refuse", text=text, setting=fix, arithmetic=arithmetic)
    if each * points > free:
        fix = "not all points fit if they reach max_gaussians: train.keep_checkpoints, or another results folder"
        return Finding(check="disk", status="warn", text=text, setting=fix, arithmetic=arithmetic)
    return Finding(check="disk", status="ok", text=text, arithmetic=arithmetic)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that the site sets for a job, and the memory of data workers."""

    runtime_s: float
    """Limit of a first attempt that no records predict (site.runtime_min)."""
    longest_s: float
    mem_gib_per_rank: float | None
    """None: a job may use the whole node."""
    most_mem_gib: float
    """Largest request per node."""
    runtime_margin: float = 0.0
    """Limit over the upper end of what records predict; 0: `runtime_s` always."""
    base_mem_gib: float = 1.0
    process_gib: float | None = None
    """Host memory of a rank; None: as its records say, else an assumption."""
    workers: int | None = None
    """Data workers of each rank; None: a workload's `loader_workers`, none of our own training."""
    worker_gib: float | None = None
    """Resident size of one of them; None: as the workload says."""


class PointChecks:
    """Checks of single points of a study, with what they need of scenes, records and machine read once.

    Without a machine there is nothing to compare accelerator memory, time and allocation with.
    """

    def __init__(
        self, study: Study, limits: Limits, machine: Machine | None, *, request_only: bool = False
    ) -> None:
        """request_only: compare host memory with the job's request, not with the node that the machine's file has."""
        self.study, self.limits, self.machine = study, limits, machine
        self._node = None if request_only else machine
        self._of_scene: dict[str, tuple[SceneFacts, Predictor | None, float | None]] = {}

    def findings(self, point: Point, num_points: int = 1) -> list[Finding]:
        """Check a point; num_points: those that share the disk."""
        spec = _spec(self.study, point)
        if isinstance(spec, Finding):
            return [spec]
        if isinstance(spec, WorkloadSpec):
            return check_workload(self.study, point, self.limits, self._node)
        scene, made, measured_gib = self._scene(point.scene)
        scene_gib, on_cpu = (scene.pack_bytes or 0) / 2**30, spec.hardware.device == "cpu"
        predicted = _predicted_host_gib(self.study, made, scene, spec, point.layout)
        found = [
            _host(scene_gib, point.layout, self.limits, self._node, measured_gib, predicted, on_cpu=on_cpu),
            batch_rule(spec),
            disk(Path(self.study.config.results), spec, num_points),
        ]
        if made is not None:
            found += _on_machine(self.study, made, scene, spec, point.layout, self.limits)
        return found

    def memory_refusal(self, point: Point) -> str | None:
        """Return why memory cannot hold a point, with the sum and the setting; None if it may."""
        for finding in self.findings(point):
            if finding.status == "refuse" and finding.check in MEMORY_CHECKS:
                return f"{finding.check}: {finding.text}. {finding.arithmetic[0]}. {finding.setting}"
        return None

    def _scene(self, name: str) -> tuple[SceneFacts, Predictor | None, float | None]:
        if name not in self._of_scene:
            scene = scene_facts(self.study, name)
            made = predictor_of(self.study, self.machine, scene) if self.machine is not None else None
            self._of_scene[name] = scene, made, _measured_process_gib(self.study, name)
        return self._of_scene[name]


def check_study(
    study: Study, layouts: Sequence[Layout], limits: Limits, machine: Machine | None
) -> dict[Layout, list[Finding]]:
    """Check every point of the study on each layout; of each check the most severe finding stays, with its point."""
    checks = PointChecks(study, limits, machine)
    pairs = [(name, strategy) for name in study.config.scenes for strategy in study.config.strategies]
    pairs += [(name, variant) for name in study.config.workloads for variant in study.workload(name).variants]
    asked = [Point(*pair, layout) for layout in layouts for pair in pairs]
    asked = [point for point in asked if study.excluded(point) is None]
    num_points = sum(not study.is_workload(point) for point in asked) * study.config.repeats
    worst_of: dict[Layout, dict[str, Finding]] = {layout: {} for layout in layouts}
    for point in asked:
        found = worst_of[point.layout]
        for finding in checks.findings(point, num_points):
            before = found.get(finding.check)
            if before is None or _severity(finding) > _severity(before):
                where = f"{finding.text} ({point.scene}/{point.strategy})"
                found[finding.check] = replace(finding, text=where)
    return {layout: list(found.values()) for layout, found in worst_of.items()}


def _spec(study: Study, point: Point) -> AnySpec | Finding:
    try:
        return study.spec(point)
    except UserError as e:
        name = "global_batch of the workload" if study.is_workload(point) else "train.global_batch"
        return Finding(check="settings", status="refuse", text=str(e), setting=f"{name} or the layout")


def check_workload(study: Study, point: Point, limits: Limits, machine: Machine | None) -> list[Finding]:
    """Check a program of others: its ranks and their loaders against the node's memory, its layout against the node.

    Sizes that neither the limits nor the workload state are those of its records, where there are any.
    """
    spec = study.spec(point)
    assert isinstance(spec, WorkloadSpec)
    process, loader = study.workload(point.scene).sizes_of(point.strategy)
    process = limits.process_gib or process
    loader = loader if limits.worker_gib is None else limits.worker_gib
    workers = spec.train.loader_workers if limits.workers is None else limits.workers
    if process is None and loader is None:
        # The measured size of a rank has its loaders in it.
        process, workers = _measured_process_gib(study, point.scene, point.strategy), 0
    told = replace(limits, process_gib=process, workers=workers, worker_gib=loader or 0.0)
    found = [_host(0.0, point.layout, told, machine, None, (None, 0.0), on_cpu=spec.hardware.device == "cpu")]
    return found if machine is None else [*found, allocation(spec, point.layout, machine)]


def _on_machine(
    study: Study, made: Predictor, scene: SceneFacts, spec: RunSpec, layout: Layout, limits: Limits
) -> list[Finding]:
    found = [allocation(spec, layout, made.machine)]
    try:
        forecast = made.forecast(workload_at(study, scene, spec.strategy, layout), spec.started)
    except UserError as e:
        return [*found, Finding(check="prediction", status="warn", text=str(e))]
    every = spec.train.checkpoint_every
    steps = max(1, round(every / spec.global_batch)) if spec.train.keep == "images" else every
    if made.machine.accelerator != "cpu":  # a rank's memory there is the host's
        found.append(accelerator_memory(made, forecast))
    limit_s = limits.runtime_s
    if limits.runtime_margin and records_of(study, scene.name):
        limit_s = 60.0 * limit_min(forecast.total_s.high, limits.runtime_margin, int(limits.longest_s // 60))
    return [*found, time_limit(forecast, limit_s, limits.longest_s, min(steps, forecast.num_steps))]


def _host(
    scene_gib: float,
    layout: Layout,
    limits: Limits,
    machine: Machine | None,
    measured_gib: float | None,
    predicted_gib: tuple[float | None, float],
    *,
    on_cpu: bool,
) -> Finding:
    """Compare with the node or the request.

    The size of a process is told, else measured (of the largest rank, with its checkpoints), else predicted, else
    assumed.

    predicted_gib: as `_predicted_host_gib` gives it.
    """
    ranks, node = layout.workers_per_node, None if machine is None else machine.host_memory_gib.value
    requested = limits.most_mem_gib
    if limits.mem_gib_per_rank is not None:
        requested = min(limits.mem_gib_per_rank * ranks + limits.base_mem_gib, requested)
    of_node = node is not None and (limits.mem_gib_per_rank is None or node < requested)
    process = limits.process_gib or measured_gib
    predicted, checkpoint = predicted_gib
    on_cpu = on_cpu or (machine is not None and machine.accelerator == "cpu")
    return host_memory(
        ranks_per_node=ranks,
        process_gib=process or predicted or (CPU_PROCESS_GIB if on_cpu else GPU_PROCESS_GIB),
        node_gib=node if of_node and node is not None else requested,
        workers=limits.workers or 0,
        worker_gib=limits.worker_gib or 0.0,
        scene_gib=scene_gib,
        checkpoint_gib=0.0 if measured_gib and not limits.process_gib else checkpoint,
        what="the node" if of_node else "the job's request per node",
        assumed=process is None and not limits.workers,
    )


def _predicted_host_gib(
    study: Study, made: Predictor | None, scene: SceneFacts, spec: RunSpec, layout: Layout
) -> tuple[float | None, float]:
    """Predict the memory of a rank on a CPU, None on a GPU, and what a checkpoint takes on rank 0 beside it, GiB."""
    if made is None:
        return None, 0.0
    try:
        workload = workload_at(study, scene, spec.strategy, layout)
        if made.machine.accelerator != "cpu":
            return None, checkpoint_gb(workload, spec.started, on_cpu=False) * 1e9 / 2**30
        rank = made.memory_gb(workload, spec.started).value
        return rank * 1e9 / 2**30, (made.rank_0_gb(workload, spec.started) - rank) * 1e9 / 2**30
    except UserError:  # a batch that these ranks cannot share, which another finding says
        return None, 0.0


def _measured_process_gib(study: Study, scene: str, strategy: str | None = None) -> float | None:
    """Return the largest resident set of a rank in a scene's, or a variant's, records; None without any."""
    records = [r for r in records_of(study, scene) if strategy in (None, r.run.strategy)]
    return max((r.metrics.peak_rss_gib for r in records if r.metrics.peak_rss_gib), default=None)


def _severity(finding: Finding) -> int:
    return ("ok", "warn", "refuse").index(finding.status)


def worst(findings: Sequence[Finding]) -> Status:
    """Return the most severe status; ok of none."""
    return max(findings, key=_severity).status if findings else "ok"


def _most_gaussians(made: Predictor, workload: Workload, layout: Layout, limit_gb: float) -> int:
    """Return largest number whose predicted memory is within the limit, to three digits."""
    none, one = (made.memory_gb(replace(workload, gaussians=n), layout).value for n in (0.0, 1e6))
    most = max(0.0, (limit_gb - none) / (one - none) * 1e6)
    return math.floor(float(f"{most:.3g}"))


def _ranks_that_fit(made: Predictor, workload: Workload, limit_gb: float) -> int | None:
    """Fewest ranks, a power of two, on which a sharded strategy holds the model; None above 4,096."""
    sharded = replace(workload, kind="sharded", batch=None)
    for ranks in (2**k for k in range(13)):
        if made.memory_gb(sharded, Layout(1, ranks)).high <= limit_gb:
            return ranks
    return None
