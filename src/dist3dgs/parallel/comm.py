"""torch.distributed with a meter: every collective goes through here, so that its bytes and seconds are known.

Bytes are what one rank puts on the wire in a bandwidth-optimal algorithm: 2 (p-1)/p of the payload for an
all-reduce over p ranks, (p-1)/p of the gathered result for an all-gather, what leaves the rank for an all-to-all.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
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

    def __init__(self, work: Any, meter: Meter, started: float) -> None:
        self._work, self._meter, self._started = work, meter, started

    def wait(self) -> None:
        if self._work is None:
            return
        before = time.perf_counter()
        self._work.wait()
        now = time.perf_counter()
        self._meter.exposed_s += now - before
        self._meter.s += now - self._started
        self._work = None


class Communicator:
    """The ranks of one job. With a world of one nothing is initialised and every operation is the identity."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.meters: dict[str, Meter] = defaultdict(Meter)

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
            return Handle(None, meter, 0.0)
        meter.calls += 1
        meter.bytes += 2 * tensor.nbytes * (self.world_size - 1) // self.world_size
        started = time.perf_counter()
        return Handle(dist.all_reduce(tensor, op=op, async_op=True), meter, started)

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite `tensor` with that of rank `source`."""
        if self.alone:
            return
        with self._timed("broadcast", tensor.nbytes if self.rank == source else 0):
            dist.broadcast(tensor, source)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the equally shaped tensors of all ranks: [...] -> [world_size, ...]."""
        if self.alone:
            return tensor[None]
        # A list of outputs: gloo has no all_gather_into_tensor for every dtype and for 0-dim tensors.
        out = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self._timed("all_gather", tensor.nbytes * (self.world_size - 1)):
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
