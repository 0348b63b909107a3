"""Unpacking a scene from a zip or tar archive of unknown good will: nothing leaves its folder, nothing is a link,
and what is written is bounded."""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from ..errors import UserError

MAX_MEMBERS = 200_000
MAX_BYTES = 200 * 2**30
#: Photographs do not compress; 100 x on more than this many bytes is a decompression bomb.
MAX_RATIO, RATIO_FROM_BYTES = 100, 64 * 2**20


@dataclass(frozen=True)
class _Member:
    path: PurePosixPath
    num_bytes: int
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether `path` is a zip or a (compressed) tar."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def extract_scene(archive: Path, folder: str, target: Path) -> None:
    """Unpack the members under `folder` (its path inside the archive, "" for all) as the new folder `target`.

    A whole-archive wrapper folder above `folder` is tolerated. `target` appears complete or not at all. Raises
    `UserError` naming the archive and member for anything that could do harm, or when there is no such folder.
    """
    target = Path(target)
    partial = target.with_name(f".{target.name}.extracting")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with ExitStack() as stack:
            try:
                members = _zip(archive, stack) if zipfile.is_zipfile(archive) else _tar(archive, stack)
                chosen = _below(members, folder, archive)
                for path, member in chosen:
                    _write(member, partial / path, archive)
            except (
                zipfile.BadZipFile,
                tarfile.TarError,
                EOFError,
                NotImplementedError,
                RuntimeError,
            ) as error:
                _bad(archive, f"is damaged or of an unsupported kind ({error})")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _bad(archive: Path, what: str) -> NoReturn:
    raise UserError(
        f"{archive}: {what}. Nothing was unpacked. Delete the archive and fetch it again from its publisher."
    )


def _checked_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or ":" in (path.parts or ("",))[0]
    ):
        _bad(archive, f"member {name[:120]!r} would leave its folder")
    return path


def _zip(archive: Path, stack: ExitStack) -> list[_Member]:
    z = stack.enter_context(zipfile.ZipFile(archive))
    members = []
    for info in z.infolist():
        path = _checked_path(archive, info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            _bad(archive, f"member {info.filename[:120]!r} is a link or a device")
        if info.flag_bits & 1:
            _bad(archive, f"member {info.filename[:120]!r} is encrypted")
        if info.is_dir():
            continue
        if info.file_size > RATIO_FROM_BYTES and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            _bad(
                archive,
                f"member {info.filename[:120]!r} would grow {info.file_size // max(info.compress_size, 1)}-fold",
            )
        members.append(_Member(path, info.file_size, lambda info=info: z.open(info)))  # type: ignore[misc]
    return _bounded(archive, members)


def _tar(archive: Path, stack: ExitStack) -> list[_Member]:
    t = stack.enter_context(tarfile.open(archive))  # noqa: SIM115
    packed_bytes = archive.stat().st_size
    members: list[_Member] = []
    total = 0
    for info in _tar_members(t):
        path = _checked_path(archive, info.name)
        if info.isdir():
            continue
        if not info.isreg():
            _bad(archive, f"member {info.name[:120]!r} is a link or a device")
        total += info.size
        if total > max(MAX_RATIO * packed_bytes, RATIO_FROM_BYTES) or len(members) >= MAX_MEMBERS:
            _bad(archive, f"would grow more than {MAX_RATIO}-fold or holds more than {MAX_MEMBERS} files")
        members.append(_Member(path, info.size, lambda info=info: _tar_file(t, info)))  # type: ignore[misc]
    return _bounded(archive, members)


def _tar_members(t: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """One by one: a bomb is seen before the whole of it has been unpacked in passing."""
    while (info := t.next()) is not None:
        yield info


def _tar_file(t: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = t.extractfile(info)
    assert stream is not None  # regular files only
    return stream


def _bounded(archive: Path, members: list[_Member]) -> list[_Member]:
    if len(members) > MAX_MEMBERS:
        _bad(archive, f"holds more than {MAX_MEMBERS} files")
    return members


def _below(members: list[_Member], folder: str, archive: Path) -> list[tuple[PurePosixPath, _Member]]:
    """Members in `folder`, with paths from there; the folder may lie below one wrapper folder."""
    wanted = PurePosixPath(folder).parts
    for skip in (0, 1):
        inside = [m for m in members if m.path.parts[skip : skip + len(wanted)] == wanted]
        inside = [m for m in inside if len(m.path.parts) > skip + len(wanted)]
        wrappers = {m.path.parts[:skip] for m in inside}
        if inside and len(wrappers) == 1 and (wanted or not skip):
            break
    else:
        tops = sorted({"/".join(m.path.parts[:2]) for m in members})[:12]
        raise UserError(
            f"{archive}: no folder {folder!r} in it. It holds: {', '.join(tops)}. Correct `download:`'s #folder."
        )
    total = sum(m.num_bytes for m in inside)
    if total > MAX_BYTES:
        _bad(archive, f"would unpack to {total / 2**30:.0f} GiB, more than {MAX_BYTES // 2**30} GiB")
    depth = skip + len(wanted)
    return [(PurePosixPath(*m.path.parts[depth:]), m) for m in inside]


def _write(member: _Member, path: Path, archive: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.num_bytes
    with member.open() as source, path.open("xb") as f:
        while block := source.read(min(2**20, left + 1)):
            left -= len(block)
            if left < 0:
                _bad(archive, f"member {str(member.path)!r} is longer than it says")
            f.write(block)
    if left:
        _bad(archive, f"member {str(member.path)!r} ends early")
