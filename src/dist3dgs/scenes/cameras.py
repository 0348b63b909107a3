"""COLMAP's camera models: parameters, and the distortion from ideal to real image points.

Formulas follow COLMAP's `src/colmap/sensor/models.h`. Image points are in px with pixel centres at +0.5.
"""

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

#: COLMAP's model number -> (name, number of parameters), of the models whose formulas stand here. Others are asked of
#: the installed COLMAP, for its name of them.
MODELS: dict[int, tuple[str, int]] = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
}
NUM_PARAMS = dict(MODELS.values())
_ONE_FOCAL = {
    *("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"),
    *("SIMPLE_DIVISION", "SIMPLE_FISHEYE"),
}


@functools.cache
def installed_models() -> dict[int, tuple[str, int]]:
    """Camera models of the installed COLMAP: number -> (name, number of parameters); {} if it cannot be asked.

    Asked in a child process: importing pycolmap replaces signal handlers.
    """
    command = [sys.executable, "-m", "dist3dgs.scenes.sfm_worker", "--camera-models"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
        return {number: (name, count) for number, name, count in json.loads(answer)}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


@dataclass(frozen=True)
class Camera:
    """A camera of a COLMAP model: `params` in COLMAP's order for `model`; px."""

    model: str
    width_px: int
    height_px: int
    params: tuple[float, ...]

    @property
    def focals_px(self) -> tuple[float, float]:
        return (self.params[0], self.params[0 if self.model in _ONE_FOCAL else 1])

    @property
    def centre_px(self) -> tuple[float, float]:
        start = 1 if self.model in _ONE_FOCAL else 2
        return self.params[start], self.params[start + 1]

    @property
    def distortion(self) -> tuple[float, ...]:
        return self.params[3 if self.model in _ONE_FOCAL else 4 :]

    @property
    def is_supported(self) -> bool:
        """Whether images of this model can be undistorted here."""
        return self.model in NUM_PARAMS

    @property
    def is_pinhole(self) -> bool:
        """Whether images need no undistortion: a pinhole model, or one of perspective kind whose terms are all zero."""
        return "FISHEYE" not in self.model and self.model != "FOV" and not any(self.distortion)

    def matrix(self) -> Doubles:
        """Intrinsics K [3, 3], px, without the distortion."""
        (fx, fy), (cx, cy) = self.focals_px, self.centre_px
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])

    def resized(self, width_px: int, height_px: int) -> "Camera":
        """The same lens on photographs of another size: focal lengths and centre follow, distortion does not change."""
        if (width_px, height_px) == (self.width_px, self.height_px):
            return self
        sx, sy = width_px / self.width_px, height_px / self.height_px
        (fx, fy), (cx, cy) = self.focals_px, self.centre_px
        # Rounding makes sx and sy differ a little, and a model with one focal length keeps their mean.
        focals = (fx * (sx + sy) / 2,) if self.model in _ONE_FOCAL else (fx * sx, fy * sy)
        return Camera(self.model, width_px, height_px, (*focals, cx * sx, cy * sy, *self.distortion))

    @np.errstate(all="ignore")
    def distort(self, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
        """Normalised ideal points (x / z, y / z) to normalised real ones, any shape; not finite where there is none."""
        k = self.distortion
        if self.is_pinhole:
            return x, y
        if "FISHEYE" in self.model:
            r = np.hypot(x, y)
            theta = np.arctan(r)
            factor = np.where(r > 1e-9, theta / np.maximum(r, 1e-9), 1.0)
            if self.model == "THIN_PRISM_FISHEYE":
                return _thin_prism(x * factor, y * factor, *k)
            radial = k[:6] if self.model == "RAD_TAN_THIN_PRISM_FISHEYE" else k
            factor = factor * (1 + sum(ki * theta ** (2 * i + 2) for i, ki in enumerate(radial)))
            x, y = x * factor, y * factor
            return _tangential_prism(x, y, *k[6:]) if len(k) > 6 else (x, y)
        r2 = x * x + y * y
        scale: Any
        if self.model in ("SIMPLE_RADIAL", "RADIAL"):
            scale = 1 + sum(ki * r2 ** (i + 1) for i, ki in enumerate(k))
            return x * scale, y * scale
        if self.model == "FOV":
            r, (omega,) = np.sqrt(r2), k
            bent = np.arctan(r * 2 * np.tan(omega / 2)) / omega if omega else r
            scale = np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 2 * np.tan(omega / 2) / (omega or 1))
            return x * scale, y * scale
        if self.model in ("SIMPLE_DIVISION", "DIVISION"):
            root = 1 - 4 * k[0] * r2  # negative: this point is not in the picture
            scale = 2 / (1 + np.where(root < 0, np.nan, np.sqrt(np.maximum(root, 0))))
            return x * scale, y * scale
        if self.model == "EUCM":
            alpha, beta = k
            scale = 1 / (alpha * np.sqrt(beta * r2 + 1) + 1 - alpha)
            return x * scale, y * scale
        if self.model == "OPENCV":
            k1, k2, p1, p2 = k
            scale = 1 + k1 * r2 + k2 * r2 * r2
        elif self.model == "FULL_OPENCV":
            k1, k2, p1, p2, k3, k4, k5, k6 = k
            scale = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        else:
            raise NotImplementedError(self.model)
        return (
            x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * scale + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
        )

    @np.errstate(all="ignore")
    def project(self, points: Doubles) -> Doubles:
        """Image points [N, 2], px, of points [N, 3] in camera coordinates."""
        x, y = self.distort(points[:, 0] / points[:, 2], points[:, 1] / points[:, 2])
        (fx, fy), (cx, cy) = self.focals_px, self.centre_px
        return np.stack([fx * x + cx, fy * y + cy], 1)


def _thin_prism(
    x: Doubles,
    y: Doubles,
    k1: float,
    k2: float,
    p1: float,
    p2: float,
    k3: float,
    k4: float,
    s1: float,
    s2: float,
) -> tuple[Doubles, Doubles]:
    r2 = x * x + y * y
    scale = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    return (
        x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + s1 * r2,
        y * scale + 2 * p2 * x * y + p1 * (r2 + 2 * y * y) + s2 * r2,
    )


def _tangential_prism(
    x: Doubles, y: Doubles, p0: float, p1: float, s0: float, s1: float, s2: float, s3: float
) -> tuple[Doubles, Doubles]:
    r2 = x * x + y * y
    both = 2 * (p0 * x + p1 * y)
    return (
        x + both * x + p0 * r2 + s0 * r2 + s1 * r2 * r2,
        y + both * y + p1 * r2 + s2 * r2 + s3 * r2 * r2,
    )
