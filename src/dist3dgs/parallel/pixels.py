"""Division of every image among the ranks: strips of whole rows of tiles, one per rank.

A rank gets the projections that touch its strip and renders it as an image of its own, whose first row is the strip's.
SSIM looks over the border: strips exchange the rows next to it (`HALO_PX`), after which loss and gradients are those of
the whole image. When the ranks' measured times differ, the borders move. (Zhao et al., Grendel, 2024, section 4.2)
"""

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..splats.camera import Camera
from ..splats.loss import HALO_PX, Strip
from ..splats.render import Image, Projection
from .collectives import Communicator
from .strategy import View

#: Rows of a tile of the renderers, px. Borders are between tiles, so that no tile is rendered twice.
TILE_PX = 16
#: Borders move when the slowest rank took this many times the mean (Grendel).
MOVE_ABOVE = 1.06
#: Steps whose times are compared together.
COMPARE_EVERY = 10
#: A rank without work has this share of the mean time: it tells nothing about its strip, which must not vanish.
_LEAST_SHARE = 0.01


class Strips:
    """The borders between the ranks' strips, as shares of an image's height, the same for all images."""

    def __init__(self, comm: Communicator, device: torch.device) -> None:
        self.comm, self.device = comm, device
        #: 0, the borders, 1.
        self.edges = [r / comm.world_size for r in range(comm.world_size + 1)]
        self._steps, self._seconds, self._backward_from = 0, 0.0, 0.0
        self._on_device: tuple[Any, Tensor] | None = None

    def rows(self, height: int) -> list[tuple[int, int]]:
        """Return the rows [first, last) of each rank's strip in an image of this height, px."""
        return strip_rows(self.edges, height)

    def on_device(self, heights: Sequence[int]) -> Tensor:
        """Return the rows of all strips of images of these heights, int64 [R, C, 2], px, on the device.

        They are copied there when they change: a copy from the host waits for a GPU.
        """
        key = [*self.edges, *heights]
        if self._on_device is None or self._on_device[0] != key:
            rows = torch.tensor([self.rows(height) for height in heights], device=self.device)
            self._on_device = key, rows.transpose(0, 1).contiguous()
        return self._on_device[1]

    def begin_step(self) -> None:
        """Move the borders if the times since the last look differ. Collective, the same decision on all ranks."""
        if self._steps and self._steps % COMPARE_EVERY == 0:
            mine = torch.tensor([self._seconds], dtype=torch.float64, device=self.device)
            seconds = self.comm.all_gather(mine, "all_gather(times)").flatten().tolist()
            self.edges = divide_again(self.edges, seconds) or self.edges
            self._seconds = 0.0
        self._steps += 1

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of what is done inside as work on this rank's strips."""
        started = self._now()
        yield
        self._seconds += self._now() - started

    def watch_backward(self, images: Sequence[Tensor]) -> None:
        """Count the time of the backward pass from the first gradient of these images, [H, W, 3] float, on."""
        self._backward_from = 0.0

        def begin(_: Tensor) -> None:
            self._backward_from = self._backward_from or self._now()

        for image in images:
            if image.requires_grad:
                image.register_hook(begin)

    def end_backward(self) -> None:
        """End what `watch_backward` counts."""
        if self._backward_from:
            self._seconds += self._now() - self._backward_from

    def _now(self) -> float:
        # On a GPU one step in ten is measured: its host waits for the device.
        if self.device.type == "cuda":
            if self._steps % COMPARE_EVERY:
                return 0.0
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def strip_rows(edges: Sequence[float], height: int) -> list[tuple[int, int]]:
    """Return the rows [first, last) of every strip, whole rows of tiles but for the last.

    edges: borders as shares of the height, from 0 to 1. height: px. Strips are empty where there are too few tiles.
    """
    num_tiles = -(-height // TILE_PX)
    cuts = [min(height, TILE_PX * int(edge * num_tiles + 0.5)) for edge in edges]
    return list(itertools.pairwise(cuts))


def divide_again(edges: Sequence[float], seconds: Sequence[float]) -> list[float] | None:
    """Move borders so that all strips take the same time, if work is spread evenly in each; None if they do already.

    edges: as in `strip_rows`. seconds: by strip.
    """
    mean = sum(seconds) / len(seconds)
    if max(seconds) <= MOVE_ABOVE * mean:
        return None
    work = np.cumsum([0.0, *(max(s, _LEAST_SHARE * mean) for s in seconds)])
    moved = np.interp(np.linspace(0, work[-1], len(edges)), work, edges)
    return [0.0, *moved[1:-1].tolist(), 1.0]


@dataclass(kw_only=True)
class Piece(Projection):
    """The Gaussians of a projection that touch a strip: `ids` are their rows in it, and `means2d` counts from the
    strip's first row.
    """

    parent: Projection

    def add_absgrad(self, absgrad: Tensor) -> None:
        """Add the strip's absolute gradients, [V, 2] float, to those of the whole projection."""
        whole = self.parent.means2d
        total = getattr(whole, "absgrad", None)
        if total is None:
            total = torch.zeros_like(whole)
            whole.absgrad = total  # type: ignore[attr-defined]
        total.index_add_(0, self.ids, absgrad)


@torch.no_grad()
def find_in_strips(
    seen: Projection, numbers: Tensor, strips: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the Gaussians that touch each strip of each camera; one wait for the device.

    Args:
        seen: of C cameras, one after the other, V Gaussians.
        numbers: int64 [C], how many Gaussians each camera sees.
        strips: int64 [R, C, 2], the rows [first, last) of each rank's strip, px.

    Returns:
        By rank, then camera, for each of W: its row in `seen`, int64 [W]; its row in the camera's projection, int64
        [W]; the first row of its strip, px, int64 [W]. And how many each strip has, int64 [R * C].
    """
    ends = numbers.cumsum(0)
    camera = torch.searchsorted(ends, torch.arange(len(seen.ids), device=ends.device), right=True)
    first, last = strips.index_select(1, camera).unbind(-1)
    y, radius = seen.means2d[:, 1], seen.radii[:, 1]
    rank, row = ((y + radius > first) & (y - radius < last) & (first < last)).nonzero().unbind(1)
    camera = camera.index_select(0, row)
    strip = torch.arange(len(strips) * len(numbers) + 1, device=ends.device)
    sizes = torch.searchsorted(rank * len(numbers) + camera, strip).diff()
    return row, row - (ends - numbers).index_select(0, camera), first[rank, row], sizes


def join_strips(
    comm: Communicator,
    images: Sequence[Image | None],
    cameras: Sequence[Camera],
    rows: Sequence[Sequence[tuple[int, int]]],
) -> list[View]:
    """Give each strip the neighbours' rows that its loss depends on. Collective.

    Args:
        comm: the ranks.
        images: this rank's strips, one per camera, None where it is empty.
        cameras: all cameras of the step.
        rows: by camera and rank, rows [first, last) of the strip.

    Returns:
        The strips that are not empty; gradients reach their own rows alone.
    """
    world, me = comm.world_size, comm.rank

    def needed(camera: int, by: int, of: int) -> tuple[int, int]:
        """Rows of strip `of` that strip `by` needs."""
        (a, b), (first, last) = rows[camera][by], rows[camera][of]
        low, high = max(a - HALO_PX, first), min(b + HALO_PX, last)
        return (low, high) if a < b and by != of and low < high else (first, first)

    like = next((image.colors for image in images if image is not None), None)
    message: list[Tensor] = []
    send, receive = [0] * world, [0] * world
    for other, (c, camera) in itertools.product(range(world), enumerate(cameras)):
        low, high = needed(c, other, me)
        if (image := images[c]) is not None and low < high:
            first = rows[c][me][0]
            message.append(image.colors.detach()[low - first : high - first].reshape(-1))
            send[other] += (high - low) * camera.width * 3
        low, high = needed(c, me, other)
        receive[other] += (high - low) * camera.width * 3
    if like is None:
        like = cameras[0].K
    parts = comm.exchange(
        torch.cat([like.new_zeros(0), *message]), send, receive, "all_to_all(strip borders)"
    )
    halos: dict[tuple[int, int], Tensor] = {}
    at = 0
    for other, (c, camera) in itertools.product(range(world), enumerate(cameras)):
        low, high = needed(c, me, other)
        size = (high - low) * camera.width * 3
        halos[other, c] = parts[at : at + size].reshape(high - low, camera.width, 3)
        at += size
    views = []
    for c, (image, camera) in enumerate(zip(images, cameras, strict=True)):
        if image is None:
            continue
        above, below = [halos[r, c] for r in range(me)], [halos[r, c] for r in range(me + 1, world)]
        first, last = rows[c][me]
        num_above = sum(len(part) for part in above)
        strip = Strip(first - num_above, num_above, num_above + last - first, camera.height)
        image.colors = torch.cat([*above, image.colors, *below])
        views.append(View(image, camera, strip))
    return views
