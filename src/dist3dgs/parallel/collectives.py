"""Metered torch.distributed: every collective goes through here, so that its bytes and seconds are counted.

Bytes are what one rank puts on the wire in a bandwidth-optimal algorithm: 2 (p-1)/p of the payload for an
all-reduce over p ranks, (p-1)/p of the gathered result for an all-gather, what leaves the rank for an all-to-all.
Collectives of the training steps are named after what travels: `all_reduce(gradients)`.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Meter:
    """Totals of one collective in one phase on this rank.

    timed: number of calls that `s` and `exposed_s` cover; on CUDA not all (see `Clock.stage`).
    s: from the start to the end of the transfer; overlapping transfers are not counted twice.
    exposed_s: spent waiting, with nothing else to do.
    """

    calls: int = 0
    bytes: int = 0
    timed: int = 0
    s: float = 0.0
    exposed_s: float = 0.0

    def seconds(self, scale: float) -> dict[str, float | None]:
        """Return `s` and `exposed_s` times `scale`, None where no call was timed."""
        if not self.timed:
            return {"s": None, "exposed_s": None}
        return {"s": self.s * scale, "exposed_s": self.exposed_s * scale}


class _Timer:
    """Start and end of one collective, in seconds of `time.perf_counter`.

    NCCL runs collectives on its own streams: starting them and waiting for them return to the host at once. On CUDA
    the host therefore synchronises with this rank's stream first, which waits for a collective only after its `wait`.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self.started = self.now()
        self._first, self._last = self._event(), None
        self._ended: float | None = None
        self.launched = self.started

    def now(self) -> float:
        """Return the time when this rank's work so far is done."""
        if self._stream is not None:
            self._stream.synchronize()
        return time.perf_counter()

    def watch(self, work: Any) -> None:
        """Note when `work` ends, while this rank does something else."""
        work.get_future().add_done_callback(self._note_end)

    def _note_end(self, _: Any) -> None:
        # Gloo calls this when all data has arrived. NCCL calls it at once, on a stream that waits for the collective.
        self._ended, self._last = time.perf_counter(), self._event()

    def ended(self) -> float | None:
        """Return the time when the collective ended, None if that was not watched. Call it after `wait` and `now`."""
        if self._first is None or self._last is None:
            return self._ended
        self._last.synchronize()
        return self.started + self._first.elapsed_time(self._last) / 1000

    def _event(self) -> Any:
        if self._stream is None:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._stream.device))
        return event


class Handle:
    """A collective under way; `wait` ends it and books its time."""

    def __init__(
        self, comm: "Communicator", meter: Meter, work: Any = None, timer: _Timer | None = None
    ) -> None:
        self._comm, self._meter, self._work, self._timer = comm, meter, work, timer

    def wait(self) -> None:
        work, timer = self._work, self._timer
        self._work = None
        if work is None:
            return
        if timer is None:
            work.wait()
            return
        before = timer.now()
        work.wait()
        now = timer.now()
        ended = timer.ended()
        # Launching and waiting block this rank, so both count as exposed.
        ended = now if ended is None or ended > before else max(ended, timer.launched)
        self._meter.timed += 1
        self._meter.exposed_s += timer.launched - timer.started + now - before
        # Collectives that are under way together share the wire: no second is counted twice. One that is waited for out
        # of turn may lose some.
        self._meter.s += max(0.0, ended - max(timer.started, self._comm.last_end))
        self._comm.last_end = max(ended, self._comm.last_end)


class Communicator:
    """The ranks of one job, or a group of them. With a world of one every operation is the identity."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, *, timeout: timedelta | None = None, group: Any = None
    ) -> None:
        """timeout: of a collective in groups split off; PyTorch's default if None. group: None for all ranks."""
        self.rank, self.world_size, self.timeout, self._group = rank, world_size, timeout, group
        #: Where bytes and seconds are booked; a group's collectives are booked with those of all ranks.
        self._books = self
        #: By (phase, collective).
        self.meters: dict[tuple[str, str], Meter] = defaultdict(Meter)
        #: The phase that collectives are booked in, and whether they are timed; the training's clock sets it.
        self.stage: Callable[[], tuple[str, bool]] = lambda: ("startup", True)
        self.last_end = 0.0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def split(self, groups: Sequence[Sequence[int]]) -> "Communicator":
        """Make the communicator of the group that this rank is in. Collective.

        groups: ranks of each group; every rank is in exactly one, and all pass the same.
        """
        mine = Communicator()
        for ranks in groups:
            group = dist.new_group(list(ranks), timeout=self.timeout) if len(ranks) > 1 else None
            if self.rank in ranks:
                mine = Communicator(ranks.index(self.rank), len(ranks), timeout=self.timeout, group=group)
        mine._books = self
        return mine

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM, name: str = "all_reduce") -> None:
        """Reduce a tensor [...] of any dtype in place over all ranks.

        Args:
            tensor: contiguous, of the same shape on all ranks.
            op: reduction, a `dist.ReduceOp`; the sum unless given.
            name: under which bytes and seconds are booked.
        """
        self._start_all_reduce(tensor, op, name, background=False).wait()

    def start_all_reduce(
        self, tensor: Tensor, op: Any = dist.ReduceOp.SUM, name: str = "all_reduce"
    ) -> Handle:
        """Start an `all_reduce` of a tensor [...] of any dtype; it may not be touched before the handle's `wait`."""
        return self._start_all_reduce(tensor, op, name, background=True)

    def exchange(
        self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], name: str = "all_to_all"
    ) -> Tensor:
        """Send `send[r]` rows of the tensor to each rank r.

        Args:
            tensor: contiguous, [sum(send), ...], of any dtype, in the order of the receiving ranks.
            send: rows for each rank.
            receive: rows that come from each rank.
            name: under which bytes and seconds are booked.

        Returns:
            [sum(receive), ...] of the same dtype, in rank order.
        """
        out, handle = self._start_exchange(tensor, send, receive, name, background=False)
        handle.wait()
        return out

    def start_exchange(
        self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], name: str = "all_to_all"
    ) -> tuple[Tensor, Handle]:
        """Start an `exchange` of a tensor [sum(send), ...] of any dtype; its result is complete after the handle's
        `wait`.
        """
        return self._start_exchange(tensor, send, receive, name, background=True)

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite a tensor [...] of any dtype with that of rank `source`."""
        if self.alone:
            return
        num_bytes = tensor.nbytes if self.rank == source else 0
        self._start(
            "broadcast",
            num_bytes,
            tensor.device,
            lambda: dist.broadcast(tensor, group_src=source, group=self._group, async_op=True),
        ).wait()

    def all_gather(self, tensor: Tensor, name: str = "all_gather") -> Tensor:
        """Stack the equally shaped tensors of all ranks: [...] -> [world_size, ...], of any dtype."""
        if self.alone:
            return tensor[None]
        # A list of outputs: gloo has no all_gather_into_tensor for every dtype and for 0-dim tensors.
        out = [torch.empty_like(tensor) for _ in range(self.world_size)]
        num_bytes, mine = tensor.nbytes * (self.world_size - 1), tensor.contiguous()
        self._start(
            name, num_bytes, tensor.device, lambda: dist.all_gather(out, mine, self._group, async_op=True)
        ).wait()
        return torch.stack(out)

    def gather_objects(self, value: Any) -> list[Any]:
        """Gather small Python values of all ranks, in rank order; not metered."""
        if self.alone:
            return [value]
        out: list[Any] = [None] * self.world_size
        dist.all_gather_object(out, value, self._group)
        return out

    def barrier(self) -> None:
        if not self.alone:
            self._start(
                "barrier", 0, torch.device("cpu"), lambda: dist.barrier(self._group, async_op=True)
            ).wait()

    def meet(self) -> None:
        """Wait until all ranks are here; not metered. On CPUs."""
        if not self.alone:
            dist.all_reduce(torch.zeros(1), group=self._group)

    @contextmanager
    def booked(self, name: str, num_bytes: int) -> Iterator[None]:
        """Book the body as a collective on the CPU that this rank takes part in without a process group.

        num_bytes: what this rank makes known to others, counted as if it were sent.
        """
        books = self._books
        phase, timed = books.stage()
        meter = books.meters[phase, name]
        meter.calls += 1
        meter.bytes += num_bytes
        started = time.perf_counter()
        yield
        if timed:
            ended = time.perf_counter()
            meter.timed += 1
            meter.s += ended - started
            meter.exposed_s += ended - started
            books.last_end = ended

    def _start_all_reduce(self, tensor: Tensor, op: Any, name: str, background: bool) -> Handle:
        if self.alone:
            return Handle(self, Meter())
        num_bytes = 2 * tensor.nbytes * (self.world_size - 1) // self.world_size
        return self._start(
            name,
            num_bytes,
            tensor.device,
            lambda: dist.all_reduce(tensor, op, self._group, async_op=True),
            background,
        )

    def _start_exchange(
        self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], name: str, background: bool
    ) -> tuple[Tensor, Handle]:
        if self.alone:
            return tensor, Handle(self, Meter())
        row_bytes = tensor.element_size() * tensor[0].numel() if len(tensor) else 0
        num_bytes = row_bytes * (sum(send) - send[self.rank])
        out, mine = tensor.new_empty((sum(receive), *tensor.shape[1:])), tensor.contiguous()

        def launch() -> Any:
            # Uneven all_to_all_single is the one form of it that both gloo and NCCL have.
            return dist.all_to_all_single(
                out, mine, list(receive), list(send), group=self._group, async_op=True
            )

        return out, self._start(name, num_bytes, tensor.device, launch, background)

    def _start(
        self,
        name: str,
        num_bytes: int,
        device: torch.device,
        launch: Callable[[], Any],
        background: bool = False,
    ) -> Handle:
        """Launch a collective and book it.

        background: this rank goes on with other work, so the collective may end before it is waited for.
        """
        books = self._books
        phase, timed = books.stage()
        meter = books.meters[phase, name]
        meter.calls += 1
        meter.bytes += num_bytes
        timer = _Timer(device) if timed else None
        work = launch()
        if timer:
            timer.launched = time.perf_counter()
            if background:
                timer.watch(work)
        return Handle(books, meter, work, timer)
