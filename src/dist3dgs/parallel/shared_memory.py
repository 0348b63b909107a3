"""Memory that the ranks of one node share: what one writes the others read, without a network between them.

Each rank has a segment of its own, an anonymous file (memfd) that no folder lists and that is gone with its last
process, however that ends. The others open it through /proc, so its size is not bounded by /dev/shm, which containers
often limit to 64 MB.
"""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .collectives import Communicator

#: A segment is larger than asked for by this factor: the model grows, and a new segment costs milliseconds.
HEADROOM = 1.25


class SharedMemory:
    """Segments of all ranks of one node.

    A segment has two halves, used in turns: when all ranks have met to read one, all have read the other, which may be
    written again. So each exchange needs one meeting alone.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._half_bytes, self._half = 0, 0
        self._segments: list[Tensor] = []
        self._refused = False

    def reserve(self, num_bytes: int) -> bool:
        """Turn to the other halves, and make each as large as this. Collective; all ranks pass the same.

        Returns:
            False where they cannot be had: ranks on several nodes or in several containers, not Linux.
        """
        self._half = 1 - self._half
        num_bytes = max(1, num_bytes)  # no rank may have anything to send in the first exchange
        if num_bytes > self._half_bytes and not self._refused:
            self._refused = not self._enlarge(int(HEADROOM * num_bytes))
        return num_bytes <= self._half_bytes

    def half(self, rank: int) -> Tensor:
        """Return the half of a rank's segment that this exchange uses, uint8 [at least what was reserved]."""
        return self._segments[rank][self._half * self._half_bytes :][: self._half_bytes]

    def _enlarge(self, half_bytes: int) -> bool:
        half_bytes = -(-half_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        mine, place = _create(2 * half_bytes)
        places = self.comm.gather_objects(place)
        segments = [
            _map(p, 2 * half_bytes) if p is not None and p[0] == places[0][0] else None for p in places
        ]
        complete = all(self.comm.gather_objects(all(s is not None for s in segments)))
        if mine is not None:
            os.close(mine)
        if complete:
            self._segments, self._half_bytes = [s for s in segments if s is not None], half_bytes
        return complete


def shared_memory(comm: Communicator, device: torch.device, wanted: bool) -> SharedMemory | None:
    """Make the memory that ranks on CPUs share, None if it is not `wanted` or there is one rank. Not collective."""
    return SharedMemory(comm) if wanted and not comm.alone and device.type == "cpu" else None


def exchange(
    comm: Communicator,
    memory: SharedMemory | None,
    pieces: Sequence[Tensor],
    plan: Sequence[Sequence[int]],
    like: Tensor,
    name: str,
) -> dict[int, Tensor]:
    """Send every rank a message, through shared memory if there is some. Collective.

    Args:
        comm: the ranks.
        memory: theirs; None for the process group.
        pieces: [M] each, of any dtype, this rank's messages one after the other, in the order of the receiving ranks.
        plan: numbers in each message, by sending and receiving rank; none to oneself. The same on all ranks.
        like: a tensor of their dtype and device.
        name: under which bytes and seconds are booked.

    Returns:
        The others' messages by rank, [M] each; read them before the next exchange but one.
    """
    me, size = comm.rank, like.element_size()
    others = [r for r in range(comm.world_size) if r != me]
    pieces = [like.new_empty(0), *pieces]
    if memory is not None and memory.reserve(size * max(map(sum, plan))):
        num_bytes = size * sum(plan[me])
        with comm.booked(name, num_bytes):
            torch.cat(pieces, out=memory.half(me)[:num_bytes].view(like.dtype))
            comm.meet()
            starts = {r: size * sum(plan[r][:me]) for r in others}
            return {r: memory.half(r)[starts[r] :][: size * plan[r][me]].view(like.dtype) for r in others}
    arrives = [row[me] for row in plan]
    received = comm.exchange(torch.cat(pieces), plan[me], arrives, name).split(arrives)
    return {r: received[r] for r in others}


def _create(num_bytes: int) -> tuple[int | None, tuple[str, int, int] | None]:
    """Make an anonymous file; return its descriptor, and machine, process and descriptor for the others."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text() + str(
            Path("/proc/self/ns/pid").readlink()
        )
        descriptor = os.memfd_create("dist3dgs")
    except (OSError, AttributeError):  # not Linux, or no /proc
        return None, None
    os.ftruncate(descriptor, num_bytes)
    return descriptor, (machine, os.getpid(), descriptor)


def _map(place: tuple[str, int, int], num_bytes: int) -> Tensor | None:
    """Map another rank's file as uint8 [num_bytes]; None where the system does not allow it."""
    try:
        descriptor = os.open(f"/proc/{place[1]}/fd/{place[2]}", os.O_RDWR)
    except OSError:
        return None
    try:
        return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
