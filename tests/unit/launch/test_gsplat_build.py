"""gsplat's extension is built by one process at a time, before the ranks; a gsplat of our own stands in for it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist3dgs.config.matrix import spec_json
from dist3dgs.launch import gsplat_build
from tests.unit.helpers import tiny

#: As gsplat 1.5.3 in what matters: who comes while another builds, spoils it.
BACKEND = """
import os, pathlib, time, types
folder = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"], "gsplat_cuda")
library, busy = folder / "gsplat_cuda.so", folder / "busy"
if {built!r} and not library.exists():
    folder.mkdir(parents=True, exist_ok=True)
    if busy.exists():
        raise RuntimeError("Error building extension 'gsplat_cuda': two at once")
    busy.touch(); time.sleep(1.0); busy.unlink()
    (folder / "builds").open("a").write("x")
    library.touch()
if {fails!r}:
    raise RuntimeError("Error building extension 'gsplat_cuda'")
_C = types.SimpleNamespace(__file__=str(library)) if {built!r} else None
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A gsplat first on the path of child processes; returns a function that says how its import goes."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'fake'}:{os.environ.get('PYTHONPATH', '')}")

    def make(*, built: bool = True, fails: bool = False) -> Path:
        package = tmp_path / "fake/gsplat/cuda"
        package.mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "_backend.py").write_text(BACKEND.format(built=built, fails=fails))
        return tmp_path / "built"

    return make


COMMAND = [sys.executable, "-m", gsplat_build.MODULE]


@pytest.mark.slow
def test_many_processes_build_once(fake):
    built = fake()
    processes = [subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [p.communicate(timeout=60)[1] for p in processes]
    assert [p.returncode for p in processes] == [0] * 4, said
    assert (built / "gsplat_cuda/builds").read_text() == "x"


@pytest.mark.slow
def test_what_was_built_is_not_imported_again(fake):
    built = fake()
    assert not gsplat_build.is_ready()
    subprocess.run(COMMAND, check=True, capture_output=True)
    assert gsplat_build.is_ready()
    (built / "gsplat_cuda/gsplat_cuda.so").unlink()
    assert not gsplat_build.is_ready()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"built": False}, "CUDA toolkit to build it was not found"),
        ({"fails": True}, "Error building extension"),
    ],
)
def test_no_compiler_and_a_failed_build_say_what_to_set(fake, how, says):
    fake(**how)
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    for word in (
        "CUDA_HOME",
        "TORCH_EXTENSIONS_DIR",
        "TORCH_CUDA_ARCH_LIST",
        "python -m dist3dgs.launch.gsplat_build",
    ):
        assert word in done.stderr
    assert not gsplat_build.is_ready()


@pytest.mark.slow
def test_a_build_that_takes_too_long_ends_with_its_compilers(tmp_path):
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid}; wait"
    with (tmp_path / "log").open("wb") as log:
        status = gsplat_build.prepare_in_child(["bash", "-c", script], os.environ, log, timeout_s=1.0)
    assert status == 124 and b"took more than 1 s" in (tmp_path / "log").read_bytes()
    end = time.monotonic() + 10
    state = Path(f"/proc/{int(pid.read_text())}/stat")
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.slow
def test_a_launch_on_gpus_builds_before_any_rank_and_records_what_is_missing(fake, tmp_path, monkeypatch):
    fake(built=False)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho GPU-0\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = tiny.spec("n1g1")
    run = run.model_copy(update={"hardware": run.hardware.model_copy(update={"device": "auto"})})
    assert "auto" in spec_json(run)
    record = tiny.launch(run, tiny.write_tiny(tmp_path / "scene.safetensors"), tmp_path / "out")
    assert record.status == "failed" and record.failure is not None
    assert record.failure.cause == "extension_build", record.failure
    assert "CUDA_HOME" in tiny.log(tmp_path / "out") and tiny.events(tmp_path / "out", "start") == []
