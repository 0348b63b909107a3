"""The quality benchmark's rows: what a run reached, and what time it took."""

import json
import sys
from pathlib import Path

import pytest

from dist3dgs.bench import quality
from dist3dgs.bench.cloud import write_cloud

pytestmark = pytest.mark.slow


def test_a_row_has_quality_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_cloud(tmp_path / "cloud.safetensors", num_points=60, num_views=8, width=48, height=32)
    options = (
        f"--scene {scene} --images 30 --global-batch 1 --layouts n1g1 --strategies replicated --device cpu"
    )
    options += f" --densify budget --max-gaussians 90 --out {tmp_path / 'quality.json'}"
    monkeypatch.setattr(sys, "argv", ["quality", *options.split()])
    quality.main()
    (row,) = json.loads((tmp_path / "quality.json").read_text())["runs"]
    assert row["gaussians"] == 90 and row["steps"] == 30 and row["psnr"] > 5
    assert 0 < row["densify_s"] < row["train_s"]
    assert row["cpu_s"] > 1, "starting Python and torch takes more"
    assert row["step_s"] > 0 and row["last_step_s"] > 0
    assert row["train_s"] - row["densify_s"] > 25 * row["step_s"], (
        "the 5 steps of the warm-up are not in the mean"
    )
