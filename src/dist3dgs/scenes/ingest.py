"""Ingest, once per scene: photographs or a COLMAP model in, scene.safetensors and ingest.json out."""

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import psutil
from numpy.typing import NDArray

from .. import __version__
from ..config.naming import check_name
from ..errors import UserError
from ..files import replacing, write_json
from .builtin.scene import make_scene
from .colmap.cameras import ColmapCamera
from .colmap.model import Model, reprojection_errors
from .gather import (
    ROUNDING,
    IngestSettings,
    IngestSource,
    PosedPhotos,
    from_colmap,
    from_photos,
    say_each,
    wanted_width,
)
from .normalize import apply_to_points, apply_to_viewmats, normalisation_of
from .pack import scene_extent, write_packed
from .photos import MIN_PHOTOS, UnusablePhoto, load_pixels
from .pose_error import pose_error, read_truth
from .undistort import Undistorter

SCENE_FILE, REPORT_FILE, POINTS_FILE = "scene.safetensors", "ingest.json", "points.ply"

__all__ = ["IngestSettings", "IngestSource", "ingest", "remove_abandoned_work"]


def remove_abandoned_work() -> None:
    """Remove temporary folders of ingests that were killed on this machine before they could."""
    prefix = _work_prefix("")
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}[0-9]*"):
        process = folder.name.removeprefix(prefix).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)  # another user's stays


def _work_prefix(process: int | str) -> str:
    """Return the prefix of temporary folders: machine and process, since machines may share a folder."""
    return f"dist3dgs-ingest-{socket.gethostname()}-{process}{'-' if process else ''}"


def ingest(
    source: IngestSource, out_folder: Path, settings: IngestSettings, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write `out_folder`/scene.safetensors, points.ply and, last, ingest.json; returns what ingest.json says.

    Each file appears whole or not at all. Raises `UserError` for anything wrong with the source. Temporary files
    (working copies, SfM database) go to the system's temporary folder, set by TMPDIR.
    """
    check_name(source.name, "scene")
    out_folder = Path(out_folder)
    out_folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    remove_abandoned_work()
    with tempfile.TemporaryDirectory(prefix=_work_prefix(os.getpid())) as work:
        truth = source.truth
        if source.kind == "builtin":
            truth = truth or source.path / "truth.json"
            if not truth.is_file():
                say("ingest: rendering the photographs of the built-in scene")
                make_scene(source.path)
        if source.kind == "colmap":
            posed = from_colmap(source, settings, say)
        else:
            images = source.path / "images" if source.kind == "builtin" else source.path
            posed = from_photos(images, Path(work), out_folder, settings, say)
        said = posed.left_out.keys() | posed.notes.keys()
        views = _Views.plan(posed, settings)
        for what, items in (("WARNING left out", posed.left_out), ("note", posed.notes)):
            say_each(say, f"ingest: {what}", {name: text for name, text in items.items() if name not in said})
        digest, details = _pack(source.name, posed, views, out_folder, settings, say)
    report = {
        "scene": source.name,
        "source": {"kind": source.kind},
        "num_images": {"registered": len(views.ids), "total": len(views.ids) + len(posed.left_out)},
        "num_points": len(posed.model.points),
        "reprojection_error_px": _mean_or_none(reprojection_errors(posed.model)),
        "left_out": [{"image": k, "reason": v} for k, v in sorted(posed.left_out.items())],
        "notes": [{"image": k, "note": v} for k, v in sorted(posed.notes.items())],
        "camera_models": _camera_models(posed.model),
        **details,
        **posed.report,
        "pose_error": _pose_error(posed, views, truth),
        "timings_s": {
            k: round(v, 3) for k, v in (posed.timings_s | {"total": time.monotonic() - start}).items()
        },
        "versions": _versions() | posed.report.get("versions", {}),
        "digest": digest,
    }
    write_json(out_folder / REPORT_FILE, report)
    say(
        f"ingest: {len(views.ids)} of {report['num_images']['total']} photographs, {len(posed.model.points)} points, "
        f"digest {digest[:12]}"
    )
    return report


@dataclass(frozen=True, kw_only=True)
class _Views:
    """ids: image ids in the order of the photographs' names. paths, undistorters: by image id; photographs of one
    camera and size share an undistorter."""

    ids: list[int]
    names: list[str]
    paths: dict[int, Path]
    undistorters: dict[int, Undistorter]

    @classmethod
    def plan(cls, posed: PosedPhotos, settings: IngestSettings) -> "_Views":
        """Look at every photograph's size, leave out those that cannot be used, and prepare one remap per camera."""
        cache: dict[tuple[int, int, int], Undistorter] = {}
        chosen: dict[int, Undistorter] = {}
        used: dict[int, Path] = {}
        full_width = {i: c.width_px for i, c in posed.model.cameras.items()}
        for image_id, (name, paths) in posed.files.items():
            camera_id = posed.model.images[image_id].camera_id
            problems = []
            for path in paths:
                try:
                    height, width = load_pixels(path).shape[:2]
                    key = (camera_id, width, height)
                    if key not in cache:
                        camera = _rescaled(posed.model.cameras[camera_id], width, height)
                        cache[key] = Undistorter(
                            camera, *_target_size(full_width[camera_id], (width, height), settings)
                        )
                except UnusablePhoto as error:
                    problems.append(str(error))
                    continue
                chosen[image_id], used[image_id] = cache[key], path
                if problems:  # a smaller copy
                    posed.notes[name] = f"its copy in {paths[0].parent.name}/ is not used: {problems[0]}"
                break
            else:
                posed.left_out[name] = problems[-1]
        ids = sorted(chosen, key=lambda i: posed.files[i][0])
        if len(ids) < MIN_PHOTOS:
            reasons = "".join(f"\n  {k}: {v}" for k, v in list(sorted(posed.left_out.items()))[:20])
            raise UserError(
                f"{len(ids)} photographs with a pose are left, at least {MIN_PHOTOS} are needed. Left out:{reasons}"
            )
        return cls(ids=ids, names=[posed.files[i][0] for i in ids], paths=used, undistorters=chosen)


def _rescaled(camera: ColmapCamera, width: int, height: int) -> ColmapCamera:
    """Return the camera for photographs of another size, e.g. of a scene's images_4 folder."""
    sx, sy = width / camera.width_px, height / camera.height_px
    if abs(width - camera.width_px * sy) > 2 and abs(height - camera.height_px * sx) > 2:
        raise UnusablePhoto(
            f"{width} x {height} px does not have the shape of its camera, {camera.width_px} x {camera.height_px}"
        )
    return camera.resized(width, height)


def _target_size(full_px: int, true: tuple[int, int], settings: IngestSettings) -> tuple[int, int]:
    """Return the size of the packed view. `downscale` counts from the camera's size, so images_N are not shrunk
    twice.
    """
    width, height = true
    wanted = wanted_width(full_px, settings)
    if wanted >= width * ROUNDING:
        return width, height
    wanted_px = max(int(wanted), 1)
    return wanted_px, max(round(height * wanted_px / width), 1)


def _pack(
    name: str,
    posed: PosedPhotos,
    views: _Views,
    out_folder: Path,
    settings: IngestSettings,
    say: Callable[[str], None],
) -> tuple[str, dict[str, Any]]:
    """Write the packed scene and the points; returns its digest and what to report of it."""
    start = time.monotonic()
    model = posed.model
    if not len(model.points):
        raise UserError(
            "the COLMAP model has no 3D points, and training starts from them. Run structure from motion."
        )
    viewmats = _viewmats(model, views.ids)
    normalisation = normalisation_of(viewmats)
    viewmats = apply_to_viewmats(normalisation, viewmats)
    points = apply_to_points(normalisation, model.points).astype(np.float32)
    is_test = np.zeros(len(views.ids), bool)
    if settings.test_every:
        is_test[:: settings.test_every] = True
    undistorters = [views.undistorters[i] for i in views.ids]
    sizes = np.array([(u.width_px, u.height_px) for u in undistorters], np.int32)
    undistort_s = 0.0

    def images() -> Iterator[NDArray[np.uint8]]:
        nonlocal undistort_s
        for i, undistorter in zip(views.ids, undistorters, strict=True):
            begin = time.monotonic()
            pixels = undistorter(load_pixels(views.paths[i]))
            undistort_s += time.monotonic() - begin
            yield pixels

    say(f"ingest: packing {len(views.ids)} views of up to {sizes[:, 0].max()} x {sizes[:, 1].max()} px")
    digest = write_packed(
        out_folder / SCENE_FILE,
        name=name,
        view_names=views.names,
        is_test=is_test,
        sizes=sizes,
        images=images(),
        viewmats=viewmats,
        Ks=np.array([u.K for u in undistorters]),
        points=points,
        colors=model.colors,
        extent=scene_extent(viewmats[~is_test]),
        normalisation=normalisation,
    )
    _write_points(out_folder / POINTS_FILE, points, model.colors)
    posed.timings_s["undistort"] = undistort_s
    posed.timings_s["pack"] = time.monotonic() - start - undistort_s
    return digest, {
        "resolutions": _resolutions(sizes),
        "num_test": int(is_test.sum()),
        "test_every": settings.test_every,
    }


def _viewmats(model: Model, ids: list[int]) -> NDArray[np.float64]:
    """Return the world-to-camera matrices, float64 [C, 4, 4], of the images with these ids."""
    viewmats = np.tile(np.eye(4), (len(ids), 1, 1))
    viewmats[:, :3] = [model.images[i].cam_from_world for i in ids]
    return viewmats


def _resolutions(sizes: NDArray[np.int32]) -> list[dict[str, int]]:
    """Return the different sizes [C, 2] (width, height), each with the number of images that have it."""
    unique = np.unique(sizes, axis=0, return_counts=True)
    return [
        {"width_px": int(w), "height_px": int(h), "num_images": int(n)}
        for (w, h), n in zip(*unique, strict=True)
    ]


def _write_points(path: Path, points: NDArray[np.float32], colors: NDArray[np.uint8]) -> None:
    """Write the sparse points as a PLY."""
    rows = np.empty(len(points), [(k, "<f4") for k in "xyz"] + [(k, "u1") for k in ("red", "green", "blue")])
    for i, key in enumerate("xyz"):
        rows[key] = points[:, i]
    for i, key in enumerate(("red", "green", "blue")):
        rows[key] = colors[:, i]
    kinds = ["float"] * 3 + ["uchar"] * 3
    properties = "".join(
        f"property {kind} {key}\n" for kind, key in zip(kinds, rows.dtype.names or (), strict=True)
    )
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    with replacing(path) as temporary:
        temporary.write_bytes(header.encode() + rows.tobytes())


def _pose_error(posed: PosedPhotos, views: _Views, truth: Path | None) -> dict[str, float] | None:
    """Compute the error of the poses against known ones, None if none are known."""
    if truth is None:
        return None
    estimated: dict[str, Any] = {}
    for image_id, name in zip(views.ids, views.names, strict=True):
        world_to_camera = np.eye(4)
        world_to_camera[:3] = posed.model.images[image_id].cam_from_world
        estimated[name] = np.linalg.inv(world_to_camera)
    error = pose_error(estimated, read_truth(truth))
    return error.as_dict() if error else None


def _camera_models(model: Model) -> list[dict[str, Any]]:
    return [
        {"model": c.model, "width_px": c.width_px, "height_px": c.height_px, "params": list(c.params)}
        for _, c in sorted(model.cameras.items())
    ]


def _mean_or_none(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _versions() -> dict[str, str]:
    return {
        "dist3dgs": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
