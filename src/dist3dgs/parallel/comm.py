"""torch.distributed with a meter: every collective goes through here, so that its bytes and seconds are known.

Bytes are what one rank puts on the wire in a bandwidth-optimal algorithm: 2 (p-1)/p of the payload for an
all-reduce over p ranks, (p-1)/p of the gathered result for an all-gather, what leaves the rank for an all-to-all.
Collectives of the training steps are named after what travels: `all_reduce(gradients)`.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Meter:
    """Totals of one collective on this rank."""

    calls: int = 0
    bytes: int = 0
    s: float = 0.0
    exposed_s: float = 0.0


class Handle:
    """A collective under way; `wait` ends it and books the time nobody computed meanwhile."""

    def __init__(self, work: Any, meter: Meter, started: float, comm: "Communicator") -> None:
        self._work, self._meter, self._started, self._comm = work, meter, started, comm

    def wait(self) -> None:
        if self._work is None:
            return
        before = time.perf_counter()
        self._work.wait()
        now = time.perf_counter()
        self._meter.exposed_s += now - before
        # Collectives that are under way together share the wire: no second is counted twice.
        self._meter.s += now - max(self._started, self._comm.last_end)
        self._comm.last_end = now
        self._work = None


class Communicator:
    """The ranks of one job. With a world of one nothing is initialised and every operation is the identity."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.meters: dict[str, Meter] = defaultdict(Meter)
        self.last_end = 0.0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM, name: str = "all_reduce") -> None:
        """Reduce in place over all ranks."""
        self.start_all_reduce(tensor, op, name).wait()

    def start_all_reduce(
        self, tensor: Tensor, op: Any = dist.ReduceOp.SUM, name: str = "all_reduce"
    ) -> Handle:
        """As `all_reduce`, in the background: the tensor may not be touched before the handle's `wait`."""
        meter = self.meters[name]
        if self.alone:
            return Handle(None, meter, 0.0, self)
        meter.calls += 1
        meter.bytes += 2 * tensor.nbytes * (self.world_size - 1) // self.world_size
        started = time.perf_counter()
        return Handle(dist.all_reduce(tensor, op=op, async_op=True), meter, started, self)

    def start_exchange(
        self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], name: str = "all_to_all"
    ) -> tuple[Tensor, Handle]:
        """Send `send[r]` rows of the contiguous [sum(send), ...] tensor to each rank r, in the background.

        receive: rows that come from each rank. Returns the [sum(receive), ...] tensor, full after the handle's `wait`,
        in rank order.
        """
        meter = self.meters[name]
        if self.alone:
            return tensor, Handle(None, meter, 0.0, self)
        row_bytes = tensor.element_size() * tensor[0].numel() if len(tensor) else 0
        meter.calls += 1
        meter.bytes += row_bytes * (sum(send) - send[self.rank])
        out = tensor.new_empty((sum(receive), *tensor.shape[1:]))
        started = time.perf_counter()
        # Uneven all_to_all_single is the one form of it that both gloo and NCCL have.
        work = dist.all_to_all_single(out, tensor.contiguous(), list(receive), list(send), async_op=True)
        return out, Handle(work, meter, started, self)

    def exchange(
        self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], name: str = "all_to_all"
    ) -> Tensor:
        """As `start_exchange`, waiting for the end."""
        out, handle = self.start_exchange(tensor, send, receive, name)
        handle.wait()
        return out

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite `tensor` with that of rank `source`."""
        if self.alone:
            return
        with self._timed("broadcast", tensor.nbytes if self.rank == source else 0):
            dist.broadcast(tensor, source)

    def all_gather(self, tensor: Tensor, name: str = "all_gather") -> Tensor:
        """Stack the equally shaped tensors of all ranks: [...] -> [world_size, ...]."""
        if self.alone:
            return tensor[None]
        # A list of outputs: gloo has no all_gather_into_tensor for every dtype and for 0-dim tensors.
        out = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self._timed(name, tensor.nbytes * (self.world_size - 1)):
            dist.all_gather(out, tensor.contiguous())
        return torch.stack(out)

    def gather_objects(self, value: Any) -> list[Any]:
        """Small Python values of all ranks, for reports; not metered."""
        if self.alone:
            return [value]
        out: list[Any] = [None] * self.world_size
        dist.all_gather_object(out, value)
        return out

    def barrier(self) -> None:
        if not self.alone:
            with self._timed("barrier", 0):
                dist.barrier()

    @contextlib.contextmanager
    def _timed(self, name: str, num_bytes: int) -> Iterator[None]:
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        meter = self.meters[name]
        meter.calls += 1
        meter.bytes += num_bytes
        meter.s += elapsed
        meter.exposed_s += elapsed
