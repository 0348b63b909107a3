"""A tiny packed scene, drawn by the CPU renderer, and runs on it: a training of seconds."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dist3dgs.bench.cloud import write_cloud
from dist3dgs.config.matrix import spec_json
from dist3dgs.config.models import RunSpec, Strategy, TrainSettings
from dist3dgs.runs.events import read_events
from dist3dgs.runs.record import RunRecord

NUM_VIEWS, WIDTH, HEIGHT = 20, 64, 48


def write_tiny(path: Path, num_points: int = 400) -> Path:
    """Pack photographs of a cloud of coloured blobs; half of the blobs' centres are the scene's points."""
    return write_cloud(path, num_points=num_points, num_views=NUM_VIEWS, width=WIDTH, height=HEIGHT, every=2)


def spec(
    layout: str = "n1g1", *, strategy: dict[str, Any] | None = None, timeout_s: float = 20, **train: Any
) -> RunSpec:
    """A short run: 60 steps of one image, everything happens a few times."""
    densify = {"start_step": 10, "every": 10, "stop_step": 50, "reset_every": 35, "max_gaussians": 600}
    densify |= train.pop("densify", {})
    settings = {
        "steps": 60, "eval_every": 30, "checkpoint_every": 20, "sh_every": 15, "log_every": 10, "digest_every": 15,
        "tensorboard": False, "lpips": False, "densify": densify,
    }  # fmt: skip
    return RunSpec(
        scene="tiny", strategy="tiny", layout=layout, repeat=0, seed=1, parallel=Strategy(**(strategy or {})),
        train=TrainSettings(**settings | train),
        hardware={"device": "cpu", "timeout_s": timeout_s},
    )  # fmt: skip


def launch_argv(run: RunSpec, scene: Path, out: Path) -> list[str]:
    """The command line of `dist3dgs launch`."""
    argv = [sys.executable, "-m", "dist3dgs.cli", "launch", "--spec", spec_json(run)]
    return [*argv, "--scene", str(scene), "--out", str(out)]


def launch(run: RunSpec, scene: Path, out: Path, **options: Any) -> RunRecord:
    """Train in real processes; the record of what happened."""
    done = subprocess.run(
        launch_argv(run, scene, out), capture_output=True, text=True, timeout=150, **options
    )
    assert done.returncode == 0, done.stderr
    return judged(out)


def judged(out: Path) -> RunRecord:
    from dist3dgs.records.build import judge, verdict_of_run

    record = judge(out / "launch.json")
    # `dist3dgs diagnose` of the run, and of its only attempt, says what the record says.
    paths = [out / "launch.json", *(out / "attempts").glob("*/launch.json")]
    for path in paths if len(paths) == 2 else paths[:1]:
        verdict = verdict_of_run(path)
        assert (verdict.status, verdict.failure()) == (record.status, record.failure), path
    return record


def events(out: Path, kind: str, attempt: int = -1) -> list[dict[str, Any]]:
    """Events of one kind of one attempt, the last by default."""
    folder = sorted((out / "attempts").iterdir())[attempt]
    return [e for e in read_events(folder) if e["event"] == kind]


def log(out: Path, attempt: int = -1) -> str:
    return (sorted((out / "attempts").iterdir())[attempt] / "train.log").read_text(errors="replace")


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "launch.json").read_text())


class Running:
    """A launcher at work, for tests that interfere with it."""

    def __init__(self, run: RunSpec, scene: Path, out: Path) -> None:
        self.out = out
        self.process = subprocess.Popen(
            launch_argv(run, scene, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, kind: str, step: int = 0, patience_s: float = 90, **fields: Any) -> dict[str, Any]:
        """The first event of that kind at or after the step, with these fields."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end and self.process.poll() is None:
            if any((self.out / "attempts").glob("[0-9]*")):
                for e in events(self.out, kind):
                    if e.get("step", step) >= step and fields.items() <= e.items():
                        return e
            time.sleep(0.02)
        raise AssertionError(f"no event {kind} at step {step}; log:\n{log(self.out)}")

    def pid(self, rank: int) -> int:
        return next(e["pid"] for e in events(self.out, "start") if e["rank"] == rank)

    def end(self, patience_s: float) -> int:
        """Wait for the launcher; its exit status. Nothing it started may be left."""
        status = self.process.wait(timeout=patience_s)
        assert not (left := processes_of(self.out)), left
        return status


def processes_of(out: Path) -> dict[int, str]:
    """Command lines of the processes that name this run, by process ID."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(out).encode() in (line := path.read_bytes()):
                found[int(path.parent.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found
