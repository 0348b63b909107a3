"""3DGS as Markov chain Monte Carlo (Kheradmand et al. 2024): relocation, growth and noise for clone and split."""

import math

import torch
from torch import Tensor

from ...config.models import Densification
from ..gaussians import Gaussians
from ..render.api import QUATERNION_MIN
from . import lineage as names
from .change import Change

#: Growth per densification, as in the authors' implementation.
GROWTH = 1.05
#: Largest number of Gaussians that one is split into (binomials are tabulated up to here).
MAX_COPIES = 51
_OPACITY_MIN, _OPACITY_MAX = 0.005, 1 - torch.finfo(torch.float32).eps


def relocated(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Compute opacity and scale of each of n coincident copies that together look like one Gaussian (eq. 9).

    opacities: [M] in 0..1; scales: [M,3] linear; copies: int64 [M], n >= 1. Computed in float64: the sum
    alternates.
    """
    o, n = opacities.double(), copies.clamp(1, MAX_COPIES)
    new = 1 - (1 - o) ** (1.0 / n)
    total = torch.zeros_like(o)
    for i in range(1, int(n.max()) + 1 if len(n) else 1):
        inner = torch.zeros_like(o)
        for k in range(i):
            inner += math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new ** (k + 1)
        total += torch.where(n >= i, inner, 0.0)
    factor = torch.where(n > 1, o / total.clamp_min(1e-12), 1.0)
    return new.to(opacities), (scales.double() * factor[:, None]).to(scales)


@torch.no_grad()
def densify(
    gaussians: Gaussians,
    lineage: Tensor,
    settings: Densification,
    *,
    max_gaussians: int,
    step: int,
    generator: torch.Generator,
) -> Change:
    """Move dead Gaussians onto live ones drawn by opacity, then add up to 5 % more the same way.

    lineage: int64 [N], names of the Gaussians. max_gaussians: growth stops here. step: of the run. generator: on the
    CPU, in the same state on all ranks that hold the same Gaussians.
    """
    opacity = torch.sigmoid(gaussians["opacities"])
    dead = torch.where(opacity <= settings.prune_opacity)[0]
    alive = torch.where(opacity > settings.prune_opacity)[0]
    n = gaussians.num_gaussians
    num_added = max(0, min(max_gaussians, int(GROWTH * n)) - n) if len(alive) else 0
    if not len(alive):
        dead = dead[:0]
    num_drawn = len(dead) + num_added
    parameters = {name: t.clone() for name, t in gaussians.items()}
    origin = torch.arange(n, device=gaussians.device)
    if num_drawn:
        source = alive[_draw(opacity[alive], num_drawn, generator)]
        copies = torch.bincount(source, minlength=n)
        hit = torch.where(copies > 0)[0]
        new_opacity, new_scale = relocated(opacity[hit], gaussians["scales"][hit].exp(), copies[hit] + 1)
        parameters["opacities"][hit] = torch.logit(new_opacity.clamp(_OPACITY_MIN, _OPACITY_MAX))
        parameters["scales"][hit] = new_scale.log()
        for t in parameters.values():
            t[dead] = t[source[: len(dead)]]
        parameters = {name: torch.cat([t, t[source[len(dead) :]]]) for name, t in parameters.items()}
        # Relocated Gaussians and those at their new places get fresh moments: the old ones are of another loss surface.
        origin[hit], origin[dead] = -1, -1
        origin = torch.cat([origin, origin.new_full((num_added,), -1)])
        # Several may have one source: they are told apart by their number.
        added = lineage[source[len(dead) :]] ^ names.founders(num_added, lineage.device)
        lineage = torch.cat([lineage, names.children(added, step, 0)])
    return Change(parameters, origin, lineage, {"relocated": len(dead), "added": num_added})


@torch.no_grad()
def add_noise(
    gaussians: Gaussians, lineage: Tensor, lr_means: float, settings: Densification, *, seed: int, step: int
) -> None:
    """Perturb the means in place along their own covariance, more strongly where more transparent (eq. 8).

    lineage: int64 [N], names of the Gaussians: the noise is drawn by them, hence the same on any number of ranks. seed,
    step: of the run.
    """
    noise = names.normals(lineage, 3, seed, step).to(gaussians["means"])
    gate = torch.sigmoid(gaussians["opacities"]).sub_(settings.prune_opacity).mul_(-100).sigmoid_()
    noise = noise * gate.mul_(settings.noise_lr * lr_means)[:, None]
    # R S S R^T times the noise as two rotations of vectors: building the matrices would move three times the memory.
    quats = gaussians["quats"]
    turn = quats * (2 / (quats * quats).sum(-1, keepdim=True).clamp_min(QUATERNION_MIN**2))
    noise = _rotate(quats, turn, noise, inverse=True).mul_((gaussians["scales"] * 2).exp_())
    gaussians["means"].add_(_rotate(quats, turn, noise))


def _rotate(quats: Tensor, turn: Tensor, vectors: Tensor, inverse: bool = False) -> Tensor:
    """Rotate vectors [N,3] by quaternions [N,4], wxyz of any length, or back: v + 2 (w u x v + u x (u x v)) / |q|^2.

    turn: [N,4], the quaternions times 2 / |q|^2.
    """
    moved = torch.linalg.cross(quats[:, 1:], vectors)
    along = torch.linalg.cross(turn[:, 1:], moved)
    return torch.addcmul(vectors, turn[:, :1], moved, value=-1 if inverse else 1).add_(along)


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` indices drawn with replacement in proportion to `weights`, by inversion on the CPU.

    Not torch.multinomial: it takes at most 2^24 weights and differs between devices.
    """
    cumulative = weights.double().cpu().cumsum(0)
    at = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, at).clamp_max(len(weights) - 1).to(weights.device)
