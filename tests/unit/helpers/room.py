"""A furnished room of 6 x 5 x 2.7 m, seen from inside: a scene of a room's size that needs no download.

A walk at eye height around a table, looking in all directions: every surface is near in some views and far in others,
furniture hides what is behind it, and a window shows a street and the sky.
"""

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist3dgs.scenes.builtin import textures as tx
from dist3dgs.scenes.builtin.primitives import Box, Cylinder, Solid, Sphere, Torus
from dist3dgs.scenes.builtin.raycast import Court, RaycastCamera, Thing
from dist3dgs.scenes.builtin.scene import (
    BRICK,
    DRIFTWOOD,
    GLAZE,
    JADE,
    MADDER,
    OAK,
    PORCELAIN,
    SANDSTONE,
    SUNSET,
    look_at,
)  # fmt: skip
from tests.unit.helpers.real import write_seen

LENGTH_M, WIDTH_M, HEIGHT_M = 6.0, 5.0, 2.7
WALL_M = 0.1  # half of what walls, floor and ceiling are thick
ALL = [*BRICK, *GLAZE, *MADDER, *JADE, *PORCELAIN, *SUNSET]


def write_room(
    path: Path, num_views: int = 150, width: int = 432, height: int = 288, every: int = 31
) -> Path:
    """Pack the room from its true cameras; its points are where the rays of every 31st pixel meet it."""
    camera = RaycastCamera(width_px=width, height_px=height, focal_px=0.7 * width, k1=0.0)
    return write_seen(path, "room", build_room(0), camera, walk(num_views, 0), every)


def walk(num_views: int, seed: int) -> list[NDArray[np.float64]]:
    """Walk around the table twice, turning around nine times: camera-to-world matrices, float64 [4, 4]."""
    rng = np.random.default_rng([seed, 2**20])
    poses = []
    for share in np.arange(num_views) / num_views:
        shake = rng.normal(size=5)
        around, yaw = 4 * np.pi * share, 18 * np.pi * share + 0.1 * shake[0]
        radius = 1.0 + 0.25 * np.sin(2.5 * around)
        eye = np.array([1.75 * radius * np.cos(around), 1.3 * radius * np.sin(around), 1.5 + 0.1 * shake[1]])
        eye[:2] += 0.05 * shake[2]
        down = -0.2 + 0.35 * np.sin(7.3 * around) + 0.05 * shake[3]
        target = eye + np.array([np.cos(yaw), np.sin(yaw), down])
        poses.append(look_at(eye, target, roll_rad=0.02 * shake[4]))
    return poses


class _Furnisher:
    """Places things one after the other; each takes its texture from the seed and its number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.things: list[Thing] = []

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, len(self.things)])

    def put(self, solid: Solid, albedo: NDArray, width_m: float) -> None:
        """Cover a solid with a texture that repeats after `width_m`; texels are square."""
        height_m = width_m * albedo.shape[0] / albedo.shape[1]
        self.things.append(Thing(solid, tx.Texture(albedo, width_m, height_m)))

    def box(self, low: tuple, high: tuple, albedo: NDArray, width_m: float, yaw_rad: float = 0.0) -> None:
        """Put a box between two corners, turned about its middle."""
        centre, half = (np.array(low) + high) / 2, (np.array(high) - low) / 2
        self.put(Box(*map(float, centre), *map(float, half), yaw_rad), albedo, width_m)

    def wood(self, low: tuple, high: tuple, colours: list, yaw_rad: float = 0.0) -> None:
        self.box(low, high, tx.planks(self.rng, 256, 4, colours), 0.9, yaw_rad)

    def plaster(self, size: int, colour: tuple, strength: float = 0.3) -> NDArray:
        return tx.weathered(self.rng, np.full((size, size, 3), colour, np.float32), strength)


@functools.cache
def build_room(seed: int) -> Court:
    """Build the room and everything in it, once; the same seed gives the same room."""
    f = _Furnisher(seed)
    for part in (_shell, _posters, _shelf, _table, _sofa, _window, _lamps, _plant):
        part(f)
    return Court(f.things, LENGTH_M)


def _shell(f: _Furnisher) -> None:
    """Floor, ceiling and walls, that at +x with a hole for the window; a street outside; a rug and a door."""
    x, y, z, w = LENGTH_M / 2, WIDTH_M / 2, HEIGHT_M, 2 * WALL_M
    f.box((-x, -y, -w), (x, y, 0), tx.planks(f.rng, 1024, 24, OAK), 4)
    f.box((-x, -y, z), (x, y, z + w), f.plaster(512, (0.85, 0.84, 0.80), 0.12), 4)
    f.box((-x - w, -y - w, 0), (-x, y + w, z), tx.bricks(f.rng, 512, 1024, 24, 20, BRICK, plaster=0.3), 5)
    f.box((-x, y, 0), (x, y + w, z), tx.mosaic(f.rng, 512, 512, 40, 40, SANDSTONE), 4)
    f.box((-x, -y - w, 0), (x, -y, z), f.plaster(512, (0.62, 0.66, 0.58), 0.25), 4)
    paper = tx.kilim(f.rng, 512, [(0.75, 0.72, 0.62), (0.60, 0.66, 0.66), (0.82, 0.78, 0.70)])
    below, above = ((-y - w, 0), (y + w, 0.9)), ((-y - w, 2.2), (y + w, z))
    for low, high in (below, above, ((-y - w, 0.9), (-1.2, 2.2)), ((1.2, 0.9), (y + w, 2.2))):
        f.box((x, *low), (x + w, *high), paper, 3)
    f.box((14, -9, -3), (15, 9, 4), tx.bricks(f.rng, 512, 512, 36, 18, SANDSTONE), 6)
    f.box((-1.6, -1.2, 0), (1.6, 1.2, 0.02), tx.kilim(f.rng, 512, MADDER), 2.4)
    f.wood((1.2, -y, 0), (2.1, -y + 0.05, 2.05), DRIFTWOOD)


def _posters(f: _Furnisher) -> None:
    """Pictures on three walls, each painted in another way."""
    x, y = LENGTH_M / 2, WIDTH_M / 2
    for i, left in enumerate((-2.7, -1.6, -0.3)):
        albedo = tx.ball(f.rng, 128, 30 + 40 * i, ALL, 0.02)
        f.box((left, -y, 1.0 + 0.1 * i), (left + 0.9, -y + 0.03, 1.9), albedo, 1.3)
    for i, left in enumerate((-2.2, -1.0, 1.3)):
        albedo = tx.mosaic(f.rng, 256, 256, 6 + 5 * i, 6 + 5 * i, ALL)
        f.box((-x, left, 1.3), (-x + 0.03, left + 0.8, 2.2), albedo, 1.1)
    f.box((1.4, y - 0.03, 1.1), (2.6, y, 2.0), tx.kilim(f.rng, 512, ALL), 1.5)


def _shelf(f: _Furnisher) -> None:
    """Boards along the wall at +y with some 200 books, each of another size and colour."""
    y = WIDTH_M / 2
    for left in (-2.5, -1.15, 0.2):
        f.wood((left - 0.02, y - 0.28, 0), (left + 0.02, y, 2.1), DRIFTWOOD)
    rng = f.rng
    for level in range(6):
        z = 0.05 + 0.4 * level
        f.wood((-2.5, y - 0.28, z), (0.2, y, z + 0.03), DRIFTWOOD)
        x = -2.46
        while level < 5 and x < 0.1:
            thick, tall, deep = rng.uniform((0.025, 0.2, 0.16), (0.07, 0.34, 0.25))
            if rng.random() < 0.92 and abs(x + thick / 2 + 1.15) > 0.06:
                bands = tx.palette(rng, 8, ALL, 0.1).repeat(8, 0)[:, None].repeat(64, 1)
                albedo = tx.weathered(rng, bands, 0.15)
                f.box((x, y - deep, z + 0.03), (x + thick, y - 0.01, z + 0.03 + tall), albedo, 0.4)
            x += thick + rng.uniform(0.002, 0.015)


def _table(f: _Furnisher) -> None:
    """A table in the middle with four chairs, a bowl, balls and books on it."""
    f.wood((-0.8, -0.5, 0.7), (0.8, 0.5, 0.75), OAK)
    for x in (-0.72, 0.72):
        for y in (-0.42, 0.42):
            f.wood((x - 0.04, y - 0.04, 0), (x + 0.04, y + 0.04, 0.7), OAK)
    for x, y, back in ((-0.4, -0.75, -1), (0.4, -0.8, -1), (-0.35, 0.75, 1), (0.45, 0.8, 1)):
        f.box((x - 0.2, y - 0.2, 0.42), (x + 0.2, y + 0.2, 0.47), tx.kilim(f.rng, 256, MADDER), 0.8)
        for dx in (-0.18, 0.18):
            for dy in (-0.18, 0.18):
                top = 0.95 if dy * back > 0 else 0.42
                f.wood((x + dx - 0.02, y + dy - 0.02, 0), (x + dx + 0.02, y + dy + 0.02, top), DRIFTWOOD)
        for z in (0.6, 0.75, 0.9):
            f.wood((x - 0.18, y + 0.18 * back - 0.01, z), (x + 0.18, y + 0.18 * back + 0.01, z + 0.07), OAK)
    f.put(Torus(0.1, 0.05, 0.8, 0.18, 0.05), tx.mosaic(f.rng, 64, 512, 4, 30, GLAZE), 1.1)
    for i in range(5):
        x, y = 0.1 + 0.09 * np.cos(1.3 * i), 0.05 + 0.09 * np.sin(1.3 * i)
        f.put(Sphere(x, y, 0.83, 0.06), tx.ball(f.rng, 64, 20, SUNSET, 0.03), 0.4)
    for i in range(3):
        book = tx.mosaic(f.rng, 64, 64, 3, 3, ALL)
        f.box((-0.6, -0.3, 0.75 + 0.04 * i), (-0.3, -0.1, 0.79 + 0.04 * i), book, 0.3, 0.3 * i)


def _sofa(f: _Furnisher) -> None:
    """A sofa along the wall at -x with cushions."""
    cloth = [(0.20, 0.30, 0.42), (0.26, 0.38, 0.50), (0.16, 0.24, 0.36)]
    seat, back = ((-2.95, -1.3, 0.1), (-2.1, 0.9, 0.42)), ((-2.95, -1.3, 0.4), (-2.7, 0.9, 0.85))
    arms = ((-2.95, -1.5, 0.1), (-2.1, -1.3, 0.6)), ((-2.95, 0.9, 0.1), (-2.1, 1.1, 0.6))
    for low, high in (seat, back, *arms):
        f.box(low, high, tx.mosaic(f.rng, 256, 256, 24, 24, cloth), 1.0)
    for y in (-1.0, -0.2, 0.5):
        f.box((-2.68, y - 0.2, 0.42), (-2.5, y + 0.2, 0.8), tx.kilim(f.rng, 256, ALL), 0.6, 0.4 * y)


def _window(f: _Furnisher) -> None:
    """Bars across the window, curtains beside it, a radiator under it."""
    x = LENGTH_M / 2
    for low, high in (((-0.03, 0.9), (0.03, 2.2)), ((-1.2, 1.72), (1.2, 1.77)), ((-1.3, 0.86), (1.3, 0.9))):
        f.wood((x - 0.06, *low), (x + 0.04, *high), OAK)
    for side in (-1, 1):
        for i in range(7):
            fold = Cylinder(x - 0.12, side * (1.15 + 0.08 * i), 0.1, 0.05, 2.3)
            f.put(fold, tx.kilim(f.rng, 128, SUNSET), 0.5)
    for i in range(16):
        low, high = (x - 0.1, -0.8 + 0.1 * i, 0.12), (x - 0.02, -0.74 + 0.1 * i, 0.7)
        f.box(low, high, f.plaster(64, (0.8, 0.8, 0.78)), 0.5)


def _lamps(f: _Furnisher) -> None:
    """One hanging over the table, one standing in a corner."""
    f.put(Cylinder(0, 0, 2.1, 0.01, 0.6), f.plaster(64, (0.2, 0.2, 0.2)), 0.2)
    f.put(Cylinder(0, 0, 1.95, 0.25, 0.2), tx.mosaic(f.rng, 64, 512, 4, 40, PORCELAIN), 1.6)
    f.put(Cylinder(2.5, 2.0, 0, 0.15, 0.03), f.plaster(64, (0.2, 0.2, 0.2)), 0.2)
    f.put(Cylinder(2.5, 2.0, 0, 0.015, 1.5), f.plaster(64, (0.3, 0.3, 0.3)), 0.2)
    f.put(Cylinder(2.5, 2.0, 1.4, 0.2, 0.3), tx.bricks(f.rng, 64, 256, 6, 12, SUNSET), 1.3)


def _plant(f: _Furnisher) -> None:
    """Some forty leaves, as balls, over a pot in a corner."""
    x, y = 2.45, -1.95
    f.put(Cylinder(x, y, 0, 0.22, 0.4), tx.mosaic(f.rng, 128, 512, 6, 24, GLAZE), 1.4)
    for _ in range(40):
        dx, dy, z, radius = f.rng.uniform((-0.3, -0.3, 0.45, 0.04), (0.3, 0.3, 1.4, 0.1))
        f.put(Sphere(x + dx, y + dy, z, radius), tx.ball(f.rng, 32, 12, JADE, 0.05), 6.28 * radius)
