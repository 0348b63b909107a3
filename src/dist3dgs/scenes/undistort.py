"""Crop, undistort and shrink photographs to those of an exact pinhole camera, without black borders."""

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .colmap.cameras import ColmapCamera

Doubles = NDArray[np.float64]
_BORDER_SAMPLES = 64
_ZOOMS = np.concatenate([np.arange(0.5, 1, 0.005), np.arange(1, 2.0, 0.005)])


class Undistorter:
    """Makes pinhole photographs of one size from those of one camera.

    camera: rescaled to the true size of the photographs. K [3, 3] and (width_px, height_px) describe the output.
    """

    def __init__(self, camera: ColmapCamera, width_px: int, height_px: int) -> None:
        self.camera, self.width_px, self.height_px = camera, width_px, height_px
        self._map: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None
        full = camera.matrix()
        if not camera.is_pinhole:
            zoom = _smallest_zoom(camera)
            full[0, 0] *= zoom
            full[1, 1] *= zoom
            self._map = _source_pixels(camera, full)
        self.K = np.diag([width_px / camera.width_px, height_px / camera.height_px, 1.0]) @ full

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Undistort and resize a photograph, uint8 [H, W, 3] of the camera's size; returns [height_px, width_px, 3]."""
        size = (self.camera.height_px, self.camera.width_px)
        if pixels.shape != (*size, 3):
            raise ValueError(f"photograph of {pixels.shape}, expected {size} x 3")
        if self._map is None and size == (self.height_px, self.width_px):
            return pixels
        straight = pixels.astype(np.float32) if self._map is None else _remap(pixels, *self._map)
        small = area_average(area_average(straight, self.height_px, 0), self.width_px, 1)
        return np.clip(small + 0.5, 0, 255).astype(np.uint8)


def area_average(values: NDArray[np.floating], size: int, axis: int) -> NDArray[np.floating]:
    """Shrink one axis to `size`; each output, float32 [...], is the exact mean over the input it covers, fractions
    included.
    """
    num = values.shape[axis]
    if size == num:
        return values
    if num % size == 0:
        shape = (*values.shape[:axis], size, num // size, *values.shape[axis + 1 :])
        return values.reshape(shape).mean(axis + 1, dtype=np.float32)
    sums = np.zeros((num + 1, *np.delete(values.shape, axis)))
    np.cumsum(np.moveaxis(values, axis, 0), 0, out=sums[1:])
    edges = np.arange(size + 1) * (num / size)
    whole = np.minimum(edges.astype(np.int64), num - 1)
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    upto = sums[whole] * (1 - part) + sums[whole + 1] * part
    return np.moveaxis(np.diff(upto, axis=0) * (size / num), 0, axis).astype(np.float32)


@np.errstate(over="ignore")
def _distorted(camera: ColmapCamera, K: Doubles, u_px: Doubles, v_px: Doubles) -> tuple[Doubles, Doubles]:
    """Map ideal image points of pinhole `K` to the photograph, px."""
    x, y = camera.distort((u_px - K[0, 2]) / K[0, 0], (v_px - K[1, 2]) / K[1, 1])
    (fx, fy), (cx, cy) = camera.focals_px, camera.centre_px
    return fx * x + cx, fy * y + cy


def _smallest_zoom(camera: ColmapCamera) -> float:
    """Return the smallest factor on the focal lengths, the widest view, whose whole border lies inside the
    photograph.

    Zooms are tried from the narrow end, and the search stops at the first that fails: past that the distortion
    polynomial may fold back and look valid again.
    """
    width, height = camera.width_px, camera.height_px
    along = np.linspace(0, 1, _BORDER_SAMPLES)
    u = np.concatenate([along * width, along * width, 0 * along, 0 * along + width])
    v = np.concatenate([0 * along, 0 * along + height, along * height, along * height])
    best = None
    for zoom in _ZOOMS[::-1]:
        K = camera.matrix()
        K[0, 0] *= zoom
        K[1, 1] *= zoom
        x, y = _distorted(camera, K, u, v)
        # Pixel centres of the border must have four neighbours to interpolate between.
        if not ((x >= 0) & (x <= width) & (y >= 0) & (y <= height)).all():
            break
        best = float(zoom)
    if best is None:
        _no_view(camera)
    return best


def _no_view(camera: ColmapCamera) -> NoReturn:
    raise UserError(
        f"camera {camera.model} of {camera.width_px} x {camera.height_px} px with distortion {camera.distortion}: no "
        "pinhole view fits inside the photographs. Structure from motion went astray; try `sfm.camera_model: OPENCV`, "
        "or undistort with `colmap image_undistorter` and give the result as `colmap:`."
    )


def _source_pixels(camera: ColmapCamera, K: Doubles) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """For each output pixel: the flat index of the upper left of four source pixels, and the bilinear fractions."""
    v, u = np.meshgrid(np.arange(camera.height_px) + 0.5, np.arange(camera.width_px) + 0.5, indexing="ij")
    x, y = _distorted(camera, K, u, v)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        _no_view(camera)
    x = np.clip(x - 0.5, 0, camera.width_px - 1)
    y = np.clip(y - 0.5, 0, camera.height_px - 1)
    x0 = np.minimum(x.astype(np.int32), camera.width_px - 2)
    y0 = np.minimum(y.astype(np.int32), camera.height_px - 2)
    return y0 * np.int32(camera.width_px) + x0, np.stack([x - x0, y - y0]).astype(np.float32)


def _remap(
    pixels: NDArray[np.uint8], corner: NDArray[np.int32], part: NDArray[np.float32]
) -> NDArray[np.float32]:
    flat, width = pixels.reshape(-1, 3), pixels.shape[1]
    fx, fy = part[0][..., None], part[1][..., None]
    top = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    bottom = flat[corner + width] * (1 - fx) + flat[corner + width + 1] * fx
    return top * (1 - fy) + bottom * fy
