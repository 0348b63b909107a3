"""The built-in scene: its rays hit what they should, and its photographs hold no pose."""

import json

import numpy as np
import pytest
from PIL import Image

from dist3dgs.scenes.builtin.primitives import Box, Cylinder, Ground, Sphere, Torus
from dist3dgs.scenes.builtin.scene import camera_path, look_at, make_scene, photograph_camera
from dist3dgs.scenes.builtin.textures import Texture, cells, spectral_noise
from tests.unit.helpers.colmap_files import court


def rays(num=1500, seed=0):
    """Rays from all around towards the unit ball."""
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=(3, num))
    origin = 4 * origin / np.linalg.norm(origin, axis=0)
    direction = rng.uniform(-1, 1, (3, num)) - origin
    direction /= np.linalg.norm(direction, axis=0)
    return tuple(origin.astype(np.float32)), tuple(direction.astype(np.float32))


SOLIDS = [
    (Sphere(0.1, -0.2, 0.3, 0.6), lambda x, y, z: np.hypot(np.hypot(x - 0.1, y + 0.2), z - 0.3) - 0.6),
    (
        Box(0.1, 0.0, -0.1, 0.5, 0.3, 0.4, 0.6),
        lambda x, y, z: np.max(
            [
                np.abs(np.cos(0.6) * (x - 0.1) + np.sin(0.6) * y) - 0.5,
                np.abs(np.cos(0.6) * y - np.sin(0.6) * (x - 0.1)) - 0.3,
                np.abs(z + 0.1) - 0.4,
            ],
            0,
        ),
    ),
    (
        Cylinder(0.0, 0.1, -0.5, 0.4, 0.9),
        lambda x, y, z: np.max([np.hypot(x, y - 0.1) - 0.4, -0.5 - z, z - 0.4], 0),
    ),
    (Torus(0.0, 0.0, 0.1, 0.6, 0.2), lambda x, y, z: np.hypot(np.hypot(x, y) - 0.6, z - 0.1) - 0.2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("solid", "inside"), SOLIDS, ids=lambda s: type(s).__name__)
def test_rays_meet_solids_where_marching_does(solid, inside):
    """The oracle: fine steps along every ray until the implicit function changes sign."""
    o, d = rays()
    t = solid.intersect(o, d)
    steps = np.linspace(2.0, 6.5, 3000)[:, None]
    points = [q[None] + steps * w[None] for q, w in zip(o, d, strict=True)]
    within = inside(*points) < 0
    marched = np.where(within.any(0), steps[within.argmax(0), 0], np.inf)
    both = np.isfinite(t) & np.isfinite(marched)
    np.testing.assert_allclose(t[both], marched[both], atol=2e-2)  # where a ray grazes
    assert np.median(np.abs(t[both] - marched[both])) < 2e-3
    met = [q[both] + t[both] * w[both] for q, w in zip(o, d, strict=True)]
    assert np.abs(inside(*met)).max() < 1e-3
    assert both.mean() > 0.05
    assert (np.isfinite(t) != np.isfinite(marched)).mean() < 0.01  # grazing rays


@pytest.mark.parametrize(("solid", "inside"), SOLIDS, ids=lambda s: type(s).__name__)
def test_normals_are_gradients(solid, inside):
    o, d = rays()
    t = solid.intersect(o, d)
    hit = np.isfinite(t)
    p = [q[hit] + t[hit] * w[hit] for q, w in zip(o, d, strict=True)]
    normal = np.stack(solid.surface(tuple(p)).normal)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-3)
    h = 2e-3
    gradient = np.stack(
        [
            inside(*[q + h * (i == k) for k, q in enumerate(p)])
            - inside(*[q - h * (i == k) for k, q in enumerate(p)])
            for i in range(3)
        ]
    )
    gradient /= np.maximum(np.linalg.norm(gradient, axis=0), 1e-9)
    assert ((gradient * normal).sum(0) > 0.95).mean() > 0.97  # all but edges


def test_ground_and_court_wall():
    eye = (np.float32(0), np.float32(0), np.float32(2))
    down = tuple(np.array([x], np.float32) for x in (0.6, 0.0, -0.8))
    assert Ground(8).intersect(eye, down)[0] == pytest.approx(2.5)
    assert Ground(1).intersect(eye, down)[0] == np.inf
    level = tuple(np.array([x], np.float32) for x in (0.0, 1.0, 0.0))
    wall = Cylinder(0, 0, 0, 8, 3, inside=True)
    assert wall.intersect(eye, level)[0] == pytest.approx(8)
    assert wall.surface((np.zeros(1), np.full(1, 8.0), np.full(1, 2.0))).normal[1][0] == pytest.approx(-1)


def test_textures_tile_and_average():
    rng = np.random.default_rng(0)
    albedo = rng.random((64, 64, 3))
    texture = Texture(albedo, 2.0, 2.0)
    u, v = rng.uniform(-5, 5, (2, 100)).astype(np.float32)
    fine = np.zeros(100, np.float32)
    np.testing.assert_allclose(texture.sample(u, v, fine), texture.sample(u + 2, v - 4, fine), atol=2e-3)
    coarse = texture.sample(u, v, np.full(100, 2.0, np.float32))
    assert (
        np.abs(coarse - albedo.mean()).max() < 0.15 < np.abs(texture.sample(u, v, fine) - albedo.mean()).max()
    )
    centre = np.array([(5 + 0.5) * 2 / 64], np.float32)
    np.testing.assert_allclose(texture.sample(centre, centre, fine[:1])[0], albedo[5, 5], atol=1e-5)


def test_noise_and_cells_are_seamless():
    noise = spectral_noise(np.random.default_rng(0), 64, 128, 1.5)
    assert noise.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(noise[0] - noise[-1]).mean() < 2 * np.abs(np.diff(noise, axis=0)).mean()
    cell, border = cells(np.random.default_rng(0), 60, 60, 5, 5, 0.7)
    assert set(np.unique(cell)) <= set(range(25)) and (border >= 0).all()


def test_camera_undoes_its_distortion():
    camera = photograph_camera(540, 360)
    u, v = np.meshgrid(np.linspace(0, 540, 20, dtype=np.float32), np.linspace(0, 360, 20, dtype=np.float32))
    d = camera.directions(u.ravel(), v.ravel())
    x, y = d[:, 0] / d[:, 2], d[:, 1] / d[:, 2]
    scale = 1 + camera.k1 * (x * x + y * y)
    np.testing.assert_allclose(camera.focal_px * x * scale + 270, u.ravel(), atol=0.01)
    np.testing.assert_allclose(camera.focal_px * y * scale + 180, v.ravel(), atol=0.01)


def test_cameras_look_in():
    for pose in camera_path(48, 0):
        np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        assert pose[:3, 2] @ -pose[:3, 3] > 0 and -pose[2, 1] > 0.5, "towards the middle, upright"
    eye = np.array([3.0, 0, 1])
    np.testing.assert_allclose(look_at(eye, np.zeros(3))[:3, 2], -eye / np.linalg.norm(eye))


@pytest.mark.slow
def test_photographs_hold_no_pose_and_are_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        make_scene(tmp_path / name, num_images=2, width_px=96, height_px=64)
    files = sorted(
        p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert files == [*(f"images/IMG_{i:04d}.jpg" for i in range(1, 3)), "truth.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    for file in files[:-1]:
        with Image.open(tmp_path / "a" / file) as image:
            assert image.format == "JPEG" and image.size == (96, 64)
            assert not image.getexif() and set(image.info) <= {
                "jfif",
                "jfif_version",
                "jfif_unit",
                "jfif_density",
            }
            pixels = np.asarray(image)
        assert pixels.std() > 30 and (pixels.std((0, 1)) > 20).all(), "texture"
    frames = json.loads((tmp_path / "a/truth.json").read_text())["frames"]
    assert [f["file_path"] for f in frames] == files[:-1]
    assert not np.allclose(camera_path(3, 1), camera_path(3, 0)), "another seed, another scene"


@pytest.mark.slow
def test_outlines_are_smooth(tmp_path):
    """Anti-aliasing: a small picture is close to a large one shrunk by area, outlines included."""
    pose = camera_path(48, 0)[2]
    small = court().render(photograph_camera(120, 80), pose).astype(float)
    large = court().render(photograph_camera(480, 320), pose).astype(float)
    shrunk = large.reshape(80, 4, 120, 4, 3).mean((1, 3))
    error = np.abs(small - shrunk)
    assert error.mean() < 9 and np.quantile(error, 0.99) < 60
