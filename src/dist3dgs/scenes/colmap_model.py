"""A COLMAP model in memory, and what must hold in one, wherever it was read from."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .cameras import Camera

MAX_COORDINATE = 1e12
NO_POINT = -1
#: One keypoint: place in px, and the point it belongs to (NO_POINT: none).
OBSERVATION = np.dtype([("xy", "<f8", 2), ("point_id", "<i8")])


@dataclass(frozen=True, kw_only=True)
class Image:
    """A posed photograph.

    name: as stored, relative to the images folder.
    camera_id: key into `Model.cameras`.
    cam_from_world: [3, 4] float64, OpenCV axes.
    observations: structured [K] with `xy` (px) and `point_id` (-1: no point).
    """

    name: str
    camera_id: int
    cam_from_world: NDArray[np.float64]
    observations: NDArray


@dataclass(frozen=True, kw_only=True)
class Model:
    """A reconstruction. Points are sorted by id, images are a mapping by id.

    point_ids [P] int64, points [P, 3] float64, colors [P, 3] uint8, errors [P] float64 px (as stored, -1 unknown).
    """

    cameras: dict[int, Camera]
    images: dict[int, Image]
    point_ids: NDArray[np.int64]
    points: NDArray[np.float64]
    colors: NDArray[np.uint8]
    errors: NDArray[np.float64]


def bad(path: Path, what: str) -> NoReturn:
    raise UserError(
        f"{path}: {what}. The file is damaged or not COLMAP's; copy it again from its source, "
        "or run structure from motion anew by giving the photographs as `images:`."
    )


def camera_of(path: Path, model: str, width: int, height: int, params: tuple[float, ...]) -> Camera:
    if not (0 < width < 2**17 and 0 < height < 2**17):
        bad(path, f"a camera of {width} x {height} px")
    camera = Camera(model, width, height, params)
    if not np.isfinite(params).all() or min(camera.focals_px) <= 0:
        bad(path, f"a camera with parameters {params}: focal lengths must be positive and all finite")
    if any(not -s < c < 2 * s for c, s in zip(camera.centre_px, (width, height), strict=True)):
        bad(path, f"a camera of {width} x {height} px with its principal point at {camera.centre_px}")
    return camera


def sane(values: NDArray[np.float64]) -> bool:
    """Whether all values are finite and small enough to be squared, also in single precision."""
    return bool((np.abs(values) < MAX_COORDINATE).all())


def pose_of(
    path: Path, name: str, quaternion: NDArray[np.float64], translation: NDArray[np.float64]
) -> NDArray[np.float64]:
    valid = sane(quaternion) and sane(translation) and 0.5 < np.linalg.norm(quaternion) < 2
    if not valid:
        numbers = f"rotation {quaternion.tolist()}, translation {translation.tolist()}"
        bad(path, f"image {name!r} has no valid pose: {numbers}")
    return np.concatenate(
        [rotation_from_quaternion(quaternion / np.linalg.norm(quaternion)), translation[:, None]], 1
    )


def rotation_from_quaternion(wxyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix [3, 3] of a unit quaternion (w, x, y, z)."""
    w, x, y, z = wxyz
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def add(path: Path, table: dict, key: int, value: object, what: str) -> None:
    if key in table:
        bad(path, f"{what} {key} occurs twice")
    table[key] = value


def check(model: Model, track_images: NDArray, folder: Path, suffix: str) -> None:
    """Whatever the three files say about each other must hold."""
    images_file, points_file = folder / f"images{suffix}", folder / f"points3D{suffix}"
    if not model.images:
        bad(images_file, "holds no image")
    if not sane(model.points):
        wrong = ~(np.abs(model.points) < MAX_COORDINATE).all(1)
        bad(points_file, f"point {model.point_ids[wrong][0]} is not finite, or absurdly far away")
    if (np.diff(model.point_ids) == 0).any():
        bad(points_file, "a point id occurs twice")
    missing = np.setdiff1d(track_images, list(model.images))
    if len(missing):
        bad(points_file, f"a track names image {missing[0]}, which {images_file.name} does not have")
    names: set[str] = set()
    for image in model.images.values():
        check_image_name(image.name, images_file)
        if image.name in names:
            bad(images_file, f"image name {image.name!r} occurs twice")
        names.add(image.name)
        if image.camera_id not in model.cameras:
            bad(
                images_file,
                f"image {image.name!r} has camera {image.camera_id}, which cameras{suffix} does not have",
            )
        seen = image.observations["point_id"]
        seen = seen[seen != NO_POINT]
        place = np.searchsorted(model.point_ids, seen)
        found = place < len(model.point_ids)
        found[found] = model.point_ids[place[found]] == seen[found]
        if not found.all():
            bad(
                images_file,
                f"image {image.name!r} sees point {seen[~found][0]}, which {points_file.name} does not have",
            )
        if not sane(image.observations["xy"]):
            bad(images_file, f"image {image.name!r} has a keypoint that is not finite")


def check_image_name(name: str, path: Path) -> None:
    """An image name is joined to the images folder: it must stay inside."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or not name.isprintable():
        bad(path, f"image name {name[:80]!r} is not a plain path inside the images folder")


def reprojection_errors(model: Model) -> NDArray[np.float64]:
    """Distance in px between every keypoint that has a point and that point's projection, all images together."""
    errors = [np.empty(0)]
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        if not camera.is_supported:
            continue
        seen = image.observations[image.observations["point_id"] != NO_POINT]
        points = model.points[np.searchsorted(model.point_ids, seen["point_id"])]
        local = points @ image.cam_from_world[:, :3].T + image.cam_from_world[:, 3]
        front = local[:, 2] > 0
        errors.append(np.linalg.norm(camera.project(local[front]) - seen["xy"][front], axis=1))
    return np.concatenate(errors)
