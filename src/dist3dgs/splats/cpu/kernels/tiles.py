"""Bin Gaussians into the 16x16 pixel tiles and 4x4 pixel blocks they touch, in depth order.

`place`: for each Gaussian its place in an order by home tile, in which the numbers of Gaussians that are blended
together lie together in memory -> `pack`: their numbers, at their places; and the places sorted by depth -> `count`,
`rows`: for each row of tiles the list of its Gaussians, by depth -> `bin`: for each tile the list of its Gaussians,
each with a 16-bit mask of the blocks in which its alpha reaches 1/255 somewhere.
"""

import math

import llvmlite.ir as ir

from dist3dgs.splats.cpu.jit.ir import I16, I32, I64, LANES, Kernel, Pointer, Value
from dist3dgs.splats.cpu.jit.vmath import load_rows, log2
from dist3dgs.splats.cpu.kernels.geometry import lanes_below, scatter_rows
from dist3dgs.splats.render.api import ALPHA_MIN

TILE_PX = 16
BLOCK_PX = 4  # 4x4 pixels are one vector
FIELDS = 12  # numbers per Gaussian: x, y, three of the exponent, log2(opacity), RGB, depth, two slopes
X, Y, AA, AB, BB, LOG_OPACITY, RED, DEPTH, SLOPE_X, SLOPE_Y = 0, 1, 2, 3, 4, 5, 6, 9, 10, 11
LOG2_E = 1.0 / math.log(2)
LOG2_ALPHA_MIN = math.log2(ALPHA_MIN)
# A mask may keep a block too many, never lose one: covers rounding of the exponent (in log2 units, of about 8)
MASK_MARGIN = 4e-3
DIGIT_BITS = 11
PREFETCH = 8  # entries ahead


def write_place(module: ir.Module, real: ir.Type) -> None:
    """Places by home tile (the one of the centre), and the keys and first counts of the sort by depth. One thread."""
    k = Kernel(module, "place", real)
    k.pointer(I64)
    depths, means2d, n = k.pointer(k.integer), k.pointer(), k.arg(I64)
    num_columns, num_rows = k.arg(I64), k.arg(I64)
    places, home_counts, keys, order, counts = (k.pointer(kind) for kind in (I32, I32, k.integer, I32, I32))
    bits = k.integer.width
    counts.clear(0, _passes(k) << DIGIT_BITS)
    home_counts.clear(0, num_columns * num_rows)

    def home(coordinate: Value, num_tiles: Value) -> Value:
        last = (num_tiles - 1).to(k.real)
        return (coordinate * (1.0 / TILE_PX)).max(0.0).min(last).to(I64)

    with k.loop(0, n) as i:
        raw = depths[i]
        # order of floats as unsigned integers: flip the sign bit, and all others of negative numbers
        key = raw ^ k.select(raw < 0, k.constant(-1, k.integer), k.constant(-(1 << (bits - 1)), k.integer))
        keys[i] = key
        for p in range(_passes(k)):
            place = _digit(key, p)
            counts[place] = counts[place] + 1
        tile = home(means2d[i * 2 + 1], num_rows) * num_columns + home(means2d[i * 2], num_columns)
        places[i] = tile.to(I32)
        home_counts[tile] = home_counts[tile] + 1
    _to_starts(k, home_counts, k.constant(0, I64), num_columns * num_rows)
    with k.loop(0, n) as i:
        tile = places[i]
        place = home_counts[tile]
        home_counts[tile] = place + 1
        places[i] = place
        order[i] = place
    k.finish()


def _passes(k: Kernel) -> int:
    return -(-k.integer.width // DIGIT_BITS)


def _digit(key: Value, p: int) -> Value:
    """Return the counter's index for digit p of a key."""
    radix = 1 << DIGIT_BITS
    return ((key >> (p * DIGIT_BITS)) & (radix - 1)).to(I64) + p * radix


def _sort(k: Kernel, n: Value, keys: list[Pointer], orders: list[Pointer], counts: Pointer) -> None:
    """Least significant digit radix sort; ties keep the order in which the Gaussians were given."""
    for p in range(_passes(k)):
        source, target = p % 2, (p + 1) % 2
        first = k.constant(p << DIGIT_BITS, I64)
        _to_starts(k, counts, first, first + (1 << DIGIT_BITS))
        with k.loop(0, n) as i:
            key = keys[source][i]
            digit = _digit(key, p)
            to = counts[digit]
            counts[digit] = to + 1
            keys[target][to] = key
            orders[target][to] = orders[source][i]


def _to_starts(k: Kernel, counts: Pointer, first: Value, last: Value) -> None:
    """Replace counts by the sums of those before them."""
    total = k.variable(k.constant(0, I32))
    with k.loop(first, last) as d:
        here = counts[d]
        counts[d] = total.get()
        total.add(here)


def final_buffer(real_bits: int) -> int:
    """Return the index of the order buffer, of two, that holds the sorted places."""
    return -(-real_bits // DIGIT_BITS) % 2


def write_pack(module: ir.Module, real: ir.Type) -> None:
    """Per chunk of Gaussians: write fields, tile ranges and source positions to their places.

    The first task is the sort by depth, which one thread does while the others pack.
    """
    k = Kernel(module, "pack", real)
    counter, chunk_size, n = k.pointer(I64), k.arg(I64), k.arg(I64)
    places, means2d, conics, depths = k.pointer(I32), k.pointer(), k.pointer(), k.pointer()
    radii, colors, opacities = k.pointer(I32), k.pointer(), k.pointer()
    num_columns, num_rows = k.arg(I64), k.arg(I64)
    packed, boxes, sources = k.pointer(), k.pointer(I16), k.pointer(I32)
    keys, orders = [k.pointer(k.integer) for _ in range(2)], [k.pointer(I32) for _ in range(2)]
    counts = k.pointer(I32)
    with k.tasks(counter, (n + (chunk_size - 1)) // chunk_size + 1) as task:
        with k.when(task.equals(0)):
            _sort(k, n, keys, orders, counts)
        start = (task - 1) * chunk_size
        stop = k.select(task.equals(0), start, (start + chunk_size).min(n))
        with k.loop(start, stop, LANES) as i:
            mask = lanes_below(k, i, stop)
            place = places.load_masked(i, mask).to(I64)
            u, v = load_rows(k, means2d, i, stop, 2)
            a, b, c = load_rows(k, conics, i, stop, 3)
            opacity, depth = opacities.load_masked(i, mask), depths.load_masked(i, mask)
            numbers = [
                u, v, a * (-0.5 * LOG2_E), b * -LOG2_E, c * (-0.5 * LOG2_E), log2(k, opacity),
                *load_rows(k, colors, i, stop, 3), depth, -b / c, -b / a,
            ]  # fmt: skip
            scatter_rows(packed, place, numbers, mask)
            sources.scatter(place, k.splat(i.to(I32)) + k.lanes(list(range(LANES)), I32), mask)
            rx, ry = (r.to(k.real) for r in load_rows(k, radii, i, stop, 2))
            x0, x1 = _tile_range(u, rx, num_columns)
            y0, y1 = _tile_range(v, ry, num_rows)
            touches = mask & (x0 < x1) & (y0 < y1) & (opacity >= ALPHA_MIN)
            box = [k.select(touches, t, k.zero(t.kind)).to(I16) for t in (x0, x1, y0, y1)]
            scatter_rows(boxes, place, box, mask)
    k.finish()


def _tile_range(centre: Value, radius: Value, num_tiles: Value) -> tuple[Value, Value]:
    """Return first tile and the one after the last, as gsplat: those that the box centre +- radius touches."""
    k = centre.k
    limit = num_tiles.to(k.real)
    low = ((centre - radius) * (1.0 / TILE_PX)).floor().max(0.0).min(limit)
    high = ((centre + radius) * (1.0 / TILE_PX)).ceil().max(0.0).min(limit)
    return low.to(I32), high.to(I32)


def write_count(module: ir.Module, real: ir.Type) -> None:
    """Per chunk of the Gaussians in depth order: how many touch each row of tiles, and how many tiles there."""
    k = Kernel(module, "count", real)
    counter, chunk_size, n = k.pointer(I64), k.arg(I64), k.arg(I64)
    order, boxes, num_rows = k.pointer(I32), k.pointer(I16), k.arg(I64)
    row_counts, tile_counts = k.pointer(I32), k.pointer(I64)
    with k.tasks(counter, (n + (chunk_size - 1)) // chunk_size) as chunk:
        start = chunk * chunk_size
        counts, tiles = row_counts.at(chunk * num_rows), tile_counts.at(chunk * num_rows)
        with k.loop(start, (start + chunk_size).min(n)) as i:
            box = boxes.at(order[i].to(I64) * 4)
            x0, x1, y0, y1 = (box[j].to(I64) for j in range(4))
            with k.loop(y0, y1) as row:
                counts[row] = counts[row] + 1
                tiles[row] = tiles[row] + (x1 - x0)
    k.finish()


def write_rows(module: ir.Module, real: ir.Type) -> None:
    """Fill the list of each row of tiles with the Gaussians (their places, in depth order) that touch it."""
    k = Kernel(module, "rows", real)
    counter, chunk_size, n = k.pointer(I64), k.arg(I64), k.arg(I64)
    order, boxes, num_rows = k.pointer(I32), k.pointer(I16), k.arg(I64)
    ends, row_lists = k.pointer(I64), k.pointer(I32)
    with k.tasks(counter, (n + (chunk_size - 1)) // chunk_size) as chunk:
        start = chunk * chunk_size
        mine = ends.at(chunk * num_rows)  # where this chunk's next entry goes in each row's list
        with k.loop(start, (start + chunk_size).min(n)) as i:
            place = order[i]
            box = boxes.at(place.to(I64) * 4)
            with k.loop(box[2], box[3]) as row:
                to = mine[row]
                row_lists[to] = place
                mine[row] = to + 1
    k.finish()


def write_bin(module: ir.Module, real: ir.Type) -> None:
    """Per row of tiles: the list of each of its tiles (Gaussian, block mask, slot), and each Gaussian's first slot.

    Slots number the pairs (Gaussian, tile) of one row by Gaussian: the backward pass leaves a pair's gradient in its
    slot, where the sum over a Gaussian's tiles finds them side by side.
    """
    k = Kernel(module, "bin", real)
    counter, num_columns, num_rows = k.pointer(I64), k.arg(I64), k.arg(I64)
    packed, boxes, row_starts, row_lists = k.pointer(), k.pointer(I16), k.pointer(I64), k.pointer(I32)
    row_tiles = k.pointer(I64)  # where each row's part of the tile lists starts
    tile_starts, tile_stops = k.pointer(I64), k.pointer(I64)
    who, masks, slots = k.pointer(I32), k.pointer(I16), k.pointer(I32)
    first_slots, row_slots = k.pointer(I32), k.pointer(I64)
    with k.tasks(counter, num_rows) as row:
        starts, stops = tile_starts.at(row * num_columns), tile_stops.at(row * num_columns)
        first, last = row_starts[row], row_starts[row + 1]
        _place_tiles(k, row, num_columns, (first, last), row_lists, boxes, row_tiles, starts, stops)
        slot = k.variable(k.constant(0, I64))
        top = (row * TILE_PX).to(k.real)
        with k.loop(first, last) as entry:
            i = row_lists[entry].to(I64)
            ahead = row_lists[(entry + PREFETCH).min(last - 1)].to(I64)
            packed.prefetch(ahead * FIELDS)
            packed.prefetch(ahead * FIELDS + (FIELDS - 1))
            g = packed.at(i * FIELDS)
            first_slots[entry] = slot.get().to(I32)
            touch = BlockMask(k, g, top)
            with k.loop(boxes[i * 4], boxes[i * 4 + 1]) as column:
                mask = touch.bits((column * TILE_PX).to(k.real))
                # written in any case, and kept if the mask is not empty: this is a branch less to mispredict
                to, kept = stops[column], mask.differs(0).to(I64)
                who[to] = i.to(I32)
                masks[to] = mask.to(I16)
                slots[to] = slot.get().to(I32)
                stops[column] = to + kept
                slot.add(kept)
        row_slots[row] = slot.get()
    k.finish()


def _place_tiles(
    k: Kernel, row: Value, num_columns: Value, entries: tuple[Value, Value], row_lists: Pointer, boxes: Pointer,
    row_tiles: Pointer, starts: Pointer, stops: Pointer,
) -> None:  # fmt: skip
    """Reserve room in each tile of a row for all Gaussians whose boxes cover it, and set its stop to its start."""
    starts.clear(0, num_columns)
    stops.clear(0, num_columns)
    with k.loop(*entries) as entry:  # changes of the cover from tile to tile: up in starts, down in stops
        i = row_lists[entry].to(I64)
        x0, x1 = boxes[i * 4].to(I64), boxes[i * 4 + 1].to(I64)
        starts[x0] = starts[x0] + 1
        with k.when(x1 < num_columns):
            stops[x1] = stops[x1] + 1
    cover, place = k.variable(k.constant(0, I64)), k.variable(row_tiles[row])
    with k.loop(0, num_columns) as column:
        cover.add(starts[column] - stops[column])
        starts[column] = place.get()
        stops[column] = place.get()
        place.add(cover.get())


class BlockMask:
    """16 bits, one per 4x4 block of a tile: whether alpha reaches 1/255 at some point between its pixel centres.

    The lanes are the blocks. The exponent is a concave quadratic: over a rectangle it is largest at the centre, or on
    one of the two edges that face the centre, at the point nearest to the ridge.
    """

    def __init__(self, k: Kernel, g: Pointer, top: Value) -> None:
        """Everything that is the same for all tiles of a row whose upper edge is at `top` px."""
        self.k = k
        self.x, self.slope_x = g[X], k.splat(g[SLOPE_X])
        self.aa, self.ab, self.bb = (k.splat(g[f]) for f in (AA, AB, BB))
        self.slope_y = k.splat(g[SLOPE_Y])
        self.limit = k.splat((LOG2_ALPHA_MIN - MASK_MARGIN) - g[LOG_OPACITY])
        self.y0 = k.lanes([float(b // 4 * BLOCK_PX) + 0.5 for b in range(LANES)]) - (g[Y] - top)
        self.y1 = self.y0 + float(BLOCK_PX - 1)
        self.near_y = k.zero(k.vreal).max(self.y0).min(self.y1)
        self.ridge_x = self.near_y * self.slope_y
        self.ab_y, self.bb_yy = self.ab * self.near_y, self.bb * self.near_y * self.near_y

    def bits(self, left: Value) -> Value:
        """Return the mask of the tile whose left edge is at `left` px."""
        k = self.k
        x0 = k.lanes([float(b % 4 * BLOCK_PX) + 0.5 for b in range(LANES)]) - (self.x - left)
        x1 = x0 + float(BLOCK_PX - 1)
        near_x = k.zero(k.vreal).max(x0).min(x1)
        # max and min keep the second operand for NaN, so that a slope of 0/0 gives an edge of the block
        y = (near_x * self.slope_x).max(self.y0).min(self.y1)
        x = self.ridge_x.max(x0).min(x1)
        first = k.fma(k.fma(self.aa, near_x, self.ab * y), near_x, self.bb * y * y)
        second = k.fma(k.fma(self.aa, x, self.ab_y), x, self.bb_yy)
        return (first.max(second) >= self.limit).mask_bits()
