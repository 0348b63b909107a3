"""Undistortion against scenes whose ideal picture is known, and exact area averages."""

import numpy as np
import pytest

from dist3dgs.errors import UserError
from dist3dgs.scenes.colmap.cameras import ColmapCamera
from dist3dgs.scenes.undistort import Undistorter, area_average

CAMERAS = [
    ColmapCamera("SIMPLE_RADIAL", 160, 120, (140.0, 82.0, 59.0, -0.08)),
    ColmapCamera("SIMPLE_RADIAL", 160, 120, (140.0, 80.0, 60.0, 0.07)),
    ColmapCamera("RADIAL", 160, 120, (140.0, 80.0, 60.0, 0.05, -0.04)),
    ColmapCamera("OPENCV", 160, 120, (140.0, 143.0, 78.0, 62.0, -0.06, 0.01, 0.002, -0.001)),
    ColmapCamera(
        "FULL_OPENCV", 160, 120, (140.0, 143.0, 80.0, 60.0, -0.06, 0.01, 0.001, 0.001, 0.0, 0.01, 0.0, 0.0)
    ),
    ColmapCamera("OPENCV_FISHEYE", 160, 120, (140.0, 140.0, 80.0, 60.0, 0.02, 0.01, 0.0, 0.0)),
    ColmapCamera("SIMPLE_RADIAL_FISHEYE", 160, 120, (140.0, 80.0, 60.0, 0.03)),
    ColmapCamera("RADIAL_FISHEYE", 120, 160, (140.0, 60.0, 80.0, 0.03, -0.01)),
]


def pattern(x, y):
    """A smooth picture as a function of ideal coordinates, 0..255 in three channels."""
    return np.stack(
        [128 + 100 * np.sin(9 * x + 2), 128 + 100 * np.sin(8 * y), 128 + 100 * np.cos(6 * x + 7 * y)], -1
    )


def pixel_grid(width, height):
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return u, v


def photograph(camera):
    """Photograph the pattern with `camera`: every pixel's ideal coordinates, found by Newton-like iteration."""
    u, v = pixel_grid(camera.width_px, camera.height_px)
    (fx, fy), (cx, cy) = camera.focals_px, camera.centre_px
    xd, yd = (u - cx) / fx, (v - cy) / fy
    x, y = xd.copy(), yd.copy()
    for _ in range(60):
        ex, ey = camera.distort(x, y)
        x, y = x - (ex - xd), y - (ey - yd)
    assert np.hypot(ex - xd, ey - yd).max() < 1e-9
    return (pattern(x, y) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: f"{c.model}{c.distortion[0]:+}")
def test_output_is_the_pinhole_picture(camera):
    undistort = Undistorter(camera, camera.width_px, camera.height_px)
    result = undistort(photograph(camera))
    u, v = pixel_grid(camera.width_px, camera.height_px)
    K = undistort.K
    ideal = pattern((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    error = np.abs(result - ideal)
    assert error.max() < 6 and error.mean() < 0.6  # 8-bit rounding twice and bilinear interpolation


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: f"{c.model}{c.distortion[0]:+}")
def test_no_black_border_and_as_wide_as_can_be(camera):
    undistort = Undistorter(camera, camera.width_px, camera.height_px)
    white = np.full((camera.height_px, camera.width_px, 3), 255, np.uint8)
    assert (undistort(white) == 255).all()
    # A white photograph with a black frame of two pixels: the widest view must touch the frame somewhere.
    white[:2] = white[-2:] = 0
    white[:, :2] = white[:, -2:] = 0
    assert undistort(white).min() < 128


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: f"{c.model}{c.distortion[0]:+}")
def test_shrinking_keeps_the_geometry(camera):
    width, height = camera.width_px // 4, camera.height_px // 4
    undistort = Undistorter(camera, width, height)
    u, v = pixel_grid(width, height)
    K = undistort.K
    ideal = pattern((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    # A shifted principal point (half a pixel is the classic mistake) would cost tens of grey levels.
    assert np.abs(undistort(photograph(camera)) - ideal).mean() < 2.5


def test_pinhole_photographs_pass_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for camera in (
        ColmapCamera("PINHOLE", 80, 60, (70.0, 71.0, 41.0, 29.0)),
        ColmapCamera("SIMPLE_RADIAL", 80, 60, (70.0, 40.0, 30.0, 0.0)),
    ):
        undistort = Undistorter(camera, 80, 60)
        assert undistort(pixels) is pixels
        np.testing.assert_array_equal(undistort.K, camera.matrix())


def test_agrees_with_colmaps_own_undistortion():
    pycolmap = pytest.importorskip("pycolmap")
    camera = CAMERAS[0]
    theirs = pycolmap.Camera(model=camera.model, width=160, height=120, params=camera.params)
    options = pycolmap.UndistortCameraOptions()
    bitmap, pinhole = pycolmap.undistort_image(
        options, pycolmap.Bitmap.from_array(photograph(camera)), theirs
    )
    result = np.asarray(bitmap.to_array())
    u, v = pixel_grid(result.shape[1], result.shape[0])
    K = pinhole.calibration_matrix()
    ideal = pattern((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    inner = np.s_[4:-4, 4:-4]
    theirs_error = np.abs(result - ideal)[inner].mean()
    ours = Undistorter(camera, 160, 120)
    u, v = pixel_grid(160, 120)
    ideal = pattern((u - ours.K[0, 2]) / ours.K[0, 0], (v - ours.K[1, 2]) / ours.K[1, 1])
    assert np.abs(ours(photograph(camera)) - ideal)[inner].mean() <= theirs_error + 0.1


@pytest.mark.parametrize(("num", "size"), [(12, 4), (12, 5), (7, 3), (100, 99), (5, 1), (9, 9)])
def test_area_average_is_exact(num, size):
    values = np.random.default_rng(0).uniform(0, 255, (num, 3)).astype(np.float32)
    result = area_average(values, size, 0)
    for i in range(size):
        left, right = i * num / size, (i + 1) * num / size
        weights = np.clip(np.minimum(np.arange(num) + 1, right) - np.maximum(np.arange(num), left), 0, None)
        np.testing.assert_allclose(result[i], (weights[:, None] * values).sum(0) / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(area_average(values.T, size, 1), result.T, rtol=1e-5)


def test_absurd_distortion_is_refused():
    with pytest.raises(UserError, match="no pinhole view fits"):
        Undistorter(ColmapCamera("SIMPLE_RADIAL", 160, 120, (20.0, 80.0, 60.0, 5.0)), 160, 120)


def test_wrong_size_is_refused():
    with pytest.raises(ValueError, match="expected"):
        Undistorter(CAMERAS[0], 160, 120)(np.zeros((10, 10, 3), np.uint8))
