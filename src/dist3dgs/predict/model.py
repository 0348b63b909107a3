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
from ..config.naming import Layout
from ..errors import UserError
from .collectives import BACKWARD_BYTES, FORWARD_BYTES, CollectiveCost, collectives_of, turns
from .machine import Machine
from .workload import APART, FLOOR_BYTES, PARAMETER_BYTES, Workload

#: Fitted rates and errors, written by `python -m dist3dgs.predict.validation`.
FITTED = Path(__file__).with_name("fitted.yaml")
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
    from the other ranks (on a GPU in its own memory) and once as the copy that is written while training goes on. On a
    GPU that copy counts twice: PyTorch rounds each block of pinned memory up to a power of two, and keeps it.
    """
    copies = 2 if not on_cpu or workload.holders(layout) > 1 else 1
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
