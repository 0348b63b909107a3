"""Add and remove Gaussians: `default`, `mcmc` and `budget` decide on a change, the optimizer applies it."""

from . import budget, default, mcmc
from .change import Change
from .default import reset_opacities
from .mcmc import add_noise
from .statistics import Statistics

__all__ = ["Change", "Statistics", "add_noise", "budget", "default", "mcmc", "reset_opacities"]
