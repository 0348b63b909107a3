"""Normalise the world for training: centred on the cameras, z up, cameras about one unit from the centre."""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def normalisation_of(viewmats: Doubles) -> Doubles:
    """Compute the similarity, float64 [4, 4], from the given world to the normalised one.

    The mean camera centre moves to the origin, the mean "up" of the cameras to +z, and the median distance of a
    camera from the origin becomes 1 (as gsplat's `similarity_from_cameras`), so that learning rates mean the same in
    every scene.

    viewmats: float64 [C, 4, 4], world to camera, OpenCV axes.
    """
    centres = camera_centres(viewmats)
    middle = centres.mean(0)
    rotation = _rotation_to_z(-viewmats[:, 1, :3].mean(0))
    distance = float(np.median(np.linalg.norm(centres - middle, axis=1)))
    scale = 1 / distance if distance > 1e-12 else 1.0
    result = np.eye(4)
    result[:3, :3] = scale * rotation
    result[:3, 3] = -scale * rotation @ middle
    return result


def apply_to_viewmats(similarity: Doubles, viewmats: Doubles) -> Doubles:
    """Move world-to-camera matrices, float64 [C, 4, 4], to the new world.

    They stay rigid: the scale goes into the translation. similarity: float64 [4, 4].
    """
    scale = np.cbrt(np.linalg.det(similarity[:3, :3]))
    moved = viewmats @ np.linalg.inv(similarity)
    moved[:, :3, :3] *= scale
    moved[:, :3, 3] *= scale
    return moved


def apply_to_points(similarity: Doubles, points: Doubles) -> Doubles:
    """Move points, float64 [P, 3], to the new world. similarity: float64 [4, 4]."""
    return points @ similarity[:3, :3].T + similarity[:3, 3]


def camera_centres(viewmats: Doubles) -> Doubles:
    """Return the positions, float64 [C, 3], of cameras given world to camera, float64 [C, 4, 4]."""
    return -np.einsum("cji,cj->ci", viewmats[:, :3, :3], viewmats[:, :3, 3])


def _rotation_to_z(up: Doubles) -> Doubles:
    """Return the smallest rotation that turns `up` to +z; the identity if the cameras do not agree on an up."""
    length = np.linalg.norm(up)
    if length < 1e-6:
        return np.eye(3)
    x, y, z = up / length
    if z < -0.999999:
        return np.diag([1.0, -1.0, -1.0])
    # Rodrigues' formula for the axis up x z.
    return np.array(
        [[1 - x * x / (1 + z), -x * y / (1 + z), -x], [-x * y / (1 + z), 1 - y * y / (1 + z), -y], [x, y, z]]
    )
