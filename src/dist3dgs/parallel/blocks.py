"""Blocks: a short coarse training of the whole scene, then every rank trains one block of it alone, then a merge.

Phases (`Schedule.phase`):

* `coarse`: replicas of the whole model, as `replicated`.
* `blocks`: median cuts of the coarse Gaussians give one cell per rank. A rank trains the Gaussians of its cell and of a
  margin around it, on the training views that see enough of them; the rest of the coarse model is rendered with them
  but stays as it is. Steps send nothing.
* `merged`: each rank keeps what lies in its own cell, without the margin: every Gaussian is in exactly one block. What
  is left of the steps (`finish_share`) trains all blocks together, as `sharded`.

With `blocks: k` each phase is a job of its own on one rank (`RunSpec.part`), which goes on from the checkpoints of the
phase before: `coarse` ends with the cut, each of k jobs trains one block, the point's own job merges them.

Not the mathematics of one process: a block learns its part of an image against neighbours that stand still. Methods:
CityGaussian (Liu et al. 2024; coarse model as background, views by what they see of a block, threshold 0.05, merge by
the cell without margin), VastGaussian (Lin et al. 2024; margin 0.2) and BlockGaussian (Wu et al. 2025; densification
inside the block only). CityGaussian's threshold is on the SSIM lost without the block; here it is on the block's mean
blending weight over the image's pixels, which takes one rendering per view for every three blocks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import NAMES, SH_C0, Gaussians
from ..splats.render import Projection
from .digests import gather_digests, parameter_digest
from .replicated import Replicated, broadcast
from .sharded import Sharded
from .strategy import Parallel, Rendered, Rows, Setup, largest, travelling

#: Gaussians nearer to a cut than this share of the margin are along a seam.
SEAM_SHARE = 0.5
#: A pixel is on a seam if Gaussians along it have at least this blending weight there.
SEAM_WEIGHT = 0.5


class Blocks(Parallel):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.margin, self.threshold = setup.strategy.margin, setup.strategy.view_threshold
        self.replicated, self.sharded = Replicated(setup), Sharded(setup)
        #: True where phases and blocks are jobs of their own. Then, or on as many ranks: number of blocks, and of mine.
        self.in_jobs = setup.strategy.blocks is not None
        self.num_blocks = setup.strategy.blocks or self.comm.world_size
        self.block = self.comm.rank if setup.block is None else setup.block
        self._enter("coarse")
        #: Of all blocks: corners of the cells without and with margin, [B, 2, 3] float; training views, bool [B, T];
        #: most Gaussians in the cell and with the margin, int64 [B, 2].
        self._cells: Tensor | None = None
        self._enlarged: Tensor | None = None
        self._assigned: Tensor | None = None
        #: Training views of this rank's block, as `_views_of` has them.
        self._views: list[int] = []
        self._views_of: Tensor | None = None
        self._most: Tensor | None = None
        #: The coarse model: on every rank what is outside its enlarged cell, all of it on rank 0 for checkpoints.
        self._coarse: Rows = {}
        self._frozen: Rows = {}
        self._counts: list[int] = []
        self._saved: Rows = {}
        self._pairs: list[tuple[Projection, Projection]] = []

    def _enter(self, phase: str) -> None:
        self.phase, self.replicates = phase, phase == "coarse"

    @property
    def _now(self) -> Parallel:
        """The strategy that this one is, but while blocks train."""
        return self.replicated if self.phase == "coarse" else self.sharded

    @property
    def shards(self) -> list[int]:
        return list(self._counts) if self.phase == "blocks" else self._now.shards

    @property
    def views(self) -> list[int] | None:
        if self.phase != "blocks":
            return None
        assert self._assigned is not None
        # Every step asks: on a GPU it would wait for the step's work.
        if self._views_of is not self._assigned:
            self._views_of, self._views = self._assigned, self._assigned[self.block].nonzero()[:, 0].tolist()
        return self._views

    @property
    def idle(self) -> bool:
        return self.views == []

    def check_scene(self, num_points: int, num_views: int) -> None:
        for name, number in (("points", num_points), ("training views", num_views)):
            if number < self.num_blocks:
                what = "`parallel.blocks`" if self.in_jobs else "one per rank,"
                remedy = "set fewer blocks" if self.in_jobs else "choose a layout of fewer ranks"
                raise UserError(
                    f"{self.num_blocks} blocks, {what} are more than the scene's {number} {name}; {remedy}, or "
                    "another strategy"
                )

    def rows_needed(self, most: int, at_start: int) -> int:
        # Until the cut every rank trains the whole coarse model, which grows to the room that there is and no further.
        # Then it trains a block; what it renders around it has no moments and no gradients, and is not counted.
        return max(at_start, -(-most // self.num_blocks))

    # ---------------------------------------------------------------- from phase to phase

    @torch.no_grad()
    def advance(
        self, phase: str, rows: Rows, cameras: Iterable[Camera], max_gaussians: int
    ) -> tuple[Rows, dict[str, Any]]:
        facts: dict[str, Any] = {}
        if self.phase == "coarse":
            rows, facts = self._cut(rows, cameras, max_gaussians)
            self._enter("coarse" if self.in_jobs else "blocks")
        if phase == "merged":
            rows = self._core_rows(rows)
            self._count(len(rows["means"]))
            self.sharded.take_shards(self._counts)
            self._coarse, self._frozen, self._assigned = {}, {}, None
            self._enter("merged")
            facts = {"gaussians": self._counts}
        return rows, facts

    def _cut(self, rows: Rows, cameras: Iterable[Camera], max_gaussians: int) -> tuple[Rows, dict[str, Any]]:
        means = rows["means"].detach()
        cells = median_cuts(means, self.num_blocks)
        both = torch.stack([cells, enlarge(cells, means, self.margin)])
        self.comm.broadcast(both)
        self._cells, self._enlarged = both[0], both[1]
        in_cell = torch.stack([inside(means, cell) for cell in self._cells])
        in_margin = torch.stack([inside(means, cell) for cell in self._enlarged])
        weights = self._contributions(rows, in_margin, cameras)
        self._assigned = weights > self.threshold
        # The room that is left is divided evenly.
        numbers = torch.stack([in_cell.sum(1), in_margin.sum(1)], 1)
        self._most = numbers + max(0, max_gaussians - len(means)) // self.num_blocks
        if self.max_rows is not None:
            self._most.clamp_(max=self.max_rows)
        facts = {
            "gaussians": numbers[:, 0].tolist(),
            "trained": numbers[:, 1].tolist(),
            "views": self._assigned.sum(1).tolist(),
            "cells": [cell.tolist() for cell in self._cells],
        }
        return rows if self.in_jobs else self._take_block(rows), facts

    def _take_block(self, rows: Rows) -> Rows:
        """Return the rows of the coarse model, tensors [N, ...], that this block trains; freeze the others."""
        assert self._cells is not None and self._enlarged is not None
        cells = self._cells[[self.block]] if self.in_jobs else self._cells
        self._counts = [int(inside(rows["means"].detach(), cell).sum()) for cell in cells]
        self._freeze({name: rows[name].detach() for name in NAMES})
        trained = inside(rows["means"].detach(), self._enlarged[self.block])
        return {name: t.detach()[trained] for name, t in rows.items()}

    def _freeze(self, model: Rows) -> None:
        """Keep the part of the coarse model that stays as it is here; for checkpoints rank 0 of several keeps all."""
        assert self._enlarged is not None
        outside = ~inside(model["means"], self._enlarged[self.block])
        self._frozen = {name: t[outside] for name, t in model.items()}
        self._coarse = self._frozen if self.in_jobs else model if self.comm.rank == 0 else {}

    def _contributions(self, rows: Rows, masks: Tensor, cameras: Iterable[Camera]) -> Tensor:
        """Return the mean blending weight of each block's Gaussians in each view, float [B, T] in 0..1. Collective.

        Args:
            rows: the whole model, the same on all ranks: means [N, 3] float, ...
            masks: bool [B, N], the Gaussians of each enlarged cell.
            cameras: of the T training views; each rank renders every p-th.
        """
        comm, found, number = self.comm, [], 0
        groups = [Gaussians.activate(marked(rows, masks[i : i + 3])) for i in range(0, len(masks), 3)]
        for number, camera in enumerate(cameras, 1):
            if (number - 1) % comm.world_size == comm.rank:
                images = [
                    self.rasterize(self.project(inputs, camera, 0, False), camera, None, False).image
                    for inputs in groups
                ]
                found.append(torch.cat([image.colors.mean((0, 1)) for image in images])[: len(masks)])
        padded = rows["means"].new_zeros((-(-number // comm.world_size), len(masks)))
        if found:
            padded[: len(found)] = torch.stack(found)
        every = comm.all_gather(padded, "all_gather(contributions)")
        return every.movedim(0, 1).reshape(-1, len(masks))[:number].T

    def _core(self, rows: Rows | Gaussians) -> Tensor:
        """Return bool [N], those of this rank's Gaussians that the merged model has: in its cell, and as many as there
        is room for, the most opaque first.
        """
        assert self._cells is not None and self._most is not None
        mine = inside(rows["means"].detach(), self._cells[self.block])
        return largest(rows["opacities"].detach(), mine, int(self._most[self.block, 0]))

    def _core_rows(self, rows: Rows) -> Rows:
        core = self._core(rows)
        return {name: t.detach()[core] for name, t in rows.items()}

    def _count(self, mine: int) -> None:
        sizes = self.comm.all_gather(torch.tensor([mine], device=self.device), "all_gather(shards)")
        self._counts = sizes.flatten().tolist()

    # ---------------------------------------------------------------- ownership of rows

    def begin(self, phase: str, state: Rows) -> bool:
        known = "cells" in state, len(state.get("cells", ()))
        saved, blocks = self.comm.gather_objects(known)[0]
        if saved:
            few = broadcast(self.comm, lambda: {k: state[k] for k in ("cells", "enlarged")}, self.device)
            self._cells, self._enlarged = few["cells"], few["enlarged"]
        exact = phase != "blocks" or (saved and blocks == self.num_blocks)
        self._enter(phase if exact else "coarse")
        self._saved = state if self.phase == "blocks" else {}
        if (
            self.in_jobs and phase == "coarse" and "assigned" in state
        ):  # a coarse training that has ended with the cut
            self._assigned, self._most = (
                state["assigned"].bool().to(self.device),
                state["most"].to(self.device),
            )
        return exact

    def distribute(self, load: Callable[[], Rows], shards: Sequence[int] = ()) -> Rows:
        if self.phase != "blocks":
            return self._now.distribute(load, shards)
        comm, saved = self.comm, self._saved
        core = self.sharded.distribute(load, shards)
        if self.in_jobs and "is core" not in saved:  # the block begins
            self._assigned, self._most = (
                saved["assigned"].bool().to(self.device),
                saved["most"].to(self.device),
            )
            self._saved = {}
            return self._take_block(core)
        part = lambda prefix: {k.removeprefix(prefix): t for k, t in saved.items() if k.startswith(prefix)}  # noqa: E731
        few = broadcast(
            comm, lambda: {k: saved[k] for k in ("assigned", "most", "is core", "rows")}, self.device
        )
        self._assigned, self._most = few["assigned"].bool(), few["most"]
        sizes = few["rows"].tolist()
        is_core = few["is core"].bool().split(sizes)[comm.rank]
        margins = self.sharded.distribute(
            lambda: part("margin/"), [n - m for n, m in zip(sizes, shards, strict=True)]
        )
        self._counts = list(shards)
        rows = {}
        for name, t in core.items():
            rows[name] = t.new_empty((len(is_core), *t.shape[1:]))
            rows[name][is_core], rows[name][~is_core] = t, margins[name]
        self._freeze(broadcast(comm, lambda: part("coarse/"), self.device))
        self._saved = {}
        return rows

    def state(self, rows: Rows) -> Rows:
        if self._cells is None or self._enlarged is None:
            return {}
        few = {"cells": self._cells, "enlarged": self._enlarged}
        if self._assigned is None or self._most is None:
            return few
        few |= {"assigned": self._assigned.to(torch.uint8), "most": self._most}
        if self.phase != "blocks":
            return few
        core = self._core(rows)
        sizes = self.comm.all_gather(torch.tensor([len(core)], device=self.device), "all_gather(shards)")
        sizes = sizes.flatten()
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=self.device)
        padded[: len(core)] = core
        every = self.comm.all_gather(padded, "all_gather(is core)")
        is_core = torch.cat([part[:n] for part, n in zip(every, sizes.tolist(), strict=True)])
        self.sharded.take_shards((sizes - torch.tensor(self._counts, device=self.device)).tolist())
        margins = self.sharded.whole({name: t.detach()[~core] for name, t in rows.items()})
        if margins is None:
            return {}
        return {
            **few,
            "rows": sizes,
            "is core": is_core,
            **{f"margin/{name}": t for name, t in margins.items()},
            **{f"coarse/{name}": t for name, t in self._coarse.items()},
        }

    def whole(self, rows: Rows) -> Rows | None:
        if self.phase != "blocks":
            return self._now.whole(rows)
        kept = self._core_rows(rows)
        self._count(len(kept["means"]))
        self.sharded.take_shards(self._counts)
        return self.sharded.whole(kept)

    def rebalance(self, rows: Rows) -> Rows | None:
        if self.phase != "blocks":
            return self._now.rebalance(rows)
        self._count(int(self._core(rows).sum()))
        return None

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
        if self.phase == "blocks" and torch.is_grad_enabled():
            return self._render_block(gaussians, cameras[self.comm.rank], sh_degree, background, track)
        if self.phase == "blocks":  # an evaluation: of the model as a merge would make it now
            core = self._core(gaussians)
            gaussians = Gaussians({name: t[core] for name, t in gaussians.items()}, requires_grad=False)
        return self._now.render(gaussians, cameras, sh_degree=sh_degree, background=background, track=track)

    def _render_block(
        self,
        gaussians: Gaussians,
        cameras: Sequence[Camera],
        sh_degree: int,
        background: Tensor | None,
        track: bool,
    ) -> Rendered:
        """Render this rank's cameras from its block in front of, behind and among the frozen rest."""
        out = Rendered([], [], gaussians["means"][:0].sum())
        self._pairs = []
        with torch.no_grad():
            rest = Gaussians.activate(self._frozen)
        for inputs, camera in zip(gaussians.activated_per_view(len(cameras)), cameras, strict=True):
            projection = self.project(inputs, camera, sh_degree, track)
            with torch.no_grad():
                around = self.project(rest, camera, sh_degree, False)
            both = _together(projection, around)
            out.views.append(self.rasterize(both, camera, background, track))
            out.projections.append((projection, camera))
            self._pairs.append((projection, both))
        return out

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        if self.phase != "blocks":
            yield from self._now.reduce_gradients(gaussians, sh_degree)
            return
        for projection, both in self._pairs:
            if (absgrad := getattr(both.means2d, "absgrad", None)) is not None:
                projection.means2d.absgrad = absgrad[: len(projection.ids)]  # type: ignore[attr-defined]
        self._pairs = []
        if self.idle:
            return
        for name, _ in travelling(gaussians, sh_degree):
            # A view's weight in the loss is 1 / (images of all blocks); here this block's images are the batch.
            grad = gaussians[name].grad
            assert grad is not None
            grad.mul_(self.num_blocks)
            yield name

    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        return statistics if self.phase == "blocks" else self._now.reduce_statistics(statistics)

    @property
    def penalised_gaussians(self) -> float:
        # A block is trained as if it were the whole.
        return self.total_gaussians / (len(self.shards) if self.phase == "blocks" else 1)

    def global_topk(self, pull: Tensor, wanted: Tensor, count: int) -> Tensor:
        if self.phase == "coarse" and self.max_rows is not None:
            count = min(count, max(0, self.max_rows - len(pull)))
        if self.phase != "blocks":
            return self._now.global_topk(pull, wanted, count)
        assert self._most is not None
        return largest(pull, wanted, max(0, int(self._most[self.block, 1]) - len(pull)))

    def may_grow(self, gaussians: Gaussians, wanted: Tensor) -> Tensor:
        if self.phase != "blocks":
            return wanted
        assert self._enlarged is not None
        return wanted & inside(gaussians["means"].detach(), self._enlarged[self.block])

    def limit(self, gaussians: Gaussians, max_gaussians: int) -> int:
        return self._now.limit(gaussians, max_gaussians)

    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        if self.phase != "blocks":
            return self._now.compare_digests(gaussians)
        return gather_digests(self.comm, parameter_digest(gaussians), self.device)

    def reset_error_feedback(self) -> None:
        self._now.reset_error_feedback()

    def seams(self, gaussians: Gaussians, cameras: Sequence[Sequence[Camera]]) -> list[Tensor]:
        if self._cells is None or self._enlarged is None or self.phase == "coarse":
            return []
        near = near_cuts(gaussians["means"].detach(), self._cells, self._enlarged)
        shown = Gaussians(marked(gaussians, near[None]), requires_grad=False)
        rendered = self.render(shown, cameras, sh_degree=0, background=None, track=False)
        return [view.image.colors[..., 0] >= SEAM_WEIGHT for view in rendered.views]


# ---------------------------------------------------------------- cells


def median_cuts(means: Tensor, num_cells: int) -> Tensor:
    """Cut space into cells with about as many points each, [B, 2, 3] float: lower corners, inside, and upper ones.

    Each cut is across the axis along which the points of the part spread most (standard deviation). Outer cells reach
    to infinity: every point of space is in exactly one cell.

    Args:
        means: [N, 3] float, points.
        num_cells: B; where it is no power of two, parts are cut in proportion.

    Raises:
        UserError: fewer places than cells.
    """
    if num_cells == 1:
        return means.new_tensor([[[-torch.inf] * 3, [torch.inf] * 3]])
    left = num_cells // 2
    spread = means.double().std(0, correction=0) if len(means) >= num_cells else means.new_zeros(3)
    for axis in spread.argsort(descending=True, stable=True).tolist():
        places = means[:, axis].sort().values
        above = places[places > places[:1]]
        if len(means) < num_cells or not len(above):  # too few, or all in one place along this axis
            continue
        cut = torch.maximum(places[len(places) * left // num_cells], above[0])
        below, parts = means[:, axis] < cut, []
        for number, points, side in ((left, means[below], 1), (num_cells - left, means[~below], 0)):
            cells = median_cuts(points, number)
            cells[:, side, axis] = torch.where(torch.isinf(cells[:, side, axis]), cut, cells[:, side, axis])
            parts.append(cells)
        return torch.cat(parts)
    raise UserError(
        f"{len(means)} Gaussians in one place or fewer than blocks cannot be cut into {num_cells} of them; choose a "
        "layout of fewer ranks, or another strategy"
    )


def inside(means: Tensor, cell: Tensor) -> Tensor:
    """Return bool [N]: points in a cell. means: [N, 3] float. cell: [2, 3], its lower corner, inside, and upper one."""
    return ((means >= cell[0]) & (means < cell[1])).all(1)


def enlarge(cells: Tensor, means: Tensor, margin: float) -> Tensor:
    """Move each cut of each cell outwards by `margin` times the extent of the cell's points across it, [B, 2, 3].

    The extent is from the 5th to the 95th percentile: a few far points do not count.

    cells: [B, 2, 3] float, none empty. means: [N, 3] float.
    """
    moved = cells.clone()
    for cell in moved:
        points = means[inside(means, cell)].sort(0).values
        extent = points[(len(points) - 1) * 95 // 100] - points[(len(points) - 1) * 5 // 100]
        cell[0] -= margin * extent
        cell[1] += margin * extent
    return moved


def near_cuts(means: Tensor, cells: Tensor, enlarged: Tensor) -> Tensor:
    """Return bool [N]: points nearer to a cut of their own cell than `SEAM_SHARE` of its margin.

    means: [N, 3] float. cells, enlarged: [B, 2, 3], without and with margin.
    """
    near = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    for cell, larger in zip(cells, enlarged, strict=True):
        reach = (cell - larger).abs().nan_to_num(0.0) * SEAM_SHARE  # no cut at infinity
        middle = torch.stack([cell[0] + reach[0], cell[1] - reach[1]])
        near |= inside(means, cell) & ~inside(means, middle)
    return near


def marked(rows: Rows | Gaussians, masks: Tensor) -> Rows:
    """Return the parameters with colours that tell masks apart: channel i is 1 where masks[i] is True, else 0.

    Rendered at degree 0 over black, channel i of a pixel is the blending weight of the Gaussians of mask i.

    rows: means [N, 3] float, ... masks: bool [M, N], M at most 3.
    """
    channels = rows["sh0"].new_full((len(rows["sh0"]), 1, 3), -0.5 / SH_C0)
    channels[:, 0, : len(masks)] += masks.T.to(channels) / SH_C0
    return {name: channels if name == "sh0" else rows[name].detach() for name in NAMES}


def _together(first: Projection, second: Projection) -> Projection:
    """Concatenate two projections; ids are those of the joint one."""
    both = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ("means2d", "conics", "depths", "radii", "colors", "opacities")
    }
    return Projection(ids=torch.arange(len(both["depths"]), device=first.ids.device), **both)
