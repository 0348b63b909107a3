"""Placement of shards in space: nearby Gaussians on one rank, views on the rank that holds most of what they see.

Strided shards send (p-1)/p of what a view sees. Shards by space, cut from a Morton curve (Morton 1966), send less where
views see a part of the scene; which rank renders a view is decided in every step, from the exchanged counts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .collectives import Communicator

#: Levels of the curve: 2^10 cells along each axis.
_BITS = 10


def morton_order(means: Tensor) -> Tensor:
    """Return the permutation, int64 [N], that sorts points along a Morton curve; ties by index.

    Coordinates are replaced by their ranks first, so that every cut is a median: a few far points would otherwise
    leave all others in one cell.

    means: [N, 3] float, on any device.
    """
    n = len(means)
    code = torch.zeros(n, dtype=torch.int64, device=means.device)
    for axis in range(3):
        place = torch.empty_like(code)
        place[torch.argsort(means[:, axis], stable=True)] = torch.arange(n, device=means.device)
        cell = place * 2**_BITS // max(1, n)
        for bit in range(_BITS):
            code |= ((cell >> bit) & 1) << (3 * bit + 2 - axis)
    return torch.argsort(code, stable=True)


def owners_in_space(
    comm: Communicator, means: Tensor, shards: Sequence[int], targets: Sequence[int]
) -> Tensor:
    """Return the rank that each of this rank's Gaussians belongs to, int64 [N], cutting the curve anew. Collective.

    Args:
        comm: the ranks.
        means: this rank's, [N, 3] float.
        shards: rows per rank now.
        targets: rows per rank wanted, of the same sum.
    """
    padded = means.new_zeros((max(shards), 3))
    padded[: len(means)] = means
    every = comm.all_gather(padded, "all_gather(means)")
    order = morton_order(torch.cat([part[:n] for part, n in zip(every, shards, strict=True)]))
    owner = torch.empty_like(order)
    owner[order] = torch.repeat_interleave(
        torch.arange(len(targets), device=means.device), torch.tensor(targets, device=means.device)
    )
    first = sum(shards[: comm.rank])
    return owner[first : first + shards[comm.rank]]


def assign_views(visible: Sequence[Sequence[int]], per_rank: Sequence[int]) -> list[int]:
    """Assign views to ranks so that most of what they see is there; each rank gets its number of views.

    Args:
        visible: by rank, how many of its Gaussians each view sees.
        per_rank: number of views of each rank; their sum is the number of views.

    Returns:
        The rank of each view.
    """
    from scipy.optimize import linear_sum_assignment

    places = [rank for rank, count in enumerate(per_rank) for _ in range(count)]
    views, chosen = linear_sum_assignment([[-visible[r][v] for r in places] for v in range(len(places))])
    owners = [0] * len(places)
    for view, place in zip(views.tolist(), chosen.tolist(), strict=True):
        owners[view] = places[place]
    return owners
