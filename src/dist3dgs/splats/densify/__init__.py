"""Where Gaussians come and go: `decide` says what changes, the optimiser applies it."""

import torch

from ...spec import Densification
from ..gaussians import Gaussians
from . import default, mcmc
from .change import Change
from .default import reset_opacities
from .mcmc import add_noise
from .statistics import Statistics

__all__ = ["Change", "Statistics", "add_noise", "decide", "reset_opacities"]


def decide(
    gaussians: Gaussians,
    statistics: Statistics,
    settings: Densification,
    *,
    extent: float,
    prune_large: bool,
    max_gaussians: int,
    generator: torch.Generator,
) -> Change:
    """The change that the settings' kind of densification wants now; arguments as in `default.densify`."""
    if settings.kind == "mcmc":
        return mcmc.densify(gaussians, settings, max_gaussians=max_gaussians, generator=generator)
    return default.densify(
        gaussians,
        statistics,
        settings,
        extent=extent,
        prune_large=prune_large,
        max_gaussians=max_gaussians,
        generator=generator,
    )
