"""Project 16 Gaussians at a time through one pinhole camera: mathematics shared by all projection kernels.

EWA splatting (Zwicker et al. 2001) as in 3DGS: covariance = M M^T with M = R(q) diag(s); its image under the Jacobian
of the projection is [U V]^T [U V] with U = J0 W M and V = J1 W M, W the rotation of the camera.
"""

from dataclasses import dataclass
from typing import Any

from dist3dgs.splats.cpu.jit.ir import I32, LANES, Kernel, Pointer, Value
from dist3dgs.splats.cpu.jit.vmath import load_rows, log2
from dist3dgs.splats.render.api import ALPHA_MIN, MAX_RADIUS_PX, QUATERNION_MIN

LN2 = 0.6931471805599453
CHUNK = 1024  # Gaussians per task
CAMERA_FIELDS = (
    *(f"r{i}{j}" for i in range(3) for j in range(3)), "t0", "t1", "t2", "fx", "fy", "cx", "cy",
    "x_min", "x_max", "y_min", "y_max", "width", "height", "near", "far", "eps2d", "c0", "c1", "c2", "antialiased",
)  # fmt: skip


class CameraRegisters:
    """Camera parameters broadcast to all lanes: `camera.fx` and so on."""

    def __init__(self, kernel: Kernel, numbers: Pointer) -> None:
        self.k = kernel
        self._values = {name: kernel.splat(numbers[i]) for i, name in enumerate(CAMERA_FIELDS)}

    def __getattr__(self, name: str) -> Value:
        return self._values[name]

    def row(self, i: int) -> list[Value]:
        """Row i of the rotation."""
        return [self._values[f"r{i}{j}"] for j in range(3)]


@dataclass
class Gaussians:
    """16 Gaussians in registers."""

    mean: list[Value]
    quat: list[Value]
    scale: list[Value]
    opacity: Value


@dataclass
class Ellipse:
    """The projection of 16 Gaussians and what its derivative needs."""

    x: Value  # camera space
    y: Value
    z: Value
    in_range: Value
    rz: Value
    x_inside: Value  # whether the Jacobian's point is inside its limits
    y_inside: Value
    tx: Value
    ty: Value
    unit: list[Value]  # quaternion, normalised
    inverse_length: Value
    rotation: list[list[Value]]
    row0: list[Value]  # J0 W
    row1: list[Value]
    sharp_u: list[Value]  # U before the scales
    sharp_v: list[Value]
    u: list[Value]
    v: list[Value]
    trace: Value
    xx: Value
    xy: Value
    yy: Value
    det: Value
    det_sharp: Value
    mean2d: list[Value]
    conic: list[Value]
    compensation: Value
    opacity: Value


def dot(k: Kernel, a: list[Value], b: list[Value]) -> Value:
    """Scalar product of two 3-vectors."""
    return k.fma(a[0], b[0], k.fma(a[1], b[1], a[2] * b[2]))


def cross(k: Kernel, a: list[Value], b: list[Value]) -> list[Value]:
    """Vector product."""
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


@dataclass
class Inputs:
    """Pointers to the parameters of the Gaussians."""

    means: Pointer
    quats: Pointer
    scales: Pointer
    opacities: Pointer

    @classmethod
    def declare(cls, k: Kernel) -> "Inputs":
        return cls(k.pointer(), k.pointer(), k.pointer(), k.pointer())

    def load(self, k: Kernel, first: Value, last: Value) -> Gaussians:
        """Return Gaussians first..first+15; zeros from `last` on."""
        mean, quat, scale, opacity = (
            load_rows(k, p, first, last, columns)
            for p, columns in ((self.means, 3), (self.quats, 4), (self.scales, 3), (self.opacities, 1))
        )
        return Gaussians(mean, quat, scale, opacity[0])

    def gather(self, chunk: Value, local: Value, mask: Value) -> Gaussians:
        """16 Gaussians of a chunk by their int32 numbers in it."""
        mean, quat, scale, opacity = (
            gather_rows(p.at(chunk * CHUNK * columns), local, columns, mask)
            for p, columns in ((self.means, 3), (self.quats, 4), (self.scales, 3), (self.opacities, 1))
        )
        return Gaussians(mean, quat, scale, opacity[0])


def gather_rows(p: Pointer, index: Value, columns: int, mask: Value, stride: Any = None) -> list[Value]:
    """Return the first `columns` columns of rows `index` of a row-major matrix."""
    first = index * (columns if stride is None else stride)
    return [p.gather(first + c, mask) for c in range(columns)]


def scatter_rows(p: Pointer, index: Value, values: list[Value], mask: Value, stride: Any = None) -> None:
    """Write rows `index` of a row-major matrix."""
    first = index * (len(values) if stride is None else stride)
    for c, value in enumerate(values):
        p.scatter(first + c, value, mask)


def lanes_below(k: Kernel, first: Value, last: Value) -> Value:
    """Mask of the lanes i with first + i < last."""
    return k.lanes(list(range(LANES)), I32) < k.splat((last - first).min(LANES).to(I32))


def ellipse(k: Kernel, camera: CameraRegisters, g: Gaussians) -> Ellipse:
    """Project 16 Gaussians. Lanes that are not in range hold undefined values."""
    translation = (camera.t0, camera.t1, camera.t2)
    cam = [k.fma(r[0], g.mean[0], k.fma(r[1], g.mean[1], k.fma(r[2], g.mean[2], t)))
           for r, t in zip((camera.row(i) for i in range(3)), translation, strict=True)]  # fmt: skip
    x, y, z = cam
    in_range = (z >= camera.near) & (z <= camera.far)
    z = k.select(in_range, z, 1.0)
    rz = 1.0 / z
    xz, yz = x * rz, y * rz
    tx, ty = z * xz.max(camera.x_min).min(camera.x_max), z * yz.max(camera.y_min).min(camera.y_max)
    x_inside = (xz >= camera.x_min) & (xz <= camera.x_max)
    y_inside = (yz >= camera.y_min) & (yz <= camera.y_max)
    j00, j02 = camera.fx * rz, -(camera.fx * tx) * rz * rz
    j11, j12 = camera.fy * rz, -(camera.fy * ty) * rz * rz
    row0 = [k.fma(j00, a, j02 * b) for a, b in zip(camera.row(0), camera.row(2), strict=True)]
    row1 = [k.fma(j11, a, j12 * b) for a, b in zip(camera.row(1), camera.row(2), strict=True)]

    length2 = k.fma(
        g.quat[0], g.quat[0], k.fma(g.quat[1], g.quat[1], k.fma(g.quat[2], g.quat[2], g.quat[3] * g.quat[3]))
    )
    turned = length2 >= QUATERNION_MIN**2
    inverse_length = k.select(turned, 1.0 / length2.sqrt(), 0.0)
    unit = [k.select(turned, g.quat[0] * inverse_length, 1.0), *(q * inverse_length for q in g.quat[1:])]
    rotation = rotation_matrix(unit)

    columns = [[rotation[i][j] for i in range(3)] for j in range(3)]
    sharp_u = [dot(k, row0, column) for column in columns]
    sharp_v = [dot(k, row1, column) for column in columns]
    u = [a * s for a, s in zip(sharp_u, g.scale, strict=True)]
    v = [a * s for a, s in zip(sharp_v, g.scale, strict=True)]
    uu, vv, normal = dot(k, u, u), dot(k, v, v), cross(k, u, v)
    det_sharp = dot(k, normal, normal)  # = uu vv - (u.v)^2 without its cancellation
    trace = uu + vv
    det = k.fma(camera.eps2d, trace + camera.eps2d, det_sharp)
    xx, xy, yy = uu + camera.eps2d, dot(k, u, v), vv + camera.eps2d
    inverse_det = 1.0 / det
    ratio = det_sharp * inverse_det
    antialiased = camera.antialiased > 0.0
    compensation = k.select(antialiased, k.select(ratio > 0.0, ratio.sqrt(), 0.0), 1.0)
    return Ellipse(
        x=x, y=y, z=z, in_range=in_range, rz=rz, x_inside=x_inside, y_inside=y_inside, tx=tx, ty=ty,
        unit=unit, inverse_length=inverse_length, rotation=rotation, row0=row0, row1=row1,
        sharp_u=sharp_u, sharp_v=sharp_v, u=u, v=v, trace=trace, xx=xx, xy=xy, yy=yy,
        det=det, det_sharp=det_sharp,
        mean2d=[k.fma(camera.fx * x, rz, camera.cx), k.fma(camera.fy * y, rz, camera.cy)],
        conic=[yy * inverse_det, -xy * inverse_det, xx * inverse_det],
        compensation=compensation, opacity=g.opacity * compensation,
    )  # fmt: skip


def rotation_matrix(q: list[Value]) -> list[list[Value]]:
    """3x3 from a unit quaternion wxyz."""
    w, x, y, z = q
    return [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ]


def radii(k: Kernel, e: Ellipse) -> tuple[Value, Value]:
    """Half sides, px, of the rectangle where alpha >= 1/255 (StopThePop, Radl et al. 2024, appendix B.2)."""
    extent = (2.0 * LN2 * log2(k, (e.opacity * (1.0 / ALPHA_MIN)).max(1.0))).max(0.0).sqrt().min(3.33)
    limit = float(MAX_RADIUS_PX)
    return (extent * e.xx.sqrt()).ceil().min(limit), (extent * e.yy.sqrt()).ceil().min(limit)


def visible(k: Kernel, camera: CameraRegisters, e: Ellipse, rx: Value, ry: Value) -> Value:
    """Mask of the Gaussians that can touch a pixel."""
    u, v = e.mean2d
    conic_finite = (e.conic[0] + e.conic[1] + e.conic[2]).finite()
    representable = e.det.finite() & (e.det > 0.0) & u.finite() & v.finite() & conic_finite
    return (
        e.in_range & representable & (e.opacity >= ALPHA_MIN) & ((rx > 0.0) | (ry > 0.0))
        & (u + rx > 0.0) & (u - rx < camera.width) & (v + ry > 0.0) & (v - ry < camera.height)
    )  # fmt: skip
