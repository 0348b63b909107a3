"""How far camera poses are from known ones, after the best similarity: photographs alone give no scale."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PoseError:
    """Errors against the truth. Positions are in percent of the trajectory's diameter (its longest distance)."""

    num_images: int
    rotation_median_deg: float
    rotation_max_deg: float
    position_median_percent: float
    position_max_percent: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def read_truth(path: Path) -> dict[str, Doubles]:
    """Camera-to-world matrices [4, 4] (OpenCV axes) by photograph, from NeRF's transforms.json layout (OpenGL axes).

    Keys are paths as written without a leading `./`; frames listed without a photograph are harmless.
    """
    try:
        frames = json.loads(Path(path).read_text(encoding="utf-8"))["frames"]
        poses = {
            PurePosixPath(frame["file_path"]).as_posix(): np.array(frame["transform_matrix"], np.float64)
            for frame in frames
        }
        if not all(pose.shape == (4, 4) and np.isfinite(pose).all() for pose in poses.values()):
            raise ValueError("a transform_matrix is not 4 x 4 finite numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no true poses in it ({error}). Expected JSON with `frames`, each with `file_path` and "
            "`transform_matrix`. Correct it, or remove `truth:` from the scene."
        ) from None
    return {name: pose @ np.diag([1.0, -1.0, -1.0, 1.0]) for name, pose in poses.items()}


def fit_similarity(source: Doubles, target: Doubles) -> tuple[float, Doubles, Doubles]:
    """Scale s, rotation R [3, 3] and translation t [3] that minimise |s R source + t - target|^2; points [N, 3].

    S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum() / (a**2).sum() * len(a))
    return scale, rotation, target_mean - scale * rotation @ source_mean


def pose_error(estimated: dict[str, Doubles], truth: dict[str, Doubles]) -> PoseError | None:
    """Compare camera-to-world poses by photograph; None if fewer than 3 photographs are in both.

    Photographs are matched by path, or by file name where the truth's paths have other folders.
    """
    by_file = {PurePosixPath(name).name: pose for name, pose in truth.items()}
    pairs = [
        (pose, truth.get(name, by_file.get(PurePosixPath(name).name))) for name, pose in estimated.items()
    ]
    found = [(pose, true) for pose, true in pairs if true is not None]
    if len(found) < 3:
        return None
    ours, true = np.array([p for p, _ in found]), np.array([t for _, t in found])
    scale, rotation, translation = fit_similarity(ours[:, :3, 3], true[:, :3, 3])
    moved = scale * ours[:, :3, 3] @ rotation.T + translation
    distances = np.linalg.norm(moved - true[:, :3, 3], axis=1)
    diameter = np.linalg.norm(true[:, None, :3, 3] - true[None, :, :3, 3], axis=-1).max()
    turned = rotation @ ours[:, :3, :3]
    # |A - B|_F = 2 sqrt(2) sin(angle / 2): exact for small angles, where arccos of the trace loses half its digits.
    chord = np.linalg.norm(turned - true[:, :3, :3], axis=(1, 2))
    angles = np.degrees(2 * np.arcsin(np.minimum(chord / (2 * np.sqrt(2)), 1)))
    return PoseError(
        num_images=len(found),
        rotation_median_deg=float(np.median(angles)),
        rotation_max_deg=float(angles.max()),
        position_median_percent=float(100 * np.median(distances) / diameter),
        position_max_percent=float(100 * distances.max() / diameter),
    )
