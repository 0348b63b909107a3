"""Structure from motion with pycolmap, in a child process with a memory limit and a time limit.

pycolmap can hang or grow without bound, and importing it replaces signal handlers, so it never runs in our own
process. Reproducible by default: two runs of the same photographs give the same bytes (docs/decisions/0020).
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config.models import SfmSettings
from ..errors import UserError
from .colmap.model import Model
from .colmap.read import read_model

POLL_S = 0.2
REPORT_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photograph for structure from motion.

    name: file name relative to the images folder. camera: photographs with equal keys share one camera.
    focal_px: from EXIF, or None when unknown.
    """

    name: str
    width_px: int
    height_px: int
    camera: str
    focal_px: float | None = None


@dataclass(frozen=True, kw_only=True)
class SfmResult:
    """model: the largest sub-model. timings_s: extract, match, map. num_models: how many sub-models there were.
    num_features: keypoints by photograph name. num_matches: verified matches by photograph name."""

    model: Model
    timings_s: dict[str, float]
    num_models: int
    num_features: dict[str, int]
    num_matches: dict[str, int]
    versions: dict[str, str]


def run_sfm(
    images: Path, photos: list[Photo], work: Path, settings: SfmSettings, say: Callable[[str], None] = print
) -> SfmResult:
    """Find the cameras of `photos` (in folder `images`). `work` is an empty folder for the database and models.

    Raises `UserError` when nothing can be reconstructed, or a limit is hit.
    """
    photos = sorted(photos, key=lambda photo: photo.name)
    num_threads = settings.num_threads or len(os.sched_getaffinity(0))
    request = {
        "images": str(images),
        "work": str(work),
        "settings": settings.model_dump() | {"num_threads": num_threads},
        "photos": [asdict(photo) for photo in photos],
    }
    Path(work, "request.json").write_text(json.dumps(request))
    _run_child(Path(work), len(photos), settings, say)
    reply = json.loads(Path(work, "reply.json").read_text())
    features, matches = _database_counts(Path(work, "database.db"))
    folders = sorted(Path(work, "sparse").glob("*/"), key=lambda p: p.name)
    models = [read_model(folder) for folder in folders]
    if not models:
        raise UserError(_nothing_registered(photos, features, matches, settings))
    largest = max(models, key=lambda model: (len(model.images), len(model.points)))
    return SfmResult(
        model=largest,
        timings_s=reply["timings_s"],
        num_models=len(models),
        num_features=features,
        num_matches=matches,
        versions=reply["versions"],
    )


def _run_child(work: Path, num_photos: int, settings: SfmSettings, say: Callable[[str], None]) -> None:
    # faiss, inside pycolmap, starts OpenMP threads under each of COLMAP's own: 6 times slower on two cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    log = work / "sfm.log"
    with log.open("wb") as f:
        child = subprocess.Popen(
            [sys.executable, "-m", "dist3dgs.scenes.sfm_worker", str(work / "request.json")],
            stdout=f,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            _watch(child, work, num_photos, settings, say)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if child.returncode != 0:
        raise UserError(_died(child.returncode, log, settings))


def _watch(
    child: subprocess.Popen, work: Path, num_photos: int, settings: SfmSettings, say: Callable[[str], None]
) -> None:
    """Wait for the child, saying how far it is; raises `UserError` when it takes too long."""
    start = last = time.monotonic()
    said = ""
    while child.poll() is None:
        time.sleep(POLL_S)
        now = time.monotonic()
        if now - start > settings.timeout_s:
            raise UserError(
                f"sfm_failed: structure from motion was stopped after {settings.timeout_s:.0f} s, in the stage "
                f"{_stage(work) or 'start'} ({num_photos} photographs). Raise `sfm.timeout_s`, or use fewer "
                "photographs, `sfm.num_features` lower, or `sfm.matcher: sequential` for a video."
            )
        if now - last >= REPORT_EVERY_S:
            last = now
            line = _progress(work, num_photos, settings.matcher)
            if line != said:
                say(line)
                said = line


def _stage(work: Path) -> str:
    try:
        return (work / "stage").read_text()
    except OSError:
        return ""


def _progress(work: Path, num_photos: int, matcher: str) -> str:
    stage = _stage(work)
    table, total = {
        "extract": ("keypoints", num_photos),
        "match": (
            "two_view_geometries",
            num_photos * (num_photos - 1) // 2 if matcher == "exhaustive" else 0,
        ),
    }.get(stage, ("", 0))
    if not table:
        return f"sfm: {stage or 'start'}"
    try:
        count = _query(work / "database.db", f"select count(*) from {table}")[0][0]
    except sqlite3.Error:  # the child is writing
        return f"sfm: {stage}"
    return f"sfm: {stage} {count}/{total}" if total else f"sfm: {stage} {count}"


def _query(database: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1.0)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


#: COLMAP numbers an image pair as 2147483647 * smaller id + larger id.
_PAIR_BASE = 2147483647


def _database_counts(database: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return keypoints and verified matches of every photograph, by name."""
    names = dict(_query(database, "select image_id, name from images"))
    features = dict.fromkeys(names.values(), 0)
    features |= {names[i]: n for i, n in _query(database, "select image_id, rows from keypoints")}
    matches = dict.fromkeys(names.values(), 0)
    for pair, rows in _query(database, "select pair_id, rows from two_view_geometries where rows > 0"):
        for image_id in divmod(pair, _PAIR_BASE):
            matches[names[image_id]] += rows
    return features, matches


def _nothing_registered(
    photos: list[Photo], features: dict[str, int], matches: dict[str, int], settings: SfmSettings
) -> str:
    counts = sorted(features.values())
    return (
        f"sfm_failed: no camera could be found for any of {len(photos)} photographs. "
        f"{sum(n > 0 for n in matches.values())} of them match another one; features per photograph: least "
        f"{counts[0]}, median {counts[len(counts) // 2]}, most {counts[-1]} (limit `sfm.num_features` "
        f"{settings.num_features}). "
        "Photographs must show the same still scene with texture, each overlapping its neighbours by about 70 %. "
        "Check the folder, or take more photographs from closer steps."
    )


#: Patterns of the lines that state the reason in a log that ends in a stack trace.
_TELLING = re.compile(
    r"error|terminate called|what\(\)|check failed|bad_alloc|cannot allocate|killed", re.IGNORECASE
)


def _died(returncode: int, log: Path, settings: SfmSettings) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("@") and set(line) - set("^~ ")]
    words = [line for line in lines if _TELLING.search(line)][-2:] or lines[-2:]
    cause = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
    return (
        f"sfm_failed: structure from motion died in the stage {_stage(log.parent) or 'start'} with {cause}: "
        f"{' | '.join(word[:200] for word in words) or 'no word in its log'}. It may use {settings.memory_gib:g} GiB: "
        "raise `sfm.memory_gib` if that was too little, or lower `sfm.num_features` or `sfm.max_image_px`."
    )
