"""COLMAP models, read without COLMAP: cameras, images and points3D, binary or text.

COLMAP's own reader trusts its files: a cut or hostile one makes it hang, eat memory or return garbage. Here every
count is held against the bytes that are there before anything is allocated; what would spoil the training becomes a
`UserError` that names the file, what training does not use is dropped with a note. The rigs and frames files that
COLMAP writes since 3.12 are not needed: images.bin still holds every image's own pose. Format: https://colmap.github.io/format.html
"""

from pathlib import Path

import numpy as np

from ..errors import UserError
from . import colmap_binary, colmap_text
from .colmap_model import Model, checked


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
    files = colmap_binary if suffix == ".bin" else colmap_text
    cameras = files.read_cameras(Path(folder, "cameras" + suffix))
    images = files.read_images(Path(folder, "images" + suffix))
    ids, points, colors, errors, track_images = files.read_points(Path(folder, "points3D" + suffix))
    order = np.argsort(ids, kind="stable")
    model = Model(
        cameras=cameras,
        images=images,
        point_ids=ids[order],
        points=points[order],
        colors=colors[order],
        errors=errors[order],
    )
    return checked(model, track_images, Path(folder), suffix)
