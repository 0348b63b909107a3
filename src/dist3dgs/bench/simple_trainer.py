"""gsplat's own trainer beside ours: the same photographs and held-out views, seconds of training to equal PSNR.

Theirs is `examples/simple_trainer.py` of a checkout of gsplat's repository, run as it is; what it imports must be
installed. Both train on one COLMAP scene; every 8th photograph by name is held out, as both do by default.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..launch.world_check import listed_devices

PROGRAM = "examples/simple_trainer.py"
#: Runs the program that its first argument names, on the extension that is built: gsplat's own build would take a
#: stage's time, trust PyTorch's search for the toolkit, and begin again where it was cut.
WITH_OUR_BUILD = (
    "import runpy, sys\n"
    "from dist3dgs.launch import gsplat_build\n"
    "gsplat_build.load()\n"
    "del sys.argv[0]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
#: Evaluations of a run, equally far apart.
NUM_EVALUATIONS = 10
TEST_EVERY = 8

#: Points of a training curve: `step`, `s` (seconds of training so far, without evaluations and checkpoints), `psnr`
#: (dB, mean over the held-out views), `gaussians`, `lpips` (None where it was not measured).
Curve = list[dict[str, Any]]


def evaluations(steps: int) -> list[int]:
    """Return the steps after which both evaluate; the last is the run's."""
    return sorted({max(1, steps * i // NUM_EVALUATIONS) for i in range(1, NUM_EVALUATIONS + 1)})


def run_theirs(
    repository: Path, colmap: Path, factor: int, steps: int, *, with_our_build: bool = False
) -> Curve:
    """Train with gsplat's trainer on the first visible GPU; it would take all of them.

    Args:
        repository: a checkout of gsplat.
        colmap: folder with images/ (or images_N/) and sparse/0.
        factor: photographs are divided by this.
        steps: of one image each.
        with_our_build: gsplat's extension as `launch/gsplat_build.py` built it; else gsplat compiles its own anew.

    Raises:
        UserError: there is no such program, or it failed, with the end of what it printed.
    """
    program = repository / PROGRAM
    if not program.is_file():
        raise UserError(f"{repository}: no checkout of gsplat, {PROGRAM} is not in it")
    with tempfile.TemporaryDirectory() as folder:
        when = [str(step) for step in evaluations(steps)]
        argv = [sys.executable, *(("-c", WITH_OUR_BUILD) if with_our_build else ()), program.name, "default"]
        argv += ["--disable-viewer", "--data-dir", str(colmap.resolve())]
        argv += ["--data-factor", str(factor), "--test-every", str(TEST_EVERY), "--max-steps", str(steps)]
        argv += ["--eval-steps", *when, "--save-steps", *when, "--result-dir", folder]
        if "disable_video" in program.read_text(encoding="utf-8"):  # older versions make none
            argv.append("--disable-video")
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": (listed_devices() or ["0"])[0]}
        done = subprocess.run(
            argv, cwd=program.parent, env=environment, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            raise UserError(f"{program} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return read_curve(Path(folder, "stats"))


def read_curve(stats: Path) -> Curve:
    """Read what gsplat's trainer wrote: train_stepN_rank0.json before and val_stepN.json after each evaluation.

    Its seconds go on during checkpoints and evaluations; those between the two files are taken off.
    """
    curve, waited_s = [], 0.0
    for val in sorted(stats.glob("val_step*.json"), key=lambda path: int(path.stem[len("val_step") :])):
        number = val.stem[len("val_step") :]
        train = stats / f"train_step{number}_rank0.json"
        before, after = json.loads(train.read_text()), json.loads(val.read_text())
        curve.append(
            {
                "step": int(number) + 1,  # it counts from 0
                "s": before["ellipse_time"] - waited_s,
                "psnr": after["psnr"],
                "gaussians": before["num_GS"],
                "lpips": after.get("lpips"),
            }
        )
        waited_s += max(0.0, val.stat().st_mtime - train.stat().st_mtime)
    if not curve:
        raise UserError(f"{stats}: gsplat's trainer wrote no evaluations")
    return curve


def seconds_to(curve: Curve, psnr: float) -> float | None:
    """Return the seconds after which a curve reaches a PSNR, between two evaluations by a straight line; None if never.

    Before the first evaluation nothing is known: a curve that starts above is said to reach it there.
    """
    before = None
    for point in curve:
        if point["psnr"] >= psnr:
            if before is None:
                return float(point["s"])
            share = (psnr - before["psnr"]) / (point["psnr"] - before["psnr"])
            return float(before["s"] + share * (point["s"] - before["s"]))
        before = point
    return None


def compare(theirs: Curve, ours: Curve) -> dict[str, Any]:
    """Return the best PSNR that both reach, the seconds of each to it, and how many times faster ours was."""
    psnr = min(max(point["psnr"] for point in curve) for curve in (theirs, ours))
    theirs_s, ours_s = seconds_to(theirs, psnr), seconds_to(ours, psnr)
    assert theirs_s is not None and ours_s is not None  # both reach it
    return {
        "psnr": psnr,
        "theirs_s": theirs_s,
        "ours_s": ours_s,
        "speedup": theirs_s / ours_s if ours_s else None,
    }
