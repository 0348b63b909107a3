"""Check free space, packed scenes, downloaded archives and folders that must be writable."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..config.matrix import Study
from ..config.models import RunSpec, Scene
from ..config.published_scenes import PUBLISHED
from ..errors import UserError
from ..files import sha256
from ..launch import gsplat_build
from ..scenes.download.fetch import locked_archives
from ..scenes.pack import PackedScene, content_digest
from ..scenes.sources import LOCK_FILE
from ..units import format_bytes
from .setup import Result, Setup, Status

#: Renders, TensorBoard, logs and samples of one run; working copies of an ingestion.
OTHER_BYTES, WORK_BYTES = 50 << 20, 1 << 30


def check_disk(s: Setup) -> Iterator[Result]:
    """Compare free space with the most that the study will write, by file system."""
    if s.study is None:
        return
    packs = _data_bytes(s.study)
    needs: list[tuple[str, Path, int, int]] = [
        ("results", Path(s.study.config.results), *_results_bytes(s.study)),
        ("data", Path(s.study.config.data), packs, packs),
        ("temporary files", _temporary(), WORK_BYTES, WORK_BYTES),
    ]
    by_device: dict[int, list[tuple[str, Path, int, int]]] = {}
    for need in needs:
        by_device.setdefault(_existing(need[1]).stat().st_dev, []).append(need)
    for on_it in by_device.values():
        room = os.statvfs(_existing(on_it[0][1]))
        free = room.f_bavail * room.f_frsize
        least, most = sum(n[3] for n in on_it), sum(n[2] for n in on_it)
        parts = ", ".join(f"{format_bytes(n[2])} of {n[0]} ({n[1]})" for n in on_it)
        text = f"up to {parts}; {format_bytes(free)} free"
        fix = f"df -h {on_it[0][1]}; another folder: `results:`, `data:` or TMPDIR; less: train.keep_checkpoints"
        if free < least:
            yield Result("disk", "fail", f"{text}, not enough for one point", fix)
        elif free < most:
            yield Result("disk", "warn", f"{text}, not enough if every run reaches max_gaussians", fix)
        else:
            yield Result("disk", "ok", text)


def _results_bytes(study: Study) -> tuple[int, int]:
    """Bound the bytes that all points without a record will write, and those of the largest."""
    results = Path(study.config.results)
    left = [
        run_bytes(spec, _num_points(study, spec.scene))
        for spec in study.specs()
        if not (spec.point.folder(results) / "record.json").is_file()
    ]
    return sum(left), max(left, default=0)


def run_bytes(spec: RunSpec, num_points: int | None = None) -> int:
    """Bound the bytes of one run. num_points: of its scene, which it keeps without densification.

    A Gaussian has its parameters and two moments of each in a checkpoint, and a row of statistics; another checkpoint
    is written before the oldest is deleted.
    """
    train = spec.train
    num_sh = 3 * (train.sh_degree + 1) ** 2
    in_checkpoint = 4 * 3 * (11 + num_sh) + 24
    in_export = 4 * (14 + num_sh)
    fixed = train.densify.kind == "none" and num_points is not None
    num_gaussians = num_points if fixed and num_points is not None else train.densify.max_gaussians
    return num_gaussians * (in_checkpoint * (train.keep_checkpoints + 1) + in_export) + OTHER_BYTES


def _num_points(study: Study, scene: str) -> int | None:
    with contextlib.suppress(UserError):
        return len(PackedScene.open(_pack(study, scene)).points)
    return None


def _data_bytes(study: Study) -> int:
    """Estimate the bytes of scenes that are not packed yet, and of their archives."""
    total, archives = 0, {}
    for name in dict.fromkeys(study.config.scenes):
        scene = study.scene(name)
        if _pack(study, name).is_file():
            continue
        total += _packed_bytes(scene)
        if scene.download in PUBLISHED and not (Path(study.config.data) / name / "source").is_dir():
            archive, _ = PUBLISHED[scene.download]
            num_scenes = sum(a.url == archive.url for a, _ in PUBLISHED.values())
            archives[archive.url] = archive.num_bytes
            total += archive.num_bytes // num_scenes
    return total + sum(archives.values())


def _packed_bytes(scene: Scene) -> int:
    """Estimate the bytes of a packed scene: raw pixels of every photograph."""
    if scene.builtin is not None:
        return scene.builtin.num_images * scene.builtin.width_px * scene.builtin.height_px * 3
    width = scene.max_width_px or 4000 // scene.downscale
    count = 300
    if scene.images is not None:
        with contextlib.suppress(OSError):
            count = sum(1 for _ in os.scandir(scene.images))
    return count * width * (width * 3 // 4) * 3


def check_scenes(s: Setup) -> Iterator[Result]:
    """Check that packed scenes are complete and match their ingest.json; --full: every byte."""
    if s.study is None:
        return
    good = []
    for name in dict.fromkeys(s.study.config.scenes):
        path = _pack(s.study, name)
        if not path.is_file():
            continue
        fix = f"rm {path} && snakemake --profile profiles/local {path}"
        try:
            digest = PackedScene.open(path).digest
            known = json.loads((path.parent / "ingest.json").read_text(encoding="utf-8"))["digest"]
            found = content_digest(path) if s.full else digest
        except UserError as e:
            yield Result("scenes", "fail", str(e), fix)
        except (OSError, ValueError, KeyError, TypeError):
            yield Result("scenes", "warn", f"{path.parent / 'ingest.json'} has no digest of the scene", fix)
        else:
            if {digest, known} != {found}:
                text = f"{path}: its content is {found[:12]}, its header says {digest[:12]}, ingest.json {known[:12]}"
                yield Result("scenes", "fail", text, fix)
            else:
                good.append(name)
    missing = len(dict.fromkeys(s.study.config.scenes)) - sum(
        _pack(s.study, name).is_file() for name in dict.fromkeys(s.study.config.scenes)
    )
    how = "every byte" if s.full else "headers; --full reads every byte"
    text = f"{len(good)} whole ({how})" if good else "none packed yet" if missing else ""
    if text:
        yield Result("scenes", "ok", f"{text}, {missing} to be made" if good and missing else text)


def check_archives(s: Setup) -> Iterator[Result]:
    """Compare downloaded archives with config/scenes.lock.yaml; --full: their SHA-256."""
    data = Path(s.study.config.data if s.study else "data")
    try:
        archives = locked_archives(LOCK_FILE, data)
    except UserError as e:
        yield Result("archives", "fail", str(e), f"git checkout {LOCK_FILE}")
        return
    good = 0
    for path, num_bytes, digest in archives:
        if num_bytes is not None and path.stat().st_size != num_bytes:
            text = f"{path} has {path.stat().st_size} bytes, {LOCK_FILE} says {num_bytes}"
        elif s.full and digest is not None and sha256(path) != digest:
            text = f"{path} does not have the SHA-256 of {LOCK_FILE}"
        else:
            good += 1
            continue
        yield Result("archives", "fail", text, f"rm {path}; the next run of snakemake fetches it again")
    if good:
        yield Result("archives", "ok", f"{good} as in {LOCK_FILE} ({'SHA-256' if s.full else 'sizes'})")


def check_folders(s: Setup) -> Iterator[Result]:
    """Check the folders that must be writable here."""
    home = Path(os.environ.get("HOME") or "/nonexistent")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    kernels = Path(os.environ.get("DIST3DGS_KERNEL_CACHE") or cache / "dist3dgs" / "kernels")
    folders: list[tuple[str, Path, Status, str]] = [
        ("home", home, "warn", "export HOME=FOLDER"),
        ("cache (Snakemake, matplotlib)", cache, "fail", "export XDG_CACHE_HOME=FOLDER"),
        ("kernels of the CPU renderer", kernels, "warn", "export DIST3DGS_KERNEL_CACHE=FOLDER"),
        ("temporary files", _temporary(), "fail", "export TMPDIR=FOLDER"),
        ("Snakemake's notes", Path(".snakemake"), "fail", "chmod u+w . ; or work in a clone of your own"),
    ]
    if s.computes_on_gpus:
        fix = "export TORCH_EXTENSIONS_DIR=FOLDER"
        status: Status = "fail" if gsplat_build.library() is None else "warn"
        folders.append(("gsplat's extension", gsplat_build.folder(), status, fix))
    if s.study is not None:
        for key in ("results", "data"):
            folder = Path(getattr(s.study.config, key))
            folders.append(
                (key, folder, "fail", f"chmod u+w {folder}; or set `{key}:` in config/config.yaml")
            )
    wrong = [
        Result("folders", status, f"{what}: {path}: {problem}", fix)
        for what, path, status, fix in folders
        if (problem := _not_writable(path))
    ]
    yield from wrong or [Result("folders", "ok", f"writable: {', '.join(what for what, *_ in folders)}")]


def _temporary() -> Path:
    """Return the folder for temporary files; Python silently takes another one where it cannot be written."""
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir())


def _not_writable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, or its nearest existing parent; None if one can."""
    try:
        there = _existing(folder)
        if not there.is_dir():
            return f"{there} is no folder"
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as e:
        return e.strerror or "cannot be written"


def _existing(path: Path) -> Path:
    """Return the path, or its nearest existing parent."""
    path = Path(path).absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _pack(study: Study, scene: str) -> Path:
    return Path(study.config.data, scene, "scene.safetensors")
