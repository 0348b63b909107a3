"""gsplat's extension is built by one process at a time, before the ranks; sources of a few lines stand in for its."""

import fcntl
import json
import os
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dist3dgs.config.matrix import spec_json
from dist3dgs.errors import UserError
from dist3dgs.launch import gsplat_build
from dist3dgs.monitoring.nvml import GpuIdentity
from tests.unit.helpers import tiny

MODULE = """
#include <Python.h>
extern "C" int answer();
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "gsplat_cuda", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit_gsplat_cuda() {
    PyObject *module = PyModule_Create(&definition);
    PyModule_AddIntConstant(module, "answer", answer());
    return module;
}
"""
#: A compiler that notes what it compiles, and waits for ever at a source whose name is in `hang`.
COMPILER = """#!/bin/sh
case "$*" in *" -c "*)
    for word in "$@"; do case "$word" in *.cpp) name=$(basename "$word") ;; esac; done
    echo "$name" >> {folder}/compiled
    if [ "$name" = "$(cat {folder}/hang 2>/dev/null)" ]; then sleep 60; fi
esac
exec g++ "$@"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A gsplat first on the path of child processes; returns a function that writes its sources."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'fake'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    (tmp_path / "c++").write_text(COMPILER.format(folder=tmp_path))
    (tmp_path / "c++").chmod(0o755)

    def make(answer: str = "return 42;", cuda: bool = False) -> Path:
        package = tmp_path / "fake/gsplat/cuda"
        (package / "csrc").mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").touch()
        (package / "ext.cpp").write_text(MODULE)
        (package / "csrc/answer.cpp").write_text(f'extern "C" int answer() {{ {answer} }}')
        if cuda:
            (package / "csrc/kernel.cu").touch()
        return tmp_path / "built"

    return make


COMMAND = [sys.executable, "-m", gsplat_build.MODULE]
LOADED = "from dist3dgs.launch import gsplat_build; gsplat_build.load(); from gsplat import csrc; print(csrc.answer)"


def compiled(folder: Path) -> list[str]:
    return sorted((folder / "compiled").read_text().split())


@pytest.mark.slow
def test_many_processes_build_once_and_load_without_a_compiler(fake, tmp_path, monkeypatch):
    built = fake()
    assert not gsplat_build.is_ready()
    processes = [subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [p.communicate(timeout=60)[1] for p in processes]
    assert [p.returncode for p in processes] == [0] * 3, said
    assert compiled(tmp_path) == ["answer.cpp", "ext.cpp"]
    assert gsplat_build.is_ready()
    # A rank on a node without ninja, compiler and toolkit.
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.stdout == "42\n", done.stderr
    (library,) = built.glob("*/gsplat_cuda.so")
    library.unlink()
    assert not gsplat_build.is_ready()


@pytest.mark.slow
def test_a_build_that_was_cut_short_continues(fake, tmp_path):
    fake()
    (tmp_path / "hang").write_text("ext.cpp")
    child = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not list((tmp_path / "built").glob("*/answer.o")):
        time.sleep(0.02)
    time.sleep(0.1)  # for ninja to write it down
    os.killpg(child.pid, 9)
    child.communicate()
    (tmp_path / "hang").unlink()
    assert list((tmp_path / "built").glob("*/lock")), "PyTorch's lock was left behind"
    assert subprocess.run(COMMAND, capture_output=True, timeout=60).returncode == 0
    assert compiled(tmp_path) == ["answer.cpp", "ext.cpp", "ext.cpp"]


@pytest.mark.slow
def test_ninja_is_found_beside_the_interpreter(fake, monkeypatch):
    fake()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({"cuda": True}, "CUDA toolkit to build it was not found"),
        ({"answer": "no C++"}, "Error building extension"),
    ],
)
def test_no_toolkit_and_a_failed_build_say_what_to_set(fake, tmp_path, monkeypatch, sources, says):
    fake(**sources)
    monkeypatch.setattr(gsplat_build, "toolkit", lambda *_: None)
    code = "import sys\nfrom dist3dgs.launch import gsplat_build as g\ng.toolkit = lambda *_: None\nsys.exit(g.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    for word in (
        "CUDA_HOME",
        "TORCH_EXTENSIONS_DIR",
        "TORCH_CUDA_ARCH_LIST",
        "python -m dist3dgs.launch.gsplat_build",
    ):
        assert word in done.stderr
    assert not gsplat_build.is_ready()


def nvcc(home: Path, release: str = "12.8") -> Path:
    for name in ("bin", "include"):
        (home / name).mkdir(parents=True)
    (home / "bin/nvcc").write_text(
        f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.9'\n"
    )
    (home / "bin/nvcc").chmod(0o755)
    return home


def test_a_script_that_calls_nvcc_does_not_hide_the_toolkit(tmp_path):
    """As where a distribution puts a wrapper into /usr/local/bin: PyTorch would take /usr/local for the toolkit."""
    real = nvcc(tmp_path / "real")
    (real / "include/cuda_runtime.h").touch()
    wrapper = nvcc(tmp_path / "usr")
    on_path = {"PATH": f"{wrapper}/bin"}
    assert gsplat_build.toolkit(on_path) != wrapper
    assert gsplat_build.toolkit(on_path | {"CUDA_HOME": str(real)}) == real
    (wrapper / "bin/nvcc").unlink()
    (wrapper / "bin/nvcc").symlink_to(real / "bin/nvcc")
    assert gsplat_build.toolkit(on_path) == real


@pytest.mark.parametrize(
    ("torchs", "architectures", "says"),
    [
        ("12.4", ["9.0"], None),
        ("13.0", ["9.0"], "first numbers must be the same"),
        (None, ["9.0"], "is a CPU build"),
        ("12.8", [], "no GPU is seen"),
    ],
)
def test_the_toolkit_is_compared_with_pytorch(tmp_path, monkeypatch, torchs, architectures, says):
    home = nvcc(tmp_path)
    (home / "include/cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr("torch.version.cuda", torchs)
    if says is None:
        gsplat_build.check_toolkit(architectures)
    else:
        with pytest.raises(UserError, match=says):
            gsplat_build.check_toolkit(architectures)


def test_a_build_is_for_the_gpus_it_has_code_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = tmp_path / "gsplat_cuda.so"
    library.touch()
    note = tmp_path / f"{gsplat_build.build_prefix()}-8.0.ready"
    note.write_text(json.dumps({"library": str(library), "architectures": ["8.0"]}))
    gpus = [GpuIdentity(0, "GPU-a", "8.6"), GpuIdentity(1, "GPU-b", "9.0")]
    monkeypatch.setattr(gsplat_build, "identities", lambda: gpus)
    assert gsplat_build.library() is None, "an H100 was added to the cluster of A100s"
    for entry in ("GPU-a", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", entry)
        assert gsplat_build.library() == library
    monkeypatch.setattr(gsplat_build, "identities", list)
    assert gsplat_build.library() == library, "no driver that tells"
    note.write_text("not a note")
    assert gsplat_build.library() is None


@pytest.mark.parametrize(
    ("listed", "found"),
    [(None, ["8.0", "9.0"]), ("", []), ("1", ["9.0"]), ("GPU-b4", ["9.0"]), ("GPU-b4f1-22", ["9.0"]),
     ("MIG-GPU-b4f1-22/1/0", ["8.0", "9.0"]), ("NoDevFiles", [])],
)  # fmt: skip
def test_which_gpus_are_compiled_for(monkeypatch, listed, found):
    """CUDA takes the beginning of a UUID; of an old driver's name of an instance any GPU may be meant."""
    gpus = [GpuIdentity(0, "GPU-a801-11", "8.0"), GpuIdentity(1, "GPU-b4f1-22", "9.0")]
    monkeypatch.setattr(gsplat_build, "identities", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gsplat_build.gpu_capabilities() == found


def test_a_list_of_architectures_without_this_machines_is_refused(monkeypatch):
    """Containers and profiles set it for all users; the ranks would end with "no kernel image is available"."""
    monkeypatch.setattr(gsplat_build, "gpu_capabilities", lambda: ["9.0"])
    gsplat_build.check_architectures(["7.0", "9.0+PTX"])
    with pytest.raises(UserError, match=r"7\.0;8\.0 leaves out compute capability 9\.0"):
        gsplat_build.check_architectures(["7.0", "8.0"])


@pytest.mark.slow
@pytest.mark.parametrize(("option", "says"), [([gsplat_build.HERE], "leaves out"), ([], "CPU build")])
def test_only_who_uses_it_here_needs_code_for_the_gpus_here(fake, tmp_path, monkeypatch, option, says):
    """A login node may have other GPUs than those that it builds for."""
    fake(cuda=True)
    home = nvcc(tmp_path / "toolkit")
    (home / "include/cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    code = "import sys\nfrom dist3dgs.launch import gsplat_build as g\ng.gpu_capabilities = lambda: ['9.0']\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(g.main())", *option], capture_output=True, text=True
    )
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_a_build_is_for_the_cuda_of_pytorch_and_the_processor(tmp_path, monkeypatch):
    """conda has one version of PyTorch for several CUDAs; an Arm node and its x86 login node share a home folder."""
    names = {gsplat_build.build_prefix()}
    (tmp_path / "version.py").write_text("cuda: Optional[str] = '11.1'\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(gsplat_build.importlib.util, "find_spec", lambda name: spec)
    names.add(gsplat_build.build_prefix())
    monkeypatch.setattr(gsplat_build.platform, "machine", lambda: "aarch64")
    names.add(gsplat_build.build_prefix())
    assert len(names) == 3 and sum("-cuda-11.1-" in name for name in names) == 2


def test_headers_of_condas_toolkit_are_found_by_the_cpp_compiler(tmp_path):
    """It has them below targets/, and libraries too, where nvcc looks; sources in C++ alone include them as well."""
    home = nvcc(tmp_path)
    target = home / "targets/x86_64-linux"
    (target / "include").mkdir(parents=True)
    (target / "lib").mkdir()
    (target / "include/cuda_runtime.h").touch()
    found = gsplat_build.environment({"CUDA_HOME": str(home), "PATH": "/usr/bin", "CPATH": "/mine"})
    assert found["CPATH"] == f"{target}/include:/mine" and found["LIBRARY_PATH"] == f"{target}/lib"
    (home / "include/cuda_runtime.h").touch()
    assert "CPATH" not in gsplat_build.environment({"CUDA_HOME": str(home), "PATH": "/usr/bin"})


@pytest.mark.slow
def test_a_build_of_another_user_in_a_shared_folder_is_waited_for(fake, monkeypatch):
    """Their lock cannot be written to, but held."""
    built = fake()
    built.mkdir()
    lock = built / "dist3dgs-gsplat.lock"
    refused = (
        "import pathlib, sys\nfrom dist3dgs.launch import gsplat_build\nopen_ = pathlib.Path.open\n"
        "def refuse(path, mode='r', *a, **k):\n"
        "    if path.name.endswith('.lock') and mode != 'r': raise PermissionError(13, 'not yours')\n"
        "    return open_(path, mode, *a, **k)\n"
        "pathlib.Path.open = refuse\nsys.exit(gsplat_build.main())"
    )
    with lock.open("a") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        child = subprocess.Popen([sys.executable, "-c", refused], stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        assert "another process builds" in child.stderr.readline()
        assert not list(built.glob("*/*.o"))
    assert child.communicate(timeout=60) and child.returncode == 0


@pytest.mark.parametrize(
    ("architecture", "runs"),
    [("9.0", True), ("8.0", False), ("8.0+PTX", True), ("9.0a", True), ("8.9a", False), ("10.0", False),
     ("Hopper", True)],
)  # fmt: skip
def test_which_code_runs_on_an_h100(architecture, runs):
    assert gsplat_build.covers([architecture], "9.0") is runs


@pytest.mark.parametrize(
    ("installed", "good"), [("1.5.3", True), ("1.5.3+pt24cu124", True), ("1.6.0", False)]
)
def test_a_gsplat_with_another_interface_is_refused(monkeypatch, installed, good):
    monkeypatch.setattr(gsplat_build, "version", lambda name: installed)
    if good:
        gsplat_build.check_version()
    else:
        with pytest.raises(UserError, match=r"gsplat>=1\.5\.3,<1\.6"):
            gsplat_build.check_version()


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
    fake(cuda=True)
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


#: Headers that the CPU build of PyTorch and a toolkit without its mathematical libraries lack: names alone.
HEADERS = {
    "c10/cuda/impl/cuda_cmake_macros.h": "#define C10_CUDA_BUILD_SHARED_LIBS",
    "cublas_v2.h": "typedef struct cublasContext* cublasHandle_t; typedef enum { CUBLAS_OK } cublasStatus_t;",
    "cublasLt.h": "typedef struct cublasLtContext* cublasLtHandle_t;",
    "cusparse.h": "typedef struct cusparseContext* cusparseHandle_t; typedef enum { CUSPARSE_OK } cusparseStatus_t;",
    "cusolverDn.h": "typedef struct cusolverDnContext* cusolverDnHandle_t; typedef enum { SOLVED } cusolverStatus_t;",
}


def sources_of_gsplat() -> list[Path]:
    """All files that a build compiles, relative to gsplat's folder `cuda`."""
    found = find_spec("gsplat")
    assert found is not None and found.origin is not None
    cuda = Path(found.origin).parent / "cuda"
    return sorted(
        path.relative_to(cuda)
        for path in (*cuda.glob("csrc/*.cu"), *cuda.glob("csrc/*.cpp"), cuda / "ext.cpp")
    )


#: The smallest kernel; all of them take 1,000 s, so they are compiled where DIST3DGS_KERNELS is `all`.
SMALLEST = Path("csrc/SphericalHarmonicsCUDA.cu")


@pytest.mark.slow
@pytest.mark.parametrize("source", sources_of_gsplat(), ids=str)
def test_the_toolkit_that_is_found_compiles_what_gsplat_is_made_of(source, tmp_path):
    """For an H100, against the headers of this PyTorch."""
    home = gsplat_build.toolkit()
    if home is None:
        pytest.skip("no CUDA toolkit here")
    if source != SMALLEST and os.environ.get("DIST3DGS_KERNELS") != "all":
        pytest.skip("all sources take 1,000 s: set DIST3DGS_KERNELS=all")
    found = find_spec("gsplat")
    assert found is not None and found.origin is not None
    cuda, pytorch = Path(found.origin).parent / "cuda", Path(torch.__file__).parent / "include"
    for name, text in HEADERS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#pragma once\n{text}\n")
    includes = [cuda / "include", cuda / "csrc/third_party/glm", pytorch, pytorch / "torch/csrc/api/include"]
    includes += [Path(sysconfig.get_paths()["include"]), tmp_path]
    argv = [
        home / "bin/nvcc",
        "-c",
        cuda / source,
        "-o",
        tmp_path / "kernel.o",
        "-arch=sm_90",
        "-O3",
        "-std=c++20",
    ]
    argv += ["-use_fast_math", "--expt-relaxed-constexpr", "-DTORCH_EXTENSION_NAME=gsplat_cuda"]
    done = subprocess.run([*argv, *(f"-I{path}" for path in includes)], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "kernel.o").stat().st_size > 0, done.stderr
