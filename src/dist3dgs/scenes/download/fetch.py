"""Fetching published scenes: resume, retry, size and SHA-256 checks, a lock file of sums.

Only http(s) and local files. A local folder is used where it is; a local archive is unpacked without being copied.
"""

import fcntl
import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ... import __version__
from ...errors import UserError
from ...files import sha256, write_json, write_text
from .archive import extract_scene, is_archive

NUM_TRIES = 6
FIRST_WAIT_S = 1.0
TIMEOUT_S = 60.0
BLOCK_BYTES = 2**20
REPORT_EVERY_S = 10.0
#: Answers that a later try may improve; any other 4xx is final.
RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}


def fetch_scene(
    name: str, spec: dict[str, Any], data_folder: Path, lock_path: Path, say: Callable[[str], None] = print
) -> Path:
    """Bring a scene here and return its folder (with images/ and sparse/, as it was published).

    Args:
        spec: `url` (http(s), file:// or a local path, of an archive or a local folder), `folder` (inside it, "" for
            the top), and optionally `sha256` and `num_bytes` of the archive. See `registry.download_spec`.
        data_folder: archives go to `data_folder`/archives, the scene to `data_folder`/name/source.
        lock_path: YAML of sums by address; an unknown sum is added, a known one is enforced.
    """
    url, folder = str(spec["url"]), str(spec.get("folder") or "")
    target = Path(data_folder, name, "source")
    local = _local_path(url)
    if local is not None and local.is_dir():
        scene = (local / folder).resolve()
        if not scene.is_relative_to(local.resolve()) or not scene.is_dir():
            raise UserError(f"{local}: no folder {folder!r} in it. Correct the scene's `download:`.")
        return scene
    if target.is_dir():  # extraction is atomic: what is there is whole
        return target
    archives = Path(data_folder, "archives")
    archives.mkdir(parents=True, exist_ok=True)
    file_name = Path(urllib.parse.urlparse(url).path if local is None else str(local)).name
    archive = local or archives / _safe_file_name(file_name, url)
    # Scenes of one archive may be fetched by jobs running at the same time: one downloads, the others wait.
    with _only_one(archives / f".{archive.name}.lock"):
        if local is None and not archive.is_file():
            _download(url, archive, spec.get("num_bytes"), say)
        _check_sum(url, archive, spec, Path(lock_path), delete=local is None, say=say)
    if not is_archive(archive):
        raise UserError(
            f"{archive}: neither a zip nor a tar archive. Check the address {url}, delete the file, try again."
        )
    say(f"fetch: unpacking {folder or 'all'} of {archive.name}")
    extract_scene(archive, folder, target)
    return target


def fetch_file(url: str, folder: Path, lock_path: Path, say: Callable[[str], None] = print) -> Path:
    """Bring one file into `folder`, resumed and checked like an archive of a scene; its path."""
    local = _local_path(url)
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(urllib.parse.urlparse(url).path).name
    path = local or folder / _safe_file_name(name, url)
    with _only_one(folder / f".{path.name}.lock"):
        if local is None and not path.is_file():
            _download(url, path, None, say)
        _check_sum(url, path, {}, Path(lock_path), delete=local is None, say=say)
    return path


def _local_path(url: str) -> Path | None:
    """Return the path of a file:// address or plain path; None for http(s). Raises `UserError` for anything else."""
    parts = urllib.parse.urlparse(url)
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        path = Path(urllib.request.url2pathname(parts.path))
    elif parts.scheme == "":
        path = Path(url).expanduser()
    else:
        raise UserError(
            f"{url}: only http://, https://, file:/// and local paths can be fetched. Correct `download:`."
        )
    if not path.exists():
        raise UserError(f"{path}: no such file or folder. Check the scene's `download:`.")
    return path


def _safe_file_name(name: str, url: str) -> str:
    """Return a safe file name: the given one, or one derived from the address."""
    if (
        name
        and len(name) <= 100
        and not name.startswith(".")
        and all(c.isalnum() or c in "._-" for c in name)
    ):
        return name
    return hashlib.sha256(url.encode()).hexdigest()[:16] + ".archive"


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _check_sum(
    url: str,
    archive: Path,
    spec: dict[str, Any],
    lock_path: Path,
    *,
    delete: bool,
    say: Callable[[str], None],
) -> None:
    """Compare the archive with the known size and sum; write an unknown sum to the lock file."""
    num_bytes = archive.stat().st_size
    with _only_one(lock_path.parent / f".{lock_path.name}.lock") if lock_path.parent.is_dir() else _nothing():
        lock = _read_lock(lock_path)
        known = lock.get(url, {})
        want_sum, want_bytes = (
            spec.get("sha256") or known.get("sha256"),
            spec.get("num_bytes") or known.get("num_bytes"),
        )
        wrong = want_bytes is not None and want_bytes != num_bytes
        found = None if wrong else sha256(archive)
        if wrong or (want_sum and want_sum != found):
            if delete:
                archive.unlink()
            raise UserError(
                f"{archive}: {num_bytes} bytes with SHA-256 {found or 'not computed'}, expected "
                f"{want_bytes or '?'} bytes with {want_sum}. {'It was deleted; fetch it again. ' if delete else ''}If "
                f"the publisher has changed the archive on purpose, remove its entry from {lock_path}."
            )
        if not known:
            lock[url] = {"sha256": found, "num_bytes": num_bytes}
            write_text(lock_path, _LOCK_HEAD + yaml.safe_dump(lock, sort_keys=True))
            say(f"fetch: SHA-256 of {archive.name} written to {lock_path}")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


_LOCK_HEAD = (
    "# Size and SHA-256 of every archive at its first download; enforced from then on. Written by dist3dgs.\n"
)


def _read_lock(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lock = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}). Restore it from git, or delete it to start anew."
        ) from None
    if not isinstance(lock, dict) or not all(isinstance(v, dict) for v in lock.values()):
        raise UserError(f"{path}: expected addresses with sha256 and num_bytes. Restore it from git.")
    return lock


def locked_archives(lock_path: Path, data_folder: Path) -> list[tuple[Path, int | None, str | None]]:
    """Return the archives on disk whose size and SHA-256 the lock file has. Raises `UserError` if it cannot be read."""
    folders = (Path(data_folder, "archives"), Path(data_folder, "weights", "downloads"))
    found = []
    for url, known in _read_lock(Path(lock_path)).items():
        local = _local_path(url)
        name = Path(urllib.parse.urlparse(url).path).name
        for path in [local] if local is not None else [folder / name for folder in folders]:
            if path.is_file():
                found.append((path, known.get("num_bytes"), known.get("sha256")))
    return found


@dataclass
class _Part:
    """A download in progress: the bytes so far, and a file next to them that identifies the whole."""

    data: Path
    note: Path

    @property
    def num_bytes(self) -> int:
        return self.data.stat().st_size if self.data.exists() else 0

    def validator(self) -> str | None:
        """Return the server's ETag or date of what we have, to ask for more of the same; None: start over."""
        try:
            return str(json.loads(self.note.read_text())["validator"] or "") or None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restart(self) -> None:
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _download(url: str, target: Path, num_bytes: int | None, say: Callable[[str], None]) -> None:
    part = _Part(target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json"))
    for attempt in range(NUM_TRIES):
        before = part.num_bytes
        try:
            _fetch_rest(url, part, num_bytes, say)
            part.data.replace(target)
            part.note.unlink(missing_ok=True)
            return
        except urllib.error.HTTPError as error:
            if error.code not in RETRY_STATUS:
                raise UserError(
                    f"{url}: the server answers {error.code} {error.reason}. The scene may have moved; find its new "
                    "address, or download the archive by hand and give its path as `download:`."
                ) from None
            reason = f"HTTP {error.code}"
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
                raise UserError(
                    f"{target.parent}: the disk is full. Make room and run again; it resumes."
                ) from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if part.num_bytes > before:
            say(f"fetch: connection lost after {part.num_bytes} bytes ({reason}); resuming")
        if attempt + 1 < NUM_TRIES:
            wait_s = FIRST_WAIT_S * 2**attempt
            say(f"fetch: {reason}; trying again in {wait_s:g} s ({attempt + 2} of {NUM_TRIES})")
            time.sleep(wait_s)
    raise UserError(
        f"{url}: not fetched after {NUM_TRIES} tries, last reason: {reason}. Run again: it resumes at "
        f"{part.num_bytes} bytes. On a machine without internet, fetch it elsewhere and give its path as `download:`."
    )


def _fetch_rest(url: str, part: _Part, num_bytes: int | None, say: Callable[[str], None]) -> None:
    """Request the missing bytes once; return when all are there."""
    validator = part.validator()
    if validator is None:
        part.restart()
    have = part.num_bytes
    headers = {"User-Agent": f"dist3dgs/{__version__}", "Accept-Encoding": "identity"}
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we have: it is whole, or not what we took it for
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if whole == str(have):
                return
            part.restart()
            raise OSError("the server does not have the rest; starting over") from None
        raise
    with response:
        if response.status == 206:
            total: int | None
            start, total = _content_range(response.headers.get("Content-Range", ""))
            if start != have:
                part.restart()
                raise OSError("the server sent another part than asked for; starting over")
        else:  # 200: the whole, because it changed or the server cannot resume
            part.restart()
            have = 0
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            note = {"url": url, "validator": _validator(response.headers), "num_bytes": total}
            write_json(part.note, note)
        _check_room(part, have, total, num_bytes, url)
        _copy(response, part, have, total, say)
    if total is not None and part.num_bytes != total:
        raise OSError(f"{part.num_bytes} of {total} bytes came")


def _validator(headers: Any) -> str | None:
    """Return a strong ETag, else the date of change (RFC 9110, If-Range takes no weak tags)."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _content_range(text: str) -> tuple[int, int | None]:
    try:
        span, total = text.removeprefix("bytes ").split("/")
        return int(span.split("-")[0]), None if total == "*" else int(total)
    except ValueError:
        raise OSError(f"the server sent a malformed Content-Range {text[:80]!r}") from None


def _check_room(part: _Part, have: int, total: int | None, num_bytes: int | None, url: str) -> None:
    if num_bytes is not None and total is not None and total != num_bytes:
        part.restart()
        raise UserError(
            f"{url}: the server offers {total} bytes, expected {num_bytes}. The archive was changed."
        )
    free = shutil.disk_usage(part.data.parent).free
    if total is not None and total - have > free:
        raise UserError(
            f"{part.data.parent}: {(total - have) / 2**30:.1f} GiB are needed for {url}, {free / 2**30:.1f} GiB are "
            "free. Make room, or set `data:` to a larger disk."
        )


def _copy(response: Any, part: _Part, have: int, total: int | None, say: Callable[[str], None]) -> None:
    last = start = time.monotonic()
    done = have
    with part.data.open("ab") as f:
        while block := response.read(BLOCK_BYTES):
            f.write(block)
            done += len(block)
            if total is not None and done > total:
                break
            if (now := time.monotonic()) - last >= REPORT_EVERY_S:
                last = now
                of = f" of {total / 2**30:.2f}" if total else ""
                say(f"fetch: {done / 2**30:.2f}{of} GiB, {(done - have) / (now - start) / 2**20:.1f} MiB/s")
    if total is not None and done > total:
        part.restart()
        raise OSError("the server sent more bytes than it said")
