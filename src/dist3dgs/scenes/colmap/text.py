"""COLMAP's text files."""

import re
from pathlib import Path

import numpy as np

from ...errors import UserError
from .cameras import ColmapCamera
from .model import NO_POINT, OBSERVATION, Image, add, bad, camera_of, check_num_params, pose_of

_FIRST_FIELDS = re.compile(r"[ \t]+")
#: The id of no point: -1, or as an unsigned number.
_NO_POINT_TEXTS = ("-1", str(2**64 - 1))


def _lines(path: Path) -> list[str]:
    """Return lines without comments; empty ones are kept: in images.txt they are an image without points."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        bad(path, "is not UTF-8 text")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check the path and its permissions."
        ) from None
    # Only what COLMAP takes for the end of a line or of a field: names may have other kinds of space in them.
    lines = (line.strip(" \t\r") for line in text.split("\n"))
    return [line for line in lines if not line.startswith("#")]


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    cameras: dict[int, ColmapCamera] = {}
    for line in filter(None, _lines(path)):
        try:
            number, model, width, height, *params = line.split()
            camera_id, size, values = int(number), (int(width), int(height)), tuple(map(float, params))
        except ValueError:
            bad(path, f"this line is no camera: {line[:80]!r}")
        check_num_params(path, camera_id, model, len(values))
        add(path, cameras, camera_id, camera_of(path, model, *size, values), "camera")
    return cameras


def read_images(path: Path) -> dict[int, Image]:
    lines = _lines(path)
    while lines and not lines[0]:
        lines.pop(0)
    images: dict[int, Image] = {}
    for i in range(0, len(lines), 2):
        if not lines[i]:
            if any(lines[i:]):
                bad(path, f"an empty line where image number {i // 2 + 1} should be")
            break
        try:
            head = _FIRST_FIELDS.split(lines[i], maxsplit=9)
            image_id, camera_id, name = int(head[0]), int(head[8]), head[9]
            pose = np.array(head[1:8], np.float64)
            fields = lines[i + 1].split() if i + 1 < len(lines) else []
            if len(fields) % 3:
                raise ValueError
            observations = np.empty(len(fields) // 3, OBSERVATION)
            observations["xy"] = np.array([fields[0::3], fields[1::3]], np.float64).T
            observations["point_id"] = [NO_POINT if p in _NO_POINT_TEXTS else int(p) for p in fields[2::3]]
        except (ValueError, IndexError, OverflowError):
            bad(
                path,
                f"image number {i // 2 + 1} is not two lines of an image and its points: {lines[i][:80]!r}",
            )
        image = Image(
            name=name,
            camera_id=camera_id,
            cam_from_world=pose_of(path, name, pose[:4], pose[4:]),
            observations=observations,
        )
        add(path, images, image_id, image, "image")
    return images


def read_points(path: Path) -> tuple:
    lines = list(filter(None, _lines(path)))
    ids = np.empty(len(lines), np.int64)
    track_images: set[int] = set()
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
            track_images.update(map(int, fields[8::2]))
        except (ValueError, OverflowError):
            bad(path, f"this line is no point: {line[:80]!r}")
    return ids, points, colors, errors, track_images
