"""Model parallelism: each rank owns a part of the Gaussians and sends their projections to the ranks that render.

In a step each rank projects its Gaussians into the cameras of all ranks, sends each camera's owner the visible ones
(12 numbers each), and renders its own cameras from what it received. The backward pass returns the gradients of these
numbers (10 each, 12 with absolute gradients). No parameter and no parameter gradient travels in a step.
(Zhao et al., Grendel, 2024, section 4.)

With `split: pixels` a rank renders not its own cameras but a strip of every camera (pixels.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from ..splats.render import Image, Projection
from .collectives import Communicator
from .digests import compare_rows, gather_digests, parameter_digest, rows_checksum
from .pixels import Piece, Strips, find_in_strips, join_strips
from .placement import assign_views, morton_order, owners_in_space
from .shared_memory import SharedMemory, exchange, shared_memory
from .strategy import Parallel, Rendered, Rows, Setup, largest, travelling

#: Numbers of each differentiable field of a message: means2d, conics, depths, colors, opacities; then 2 of radii.
WIDTHS = (2, 3, 1, 3, 1)


class Sharded(Parallel):
    replicates = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        strategy, split = setup.strategy, setup.strategy.split == "pixels" and not setup.comm.alone
        self.rebalance_above, self.by_space = strategy.rebalance_above, strategy.placement == "space"
        self.strips = Strips(setup.comm, setup.device) if split else None
        self.memory = shared_memory(setup.comm, setup.device, strategy.shared_memory)
        self._shards: list[int] = []

    @property
    def shards(self) -> list[int]:
        return list(self._shards)

    # ---------------------------------------------------------------- ownership of rows

    def take_shards(self, shards: Sequence[int]) -> None:
        """Set the rows per rank of a model that was not loaded by `distribute`."""
        self._shards = list(shards)

    def distribute(self, load: Callable[[], Rows], shards: Sequence[int] = ()) -> Rows:
        comm, rows, layout = self.comm, {}, {}
        if comm.rank == 0:
            rows = {k: t.to(self.device).contiguous() for k, t in load().items()}
            n = len(rows["means"])
            known = len(shards) == comm.world_size
            self._shards = list(shards) if known else even(n, comm.world_size)
            if not known:
                # Strided, neighbours go to different ranks: every camera finds about as much to project on each.
                order = (
                    morton_order(rows["means"])
                    if self.by_space
                    else strided(n, comm.world_size).to(self.device)
                )
                rows = {k: t[order] for k, t in rows.items()}
            layout = {k: (tuple(t.shape[1:]), t.dtype) for k, t in rows.items()}
        loaded = rows_checksum(rows) if rows else 0
        self._shards, layout = comm.gather_objects((self._shards, layout))[0]
        mine = self._shards[comm.rank]
        receive = [mine] + [0] * (comm.world_size - 1)
        send = self._shards if comm.rank == 0 else [0] * comm.world_size
        for name, (shape, dtype) in layout.items():
            tensor = (
                rows[name] if comm.rank == 0 else torch.empty((0, *shape), dtype=dtype, device=self.device)
            )
            rows[name] = comm.exchange(tensor, send, receive, "all_to_all(distribute)")
        compare_rows(comm, loaded, rows_checksum(rows), "the first distribution", self.device)
        return rows

    def whole(self, rows: Rows) -> Rows | None:
        comm = self.comm
        send = [self._shards[comm.rank]] + [0] * (comm.world_size - 1)
        receive = self._shards if comm.rank == 0 else [0] * comm.world_size
        whole = {k: comm.exchange(t.detach(), send, receive, "all_to_all(gather)") for k, t in rows.items()}
        gathered = rows_checksum(whole) if comm.rank == 0 else 0
        compare_rows(comm, rows_checksum(rows), gathered, "gathering the whole model", self.device)
        return whole if comm.rank == 0 else None

    def rebalance(self, rows: Rows) -> Rows | None:
        comm, mine = self.comm, len(rows["means"])
        sizes = comm.all_gather(torch.tensor([mine], device=self.device), "all_gather(shards)")
        self._shards = [int(n) for n in sizes.flatten().tolist()]
        largest_shard = max(self._shards)
        uneven = largest_shard * comm.world_size > self.rebalance_above * sum(self._shards)
        if not uneven and (self.max_rows is None or largest_shard <= self.max_rows):
            return None
        targets = even(sum(self._shards), comm.world_size)
        moved = self._cut_again(rows, targets) if self.by_space else self._even_out(rows)
        self._shards = targets
        compare_rows(comm, rows_checksum(rows), rows_checksum(moved), "a rebalance", self.device)
        return moved

    def _even_out(self, rows: Rows) -> Rows:
        """Move the fewest rows that make the shards even."""
        comm, moves = self.comm, plan_moves(self._shards)
        send = [moves.get((comm.rank, r), 0) for r in range(comm.world_size)]
        receive = [moves.get((r, comm.rank), 0) for r in range(comm.world_size)]
        kept = self._shards[comm.rank] - sum(send)
        return {
            k: torch.cat([t[:kept], comm.exchange(t[kept:].detach(), send, receive, "all_to_all(rebalance)")])
            for k, t in rows.items()
        }

    def _cut_again(self, rows: Rows, targets: list[int]) -> Rows:
        """Move every row to where a new cut of all ranks' Gaussians puts it."""
        comm = self.comm
        owner = owners_in_space(comm, rows["means"].detach(), self._shards, targets)
        send = torch.bincount(owner, minlength=comm.world_size)
        every = comm.all_gather(send, "all_gather(moves)")
        receive, order = every[:, comm.rank].tolist(), torch.argsort(owner, stable=True)
        return {
            k: comm.exchange(t.detach()[order], send.tolist(), receive, "all_to_all(rebalance)")
            for k, t in rows.items()
        }

    # ---------------------------------------------------------------- a step

    def render(
        self,
        gaussians: Gaussians,
        cameras: Sequence[Sequence[Camera]],
        *,
        sh_degree: int,
        background: Tensor | None,
        track: bool,
    ) -> Rendered:
        rank = self.comm.rank
        # Held-out views are dealt as wholes: their metrics are of whole images.
        strips = self.strips if torch.is_grad_enabled() else None
        owners = [owner for owner, part in enumerate(cameras) for _ in part]
        every = [camera for part in cameras for camera in part]
        seen, numbers = self.project_every(gaussians, every, sh_degree, track)
        if strips is not None:
            return self._render_strips(strips, seen, numbers, every, background, track)
        if self.comm.alone:
            projections = mine = self.by_camera(seen, numbers, track)
            anchor = gaussians["means"][:0].sum()
        else:
            counts = self._gather_counts(numbers)
            projections = self.by_camera(seen, counts[rank], track)
            mine, anchor, owners = self._exchange(projections, counts, owners, track)
        ours = [camera for camera, owner in zip(every, owners, strict=True) if owner == rank]
        views = [
            self.rasterize(projection, camera, background, track)
            for projection, camera in zip(mine, ours, strict=True)
        ]
        return Rendered(views, list(zip(projections, every, strict=True)), anchor)

    def _gather_counts(self, numbers: Tensor) -> list[list[int]]:
        """Return every rank's numbers, int64 [C]. Collective, and the host waits for the device."""
        return self.comm.all_gather(numbers.to(self.device), "all_gather(counts)").tolist()

    def _render_strips(
        self,
        strips: Strips,
        seen: list[Projection] | Projection,
        numbers: Tensor,
        cameras: list[Camera],
        background: Tensor | None,
        track: bool,
    ) -> Rendered:
        """Render this rank's strip of every camera; the views have their neighbours' rows."""
        strips.begin_step()
        num_cameras, rows = len(cameras), [strips.rows(camera.height) for camera in cameras]
        whole = seen if isinstance(seen, Projection) else Projection.join(seen)
        on_device = strips.on_device([camera.height for camera in cameras])
        row, ids, first_row, sizes = find_in_strips(whole, numbers.to(self.device), on_device)
        gathered = self._gather_counts(torch.cat([numbers.to(self.device), sizes]))
        counts = [of_rank[num_cameras:] for of_rank in gathered]
        projections = self.by_camera(seen, gathered[self.comm.rank][:num_cameras], track)
        # From the cameras' own projections, so that each gets the gradient of its means2d.
        cut = (whole if projections is seen else Projection.join(projections)).take(row)
        cut.means2d = cut.means2d - torch.stack([torch.zeros_like(first_row), first_row], 1)
        cut.ids = ids
        pieces = [
            Piece(**vars(part), parent=projections[i % num_cameras])
            for i, part in enumerate(cut.split(counts[self.comm.rank]))
        ]
        owners = [rank for rank in range(self.comm.world_size) for _ in cameras]
        mine, anchor, _ = self._exchange(pieces, counts, owners, track, strips.end_backward)
        images: list[Image | None] = []
        with strips.timed():
            for projection, camera, parts in zip(mine, cameras, rows, strict=True):
                first, last = parts[self.comm.rank]
                if first == last:  # more ranks than rows of tiles
                    images.append(None)
                    continue
                size = replace(camera, height=last - first)
                images.append(self.rasterize(projection, size, background, track).image)
        strips.watch_backward([image.colors for image in images if image is not None])
        views = join_strips(self.comm, images, cameras, rows)
        return Rendered(views, list(zip(projections, cameras, strict=True)), anchor)

    def _exchange(
        self,
        projections: Sequence[Projection],
        counts: list[list[int]],
        owners: list[int],
        track: bool,
        returned: Callable[[], None] = lambda: None,
    ) -> tuple[list[Projection], Tensor, list[int]]:
        """Send projections to the cameras' owners; return the complete projections of this rank's cameras, the anchor
        and the owners.

        By space, a training step's owners are chosen here, as many cameras each as were given to them.

        counts: by rank and camera, how many Gaussians it sees.
        returned: called in the backward pass, when this rank's part of it before the exchange is done.
        """
        comm, world = self.comm, self.comm.world_size
        if self.by_space and self.strips is None and torch.is_grad_enabled():
            owners = assign_views(counts, [owners.count(r) for r in range(world)])
        trip = _Trip(
            comm, self.memory, counts, owners, list(projections), track and self.settings.absgrad, returned
        )
        *fields, anchor = _Travel.apply(trip, *(t for p in projections for t in _floats(p)))
        for i, radii in enumerate(trip.radii):
            means2d, conics, depths, colors, opacities = fields[i * len(WIDTHS) : (i + 1) * len(WIDTHS)]
            trip.arrived.append(
                Projection(
                    ids=torch.arange(len(radii), device=self.device),
                    means2d=means2d,
                    conics=conics,
                    depths=depths,
                    radii=radii,
                    colors=colors,
                    opacities=opacities,
                )
            )
        return trip.arrived, anchor, owners

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        # Gradients are complete: the exchange's backward pass returned them to their owners.
        yield from (name for name, _ in travelling(gaussians, sh_degree))

    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        return statistics

    def global_topk(self, pull: Tensor, wanted: Tensor, count: int) -> Tensor:
        # Every rank gets all candidates and makes the same choice; shorter shards are padded with unwanted rows.
        length = max(self._shards)
        both = pull.new_full((2, length), -1.0)
        both[0, : len(pull)], both[1, : len(pull)] = pull, wanted.to(pull)
        every = self.comm.all_gather(both, "all_gather(candidates)")
        chosen = largest(every[:, 0].flatten(), (every[:, 1] > 0).flatten(), count)
        return chosen.reshape(-1, length)[self.comm.rank, : len(pull)]

    def limit(self, gaussians: Gaussians, max_gaussians: int) -> int:
        room = max(0, max_gaussians - self.total_gaussians)
        extra = 1 if self.comm.rank < room % self.comm.world_size else 0
        return gaussians.num_gaussians + room // self.comm.world_size + extra

    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        return gather_digests(self.comm, parameter_digest(gaussians), self.device)


@dataclass
class _Trip:
    """One exchange of projections, and what its backward pass needs.

    A message has for each camera of its receiver one field of all Gaussians after the other, so that fields are copied
    as they lie in memory.
    """

    comm: Communicator
    memory: SharedMemory | None
    counts: list[list[int]]
    """By rank and camera, how many Gaussians it sees."""
    owners: list[int]
    """By camera, the rank that renders it."""
    sent: list[Projection]
    """By camera, of this rank's Gaussians."""
    absgrad: bool
    returned: Callable[[], None]
    radii: list[Tensor] = field(default_factory=list)
    """By camera of this rank, int32 [V, 2], of all ranks' Gaussians."""
    arrived: list[Projection] = field(default_factory=list)
    """Cameras of this rank, with all ranks' Gaussians."""

    @property
    def others(self) -> list[int]:
        return [r for r in range(self.comm.world_size) if r != self.comm.rank]

    def cameras(self, owner: int) -> list[int]:
        return [c for c, o in enumerate(self.owners) if o == owner]

    def num_gaussians(self, holder: int, owner: int) -> int:
        """Return how many Gaussians' projections go from their holder to the owners' cameras."""
        if holder == owner:
            return 0
        return sum(self.counts[holder][c] for c in self.cameras(owner))

    def send(
        self, pieces: list[Tensor], like: Tensor, widths: Sequence[int], name: str, back: bool = False
    ) -> dict[int, list[list[Tensor]]]:
        """Exchange pieces of messages.

        Args:
            pieces: flat, in the order of the receiving ranks, then of cameras, then of fields.
            like: a tensor of their dtype and device.
            widths: numbers of each field of one Gaussian.
            name: under which bytes and seconds are booked.
            back: from the owners to the holders.

        Returns:
            By rank, and camera of this rank (back: of that rank), each field [V, width], or [V] for a width of 1.
        """
        me, world = self.comm.rank, range(self.comm.world_size)
        plan = [[sum(widths) * self.num_gaussians(holder, owner) for owner in world] for holder in world]
        if back:
            plan = [list(column) for column in zip(*plan, strict=True)]
        found: dict[int, list[list[Tensor]]] = {}
        for r, received in exchange(self.comm, self.memory, pieces, plan, like, name).items():
            found[r], at = [], 0
            if (
                back and self.memory is not None
            ):  # autograd may keep gradients for longer than they last there
                received = received.clone()
            for c in self.cameras(r if back else me):
                rows, fields = self.counts[me if back else r][c], []
                for w in widths:
                    part = received[at : at + rows * w]
                    fields.append(part if w == 1 else part.view(rows, w))
                    at += rows * w
                found[r].append(fields)
        return found


class _Travel(torch.autograd.Function):
    """Send projections forward and their gradients back, in one exchange for all cameras of a step."""

    @staticmethod
    def forward(ctx: Any, trip: _Trip, *floats: Tensor) -> tuple[Tensor, ...]:
        ctx.trip, ctx.like = trip, floats[0][:0]
        ctx.set_materialize_grads(False)
        me, num = trip.comm.rank, len(WIDTHS)
        # Radii beyond 2^24 px lose their last digits in float32, far outside any picture.
        mine = [
            [*floats[c * num : (c + 1) * num], p.radii.to(floats[0].dtype)] for c, p in enumerate(trip.sent)
        ]
        pieces = [t.reshape(-1) for r in trip.others for c in trip.cameras(r) for t in mine[c]]
        parts = trip.send(pieces, ctx.like, (*WIDTHS, 2), "all_to_all(projections)")
        parts[me] = [mine[c] for c in trip.cameras(me)]
        out: list[Tensor] = []
        for i in range(len(trip.cameras(me))):
            *fields, radii = (
                torch.cat(field) for field in zip(*(parts[r][i] for r in sorted(parts)), strict=True)
            )
            out += fields
            trip.radii.append(radii.to(torch.int32))
        return *out, ctx.like.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        trip: _Trip = ctx.trip
        trip.returned()
        me, num = trip.comm.rank, len(WIDTHS)
        widths = (*WIDTHS, 2) if trip.absgrad else WIDTHS
        mine = trip.cameras(me)
        full: list[list[Tensor]] = []
        """By camera of this rank, gradients of each field of all its Gaussians."""
        for i, c in enumerate(mine):
            given = list(grads[i * num : (i + 1) * num])
            if trip.absgrad:
                given.append(getattr(trip.arrived[i].means2d, "absgrad", None))
            total = sum(of_rank[c] for of_rank in trip.counts)
            full.append(
                [
                    ctx.like.new_zeros((total, w) if w > 1 else total) if g is None else g
                    for g, w in zip(given, widths, strict=True)
                ]
            )
        cuts = [[of_rank[c] for of_rank in trip.counts] for c in mine]
        split = [[g.split(cut) for g in fields] for fields, cut in zip(full, cuts, strict=True)]
        pieces = [g[r].reshape(-1) for r in trip.others for fields in split for g in fields]
        back = trip.send(pieces, ctx.like, widths, "all_to_all(projection gradients)", back=True)
        back[me] = [[g[me] for g in fields] for fields in split]
        found: list[Tensor] = []
        seen = dict.fromkeys(range(trip.comm.world_size), 0)
        for owner, p in zip(trip.owners, trip.sent, strict=True):
            fields = back[owner][seen[owner]]
            seen[owner] += 1
            found += fields[:num]
            if not trip.absgrad:
                continue
            if isinstance(p, Piece):
                p.add_absgrad(fields[num])
            else:
                p.means2d.absgrad = fields[num]  # type: ignore[attr-defined]
        trip.arrived = []  # breaks the reference cycle with this node, which would keep every step's memory
        return None, *found


def _floats(p: Projection) -> tuple[Tensor, ...]:
    return p.means2d, p.conics, p.depths, p.colors, p.opacities


def even(total: int, num_ranks: int) -> list[int]:
    """Return the rows per rank, equal but for one."""
    return [total // num_ranks + (r < total % num_ranks) for r in range(num_ranks)]


def strided(total: int, num_ranks: int) -> Tensor:
    """Return int64 [total]: an order in which each rank's even share follows the other and neighbours are in
    different shares.
    """
    index = torch.arange(total)
    return torch.cat([index[r::num_ranks] for r in range(num_ranks)])


def plan_moves(sizes: Sequence[int]) -> dict[tuple[int, int], int]:
    """Plan the rows to move between ranks, {(from, to): number}, that even the shards out with the fewest moves."""
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
