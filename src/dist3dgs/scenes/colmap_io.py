"""COLMAP models, read and written without COLMAP: cameras, images and points3D, binary or text.

COLMAP's own reader trusts its files: a cut or hostile one makes it hang, eat memory or return garbage. Here every
count is held against the bytes that are there before anything is allocated, numbers must be finite and ids must
exist; what is wrong becomes a `UserError` that names the file. The rigs and frames files that COLMAP writes since 3.12
are not needed: images.bin still holds every image's own pose. Format: https://colmap.github.io/format.html
"""

import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .cameras import MODELS, NUM_PARAMS, Camera

MAX_NAME_BYTES = 1024
MAX_COORDINATE = 1e12
NO_POINT = -1
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point_id", "<i8")])
_TRACK = np.dtype([("image_id", "<u4"), ("point2d", "<u4")])


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


def model_format(folder: Path) -> str | None:
    """ ".bin" or ".txt" if `folder` holds a whole model (binary wins), else None."""
    for suffix in (".bin", ".txt"):
        if all(Path(folder, f"{part}{suffix}").is_file() for part in ("cameras", "images", "points3D")):
            return suffix
    return None


def read_model(folder: Path) -> Model:
    """Read and check the model in `folder`. Raises `UserError` naming the file for anything wrong with it."""
    suffix = model_format(folder)
    if suffix is None:
        raise UserError(
            f"{folder}: no COLMAP model. Expected cameras, images and points3D, all .bin or all .txt. "
            "Point `colmap:` at the folder that holds them, or one whose sparse/ or sparse/0/ does."
        )
    binary = suffix == ".bin"
    cameras = (_cameras_bin if binary else _cameras_txt)(Path(folder, "cameras" + suffix))
    images = (_images_bin if binary else _images_txt)(Path(folder, "images" + suffix))
    ids, points, colors, errors, tracks = (_points_bin if binary else _points_txt)(
        Path(folder, "points3D" + suffix)
    )
    order = np.argsort(ids, kind="stable")
    model = Model(
        cameras=cameras,
        images=images,
        point_ids=ids[order],
        points=points[order],
        colors=colors[order],
        errors=errors[order],
    )
    _check(model, tracks, Path(folder), suffix)
    return model


def _bad(path: Path, what: str) -> NoReturn:
    raise UserError(
        f"{path}: {what}. The file is damaged or not COLMAP's; copy it again from its source, "
        "or run structure from motion anew by giving the photographs as `images:`."
    )


class _Bytes:
    """A file's bytes with a position; reading past the end is an error that names the file."""

    def __init__(self, path: Path) -> None:
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}). Check the path and its permissions."
            ) from None
        self.path, self.at = path, 0

    def need(self, num_bytes: int, what: str) -> None:
        if num_bytes > len(self.data) - self.at:
            left = len(self.data) - self.at
            _bad(self.path, f"ends early: {what} needs {num_bytes} bytes at byte {self.at}, {left} are left")

    def unpack(self, layout: struct.Struct, what: str) -> tuple:
        self.need(layout.size, what)
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def count(self, smallest_record: int, what: str) -> int:
        (count,) = self.unpack(_U64, f"the number of {what}")
        self.need(count * smallest_record, f"a count of {count} {what}")
        return count

    def array(self, dtype: np.dtype, count: int, what: str) -> NDArray:
        self.need(count * dtype.itemsize, what)
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * dtype.itemsize
        return values

    def text(self, what: str) -> str:
        end = self.data.find(b"\0", self.at, self.at + MAX_NAME_BYTES + 1)
        if end < 0:
            _bad(self.path, f"{what} at byte {self.at} does not end within {MAX_NAME_BYTES} bytes")
        raw = self.data[self.at : end]
        self.at = end + 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            _bad(self.path, f"{what} at byte {self.at} is not UTF-8")

    def finish(self) -> None:
        if self.at != len(self.data):
            _bad(self.path, f"{len(self.data) - self.at} bytes too many after the last record")


_U64 = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")
_IMAGE = struct.Struct("<I7dI")
_POINT = struct.Struct("<Q3d3BdQ")


def _camera(path: Path, model: str, width: int, height: int, params: tuple[float, ...]) -> Camera:
    if not (0 < width < 2**17 and 0 < height < 2**17):
        _bad(path, f"a camera of {width} x {height} px")
    camera = Camera(model, width, height, params)
    if not np.isfinite(params).all() or min(camera.focals_px) <= 0:
        _bad(path, f"a camera with parameters {params}: focal lengths must be positive and all finite")
    if any(not -s < c < 2 * s for c, s in zip(camera.centre_px, (width, height), strict=True)):
        _bad(path, f"a camera of {width} x {height} px with its principal point at {camera.centre_px}")
    return camera


def _sane(values: NDArray[np.float64]) -> bool:
    """Whether all values are finite and small enough to be squared, also in single precision."""
    return bool((np.abs(values) < MAX_COORDINATE).all())


def _pose(
    path: Path, name: str, quaternion: NDArray[np.float64], translation: NDArray[np.float64]
) -> NDArray[np.float64]:
    valid = _sane(quaternion) and _sane(translation) and 0.5 < np.linalg.norm(quaternion) < 2
    if not valid:
        numbers = f"rotation {quaternion.tolist()}, translation {translation.tolist()}"
        _bad(path, f"image {name!r} has no valid pose: {numbers}")
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


def _add(path: Path, table: dict, key: int, value: object, what: str) -> None:
    if key in table:
        _bad(path, f"{what} {key} occurs twice")
    table[key] = value


def _cameras_bin(path: Path) -> dict[int, Camera]:
    reader = _Bytes(path)
    cameras: dict[int, Camera] = {}
    for _ in range(reader.count(_CAMERA.size + 3 * 8, "cameras")):
        camera_id, number, width, height = reader.unpack(_CAMERA, "a camera")
        if number not in MODELS:
            _bad(path, f"camera {camera_id} has unknown model number {number}")
        model, num_params = MODELS[number]
        params = reader.unpack(struct.Struct(f"<{num_params}d"), f"camera {camera_id}")
        _add(path, cameras, camera_id, _camera(path, model, width, height, params), "camera")
    reader.finish()
    return cameras


def _images_bin(path: Path) -> dict[int, Image]:
    reader = _Bytes(path)
    images: dict[int, Image] = {}
    for _ in range(reader.count(_IMAGE.size + 1 + 8, "images")):
        image_id, *pose, camera_id = reader.unpack(_IMAGE, "an image")
        name = reader.text(f"the name of image {image_id}")
        observations = reader.array(
            _OBSERVATION, reader.count(_OBSERVATION.itemsize, f"points of {name!r}"), name
        )
        image = Image(
            name=name,
            camera_id=camera_id,
            cam_from_world=_pose(path, name, np.array(pose[:4]), np.array(pose[4:])),
            observations=observations,
        )
        _add(path, images, image_id, image, "image")
    reader.finish()
    return images


def _points_bin(path: Path) -> tuple:
    reader = _Bytes(path)
    count = reader.count(_POINT.size, "points")
    ids, tracks = np.empty(count, np.int64), []
    points, colors, errors = np.empty((count, 3)), np.empty((count, 3), np.uint8), np.empty(count)
    for i in range(count):
        point_id, x, y, z, r, g, b, error, length = reader.unpack(_POINT, "a point")
        if point_id >= 2**63:
            _bad(path, f"point id {point_id} is out of range")
        ids[i], points[i], colors[i], errors[i] = point_id, (x, y, z), (r, g, b), error
        tracks.append(reader.array(_TRACK, length, f"the track of point {point_id}")["image_id"])
    reader.finish()
    return ids, points, colors, errors, np.concatenate(tracks) if tracks else np.empty(0, np.uint32)


def _lines(path: Path) -> list[str]:
    """Lines without comments; empty ones are kept: in images.txt they are an image without points."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        _bad(path, "is not UTF-8 text")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check the path and its permissions."
        ) from None
    return [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]


def _cameras_txt(path: Path) -> dict[int, Camera]:
    cameras: dict[int, Camera] = {}
    for line in filter(None, _lines(path)):
        try:
            number, model, width, height, *params = line.split()
            camera_id, size, values = int(number), (int(width), int(height)), tuple(map(float, params))
        except ValueError:
            _bad(path, f"this line is no camera: {line[:80]!r}")
        if len(values) != NUM_PARAMS.get(model):
            _bad(path, f"camera {camera_id}: model {model[:40]!r} with {len(values)} parameters")
        _add(path, cameras, camera_id, _camera(path, model, *size, values), "camera")
    return cameras


def _images_txt(path: Path) -> dict[int, Image]:
    lines = _lines(path)
    while lines and not lines[0]:
        lines.pop(0)
    images: dict[int, Image] = {}
    for i in range(0, len(lines), 2):
        if not lines[i]:
            if any(lines[i:]):
                _bad(path, f"an empty line where image number {i // 2 + 1} should be")
            break
        try:
            head = lines[i].split(maxsplit=9)
            image_id, camera_id, name = int(head[0]), int(head[8]), head[9]
            pose = np.array(head[1:8], np.float64)
            flat = np.array(lines[i + 1].split() if i + 1 < len(lines) else [], np.float64).reshape(-1, 3)
            observations = np.empty(len(flat), _OBSERVATION)
            observations["xy"] = flat[:, :2]
            with np.errstate(invalid="raise"):
                observations["point_id"] = flat[:, 2].astype(np.int64)
        except (ValueError, IndexError, FloatingPointError):
            _bad(
                path,
                f"image number {i // 2 + 1} is not two lines of an image and its points: {lines[i][:80]!r}",
            )
        image = Image(
            name=name,
            camera_id=camera_id,
            cam_from_world=_pose(path, name, pose[:4], pose[4:]),
            observations=observations,
        )
        _add(path, images, image_id, image, "image")
    return images


def _points_txt(path: Path) -> tuple:
    lines = list(filter(None, _lines(path)))
    ids, tracks = np.empty(len(lines), np.int64), []
    points, colors, errors = (
        np.empty((len(lines), 3)),
        np.empty((len(lines), 3), np.uint8),
        np.empty(len(lines)),
    )
    for i, line in enumerate(lines):
        try:
            fields = line.split()
            rgb = [int(c) for c in fields[4:7]]
            if len(fields) < 8 or len(fields) % 2 or not all(0 <= c < 256 for c in rgb):
                raise ValueError
            ids[i], points[i], colors[i], errors[i] = int(fields[0]), fields[1:4], rgb, float(fields[7])
            tracks += [int(x) for x in fields[8::2]]
        except (ValueError, OverflowError):
            _bad(path, f"this line is no point: {line[:80]!r}")
    return ids, points, colors, errors, np.array(tracks, np.int64)


def _check(model: Model, track_images: NDArray, folder: Path, suffix: str) -> None:
    """Whatever the three files say about each other must hold."""
    images_file, points_file = folder / f"images{suffix}", folder / f"points3D{suffix}"
    if not model.images:
        _bad(images_file, "holds no image")
    if not _sane(model.points):
        wrong = ~(np.abs(model.points) < MAX_COORDINATE).all(1)
        _bad(points_file, f"point {model.point_ids[wrong][0]} is not finite, or absurdly far away")
    if (np.diff(model.point_ids) == 0).any():
        _bad(points_file, "a point id occurs twice")
    missing = np.setdiff1d(track_images, list(model.images))
    if len(missing):
        _bad(points_file, f"a track names image {missing[0]}, which {images_file.name} does not have")
    names: set[str] = set()
    for image in model.images.values():
        check_image_name(image.name, images_file)
        if image.name in names:
            _bad(images_file, f"image name {image.name!r} occurs twice")
        names.add(image.name)
        if image.camera_id not in model.cameras:
            _bad(
                images_file,
                f"image {image.name!r} has camera {image.camera_id}, which cameras{suffix} does not have",
            )
        seen = image.observations["point_id"]
        seen = seen[seen != NO_POINT]
        place = np.searchsorted(model.point_ids, seen)
        found = place < len(model.point_ids)
        found[found] = model.point_ids[place[found]] == seen[found]
        if not found.all():
            _bad(
                images_file,
                f"image {image.name!r} sees point {seen[~found][0]}, which {points_file.name} does not have",
            )
        if not _sane(image.observations["xy"]):
            _bad(images_file, f"image {image.name!r} has a keypoint that is not finite")


def check_image_name(name: str, path: Path) -> None:
    """An image name is joined to the images folder: it must stay inside."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or not name.isprintable():
        _bad(path, f"image name {name[:80]!r} is not a plain path inside the images folder")


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
