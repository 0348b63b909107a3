"""On a machine with an NVIDIA GPU: the renderers agree, and training works; where there are two GPUs, over NCCL."""

import pytest
import torch

from dist3dgs.bench import gpu
from tests.unit.helpers import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, there is none here"),
]


@pytest.mark.parametrize("case", gpu.CASES, ids=lambda case: gpu.name_of(*case))
@pytest.mark.parametrize("num_gaussians", [0, 5_000])
def test_cuda_and_cpu_renderers_agree(case, num_gaussians):
    errors = gpu.compare_renderers(num_gaussians, *case, torch.device("cuda"))
    assert errors.pop("image") < gpu.TOLERANCE["image"]
    assert max(errors.values()) < gpu.TOLERANCE["gradient"], errors


def test_a_short_training_learns(tmp_path):
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    result = gpu.train(scene, 200, torch.device("cuda"))
    assert result["psnr"] > 15 and result["peak_gpu_gib"] > 0


def test_a_run_on_one_of_four_gpus_finishes_degraded(tmp_path):
    """The historic mistake on demand; needs no second GPU, as only one is used: the others need only be visible."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two visible NVIDIA GPUs")
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    run = tiny.spec(f"n1g{torch.cuda.device_count()}", strategy={"ranks": "one"})
    run = run.model_copy(update={"hardware": run.hardware.model_copy(update={"device": "cuda"})})
    record = tiny.launch(run, scene, tmp_path / "run")
    assert record.status == "degraded" and record.failure.cause == "allocation_mismatch"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_ranks_over_nccl(kind, tmp_path):
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    run = tiny.spec("n1g2", strategy={"kind": kind})
    run = run.model_copy(update={"hardware": run.hardware.model_copy(update={"device": "cuda"})})
    record = tiny.launch(run, scene, tmp_path / "run")
    assert record.status == "ok", record.failure
    assert len({e["device"] for e in tiny.events(tmp_path / "run", "start")}) == 2
