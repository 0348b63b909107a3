"""exp2, log2, sums over lanes and transpositions in the kernel language."""

import math

from dist3dgs.splats.cpu.jit.ir import F32, I64, LANES, Kernel, Pointer, Value

# 2^x on [-1/2, 1/2]: minimax in relative error, 7.5e-8 (iteratively reweighted least squares), for single precision;
# the Taylor series to x^13, 1e-16, for double.
_EXP2_SINGLE = (
    1.327647204843e-3,
    9.675541384696e-3,
    5.550713273762e-2,
    0.240221197229,
    0.693146967064,
    1.000000071655,
)
_EXP2_DOUBLE = tuple(math.log(2) ** i / math.factorial(i) for i in range(13, -1, -1))


def exp2(k: Kernel, x: Value) -> Value:
    """Compute 2^x for |x| < 120 (single) or 1000 (double); undefined, but without a trap, outside."""
    single = k.real == F32
    # Adding 1.5 * 2^mantissa rounds to an integer, which then sits in the low bits: no conversion is needed
    magic = 1.5 * 2.0 ** (23 if single else 52)
    shifted = x + magic
    r = x - (shifted - magic)
    p = k.cast(0.0, x.kind)
    for i, coefficient in enumerate(_EXP2_SINGLE if single else _EXP2_DOUBLE):
        p = k.fma(p, r, coefficient) if i else k.cast(coefficient, x.kind)
    exponent = shifted.as_bits() << (23 if single else 52)
    return (p.as_bits() + exponent).as_real()


def log2(k: Kernel, x: Value) -> Value:
    """Compute log2(x) for normal x > 0, absolute error below one rounding of the result."""
    single = k.real == F32
    mantissa_bits, bias = (23, 127) if single else (52, 1023)
    bits = x.as_bits()
    # m in [sqrt(1/2), sqrt(2)): x = 2^e m, log2 x = e + 2/ln2 * atanh((m-1)/(m+1))
    half_root = 0x3F3504F3 if single else 0x3FE6A09E667F3BCD
    offset = bits - half_root
    # an arithmetic shift would keep the sign; add a large bias so that a logical one does
    e = ((offset + (bias << mantissa_bits)) >> mantissa_bits) - bias
    m = (bits - (e << mantissa_bits)).as_real()
    s = (m - 1.0) / (m + 1.0)
    s2 = s * s
    terms = 5 if single else 13
    p = k.cast(1.0 / (2 * terms - 1), x.kind)
    for i in range(terms - 2, -1, -1):
        p = k.fma(p, s2, 1.0 / (2 * i + 1))
    return k.fma(p * s, 2.0 / math.log(2), e.to(k.real))


def sum_lanes(k: Kernel, vectors: list[Value]) -> Value:
    """Sum up to 16 vectors over their lanes: lane j of the result is the sum of vectors[j].

    A tree of in-register transpositions: 4 levels, each halves the number of vectors, in an order that is the same on
    every machine. Missing vectors give unspecified lanes.
    """
    assert 1 <= len(vectors) <= LANES
    # level L: each vector holds partial sums of 2^L inputs, input index bits in the lane index bits 0..L-1
    current: list[Value] = list(vectors)
    for level in range(4):
        step = 1 << level
        # lanes whose bit `level` is 0 take input a, the others input b: both halves, then added
        keep = [i if not i & step else LANES + i for i in range(LANES)]
        move = [i ^ step if not i & step else LANES + (i ^ step) for i in range(LANES)]
        following = []
        for j in range(0, len(current), 2):
            a = current[j]
            b = current[j + 1] if j + 1 < len(current) else a
            following.append(a.permute(keep, b) + a.permute(move, b))
        current = following
    return current[0]


def sum_lane_scalar(k: Kernel, v: Value) -> Value:
    """Sum one vector over its lanes."""
    return sum_lanes(k, [v]).lane(0)


def transpose(vectors: list[Value]) -> list[Value]:
    """Transpose 16 vectors of 16 lanes."""
    rows = list(vectors)
    for step in (1, 2, 4, 8):
        upper = [i if not i & step else LANES + (i ^ step) for i in range(LANES)]
        lower = [i ^ step if not i & step else LANES + i for i in range(LANES)]
        for i in range(LANES):
            if not i & step:
                a, b = rows[i], rows[i | step]
                rows[i], rows[i | step] = a.permute(upper, b), a.permute(lower, b)
    return rows


def load_rows(k: Kernel, p: Pointer, first: Value, last: Value, columns: int) -> list[Value]:
    """Load the columns of rows first..first+15 of a row-major matrix; 0 from row `last` on, without reading there."""
    start, count = first * columns, (last - first) * columns
    parts = []
    for c in range(columns):
        lane = k.lanes(list(range(c * LANES, (c + 1) * LANES)), I64)
        parts.append(p.load_masked(start + c * LANES, lane < k.splat(count)))
    return [_pick(parts, [columns * i + c for i in range(LANES)]) for c in range(columns)]


def store_rows(k: Kernel, p: Pointer, first: Value, last: Value, values: list[Value]) -> None:
    """Store columns of rows first..first+15 of a row-major matrix, up to row `last`."""
    columns = len(values)
    start, count = first * columns, (last - first) * columns
    for c in range(columns):
        lane = k.lanes(list(range(c * LANES, (c + 1) * LANES)), I64)
        places = [divmod(i, columns) for i in range(c * LANES, (c + 1) * LANES)]
        part = _pick(values, [column * LANES + row for row, column in places])
        p.store_masked(start + c * LANES, part, lane < k.splat(count))


def _pick(parts: list[Value], lanes: list[int]) -> Value:
    """Shuffle lanes of up to four concatenated vectors."""
    if len(parts) == 1:
        return parts[0].permute(lanes)
    if len(parts) == 2:
        return parts[0].permute(lanes, parts[1])
    front, back = parts[0].join(parts[1]), parts[2].join(parts[3 if len(parts) > 3 else 2])
    return front.permute(lanes, back)
