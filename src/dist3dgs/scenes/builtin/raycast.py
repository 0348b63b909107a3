"""A small ray caster for the built-in scene: pinhole camera with radial distortion, sun with soft shadows, sky.

Rays are cast in square tiles so that solids outside a tile's cone are skipped and arrays stay in the cache.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .primitives import Cylinder, Floats, Ground, Solid, Vectors
from .textures import Texture

TILE_PX = 120
EDGE_SAMPLES = (
    3  # along each axis, for pixels that see more than one thing; the others are filtered by the textures
)
CREASE = 1e-3  # relative bend of the inverse depth from pixel to pixel that counts as an edge
SHADOW_MAP_PX = 1024
SUN_DIRECTION = np.array([0.48, -0.36, 0.80], np.float32)  # of unit length, 53 degrees above the horizon
SUN_COLOUR = np.array([1.18, 1.06, 0.88], np.float32)
SKY_LIGHT = np.array([0.40, 0.45, 0.54], np.float32)
BOUNCE_LIGHT = np.array([0.24, 0.20, 0.16], np.float32)
SKY_ZENITH = np.array([0.16, 0.34, 0.68], np.float32)
SKY_HORIZON = np.array([0.72, 0.80, 0.88], np.float32)


@dataclass(frozen=True, kw_only=True)
class RaycastCamera:
    """COLMAP's SIMPLE_RADIAL camera: focal length and principal point in px, one radial distortion term."""

    width_px: int
    height_px: int
    focal_px: float
    k1: float

    def directions(self, u_px: Floats, v_px: Floats) -> Floats:
        """Return unit viewing directions, float32 [N, 3] (OpenCV axes), of image points [N] px; undistorted by
        iteration.
        """
        xd, yd = (u_px - self.width_px / 2) / self.focal_px, (v_px - self.height_px / 2) / self.focal_px
        x, y = xd, yd
        for _ in range(8):
            scale = 1 + self.k1 * (x * x + y * y)
            x, y = xd / scale, yd / scale
        d = np.stack([x, y, np.ones_like(x)], -1)
        return (d / np.linalg.norm(d, axis=-1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Thing:
    """A solid with its texture."""

    solid: Solid
    texture: Texture


def nearest(things: list[Thing], o: Vectors, d: Vectors) -> tuple[Floats, NDArray[np.int64]]:
    """Find the nearest thing along rays: its distance, float32 [N], and its index, int64 [N] (-1: none).

    o, d: origin and unit direction, float32, three [N] each.
    """
    best = np.full(d[0].shape, np.inf, np.float32)
    which = np.full(d[0].shape, -1)
    for i, thing in enumerate(things):
        t = thing.solid.intersect(o, d)
        closer = t < best
        best[closer] = t[closer]
        which[closer] = i
    return best, which


def _components(vectors: NDArray) -> Vectors:
    """Return the three contiguous columns of [N, 3] (or scalars of [3])."""
    x, y, z = (np.ascontiguousarray(vectors[..., i], np.float32) for i in range(3))
    return x, y, z


class Court:
    """Things under a sun: renders photographs of them."""

    def __init__(self, things: list[Thing], radius_m: float) -> None:
        self.things = things
        self.radius_m = radius_m
        self._bounds = np.array([x.solid.bound for x in things])
        side = np.cross([0, 0, 1], SUN_DIRECTION)
        self._sun_x = (side / np.linalg.norm(side)).astype(np.float32)
        self._sun_y = np.cross(SUN_DIRECTION, self._sun_x).astype(np.float32)
        self._shadow = self._shadow_map()

    def _shadow_map(self) -> Floats:
        """Return height along the sun's direction of the first surface that the sun meets, [S, S]."""
        size, radius = SHADOW_MAP_PX, self.radius_m
        axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1) * radius
        heights = np.full((size, size), -np.inf, np.float32)
        for thing in self.things:
            solid = thing.solid
            if isinstance(solid, Ground) or (isinstance(solid, Cylinder) and solid.inside):
                continue  # the ground hides nothing, and the court's wall is too low to
            x, y, z, r = solid.bound
            centre = np.array([x, y, z], np.float32)
            columns, rows = (
                np.flatnonzero(np.abs(axis - float(centre @ a)) <= r) for a in (self._sun_x, self._sun_y)
            )
            a, b = np.meshgrid(axis[columns], axis[rows])
            start = np.float32(2 * radius)
            o = tuple(
                (a * self._sun_x[i] + b * self._sun_y[i] + SUN_DIRECTION[i] * start)
                .ravel()
                .astype(np.float32)
                for i in range(3)
            )
            t = solid.intersect(o, tuple(np.full(o[0].shape, -q) for q in SUN_DIRECTION))
            block = np.ix_(rows, columns)
            heights[block] = np.maximum(heights[block], (start - t).reshape(a.shape))
        return heights

    def _lit(self, p: Vectors, normal: Vectors) -> Floats:
        """Share of the sun that reaches points [N]: bilinear percentage-closer filtering."""
        q = [x + np.float32(0.03) * n for x, n in zip(p, normal, strict=True)]
        a, b, height = (
            q[0] * k[0] + q[1] * k[1] + q[2] * k[2] for k in (self._sun_x, self._sun_y, SUN_DIRECTION)
        )
        size = SHADOW_MAP_PX
        x = (a / np.float32(self.radius_m) + 1) * np.float32(size / 2) - 0.5
        y = (b / np.float32(self.radius_m) + 1) * np.float32(size / 2) - 0.5
        x0, y0 = np.floor(x), np.floor(y)
        wx, wy = x - x0, y - y0
        xi = np.clip(x0.astype(np.int64), 0, size - 2)
        yi = np.clip(y0.astype(np.int64), 0, size - 2)
        lit = np.zeros_like(a)
        for row, weight_y in ((0, 1 - wy), (1, wy)):
            for column, weight_x in ((0, 1 - wx), (1, wx)):
                lit += (self._shadow[yi + row, xi + column] <= height) * (weight_x * weight_y)
        return lit

    def _shade(self, thing: Thing, o: Floats, d: Vectors, t: Floats, sample_rad: float) -> Floats:
        """Linear RGB [N, 3] of hits on one thing: Lambert sun, sky from above, bounce from below."""
        p = tuple(np.float32(o[i]) + t * d[i] for i in range(3))
        hit = thing.solid.surface(p)
        facing = np.abs(sum(n * q for n, q in zip(hit.normal, d, strict=True)))
        footprint = t * np.float32(sample_rad) / np.sqrt(np.maximum(facing, 0.1))
        albedo = thing.texture.sample(hit.u_m, hit.v_m, footprint)
        sun = np.maximum(sum(n * q for n, q in zip(hit.normal, SUN_DIRECTION, strict=True)), 0)
        lit = np.flatnonzero(sun > 0)
        sun[lit] *= self._lit(tuple(q[lit] for q in p), tuple(n[lit] for n in hit.normal))
        up = (0.5 + 0.5 * hit.normal[2])[:, None]
        # Near the ground less of the sky is seen: a cheap stand-in for ambient occlusion.
        sheltered = np.where(hit.normal[2] > 0.9, 1.0, np.clip(0.55 + 0.45 * p[2] / 0.6, 0.55, 1)).astype(
            np.float32
        )
        light = sun[:, None] * SUN_COLOUR + (SKY_LIGHT * up + BOUNCE_LIGHT * (1 - up)) * sheltered[:, None]
        return albedo * light

    def render(self, camera: RaycastCamera, cam_to_world: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Render a photograph, uint8 [H, W, 3] sRGB.

        cam_to_world: float64 [4, 4], OpenCV axes (x right, y down, z forward).
        """
        image = np.empty((camera.height_px, camera.width_px, 3), np.float32)
        for top in range(0, camera.height_px, TILE_PX):
            for left in range(0, camera.width_px, TILE_PX):
                bottom, right = min(top + TILE_PX, camera.height_px), min(left + TILE_PX, camera.width_px)
                image[top:bottom, left:right] = self._tile(camera, cam_to_world, top, left, bottom, right)
        srgb = np.where(
            image <= 0.0031308, 12.92 * image, 1.055 * np.maximum(image, 1e-8) ** (1 / 2.4) - 0.055
        )
        return np.clip(srgb * 255 + 0.5, 0, 255).astype(np.uint8)

    def _tile(
        self,
        camera: RaycastCamera,
        cam_to_world: NDArray[np.float64],
        top: int,
        left: int,
        bottom: int,
        right: int,
    ) -> Floats:
        """Linear RGB of the pixels [top:bottom, left:right]: one ray each, and more where outlines pass."""
        origin, turn = cam_to_world[:3, 3].astype(np.float32), cam_to_world[:3, :3].astype(np.float32)
        # One pixel more on every side, so that an outline along the tile's border is seen too.
        v, u = np.meshgrid(
            np.arange(top - 1, bottom + 1, dtype=np.float32) + 0.5,
            np.arange(left - 1, right + 1, dtype=np.float32) + 0.5,
            indexing="ij",
        )
        rays = camera.directions(u.ravel(), v.ravel()) @ turn.T
        near = self._seen_by(origin, rays)
        t, which = nearest(near, _components(origin), _components(rays))
        seen: NDArray[Any] = which.reshape(u.shape)
        middle = seen[1:-1, 1:-1]
        # Along a flat face 1 / depth is linear in the picture: where it bends sharply, two faces of a solid meet.
        with np.errstate(divide="ignore"):
            inverse = (1 / (t * (rays @ turn[:, 2]))).reshape(u.shape)
        bend = CREASE * inverse[1:-1, 1:-1]
        outline = np.abs(2 * inverse[1:-1, 1:-1] - inverse[:-2, 1:-1] - inverse[2:, 1:-1]) > bend
        outline |= np.abs(2 * inverse[1:-1, 1:-1] - inverse[1:-1, :-2] - inverse[1:-1, 2:]) > bend
        for neighbour in (seen[:-2, 1:-1], seen[2:, 1:-1], seen[1:-1, :-2], seen[1:-1, 2:]):
            outline |= middle != neighbour

        in_tile = np.zeros(seen.shape, bool)
        in_tile[1:-1, 1:-1] = ~outline
        inner = np.flatnonzero(in_tile)
        pixel_rad = 1 / camera.focal_px
        colour = np.empty((*middle.shape, 3), np.float32)
        colour[~outline] = self._colour(near, origin, rays[inner], t[inner], which[inner], pixel_rad)

        n = EDGE_SAMPLES
        inside_pixel = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
        du, dv = np.meshgrid(inside_pixel, inside_pixel)
        edge_u, edge_v = u[1:-1, 1:-1][outline][:, None], v[1:-1, 1:-1][outline][:, None]
        rays = camera.directions((edge_u + du.ravel()).ravel(), (edge_v + dv.ravel()).ravel()) @ turn.T
        t, which = nearest(near, _components(origin), _components(rays))
        samples = self._colour(near, origin, rays, t, which, pixel_rad / n)
        colour[outline] = samples.reshape(-1, n * n, 3).mean(1)
        return colour

    def _seen_by(self, origin: Floats, rays: Floats) -> list[Thing]:
        """Return the things that the cone around `rays` [N, 3] may meet."""
        axis = rays.mean(0)
        axis /= np.linalg.norm(axis)
        half_angle_rad = np.arccos(np.clip((rays @ axis).min(), -1, 1))
        to = self._bounds[:, :3] - origin
        distance, radius = np.linalg.norm(to, axis=1), self._bounds[:, 3]
        angle_rad = np.arccos(np.clip(to @ axis / distance, -1, 1))
        reach_rad = np.arcsin(np.minimum(radius / distance, 1))
        seen = (distance <= radius) | (angle_rad - reach_rad <= half_angle_rad)
        return [x for x, yes in zip(self.things, seen, strict=True) if yes]

    def _colour(
        self, near: list[Thing], origin: Floats, rays: Floats, t: Floats, which: NDArray, sample_rad: float
    ) -> Floats:
        """Linear RGB [N, 3], at most 1, of rays [N, 3] that meet `near[which]` at distance `t`, or the sky."""
        colour = np.empty((len(t), 3), np.float32)
        sky = which < 0
        height = np.sqrt(np.clip(rays[sky, 2], 0, 1))[:, None]
        colour[sky] = SKY_HORIZON * (1 - height) + SKY_ZENITH * height
        for i, thing in enumerate(near):
            mine = np.flatnonzero(which == i)
            if len(mine):
                colour[mine] = self._shade(thing, origin, _components(rays[mine]), t[mine], sample_rad)
        return np.minimum(colour, 1)
