"""`make gpu-check` where there is no GPU, or only seems to be one: which Python, which scene, what it says."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from dist3dgs.bench import gpu, needs
from dist3dgs.errors import UserError
from dist3dgs.launch import gsplat_build
from dist3dgs.scenes.colmap.cameras import ColmapCamera
from dist3dgs.splats.render import get_renderer
from tests.unit.bench.test_simple_trainer import write_program
from tests.unit.helpers import tiny
from tests.unit.helpers.colmap_files import ring_model, write_bin

SEES = '#!/bin/sh\ncase "$2" in *cuda.is_available*) exit {};; esac\necho "$0 $@" >> {}\n'


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def script(repository: Path, folder: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """scripts/gpu-check.sh with the programs of `folder`/own and `folder`/system first on PATH, as make has it."""
    path = f"{folder}/own:{folder}/system:/usr/bin:/bin"
    env = {"PATH": path, "PYTHON": "python3", "BIN": f"{folder}/own", "HOME": str(folder)} | environ
    argv = ["bash", str(repository / "scripts/gpu-check.sh")]
    return subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_python_outside_is_taken_where_its_torch_sees_the_gpu(repository, tmp_path):
    calls = tmp_path / "calls"
    executable(tmp_path / "own/python3", SEES.format(1, calls))
    system = executable(tmp_path / "system/python3", SEES.format(0, calls))
    done = script(repository, tmp_path, FOX="some/fox")
    assert done.returncode == 0, done.stderr
    assert calls.read_text().splitlines() == [
        f"{system} -m dist3dgs.bench.needs",
        f"{system} -m dist3dgs.bench.needs",
        f"{system} -m dist3dgs.bench.gpu --scene some/fox --out docs/benchmarks/gpu-check.json",
    ]
    assert not (tmp_path / ".venv-cuda").exists()


def test_without_a_gpu_nothing_is_made(repository, tmp_path):
    for name in ("own", "system"):
        executable(tmp_path / name / "python3", SEES.format(1, tmp_path / "calls"))
    executable(tmp_path / "system/nvidia-smi", "#!/bin/sh\nexit 9\n")
    done = script(repository, tmp_path)
    assert done.returncode == 2 and "no NVIDIA GPU here" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_a_gpu_that_no_torch_sees_gets_an_environment_with_the_cuda_build(repository, tmp_path):
    executable(tmp_path / "system/python3", SEES.format(1, tmp_path / "calls"))
    executable(tmp_path / "system/nvidia-smi", "#!/bin/sh\nexit 0\n")
    make = "mkdir -p .venv-cuda/bin\nln -s /bin/true .venv-cuda/bin/python\n"
    executable(tmp_path / "system/make", f'#!/bin/sh\necho "make $@" >> {tmp_path}/calls\n{make}')
    done = script(repository, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text() == "make setup TORCH=cuda VENV=.venv-cuda\n"


def test_missing_packages_are_listed_with_the_line_that_installs_them(capsys, monkeypatch):
    assert needs.missing() == []
    monkeypatch.setitem(needs.NEEDS, "no_such_module", "no-such-package>=1")
    assert needs.main() == 2
    assert f"{sys.executable} -m pip install 'no-such-package>=1'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_list_is_what_an_import_of_the_check_needs(repository):
    """Top-level packages outside the standard library, from what is loaded after everything it uses was imported."""
    code = (
        "import sys, dist3dgs.bench.gpu, dist3dgs.splats.cpu.renderer, dist3dgs.splats.render.cuda\n"
        "for n, m in list(sys.modules.items()):\n"
        "    if '.' not in n and 'site-packages' in (getattr(m, '__file__', None) or ''): print(n)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    comes_along = {
        "torch",
        "torchgen",
        "functorch",
        "sympy",
        "mpmath",
        "pydantic_core",
        "annotated_types",
        "typing_extensions",
    }
    comes_along |= {"typing_inspection", "_distutils_hack", "numpy"}
    assert set(done.stdout.split()) - comes_along <= {*needs.NEEDS, *needs.NEEDS_OF_GSPLAT}
    project = (repository / "pyproject.toml").read_text()
    assert all(f'"{r}"' in project for r in needs.NEEDS.values())
    assert needs.NEEDS["gsplat"] == "gsplat>={},<{}".format(*gsplat_build.GSPLAT_VERSIONS)


def test_gsplat_needs_what_it_imports_to_compile():
    """Its backend's imports outside the standard library, whatever its requirements declare."""
    found = find_spec("gsplat")
    assert found is not None and found.origin is not None
    tree = ast.parse((Path(found.origin).parent / "cuda/_backend.py").read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"torch"}
    assert outside == {"gsplat", "packaging", "rich"}
    assert outside <= {*needs.NEEDS, *needs.NEEDS_OF_GSPLAT}


@pytest.mark.parametrize(
    ("installed", "met"), [("1.5.3", True), ("1.5.3+pt24cu124", True), ("1.5.2", False), ("1.6.0", False)]
)
def test_versions_are_checked_and_not_only_presence(monkeypatch, installed, met):
    monkeypatch.setattr(needs, "version", lambda name: installed)
    assert (needs.missing({"gsplat": needs.NEEDS["gsplat"]}) == []) is met


def test_no_gpu_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2 and "nothing was checked" in capsys.readouterr().err


def test_which_scene_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gpu.packed(None) is None
    scene = tiny.write_tiny(tmp_path / "data/fox/scene.safetensors")
    assert gpu.packed(None) == gpu.FOX and gpu.packed(scene) == scene
    with pytest.raises(UserError, match=r"packed scene.*photographs"):
        gpu.packed(tmp_path / "nowhere")
    (tmp_path / "photos/images").mkdir(parents=True)
    (tmp_path / "photos/images/0.jpg").touch()
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pycolmap"):
        gpu.packed(tmp_path / "photos")


def test_photographs_are_ingested_by_our_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox/0.JPG").touch()
    made = []
    monkeypatch.setattr("dist3dgs.scenes.ingest.ingest", lambda *a: made.append(a))
    assert gpu.packed(tmp_path / "fox") == gpu.FOX
    ((source, folder, settings),) = made
    assert (source.name, source.kind, folder) == ("fox", "images", Path("data/fox"))
    assert settings.max_width_px == 270


@pytest.mark.parametrize("num_gaussians", [0, 300])
@pytest.mark.parametrize("case", gpu.CASES, ids=lambda case: gpu.name_of(*case))
def test_the_cpu_side_of_the_comparison(case, num_gaussians):
    drawn = gpu.draw(get_renderer("cpu"), torch.device("cpu"), num_gaussians, *case, (0, 1))
    assert {"image", "d means", "d shN"} <= drawn.keys() and ("d means2d, absolute" in drawn) == case[2]
    assert all(bool(t.isfinite().all()) for t in drawn.values())


def test_make_does_not_set_up_the_cpu_build_first(repository):
    environ = os.environ | {"MAKEFLAGS": ""}
    argv = ["make", "--no-print-directory", "-n", "gpu-check", "FOX=a b"]
    done = subprocess.run(argv, cwd=repository, env=environ, capture_output=True, text=True, check=True)
    assert "setup" not in done.stdout and 'FOX="a b"' in done.stdout


def test_carried_wheels_are_what_the_check_needs_with_the_versions_of_the_lock(repository):
    """Also what those need in turn, but not what PyTorch brings."""
    lock = (repository / "requirements.lock").read_text()
    pinned = {canonicalize_name(m[1]): m[0] for m in re.finditer(r"^([\w.-]+)==\S+", lock, re.MULTILINE)}
    todo, closure = [*needs.NEEDS.values(), *needs.NEEDS_OF_GSPLAT.values()], set()
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        marked = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if marked and name != "torch" and name not in closure:
            closure.add(name)
            todo += requires(requirement.name) or []
    listed = (repository / "scripts/gpu-wheels.txt").read_text().splitlines()
    assert [line for line in listed if not line.startswith("#")] == [pinned[name] for name in sorted(closure)]


def test_packages_that_a_bare_machine_lacks_come_from_the_carried_wheels(repository, tmp_path):
    calls = tmp_path / "calls"
    lacks = (
        'case "$*" in *bench.needs*) [ -d .gpu-packages ] || exit 2;; *"pip install"*) mkdir .gpu-packages;;\n'
        '*bench.gpu*) case "$PATH" in "$PWD/.gpu-packages/bin:"*);; *) exit 3;; esac;; esac\n'
    )
    executable(tmp_path / "system/python3", SEES.format(0, calls) + lacks)
    executable(tmp_path / "own/python3", SEES.format(1, calls))
    (tmp_path / "wheels").mkdir()
    done = script(repository, tmp_path)
    assert done.returncode == 0, done.stderr
    install = next(line for line in calls.read_text().splitlines() if "pip install" in line)
    assert (
        "--no-index" in install and "--target .gpu-packages" in install and "--find-links wheels" in install
    )
    assert calls.read_text().splitlines()[-1].endswith("docs/benchmarks/gpu-check.json")


def test_wheels_for_another_python_are_said(repository, tmp_path):
    fails = 'case "$*" in *bench.needs*|*"pip install"*) exit 2;; *version_info*) echo 3.12;; esac\n'
    system = executable(tmp_path / "system/python3", SEES.format(0, tmp_path / "calls") + fails)
    executable(tmp_path / "own/python3", SEES.format(1, tmp_path / "calls"))
    (tmp_path / "wheels").mkdir()
    done = script(repository, tmp_path)
    assert done.returncode == 2 and "make gpu-wheels FOR=3.12" in done.stderr
    system.write_text(system.read_text().replace('"pip install"', '"-m pip"'))
    done = script(repository, tmp_path)
    assert done.returncode == 2 and "has no pip" in done.stderr and "ensurepip" in done.stderr


def test_an_old_pytorch_or_python_is_said_and_no_wheels_are_installed_for_it(
    repository, tmp_path, capsys, monkeypatch
):
    old = 'case "$*" in *bench.needs*) echo too old >&2; exit 3;; esac\n'
    executable(tmp_path / "system/python3", SEES.format(0, tmp_path / "calls") + old)
    executable(tmp_path / "own/python3", SEES.format(1, tmp_path / "calls"))
    (tmp_path / "wheels").mkdir()
    done = script(repository, tmp_path)
    assert done.returncode == 2 and "too old" in done.stderr and "wheels" not in done.stderr
    assert "pip" not in (tmp_path / "calls").read_text()

    monkeypatch.setattr(needs, "version", lambda name: "2.9.1+cu130" if name == "torch" else "99")
    assert needs.main() == needs.UNFIT and "torch>=2.11" in capsys.readouterr().err
    monkeypatch.setattr(needs.sys, "version_info", (3, 10, 4))
    assert needs.main() == needs.UNFIT and "Python 3.10, expected 3.11" in capsys.readouterr().err
    project = (repository / "pyproject.toml").read_text()
    assert f'"{needs.PYTORCH}"' in project and 'requires-python = ">=3.11"' in project


REHEARSAL = ["--device", "cpu", "--preload", "tests.unit.helpers.gsplat_standin"]
REHEARSAL += ["--steps", "6", "--gaussians", "40", "--numbers", "40", "--size", "32", "24"]


@pytest.mark.slow
def test_a_rehearsal_without_gpu_from_build_to_steps_and_again(repository, tmp_path):
    """Over the stand-in of gsplat's extension: all stages, each in its own process; what is done is not done again."""
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    out = tmp_path / "check.json"
    argv = [sys.executable, "-m", "dist3dgs.bench.gpu", *REHEARSAL, "--scene", str(scene), "--out", str(out)]
    first = subprocess.run([*argv, "--stage", "build"], cwd=repository, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert list(json.loads(out.read_text())["stages"]) == ["build"]
    colmap = tmp_path / "colmap"
    model = ring_model(
        num_images=9, num_points=12, camera=ColmapCamera("PINHOLE", 32, 24, (27.0, 27.0, 16.0, 12.0))
    )
    write_bin(model, colmap / "sparse/0")
    (colmap / "images").mkdir()
    for i, (*_, name, _) in enumerate(model.images.values()):
        Image.new("RGB", (32, 24), (20 * i, 80, 90)).save(colmap / "images" / name)
    argv += [
        "--repository",
        str(write_program(tmp_path / "gsplat")),
        "--colmap",
        str(colmap),
        "--beside-steps",
        "2",
    ]
    second = subprocess.run(argv, cwd=repository, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "build: done before" in second.stderr
    result = json.loads(out.read_text())
    status = {name: stage["status"] for name, stage in result["stages"].items()}
    assert status == dict.fromkeys(gpu.STAGES, "ok") | {"lpips": "left out"}
    stages = {name: stage["result"] for name, stage in result["stages"].items() if "result" in stage}
    assert stages["agreement"]["agrees"] and len(stages["agreement"]["cases"]) == len(gpu.CASES) + 3
    assert stages["nccl"]["one rank"] == "ok" and stages["training"]["steps"] == 6
    for which in ("simple_trainer", "ours"):
        assert [point["step"] for point in stages[which]["curve"]] == [1, 2]
    assert result["equal_psnr"]["psnr"] <= 21 and result["equal_psnr"]["ours_s"] > 0
    assert stages["steps"]["40"]["step_s"] > 0 and stages["steps"]["40"]["kernels_us"]


def test_a_check_that_is_told_to_stop_stops_its_stage_first(tmp_path, monkeypatch):
    """A stage has a session of its own: it would go on, and hold the GPU."""
    before = signal.getsignal(signal.SIGTERM)
    pid = tmp_path / "pid"
    stage = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"

    class Stage(subprocess.Popen):
        def __init__(self, argv: list[str], **options) -> None:
            super().__init__([argv[0], "-c", stage], **options)

        def communicate(self, timeout: float):
            while not pid.exists() or not pid.read_text():
                time.sleep(0.02)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(gpu.subprocess, "Popen", Stage)
    monkeypatch.setattr(gpu, "describe_machine", dict)
    args = gpu.parser().parse_args([*REHEARSAL, "--stage", "build"])
    try:
        with pytest.raises(SystemExit, match="143"):
            gpu.check(args)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not Path("/proc", pid.read_text()).exists()


@pytest.mark.slow
def test_a_stage_that_takes_too_long_or_fails_is_noted_and_repeated(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    args = gpu.parser().parse_args([*REHEARSAL, "--scene", str(tmp_path / "none.safetensors")])
    monkeypatch.setitem(gpu.STAGES, "training", 0.3)
    assert gpu.run_stage("training", args)["status"] == "timed out"
    monkeypatch.setitem(gpu.STAGES, "training", 60.0)
    failed = gpu.run_stage("training", args)
    assert failed["status"] == "failed" and "none.safetensors" in failed["error"]
    now = {"code_digest": "a", "machine": {"gpu": "H100", "torch": "2"}}
    out = tmp_path / "check.json"
    out.write_text(json.dumps(now | {"stages": {"training": failed}}))
    assert gpu.kept_stages(out, now) == {"training": failed}
    assert gpu.kept_stages(out, now | {"code_digest": "b"}) == {}, "the code has changed"
    assert gpu.kept_stages(tmp_path / "none.json", now) == {}
