"""Which rank sees which photograph at which step: a pure function of seed and step."""

import numpy as np


class ViewOrder:
    """Epochs of shuffled training views, cut into global batches, cut into ranks' parts.

    Over an epoch every view is seen once by exactly one rank, and no view twice in a step, also where a step spans the
    end of an epoch. (Where an epoch has less than two batches of views that cannot be had without looking back over all
    epochs: there a view may come twice in a step, once for either epoch.) Nothing but (seed, step, rank) decides, so
    a resumed run sees what an uninterrupted one would have seen.
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
            self._epoch, self._order = epoch, self._epoch_order(epoch)
        return int(self._order[index])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """The epoch's views, none of the first of which was among the last of the epoch before in the same step.

        Such ones change places with views from the middle, which share a step with neither neighbour: so an epoch's end
        stays as it was shuffled, and the order depends on no epoch but this one and the one before.
        """
        order, num_views, batch = self._shuffled(epoch), len(self.train_ids), self.global_batch
        head = -epoch * num_views % batch
        if head == 0 or num_views < 2 * batch:
            return order
        seen = np.isin(order, self._shuffled(epoch - 1)[head - batch :])
        twice = np.flatnonzero(seen[:head])
        middle = np.arange(head, num_views - (epoch + 1) * num_views % batch)
        free = middle[~seen[middle]][: len(twice)]
        order[twice], order[free] = order[free], order[twice]
        return order

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.train_ids)
