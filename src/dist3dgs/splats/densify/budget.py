"""Densification to a budget: the number of Gaussians follows a curve, and scores over several views say which grow.

The number after each densification is given (Taming 3DGS, Mallick et al. 2024, arXiv 2406.15643), and ends at the
budget exactly. Who grows and who goes is decided by what several training views say together (FastGS, Ren et al. 2025,
arXiv 2511.04283), with the squared error of a pixel shared out among its Gaussians in proportion to their blending
weights (Rota Bulo et al. 2024, arXiv 2404.06109): the sum over pixels of weight times error is the gradient, by a
Gaussian's colour, of the image times that error, so that any renderer's backward pass computes it, and a sharded
strategy's exchange returns it to the Gaussian's owner. Gaussians are split along their longest axis (Deng et al. 2025,
arXiv 2508.12313, in numbers of our own), without random numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config.models import Densification
from ..gaussians import Gaussians
from ..render.reference import rotation_matrices
from . import lineage as names
from .change import Change

#: Scores are summed as whole multiples of this, as statistics are: the same sum in any order of views and ranks. Up to
#: 2^39 pixels fit in an int64.
QUANTUM = 2.0**-24
#: Length of a half along the axis that is cut, over that before. The halves' centres lie so that the variance along the
#: axis stays what it was: 0.6^2 + 0.8^2 = 1.
HALF_LENGTH, HALF_OFFSET = 0.6, 0.8
#: Opacity of a half over that before: the halves overlap, and are not to hide more than the whole did.
HALF_OPACITY = 0.8


@dataclass
class Scores:
    """Sums over the pixels of several views, per Gaussian, in multiples of `QUANTUM`."""

    error: Tensor
    """int64 [N]: blending weight times the pixel's squared error, mean over RGB."""
    weight: Tensor
    """int64 [N]: blending weight; 0 where none of the views sees it."""

    @classmethod
    def zeros(cls, num_gaussians: int, device: torch.device) -> "Scores":
        both = torch.zeros(2, num_gaussians, dtype=torch.int64, device=device)
        return cls(both[0], both[1])

    def add(self, ids: Tensor, sums: Tensor) -> None:
        """Add one view.

        ids: int64 [V], differing. sums: float [V, 3], gradients by the colours of an image weighted by `attribution`.
        """
        whole = (sums[:, :2].double() / QUANTUM).round().long()
        self.error.index_add_(0, ids, whole[:, 0])
        self.weight.index_add_(0, ids, whole[:, 1])


def attribution(image: Tensor, photo: Tensor) -> Tensor:
    """Return weights [H, W, 3] whose product with a rendered image has the scores as its gradient by the colours.

    The gradient by a Gaussian's red is the sum over pixels of its blending weight times the squared error, by its green
    that of the weights alone. Squared: a split is to mend what is wrong, not what is large and nearly right.

    Args:
        image: [H, W, 3] float RGB, as rendered.
        photo: [H, W, 3] uint8.
    """
    error = (image.detach() - photo.to(image.dtype) / 255).square().mean(-1)
    return torch.stack([error, torch.ones_like(error), torch.zeros_like(error)], -1)


def curve(start: int, budget: int, index: int, count: int) -> int:
    """Return the number of Gaussians after the `index`-th of `count` densifications, 1-based: a straight line.

    It goes from `start` to `budget`, and is never below the smaller of them or above the budget.
    """
    return min(budget, round(start + (budget - start) * index / count))


@torch.no_grad()
def densify(
    gaussians: Gaussians,
    lineage: Tensor,
    scores: Scores,
    settings: Densification,
    *,
    target: int,
    total: Callable[[int], int],
    choose: Callable[[Tensor, Tensor, int], Tensor],
    step: int,
) -> Change:
    """Prune the faint and those that images need least, then split those with the largest errors.

    Args:
        gaussians: those this rank holds, N of them.
        lineage: int64 [N], names of the Gaussians.
        scores: over the same views on any number of ranks.
        settings: `prune_opacity` and `prune_share`.
        target: Gaussians that the whole model has afterwards, unless fewer have an error.
        total: sums a number over the ranks that hold different Gaussians. Collective.
        choose: given [N] float values, [N] bool candidates and a number, returns the [N] bool of the largest over
            all ranks. Collective.
        step: of the run.
    """
    n = total(gaussians.num_gaussians)
    prune = torch.sigmoid(gaussians["opacities"]) < settings.prune_opacity
    seen = (scores.weight > 0) & ~prune
    prune |= choose(-scores.weight.double(), seen, int(settings.prune_share * n))
    room = target - n + total(int(prune.sum()))
    split = choose(scores.error.double(), (scores.error > 0) & ~prune, max(0, room))
    keep, halved = torch.where(~split & ~prune)[0], torch.where(split)[0]
    parts = {name: [t[keep], t[halved], t[halved]] for name, t in gaussians.items()}
    for name, halves in _halves(gaussians, halved).items():
        parts[name][1:] = halves
    born = [names.children(lineage[halved], step, i) for i in range(2)]
    return Change(
        parameters={name: torch.cat(p) for name, p in parts.items()},
        origin=torch.cat([keep, keep.new_full((2 * len(halved),), -1)]),
        lineage=torch.cat([lineage[keep], *born]),
        counts={"split": len(halved), "pruned": int(prune.sum())},
    )


def _halves(gaussians: Gaussians, rows: Tensor) -> dict[str, list[Tensor]]:
    """Return the parameters that change when the given rows, int64 [M], are cut in two across their longest axis."""
    scales = gaussians["scales"][rows]
    axis = torch.nn.functional.one_hot(scales.argmax(-1), 3).to(scales)
    offset = torch.einsum(
        "nij,nj->ni", rotation_matrices(gaussians["quats"][rows]), axis * scales.exp() * HALF_OFFSET
    )
    means, shorter = gaussians["means"][rows], scales + axis * math.log(HALF_LENGTH)
    fainter = torch.logit(torch.sigmoid(gaussians["opacities"][rows]) * HALF_OPACITY)
    return {"means": [means - offset, means + offset], "scales": [shorter] * 2, "opacities": [fainter] * 2}
