"""How gradients travel between replicas: as they are, rounded to bfloat16, or as a low-rank product.

Every way ends with the same bits on all ranks: what is received is one rank's result or a reduction all share.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..config.models import Strategy
from .collectives import Communicator

#: PowerSGD pays where the factors are less than this share of the matrix (PyTorch's `min_compression_rate`: 2).
MAX_FACTOR_SHARE = 0.5
_SEED = 20191  # of the first right factor; any fixed number does


class Exchange(ABC):
    """Sums tensors over ranks."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm

    @abstractmethod
    def start(self, name: str, gradient: Tensor) -> Callable[[], Tensor]:
        """Begin to sum the contiguous `gradient`, which `name` stands for; calling the result gives the sum.

        gradient: one parameter's [N, ...], or several parameters' put end to end [M].
        """

    def by_itself(self, gradient: Tensor) -> bool:
        """Whether a parameter's gradient must travel alone, in its own shape."""
        return False

    def reset_error_feedback(self) -> None:  # noqa: B027 (most carry nothing)
        """Drop what is carried from step to step."""


class Exact(Exchange):
    """All-reduce in the gradient's own precision; on CPUs along the tree of `Gaussians.activated_per_view`.

    Of two ranks every all-reduce is that. Of more, a ring (gloo) adds each part in an order of its own: there the two
    halves of an all-reduce, a reduce-scatter and an all-gather of the same bytes, are done by ourselves. On GPUs the
    kernels' own atomic additions have no order, and NCCL's all-reduce is the fastest way.
    """

    def start(self, name: str, gradient: Tensor) -> Callable[[], Tensor]:
        comm, op = self.comm, "all_reduce(gradients)"
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
    """Half the bytes: both halves of a reduce-scatter and all-gather carry bfloat16, the sum itself is float32.

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
    """A rank-r product of two thin factors, with error feedback (Vogels et al., PowerSGD, NeurIPS 2019, algorithm 1).

    Gradients that are thin already (all but `shN`, at the usual ranks) travel as they are. What the product leaves
    out is added to the next step's gradient. That memory is dropped when a checkpoint is made and when Gaussians
    come or go, so that a resumed run equals one that went on.
    """

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
        left = matrix @ _orthogonal(right)
        handle = self.comm.start_all_reduce(left, name="all_reduce(low-rank gradients)")

        def finish() -> Tensor:
            handle.wait()
            basis = _orthogonal(left)
            mine = matrix.T @ basis
            self._error[name] = matrix - basis @ mine.T
            self.comm.all_reduce(mine, name="all_reduce(low-rank gradients)")
            self._right[name] = mine
            return (basis @ mine.T).reshape(gradient.shape)

        return finish


def _parts(flat: Tensor, num_ranks: int) -> tuple[Tensor, list[int]]:
    """The flat tensor with zeros at its end, so that all ranks' parts are equally long, and their lengths."""
    part = -(-len(flat) // num_ranks)
    missing = part * num_ranks - len(flat)
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat), [part] * num_ranks


def _tree_sum(rows: Tensor) -> Tensor:
    """[R, M] -> [M]: neighbours are added, then neighbouring sums."""
    while len(rows) > 1:
        pairs = rows[: len(rows) // 2 * 2]
        rows = torch.cat([pairs[0::2] + pairs[1::2], rows[len(pairs) :]])
    return rows[0]


def _orthogonal(columns: Tensor) -> Tensor:
    """Orthonormal columns of the same span (modified Gram-Schmidt); a column with nothing new in it becomes zero."""
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
