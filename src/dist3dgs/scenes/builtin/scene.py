"""The built-in scene: a small court with a fountain, crates and columns, photographed on one and a half rings.

It exists so that the whole study runs without a network from real input: plain JPEGs, from which structure from
motion has to find the cameras. The true poses go to a separate file that only the pose-error report reads.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...files import replacing, write_json
from . import textures as tx
from .primitives import Box, Cylinder, Ground, Solid, Sphere, Torus
from .raycast import Court, RaycastCamera, Thing

COURT_RADIUS_M = 8.0
WALL_HEIGHT_M = 3.2
JPEG_QUALITY = 93
SANDSTONE = [
    (0.72, 0.64, 0.52),
    (0.63, 0.56, 0.47),
    (0.80, 0.72, 0.60),
    (0.55, 0.50, 0.45),
    (0.70, 0.52, 0.40),
]
BRICK = [(0.62, 0.30, 0.22), (0.70, 0.38, 0.27), (0.52, 0.26, 0.21), (0.75, 0.47, 0.34), (0.45, 0.28, 0.26)]
GLAZE = [(0.10, 0.30, 0.55), (0.16, 0.52, 0.62), (0.92, 0.88, 0.78), (0.85, 0.62, 0.18), (0.12, 0.20, 0.38)]
OAK = [(0.62, 0.44, 0.26), (0.54, 0.37, 0.21), (0.70, 0.52, 0.33)]
DRIFTWOOD = [(0.55, 0.53, 0.50), (0.47, 0.44, 0.41), (0.62, 0.58, 0.52)]
MADDER = [(0.62, 0.13, 0.14), (0.85, 0.70, 0.42), (0.16, 0.20, 0.36), (0.90, 0.84, 0.70), (0.70, 0.34, 0.16)]
JADE = [(0.20, 0.48, 0.34), (0.32, 0.60, 0.42), (0.14, 0.34, 0.28), (0.62, 0.74, 0.52)]
PORCELAIN = [(0.90, 0.90, 0.88), (0.14, 0.24, 0.58), (0.84, 0.86, 0.90), (0.30, 0.44, 0.74)]
SUNSET = [(0.86, 0.42, 0.14), (0.93, 0.66, 0.22), (0.70, 0.22, 0.14), (0.94, 0.84, 0.60)]


class _Builder:
    """Places things one after the other; each takes its texture from the seed and its number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.things: list[Thing] = []

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, len(self.things)])

    def put(self, solid: Solid, albedo: NDArray, width_m: float, height_m: float) -> None:
        self.things.append(Thing(solid, tx.Texture(albedo, width_m, height_m)))

    def ball(self, x: float, y: float, z: float, radius: float, colours: list, num_cells: int) -> None:
        albedo = tx.ball(self.rng(), 160, num_cells, colours, 0.02)
        self.put(Sphere(x, y, z, radius), albedo, 2 * np.pi * radius, np.pi * radius)

    def drum(self, x: float, y: float, z: float, radius: float, height: float, albedo: NDArray) -> None:
        around = 2 * np.pi * radius
        self.put(
            Cylinder(x, y, z, radius, height), albedo, around, around * albedo.shape[0] / albedo.shape[1]
        )

    def ring(self, x: float, y: float, z: float, radius: float, tube: float, albedo: NDArray) -> None:
        self.put(Torus(x, y, z, radius, tube), albedo, 2 * np.pi * radius, 2 * np.pi * tube)

    def crate(self, x: float, y: float, z: float, half: float, yaw_rad: float, colours: list) -> None:
        albedo = tx.planks(self.rng(), 512, 7, colours)
        self.put(Box(x, y, z + half, half, half, half, yaw_rad), albedo, 1.5, 1.5)

    def plaster(self, height_px: int, colour: tuple[float, float, float]) -> NDArray:
        return tx.weathered(self.rng(), np.full((height_px, 512, 3), colour, np.float32), 0.4)


def build_court(seed: int) -> Court:
    """Build the court and everything in it; the same seed gives the same court."""
    b = _Builder(seed)
    side, around = 2 * COURT_RADIUS_M, 2 * np.pi * COURT_RADIUS_M
    b.put(Ground(COURT_RADIUS_M), tx.paving(b.rng(), 1536, 34, SANDSTONE), side, side)
    wall = Cylinder(0, 0, 0, COURT_RADIUS_M, WALL_HEIGHT_M, inside=True)
    b.put(wall, tx.bricks(b.rng(), 256, 4096, 16, 108, BRICK, plaster=0.35), around, WALL_HEIGHT_M)
    for part in (_fountain, _crates, _rug, _columns, _bench):
        part(b)
    return Court(b.things, COURT_RADIUS_M + 0.5)


def _fountain(b: _Builder) -> None:
    """Add the fountain in the middle."""
    b.drum(0, 0, 0, 1.25, 0.42, tx.mosaic(b.rng(), 256, 2048, 7, 64, GLAZE))
    b.ring(0, 0, 0.44, 1.17, 0.12, tx.mosaic(b.rng(), 128, 1024, 8, 76, GLAZE))
    b.drum(0, 0, 0.42, 0.30, 0.95, b.plaster(256, (0.52, 0.47, 0.38)))
    b.ring(0, 0, 1.37, 0.30, 0.07, tx.mosaic(b.rng(), 64, 512, 5, 36, SUNSET))
    b.ball(0, 0, 1.80, 0.44, PORCELAIN, 90)


def _crates(b: _Builder) -> None:
    """One on two others."""
    b.crate(-1.75, 1.55, 0, 0.42, 0.35, OAK)
    b.crate(-2.55, 0.85, 0, 0.38, 1.10, DRIFTWOOD)
    b.crate(-2.05, 1.28, 0.80, 0.28, 0.80, OAK)


def _rug(b: _Builder) -> None:
    """With balls on it."""
    b.put(Box(1.95, 1.55, 0.02, 0.95, 0.65, 0.02, -0.45), tx.kilim(b.rng(), 512, MADDER), 1.9, 1.9)
    b.ball(1.75, 1.75, 0.42, 0.38, SUNSET, 70)
    b.ball(2.42, 1.20, 0.27, 0.23, JADE, 60)


def _columns(b: _Builder) -> None:
    """Whole and broken ones, and a ball on one of them."""
    for x, y, height in ((1.85, -1.60, 1.55), (0.35, -2.25, 0.65), (-1.85, -1.30, 1.15)):
        b.drum(x, y, 0, 0.42, 0.16, b.plaster(64, (0.50, 0.42, 0.33)))
        b.drum(x, y, 0.16, 0.30, height, tx.bricks(b.rng(), 512, 512, 14, 8, SANDSTONE))
        if height > 1:
            b.ring(x, y, 0.16 + height, 0.27, 0.09, tx.mosaic(b.rng(), 64, 512, 5, 30, JADE))
    b.ball(-1.85, -1.30, 1.68, 0.30, JADE, 80)


def _bench(b: _Builder) -> None:
    """Add a trough near the wall."""
    b.put(Box(0.2, 3.1, 0.42, 1.1, 0.24, 0.06, 0.12), tx.planks(b.rng(), 512, 5, DRIFTWOOD), 2.4, 2.4)
    b.put(Box(-0.6, 3.0, 0.18, 0.10, 0.22, 0.18, 0.12), tx.bricks(b.rng(), 256, 256, 6, 4, BRICK), 0.9, 0.9)
    b.put(Box(1.0, 3.2, 0.18, 0.10, 0.22, 0.18, 0.12), tx.bricks(b.rng(), 256, 256, 6, 4, BRICK), 0.9, 0.9)
    b.ball(-0.35, 3.05, 0.68, 0.20, SUNSET, 40)
    b.ring(0.65, 3.15, 0.53, 0.22, 0.05, tx.mosaic(b.rng(), 64, 512, 4, 28, MADDER))


def look_at(
    eye: NDArray[np.float64], target: NDArray[np.float64], roll_rad: float = 0.0
) -> NDArray[np.float64]:
    """Return the camera-to-world matrix, float64 [4, 4], with OpenCV axes and world z up; eye and target are float64
    [3].
    """
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    pose = np.eye(4)
    pose[:3] = np.stack([c * right + s * down, c * down - s * right, forward, eye], 1)
    return pose


def camera_path(num_images: int, seed: int) -> list[NDArray[np.float64]]:
    """Make a hand-held walk: two thirds of the photographs on a full ring, the rest on a higher half ring, all
    looking in.

    Returns camera-to-world matrices, float64 [4, 4].
    """
    rng = np.random.default_rng([seed, 2**20])
    num_low = round(num_images * 2 / 3)
    poses = []
    for i in range(num_images):
        low = i < num_low
        share = i / num_low if low else (i - num_low) / (num_images - num_low)
        angle = 2 * np.pi * share if low else np.pi * (share + 0.25)
        radius, height = (5.2, 1.9) if low else (4.5, 3.2)
        shake = rng.normal(size=6)
        angle += 0.03 * shake[0]
        eye = np.array([np.cos(angle), np.sin(angle), 0]) * (radius + 0.12 * shake[1])
        eye[2] = height + 0.10 * shake[2]
        target = np.array([0.12 * shake[3], 0.12 * shake[4], 0.62])
        poses.append(look_at(eye, target, roll_rad=0.02 * shake[5]))
    return poses


def photograph_camera(width_px: int, height_px: int) -> RaycastCamera:
    """Return the camera of all photographs: a lens with a little barrel distortion."""
    return RaycastCamera(width_px=width_px, height_px=height_px, focal_px=0.82 * width_px, k1=-0.04)


def make_scene(
    folder: Path, *, num_images: int = 48, width_px: int = 540, height_px: int = 360, seed: int = 0
) -> None:
    """Write `folder`/images/*.jpg and `folder`/truth.json; the same arguments give the same bytes.

    The JPEGs carry no pose and no EXIF. truth.json has the layout of NeRF's transforms.json (camera-to-world,
    OpenGL axes), and nothing but `pose_error` may read it.
    """
    camera = photograph_camera(width_px, height_px)
    court = build_court(seed)
    poses = {f"images/IMG_{i + 1:04d}.jpg": pose for i, pose in enumerate(camera_path(num_images, seed))}
    for name, pose in poses.items():
        encoded = io.BytesIO()
        Image.fromarray(court.render(camera, pose)).save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        with replacing(Path(folder, name)) as temporary:
            temporary.write_bytes(encoded.getvalue())
    write_truth(Path(folder, "truth.json"), camera, poses)


def write_truth(path: Path, camera: RaycastCamera, poses: dict[str, NDArray[np.float64]]) -> None:
    """Write camera-to-world poses, float64 [4, 4] (OpenCV axes), by photograph, in the layout of NeRF's
    transforms.json.
    """
    opengl = np.diag([1.0, -1.0, -1.0, 1.0])
    truth = {
        "camera_model": "SIMPLE_RADIAL",
        "w": camera.width_px,
        "h": camera.height_px,
        "fl_x": camera.focal_px,
        "fl_y": camera.focal_px,
        "cx": camera.width_px / 2,
        "cy": camera.height_px / 2,
        "k1": camera.k1,
        "frames": [
            {"file_path": name, "transform_matrix": (pose @ opengl).tolist()} for name, pose in poses.items()
        ],
    }
    write_json(path, truth)
