"""A training as far as its time and memory depend on it: what is trained, how it is split, and over which phases."""

import math
from dataclasses import dataclass, replace

from ..config.models import Strategy, TrainSettings
from ..config.naming import Layout
from ..errors import UserError
from .machine import Machine

#: Bytes of one Gaussian's 59 parameters in float32, and of those that are not spherical harmonics above degree 0.
PARAMETER_BYTES, SMALL_PARAMETER_BYTES = 59 * 4, 14 * 4
#: Parameters, gradients and Adam's two moments of one Gaussian: no dense training needs less.
FLOOR_BYTES = 4 * PARAMETER_BYTES
#: The phase of `blocks` in which each rank trains its own, as a kind of `Workload`.
APART = "apart"
#: Mean number of Gaussians over the densification, as a share of the final one: gsplat's seven scenes (published.yaml).
GROWTH_SHARE = 0.66
#: Share at the start of a growth that is linear and has this mean.
_START_SHARE = 2 * GROWTH_SHARE - 1


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
