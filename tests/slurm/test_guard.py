"""srun with more tasks than one: the launcher and a rank by hand say so, and one record is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from study import write_scene

from dist3dgs.config.matrix import spec_json
from dist3dgs.config.models import RunSpec

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def srun(cluster: Cluster, *program: str) -> "subprocess.CompletedProcess[str]":
    argv = [
        "srun",
        "--partition=gpu",
        "--nodes=1",
        "--ntasks=4",
        "--mem=4000",
        sys.executable,
        "-m",
        *program,
    ]
    return subprocess.run(
        argv, env=cluster.environment(os.environ), capture_output=True, text=True, timeout=200
    )


def test_four_tasks_that_would_be_four_runs_are_refused(plain_cluster, tmp_path):
    run = RunSpec(
        scene="tiny", strategy="replicated", layout="n1g1", repeat=0, seed=1, parallel={}, train={"steps": 4},
        hardware={"device": "cpu"},
    )  # fmt: skip
    write_scene(tmp_path / "data")
    scene, out = tmp_path / "data/scene.safetensors", tmp_path / "results/tiny/replicated/n1g1/r0"
    common = ["--spec", spec_json(run), "--scene", str(scene), "--out"]
    done = srun(plain_cluster, "dist3dgs.cli", "launch", *common, str(out))
    launch = json.loads((out / "launch.json").read_text())
    assert launch["cause"] == "allocation_mismatch" and len(list((out / "attempts").iterdir())) == 1
    assert "4 task(s)" in launch["world"]["Slurm allocation"] and "--ntasks=1" in launch["refused"]
    assert launch["finished_at"] - launch["started_at"] < 5 and "this is task 0" in done.stderr
    done = srun(plain_cluster, "dist3dgs.train.worker", *common, str(tmp_path / "by-hand"))
    assert done.returncode == 2 and done.stderr.count("as many independent runs would write one folder") == 4
    assert not list(Path(tmp_path, "by-hand").glob("checkpoints/*"))
