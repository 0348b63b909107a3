"""A folder of photographs: which can be used, which cannot and why, and working copies that pycolmap reads right.

pycolmap takes cut files without a word, skips webp, and works on raw pixels where EXIF says "turned". So every file
is decoded once here: good 8-bit RGB files are linked, everything else that is a picture becomes an upright RGB PNG.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import UserError
from .colmap_model import check_image_name
from .sfm import Photo

MIN_PHOTOS = 3
MIN_SIDE_PX = 32
PLAIN_FORMATS = ("JPEG", "PNG")
FILM_WIDTH_MM = 36.0  # of the 35 mm film that EXIF's equivalent focal length refers to


@dataclass(kw_only=True)
class PhotoFolder:
    """photos: usable ones by ascending name. left_out: file name -> reason. notes: file name -> what was converted.
    originals: name of the working copy -> name of the photograph as given."""

    photos: list[Photo] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    originals: dict[str, str] = field(default_factory=dict)


def prepare_photos(source: Path, copies: Path) -> PhotoFolder:
    """Check every file of `source` and put working copies (links where nothing is to change) into `copies`.

    Raises `UserError` for a missing folder, or one with fewer than 3 usable photographs, naming each file and reason.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder of photographs. Check `images:` of the scene.")
    files = sorted(
        (p for p in source.rglob("*") if p.is_file()), key=lambda p: p.relative_to(source).as_posix()
    )
    result = PhotoFolder()
    for path in files:
        name = path.relative_to(source).as_posix()
        check_image_name(name, source)
        try:
            _prepare(path, name, copies, result)
        except UnusablePhoto as error:
            result.left_out[name] = str(error)
    if len(result.photos) < MIN_PHOTOS:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(result.left_out.items())[:20])
        raise UserError(
            f"{source}: {len(result.photos)} usable photographs of {len(files)} files, at least {MIN_PHOTOS} are "
            f"needed. Put JPEG or PNG photographs of one scene into it.{reasons}"
        )
    _note_sizes(result)
    return result


class UnusablePhoto(Exception):
    """Why a file is left out."""


def _prepare(path: Path, name: str, copies: Path, result: PhotoFolder) -> None:
    if path.name.startswith("."):
        raise UnusablePhoto("hidden file, not a photograph")
    with _decoding(path) as image:
        exif = image.getexif()
        upright, changes = _upright_rgb(image)
        plain = image.format in PLAIN_FORMATS and not changes
        if not plain and not changes:
            changes = [f"{image.format} converted to PNG"]
    if min(upright.size) < MIN_SIDE_PX:
        raise UnusablePhoto(f"{upright.width} x {upright.height} px, smaller than {MIN_SIDE_PX} px")

    copy = name if plain else f"{name}.png"
    target = copies / copy
    target.parent.mkdir(parents=True, exist_ok=True)
    if plain:
        target.symlink_to(path.resolve())
    else:
        upright.save(target, "PNG", compress_level=1)
        result.notes[name] = "; ".join(changes)
    result.originals[copy] = name
    focal = _focal_px(exif, max(upright.size))
    camera = f"{upright.width}x{upright.height} f={focal or 0:.1f}"
    result.photos.append(
        Photo(name=copy, width_px=upright.width, height_px=upright.height, camera=camera, focal_px=focal)
    )


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[Image.Image]:
    """The fully decoded picture; whatever goes wrong becomes `UnusablePhoto`."""
    try:
        if path.stat().st_size == 0:
            raise UnusablePhoto("empty file (0 bytes)")
        with Image.open(path) as image:
            image.load()
            yield image
    except UnidentifiedImageError:
        raise UnusablePhoto("not a picture, or of an unknown type") from None
    except Image.DecompressionBombError:
        raise UnusablePhoto(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnusablePhoto(f"damaged or truncated ({error})") from None


def load_pixels(path: Path) -> np.ndarray:
    """Raw pixels [H, W, 3] uint8 RGB, never turned: poses of an existing model belong to the pixels as stored.

    Raises `UnusablePhoto` with the reason.
    """
    with _decoding(path) as image:
        return np.asarray(_rgb(image, []))


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The picture as 8-bit RGB the right way up, and what had to change for that."""
    changes = []
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1):
        changes.append("turned upright as its EXIF orientation says")
        image = ImageOps.exif_transpose(image)
    return _rgb(image, changes), changes


def _rgb(image: Image.Image, changes: list[str]) -> Image.Image:
    """The picture as 8-bit RGB; what had to change is appended to `changes`."""
    if image.mode == "RGB":
        return image
    changes.append(f"{image.mode} converted to 8-bit RGB")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("integer pixels beyond 16 bits")
        return Image.fromarray((deep / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range; save it as 8-bit")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        changes[-1] += ", transparency over white"
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _focal_px(exif: Image.Exif, long_edge_px: int) -> float | None:
    """Focal length from EXIF's 35 mm equivalent, if it is there and makes sense."""
    try:
        film_mm = float(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        return None
    return film_mm / FILM_WIDTH_MM * long_edge_px if 5 <= film_mm <= 1200 else None


def _note_sizes(result: PhotoFolder) -> None:
    """Photographs of another size than most get a camera of their own; say which they are."""
    sizes = [(photo.width_px, photo.height_px) for photo in result.photos]
    usual = max(sizes, key=sizes.count)
    for photo, size in zip(result.photos, sizes, strict=True):
        if size != usual:
            name = result.originals[photo.name]
            note = (
                f"{size[0]} x {size[1]} px where most are {usual[0]} x {usual[1]}: given a camera of its own"
            )
            result.notes[name] = "; ".join(filter(None, [result.notes.get(name), note]))
