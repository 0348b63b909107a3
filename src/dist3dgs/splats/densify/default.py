"""Adaptive density control: clone, split, prune, opacity reset (Kerbl et al. 2023, section 5)."""

import math

import torch
from torch import Tensor

from ...spec import Densification
from ..gaussians import Gaussians
from .change import Change
from .statistics import Statistics

#: A split Gaussian's two halves have its size divided by this (reference implementation: 0.8 N with N = 2).
SPLIT_SHRINK = 1.6


def rotation_matrices(quats: Tensor) -> Tensor:
    """[M,4] wxyz quaternions of any length -> [M,3,3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


@torch.no_grad()
def densify(
    gaussians: Gaussians,
    statistics: Statistics,
    settings: Densification,
    *,
    extent: float,
    prune_large: bool,
    max_gaussians: int,
    generator: torch.Generator,
) -> Change:
    """Clone small and split large Gaussians that the loss pulls; prune faint (and, on demand, huge) ones.

    statistics: over all views of all ranks. extent: scene radius, world units. max_gaussians: no growth beyond;
    the most strongly pulled win. generator: on the CPU, in the same state on all ranks that hold the same
    Gaussians, so that they decide the same.
    """
    grads = statistics.mean_gradient()
    largest = gaussians["scales"].amax(-1).exp()
    grow = grads > settings.grad_threshold
    room = max(0, max_gaussians - gaussians.num_gaussians)
    if int(grow.sum()) > room:
        grow = torch.zeros_like(grow).index_fill_(0, _strongest(grads, room), True)
    small = largest <= settings.scale_threshold * extent
    clone, split = grow & small, grow & ~small
    prune = torch.sigmoid(gaussians["opacities"]) < settings.prune_opacity
    if prune_large:
        prune |= largest > settings.prune_scale * extent
    keep = torch.where(~split & ~prune)[0]
    cloned, halved = torch.where(clone & ~prune)[0], torch.where(split & ~prune)[0]

    parts = {name: [t[keep], t[cloned], t[halved], t[halved]] for name, t in gaussians.items()}
    parts["means"][2:] = _split_means(gaussians, halved, generator)
    smaller = gaussians["scales"][halved] - math.log(SPLIT_SHRINK)
    parts["scales"][2:] = [smaller, smaller]
    num_new = len(cloned) + 2 * len(halved)
    return Change(
        parameters={name: torch.cat(p) for name, p in parts.items()},
        origin=torch.cat([keep, keep.new_full((num_new,), -1)]),
        counts={"cloned": len(cloned), "split": len(halved), "pruned": int(prune.sum())},
    )


@torch.no_grad()
def reset_opacities(gaussians: Gaussians, settings: Densification) -> Change:
    """Make every Gaussian nearly transparent, so that those which nothing needs stay so and are pruned."""
    ceiling = torch.logit(torch.tensor(2 * settings.prune_opacity)).item()
    parameters = {name: t.clone() for name, t in gaussians.items()}
    parameters["opacities"].clamp_(max=ceiling)
    index = torch.arange(gaussians.num_gaussians, device=gaussians.device)
    return Change(parameters, index, {}, reset_moments=("opacities",))


def _split_means(gaussians: Gaussians, rows: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Two random points from each of the given Gaussians' densities."""
    means, scales = gaussians["means"][rows], gaussians["scales"][rows].exp()
    noise = torch.randn(2, len(rows), 3, generator=generator, dtype=torch.float32).to(means)
    offsets = torch.einsum("nij,bnj->bni", rotation_matrices(gaussians["quats"][rows]), noise * scales)
    return list(means + offsets)


def _strongest(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest values; equal ones in index order, on any device."""
    return torch.argsort(values, descending=True, stable=True)[:count]
