"""Where a scene's photographs and poses come from: settings, structure from motion, or an existing COLMAP model."""

import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..spec import SfmSettings
from .colmap_io import model_format, read_model
from .colmap_model import Model
from .listing import Listing, list_files, smaller_copies
from .photos import prepare_photos
from .sfm import run_sfm

SFM_LOG = "sfm.log"
#: images_N folders are rounded in their own way: half a percent less than wanted is large enough.
ROUNDING = 0.995


@dataclass(frozen=True, kw_only=True)
class IngestSource:
    """Where a scene comes from.

    name: the scene's name.
    kind: "images" (a folder of photographs), "colmap" (an existing model) or "builtin" (the procedural scene).
    path: the folder of photographs; the model's folder, or one whose sparse/0 it is in; or for "builtin" the folder
        that the photographs are made in if they are not there yet.
    images: for "colmap", the folder of photographs (default: images/ beside the model).
    truth: known poses (transforms.json layout), only to state the pose error; never used for anything else.
    """

    name: str
    kind: Literal["images", "colmap", "builtin"]
    path: Path
    images: Path | None = None
    truth: Path | None = None


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """max_width_px: shrink photographs to this width at most (None: as they are).
    downscale: or divide their size by this whole number.
        Where a COLMAP scene has images_2, images_4, ... beside images, the smallest that is large enough is used,
        photograph by photograph.
    test_every: every n-th photograph by name, from the first, is held out; 0 holds out none.
    sfm: structure from motion, for photographs without a model.
    """

    max_width_px: int | None = None
    downscale: int = 1
    test_every: int = 8
    sfm: SfmSettings = field(default_factory=SfmSettings)

    def __post_init__(self) -> None:
        if self.max_width_px is not None and self.max_width_px < 16:
            raise UserError(
                f"max_width_px {self.max_width_px}: at least 16 is needed. Correct the scene's settings."
            )
        if not 1 <= self.downscale <= 64:
            raise UserError(
                f"downscale {self.downscale}: a whole number from 1 to 64. Correct the scene's settings."
            )
        if self.test_every < 0 or self.test_every == 1:
            raise UserError(
                f"test_every {self.test_every}: 0 (hold out nothing) or at least 2. Correct the scene's settings."
            )


@dataclass(kw_only=True)
class PosedPhotos:
    """A model with its photographs.

    files: image id -> (name as given, paths to try: the photograph and its smaller copies, the best first).
    """

    model: Model
    files: dict[int, tuple[str, list[Path]]]
    left_out: dict[str, str]
    notes: dict[str, str]
    report: dict[str, Any]
    timings_s: dict[str, float]


def from_photos(
    folder: Path, work: Path, out_folder: Path, settings: IngestSettings, say: Callable[[str], None]
) -> PosedPhotos:
    start = time.monotonic()
    copies, sfm_work = work / "images", work / "sfm"
    sfm_work.mkdir()
    photos = prepare_photos(folder, copies)
    say_each(say, "ingest: WARNING left out", photos.left_out)
    say_each(say, "ingest: note", photos.notes)
    for hint in photos.hints:
        say(f"ingest: {hint}")
    timings_s = {"check": time.monotonic() - start}
    say(f"ingest: structure from motion of {len(photos.photos)} photographs")
    try:
        result = run_sfm(copies, photos.photos, sfm_work, settings.sfm, say)
    finally:
        if (sfm_work / SFM_LOG).exists():
            shutil.copy(sfm_work / SFM_LOG, out_folder / SFM_LOG)
    files = {i: (photos.originals[x.name], [copies / x.name]) for i, x in result.model.images.items()}
    registered = {image.name for image in result.model.images.values()}
    unregistered = {
        photos.originals[photo.name]: (
            f"not registered by structure from motion: {result.num_features[photo.name]} features, "
            f"{result.num_matches[photo.name]} verified matches with other photographs"
        )
        for photo in photos.photos
        if photo.name not in registered
    }
    say_each(say, "ingest: WARNING left out", unregistered)
    return PosedPhotos(
        model=result.model,
        files=files,
        left_out=photos.left_out | unregistered,
        notes=photos.notes,
        report={
            "sfm": {
                "num_models": result.num_models,
                "num_threads": settings.sfm.num_threads,
                "reproducible": settings.sfm.reproducible,
                "matcher": settings.sfm.matcher,
                "num_features": settings.sfm.num_features,
            },
            "versions": result.versions,
        },
        timings_s=timings_s | result.timings_s,
    )


def say_each(say: Callable[[str], None], what: str, items: dict[str, str], most: int = 10) -> None:
    for name, text in list(items.items())[:most]:
        say(f"{what}: {name}: {text}")
    if len(items) > most:
        say(f"{what}: {len(items) - most} more, all of them in ingest.json")


def find_models(path: Path) -> list[Path]:
    """Folders with a COLMAP model at `path`, path/sparse, path/sparse/N or path/colmap/sparse/N."""
    candidates = [path]
    for base in (path, path / "sparse", path / "colmap" / "sparse"):
        candidates += [base, *sorted(p for p in base.glob("*") if p.name.isdigit() and p.is_dir())]
    return [p for p in dict.fromkeys(candidates) if model_format(p)]


def from_colmap(source: IngestSource, settings: IngestSettings, say: Callable[[str], None]) -> PosedPhotos:
    start = time.monotonic()
    if not source.path.is_dir():
        raise UserError(f"{source.path}: no such folder. Check `colmap:` of the scene.")
    folders = find_models(source.path)
    if not folders:
        raise UserError(
            f"{source.path}: no COLMAP model in it, its sparse/ or sparse/0/ (cameras, images and points3D, "
            "all .bin or all .txt). Check `colmap:` of the scene."
        )
    models = [read_model(folder) for folder in folders]
    model, folder = max(
        zip(models, folders, strict=True), key=lambda found: (len(found[0].images), len(found[0].points))
    )
    images = _images_folder(source)
    originals, smaller = list_files(images), _large_enough(images, model, settings)
    files: dict[int, tuple[str, list[Path]]] = {}
    left_out: dict[str, str] = {}
    known: set[str] = set()
    notes = {str(folder / name): note for name, note in model.notes.items()}
    lacking: dict[str, list[str]] = {copies.folder.name: [] for copies in smaller}
    for image_id, image in sorted(model.images.items()):
        found = [copies.find(image.name) for copies in (*smaller, originals)]
        paths = [path for _, path in filter(None, found)]
        if not paths:
            left_out[image.name] = f"in the model, but not in {images.name}/"
            continue
        name = found[-1][0] if found[-1] else image.name
        if name in known:
            left_out[image.name] = f"the same file as {name}, which the model has under another name as well"
            continue
        known.add(name)
        files[image_id] = (name, paths)
        for copies, here in zip(smaller, found, strict=False):
            if here is None:
                lacking[copies.folder.name].append(name)
    if not files:
        raise UserError(_none_found(source, model, originals))
    for camera_id in sorted({model.images[i].camera_id for i in files}):
        if not model.cameras[camera_id].is_supported:
            raise UserError(
                f"{folder}: camera {camera_id}: {_cannot_undistort(model.cameras[camera_id].model, folder, images)}"
            )
    for folder_name, names in lacking.items():
        if names:
            notes[f"{folder_name}/"] = (
                f"{len(names)} of {len(files)} photographs are not in it by their names (first: {names[0]}): "
                f"reduced from {images.name}/"
            )
    left_out |= {name: "not in the COLMAP model" for name in originals.files if name not in known}
    left_out |= originals.skipped
    say_each(say, "ingest: WARNING left out", left_out)
    say_each(say, "ingest: note", notes)
    return PosedPhotos(
        model=model,
        files=files,
        left_out=left_out,
        notes=notes,
        report={"sfm": {"num_models": len(models)}},
        timings_s={"read_model": time.monotonic() - start},
    )


def _images_folder(source: IngestSource) -> Path:
    """The photographs of an existing model, in full size."""
    candidates = (
        [source.images] if source.images else [p / "images" for p in (source.path, *source.path.parents[:2])]
    )
    folder = next((p for p in candidates if p.is_dir()), None)
    if folder is None:
        raise UserError(
            f"{candidates[0]}: no such folder of photographs for the COLMAP model {source.path}. "
            "Put them there, or name their folder as `images:`."
        )
    return folder


def _large_enough(images: Path, model: Model, settings: IngestSettings) -> list[Listing]:
    """The smaller copies of the photographs that are as large as wanted, the smallest first."""
    first = min(model.images.values(), key=lambda image: image.name)
    full = model.cameras[first.camera_id].width_px
    wanted = wanted_width(full, settings) * ROUNDING
    return [
        list_files(folder) for divisor, folder in smaller_copies(images).items() if full / divisor >= wanted
    ]


def _cannot_undistort(model: str, folder: Path, images: Path) -> str:
    if model == "EQUIRECTANGULAR":
        return (
            "model EQUIRECTANGULAR: whole panoramas (360°) have no pinhole view. Cut them into perspective views, as "
            "COLMAP's python/examples/panorama_sfm.py does, and give its output as `colmap:` and `images:`."
        )
    folders = ", ".join(json.dumps(str(path), ensure_ascii=False) for path in ("OUT", folder, images))
    code = f"import pycolmap; pycolmap.undistort_images({folders})"
    return (
        f"model {model} cannot be undistorted here, but by COLMAP: python -c {shlex.quote(code)}, then `colmap: OUT` "
        "and `images: OUT/images`."
    )


def _none_found(source: IngestSource, model: Model, originals: Listing) -> str:
    """No photograph of the model is in the folder: say what each has, and the folder that would do."""
    first = min(image.name for image in model.images.values())
    here = next(iter(originals.files), "nothing")
    hint = "Check `images:` of the scene."
    for name in originals.files:
        if name.endswith(f"/{first}"):
            hint = f"Give `images: {originals.folder / name.removesuffix(f'/{first}')}`."
            break
        if first.endswith(f"/{name}") and originals.folder.as_posix().endswith(
            tail := first.removesuffix(f"/{name}")
        ):
            hint = f"Give `images: {originals.folder.as_posix().removesuffix(tail) or '.'}`."
            break
    return (
        f"{originals.folder}: none of the {len(model.images)} photographs of the COLMAP model {source.path} is in it. "
        f"The model has {first!r}, the folder has {here!r}. {hint}"
    )


def wanted_width(full_px: int, settings: IngestSettings) -> float:
    """Width of the packed views for photographs whose full width is `full_px`."""
    return min(full_px / settings.downscale, settings.max_width_px or full_px)
