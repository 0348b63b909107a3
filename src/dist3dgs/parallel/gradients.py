"""Sum of gradients between replicas: the rows that travel, and the messages they travel in.

A view changes the Gaussians that it sees, often a part of all. With `gradient_rows: touched`, and `auto` where few are
touched, ranks first tell each other which rows of their gradients are not zero, one bit per Gaussian, and sum the
union alone. The other rows are zero on every rank, and so is their sum: the result has the same bits.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..config.models import Strategy
from ..splats.gaussians import Gaussians
from .collectives import Communicator
from .compression import make_exchange
from .row_parts import RowParts
from .strategy import travelling

#: Gradients are put together up to this size: six small all-reduces take twice as long as one (gloo), and a copy of
#: large ones would cost memory. PyTorch's DistributedDataParallel has the same default.
BUCKET_BYTES = 25 * 2**20
#: `auto` sends touched rows alone up to this share of all: above it, finding, gathering and scattering them takes more
#: processor time than a shorter message over loopback saves (docs/benchmarks/distributed.md).
AUTO_SHARE = 0.25
#: Steps after which `auto` looks again where all rows travel.
LOOK_AGAIN_STEPS = 50


class GradientSum:
    """Sums the gradients of parameters over ranks that hold the same Gaussians."""

    def __init__(
        self, comm: Communicator, strategy: Strategy, parts: RowParts | None = None, whole: bool = True
    ) -> None:
        """
        Args:
            comm: the ranks.
            strategy: settings.
            parts: sums all rows exactly, in parts; None for the process group's all-reduce.
            whole: with `parts`, put the sum of all rows together on every rank.
        """
        self.comm, self.exchange = comm, make_exchange(strategy, comm)
        self.parts, self.whole = parts, whole
        self._setting, self._steps_to_look = strategy.gradient_rows, 0

    def reduce(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        """Sum every `.grad` over the ranks; yields parameters by name as they become ready. Collective.

        gaussians: N of them, float32 or float64, the same on all ranks. sh_degree: 0..3; bands above do not travel.
        """
        targets: dict[str, Tensor] = {}
        for name, active in travelling(gaussians, sh_degree):
            grad = gaussians[name].grad
            assert grad is not None
            targets[name] = grad if active is None else grad[:, :active]
        if self.comm.alone:
            yield from targets
            return
        if self.parts is not None:
            self.parts.reduce_scatter(list(targets.values()), "reduce_scatter(gradients)")
            if self.whole:
                self.parts.all_gather(list(targets.values()), "all_gather(gradients)")
            yield from targets
            return
        rows = self._rows(targets) if self._selects(gaussians.device) else None
        sent = targets if rows is None else {k: t.index_select(0, rows) for k, t in targets.items()}
        # All start at once, the largest last: while `shN` travels the optimizer works on the others.
        pending = [(bucket, self._start(bucket, sent)) for bucket in self._buckets(sent)]
        for bucket, finish in pending:
            summed = finish()
            for name, part in zip(bucket, _split(summed, [sent[n].shape for n in bucket]), strict=True):
                if sent[name] is not targets[name]:
                    assert rows is not None
                    targets[name].index_copy_(0, rows, part)
                elif part.data_ptr() != targets[name].data_ptr():
                    targets[name].copy_(part)
                yield name

    def reset_error_feedback(self) -> None:
        self.exchange.reset_error_feedback()

    def _selects(self, device: torch.device) -> bool:
        if not self.exchange.row_by_row:
            return False
        if self._setting == "auto" and device.type == "cpu":
            self._steps_to_look -= 1
            return self._steps_to_look < 0
        # On a GPU counting rows makes the host wait; whether that pays has not been measured.
        return self._setting == "touched"

    def _rows(self, targets: dict[str, Tensor]) -> Tensor | None:
        """Agree on the rows that travel, int64 [M], or None for all."""
        mine = touched_rows(targets)
        bits = self.comm.all_gather(_packed(mine), "all_gather(touched rows)")
        union = bits[0]
        for other in bits[1:]:
            union = union | other
        rows = _unpacked(union, len(mine)).nonzero()[:, 0]
        if self._setting == "auto" and len(rows) > AUTO_SHARE * len(mine):
            self._steps_to_look = LOOK_AGAIN_STEPS
            return None
        return rows

    def _buckets(self, targets: dict[str, Tensor]) -> list[list[str]]:
        """Group parameters that travel together: small ones up to `BUCKET_BYTES`, in the given order."""
        buckets: list[list[str]] = []
        room = 0
        for name, target in targets.items():
            if self.exchange.by_itself(target):
                buckets.append([name])
                room = 0
            elif target.nbytes <= room:
                buckets[-1].append(name)
                room -= target.nbytes
            else:
                buckets.append([name])
                room = BUCKET_BYTES - target.nbytes
        return buckets

    def _start(self, bucket: list[str], targets: dict[str, Tensor]) -> Callable[[], Tensor]:
        if len(bucket) == 1:
            return self.exchange.start(bucket[0], targets[bucket[0]].contiguous())
        return self.exchange.start(
            "+".join(bucket), torch.cat([targets[name].reshape(-1) for name in bucket])
        )


def touched_rows(gradients: dict[str, Tensor]) -> Tensor:
    """Return bool [N]: rows where a view left a gradient.

    gradients: by parameter, float32 or float64 [N, ...].
    """
    names = list(gradients)
    touched = nonzero_rows(gradients[names[0]])
    for name in names[1:]:
        touched |= nonzero_rows(gradients[name])
    return touched


def nonzero_rows(tensor: Tensor) -> Tensor:
    """Return bool [N]: rows of a float tensor [N, ...] with anything but zeros, NaN included."""
    # Sums of magnitudes: no cancellation, and several times as fast as `any` over a row.
    return tensor.abs().reshape(len(tensor), -1).sum(1) != 0


def _packed(mask: Tensor) -> Tensor:
    """Pack bool [N] into uint8 [ceil(N / 8)]."""
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).reshape(-1, 8)
    return (padded << _shifts(mask.device)).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, length: int) -> Tensor:
    """Unpack uint8 [ceil(N / 8)] to uint8 [N] of zeros and ones."""
    return ((packed[:, None] >> _shifts(packed.device)) & 1).reshape(-1)[:length]


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def _split(summed: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Split the concatenated sum back into the parameters' shapes."""
    if len(shapes) == 1:
        return [summed.reshape(shapes[0])]
    parts = summed.split([shape.numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
