"""Sums of gradients over replicas: exact, rounded to bfloat16, or as a low-rank product.

All ranks get the same bits: each part of the sum is computed by one rank, or by an all-reduce.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..config.models import Strategy
from .collectives import Communicator

#: PowerSGD pays where the factors are less than this share of the matrix (PyTorch's `min_compression_rate`: 2).
MAX_FACTOR_SHARE = 0.5
_SEED = 20191  # of the first right factor; any fixed number works


class Exchange(ABC):
    """Sum of tensors over ranks."""

    #: False if something is carried from step to step for every row: then all rows are in every message.
    row_by_row = True

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm

    @abstractmethod
    def start(self, name: str, gradient: Tensor) -> Callable[[], Tensor]:
        """Start to sum a gradient over ranks; the result, when called, returns the sum.

        Args:
            name: of the parameter, or of several joined by +.
            gradient: contiguous float32 or float64, one parameter's [N, ...] or several parameters' concatenated [M].
        """

    def by_itself(self, gradient: Tensor) -> bool:
        """Return True if this gradient, float [N, ...], must be sent alone and in its own shape."""
        return False

    def reset_error_feedback(self) -> None:  # noqa: B027 (most carry nothing)
        """Drop what is carried from step to step."""


class Exact(Exchange):
    """All-reduce in the gradient's own precision; on CPUs in the order of the tree of `Gaussians.activated_per_view`.

    With two ranks every all-reduce has that order. With more, gloo's ring adds each part in another order, so a
    reduce-scatter and an all-gather of the same bytes replace it. On GPUs the kernels' atomic additions have no fixed
    order, and NCCL's all-reduce is the fastest way.
    """

    def __init__(self, comm: Communicator, what: str = "gradients") -> None:
        """what: travels; for the meter."""
        super().__init__(comm)
        self._op = f"all_reduce({what})"

    def start(self, name: str, gradient: Tensor) -> Callable[[], Tensor]:
        comm, op = self.comm, self._op
        if comm.world_size < 3 or gradient.device.type != "cpu":
            handle = comm.start_all_reduce(gradient, name=op)

            def finish() -> Tensor:
                handle.wait()
                return gradient

            return finish

        flat = gradient.reshape(-1)
        parts, rows = _parts(flat, comm.world_size)
        received, under_way = comm.start_exchange(parts, rows, rows, op)

        def gather() -> Tensor:
            under_way.wait()
            mine = _tree_sum(received.reshape(comm.world_size, -1))
            return comm.all_gather(mine, op).reshape(-1)[: len(flat)].reshape(gradient.shape)

        return gather


class Bf16(Exchange):
    """Reduce-scatter and all-gather that carry bfloat16, half the bytes; the sum itself is float32.

    Not PyTorch's `bf16_compress_hook`: gloo does not reduce bfloat16, and summing in bfloat16 loses what small
    gradients add to large ones.
    """

    def start(self, name: str, gradient: Tensor) -> Callable[[], Tensor]:
        comm, flat = self.comm, gradient.reshape(-1)
        parts, _ = _parts(flat.bfloat16(), comm.world_size)
        # Sent as bytes, which every backend moves.
        sent, rows = _parts(parts.view(torch.uint8), comm.world_size)
        received, handle = comm.start_exchange(sent, rows, rows, "all_to_all(bf16 gradients)")

        def finish() -> Tensor:
            handle.wait()
            mine = received.view(torch.bfloat16).reshape(comm.world_size, -1).float().sum(0).bfloat16()
            every = comm.all_gather(mine.view(torch.uint8), "all_gather(bf16 gradients)")
            summed = every.reshape(-1).view(torch.bfloat16)[: len(flat)]
            return summed.to(gradient.dtype).reshape(gradient.shape)

        return finish


class PowerSgd(Exchange):
    """Low-rank product of two thin factors with error feedback (Vogels et al., PowerSGD, NeurIPS 2019, algorithm 1).

    Gradients that are thin already (all but `shN`, at the usual ranks) travel as they are. The error of the product
    is added to the next step's gradient. This error feedback is reset when a checkpoint is made and when the set of
    Gaussians changes, so that a resumed run equals an uninterrupted one.
    """

    row_by_row = False

    def __init__(self, comm: Communicator, rank: int) -> None:
        super().__init__(comm)
        self.rank, self._exact = rank, Exact(comm)
        self._error: dict[str, Tensor] = {}
        self._right: dict[str, Tensor] = {}

    def reset_error_feedback(self) -> None:
        self._error.clear()
        self._right.clear()

    def by_itself(self, gradient: Tensor) -> bool:
        n, m = len(gradient), gradient[0].numel() if len(gradient) else 0
        return n > 0 and (n + m) * self.rank <= MAX_FACTOR_SHARE * n * m

    def start(self, name: str, gradient: Tensor) -> Callable[[], Tensor]:
        if not self.by_itself(gradient):
            return self._exact.start(name, gradient)
        matrix = gradient.flatten(1)
        m = matrix.shape[1]
        if name in self._error and self._error[name].shape == matrix.shape:
            matrix = matrix + self._error[name]
            right = self._right[name]
        else:
            generator = torch.Generator().manual_seed(_SEED)
            right = torch.randn(m, self.rank, generator=generator).to(matrix)
        left = matrix @ orthonormalise(right)
        handle = self.comm.start_all_reduce(left, name="all_reduce(low-rank gradients)")

        def finish() -> Tensor:
            handle.wait()
            basis = orthonormalise(left)
            mine = matrix.T @ basis
            self._error[name] = matrix - basis @ mine.T
            self.comm.all_reduce(mine, name="all_reduce(low-rank gradients)")
            self._right[name] = mine
            return (basis @ mine.T).reshape(gradient.shape)

        return finish


def _parts(flat: Tensor, num_ranks: int) -> tuple[Tensor, list[int]]:
    """Pad a flat tensor with zeros to equal parts for all ranks; return it and the parts' lengths."""
    part = -(-len(flat) // num_ranks)
    missing = part * num_ranks - len(flat)
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat), [part] * num_ranks


def _tree_sum(rows: Tensor) -> Tensor:
    """Sum [R, M] over rows to [M]: neighbours are added, then neighbouring sums."""
    while len(rows) > 1:
        pairs = rows[: len(rows) // 2 * 2]
        rows = torch.cat([pairs[0::2] + pairs[1::2], rows[len(pairs) :]])
    return rows[0]


def orthonormalise(columns: Tensor) -> Tensor:
    """Orthonormalise the columns of a float [N,R] (modified Gram-Schmidt); one that depends on others becomes zero."""
    basis: list[Tensor] = []
    for column in columns.unbind(1):
        length = column.norm()
        for other in basis:
            column = column - (other @ column) * other
        rest = column.norm()
        usable = rest > 1e-6 * length
        basis.append(torch.where(usable, column / torch.where(usable, rest, 1.0), torch.zeros_like(column)))
    return torch.stack(basis, 1)


def make_exchange(strategy: Strategy, comm: Communicator) -> Exchange:
    if strategy.compression == "bf16":
        return Bf16(comm)
    if strategy.compression == "powersgd":
        return PowerSgd(comm, strategy.powersgd_rank)
    return Exact(comm)
