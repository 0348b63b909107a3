"""Trainable state of a rank: its Gaussians, Adam's moments and the densification statistics, changed together."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..parallel.strategy import Parallel, Rows
from ..splats.camera import Camera
from ..splats.densify.change import Change
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import NAMES, Gaussians
from .optimizer import Optimizer
from .schedules import AdamRule

LINEAGE, GRAD_SUM, COUNT = "lineage", "statistics/grad_sum", "statistics/count"


class Model:
    """Trainable state of one rank."""

    def __init__(
        self, parallel: Parallel, rule: AdamRule, rows: Rows, adam_steps: Mapping[str, float]
    ) -> None:
        """rows: result of `Parallel.distribute`: parameters and lineage, or everything that `rows()` returns."""
        self.parallel, self.rule = parallel, rule
        self._take(rows, adam_steps)
        self._count_once()

    def _take(self, rows: Rows, adam_steps: Mapping[str, float]) -> None:
        self.gaussians = Gaussians({name: rows[name] for name in NAMES})
        self.optimizer = Optimizer(self.gaussians, self.rule, self.parallel.parts)
        self.optimizer.load(
            {k.removeprefix("adam/"): t for k, t in rows.items() if k.startswith("adam/")}, adam_steps
        )
        self.lineage = rows[LINEAGE]
        self.statistics = self._no_statistics()
        if GRAD_SUM in rows:
            self.statistics = Statistics(rows[GRAD_SUM], rows[COUNT])

    def rows(self) -> Rows:
        """Return all tensors [N, ...] with one row per Gaussian of this rank, by name: float32, counts and names
        int64. Of the moments those of `Parallel.parts` alone.
        """
        moments = {f"adam/{k}": t for k, t in self.optimizer.moments().items()}
        return {
            **self.gaussians,
            **moments,
            LINEAGE: self.lineage,
            GRAD_SUM: self.statistics.grad_sum,
            COUNT: self.statistics.count,
        }

    def synchronise(self) -> None:
        """Make replicas that trained apart equal. Collective; no-op for strategies whose replicas never part."""
        self.parallel.synchronise(self.rows())

    def whole(self) -> Rows | None:
        """Gather the whole model on rank 0, with the statistics of all ranks' views. Collective.

        Returns tensors [N, ...] by name, with the dtypes of `rows`; None on the other ranks.
        """
        self.statistics = self.parallel.reduce_statistics(self.statistics)
        self._count_once()
        return self.parallel.whole(self.rows())

    def advance(self, phase: str, cameras: Iterable[Camera], max_gaussians: int) -> dict[str, Any]:
        """Go on to the strategy's next phase, as `Parallel.advance`; return its facts. Collective."""
        self.statistics = self.parallel.reduce_statistics(self.statistics)
        rows, facts = self.parallel.advance(phase, self.rows(), cameras, max_gaussians)
        self._take(rows, self.optimizer.steps())
        return facts

    def densify(self, change: Change) -> None:
        """Apply a change of the set of Gaussians, reset the statistics and even out the shards. Collective."""
        self.gaussians, self.lineage = self.optimizer.apply(change), change.lineage
        self.statistics = self._no_statistics()
        moved = self.parallel.rebalance(self.rows())
        if moved is not None:
            self._take(moved, self.optimizer.steps())

    def alter(self, change: Change) -> None:
        """Apply a change of parameters that leaves the set of Gaussians as it is."""
        self.gaussians = self.optimizer.apply(change)

    def _no_statistics(self) -> Statistics:
        return Statistics.zeros(self.gaussians.num_gaussians, self.gaussians.device)

    def _count_once(self) -> None:
        """Zero reduced statistics on all but one of the ranks that have them, so that they are not counted twice."""
        if not self.parallel.keeps_statistics:
            self.statistics = self._no_statistics()
