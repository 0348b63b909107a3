"""Where Gaussians come and go: `decide` says what changes, the optimiser applies it."""

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
    """The change that the settings' kind of densification wants now; arguments as in `default` and `mcmc`."""
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
