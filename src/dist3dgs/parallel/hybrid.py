"""Hybrid parallelism: groups of ranks shard the Gaussians inside a group and replicate them across groups.

With `shard: 4` on 2 nodes of 4 workers each node holds the whole model once. In a step projections travel inside a
group, where links are fast, and gradients between the ranks that own the same shard in every group. Gradients,
decisions and checkpoints are those of a sharded run on `shard` ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from .digests import ReplicasDiffer, gather_digests, parameter_digest
from .gradients import GradientSum
from .replicated import broadcast, sum_statistics
from .sharded import Sharded
from .strategy import Parallel, Rendered, Rows, Setup


class Hybrid(Parallel):
    replicates = False

    def __init__(self, setup: Setup) -> None:
        """setup: `strategy.shard` divides the number of ranks; None for one group of all."""
        super().__init__(setup)
        comm, world = setup.comm, setup.comm.world_size
        self.group_size = size = setup.strategy.shard or world
        self.group = comm.rank // size
        #: The ranks of this group, which hold the model together.
        self.inside = comm.split([range(first, first + size) for first in range(0, world, size)])
        #: The ranks that hold this shard, one per group.
        self.across = comm.split([range(first, world, size) for first in range(size)])
        self.sharded = Sharded(replace(setup, comm=self.inside))
        self.gradients = GradientSum(self.across, setup.strategy)

    @property
    def shards(self) -> list[int]:
        return self.sharded.shards

    @property
    def holders(self) -> int:
        return self.group_size

    @property
    def stream(self) -> int:
        return self.inside.rank

    @property
    def keeps_statistics(self) -> bool:
        return self.group == 0

    def distribute(self, load: Callable[[], Rows], shards: Sequence[int] = ()) -> Rows:
        rows = self.sharded.distribute(load, shards) if self.group == 0 else {}
        # The first group's ranks broadcast their shards to the other groups.
        rows = broadcast(self.across, lambda: rows, self.device)
        self.sharded.take_shards(self.across.gather_objects(self.shards)[0])
        return rows

    def render(
        self,
        gaussians: Gaussians,
        cameras: Sequence[Sequence[Camera]],
        *,
        sh_degree: int,
        background: Tensor | None,
        track: bool,
    ) -> Rendered:
        ours = cameras[self.group * self.group_size : (self.group + 1) * self.group_size]
        if not any(ours):  # the last held-out views are fewer than the ranks
            return Rendered([], [], gaussians["means"][:0].sum())
        return self.sharded.render(gaussians, ours, sh_degree=sh_degree, background=background, track=track)

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        yield from self.gradients.reduce(gaussians, sh_degree)

    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        return sum_statistics(self.across, statistics)

    def global_topk(self, pull: Tensor, wanted: Tensor, count: int) -> Tensor:
        return self.sharded.global_topk(pull, wanted, count)

    def limit(self, gaussians: Gaussians, max_gaussians: int) -> int:
        return self.sharded.limit(gaussians, max_gaussians)

    def rebalance(self, rows: Rows) -> Rows | None:
        self.gradients.reset_error_feedback()
        return self.sharded.rebalance(rows)

    def sum_counts(self, counts: dict[str, int]) -> dict[str, int]:
        return self.sharded.sum_counts(counts)

    def whole(self, rows: Rows) -> Rows | None:
        return self.sharded.whole(rows) if self.group == 0 else None

    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        digests = gather_digests(self.comm, parameter_digest(gaussians), self.device)
        if digests != digests[: self.group_size] * self.across.world_size:
            raise ReplicasDiffer(digests)
        return digests

    def reset_error_feedback(self) -> None:
        self.gradients.reset_error_feedback()
