"""The Gaussians: six parameter tensors, as they are optimised and stored (Kerbl et al. 2023).

========== ============ ==========================================================
name       shape        meaning
========== ============ ==========================================================
means      [N, 3]       centres, in the normalised world
scales     [N, 3]       log of the standard deviations
quats      [N, 4]       rotation, wxyz, not normalised
opacities  [N]          logit of the opacity
sh0        [N, 1, 3]    degree-0 spherical-harmonics coefficients (RGB)
shN        [N, 15, 3]   degrees 1 to 3
========== ============ ==========================================================

All float32 (float64 in tests), contiguous.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")
#: Value of the constant spherical-harmonics basis function, 1 / (2 sqrt(pi)).
SH_C0 = 0.28209479177387814
FLOATS_PER_GAUSSIAN = 59
Inputs = dict[str, Tensor | tuple[Tensor, Tensor]]


class Gaussians(Mapping[str, Tensor]):
    """The parameters by name. Behaves as a read-only mapping; `replace` swaps all of them at once."""

    def __init__(self, parameters: Mapping[str, Tensor], requires_grad: bool = True) -> None:
        if tuple(parameters) != NAMES:
            raise ValueError(f"expected parameters {NAMES}, got {tuple(parameters)}")
        sizes = {len(t) for t in parameters.values()}
        if len(sizes) != 1:
            raise ValueError(f"parameters differ in the number of Gaussians: {sizes}")
        self._parameters = {k: t.detach().requires_grad_(requires_grad) for k, t in parameters.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def num_gaussians(self) -> int:
        return len(self._parameters["means"])

    @property
    def device(self) -> torch.device:
        return self._parameters["means"].device

    def activated(self) -> "Inputs":
        """The renderer's inputs: linear scales, opacities in 0..1, `colors` as (sh0, shN)."""
        return Gaussians.activate(self)

    @staticmethod
    def activate(parameters: Mapping[str, Tensor]) -> "Inputs":
        return {
            "means": parameters["means"],
            "quats": parameters["quats"],
            "scales": torch.exp(parameters["scales"]),
            "opacities": torch.sigmoid(parameters["opacities"]),
            "colors": (parameters["sh0"], parameters["shN"]),
        }

    def activated_per_view(self, num_views: int) -> list["Inputs"]:
        """As `activated`, once for each view of a batch; the views' gradients are added in pairs, pairs of pairs, ...

        Along this one tree, wherever its branches were computed: 4 views on 1, 2 or 4 ranks give the same sum to the
        last bit, so that no rounding depends on the number of ranks. In the order of backward passes it would.
        """
        taps = {name: _branches(t, num_views) for name, t in self.items()}
        return [
            Gaussians.activate({name: views[i] for name, views in taps.items()}) for i in range(num_views)
        ]

    def zero_grad(self) -> None:
        for t in self.values():
            t.grad = None


def _branches(tensor: Tensor, count: int) -> list[Tensor]:
    """`count` aliases of the tensor, leaves of a binary tree whose every node adds its two branches' gradients."""
    if count < 2:
        return [tensor] * count
    half = (count + 1) // 2
    return _branches(tensor.view_as(tensor), half) + _branches(tensor.view_as(tensor), count - half)


def mean_neighbour_distance(points: Tensor, k: int = 3) -> Tensor:
    """Root mean square distance of every point to its k nearest others.

    points: [P, 3] float. Returns [P], at least 1e-7. In float64 from differences of coordinates: the product form that
    `torch.cdist` uses loses the distance of neighbours far from the origin. A k-d tree on the CPU: O(P log P) time,
    a few hundred bytes per point. With fewer than two points: 1.
    """
    if len(points) < 2:
        return torch.ones(len(points), dtype=points.dtype, device=points.device)
    from scipy.spatial import KDTree

    places = points.detach().cpu().double().numpy()
    # The nearest is the point itself, or one in the same place. Cut at the middle of each box instead of at the
    # median, the tree is built in half the time and gives the same distances.
    distances, _ = KDTree(places, balanced_tree=False).query(places, min(k + 1, len(points)))
    mean = torch.from_numpy(np.sqrt(np.square(distances[:, 1:]).mean(1)))
    return mean.clamp_min(1e-7).to(points)


def initial_gaussians(
    points: Tensor, colors: Tensor, *, init_opacity: float, init_scale: float
) -> dict[str, Tensor]:
    """Gaussians from structure-from-motion points, as in the reference implementation.

    points: [P, 3] float32; colors: [P, 3] float32 in 0..1. Isotropic, as large as the distance to the
    neighbours times `init_scale`, no rotation, grey-free SH of degree 0.
    """
    n = len(points)
    quats = torch.zeros(n, 4, dtype=points.dtype, device=points.device)
    quats[:, 0] = 1
    return {
        "means": points.contiguous().clone(),
        "scales": torch.log(mean_neighbour_distance(points) * init_scale)[:, None].repeat(1, 3),
        "quats": quats,
        "opacities": torch.logit(torch.full((n,), init_opacity, dtype=points.dtype, device=points.device)),
        "sh0": ((colors - 0.5) / SH_C0)[:, None].contiguous(),
        "shN": torch.zeros(n, 15, 3, dtype=points.dtype, device=points.device),
    }


def canonical_order(points: Tensor) -> Tensor:
    """Permutation that sorts points by x, then y, then z: the same for any order they were read in."""
    order = torch.arange(len(points), device=points.device)
    for axis in (2, 1, 0):
        order = order[torch.argsort(points[order, axis], stable=True)]
    return order


def thinned(num_points: int, most: int, generator: torch.Generator) -> Tensor:
    """int64 [most]: ascending places of a random part of `num_points`. generator: on the CPU."""
    return torch.randperm(num_points, generator=generator)[:most].sort().values
