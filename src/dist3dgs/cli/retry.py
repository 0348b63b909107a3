"""Implement `dist3dgs retry`: train failed points again with the current config."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..config.matrix import Study
from ..config.naming import PARTS, Point
from ..errors import UserError
from ..runs.attempts import attempts
from ..runs.launch_summary import FILE, load_or_empty
from ..runs.record import RunRecord, load_record
from ..slurm.queue import Queue, describe

LOCAL, CLUSTER = Path("profiles/local"), Path("profiles/slurm")


def retry(
    study: Study,
    names: Sequence[str],
    overlays: Sequence[Path] = (),
    profile: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Say which points are trained again and why, then let Snakemake train them. Returns its exit status.

    Args:
        names: points (scene/strategy/layout[/repeat]), failed or not; by default all that failed.
        overlays: config files to merge on top.
        profile: Snakemake's; by default the one that fits where the points ran.
        dry_run: only say what would be done.
    """
    results, queue = Path(study.config.results), Queue(results=study.config.results)
    points = [_named(study, name) for name in names] if names else failed_points(study)
    chosen: list[Point] = []
    for point in dict.fromkeys(points):
        if jobs := queue.of_point_and_parts(point):
            print(f"{point}: left alone, job {jobs[0].id} trains it: {describe(jobs[0])}")
            continue
        chosen.append(point)
        print(f"{point}: trained again; {_outcome(_record(point, results))}")
    if not chosen:
        print("nothing to train again" if points else "no point of the study has failed")
        return 0
    profile = profile or _profile(chosen, results)
    if not (profile / "config.yaml").is_file():
        raise UserError(
            f"{profile}: no Snakemake profile (it has no config.yaml); run where profiles/ is, or give --profile FOLDER"
        )
    command = _command(chosen, results, overlays, profile)
    print(f"$ {shlex.join(['snakemake', *command])}", flush=True)
    if dry_run:
        return 0
    old = {point: _record(point, results) for point in chosen}
    for point in chosen:
        _close(point.folder(results))
    status = _snakemake(command)
    for point in chosen:
        record = _record(point, results)
        print(f"{point}: {'no new record' if record == old[point] else _outcome(record)}")
    print("tables, figures and report are not made again yet: run the study's own snakemake command")
    return status


def failed_points(study: Study) -> list[Point]:
    """List the points whose record says failed: those of the matrix, then others that were asked for by name."""
    results = Path(study.config.results)
    points = study.points()
    for path in sorted(results.glob("*/*/*/r*/record.json")):
        try:
            point = Point.parse(*path.parent.relative_to(results).parts)
        except UserError:
            continue
        known = point.scene in study.scenes and point.strategy in study.strategies
        if point.scene in study.workloads:
            known = point.strategy in study.workload(point.scene).variants
        if known and not study.excluded(point):
            points.append(point)
    failed = []
    for point in dict.fromkeys(points):
        record = _record(point, results)
        if record is not None and record.status == "failed" and record.provenance.source == "dist3dgs":
            failed.append(point)
    return failed


def _named(study: Study, name: str) -> Point:
    point = Point.named(name)
    study.spec(point)  # refuses what the study does not know
    return point


def _record(point: Point, results: Path) -> RunRecord | None:
    path = point.folder(results) / "record.json"
    try:
        return load_record(path) if path.is_file() else None
    except UserError:
        return None


def _outcome(record: RunRecord | None) -> str:
    if record is None:
        return "it has no record"
    if record.failure is None:
        return f"its record is {record.status}"
    where = f" in {record.failure.phase}" if record.failure.phase else ""
    return f"its record is {record.status} ({record.failure.cause}{where})"


def _profile(points: Sequence[Point], results: Path) -> Path:
    """Choose the Slurm profile if the newest attempt of any point, or of a part of one, was a Slurm job."""
    folders = [f for p in points for f in (p.folder(results), *p.folder(results).glob(f"{PARTS}/*"))]
    newest = [found[-1].summary() for folder in folders if (found := attempts(folder))]
    on_cluster = any(s.slurm or s.final_cause == "submission_rejected" for s in newest)
    return CLUSTER if on_cluster else LOCAL


def _command(points: Sequence[Point], results: Path, overlays: Sequence[Path], profile: Path) -> list[str]:
    files = ["--configfile", *map(str, overlays)] if overlays else []
    targets = [str(point.folder(results) / "record.json") for point in points]
    # Only the points' own trainings are in the graph of these targets.
    return ["--profile", str(profile), *files, "--forcerun", "train", "--", *targets]


def _snakemake(arguments: Sequence[str]) -> int:
    """Run Snakemake and return its exit status. Ctrl-C reaches it from the terminal, so that it can shut down."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    process = subprocess.Popen([sys.executable, "-m", "snakemake", *arguments], env=environment)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number)),
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close(folder: Path) -> None:
    """Close the attempts of a point, so that the retry policy counts from zero; those of its failed parts likewise, and
    forget their outcome, which Snakemake then makes again.
    """
    for part in folder.glob(f"{PARTS}/*"):
        if load_or_empty(part / FILE).status != "ok":
            _close(part)
            (part / FILE).unlink(missing_ok=True)
    found = attempts(folder)
    if found and not (summary := found[-1].summary()).is_empty:
        summary.updated(retry_at=time.time()).save(found[-1].folder)
