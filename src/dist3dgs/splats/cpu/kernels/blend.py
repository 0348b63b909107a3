"""Blending, forward and backward: one task is a 16x16 tile, one vector a 4x4 block of pixels.

alpha = 2^(log2 opacity + quadratic form); masks instead of branches; a pixel that is finished has the transmittance
NaN, for which every comparison is false, and keeps the last one elsewhere. The backward pass walks front to back like
the forward pass: with q = color . g (g the gradient of the pixel), the part of g . image behind Gaussian i is
rest_i = g . image - v_alpha T_final - sum_{j<=i} T_j alpha_j q_j, and dL/dalpha_i = T_i q_i - rest_i / (1 - alpha_i).
"""

import math

import llvmlite.ir as ir

from dist3dgs.splats.cpu.jit.ir import I16, I32, I64, LANES, Kernel, Pointer, Value, Variable
from dist3dgs.splats.cpu.jit.vmath import exp2, sum_lanes
from dist3dgs.splats.cpu.kernels.tiles import (
    AA,
    AB,
    BB,
    BLOCK_PX,
    DEPTH,
    FIELDS,
    LOG2_ALPHA_MIN,
    LOG_OPACITY,
    RED,
    TILE_PX,
    X,
    Y,
)
from dist3dgs.splats.render.api import ALPHA_MAX, TRANSMITTANCE_MIN

PIXELS = TILE_PX * TILE_PX
SLOT = 16  # numbers per slot
# What the lanes of a slot hold, sums over the pixels of w = dL/d(log alpha): w, w dx, w dy, w dx^2, w dx dy, w dy^2,
# then the gradients of the channels, then |dL/dx|, |dL/dy| when absgrad
NUM_MOMENTS = 6
PREFETCH = 8  # entries ahead


class _Lists:
    """Kernel parameters with the lists of Gaussians that touch each tile."""

    def __init__(self, k: Kernel) -> None:
        self.packed, self.num_columns = k.pointer(), k.arg(I64)
        self.width, self.height = k.arg(I64), k.arg(I64)
        self.starts, self.stops = k.pointer(I64), k.pointer(I64)
        self.who, self.masks = k.pointer(I32), k.pointer(I16)

    def prefetch(self, entry: Value) -> None:
        """Prefetch the fields of a Gaussian, which may span two cache lines."""
        first = self.who[entry].to(I64) * FIELDS
        self.packed.prefetch(first)
        self.packed.prefetch(first + (FIELDS - 1))


def _pixel_of_lane(k: Kernel, block: Value) -> tuple[Value, Value]:
    """Column and row, px in the tile, of the 16 pixels of a block, as int64."""
    lane_x = k.lanes([i % BLOCK_PX for i in range(LANES)], I64)
    lane_y = k.lanes([i // BLOCK_PX for i in range(LANES)], I64)
    return lane_x + k.splat((block & 3) << 2), lane_y + k.splat((block >> 2) << 2)


class _Blocks:
    """State of a tile's 16 blocks of pixels, on the stack: for each block its lines of 16 numbers, side by side.

    The first two lines are the pixel centres, px in the tile, the third the transmittance. A 17th block of finished
    pixels stands in where there is no second block to work on. The number of lines is not a power of two: lines that
    lie 4096 bytes apart look alike to the processor, and a load of the one would wait for a store to the other.
    """

    def __init__(self, k: Kernel, num_lines: int) -> None:
        self.k, self.num_lines = k, num_lines + 2
        self.lines = k.local(self.num_lines * (PIXELS + LANES))
        with k.loop(0, LANES + 1) as block:
            for axis, pixel in enumerate(_pixel_of_lane(k, block)):
                self.store([block], axis - 2, pixel.to(k.real) + 0.5)
            self.store([block], 0, math.nan)
            for line in range(1, num_lines):
                self.store([block], line, 0.0)

    def _place(self, block: Value, line: int) -> Value:
        return block.to(I64) * (self.num_lines * LANES) + (line + 2) * LANES

    def centre(self, blocks: list[Value]) -> tuple[Value, Value]:
        """Return x and y of the pixels' centres."""
        return self.load(blocks, -2), self.load(blocks, -1)

    def load(self, blocks: list[Value], line: int) -> Value:
        """Return one number of each of the pixels of one or two blocks."""
        parts = [self.lines.load(self._place(block, line), 64) for block in blocks]
        return parts[0] if len(parts) == 1 else parts[0].join(parts[1])

    def store(self, blocks: list[Value], line: int, value: Value | float) -> None:
        parts = value.halves() if isinstance(value, Value) and len(blocks) == 2 else [value]
        for block, part in zip(blocks, parts, strict=True):
            self.lines.store(self._place(block, line), part, 64)


class _Gaussian:
    """One Gaussian's numbers, relative to a tile."""

    def __init__(self, k: Kernel, g: Pointer, left: Value, top: Value, num_channels: int) -> None:
        self.k = k
        self.x, self.y = g[X] - left, g[Y] - top
        self.aa, self.ab, self.bb = (g[f] for f in (AA, AB, BB))
        self.log_opacity = g[LOG_OPACITY]
        fields = [RED, RED + 1, RED + 2, DEPTH][:num_channels]
        self.channels = [g[f] for f in fields]

    def alpha(self, px: Value, py: Value) -> tuple[Value, Value, Value, Value]:
        """dx, dy, unclamped alpha, and whether it counts: at least 1/255."""
        k = self.k
        dx, dy = self.x - px, self.y - py
        exponent = k.fma(k.fma(self.aa, dx, self.ab * dy), dx, k.fma(self.bb * dy, dy, self.log_opacity))
        # the quadratic form is never positive, but its rounding can be, on the ridge of a needle
        log_alpha = exponent.min(self.log_opacity)
        counts = log_alpha >= LOG2_ALPHA_MIN
        return dx, dy, exp2(k, log_alpha), counts


def write_blend(module: ir.Module, real: ir.Type, num_channels: int) -> None:
    """Blend the tiles' lists into an image of `num_channels` (3: RGB; 4: RGB and depth)."""
    k = Kernel(module, f"blend{num_channels}", real)
    counter, num_tiles = k.pointer(I64), k.arg(I64)
    lists = _Lists(k)
    background, image, transmittance, used = k.pointer(), k.pointer(), k.pointer(), k.pointer(I64)
    blocks = _Blocks(
        k, 2 + num_channels
    )  # transmittance, the channels, and the transmittance of finished pixels
    with k.tasks(counter, num_tiles) as tile:
        column, row = (tile % lists.num_columns) * TILE_PX, (tile // lists.num_columns) * TILE_PX
        live = k.variable(k.constant(0, I32))
        with k.loop(0, LANES) as block:
            x, y = _pixel_of_lane(k, block)
            inside = (x + column < lists.width) & (y + row < lists.height)
            blocks.store([block], 0, k.select(inside, 1.0, k.cast(math.nan, k.vreal)))
            with k.when(inside.mask_bits().differs(0)):
                live.set(live.get() | (k.constant(1, I32) << block.to(I32)))
            for c in range(num_channels):
                blocks.store([block], 1 + c, 0.0)
        entry, stop = k.variable(lists.starts[tile]), lists.stops[tile]
        left, top = column.to(k.real), row.to(k.real)
        with k.loop_while(lambda: (entry.get() < stop) & live.get().differs(0)):
            e = entry.get()
            lists.prefetch((e + PREFETCH).min(stop - 1))
            mask = k.variable(_mask(lists, e) & live.get())
            with k.when(mask.get().differs(0)):
                g = _Gaussian(k, lists.packed.at(lists.who[e].to(I64) * FIELDS), left, top, num_channels)
                with k.loop_while(lambda: mask.get().differs(0)):
                    _blend_two(k, g, _take_two(k, mask), blocks, live)
            entry.set(e + 1)
        used[tile] = entry.get()
        _write_tile(k, lists, column, row, blocks, num_channels, background, image, transmittance)
    k.finish()


def _take_two(k: Kernel, mask: Variable) -> list[Value]:
    """Take the two lowest blocks out of a mask; the second is the 17th, of finished pixels, if there is only one.

    Two at a time, because one block alone is a long chain of dependent instructions that leaves the units idle.
    """
    first = mask.get().lowest_bit()
    mask.set(mask.get() & (mask.get() - 1))
    second = (mask.get() | (1 << LANES)).lowest_bit()
    mask.set(mask.get() & (mask.get() - 1))
    return [first, second]


def _mask(lists: _Lists, entry: Value) -> Value:
    return lists.masks[entry].to(I32) & 0xFFFF


def _blend_two(k: Kernel, g: _Gaussian, two: list[Value], blocks: _Blocks, live: Variable) -> None:
    _, _, raw, counts = g.alpha(*blocks.centre(two))
    alpha = raw.min(ALPHA_MAX)
    before = blocks.load(two, 0)
    after = k.fma(-before, alpha, before)
    goes_on = counts & (after > TRANSMITTANCE_MIN)
    weight = k.select(goes_on, alpha * before, 0.0)
    for c, color in enumerate(g.channels):
        blocks.store(two, 1 + c, k.fma(weight, color, blocks.load(two, 1 + c)))
    blocks.store(two, 0, before - weight)
    _finish_pixels(k, blocks, two, counts & (after <= TRANSMITTANCE_MIN), live, 1 + len(g.channels))


def _finish_pixels(
    k: Kernel, blocks: _Blocks, two: list[Value], ended: Value, live: Variable, keep: int | None
) -> None:
    """Mark the pixels that would become too dark, keeping their transmittance in line `keep`; and full blocks."""
    first, second = ended.halves()
    with k.when((first | second).mask_bits().differs(0), likely=False):
        now = blocks.load(two, 0)
        if keep is not None:
            blocks.store(two, keep, k.select(ended, now, blocks.load(two, keep)))
        now = k.select(ended, math.nan, now)
        blocks.store(two, 0, now)
        for block, half in zip(two, now.halves(), strict=True):
            with k.when(half.equals(half).mask_bits().equals(0)):
                live.set(live.get() & ~(k.constant(1, I32) << block))


def _write_tile(
    k: Kernel, lists: _Lists, column: Value, row: Value, blocks: _Blocks, num_channels: int,
    background: Pointer, image: Pointer, transmittance: Pointer,
) -> None:  # fmt: skip
    colors = [k.splat(background[c]) for c in range(num_channels)]
    with k.loop(0, LANES) as block:
        x, y = _pixel_of_lane(k, block)
        x, y = x + column, y + row
        inside = (x < lists.width) & (y < lists.height)
        pixel = y * lists.width + x
        left_over = blocks.load([block], 0)
        left_over = k.select(left_over.equals(left_over), left_over, blocks.load([block], 1 + num_channels))
        transmittance.scatter(pixel, left_over, inside)
        for c, color in enumerate(colors):
            value = k.fma(left_over, color, blocks.load([block], 1 + c))
            image.scatter(pixel * num_channels + c, value, inside)


def write_blend_backward(module: ir.Module, real: ir.Type, num_channels: int, absgrad: bool) -> None:
    """Gradients of every pair (Gaussian, tile) of some tiles, into the pairs' slots."""
    k = Kernel(module, f"blend_backward{num_channels}{'_abs' if absgrad else ''}", real)
    counter, first_tile, last_tile = k.pointer(I64), k.arg(I64), k.arg(I64)
    lists = _Lists(k)
    pair_slots, row_bases = k.pointer(I32), k.pointer(I64)
    image, transmittance, used = k.pointer(), k.pointer(), k.pointer(I64)
    v_image, v_alpha, slots = k.pointer(), k.pointer(), k.pointer()
    blocks = _Blocks(k, 2 + num_channels)  # transmittance, rest, gradients of the channels
    num_sums = NUM_MOMENTS + num_channels + 2 * absgrad
    with k.tasks(counter, last_tile - first_tile) as task:
        tile = task + first_tile
        column, row = (tile % lists.num_columns) * TILE_PX, (tile // lists.num_columns) * TILE_PX
        live = k.variable(k.constant(0, I32))
        _read_tile(k, lists, column, row, blocks, num_channels, image, transmittance, v_image, v_alpha, live)
        left, top = column.to(k.real), row.to(k.real)
        base = row_bases[tile // lists.num_columns]
        with k.loop(lists.starts[tile], used[tile]) as e:
            lists.prefetch((e + PREFETCH).min(used[tile] - 1))
            mask = k.variable(_mask(lists, e) & live.get())
            sums = [k.variable(k.zero(k.vreal)) for _ in range(num_sums)]
            slot = slots.at((pair_slots[e].to(I64) + base) * SLOT)
            with k.when(mask.get().equals(0)):
                slot.store(0, 0.0, 64)
            with k.when(mask.get().differs(0)):
                g = _Gaussian(k, lists.packed.at(lists.who[e].to(I64) * FIELDS), left, top, num_channels)
                with k.loop_while(lambda: mask.get().differs(0)):
                    _blend_two_backward(k, g, _take_two(k, mask), blocks, live, sums, absgrad)
                slot.store(0, sum_lanes(k, [s.get() for s in sums]), 64)
        with k.loop(used[tile], lists.stops[tile]) as e:
            slots.at((pair_slots[e].to(I64) + base) * SLOT).store(0, 0.0, 64)
    k.finish()


def _read_tile(
    k: Kernel, lists: _Lists, column: Value, row: Value, blocks: _Blocks, num_channels: int, image: Pointer,
    transmittance: Pointer, v_image: Pointer, v_alpha: Pointer, live: Variable,
) -> None:  # fmt: skip
    with k.loop(0, LANES) as block:
        x, y = _pixel_of_lane(k, block)
        x, y = x + column, y + row
        inside = (x < lists.width) & (y < lists.height)
        pixel = y * lists.width + x
        # g . image - v_alpha T: what all Gaussians and the background contribute
        rest = -(transmittance.gather(pixel, inside) * v_alpha.gather(pixel, inside))
        for c in range(num_channels):
            gradient = v_image.gather(pixel * num_channels + c, inside)
            rest = k.fma(gradient, image.gather(pixel * num_channels + c, inside), rest)
            blocks.store([block], 2 + c, gradient)
        blocks.store([block], 1, rest)
        blocks.store([block], 0, k.select(inside, 1.0, k.cast(math.nan, k.vreal)))
        with k.when(inside.mask_bits().differs(0)):
            live.set(live.get() | (k.constant(1, I32) << block.to(I32)))


def _blend_two_backward(
    k: Kernel, g: _Gaussian, two: list[Value], blocks: _Blocks, live: Variable,
    sums: list[Variable], absgrad: bool,
) -> None:  # fmt: skip
    dx, dy, raw, counts = g.alpha(*blocks.centre(two))
    alpha = raw.min(ALPHA_MAX)
    before = blocks.load(two, 0)
    after = k.fma(-before, alpha, before)
    goes_on = counts & (after > TRANSMITTANCE_MIN)
    weight = k.select(goes_on, alpha * before, 0.0)
    gradients = [blocks.load(two, 2 + c) for c in range(len(g.channels))]
    q = g.channels[-1] * gradients[-1]
    for color, gradient in zip(g.channels[-2::-1], gradients[-2::-1], strict=True):
        q = k.fma(color, gradient, q)
    rest = k.fma(-weight, q, blocks.load(two, 1))
    blocks.store(two, 1, rest)
    # dL/d(log alpha) = alpha dL/dalpha; a clamped alpha does not depend on the Gaussian
    w = k.fma(weight, q, -(rest * (alpha / (1.0 - alpha))))
    w = k.select(goes_on & (raw <= ALPHA_MAX), w, 0.0)
    blocks.store(two, 0, before - weight)
    wx, wy = w * dx, w * dy
    for total, value in zip(sums, (w, wx, wy), strict=False):
        first, second = value.halves()
        total.add(first + second)
    products = [(wx, dx), (wx, dy), (wy, dy), *((weight, gradient) for gradient in gradients)]
    for total, (a, b) in zip(sums[3:], products, strict=False):
        for x, y in zip(a.halves(), b.halves(), strict=True):
            total.set(k.fma(x, y, total.get()))
    if absgrad:  # d(log alpha)/dx = ln 2 (2 aa dx + ab dy), in the units of `packed`
        by_x = k.fma(2.0 * g.aa, wx, g.ab * wy)
        by_y = k.fma(2.0 * g.bb, wy, g.ab * wx)
        for total, value in zip(sums[-2:], (by_x, by_y), strict=True):
            first, second = value.abs().halves()
            total.add(first + second)
    _finish_pixels(k, blocks, two, counts & (after <= TRANSMITTANCE_MIN), live, None)


def write_gather(module: ir.Module, real: ir.Type) -> None:
    """Add the slots of some rows of tiles to the Gaussians' sums: per chunk of Gaussians, row by row, in order."""
    k = Kernel(module, "gather", real)
    counter, chunk_size, n, num_sums = k.pointer(I64), k.arg(I64), k.arg(I64), k.arg(I64)
    sources, num_rows, first_row, last_row = k.pointer(I32), k.arg(I64), k.arg(I64), k.arg(I64)
    entry_starts, entry_stops = k.pointer(I64), k.pointer(I64)  # [chunk, row] range in the rows' lists
    row_starts, row_lists, first_slots = k.pointer(I64), k.pointer(I32), k.pointer(I32)
    row_slots, row_bases, slots, totals = k.pointer(I64), k.pointer(I64), k.pointer(), k.pointer()
    lanes = k.lanes(list(range(LANES)), I64) < k.splat(num_sums)
    with k.tasks(counter, (n + (chunk_size - 1)) // chunk_size) as chunk, k.loop(first_row, last_row) as row:
        place = chunk * num_rows + row
        last = row_starts[row + 1] - 1
        with k.loop(entry_starts[place], entry_stops[place]) as entry:
            ahead = row_lists[(entry + PREFETCH).min(last)]
            totals.prefetch(sources[ahead].to(I64) * num_sums)
            totals.prefetch(sources[ahead].to(I64) * num_sums + (num_sums - 1))
            begin, end = first_slots[entry].to(I64), k.variable(row_slots[row])
            with k.when(entry < last):
                end.set(first_slots[entry + 1].to(I64))
            with k.when(begin < end.get()):
                total = k.variable(slots.load((begin + row_bases[row]) * SLOT, 64))
                with k.loop(begin + 1, end.get()) as slot:
                    total.add(slots.load((slot + row_bases[row]) * SLOT, 64))
                to = sources[row_lists[entry]].to(I64) * num_sums
                totals.store_masked(to, totals.load_masked(to, lanes) + total.get(), lanes)
    k.finish()


def write_settle(module: ir.Module, real: ir.Type) -> None:
    """Turn the sums of each Gaussian into gradients, in place.

    Before: the moments of w, see above, then channels. After: x, y, three of the conic, opacity, channels.
    """
    k = Kernel(module, "settle", real)
    counter, chunk_size, n, num_sums, absgrad = k.pointer(I64), k.arg(I64), k.arg(I64), k.arg(I64), k.arg(I64)
    conics, opacities, totals = k.pointer(), k.pointer(), k.pointer()
    with k.tasks(counter, (n + (chunk_size - 1)) // chunk_size) as chunk:
        start = chunk * chunk_size
        stop = (start + chunk_size).min(n)
        with k.loop(start, stop, LANES) as i:
            lane = k.splat(i) + k.lanes(list(range(LANES)), I64)
            mask = lane < k.splat(stop)
            w, wx, wy, wxx, wxy, wyy = (totals.gather(lane * num_sums + j, mask) for j in range(NUM_MOMENTS))
            a, b, c = (conics.gather(lane * 3 + j, mask) for j in range(3))
            results = [
                -k.fma(a, wx, b * wy), -k.fma(b, wx, c * wy), -0.5 * wxx, -wxy, -0.5 * wyy,
                w / opacities.gather(lane, mask),
            ]  # fmt: skip
            for j, value in enumerate(results):
                totals.scatter(lane * num_sums + j, value, mask)
            with k.when(absgrad.differs(0)):
                for j in (1, 2):
                    place = lane * num_sums + (num_sums - j)
                    totals.scatter(place, totals.gather(place, mask) * 0.6931471805599453, mask)
    k.finish()
