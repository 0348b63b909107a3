"""Add and remove Gaussians: `decide` returns the change, the optimizer applies it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...config.models import Densification
from ..gaussians import Gaussians
from . import default, mcmc
from .change import Change
from .default import reset_opacities
from .mcmc import add_noise
from .statistics import Statistics

__all__ = ["Change", "Statistics", "add_noise", "decide", "reset_opacities"]


def decide(
    gaussians: Gaussians,
    lineage: Tensor,
    statistics: Statistics,
    settings: Densification,
    *,
    extent: float,
    prune_large: bool,
    choose: Callable[[Tensor, Tensor], Tensor],
    max_gaussians: int,
    seed: int,
    step: int,
    generator: torch.Generator,
) -> Change:
    """Decide what the settings' kind of densification changes now.

    Args:
        gaussians: those this rank holds, N of them.
        lineage: int64 [N], names of the Gaussians.
        statistics: over all views of all ranks.
        settings: kind and thresholds.
        extent: scene radius, world units.
        prune_large: also prune Gaussians that are large for the scene (`default` only).
        choose: given [N] float gradients and [N] bool candidates, returns the [N] bool that may grow (`default`
            only).
        max_gaussians: most Gaussians this rank may hold afterwards (`mcmc` only).
        seed, step: of the run.
        generator: on the CPU (`mcmc` only).
    """
    if settings.kind == "mcmc":
        return mcmc.densify(
            gaussians, lineage, settings, max_gaussians=max_gaussians, step=step, generator=generator
        )
    return default.densify(
        gaussians,
        lineage,
        statistics,
        settings,
        extent=extent,
        prune_large=prune_large,
        choose=choose,
        seed=seed,
        step=step,
    )
