"""Which rank sees which photograph at which step: a pure function of seed and step."""

import numpy as np


class ViewOrder:
    """Epochs of shuffled training views, cut into global batches, cut into ranks' parts.

    Over an epoch every view is seen once by exactly one rank. Nothing but (seed, step, rank) decides, so a
    resumed run sees what an uninterrupted one would have seen.
    """

    def __init__(self, train_ids: np.ndarray, seed: int, world_size: int, global_batch: int) -> None:
        """train_ids: int64 [T], indices of the training views in the packed scene."""
        self.train_ids, self.seed = np.asarray(train_ids), seed
        self.world_size, self.global_batch = world_size, global_batch
        self._epoch, self._order = -1, self.train_ids

    def batch(self, step: int) -> list[list[int]]:
        """View indices of 1-based `step`, one list per rank, each `global_batch / world_size` long."""
        first = (step - 1) * self.global_batch
        views = [self._view(first + i) for i in range(self.global_batch)]
        per_rank = self.global_batch // self.world_size
        return [views[r * per_rank : (r + 1) * per_rank] for r in range(self.world_size)]

    def _view(self, position: int) -> int:
        epoch, index = divmod(position, len(self.train_ids))
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.train_ids)
        return int(self._order[index])
