"""A COLMAP model in memory, and what must hold in one, wherever it was read from.

Training depends on poses, cameras and points: faults in them are refused. It does not depend on tracks and keypoints:
where these do not fit, they are dropped with a note.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..listing import name_problem, printable
from .cameras import MODELS, NUM_PARAMS, ColmapCamera, installed_models

MAX_COORDINATE = 1e12
NO_POINT = -1
#: A median error above this share of the photographs' width is no reconstruction's: the files are of two models.
MAX_MEDIAN_ERROR = 0.02
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
    notes: file name -> what was dropped from it, because training does not use it.
    """

    cameras: dict[int, ColmapCamera]
    images: dict[int, Image]
    point_ids: NDArray[np.int64]
    points: NDArray[np.float64]
    colors: NDArray[np.uint8]
    errors: NDArray[np.float64]
    notes: dict[str, str] = field(default_factory=dict)


def bad(path: Path, what: str) -> NoReturn:
    raise UserError(
        f"{path}: {what}. The file is damaged or not COLMAP's; copy it again from its source, "
        "or run structure from motion anew by giving the photographs as `images:`."
    )


def model_numbered(path: Path, camera_id: int, number: int) -> tuple[str, int]:
    """Name and number of parameters of a camera model, from its number in cameras.bin."""
    found = MODELS.get(number) or installed_models().get(number)
    if found is None:
        _unknown_model(path, camera_id, f"number {number}")
    return found


def check_num_params(path: Path, camera_id: int, model: str, count: int) -> None:
    """Check the number of parameters of a camera in cameras.txt against its model."""
    expected = NUM_PARAMS.get(model) or dict(installed_models().values()).get(model)
    if expected is None:
        _unknown_model(path, camera_id, repr(model[:40]))
    if count != expected:
        bad(path, f"camera {camera_id}: model {model} with {count} parameters, it has {expected}")


def _unknown_model(path: Path, camera_id: int, model: str) -> NoReturn:
    raise UserError(
        f"{path}: camera {camera_id} has model {model}, unknown here and to the installed COLMAP. If a newer COLMAP "
        "wrote it, undistort with that one: `colmap image_undistorter --image_path IMAGES --input_path MODEL "
        "--output_path OUT`, then `colmap: OUT` and `images: OUT/images`. If not, the file is damaged."
    )


def camera_of(path: Path, model: str, width: int, height: int, params: tuple[float, ...]) -> ColmapCamera:
    if not (0 < width < 2**17 and 0 < height < 2**17):
        bad(path, f"a camera of {width} x {height} px")
    camera = ColmapCamera(model, width, height, params)
    if not np.isfinite(params).all():
        bad(path, f"a camera with parameters {params}: all must be finite")
    if not camera.is_supported:  # its parameters mean something else
        return camera
    if min(camera.focals_px) <= 0:
        bad(path, f"a camera with parameters {params}: focal lengths must be positive and all finite")
    if any(not -s < c < 2 * s for c, s in zip(camera.centre_px, (width, height), strict=True)):
        bad(path, f"a camera of {width} x {height} px with its principal point at {camera.centre_px}")
    return camera


def sane(values: NDArray[np.float64]) -> bool:
    """Return True if all values, float64 [...], are finite and small enough to be squared, even in single precision."""
    return bool((np.abs(values) < MAX_COORDINATE).all())


def pose_of(
    path: Path, name: str, quaternion: NDArray[np.float64], translation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the pose [R | t], float64 [3, 4], of a quaternion [4] (w, x, y, z) and a translation [3].

    Raises:
        UserError: values that are not finite, or a quaternion far from unit length.
    """
    valid = sane(quaternion) and sane(translation) and 0.5 < np.linalg.norm(quaternion) < 2
    if not valid:
        numbers = f"rotation {quaternion.tolist()}, translation {translation.tolist()}"
        bad(path, f"image {name!r} has no valid pose: {numbers}")
    return np.concatenate(
        [rotation_from_quaternion(quaternion / np.linalg.norm(quaternion)), translation[:, None]], 1
    )


def rotation_from_quaternion(wxyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a unit quaternion (w, x, y, z), float64 [4], to a rotation matrix, float64 [3, 3]."""
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


def checked(model: Model, track_images: set[int], folder: Path, suffix: str) -> Model:
    """Compare the three files: refuse faults that training would suffer from, drop the others with a note.

    track_images: ids of the images that tracks of points name.
    """
    images_file, points_file = folder / f"images{suffix}", folder / f"points3D{suffix}"
    if not model.images:
        bad(images_file, "holds no image")
    if not sane(model.points):
        wrong = ~(np.abs(model.points) < MAX_COORDINATE).all(1)
        bad(points_file, f"point {model.point_ids[wrong][0]} is not finite, or absurdly far away")
    if (np.diff(model.point_ids) == 0).any():
        bad(points_file, "a point id occurs twice")
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
    notes = {}
    if missing := sorted(track_images - set(model.images)):
        notes[points_file.name] = (
            f"tracks name {len(missing)} images (first: {missing[0]}) that {images_file.name} does not have: dropped, "
            "training does not use tracks"
        )
    images, dropped = {}, []
    for image_id, image in model.images.items():
        images[image_id], note = _without_dangling(image, model.point_ids, points_file.name)
        dropped += [note] if note else []
    if dropped:
        more = f", and of {len(dropped) - 1} more images" if len(dropped) > 1 else ""
        notes[images_file.name] = f"{dropped[0]}{more}: dropped, training does not use them"
    model = replace(model, images=images, notes=notes)
    errors = reprojection_errors(model)
    width = max(camera.width_px for camera in model.cameras.values())
    if len(errors) and (median := float(np.median(errors))) > MAX_MEDIAN_ERROR * width:
        notes["cameras" + suffix] = (
            f"half of the keypoints lie more than {median:.0f} px from where their points project: they are made up "
            "(as exporters of dense clouds do), or cameras, images and points3D are of different reconstructions"
        )
    return model


def _without_dangling(image: Image, point_ids: NDArray[np.int64], points_name: str) -> tuple[Image, str]:
    """Drop keypoints that are not finite or whose points do not exist; return the image and a note of what was
    dropped.
    """
    seen = image.observations["point_id"]
    place = np.minimum(np.searchsorted(point_ids, seen), max(len(point_ids) - 1, 0))
    dangling = seen != NO_POINT
    if len(point_ids):
        dangling &= point_ids[place] != seen
    wild = ~(np.abs(image.observations["xy"]) < MAX_COORDINATE).all(1)
    if not (dangling | wild).any():
        return image, ""
    notes = []
    if dangling.any():
        notes.append(
            f"{dangling.sum()} keypoints of {image.name!r} name points that {points_name} does not have "
            f"(first: {seen[dangling][0]})"
        )
    if wild.any():
        notes.append(f"{wild.sum()} keypoints of {image.name!r} are not finite")
    observations = image.observations.copy()
    observations["point_id"][dangling] = NO_POINT
    return replace(image, observations=observations[~wild]), " and ".join(notes)


def check_image_name(name: str, path: Path) -> None:
    """Check that an image name, joined to the images folder, stays inside it."""
    if problem := name_problem(name):
        bad(path, f"image name {printable(name[:80])!r}: {problem}")
    for form in (name, name.replace("\\", "/")):
        pure = PurePosixPath(form)
        if not name or pure.is_absolute() or ".." in pure.parts:
            bad(path, f"image name {name[:80]!r} is not a plain path inside the images folder")


def reprojection_errors(model: Model) -> NDArray[np.float64]:
    """Compute the distance in px between every keypoint that has a point and that point's projection.

    Returns float64 [K], all images together, finite ones only.
    """
    errors = [np.empty(0)]
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        if not camera.is_supported:
            continue
        seen = image.observations[image.observations["point_id"] != NO_POINT]
        points = model.points[np.searchsorted(model.point_ids, seen["point_id"])]
        local = points @ image.cam_from_world[:, :3].T + image.cam_from_world[:, 3]
        front = local[:, 2] > 0
        with np.errstate(over="ignore", invalid="ignore"):  # absurd distortions
            errors.append(np.linalg.norm(camera.project(local[front]) - seen["xy"][front], axis=1))
    everything = np.concatenate(errors)
    return everything[np.isfinite(everything)]
