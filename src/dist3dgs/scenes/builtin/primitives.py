"""Analytic solids of the built-in scene: nearest intersection with rays, surface normal and texture coordinates.

Rays are arrays of components: origins `o` = (ox, oy, oz), each a scalar or [N], and unit directions `d`, each [N],
float32. z points up; lengths are metres. A ray that misses has distance infinity.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32 throughout; numpy widens the type, not the values
Vectors = tuple[Floats, ...]  # x, y, z
EPSILON_M = np.float32(1e-4)
INFINITY = np.float32(np.inf)


@dataclass(frozen=True)
class Hit:
    """Surface at the hit points: normals (three [N]), texture coordinates in metres ([N] each)."""

    normal: Vectors
    u_m: Floats
    v_m: Floats


def _first_positive(t: Floats, valid: NDArray[np.bool_]) -> Floats:
    return np.where(valid & (t > EPSILON_M), t, INFINITY)


@dataclass(frozen=True)
class Sphere:
    x: float
    y: float
    z: float
    radius: float

    @property
    def bound(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.z, self.radius

    def intersect(self, o: Vectors, d: Vectors) -> Floats:
        """Return the distance to the first hit along each ray, float32 [N], infinity where it misses.

        o: origins, three scalars or [N]. d: unit directions, three [N]. Both float32.
        """
        ox, oy, oz = o[0] - self.x, o[1] - self.y, o[2] - self.z
        b = ox * d[0] + oy * d[1] + oz * d[2]
        c = ox * ox + oy * oy + oz * oz - self.radius**2
        root = b * b - c
        return _first_positive(-b - np.sqrt(np.maximum(root, 0)), root > 0)

    def surface(self, p: Vectors) -> Hit:
        """Return normal and texture coordinates at surface points `p`, float32, three [N]."""
        normal = tuple(
            (q - c) / np.float32(self.radius) for q, c in zip(p, (self.x, self.y, self.z), strict=True)
        )
        u = np.arctan2(normal[1], normal[0]) * np.float32(self.radius)
        v = np.arccos(np.clip(normal[2], -1, 1)) * np.float32(self.radius)
        return Hit(normal, u, v)


@dataclass(frozen=True)
class Box:
    """A box standing at centre (x, y, z) with half sizes, turned by `yaw_rad` about the vertical."""

    x: float
    y: float
    z: float
    hx: float
    hy: float
    hz: float
    yaw_rad: float = 0.0

    @property
    def bound(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.z, float(np.sqrt(self.hx**2 + self.hy**2 + self.hz**2))

    def _local(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        c, s = np.float32(np.cos(self.yaw_rad)), np.float32(np.sin(self.yaw_rad))
        return c * x + s * y, c * y - s * x

    def intersect(self, o: Vectors, d: Vectors) -> Floats:
        """Return the distance to the first hit along each ray, float32 [N]; arguments as in `Sphere.intersect`."""
        ox, oy = self._local(o[0] - np.float32(self.x), o[1] - np.float32(self.y))
        dx, dy = self._local(d[0], d[1])
        near: Any = np.float32(-np.inf)
        far: Any = INFINITY
        for origin, direction, half in (
            (ox, dx, self.hx),
            (oy, dy, self.hy),
            (o[2] - np.float32(self.z), d[2], self.hz),
        ):
            inverse = 1 / np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction)
            middle, reach = -origin * inverse, np.float32(half) * np.abs(inverse)
            near, far = np.maximum(near, middle - reach), np.minimum(far, middle + reach)
        return _first_positive(near, near < far)

    def surface(self, p: Vectors) -> Hit:
        """Return normal and texture coordinates at surface points `p`, float32, three [N]."""
        x, y = self._local(p[0] - np.float32(self.x), p[1] - np.float32(self.y))
        z = p[2] - np.float32(self.z)
        depth = np.stack([np.abs(x) - self.hx, np.abs(y) - self.hy, np.abs(z) - self.hz])
        face = depth.argmax(0)
        c, s = np.float32(np.cos(self.yaw_rad)), np.float32(np.sin(self.yaw_rad))
        sx, sy, sz = (np.sign(q) * (face == i) for i, q in enumerate((x, y, z)))
        normal = (c * sx - s * sy, s * sx + c * sy, sz.astype(np.float32))
        shift = face * 0.37 + 0.53 * (
            np.choose(face, (x, y, z)) > 0
        )  # so that no two faces show the same patch
        u = np.where(face == 0, y, x) + shift
        v = np.where(face == 2, y, z) + shift
        return Hit(normal, u.astype(np.float32), v.astype(np.float32))


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder from height z to z + height; `inside` shows its inner wall and no caps (a round court)."""

    x: float
    y: float
    z: float
    radius: float
    height: float
    inside: bool = False

    @property
    def bound(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.z + self.height / 2, float(np.hypot(self.radius, self.height / 2))

    def intersect(self, o: Vectors, d: Vectors) -> Floats:
        """Return the distance to the first hit along each ray, float32 [N]; arguments as in `Sphere.intersect`."""
        ox, oy, oz = o[0] - np.float32(self.x), o[1] - np.float32(self.y), o[2] - np.float32(self.z)
        a = np.maximum(d[0] * d[0] + d[1] * d[1], np.float32(1e-12))
        b = ox * d[0] + oy * d[1]
        root = b * b - a * (ox * ox + oy * oy - np.float32(self.radius**2))
        step = np.sqrt(np.maximum(root, 0))
        t = (-b + step if self.inside else -b - step) / a
        z = oz + t * d[2]
        side = _first_positive(t, (root > 0) & (z >= 0) & (z <= self.height))
        if self.inside:
            return side
        down = np.where(np.abs(d[2]) < 1e-9, np.float32(1e-9), d[2])
        cap = np.where(d[2] < 0, np.float32(self.height) - oz, -oz) / down
        x, y = ox + cap * d[0], oy + cap * d[1]
        return np.minimum(side, _first_positive(cap, x * x + y * y <= self.radius**2))

    def surface(self, p: Vectors) -> Hit:
        """Return normal and texture coordinates at surface points `p`, float32, three [N]."""
        x, y, z = p[0] - np.float32(self.x), p[1] - np.float32(self.y), p[2] - np.float32(self.z)
        side = np.abs(np.hypot(x, y) - self.radius) < np.minimum(np.abs(z), np.abs(z - self.height)) + 1e-4
        sign = np.float32(-1 if self.inside else 1)
        normal = (
            np.where(side, sign * x / self.radius, 0).astype(np.float32),
            np.where(side, sign * y / self.radius, 0).astype(np.float32),
            np.where(side, 0, np.sign(z - self.height / 2)).astype(np.float32),
        )
        u = np.where(side, np.arctan2(y, x) * np.float32(self.radius), x)
        return Hit(normal, u, np.where(side, z, y))


@dataclass(frozen=True)
class Torus:
    """A ring lying flat: `radius` to the middle of the tube, `tube` its radius."""

    x: float
    y: float
    z: float
    radius: float
    tube: float

    @property
    def bound(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.z, self.radius + self.tube

    def intersect(self, o: Vectors, d: Vectors) -> Floats:
        """Return the distances as `Sphere.intersect` does, by sphere tracing (Hart 1996): a step never passes the
        surface.

        o, d: float32, three [N].
        """
        ox, oy, oz = o[0] - np.float32(self.x), o[1] - np.float32(self.y), o[2] - np.float32(self.z)
        b = ox * d[0] + oy * d[1] + oz * d[2]
        root = b * b - (ox * ox + oy * oy + oz * oz - np.float32((self.radius + self.tube) ** 2))
        result = np.full(d[0].shape, INFINITY)
        ids = np.flatnonzero((root > 0) & (-b + np.sqrt(np.maximum(root, 0)) > EPSILON_M))
        half = np.sqrt(root[ids])
        t, end = np.maximum(-b[ids] - half, EPSILON_M), -b[ids] + half
        ox, oy, oz = (np.broadcast_to(q, d[0].shape)[ids] for q in (ox, oy, oz))
        dx, dy, dz = (q[ids] for q in d)
        for _ in range(64):
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            ring = np.sqrt(x * x + y * y) - np.float32(self.radius)
            distance = np.sqrt(ring * ring + z * z) - np.float32(self.tube)
            hit = np.abs(distance) < 4e-4
            result[ids[hit]] = t[hit]
            alive = ~hit & (t < end)
            if not alive.any():
                break
            t = (t + distance)[alive]
            ids, end, ox, oy, oz, dx, dy, dz = (q[alive] for q in (ids, end, ox, oy, oz, dx, dy, dz))
        return result

    def surface(self, p: Vectors) -> Hit:
        """Return normal and texture coordinates at surface points `p`, float32, three [N]."""
        x, y, z = p[0] - np.float32(self.x), p[1] - np.float32(self.y), p[2] - np.float32(self.z)
        around = np.arctan2(y, x)
        ring = np.hypot(x, y) - np.float32(self.radius)
        length = np.maximum(np.hypot(ring, z), np.float32(1e-6))
        normal = (np.cos(around) * ring / length, np.sin(around) * ring / length, z / length)
        return Hit(normal, around * np.float32(self.radius), np.arctan2(z, ring) * np.float32(self.tube))


@dataclass(frozen=True)
class Ground:
    """The plane z = 0 out to `radius`."""

    radius: float

    @property
    def bound(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, 0.0, self.radius

    def intersect(self, o: Vectors, d: Vectors) -> Floats:
        """Return the distance to the first hit along each ray, float32 [N]; arguments as in `Sphere.intersect`."""
        t = -o[2] / np.where(np.abs(d[2]) < 1e-9, np.float32(1e-9), d[2])
        x, y = o[0] + t * d[0], o[1] + t * d[1]
        return _first_positive(t, x * x + y * y <= self.radius**2)

    def surface(self, p: Vectors) -> Hit:
        """Return normal and texture coordinates at surface points `p`, float32, three [N]."""
        zero = np.zeros_like(p[0])
        return Hit((zero, zero, zero + 1), p[0], p[1])


Solid = Sphere | Box | Cylinder | Torus | Ground
