"""gsplat's trainer beside ours: a program of a few lines stands in for it."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dist3dgs.bench import gpu
from dist3dgs.bench.simple_trainer import PROGRAM, compare, evaluations, read_curve, run_theirs, seconds_to
from dist3dgs.errors import UserError
from dist3dgs.launch import gsplat_build

#: Writes what simple_trainer.py does, at the steps that it is told.
PROGRAM_TEXT = """
import json, pathlib, sys
args = sys.argv[1:]
# disable_video
assert args[0] == "default" and "--disable-viewer" in args and "--disable-video" in args
value = lambda name: args[args.index(name) + 1]
assert pathlib.Path(value("--data-dir")).is_absolute() and value("--test-every") == "8"
first = args.index("--eval-steps") + 1
stats = pathlib.Path(value("--result-dir"), "stats")
stats.mkdir()
for step in map(int, args[first : args.index("--save-steps")]):
    name = f"step{step - 1:04d}"
    (stats / f"train_{name}_rank0.json").write_text(json.dumps({"ellipse_time": step / 100, "num_GS": 10 * step}))
    (stats / f"val_{name}.json").write_text(json.dumps({"psnr": 20 + step / 10, "ssim": 0.5, "lpips": 0.3}))
"""


def write_program(repository: Path, text: str = PROGRAM_TEXT) -> Path:
    program = repository / PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text(text)
    return repository


def test_both_evaluate_at_the_same_steps():
    assert evaluations(7000) == list(range(700, 7001, 700))
    assert evaluations(6)[-1] == 6 and evaluations(1) == [1]


def test_theirs_is_run_as_it_is_and_its_files_are_read(tmp_path):
    curve = run_theirs(write_program(tmp_path), tmp_path, 4, 100)
    assert [point["step"] for point in curve] == evaluations(100)
    assert curve[-1] == pytest.approx(
        {"step": 100, "s": 1.0, "psnr": 30, "gaussians": 1000, "lpips": 0.3}, abs=0.1
    )


def test_theirs_trains_on_one_gpu_as_ours_does(tmp_path, monkeypatch):
    """It starts a rank on each GPU that it sees, with a batch of as many images."""
    text = "import os\nassert os.environ['CUDA_VISIBLE_DEVICES'] == '{}'" + PROGRAM_TEXT
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert run_theirs(write_program(tmp_path / "a", text.replace("{}", "3", 1)), tmp_path, 1, 10)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert run_theirs(write_program(tmp_path / "b", text.replace("{}", "0", 1)), tmp_path, 1, 10)


@pytest.mark.slow
def test_theirs_runs_on_the_extension_that_we_built(tmp_path, monkeypatch):
    """gsplat would compile its own in 1,000 s of processor time, and from the start after each time limit."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "built.py").write_text("answer = 42")
    note = json.dumps({"library": str(tmp_path / "built.py"), "architectures": []})
    (tmp_path / f"{gsplat_build.build_prefix()}-any.ready").write_text(note)
    text = (
        "from gsplat import csrc\nimport beside\nassert __name__ == '__main__' and csrc.answer == 42"
        + PROGRAM_TEXT
    )
    repository = write_program(tmp_path / "gsplat", text)
    (repository / PROGRAM).with_name("beside.py").touch()  # the examples import each other
    assert run_theirs(repository, tmp_path, 1, 10, with_our_build=True)


def test_a_program_that_fails_or_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="no checkout of gsplat"):
        run_theirs(tmp_path, tmp_path, 1, 10)
    with pytest.raises(UserError, match="No module named 'viser_of_theirs'"):
        run_theirs(write_program(tmp_path, "import viser_of_theirs"), tmp_path, 1, 10)


def test_seconds_of_evaluations_are_taken_off(tmp_path):
    for i, step in enumerate((99, 199)):
        train, val = tmp_path / f"train_step{step:04d}_rank0.json", tmp_path / f"val_step{step:04d}.json"
        train.write_text(json.dumps({"ellipse_time": 50.0 * (i + 1), "num_GS": 5}))
        val.write_text(json.dumps({"psnr": 20.0 + i}))
        os.utime(train, (1000 + 50 * i, 1000 + 50 * i))
        os.utime(val, (1020 + 50 * i, 1020 + 50 * i))
    assert [point["s"] for point in read_curve(tmp_path)] == [50.0, 80.0]
    with pytest.raises(UserError, match="no evaluations"):
        read_curve(tmp_path / "nothing")


def test_equal_psnr_is_the_best_that_both_reach():
    theirs = [{"s": 10.0, "psnr": 20.0}, {"s": 30.0, "psnr": 28.0}]
    ours = [{"s": 5.0, "psnr": 22.0}, {"s": 10.0, "psnr": 26.0}]
    assert compare(theirs, ours) == {"psnr": 26.0, "theirs_s": 25.0, "ours_s": 10.0, "speedup": 2.5}
    assert seconds_to(theirs, 29.0) is None and seconds_to(theirs, 15.0) == 10.0


def test_what_was_not_given_is_left_out_with_what_to_give(tmp_path, monkeypatch):
    monkeypatch.delenv("DIST3DGS_LPIPS", raising=False)
    args = gpu.parser().parse_args([])
    assert "fetch-weights" in str(gpu.left_out("lpips", args)) and gpu.left_out("training", args) is None
    for stage in ("simple_trainer", "ours"):
        assert "GSPLAT=" in str(gpu.left_out(stage, args))
        args_given = gpu.parser().parse_args(["--repository", "a", "--colmap", "b"])
        assert gpu.left_out(stage, args_given) is None


def test_lpips_is_compared_between_device_and_cpu(tmp_path, monkeypatch):
    channels = [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)]
    weights = {f"conv{i}.weight": torch.randn(b, a, k, k) * 0.05 for i, (a, b, k) in enumerate(channels)}
    weights |= {f"conv{i}.bias": torch.zeros(b) for i, (_, b, _) in enumerate(channels)}
    weights |= {f"lin{i}.weight": torch.rand(1, b, 1, 1) for i, (_, b, _) in enumerate(channels)}
    save_file(weights, tmp_path / "lpips.safetensors")
    monkeypatch.setenv("DIST3DGS_LPIPS", str(tmp_path / "lpips.safetensors"))
    args = gpu.parser().parse_args(["--device", "cpu", "--size", "32", "24"])
    assert gpu.left_out("lpips", args) is None
    result = gpu.lpips_stage(args)
    assert result["cpu"] > 0 and result["difference"] == 0
