"""Arithmetic of shards: how rows are shared out, and which move when the shares have drifted apart."""

from collections.abc import Sequence

import torch
from torch import Tensor


def even(total: int, num_ranks: int) -> list[int]:
    """Rows per rank, equal but for one."""
    return [total // num_ranks + (r < total % num_ranks) for r in range(num_ranks)]


def strided(total: int, num_ranks: int) -> Tensor:
    """int64 [total]: order in which rank 0's even share comes first, and neighbours lie in different shares."""
    index = torch.arange(total)
    return torch.cat([index[r::num_ranks] for r in range(num_ranks)])


def plan_moves(sizes: Sequence[int]) -> dict[tuple[int, int], int]:
    """Rows to move between ranks, {(from, to): number}, to make the shares even with the fewest rows moved."""
    targets = even(sum(sizes), len(sizes))
    surplus = [[r, n - t] for r, (n, t) in enumerate(zip(sizes, targets, strict=True)) if n > t]
    moves: dict[tuple[int, int], int] = {}
    for taker, (n, t) in enumerate(zip(sizes, targets, strict=True)):
        missing = t - n
        while missing > 0:
            giver, left = surplus[-1]
            count = min(left, missing)
            moves[giver, taker] = count
            missing -= count
            surplus[-1][1] -= count
            if surplus[-1][1] == 0:
                surplus.pop()
    return moves
