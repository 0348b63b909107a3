"""Spherical harmonics up to degree 3 and their derivative, 16 directions at a time.

Real harmonics in the order and signs of 3DGS; formulas of Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013.
"""

from dist3dgs.splats.cpu.jit.ir import I1, I64, LANES, Kernel, Pointer, Value
from dist3dgs.splats.cpu.jit.vmath import transpose

C0 = 0.2820947917738781
C1 = 0.48860251190292
C2, C2_ZZ, C2_Z, C2_XX = 1.092548430592079, 0.9461746957575601, 0.3153915652525201, 0.5462742152960395
C3_Z3, C3_Z, C3_X, C3_X0 = 1.865881662950577, 1.119528997770346, 2.285228997322329, 0.4570457994644658
C3_XY, C3_X3 = 1.445305721320277, 0.5900435899266435


def band(degree: int, x: Value, y: Value, z: Value) -> list[Value | float]:
    """Return the 2*degree+1 functions of one degree."""
    if degree == 0:
        return [C0]
    if degree == 1:
        return [-C1 * y, C1 * z, -C1 * x]
    if degree == 2:
        return [C2 * x * y, -C2 * y * z, C2_ZZ * z * z - C2_Z, -C2 * x * z, C2_XX * (x * x - y * y)]
    inner = C3_X0 - C3_X * z * z
    return [
        -C3_X3 * y * (3.0 * x * x - y * y), 2.0 * C3_XY * x * y * z, inner * y, z * (C3_Z3 * z * z - C3_Z),
        inner * x, C3_XY * z * (x * x - y * y), -C3_X3 * x * (x * x - 3.0 * y * y),
    ]  # fmt: skip


def band_gradient(degree: int, direction: list[Value], w: list[Value]) -> list[Value]:
    """d(sum_i w_i * function_i) / d(x, y, z) of one degree >= 1."""
    x, y, z = direction
    if degree == 1:
        return [-C1 * w[2], -C1 * w[0], C1 * w[1]]
    if degree == 2:
        return [
            C2 * (y * w[0] - z * w[3]) + 2.0 * C2_XX * x * w[4],
            C2 * (x * w[0] - z * w[1]) - 2.0 * C2_XX * y * w[4],
            2.0 * C2_ZZ * z * w[2] - C2 * (y * w[1] + x * w[3]),
        ]
    inner, slope = C3_X0 - C3_X * z * z, -2.0 * C3_X * z
    difference = x * x - y * y
    return [
        -6.0 * C3_X3 * x * y * w[0] + 2.0 * C3_XY * y * z * w[1] + inner * w[4]
        + 2.0 * C3_XY * x * z * w[5] - 3.0 * C3_X3 * difference * w[6],
        -3.0 * C3_X3 * difference * w[0] + 2.0 * C3_XY * x * z * w[1] + inner * w[2]
        - 2.0 * C3_XY * y * z * w[5] + 6.0 * C3_X3 * x * y * w[6],
        2.0 * C3_XY * x * y * w[1] + slope * (y * w[2] + x * w[4])
        + (3.0 * C3_Z3 * z * z - C3_Z) * w[3] + C3_XY * difference * w[5],
    ]  # fmt: skip


def unit_direction(k: Kernel, mean: list[Value], centre: list[Value]) -> tuple[list[Value], Value]:
    """Unit vectors from the camera to the Gaussians, and 1 / distance (0 at distance 0)."""
    d = [m - c for m, c in zip(mean, centre, strict=True)]
    length2 = k.fma(d[0], d[0], k.fma(d[1], d[1], d[2] * d[2]))
    inverse = k.select(length2 > 0.0, 1.0 / length2.sqrt(), 0.0)
    return [c * inverse for c in d], inverse


def all_bands(k: Kernel, degree: int, direction: list[Value]) -> list[Value]:
    """Return the functions of all degrees up to `degree`, except the constant first one."""
    return [k.cast(f, k.vreal) for d in range(1, degree + 1) for f in band(d, *direction)]


class Rows:
    """Rows of coefficients 1.. of a chunk's Gaussians, 3 numbers each, read and written 16 rows at a time.

    A row is contiguous, so it is read with whole vectors and transposed; gathering it number by number takes 5x longer.
    """

    def __init__(self, k: Kernel, p: Pointer, stride: Value, degree: int) -> None:
        self.k, self.p, self.stride = k, p, stride
        self.count = 3 * ((degree + 1) ** 2 - 1)
        self.windows = range(0, self.count, LANES)

    def _row(self, first: Value, local: Value, lane: int) -> Pointer:
        return self.p.at((first + local.lane(lane).to(I64)) * self.stride)

    def _used(self, start: int) -> Value:
        return self.k.lanes([int(start + i < self.count) for i in range(LANES)], I1)

    def load(self, first: Value, local: Value) -> list[Value]:
        """Return `count` vectors: coefficient 1 red, green, blue, coefficient 2 red ... of rows first + local."""
        columns: list[Value] = []
        rows = [self._row(first, local, lane) for lane in range(LANES)]
        for start in self.windows:
            columns += transpose([row.load_masked(start, self._used(start)) for row in rows])
        return columns[: self.count]

    def store(self, first: Value, local: Value, mask: Value, columns: list[Value]) -> None:
        """Write what `load` reads, to the rows of the lanes that the mask names."""
        zero = self.k.zero(self.k.vreal)
        columns = columns + [zero] * (-len(columns) % LANES)
        for start in self.windows:
            for lane, part in enumerate(transpose(columns[start : start + LANES])):
                wanted = self._used(start) & self.k.splat(mask.lane(lane))
                self._row(first, local, lane).store_masked(start, part, wanted)
