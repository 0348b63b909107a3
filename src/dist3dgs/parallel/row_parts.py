"""Parts of the rows of replicas, one per rank: sums of gradients arrive in parts, parts of parameters are put together.

An all-reduce is both, one after the other. Between them a rank may update its part alone, with a part of Adam's moments
(ZeRO-1: Rajbhandari et al. 2020): the bytes are those of the all-reduce. Between the ranks of one node everything
travels through shared memory, else through the process group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .collectives import Communicator
from .shared_memory import SharedMemory, exchange

#: Parts begin at multiples of this many rows, and so with a whole vector register of every parameter: the fused Adam
#: rounds what is left after the last whole one differently, and that must be the same on any number of ranks.
ALIGNED_ROWS = 16
_ALIGNED_BYTES = 64


class RowParts:
    """Contiguous parts of N rows, one per rank."""

    def __init__(self, comm: Communicator, memory: SharedMemory | None) -> None:
        """memory: that the ranks share; None for the process group."""
        self.comm, self.memory = comm, memory

    def bounds(self, num_rows: int) -> list[tuple[int, int]]:
        """Return first row and end of every rank's part."""
        part = -(-num_rows // (self.comm.world_size * ALIGNED_ROWS)) * ALIGNED_ROWS
        return [(min(r * part, num_rows), min((r + 1) * part, num_rows)) for r in range(self.comm.world_size)]

    def own(self, num_rows: int) -> slice:
        """Return the rows of this rank."""
        return slice(*self.bounds(num_rows)[self.comm.rank])

    @torch.no_grad()
    def reduce_scatter(self, tensors: Sequence[Tensor], name: str = "reduce_scatter") -> None:
        """Sum this rank's rows over all ranks, in place, along the tree of `compression.Exact`. Collective.

        Args:
            tensors: float [N, ...] each, of the same shapes on all ranks; what the other rows hold afterwards is
                undefined.
            name: under which bytes and seconds are booked.
        """
        bounds, me, world = self.bounds(len(tensors[0])), self.comm.rank, range(self.comm.world_size)
        pieces = [t[slice(*bounds[r])].reshape(-1) for r in world if r != me for t in tensors]
        width = sum(t.shape[1:].numel() for t in tensors)
        plan = [[0 if q == r else width * (bounds[q][1] - bounds[q][0]) for q in world] for r in world]
        received = exchange(self.comm, self.memory, pieces, plan, tensors[0], name)
        mine = [t[slice(*bounds[me])] for t in tensors]
        _add(mine, [_taken_apart(message, mine) for message in received.values()], me)

    @torch.no_grad()
    def all_gather(self, tensors: Sequence[Tensor], name: str = "all_gather") -> None:
        """Fill in the other ranks' rows, in place. Collective.

        Args:
            tensors: [N, ...] each, of any dtype and of the same shapes on all ranks.
            name: under which bytes and seconds are booked.
        """
        bounds, me, world = self.bounds(len(tensors[0])), self.comm.rank, range(self.comm.world_size)
        first, end = bounds[me]
        others = [r for r in world if r != me]
        if self.memory is not None and self.memory.reserve(_size(tensors)):
            num_bytes = sum(t[first:end].nbytes for t in tensors) * len(others)
            with self.comm.booked(name, num_bytes):
                for t, shared in zip(tensors, _laid_out(self.memory.half(me), tensors), strict=True):
                    shared[first:end].copy_(t[first:end])
                self.comm.meet()
                for r in others:
                    rows = slice(*bounds[r])
                    for t, shared in zip(tensors, _laid_out(self.memory.half(r), tensors), strict=True):
                        t[rows].copy_(shared[rows])
            return
        for t in tensors:
            width, mine = t[:1].numel(), t[first:end].reshape(-1)
            send = [0 if r == me else len(mine) for r in world]
            receive = [0 if r == me else (bounds[r][1] - bounds[r][0]) * width for r in world]
            received = self.comm.exchange(mine.repeat(len(others)), send, receive, name)
            for r, piece in zip(others, received.split([receive[r] for r in others]), strict=True):
                there = t[slice(*bounds[r])]
                there.copy_(piece.reshape(there.shape))

    def whole(self, part: Tensor, num_rows: int, name: str) -> Tensor:
        """Put a tensor of `num_rows` rows together from all ranks' parts. Collective.

        part: this rank's, [own rows, ...], of any dtype. name: under which bytes and seconds are booked.
        """
        out = part.new_empty((num_rows, *part.shape[1:]))
        out[self.own(num_rows)] = part
        self.all_gather([out], name)
        return out


def _add(mine: Sequence[Tensor], others: Sequence[Sequence[Tensor]], rank: int) -> None:
    """Add the other ranks' tensors, listed in rank order, to those of this rank."""
    for i, t in enumerate(mine):
        level = [part[i] for part in others]
        if len(level) == 1:  # two numbers have one sum, in whatever order
            t.add_(level[0])
            continue
        level.insert(rank, t)
        while len(level) > 1:
            pairs = [a + b for a, b in zip(level[0::2], level[1::2], strict=False)]
            level = pairs + level[2 * len(pairs) :]
        t.copy_(level[0])


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _size(tensors: Sequence[Tensor]) -> int:
    """Return how many bytes `_laid_out` needs."""
    return sum(_padded(t.nbytes) for t in tensors)


def _laid_out(memory: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Lay tensors of the shapes and dtypes of `tensors` out in memory, uint8 [at least `_size`]."""
    start, found = 0, []
    for t in tensors:
        found.append(memory[start : start + t.nbytes].view(t.dtype).view(t.shape))
        start += _padded(t.nbytes)
    return found


def _taken_apart(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Take a message apart into tensors of the shapes of `like`."""
    parts = flat.split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]
