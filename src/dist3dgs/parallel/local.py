"""Local steps: replicas train independently on their own views and average their parameters every `sync_every` steps.

As in local SGD (Stich 2019) and DiLoCo (Douillard et al. 2023), with Adam inside. Averages are weighted by how often a
rank's views touched each Gaussian: with equal weights a Gaussian that one rank alone sees would keep 1/p of what that
rank learned. Adam's moments are averaged alike, so that after each average all ranks are equal replicas: densification,
evaluation, digests and checkpoints average first, and a checkpoint is that of any other strategy.

Not the same mathematics as one process: with Adam even `sync_every: 1` averages p updates of small batches.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..splats.gaussians import NAMES, Gaussians
from .compression import Exact
from .gradients import touched_rows
from .replicated import Replicated
from .strategy import Rows, Setup, travelling


class Local(Replicated):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.sync_every, self.weighted = setup.strategy.sync_every, setup.strategy.average == "seen"
        self.sum = Exact(setup.comm, "averages")
        self._touched: Tensor | None = None
        self._coefficients = 0

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        gradients: dict[str, Tensor] = {}
        for name, active in travelling(gaussians, sh_degree):
            grad = gaussians[name].grad
            assert grad is not None
            # A view's weight in the loss is 1 / (images of all ranks); here this rank's images are the batch.
            grad.mul_(self.comm.world_size)
            gradients[name] = grad if active is None else grad[:, :active]
            self._coefficients = active or 0
        touched = touched_rows(gradients).to(gradients["means"].dtype)
        self._touched = touched if self._touched is None else self._touched.add_(touched)
        yield from gradients

    def averages(self, step: int) -> bool:
        return step % self.sync_every == 0

    @torch.no_grad()
    def synchronise(self, rows: Rows) -> None:
        touched, self._touched = self._touched, None
        if self.comm.alone or touched is None:
            return
        weights = torch.full_like(touched, 1 / self.comm.world_size)
        if self.weighted:
            total = self.sum.start("weights", touched.clone())()
            weights = torch.where(total > 0, touched / total.clamp_min(1), weights)
        for name in NAMES:
            parts = [
                rows[key] for key in (name, f"adam/{name}.exp_avg", f"adam/{name}.exp_avg_sq") if key in rows
            ]
            if name == "shN":  # higher bands are still as they were at the start
                parts = [part[:, : self._coefficients] for part in parts]
            both = torch.stack(parts) * weights.reshape(-1, *[1] * (parts[0].ndim - 1))
            averaged = self.sum.start(f"average {name}", both)()
            for part, value in zip(parts, averaged, strict=True):
                part.copy_(value)
