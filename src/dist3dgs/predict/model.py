"""Predict a training step, its memory and a whole run on any layout of a machine.

A step takes, on its slowest rank, with m images of P pixels per rank, N Gaussians and N_own of them held by the rank:

pixels         m P density pixel_flop / peak FLOP/s, times the imbalance
Gaussians      m N image_bytes / memory bandwidth, times the imbalance: projection, sorting, gathering gradients
optimiser      N_own step_bytes / memory bandwidth: Adam and statistics
host           step_s
exchange       exchange_s where ranks exchange projections: the host's part of it
collectives    every one as the strategy issues it (collectives.py), less what is hidden behind computation

A step of `blocks` is the mean over its three phases: replicas; blocks apart, which draw the rest with their own, so
that only the optimiser's work is divided, and send nothing; shards. With `blocks: k` each block is a job: the coarse
phase's images are all of one rank, blocks run at the same time, and each job starts by itself.

The few rates (`Rates`) are fitted to a part of the published points (validation.py), or to this study's own records
(calibration.py); rates of one accelerator carry over to another by peak FLOP/s and memory bandwidth. Intervals are
the errors on held-out points, widened beyond them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

from ..config.load import load_yaml
from ..config.models import Strategy, TrainSettings
from ..config.naming import Layout
from ..errors import UserError
from .collectives import CollectiveCost, all_reduce, all_to_all, turns
from .machine import Machine

#: Fitted rates and errors, written by `python -m dist3dgs.predict.validation`.
FITTED = Path(__file__).with_name("fitted.yaml")
#: Bytes of one Gaussian's 59 parameters in float32, and of those that are not spherical harmonics above degree 0.
PARAMETER_BYTES, SMALL_PARAMETER_BYTES = 59 * 4, 14 * 4
#: Bytes per visible Gaussian and camera in a sharded step: 12 floats forward, 10 gradients back (parallel/sharded.py).
FORWARD_BYTES, BACKWARD_BYTES = 48, 40
#: Gradients travel in messages of at most this size, larger parameters alone (parallel/replicated.py).
BUCKET_BYTES = 25 * 2**20
#: With `gradient_rows: auto`, where more of the rows are touched all travel (parallel/gradients.py).
AUTO_SHARE = 0.25
#: Parameters, gradients and Adam's two moments of one Gaussian: no dense training needs less.
FLOOR_BYTES = 4 * PARAMETER_BYTES
#: Name and sums of the statistics of one Gaussian (train/model.py), which a checkpoint has beside three times the
#: parameters.
NAME_BYTES = 3 * 8
CHECKPOINT_BYTES = 3 * PARAMETER_BYTES + NAME_BYTES
#: Of one Gaussian and camera, kept for the backward pass on a CPU: activated scales and opacity; if it is seen, its
#: projection (means2d 2, conics 3, depth, colours 3, opacity, radii 2, 8-byte id); and in the rank that draws it the
#: projection's gradients.
_ACTIVATED_BYTES, _PROJECTION_BYTES, _PROJECTION_GRADIENT_BYTES = 16, 56, 40
#: Bytes per pixel of an image on a CPU: a count of photograph, render, SSIM's maps and gradients (250); the demo's
#: rank has 270.
_CPU_PIXEL_BYTES = 250
#: Kinds of strategy that there is a model of.
MODELLED = ("replicated", "sharded", "hybrid", "local", "pixels", "blocks")
#: The phase of `blocks` in which each rank trains its own, as a kind of `Workload`.
APART = "apart"
#: Mean number of Gaussians over the densification, as a share of the final one: gsplat's seven scenes (published.yaml).
GROWTH_SHARE = 0.66
#: Share at the start of a growth that is linear and has this mean.
_START_SHARE = 2 * GROWTH_SHARE - 1
#: Starts that a point of block jobs waits for: the coarse job's, a block's and the merge's.
_JOBS_IN_A_ROW = 3
#: Forward pass of an image, as a share of a training step's work on it.
EVALUATION_SHARE = 1 / 3
#: Startup of a distributed run: 25 to 28 s of gsplat's on 8 GPUs (gsplat pull request 1062).
STARTUP_S = 27.0

#: Relative half-widths added to the held-out errors, as a sum of squares; assumptions, stated with each prediction.
_PER_DOUBLING, _NODES, _OTHER_MACHINE = 0.05, 0.2, 0.25
#: Bytes per pixel that a step may hold beyond those of Mip-NeRF 360's fit: 250 by a count of its buffers, less 70.
_MORE_PIXEL_BYTES = 180
#: Largest layout and model among the points that the model was compared with.
VALIDATED_RANKS, VALIDATED_GAUSSIANS = 8, 6.3e6


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Fitted cost of one program's work, in units of the hardware: FLOP, bytes, seconds."""

    pixel_flop: float
    """FLOP per pixel of an image, at the accelerator's peak rate."""
    image_bytes: float
    """Bytes per Gaussian of the model and image, at peak memory bandwidth."""
    step_bytes: float
    """Bytes per Gaussian held and optimiser step, at peak memory bandwidth."""
    step_s: float = 0.0
    """Seconds of a step that do not depend on its work."""
    exchange_s: float = 0.0
    """The same, where ranks exchange projections: synchronising, counting, packing. Fitted to a study's own records, of
    whatever its ranks exchange."""
    imbalance: float = 0.0
    """Standard deviation of the work of an image over its mean; the slowest rank is waited for."""
    memory_gb: float = 0.0
    """GPU memory beside the model."""
    gaussian_memory_bytes: float = FLOOR_BYTES
    pixel_memory_bytes: float = 0.0
    """GPU memory per pixel of the images that a rank works on at a time."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training, as far as its time depends on it."""

    gaussians: float
    """Final number of the whole model."""
    width_px: int
    height_px: int
    kind: str = "sharded"
    """Strategy: replicated, sharded, hybrid, local, blocks, or pixels (an image is divided among all ranks, as by
    Grendel)."""
    shard: int | None = None
    """hybrid: ranks that hold the model together; None: those of a node."""
    sync_every: int = 1
    """local: steps from one average to the next."""
    coarse_share: float = 0.2
    """blocks: share of the steps before the cut; `finish_share` of those after the merge."""
    finish_share: float = 0.0
    blocks: int | None = None
    """blocks: their number where each is a job of its own; None: one per rank."""
    margin: float = 0.2
    """blocks: share of its extent by which a cell is enlarged at each cut."""
    gradient_rows: str = "all"
    """Rows of the gradients that travel between replicas: all, touched, or auto (touched on CPUs)."""
    optimizer_state: str = "whole"
    """Replicas: Adam of all rows on every rank (whole), of its part (split), or auto (split on one node's CPUs)."""
    shared_memory: bool = True
    """CPU ranks of one node exchange through its memory."""
    compression: str = "none"
    powersgd_rank: int = 2
    batch: int | None = None
    """Images per step over all ranks; None: one per rank."""
    images: int = 30_000
    """Images seen in the whole run."""
    densify_share: float = 0.5
    """Share of the run in which the number of Gaussians grows; 0: fixed."""
    visible: float = 0.3
    """Share of the Gaussians that a camera sees (about 0.3 of a captured scene)."""
    density: float = 1.0
    """Work per pixel relative to the mean of Mip-NeRF 360's scenes (0.88 bonsai to 1.13 kitchen)."""
    evaluations: int = 6
    held_out: int = 25
    """Views of one evaluation."""
    overlap: float = 0.0
    """Share of the communication that is hidden behind computation."""

    @property
    def pixels(self) -> int:
        return self.width_px * self.height_px

    @property
    def mean_gaussians(self) -> float:
        """Mean over the run's images."""
        return self.gaussians * (self.densify_share * GROWTH_SHARE + 1 - self.densify_share)

    def growth(self, share: float) -> float:
        """Return the number of Gaussians after this share of the run, as a share of the final one."""
        done = min(1.0, share / self.densify_share) if self.densify_share else 1.0
        return _START_SHARE + (1 - _START_SHARE) * done

    def phases(self, layout: Layout) -> list[tuple[float, float, "Workload"]]:
        """Divide a run of `blocks` into its phases; any other run is one.

        Returns:
            (Share of the steps, mean number of Gaussians over the run's mean, workload with the final number in it).
        """
        if self.kind != "blocks":
            return [(1.0, 1.0, self)]
        if self.cells(layout) == 1:  # the one block is the whole scene
            return [(1.0, 1.0, replace(self, kind="replicated"))]
        merge, found, at = 1 - self.finish_share, [], 0.0
        for kind, end in (("replicated", self.coarse_share), (APART, merge), ("sharded", 1.0)):
            if end > at:
                mean = (self._grown(end) - self._grown(at)) / (end - at) / self._grown(1.0)
                phase = replace(self, kind=kind, gaussians=self.gaussians * self.growth(end))
                found.append((end - at, mean, phase))
            at = end
        return found

    def _grown(self, share: float) -> float:
        """Return the integral of `growth` from 0."""
        rising = min(share, self.densify_share)
        return rising * (_START_SHARE + self.growth(rising)) / 2 + share - rising

    @property
    def is_replica(self) -> bool:
        """Every rank holds all Gaussians."""
        return self.kind in ("replicated", "local")

    def cells(self, layout: Layout) -> int:
        """Return number of blocks, or of ranks of any other strategy: what is trained at a time."""
        return self.blocks or layout.world_size

    def updaters(self, layout: Layout, machine: Machine) -> int:
        """Return number of ranks that share out Adam's updates and moments of the Gaussians that each holds."""
        auto = self.optimizer_state == "auto" and self.through_memory(layout, machine)
        split = self.optimizer_state == "split" or auto
        return layout.world_size if self.kind == "replicated" and split else 1

    def through_memory(self, layout: Layout, machine: Machine) -> bool:
        """Return True where what the strategy exchanges goes through the memory of the ranks' one node."""
        there = self.shared_memory and machine.shared_memory_gb_s is not None and layout.nodes == 1
        if not self.is_replica:
            return there
        exact = self.compression == "none" and self.gradient_rows != "touched"
        return there and self.kind == "replicated" and exact

    def state_bytes(self, layout: Layout, machine: Machine) -> float:
        """Return bytes per Gaussian of parameters, gradients and Adam's moments on a rank that may share the update."""
        updaters = self.updaters(layout, machine)
        if updaters == 1:
            return float(FLOOR_BYTES)
        shared = (
            PARAMETER_BYTES if machine.accelerator == "cpu" and layout.nodes == 1 else 0
        )  # shared_memory.py
        return FLOOR_BYTES - 2 * PARAMETER_BYTES * (1 - 1 / updaters) + shared

    def held_share(self, layout: Layout) -> float:
        """Return the share of the Gaussians that a rank trains; a block's margin grows with its cuts, log2(blocks)."""
        if self.kind == APART:
            cells = self.cells(layout)
            return min(1.0, (1 + self.margin) ** math.log2(cells) / cells)
        return 1 / self.holders(layout)

    def holders(self, layout: Layout) -> int:
        """Return number of ranks that hold the model together; of `blocks` after the cut.

        Raises:
            UserError: a hybrid strategy's groups do not divide the ranks.
        """
        if self.is_replica:
            return 1
        if self.kind != "hybrid":
            return layout.world_size
        shard = self.shard or layout.workers_per_node
        if layout.world_size % shard:
            raise UserError(f"shard: {shard} does not divide the {layout.world_size} ranks of {layout}")
        return shard

    def global_batch(self, layout: Layout) -> int:
        return self.batch or (1 if self.kind == "pixels" else self.cells(layout))

    def images_of_rank(self, layout: Layout) -> float:
        """Return images of a step that one rank draws; a part of one where pixels are divided."""
        sharing = self.cells(layout) if self.kind == APART else layout.world_size
        return self.global_batch(layout) / sharing


@dataclass(frozen=True)
class Interval:
    """A predicted number with its bounds."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, width: float) -> "Interval":
        """Return `value` divided and multiplied by 1 + `width`."""
        return cls(value, value / (1 + width), value * (1 + width))

    def scaled(self, factor: float) -> "Interval":
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step on its slowest rank: seconds by term."""

    pixels_s: float
    gaussians_s: float
    optimiser_s: float
    host_s: float
    exchange_s: float
    """The host's part of exchanges between ranks."""
    collectives: tuple[CollectiveCost, ...]
    overlap: float = 0.0

    @property
    def collectives_s(self) -> float:
        return sum(c.seconds for c in self.collectives)

    @property
    def communication_s(self) -> float:
        """Everything that one rank would not do."""
        return self.exchange_s + self.collectives_s

    @property
    def compute_s(self) -> float:
        return self.pixels_s + self.gaussians_s + self.optimiser_s + self.host_s

    @property
    def seconds(self) -> float:
        return self.compute_s + self.exchange_s + (1 - self.overlap) * self.collectives_s

    def terms(self) -> dict[str, float]:
        """Return seconds by the names of this module's introduction."""
        return {
            "pixels": self.pixels_s,
            "Gaussians": self.gaussians_s,
            "optimiser": self.optimiser_s,
            "host": self.host_s,
            "exchange": self.exchange_s,
            "collectives": (1 - self.overlap) * self.collectives_s,
        }


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Prediction for one layout."""

    layout: Layout
    workload: Workload
    step: Step
    """At the mean number of Gaussians of the run."""
    width: float
    """Relative half-width of the interval of all times."""
    num_steps: int
    phases_s: dict[str, float]
    rank_s: float
    """Seconds of all ranks together, of all jobs of a point."""
    memory_gb: Interval
    """Per rank, at the end of the run."""
    memory_limit_gb: float
    speedup: float
    """Images per second over those of one rank with a batch of one."""
    ratio: float | None
    """R = T_compute of one rank / T_comm of this layout, per image; None on one rank."""
    notes: list[str] = field(default_factory=list)

    @property
    def batch(self) -> int:
        return self.workload.global_batch(self.layout)

    @property
    def step_s(self) -> Interval:
        return Interval.around(self.step.seconds, self.width)

    @property
    def images_per_s(self) -> Interval:
        return Interval.around(self.batch / self.step.seconds, self.width)

    @property
    def total_s(self) -> Interval:
        return Interval.around(sum(self.phases_s.values()), self.width)

    @property
    def rank_hours(self) -> Interval:
        return Interval.around(self.rank_s / 3600, self.width)

    @property
    def efficiency(self) -> float:
        return self.speedup / self.workload.cells(self.layout)

    @property
    def fits(self) -> bool:
        return self.memory_gb.value <= self.memory_limit_gb

    @property
    def simulated(self) -> bool:
        """Beyond everything that the model was compared with."""
        return (
            self.layout.world_size > VALIDATED_RANKS
            or self.layout.nodes > 1
            or self.workload.gaussians > VALIDATED_GAUSSIANS
        )


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Rates of a program on a machine, with the errors they have shown."""

    rates: Rates
    machine: Machine
    source: str
    error_one: float
    """Relative error on one rank: nine of ten held-out points are within."""
    error_several: float
    startup_s: float = STARTUP_S
    mean_share: float | None = None
    """Mean number of Gaussians over a run, as a share of its final one; None: by the length of the densification."""
    calibrated: bool = False
    """From records of this study on this hardware."""

    def mean_gaussians(self, workload: Workload) -> float:
        """Return mean number of Gaussians over the run's images."""
        known = self.mean_share is not None and workload.densify_share > 0
        return workload.gaussians * (self.mean_share or 1.0) if known else workload.mean_gaussians

    def step(self, workload: Workload, layout: Layout, gaussians: float | None = None) -> Step:
        """Predict one step with `gaussians` Gaussians (default: the mean over the run).

        Raises:
            UserError: no model of the strategy, or a batch that the ranks cannot share.
        """
        n = self.mean_gaussians(workload) if gaussians is None else gaussians
        p, batch = layout.world_size, workload.global_batch(layout)
        if workload.kind not in MODELLED:
            raise UserError(
                f"there is no model of strategy kind {workload.kind!r}; known: {', '.join(MODELLED)}"
            )
        if workload.kind != "pixels" and batch % p:
            raise UserError(
                f"a global batch of {batch} is no multiple of the {p} ranks of {layout}; give --batch-per-rank"
            )
        parts = workload.phases(layout)
        return _mean_step([(share, self._step(phase, layout, n * grown)) for share, grown, phase in parts])

    def _step(self, workload: Workload, layout: Layout, n: float) -> Step:
        """Predict one step of a phase with n Gaussians."""
        r, machine = self.rates, self.machine
        p, apart = layout.world_size, workload.kind == APART
        images = workload.images_of_rank(layout)
        waits = 1.0
        if p > 1 and not apart and workload.kind != "pixels":
            waits += r.imbalance / math.sqrt(images) * _expected_maximum(p)
        own = n * workload.held_share(layout)
        density = 1.0 if self.calibrated else workload.density  # rates of the scene's records have it in them
        sharing = turns(layout, machine)
        flops, bandwidth = (
            x / sharing for x in (machine.fp32_tflops.value * 1e12, machine.memory_gb_s.value * 1e9)
        )
        collectives = collectives_of(workload, layout, machine, n)
        # Published rates: an all-reduce costs the host its launches alone, and those are in the collective's time.
        exchanges = self.calibrated or any(c.op.startswith("all_to_all") for c in collectives)
        return Step(
            pixels_s=images * workload.pixels * density * r.pixel_flop / flops * waits,
            gaussians_s=images * n * r.image_bytes / bandwidth * waits,
            optimiser_s=own / workload.updaters(layout, machine) * r.step_bytes / bandwidth,
            host_s=r.step_s,
            exchange_s=r.exchange_s if p > 1 and exchanges and not apart else 0.0,
            collectives=collectives,
            overlap=workload.overlap,
        )

    def forecast(self, workload: Workload, layout: Layout) -> Forecast:
        """Predict a whole run."""
        step = self.step(workload, layout)
        batch, p = workload.global_batch(layout), layout.world_size
        alone = self.step(replace(workload, batch=1), Layout(1, 1))
        num_steps = math.ceil(workload.images / batch)
        image_s = alone.pixels_s + alone.gaussians_s
        phases = {
            "startup": self.startup_s * (1 if workload.blocks is None else _JOBS_IN_A_ROW),
            "step": num_steps * step.seconds,
            "evaluate": workload.evaluations * math.ceil(workload.held_out / p) * image_s * EVALUATION_SHARE,
        }
        comm_per_image = step.communication_s / batch
        return Forecast(
            layout=layout,
            workload=workload,
            step=step,
            width=self._width(workload, layout),
            num_steps=num_steps,
            phases_s=phases,
            rank_s=self._rank_s(workload, layout, num_steps, phases),
            memory_gb=self.memory_gb(workload, layout),
            memory_limit_gb=self.machine.memory_gb.value,
            speedup=alone.seconds / (step.seconds / batch),
            ratio=alone.compute_s / comm_per_image if comm_per_image else None,
            notes=self._notes(workload, layout),
        )

    def _rank_s(
        self, workload: Workload, layout: Layout, num_steps: int, phases_s: Mapping[str, float]
    ) -> float:
        """Add up the seconds of all ranks; of blocks with jobs of their own, those of each job."""
        if workload.blocks is None:
            return layout.world_size * sum(phases_s.values())
        n = self.mean_gaussians(workload)
        steps_s = 0.0
        for share, grown, phase in workload.phases(layout):
            jobs = workload.blocks if phase.kind == APART else 1
            steps_s += jobs * num_steps * share * self._step(phase, layout, n * grown).seconds
        return (workload.blocks + 2) * self.startup_s + steps_s + phases_s["evaluate"]

    def memory_gb(self, workload: Workload, layout: Layout) -> Interval:
        """Predict the memory of one rank at the end of a run, of `blocks` in its largest phase.

        The lower bound is never under the floor.

        On an accelerator the base, the model and the images are fitted to published runs; what travels comes on top.
        On a CPU it is a count (docs/benchmarks/distributed.md), for n of N Gaussians, m images drawn by the rank, c
        cameras it projects its n into, v the visible share:

            base + n (968 + c (16 + 56 v) + 236 ceil(log2 c)) + m v N (40 + 176 if they travel) + 250 m P
        """
        return self._memory_gb(self.largest_phase(workload, layout), layout)

    def largest_phase(self, workload: Workload, layout: Layout) -> Workload:
        """Return the phase of a run that needs the most memory, with the number of Gaussians at its end."""
        phases = [phase for _, _, phase in workload.phases(layout)]
        return max(phases, key=lambda phase: self._memory_gb(phase, layout).value)

    def rank_0_gb(self, workload: Workload, layout: Layout) -> float:
        """Predict the largest memory of a CPU's rank 0: in a step, or with a checkpoint, when no step is under way."""
        own = workload.gaussians * workload.held_share(layout)
        state_bytes = workload.state_bytes(layout, self.machine)
        resting = self.rates.memory_gb + own * (state_bytes + NAME_BYTES - PARAMETER_BYTES) / 1e9
        saving = resting + checkpoint_gb(workload, layout, on_cpu=True)
        return max(saving, self.memory_gb(workload, layout).value)

    def _memory_gb(self, workload: Workload, layout: Layout) -> Interval:
        r, p = self.rates, layout.world_size
        own = workload.gaussians * workload.held_share(layout)
        images = max(workload.images_of_rank(layout), 1 / p)
        batch = images * p
        seen = workload.visible * workload.gaussians * images
        shares = workload.holders(layout) if workload.kind != APART else 1
        travelling = 2 * seen * (FORWARD_BYTES + BACKWARD_BYTES) / 1e9 if shares > 1 else 0.0
        state_bytes = workload.state_bytes(layout, self.machine)
        floor = own * state_bytes / 1e9
        if self.machine.accelerator == "cpu":
            # A shard is projected into the cameras of all ranks that share the model.
            cameras = batch * shares / p
            # Each camera's backward pass makes gradients of all parameters. They are added along a binary tree, so that
            # replicas keep their bits: one set per level waits for the other branch.
            waiting = PARAMETER_BYTES * math.ceil(math.log2(max(1.0, cameras)))
            of_cameras = cameras * (_ACTIVATED_BYTES + workload.visible * _PROJECTION_BYTES)
            around = 0.0
            if (
                workload.kind == APART
            ):  # frozen: parameters, activated and projected; rank 0 keeps the coarse model
                around = (workload.gaussians - own) * (PARAMETER_BYTES + of_cameras)
                around += workload.gaussians * PARAMETER_BYTES
            value = (
                r.memory_gb
                + own * (state_bytes + NAME_BYTES + of_cameras + waiting) / 1e9
                + (seen * _PROJECTION_GRADIENT_BYTES + around) / 1e9
                + images * workload.pixels * _CPU_PIXEL_BYTES / 1e9
                + travelling
            )
            return Interval(value, max(floor, 0.9 * value), 1.15 * value)
        around = (workload.gaussians - own) * PARAMETER_BYTES / 1e9 if workload.kind == APART else 0.0
        value = (
            r.memory_gb
            + own * (r.gaussian_memory_bytes + state_bytes - FLOOR_BYTES) / 1e9
            + images * workload.pixels * r.pixel_memory_bytes / 1e9
            + travelling
            + around
        )
        # Within 6 % on one GPU and 14 % on four. At high resolutions more lives at once than there: photographs,
        # render, SSIM and the intersections with tiles.
        more = images * workload.pixels * _MORE_PIXEL_BYTES / 1e9 if r.pixel_memory_bytes else 0.0
        return Interval(value, max(floor, 0.9 * value), max(1.15 * value, floor) + more)

    def _width(self, workload: Workload, layout: Layout) -> float:
        p = layout.world_size
        parts = [self.error_one if p == 1 else self.error_several]
        if not self.calibrated and not self.machine.validated:
            parts.append(_OTHER_MACHINE)
        if layout.nodes > 1:
            parts.append(_NODES)
        parts.append(_PER_DOUBLING * max(0.0, math.log2(p / VALIDATED_RANKS)))
        parts.append(_PER_DOUBLING * max(0.0, math.log2(workload.gaussians / VALIDATED_GAUSSIANS)))
        return math.hypot(*parts)

    def _notes(self, workload: Workload, layout: Layout) -> list[str]:
        notes = []
        p, workers = layout.world_size, self.machine.workers_per_node
        if layout.workers_per_node > workers:
            have = f"a node of {self.machine.accelerator} has {workers} workers"
            notes.append(
                f"{layout}: {have}" + (": ranks take turns" if self.machine.accelerator == "cpu" else "")
            )
        if p > VALIDATED_RANKS or layout.nodes > 1:
            notes.append(
                f"simulation: no point on more than {VALIDATED_RANKS} ranks or one node was compared"
            )
        if workload.gaussians > VALIDATED_GAUSSIANS:
            notes.append(f"simulation: no point above {VALIDATED_GAUSSIANS / 1e6:g} M Gaussians was compared")
        if not self.calibrated and not self.machine.validated:
            notes.append(
                f"no point on {self.machine.accelerator} was compared: rates carried over by its data sheet"
            )
        return notes


def checkpoint_gb(workload: Workload, layout: Layout, *, on_cpu: bool) -> float:
    """Host memory that a checkpoint takes on rank 0 beside the training: the whole model and its moments, once gathered
    from the other ranks (on a GPU in its own memory) and once as the copy that is written while training goes on.
    """
    copies = 1 + (on_cpu and workload.holders(layout) > 1)
    return copies * workload.gaussians * CHECKPOINT_BYTES / 1e9


def _mean_step(parts: list[tuple[float, Step]]) -> Step:
    """Weigh the steps of a run's phases by their shares of it; collectives keep one entry per phase."""
    if len(parts) == 1:
        return parts[0][1]
    terms = ("pixels_s", "gaussians_s", "optimiser_s", "host_s", "exchange_s")
    return Step(
        **{name: sum(share * getattr(step, name) for share, step in parts) for name in terms},
        collectives=tuple(
            replace(c, bytes=c.bytes * share, seconds=c.seconds * share)
            for share, step in parts
            for c in step.collectives
        ),
        overlap=parts[0][1].overlap,
    )


def _expected_maximum(count: int) -> float:
    """Expected maximum of `count` standard normal numbers (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def collectives_of(
    workload: Workload, layout: Layout, machine: Machine, gaussians: float
) -> tuple[CollectiveCost, ...]:
    """List the collectives of one step as the strategy issues them; none on one rank."""
    p = layout.world_size
    if p == 1 or workload.kind == APART:
        return ()
    if workload.kind == "replicated":
        return _gradients(workload, layout, machine, gaussians, p)
    if workload.kind == "local":
        # Parameters and both moments, once in so many steps; the meters' bytes of a step are that share.
        payload = (3 * PARAMETER_BYTES + 4) * gaussians
        average = all_reduce("all_reduce(averages)", payload, 7, layout, machine)
        share = 1 / workload.sync_every
        return (replace(average, bytes=average.bytes * share, seconds=average.seconds * share),)
    if workload.kind == "hybrid" and (shard := workload.holders(layout)) < p:
        inside, across = _groups(layout, shard)
        cameras = workload.global_batch(layout) * shard // p
        # All shards of a node send their gradients through its link at once.
        crowd = min(shard, layout.workers_per_node) if layout.nodes > 1 else 1
        between = _gradients(workload, across, machine, gaussians / shard * crowd, p)
        return *_projections(workload, inside, machine, gaussians, cameras), *between
    return _projections(workload, layout, machine, gaussians, workload.global_batch(layout))


def _groups(layout: Layout, shard: int) -> tuple[Layout, Layout]:
    """Lay out the ranks of one group, and those that hold the same shard in all groups."""
    g = layout.workers_per_node
    if shard <= g:
        return Layout(1, shard), Layout(layout.nodes, max(1, g // shard))
    return Layout(shard // g, g), Layout(layout.world_size // shard, 1)


def _projections(
    workload: Workload, layout: Layout, machine: Machine, gaussians: float, cameras: int
) -> tuple[CollectiveCost, ...]:
    """Exchange what the cameras of `layout`'s ranks see of the Gaussians that these ranks share."""
    p = layout.world_size
    if p == 1:
        return ()
    seen = workload.visible * gaussians / p * cameras
    shared = workload.through_memory(layout, machine)
    counts = all_reduce("all_gather(counts)", 8.0 * cameras * p, 1, layout, machine)
    forward = all_to_all(
        "all_to_all(projections)", seen * FORWARD_BYTES, 1, layout, machine, 0.05, shared=shared
    )
    back = all_to_all(
        "all_to_all(projection gradients)", seen * BACKWARD_BYTES, 1, layout, machine, 0.05, shared=shared
    )
    return counts, forward, back


def _gradients(
    workload: Workload, layout: Layout, machine: Machine, gaussians: float, ranks: int
) -> tuple[CollectiveCost, ...]:
    """Return the all-reduce of gradients: a message of the small parameters while they fit, the large ones alone."""
    if layout.world_size == 1:
        return ()
    if workload.through_memory(layout, machine):
        whole = PARAMETER_BYTES * gaussians
        return (all_reduce("all_reduce(gradients)", whole, 1, layout, machine, shared=True),)
    found: list[CollectiveCost] = []
    rows = gaussians
    wanted = workload.gradient_rows == "touched" or (
        workload.gradient_rows == "auto" and machine.accelerator == "cpu"
    )
    if wanted and workload.compression != "powersgd":
        found.append(all_reduce("all_gather(touched rows)", gaussians / 8, 1, layout, machine))
        touched = 1 - (1 - workload.visible) ** (workload.batch or ranks)  # by any of the step's views
        few = touched <= AUTO_SHARE or workload.gradient_rows == "touched"
        rows *= touched if few else 1.0
    payload, small = rows * PARAMETER_BYTES, rows * SMALL_PARAMETER_BYTES
    calls = 1 if payload <= BUCKET_BYTES else 2 if small <= BUCKET_BYTES else 6
    if workload.compression == "bf16":
        payload /= 2
    elif workload.compression == "powersgd":
        payload = rows * (SMALL_PARAMETER_BYTES + 4 * workload.powersgd_rank)  # only shN is a product
    return *found, all_reduce("all_reduce(gradients)", payload, calls, layout, machine)


@cache
def fitted() -> dict[str, Any]:
    """Read the fitted rates and errors."""
    return load_yaml(FITTED)


def predictor(machine: Machine, program: str | None = None) -> Predictor:
    """Make the predictor of a machine from the rates that were fitted to published points.

    Args:
        program: whose rates; default: gsplat's on GPUs, our CPU renderer's on CPUs.

    Raises:
        UserError: there are no rates of that program.
    """
    program = program or ("dist3dgs-cpu" if machine.accelerator == "cpu" else "gsplat")
    fitted_to = "the reference records" if program == "dist3dgs-cpu" else "published points"
    known = fitted()
    if program not in known["rates"]:
        raise UserError(f"no rates of program {program!r}; known: {', '.join(known['rates'])}")
    errors = known["errors"]
    return Predictor(
        rates=Rates(**known["rates"][program]),
        machine=machine,
        source=f"rates of {program} fitted to {fitted_to} (docs/benchmarks/prediction.md)",
        error_one=errors["one_rank"],
        error_several=errors["several_ranks"],
        startup_s=STARTUP_S if machine.accelerator != "cpu" else 5.0,
    )


def workload_of(
    train: TrainSettings, strategy: Strategy, layout: Layout, size_px: tuple[int, int]
) -> Workload:
    """Make the workload of a study's settings: as many Gaussians as they allow, all images that they ask for."""
    batch = train.global_batch or train.batch_per_rank * (strategy.blocks or layout.world_size)
    images = train.steps if train.keep == "images" else train.steps * batch
    grows = train.densify.kind != "none"
    return Workload(
        gaussians=train.densify.max_gaussians,
        width_px=size_px[0],
        height_px=size_px[1],
        kind="pixels" if strategy.split == "pixels" else strategy.kind,
        compression=strategy.compression,
        powersgd_rank=strategy.powersgd_rank,
        shard=strategy.shard,
        sync_every=strategy.sync_every,
        coarse_share=strategy.coarse_share,
        finish_share=strategy.finish_share,
        blocks=strategy.blocks,
        margin=strategy.margin,
        gradient_rows=strategy.gradient_rows,
        optimizer_state=strategy.optimizer_state,
        shared_memory=strategy.shared_memory,
        batch=batch,
        images=images,
        densify_share=min(1.0, train.densify.stop_step / train.steps) if grows else 0.0,
        evaluations=math.ceil(train.steps / train.eval_every),
        held_out=train.eval_views or 25,
    )


def describe(forecast: Forecast) -> Mapping[str, Any]:
    """Flatten a forecast for JSON and tables; intervals as [value, low, high]."""
    f = forecast

    def listed(i: Interval) -> list[float]:
        return [i.value, i.low, i.high]

    return {
        "layout": str(f.layout),
        "strategy": f.workload.kind,
        "ranks": f.workload.cells(f.layout),
        "global_batch": f.batch,
        "step_s": listed(f.step_s),
        "step_terms_s": f.step.terms(),
        "collectives": [vars(c) for c in f.step.collectives],
        "images_per_s": listed(f.images_per_s),
        "steps": f.num_steps,
        "phases_s": f.phases_s,
        "total_s": listed(f.total_s),
        "rank_hours": listed(f.rank_hours),
        "speedup": f.speedup,
        "efficiency": f.efficiency,
        "r": f.ratio,
        "memory_gb": listed(f.memory_gb),
        "memory_limit_gb": f.memory_limit_gb,
        "fits": f.fits,
        "simulated": f.simulated,
        "notes": f.notes,
    }
