"""COLMAP's binary files. Every count is held against the bytes that are there before anything is allocated."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .cameras import Camera
from .colmap_model import OBSERVATION, Image, add, bad, camera_of, model_numbered, pose_of

MAX_NAME_BYTES = 1024
_TRACK = np.dtype([("image_id", "<u4"), ("point2d", "<u4")])
_U64 = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")
_IMAGE = struct.Struct("<I7dI")
_POINT = struct.Struct("<Q3d3BdQ")


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
            bad(self.path, f"ends early: {what} needs {num_bytes} bytes at byte {self.at}, {left} are left")

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
            bad(self.path, f"{what} at byte {self.at} does not end within {MAX_NAME_BYTES} bytes")
        raw = self.data[self.at : end]
        self.at = end + 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            bad(self.path, f"{what} at byte {self.at} is not UTF-8")

    def finish(self) -> None:
        if self.at != len(self.data):
            bad(self.path, f"{len(self.data) - self.at} bytes too many after the last record")


def read_cameras(path: Path) -> dict[int, Camera]:
    reader = _Bytes(path)
    cameras: dict[int, Camera] = {}
    for _ in range(reader.count(_CAMERA.size, "cameras")):
        camera_id, number, width, height = reader.unpack(_CAMERA, "a camera")
        model, num_params = model_numbered(path, camera_id, number)
        params = reader.unpack(struct.Struct(f"<{num_params}d"), f"camera {camera_id}")
        add(path, cameras, camera_id, camera_of(path, model, width, height, params), "camera")
    reader.finish()
    return cameras


def read_images(path: Path) -> dict[int, Image]:
    reader = _Bytes(path)
    images: dict[int, Image] = {}
    for _ in range(reader.count(_IMAGE.size + 1 + 8, "images")):
        image_id, *pose, camera_id = reader.unpack(_IMAGE, "an image")
        name = reader.text(f"the name of image {image_id}")
        observations = reader.array(
            OBSERVATION, reader.count(OBSERVATION.itemsize, f"points of {name!r}"), name
        )
        image = Image(
            name=name,
            camera_id=camera_id,
            cam_from_world=pose_of(path, name, np.array(pose[:4]), np.array(pose[4:])),
            observations=observations,
        )
        add(path, images, image_id, image, "image")
    reader.finish()
    return images


def read_points(path: Path) -> tuple:
    reader = _Bytes(path)
    count = reader.count(_POINT.size, "points")
    ids, rows = np.empty(count, np.int64), np.empty((count, 4))
    colors = np.empty((count, 3), np.uint8)
    tracks = []
    # Millions of times: no more than this is done for each point.
    data, at, unpack, size = reader.data, reader.at, _POINT.unpack_from, _POINT.size
    for i in range(count):
        if len(data) - at < size:
            reader.at = at
            reader.need(size, "a point")
        point_id, x, y, z, r, g, b, error, length = unpack(data, at)
        at += size
        end = at + length * _TRACK.itemsize
        if end > len(data):
            reader.at = at
            reader.need(end - at, f"the track of point {point_id}")
        if point_id >= 2**63:
            bad(path, f"point id {point_id} is out of range")
        ids[i], rows[i], colors[i] = point_id, (x, y, z, error), (r, g, b)
        tracks.append(data[at:end])
        at = end
    reader.at = at
    reader.finish()
    track_images = set(np.unique(np.frombuffer(b"".join(tracks), _TRACK)["image_id"]).tolist())
    return ids, rows[:, :3], colors, rows[:, 3], track_images
