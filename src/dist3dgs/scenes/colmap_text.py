"""COLMAP's text files."""

from pathlib import Path

import numpy as np

from ..errors import UserError
from .cameras import NUM_PARAMS, Camera
from .colmap_model import OBSERVATION, Image, add, bad, camera_of, pose_of


def _lines(path: Path) -> list[str]:
    """Lines without comments; empty ones are kept: in images.txt they are an image without points."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        bad(path, "is not UTF-8 text")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check the path and its permissions."
        ) from None
    return [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]


def read_cameras(path: Path) -> dict[int, Camera]:
    cameras: dict[int, Camera] = {}
    for line in filter(None, _lines(path)):
        try:
            number, model, width, height, *params = line.split()
            camera_id, size, values = int(number), (int(width), int(height)), tuple(map(float, params))
        except ValueError:
            bad(path, f"this line is no camera: {line[:80]!r}")
        if len(values) != NUM_PARAMS.get(model):
            bad(path, f"camera {camera_id}: model {model[:40]!r} with {len(values)} parameters")
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
            head = lines[i].split(maxsplit=9)
            image_id, camera_id, name = int(head[0]), int(head[8]), head[9]
            pose = np.array(head[1:8], np.float64)
            flat = np.array(lines[i + 1].split() if i + 1 < len(lines) else [], np.float64).reshape(-1, 3)
            observations = np.empty(len(flat), OBSERVATION)
            observations["xy"] = flat[:, :2]
            with np.errstate(invalid="raise"):
                observations["point_id"] = flat[:, 2].astype(np.int64)
        except (ValueError, IndexError, FloatingPointError):
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
            bad(path, f"this line is no point: {line[:80]!r}")
    return ids, points, colors, errors, np.array(tracks, np.int64)
