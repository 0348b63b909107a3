"""Adaptive density control: clone, split, prune, opacity reset (Kerbl et al. 2023, section 5)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...config.models import Densification
from ..gaussians import Gaussians
from ..render.reference import rotation_matrices
from . import lineage as names
from .change import Change
from .statistics import Statistics

#: A split Gaussian's two halves have its size divided by this (reference implementation: 0.8 N with N = 2).
SPLIT_SHRINK = 1.6


@torch.no_grad()
def densify(
    gaussians: Gaussians,
    lineage: Tensor,
    statistics: Statistics,
    settings: Densification,
    *,
    extent: float,
    prune_large: bool,
    choose: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    step: int,
) -> Change:
    """Clone small and split large Gaussians of large screen-space gradient; prune faint (and, on demand, huge) ones.

    lineage: int64 [N], names of the Gaussians. statistics: over all views of all ranks. extent: scene radius, world
    units. choose: given [N] float gradients and [N] bool candidates, returns the [N] bool that may grow; called exactly
    once. seed, step: of the run, for the noise of splits.
    """
    grads = statistics.mean_gradient()
    largest = gaussians["scales"].amax(-1).exp()
    grow = choose(grads, grads > settings.grad_threshold)
    small = largest <= settings.scale_threshold * extent
    clone, split = grow & small, grow & ~small
    prune = torch.sigmoid(gaussians["opacities"]) < settings.prune_opacity
    if prune_large:
        prune |= largest > settings.prune_scale * extent
    keep = torch.where(~split & ~prune)[0]
    cloned, halved = torch.where(clone & ~prune)[0], torch.where(split & ~prune)[0]

    parts = {name: [t[keep], t[cloned], t[halved], t[halved]] for name, t in gaussians.items()}
    parts["means"][2:] = _split_means(gaussians, halved, names.normals(lineage[halved], 6, seed, step))
    smaller = gaussians["scales"][halved] - math.log(SPLIT_SHRINK)
    parts["scales"][2:] = [smaller, smaller]
    num_new = len(cloned) + 2 * len(halved)
    born = [names.children(lineage[rows], step, i) for i, rows in enumerate((cloned, halved, halved))]
    return Change(
        parameters={name: torch.cat(p) for name, p in parts.items()},
        origin=torch.cat([keep, keep.new_full((num_new,), -1)]),
        lineage=torch.cat([lineage[keep], *born]),
        counts={"cloned": len(cloned), "split": len(halved), "pruned": int(prune.sum())},
    )


@torch.no_grad()
def reset_opacities(gaussians: Gaussians, lineage: Tensor, settings: Densification) -> Change:
    """Make every Gaussian nearly transparent: those the images do not need stay so and are pruned.

    lineage: int64 [N], names of the Gaussians.
    """
    ceiling = torch.logit(torch.tensor(2 * settings.prune_opacity)).item()
    parameters = {name: t.clone() for name, t in gaussians.items()}
    parameters["opacities"].clamp_(max=ceiling)
    index = torch.arange(gaussians.num_gaussians, device=gaussians.device)
    return Change(parameters, index, lineage, reset_moments=("opacities",))


def _split_means(gaussians: Gaussians, rows: Tensor, noise: Tensor) -> list[Tensor]:
    """Draw two random points from each of M Gaussians' densities. noise: [M, 6], standard normal."""
    means, scales = gaussians["means"][rows], gaussians["scales"][rows].exp()
    both = noise.to(means).reshape(-1, 2, 3).movedim(1, 0)
    offsets = torch.einsum("nij,bnj->bni", rotation_matrices(gaussians["quats"][rows]), both * scales)
    return list(means + offsets)
