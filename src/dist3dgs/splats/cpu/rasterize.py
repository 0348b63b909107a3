"""Rasterisation of a projection as an autograd function over the compiled kernels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist3dgs.errors import UserError
from dist3dgs.splats.cpu.jit.threads import run
from dist3dgs.splats.cpu.kernels.blend import NUM_MOMENTS, SLOT
from dist3dgs.splats.cpu.kernels.library import kernels
from dist3dgs.splats.cpu.kernels.tiles import DIGIT_BITS, FIELDS, TILE_PX, final_buffer

MIN_CHUNK, MAX_CHUNKS = 1024, 256
MAX_PAIRS = 1 << 31
# Memory for slots, which hold at least one row of tiles at a time
SLOT_BYTES_PER_GAUSSIAN = 64
SLOT_BYTES_PER_THREAD = 1 << 20


@dataclass
class Lists:
    """Lists of the Gaussians that touch each tile; see `tiles`."""

    num_columns: int
    num_rows: int
    chunk_size: int
    sources: Tensor  # int32 [V] place -> position in the projection
    packed: Tensor  # [V, FIELDS]
    row_starts: Tensor  # int64 [rows + 1]
    row_lists: Tensor  # int32
    entry_starts: Tensor  # int64 [chunks, rows]
    entry_stops: Tensor
    tile_starts: Tensor  # int64 [tiles]
    tile_stops: Tensor
    who: Tensor  # int32 [pairs]
    masks: Tensor  # int16 [pairs]
    pair_slots: Tensor  # int32 [pairs]
    first_slots: Tensor  # int32 [entries]
    row_slots: Tensor  # int64 [rows]

    @property
    def num_chunks(self) -> int:
        return len(self.entry_starts)


def make_lists(
    means2d: Tensor, conics: Tensor, depths: Tensor, radii: Tensor, colors: Tensor, opacities: Tensor,
    width: int, height: int,
) -> Lists:  # fmt: skip
    """Sort the Gaussians of one camera by depth and bin them into tiles.

    Args:
        means2d, conics, depths: [V,2], [V,3] and [V], float32 or float64, contiguous as all others, as in
            `Projection`.
        radii: int32 [V,2].
        colors, opacities: [V,3] and [V], of the dtype of `means2d`.
        width, height: image size, px.

    Raises:
        UserError: the Gaussians cover `MAX_PAIRS` tiles or more.
    """
    n, get = len(depths), kernels(depths.dtype)
    num_columns, num_rows = -(-width // TILE_PX), -(-height // TILE_PX)
    chunk_size = MIN_CHUNK * max(1, -(-n // (MIN_CHUNK * MAX_CHUNKS)))
    num_chunks = max(1, -(-n // chunk_size))
    bits = depths.element_size() * 8
    keys = torch.empty(2, n, dtype=torch.int32 if bits == 32 else torch.int64)
    places, *orders = torch.empty(3, n, dtype=torch.int32)
    counts = torch.empty((-(-bits // DIGIT_BITS) << DIGIT_BITS) + num_columns * num_rows, dtype=torch.int32)
    home_counts = counts[-num_columns * num_rows :]
    run(
        get("place"), depths, means2d, n, num_columns, num_rows, places, home_counts, keys[0], orders[0], counts,
        num_tasks=1,
    )  # fmt: skip
    packed = depths.new_empty(n, FIELDS)
    boxes = torch.empty(n, 4, dtype=torch.int16)
    sources = torch.empty(n, dtype=torch.int32)
    run(
        get("pack"), chunk_size, n, places, means2d, conics, depths, radii, colors, opacities, num_columns, num_rows,
        packed, boxes, sources, keys[0], keys[1], *orders, counts, num_tasks=num_chunks + 1,
    )  # fmt: skip
    order = orders[final_buffer(bits)]
    row_counts = torch.zeros(num_chunks, num_rows, dtype=torch.int32)
    tile_counts = torch.zeros(num_chunks, num_rows, dtype=torch.int64)
    run(
        get("count"), chunk_size, n, order, boxes, num_rows, row_counts, tile_counts, num_tasks=num_chunks
    )  # fmt: skip
    ends = row_counts.T.reshape(-1).cumsum(0).reshape(num_rows, num_chunks)
    row_starts = torch.cat([ends.new_zeros(1), ends[:, -1]])
    entry_starts = (ends.T - row_counts).contiguous()
    entry_stops = entry_starts.clone()
    row_tiles = tile_counts.sum(0).cumsum(0)
    num_pairs, num_entries = int(row_tiles[-1]), int(row_starts[-1])
    if num_pairs >= MAX_PAIRS:
        raise UserError(
            f"{n} Gaussians cover {num_pairs} tiles of a {width} x {height} px image, more than {MAX_PAIRS}: "
            "they are far too large for this camera; check the scene's scale, or prune large Gaussians"
        )
    row_tiles = torch.cat([row_tiles.new_zeros(1), row_tiles[:-1]])
    row_lists = torch.empty(num_entries, dtype=torch.int32)
    run(get("rows"), chunk_size, n, order, boxes, num_rows, entry_stops, row_lists, num_tasks=num_chunks)
    lists = Lists(
        num_columns, num_rows, chunk_size, sources, packed, row_starts, row_lists, entry_starts, entry_stops,
        tile_starts=torch.empty(num_rows * num_columns, dtype=torch.int64),
        tile_stops=torch.empty(num_rows * num_columns, dtype=torch.int64),
        who=torch.empty(num_pairs, dtype=torch.int32), masks=torch.empty(num_pairs, dtype=torch.int16),
        pair_slots=torch.empty(num_pairs, dtype=torch.int32),
        first_slots=torch.empty(num_entries, dtype=torch.int32), row_slots=torch.empty(num_rows, dtype=torch.int64),
    )  # fmt: skip
    run(
        get("bin"), num_columns, num_rows, packed, boxes, row_starts, row_lists, row_tiles, lists.tile_starts,
        lists.tile_stops, lists.who, lists.masks, lists.pair_slots, lists.first_slots, lists.row_slots,
        num_tasks=num_rows,
    )  # fmt: skip
    return lists


class Rasterize(torch.autograd.Function):
    """(means2d, conics, depths, colors, opacities, background, radii, width, height, absgrad, render_depth) ->
    (image [H,W,3 or 4], transmittance [H,W])."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        (
            means2d,
            conics,
            depths,
            colors,
            opacities,
            background,
            radii,
            width,
            height,
            absgrad,
            render_depth,
        ) = inputs
        conics, opacities = conics.contiguous(), opacities.contiguous()
        lists = make_lists(
            means2d.contiguous(), conics, depths.contiguous(), radii.contiguous(), colors.contiguous(), opacities,
            width, height,
        )  # fmt: skip
        num_channels = 4 if render_depth else 3
        image, transmittance = depths.new_empty(height, width, num_channels), depths.new_empty(height, width)
        num_tiles = lists.num_columns * lists.num_rows
        behind = torch.cat([background, background.new_zeros(1)])
        used = torch.empty(num_tiles, dtype=torch.int64)
        run(
            kernels(depths.dtype)(f"blend{num_channels}"), num_tiles, lists.packed, lists.num_columns, width, height,
            lists.tile_starts, lists.tile_stops, lists.who, lists.masks, behind, image, transmittance, used,
            num_tasks=num_tiles,
        )  # fmt: skip
        ctx.save_for_backward(means2d, conics, opacities, image, transmittance)
        ctx.state = (lists, used, absgrad)
        return image, transmittance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_transmittance: Tensor) -> tuple[Any, ...]:
        means2d, conics, opacities, image, transmittance = ctx.saved_tensors
        lists, used, absgrad = ctx.state
        num_channels = image.shape[2]
        v_image, v_alpha = v_image.contiguous(), -v_transmittance
        totals = _backward_sums(lists, used, image, transmittance, v_image, v_alpha, absgrad)
        n, num_sums = totals.shape
        run(
            kernels(image.dtype)("settle"), lists.chunk_size, n, num_sums, int(absgrad), conics, opacities, totals,
            num_tasks=lists.num_chunks,
        )  # fmt: skip
        if absgrad:
            means2d.absgrad = totals[:, -2:]
        first = NUM_MOMENTS
        v_depths = totals[:, first + 3] if num_channels == 4 else None
        v_background = None
        if ctx.needs_input_grad[5]:
            v_background = torch.einsum("hwc,hw->c", v_image[..., :3], transmittance)
        return (
            totals[:, :2], totals[:, 2:5], v_depths, totals[:, first : first + 3], totals[:, 5], v_background,
            *[None] * 5,
        )  # fmt: skip


def _backward_sums(
    lists: Lists,
    used: Tensor,
    image: Tensor,
    transmittance: Tensor,
    v_image: Tensor,
    v_alpha: Tensor,
    absgrad: bool,
) -> Tensor:
    """Sum each Gaussian's slots over its tiles, [V, sums], in the same order for any number of threads."""
    height, width, num_channels = image.shape
    get, n = kernels(image.dtype), len(lists.sources)
    totals = image.new_zeros(n, NUM_MOMENTS + num_channels + 2 * absgrad)
    row_slots = lists.row_slots.tolist()
    slot_bytes = SLOT * image.element_size()
    budget = max(SLOT_BYTES_PER_GAUSSIAN * n, SLOT_BYTES_PER_THREAD * torch.get_num_threads()) // slot_bytes
    segments = split_rows(row_slots, budget)
    slots = image.new_empty(max(sum(row_slots[a:b]) for a, b in segments), SLOT)
    bases = lists.row_slots.cumsum(0) - lists.row_slots
    for first, last in segments:
        # rows count slots from the image's first; the memory holds those from `first` on
        held = slots.data_ptr() - int(bases[first]) * slot_bytes
        tiles = (first * lists.num_columns, last * lists.num_columns)
        run(
            get(f"blend_backward{num_channels}{'_abs' if absgrad else ''}"), *tiles, lists.packed, lists.num_columns,
            width, height, lists.tile_starts, lists.tile_stops, lists.who, lists.masks, lists.pair_slots, bases,
            image, transmittance, used, v_image, v_alpha, held, num_tasks=tiles[1] - tiles[0],
        )  # fmt: skip
        run(
            get("gather"), lists.chunk_size, n, totals.shape[1], lists.sources, lists.num_rows, first, last,
            lists.entry_starts, lists.entry_stops, lists.row_starts, lists.row_lists, lists.first_slots,
            lists.row_slots, bases, held, totals, num_tasks=lists.num_chunks,
        )  # fmt: skip
    return totals


def split_rows(counts: list[int], budget: int) -> list[tuple[int, int]]:
    """Cut rows into runs [first, last) whose counts add up to at most `budget`, or of one row."""
    segments, first, total = [], 0, 0
    for row, count in enumerate(counts):
        if row > first and total + count > budget:
            segments.append((first, row))
            first, total = row, 0
        total += count
    return [*segments, (first, len(counts))]
