"""The packed scene: everything that training reads, in one safetensors file that ranks map and share.

Photographs lie there as raw pixels, undistorted and resized, so opening costs no decoding and all ranks of a node
share one copy in the page cache. The file has a digest of its content; the same content gives the same bytes (the
safetensors library orders its header at random, so the header is written here).
Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import replacing
from .normalize import camera_centres

FORMAT = "dist3dgs-packed-scene-1"
MAX_HEADER_BYTES = 64 * 2**20
_DTYPES = {"F64": np.float64, "F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
_CODES = {np.dtype(v): k for k, v in _DTYPES.items()}
#: Largest items first: with the header padded to 8 bytes, every array is aligned.
_TENSORS = ("viewmats", "Ks", "normalisation", "offsets", "points", "sizes", "colors", "is_test", "pixels")


@dataclass(frozen=True, kw_only=True)
class PackedScene:
    """A scene as training sees it. Arrays are read-only views of the mapped file.

    name: the scene's name.
    digest: SHA-256 of the content, hex.
    view_names: [V] file names of the photographs, ascending.
    is_test: bool [V], held out from training.
    sizes: int32 [V, 2], width and height of each view, px.
    viewmats: float64 [V, 4, 4], world to camera, OpenCV axes, in the normalised world.
    Ks: float64 [V, 3, 3], pinhole intrinsics of the packed pixels, px; pixel centres are at +0.5.
    points, colors: float32 [P, 3] in the normalised world, uint8 [P, 3].
    extent: radius of the training cameras, see `scene_extent`.
    normalisation: float64 [4, 4], normalised world from the world of structure from motion (a similarity).
    """

    name: str
    digest: str
    view_names: list[str]
    is_test: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    viewmats: NDArray[np.float64]
    Ks: NDArray[np.float64]
    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    extent: float
    normalisation: NDArray[np.float64]
    _pixels: NDArray[np.uint8]
    _offsets: NDArray[np.int64]

    @classmethod
    def open(cls, path: Path) -> "PackedScene":
        """Map the file, reading only its header and small tables. Raises `UserError` if it is not a complete packed
        scene.
        """
        metadata, tensors = _map(Path(path))
        view_names, sizes, offsets = metadata["view_names"], tensors["sizes"], tensors["offsets"]
        num_views = len(view_names)
        areas = 3 * sizes.astype(np.int64).prod(1)
        shapes = {
            "viewmats": (num_views, 4, 4),
            "Ks": (num_views, 3, 3),
            "sizes": (num_views, 2),
            "is_test": (num_views,),
        }
        if (
            any(tensors[k].shape != v for k, v in shapes.items())
            or tensors["colors"].shape != tensors["points"].shape
            or not np.array_equal(offsets, np.concatenate([[0], np.cumsum(areas)]))
            or offsets[-1] != tensors["pixels"].size
        ):
            _bad(path, "its tables do not fit together")
        return cls(
            name=metadata["name"],
            digest=metadata["digest"],
            view_names=view_names,
            is_test=tensors["is_test"].astype(bool),
            sizes=sizes,
            viewmats=tensors["viewmats"],
            Ks=tensors["Ks"],
            points=tensors["points"],
            colors=tensors["colors"],
            extent=metadata["extent"],
            normalisation=tensors["normalisation"],
            _pixels=tensors["pixels"],
            _offsets=offsets,
        )

    @property
    def num_views(self) -> int:
        return len(self.view_names)

    @property
    def train_ids(self) -> NDArray[np.int64]:
        """Indices of the training views, int64 [T]."""
        return np.flatnonzero(~self.is_test)

    @property
    def test_ids(self) -> NDArray[np.int64]:
        """Indices of the held-out views, int64 [T]."""
        return np.flatnonzero(self.is_test)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return the pixels of view `i`, uint8 [H, W, 3] sRGB, a view of the mapped file."""
        width, height = self.sizes[i]
        return self._pixels[self._offsets[i] : self._offsets[i + 1]].reshape(height, width, 3)


def write_packed(
    path: Path,
    *,
    name: str,
    view_names: list[str],
    is_test: NDArray[np.bool_],
    sizes: NDArray[np.int32],
    images: Iterable[NDArray[np.uint8]],
    viewmats: NDArray[np.float64],
    Ks: NDArray[np.float64],
    points: NDArray[np.float32],
    colors: NDArray[np.uint8],
    extent: float,
    normalisation: NDArray[np.float64],
) -> str:
    """Write a packed scene atomically and return its digest. Shapes and dtypes as in `PackedScene`: viewmats [C, 4,
    4], ...

    images: uint8 [H, W, 3] each; consumed one by one, so that a scene larger than memory can be packed.
    """
    offsets = np.concatenate([[0], np.cumsum(3 * np.asarray(sizes, np.int64).prod(1))])
    tables: dict[str, NDArray] = {
        "viewmats": np.asarray(viewmats, np.float64),
        "Ks": np.asarray(Ks, np.float64),
        "normalisation": np.asarray(normalisation, np.float64),
        "offsets": offsets,
        "points": np.asarray(points, np.float32),
        "sizes": np.asarray(sizes, np.int32),
        "colors": np.asarray(colors, np.uint8),
        "is_test": np.asarray(is_test, np.uint8),
    }
    metadata = {
        "format": FORMAT,
        "name": name,
        "extent": repr(float(extent)),
        "view_names": json.dumps(view_names),
    }
    header = _header(tables, int(offsets[-1]), metadata, digest="0" * 64)
    content = hashlib.sha256(header)
    with replacing(path) as temporary, temporary.open("wb") as f:
        f.write(header)
        for table in tables.values():
            data = np.ascontiguousarray(table).tobytes()
            content.update(data)
            f.write(data)
        for size, image in zip(tables["sizes"], images, strict=True):
            if image.dtype != np.uint8 or image.shape != (size[1], size[0], 3):
                raise ValueError(f"view of {image.shape} {image.dtype}, expected {size[::-1]} x 3 uint8")
            data = np.ascontiguousarray(image).tobytes()
            content.update(data)
            f.write(data)
        f.seek(0)
        f.write(_header(tables, int(offsets[-1]), metadata, digest=content.hexdigest()))
    return content.hexdigest()


def content_digest(path: Path) -> str:
    """Compute the digest of a packed scene's bytes, whatever its header says. Reads the whole file.

    Raises `UserError` if it is no packed scene.
    """
    stated = PackedScene.open(path).digest.encode()
    with Path(path).open("rb") as f:
        length = f.read(8)
        header = f.read(int.from_bytes(length, "little"))
        content = hashlib.sha256(length + header.replace(stated, b"0" * 64, 1))
        while block := f.read(1 << 24):
            content.update(block)
    return content.hexdigest()


def scene_extent(viewmats: NDArray[np.float64]) -> float:
    """Return 1.1 x the largest distance of a camera from their mean, as 3DGS's `getNerfppNorm`.

    viewmats: float64 [C, 4, 4], world to camera.
    """
    centres = camera_centres(viewmats)
    return float(1.1 * np.linalg.norm(centres - centres.mean(0), axis=1).max())


def _header(tables: dict[str, NDArray], num_pixel_bytes: int, metadata: dict[str, str], digest: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"digest": digest, **metadata}}
    at = 0
    for key, table in tables.items():
        entries[key] = {
            "dtype": _CODES[table.dtype],
            "shape": list(table.shape),
            "data_offsets": [at, at + table.nbytes],
        }
        at += table.nbytes
    entries["pixels"] = {
        "dtype": "U8",
        "shape": [num_pixel_bytes],
        "data_offsets": [at, at + num_pixel_bytes],
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bad(path: Path, what: str) -> NoReturn:
    raise UserError(
        f"{path}: not a whole packed scene: {what}. Delete it and run `dist3dgs ingest` (or snakemake) again."
    )


def _map(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Metadata and arrays of a safetensors file, every offset held against the file's size."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)
            if size < 8:
                _bad(path, f"{size} bytes")
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened ({error.strerror}). Make it with `dist3dgs ingest`."
        ) from None
    length = int.from_bytes(data[:8], "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        _bad(path, "its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
        if metadata["format"] != FORMAT:
            _bad(path, f"format {metadata['format']!r}, expected {FORMAT!r}")
        end = 8 + length
        tensors = {}
        for key in _TENSORS:
            dtype, shape, (start, stop) = (
                np.dtype(_DTYPES[header[key]["dtype"]]),
                header[key]["shape"],
                header[key]["data_offsets"],
            )
            if not 0 <= start <= stop <= size - end or stop - start != dtype.itemsize * int(
                np.prod(shape, dtype=object)
            ):
                _bad(path, f"{key} does not lie inside the file")
            tensors[key] = np.frombuffer(data, dtype, (stop - start) // dtype.itemsize, end + start).reshape(
                shape
            )
        metadata |= {"extent": float(metadata["extent"]), "view_names": json.loads(metadata["view_names"])}
        if not all(
            isinstance(x, str) for x in (metadata["name"], metadata["digest"], *metadata["view_names"])
        ):
            _bad(path, "a name in it is not text")
    except (KeyError, TypeError, ValueError):
        _bad(path, "its header is damaged")
    return metadata, tensors
