"""A folder of photographs: usable files, the others with reasons, and working copies that pycolmap reads correctly.

pycolmap takes cut files without a word, skips webp, and works on raw pixels where EXIF says "turned". So every file
is decoded once here: good 8-bit RGB files are linked, everything else that is a picture becomes an upright RGB PNG.
"""

import contextlib
import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import UserError
from .listing import VIDEO_SUFFIXES, Listing, frames_command, list_files, not_a_folder
from .sfm import Photo

MIN_PHOTOS = 3
MIN_SIDE_PX = 32
PLAIN_FORMATS = ("JPEG", "PNG")
FILM_WIDTH_MM = 36.0  # of the 35 mm film that EXIF's equivalent focal length refers to

#: Files that cameras write and Pillow does not read (or, of RAW files, reads the thumbnail): what they are -> suffixes,
#: and the command that makes a JPEG `OUT` of `IN`.
CONVERTIBLE = {
    "HEIC/HEIF": ("heic heif hif", "heif-convert -q 95 IN OUT"),
    "JPEG XL": ("jxl", "djxl IN OUT"),
    "RAW": (
        "3fr arw cr2 cr3 crw dng erf gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f",
        "darktable-cli IN OUT",
    ),
}
_KINDS = {
    suffix: kind for kind, (suffixes, _) in CONVERTIBLE.items() for suffix in suffixes.split()
} | dict.fromkeys(VIDEO_SUFFIXES, "video")
#: Brands in the ISO base media header (ISO/IEC 14496-12), whatever the suffix says; Pillow reads "avif".
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC/HEIF"),
    **dict.fromkeys(
        (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"3gp4", b"3gp5"), "video"
    ),
    b"crx ": "RAW",
}
#: Beside a folder `images`, these say that its parent is a dataset's root and no folder of photographs.
_DATASET_PARTS = {
    *("mask", "masks", "depth", "depths", "normal", "normals", "semantics", "sparse", "colmap", "distorted"),
    *("database.db", "transforms.json", "poses_bounds.npy", "cameras.xml", "cameras.json"),
}
#: Two photographs of one name that differ by less, of 255, when reduced to `_THUMBNAIL_PX`, are one in two sizes.
#: Measured on real photographs: copies of half to an eighth of the size, as JPEG of quality 50, differ by 0.9 at most;
#: neighbours in a capture by 3.5 at least.
_SAME_PICTURE = 1.5
_THUMBNAIL_PX = 16
#: Share of black and white pixels from which a grey picture is taken for a mask.
_MASK_SHARE = 0.98


@dataclass(kw_only=True)
class PhotoFolder:
    """photos: usable ones by ascending name. left_out: file name -> reason. notes: file name -> what was converted.
    originals: name of the working copy -> name of the photograph as given. hints: commands that convert files left out.
    """

    photos: list[Photo] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    originals: dict[str, str] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Looks:
    """Signature of a photograph, to find copies: the file's digest, and a small grey picture [16, 16]."""

    digest: str
    thumbnail: NDArray[np.float32]


def prepare_photos(source: Path, copies: Path) -> PhotoFolder:
    """Check every file of `source` and put working copies (links where nothing is to change) into `copies`.

    Raises `UserError` for a missing folder, a dataset's root, or a folder with fewer than 3 usable photographs, naming
    each file and reason.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"`images:` of the scene: {not_a_folder(source)}.")
    listing = list_files(source)
    _refuse_dataset_root(listing)
    result = PhotoFolder(left_out=dict(listing.skipped))
    looks: dict[str, _Looks] = {}
    for name, path in listing.files.items():
        try:
            looks[name] = _prepare(path, name, copies, result)
        except UnusablePhoto as error:
            result.left_out[name] = str(error)
    _leave_out_copies(result, looks, copies)
    result.hints = _conversions(listing)
    if len(result.photos) < MIN_PHOTOS:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(result.left_out.items())[:20])
        hints = "".join(f"\n{hint}" for hint in result.hints)
        raise UserError(
            f"{source}: {len(result.photos)} usable photographs of {len(listing.files)} files, at least {MIN_PHOTOS} "
            f"are needed. Put JPEG or PNG photographs of one scene into it.{reasons}{hints}"
        )
    _note_sizes(result)
    return result


def _refuse_dataset_root(listing: Listing) -> None:
    tops = {PurePosixPath(name).parts[0] for name in listing.files}
    inside = {PurePosixPath(name).parts[0] for name in listing.files if "/" in name}
    others = sorted(t for t in tops if t.startswith("images_") or t.lower() in _DATASET_PARTS)
    if "images" in inside and others:
        model = f", with `colmap: {listing.folder}` to use its model" if tops & {"sparse", "colmap"} else ""
        raise UserError(
            f"{listing.folder}: the root of a dataset ({', '.join(['images', *others])}), not a folder of photographs: "
            f"copies and masks would be trained on. Give `images: {listing.folder / 'images'}`{model}."
        )


class UnusablePhoto(Exception):
    """Reason to leave a file out."""


def _prepare(path: Path, name: str, copies: Path, result: PhotoFolder) -> _Looks:
    with _decoding(path) as image:
        exif = image.getexif()
        upright, changes = _upright_rgb(image)
        plain = image.format in PLAIN_FORMATS and not changes
        if not plain and not changes:
            changes = [f"{image.format} converted to PNG"]
    if min(upright.size) < MIN_SIDE_PX:
        raise UnusablePhoto(f"{upright.width} x {upright.height} px, smaller than {MIN_SIDE_PX} px")
    if _is_mask(upright):
        raise UnusablePhoto("nothing but black and white: a mask, not a photograph")

    copy = name if plain else f"{name}.png"
    while copy in result.originals:  # a.tif was converted to a.tif.png, and there is an a.tif.png as well
        copy = str(PurePosixPath(copy).with_stem(f"{PurePosixPath(copy).stem}_"))
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
    small = upright.convert("L").resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BILINEAR)
    with path.open("rb") as f:
        return _Looks(hashlib.file_digest(f, "sha256").hexdigest(), np.asarray(small, np.float32))


def _is_mask(picture: Image.Image) -> bool:
    red, green, blue = (np.asarray(band) for band in picture.split())
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        return False
    return bool(((red <= 8) | (red >= 247)).mean() >= _MASK_SHARE)


def _leave_out_copies(result: PhotoFolder, looks: dict[str, _Looks], copies: Path) -> None:
    """Leave out duplicate photographs: a held-out view must not be trained on as its copy.

    Copies are files of equal bytes, and pictures of one name, in any folder, size or format, that look alike. The
    largest stays, of equal ones the first by name.
    """
    by_size = sorted(result.photos, key=lambda p: (-p.width_px * p.height_px, result.originals[p.name]))
    kept: dict[str, list[str]] = {}
    digests: dict[str, str] = {}
    for photo in by_size:
        name = result.originals[photo.name]
        here = looks[name]
        same_name = kept.setdefault(_stem(name), [])
        twin = digests.get(here.digest) or next(
            (o for o in same_name if np.abs(looks[o].thumbnail - here.thumbnail).mean() < _SAME_PICTURE), None
        )
        if twin is None:
            same_name.append(name)
            digests[here.digest] = name
            continue
        result.left_out[name] = f"a copy of {twin}"
        result.photos.remove(photo)
        del result.originals[photo.name]
        result.notes.pop(name, None)
        (copies / photo.name).unlink()


def _stem(name: str) -> str:
    """Return the name of a photograph without folder and suffixes: masks and conversions are called 0001.jpg.png."""
    path = PurePosixPath(name.lower())
    while path.suffix and path.suffix[1:].isalnum() and not path.suffix[1:].isdigit():
        path = path.with_suffix("")
    return path.name


def _conversions(listing: Listing) -> list[str]:
    """Return commands that make photographs of the files that have some inside, one per kind and suffix."""
    hints, seen = [], set()
    for path in listing.files.values():
        kind = _kind(path)
        if kind is None or (key := (kind, path.suffix.lower())) in seen:
            continue
        suffix = path.suffix
        seen.add(key)
        if kind == "video":
            hints.append(f"to use the frames of {path.name}: {frames_command(path, path.with_suffix(''))}")
            continue
        command = CONVERTIBLE[kind][1]
        if _KINDS.get(suffix[1:].lower()) == kind:
            command = command.replace("IN", "{}").replace("OUT", "{}.jpg")
            where = shlex.quote(str(listing.folder))
            command = f"find -L {where} -iname '*{suffix.lower()}' -exec {command} \\;"
        else:  # HEIC called .jpg
            command = command.replace("IN", shlex.quote(str(path)))
            command = command.replace("OUT", shlex.quote(f"{path}.converted.jpg"))
        hints.append(f"to use {kind} files like {path.name}: {command}")
    return hints


def _kind(path: Path) -> str | None:
    """Tell what has to be converted first (HEIC/HEIF, JPEG XL, RAW, video), by content, then by suffix."""
    try:
        with path.open("rb") as f:
            head = f.read(64)
    except OSError:
        return None
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS and b"avif" not in head:
        return _BRANDS[head[8:12]]
    if head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" or head[:2] == b"\xff\x0a":
        return "JPEG XL"
    if head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "video"
    kind = _KINDS.get(path.suffix[1:].lower())
    # Pictures in a format that Pillow reads, under a wrong suffix.
    return None if head[:3] == b"\xff\xd8\xff" or head[:4] == b"\x89PNG" else kind


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[Image.Image]:
    """Decode the whole picture; every error becomes `UnusablePhoto`."""
    try:
        if path.stat().st_size == 0:
            raise UnusablePhoto("empty file (0 bytes)")
        if kind := _kind(path):
            advice = "take frames of it" if kind == "video" else "convert it to JPEG"
            raise UnusablePhoto(f"{kind}: cannot be read here, {advice}")
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
    """Load raw pixels, uint8 [H, W, 3] RGB, never rotated: poses of an existing model belong to the pixels as stored.

    Raises `UnusablePhoto` with the reason.
    """
    with _decoding(path) as image:
        return np.asarray(_rgb(image, []))


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return the picture as 8-bit RGB the right way up, and the changes that took."""
    changes = []
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1):
        changes.append("turned upright as its EXIF orientation says")
        image = ImageOps.exif_transpose(image)
    return _rgb(image, changes), changes


def _rgb(image: Image.Image, changes: list[str]) -> Image.Image:
    """Return the picture as 8-bit RGB; append the changes to `changes`."""
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
    """Return the focal length from EXIF's 35 mm equivalent, if it is there and plausible."""
    try:
        film_mm = float(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        return None
    return film_mm / FILM_WIDTH_MM * long_edge_px if 5 <= film_mm <= 1200 else None


def _note_sizes(result: PhotoFolder) -> None:
    """Photographs of another size than most get a separate camera; name them."""
    sizes = [(photo.width_px, photo.height_px) for photo in result.photos]
    usual = max(sizes, key=sizes.count)
    for photo, size in zip(result.photos, sizes, strict=True):
        if size != usual:
            name = result.originals[photo.name]
            note = (
                f"{size[0]} x {size[1]} px where most are {usual[0]} x {usual[1]}: given a camera of its own"
            )
            result.notes[name] = "; ".join(filter(None, [result.notes.get(name), note]))
