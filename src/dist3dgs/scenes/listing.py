"""List the files of a folder of photographs or of a COLMAP model: one lister for the workflow, ingest and COLMAP.

Links are followed, each folder once. Whatever cannot be used is skipped with a reason and never costs the rest.
"""

import functools
import os
import shlex
import stat
import unicodedata
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

#: Written by desktops and file servers; ignored, as hidden files and folders are.
_SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx", "@eadir", "lost+found"}
VIDEO_SUFFIXES = {
    *("360", "3gp", "avi", "flv", "insv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv"),
    *("ts", "webm", "wmv"),
}
_CONTROL = {"Cc", "Zl", "Zp"}
#: images_2, images_4, ... beside images: the same photographs, divided by the number.
_MAX_DIVISOR = 64


@dataclass(frozen=True)
class Listing:
    """files: name relative to `folder`, with slashes -> path, by ascending name. skipped: printable name -> reason."""

    folder: Path
    files: dict[str, Path]
    skipped: dict[str, str]

    def find(self, name: str) -> tuple[str, Path] | None:
        """Look up a photograph by the name that a COLMAP model has for it; its name here and its path.

        macOS decomposes accents (NFD) where other systems do not (NFC), and some exporters write backslashes.
        """
        for candidate in dict.fromkeys((name, name.replace("\\", "/"))):
            here = candidate if candidate in self.files else self._by_form.get(_form(candidate))
            if here is not None:
                return here, self.files[here]
            if (path := self.folder / candidate).is_file():  # the second name of a linked folder
                return candidate, path
        return None

    @functools.cached_property
    def _by_form(self) -> dict[str, str]:
        return {_form(name): name for name in reversed(self.files)}


def list_files(folder: Path) -> Listing:
    """List every usable file below `folder`. Raises `UserError` only if `folder` itself cannot be read."""
    folder = Path(folder)
    files: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    real = folder.resolve()
    seen = {_identity(path): "a folder above it" for path in real.parents}
    # Folders before links to folders: where one is reached both ways, its own name counts.
    folders, links = deque([("", folder)]), deque[tuple[str, Path]]()
    while folders or links:
        prefix, path = folders.popleft() if folders else links.popleft()
        try:
            key = _identity(path)
            if key in seen:
                skipped[prefix.rstrip("/")] = f"a link to {seen[key]}: listed once, loops are not followed"
                continue
            seen[key] = prefix.rstrip("/") or "the folder itself"
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise UserError(
                    f"{folder}: cannot be read ({error.strerror}). Check the path and its permissions."
                ) from None
            skipped[prefix.rstrip("/")] = f"cannot be read ({error.strerror})"
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
                continue
            name = prefix + entry.name
            if problem := name_problem(entry.name):
                skipped[printable(name)] = problem
                continue
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                skipped[name] = (
                    "a broken link" if entry.is_symlink() else f"cannot be read ({error.strerror})"
                )
                continue
            if stat.S_ISDIR(mode):
                (links if entry.is_symlink() else folders).append((f"{name}/", Path(entry.path)))
            elif stat.S_ISREG(mode):
                files[name] = Path(entry.path)
            else:
                skipped[name] = "neither a file nor a folder"
    return Listing(folder, dict(sorted(files.items())), dict(sorted(skipped.items())))


def scene_files(images: Path | None, colmap: Path | None) -> list[Path]:
    """List the files that a scene is made from: its photographs, their smaller copies beside a model, the model."""
    folders = [folder for folder in (images, colmap) if folder is not None]
    if images is not None and colmap is not None:
        folders += smaller_copies(images).values()
    return sorted({path for folder in folders for path in list_files(folder).files.values()})


def smaller_copies(images: Path) -> dict[int, Path]:
    """Find images_8, images_4, images_2, ... beside the folder `images`: divisor -> folder, largest divisor first."""
    found = {}
    for divisor in range(_MAX_DIVISOR, 1, -1):
        folder = images.with_name(f"{images.name}_{divisor}")
        if folder.is_dir():
            found[divisor] = folder
    return found


def not_a_folder(path: Path) -> str:
    """Say what stands where a folder of photographs or of a model was expected."""
    if not path.exists():
        return (
            f"{path}: no such folder. Relative paths start where snakemake runs ({Path.cwd()}), ~ is your home, "
            "variables such as $HOME are not replaced"
        )
    if path.suffix[1:].lower() in VIDEO_SUFFIXES:
        folder = path.with_suffix("")
        take = f"mkdir -p {shlex.quote(str(folder))} && {frames_command(path, folder / 'frame')}"
        return f"{path}: a video. Take its frames ({take}) and give `images: {folder}`"
    return f"{path}: a file, expected a folder"


def frames_command(video: Path, prefix: Path) -> str:
    return f"ffmpeg -i {shlex.quote(str(video))} -vf fps=2 -q:v 2 {shlex.quote(f'{prefix}_%05d.jpg')}"


def name_problem(name: str) -> str | None:
    """Say why a file name cannot be used, or None. Spaces, no-break spaces, accents and emoji can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it (`convmv -f latin1 -t utf8 --notest FILE`)"
    if any(unicodedata.category(c) in _CONTROL for c in name):
        return "its name has a line break or another control character; rename it"
    return None


def printable(name: str) -> str:
    """Escape what a terminal or a JSON file could not take."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROL else c for c in text
    )


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
