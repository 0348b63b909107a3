"""Writes COLMAP models for tests, byte by byte as the format says, so that any byte can be made wrong."""

import functools
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dist3dgs.scenes.builtin.raycast import Court
from dist3dgs.scenes.builtin.scene import build_court
from dist3dgs.scenes.colmap.cameras import MODELS, ColmapCamera


@functools.cache
def court() -> Court:
    """The built-in scene, painted once for all tests."""
    return build_court(0)


NUMBER = {name: number for number, (name, _) in MODELS.items()}


@dataclass
class FakeModel:
    """cameras by id; images by id: (quaternion wxyz, translation, camera id, name, [(x, y, point id)]);
    points by id: (xyz, rgb, error, [(image id, index)])."""

    cameras: dict = field(default_factory=dict)
    images: dict = field(default_factory=dict)
    points: dict = field(default_factory=dict)


def ring_model(
    *, num_images=6, num_points=60, camera=None, prefix="", offset=(0.0, 0.0, 0.0), first_image_id=1
) -> FakeModel:
    """Cameras on a circle that look at a cloud of points; every point is seen by every camera, exactly."""
    camera = camera or ColmapCamera("PINHOLE", 96, 64, (80.0, 82.0, 48.0, 32.0))
    rng = np.random.default_rng(0)
    model = FakeModel(cameras={3: camera})
    cloud = rng.uniform(-0.4, 0.4, (num_points, 3))
    for p, xyz in enumerate(cloud):
        model.points[10 + 2 * p] = (xyz + offset, (p % 256, 20, 30), 0.5, [])
    for i in range(num_images):
        angle = 2 * np.pi * i / num_images
        turn = np.array([[-np.sin(angle), np.cos(angle), 0], [0, 0, -1], [-np.cos(angle), -np.sin(angle), 0]])
        centre = np.array([2 * np.cos(angle), 2 * np.sin(angle), 0.1 * (i % 2)])
        translation = -turn @ (centre + offset)
        seen = camera.project((cloud + offset) @ turn.T + translation)
        image_id = first_image_id + i
        observations = [(x, y, 10 + 2 * p) for p, (x, y) in enumerate(seen)] + [(1.0, 2.0, -1)]
        name = f"{prefix}photo_{num_images - i:03d}.png"  # names run against the ids
        model.images[image_id] = (quaternion(turn), translation, 3, name, observations)
        for p in range(num_points):
            model.points[10 + 2 * p][3].append((image_id, p))
    return model


def quaternion(turn: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation matrix: the eigenvector of its attitude matrix, good for any angle."""
    m = turn
    k = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [0, m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [0, 0, m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [0, 0, 0, m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    return np.linalg.eigh(k, UPLO="U")[1][:, -1]


def write_bin(model: FakeModel, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    out = struct.pack("<Q", len(model.cameras))
    for i, c in model.cameras.items():
        out += struct.pack("<IiQQ", i, NUMBER[c.model], c.width_px, c.height_px)
        out += struct.pack(f"<{len(c.params)}d", *c.params)
    (folder / "cameras.bin").write_bytes(out)
    out = struct.pack("<Q", len(model.images))
    for i, (q, t, camera, name, observations) in model.images.items():
        out += (
            struct.pack("<I7dI", i, *q, *t, camera)
            + name.encode()
            + b"\0"
            + struct.pack("<Q", len(observations))
        )
        for x, y, p in observations:
            out += struct.pack("<ddq", x, y, p)
    (folder / "images.bin").write_bytes(out)
    out = struct.pack("<Q", len(model.points))
    for i, (xyz, rgb, error, track) in model.points.items():
        out += struct.pack("<Q3d3BdQ", i, *xyz, *rgb, error, len(track))
        for image, index in track:
            out += struct.pack("<II", image, index)
    (folder / "points3D.bin").write_bytes(out)
    return folder


def write_txt(model: FakeModel, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)

    def join(*values) -> str:
        return " ".join(str(float(v)) if isinstance(v, float | np.floating) else str(v) for v in values)

    cameras = ["# Camera list"]
    for i, c in model.cameras.items():
        cameras.append(join(i, c.model, c.width_px, c.height_px, *c.params))
    images = ["# Image list"]
    for i, (q, t, camera, name, observations) in model.images.items():
        images.append(join(i, *q, *t, camera, name))
        images.append(" ".join(join(x, y, p) for x, y, p in observations))
    points = ["# Points"]
    for i, (xyz, rgb, error, track) in model.points.items():
        points.append(join(i, *xyz, *rgb, error, *[v for pair in track for v in pair]))
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder
