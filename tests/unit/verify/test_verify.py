"""`dist3dgs verify`: each check on conditions that it must see."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from dist3dgs.cli import main
from dist3dgs.config.matrix import load_study
from dist3dgs.files import sha256
from dist3dgs.launch import gsplat_build
from dist3dgs.scenes.pack import PackedScene
from dist3dgs.slurm.site import Site
from dist3dgs.verify import gpus, machine, software, storage
from dist3dgs.verify.setup import Result, Setup
from tests.unit.helpers import tiny

#: PyTorch for CUDA 12.8 on a machine where it sees its GPUs.
CUDA = {
    "python": "3.11.7", "torch": "2.11.0+cu128", "cuda": "12.8", "error": None, "available": True, "nccl": True,
    "gloo": True, "dist3dgs": "0.1.0", "architectures": ["sm_80", "sm_90", "compute_90"],
}  # fmt: skip


@pytest.fixture
def folder(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder, to which the process moves; home and temporary files have folders of their own."""
    (tmp_path / "study").mkdir()
    shutil.copytree(repository / "config", tmp_path / "study/config")
    monkeypatch.chdir(tmp_path / "study")
    for name in ("HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in (
        "XDG_CACHE_HOME",
        "DIST3DGS_KERNEL_CACHE",
        "CUDA_HOME",
        "SLURM_JOB_ID",
        "TORCH_CUDA_ARCH_LIST",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "HOME/extensions"))
    return tmp_path / "study"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`program(name, shell)` puts an executable on PATH, which has nothing else but a shell's own."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def make(name: str, shell: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{shell}\n")
        (programs / name).chmod(0o755)

    return make


def setup(device: str = "auto", overlay: str = "", torch: dict | None = None, **options) -> Setup:
    """A setup whose study has that device, with other settings of the study laid over it."""
    Path("overlay.yaml").write_text(f"hardware: {{device: {device}}}\n{overlay}\n")
    s = Setup(load_study(Path("config"), [Path("overlay.yaml")]), **options)
    if torch is not None:
        s.torch = torch
    return s


def only(results) -> Result:
    (result,) = results
    assert result.status == "ok" or result.fix, "what is wrong comes with what to do"
    return result


def nvidia_smi(*gpus: str, cuda: str = "13.0") -> str:
    """An nvidia-smi that lists these GPUs (name, driver, capability), of a driver that supports this CUDA."""
    rows = "\\n".join(gpus)
    return f"case \"$*\" in *query-gpu*) printf '{rows}\\n';; *) echo '| CUDA Version: {cuda} |';; esac"


H100 = "NVIDIA H100 80GB HBM3, 580.65.06, 9.0"


@pytest.mark.slow
def test_all_of_it_without_a_network(folder, repository):
    """Nothing is downloaded, nothing is left, and nothing of it computes on a GPU."""
    shutil.copy(repository / "requirements.lock", folder)
    argv = [sys.executable, "-m", "dist3dgs.cli", "verify", "--json", "--full"]
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0:
        argv = ["unshare", "-n", *argv]
    before = {p for p in folder.parent.rglob("*")}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    value = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    found = {r["check"]: r["status"] for r in value["checks"]}
    assert {
        "python",
        "packages",
        "torch",
        "driver",
        "slurm",
        "disk",
        "shared memory",
        "folders",
    } <= found.keys()
    assert found["torch"] == "ok" and "fail" not in found.values()
    assert {p for p in folder.parent.rglob("*")} == before


@pytest.mark.slow
def test_a_mistake_in_the_config_is_a_line_among_others(folder, capsys):
    Path("config/config.yaml").write_text("scenes: [nowhere]\n")
    status = main(["verify", "--profile", "none.yaml"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 1
    assert any(line.startswith("fail  config") for line in lines) and any("fix: " in line for line in lines)
    assert any(line.startswith("ok    torch") for line in lines)


def test_an_old_python(monkeypatch):
    assert only(software.check_python(Setup())).status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert only(software.check_python(Setup())).status == "fail"


def test_packages_that_are_missing_or_not_those_of_the_lock(folder, tmp_path, monkeypatch):
    assert only(software.check_packages(Setup())).status == "ok"
    Path("requirements.lock").write_text(
        "numpy==1.0\n    # via dist3dgs\npyyaml==" + version("pyyaml") + "\n"
    )
    result = only(software.check_packages(Setup()))
    assert result.status == "warn" and "numpy" in result.text and "yaml" not in result.text
    other = tmp_path / "site/dist3dgs-0.1.0.dist-info"
    other.mkdir(parents=True)
    needs = (
        "Requires-Dist: no-such-package>=1\nRequires-Dist: numpy<1\nRequires-Dist: absent; extra == 'dev'\n"
    )
    (other / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist3dgs\nVersion: 0.1.0\n{needs}")
    monkeypatch.syspath_prepend(str(other.parent))
    result = only(software.check_packages(Setup()))
    assert result.status == "fail" and "no-such-package" in result.text and "numpy" in result.text
    assert "absent" not in result.text


@pytest.mark.slow
def test_an_image_that_cannot_be_opened(folder, program):
    program("apptainer", "echo 'FATAL: could not open image x.sif' >&2; exit 255")
    result = only(software.check_torch(Setup(site=Site(image="x.sif")).start()))
    assert result.status == "fail" and "could not open image" in result.text
    program("apptainer", f'shift 2; shift; exec {sys.executable} "$@"')
    result = only(software.check_torch(Setup(site=Site(image="x.sif")).start()))
    assert result.status == "ok" and "x.sif" in result.text


def test_no_container_program(folder, program):
    result = only(software.check_torch(Setup(site=Site(image="x.sif")).start()))
    assert result.status == "fail" and "apptainer" in result.text


@pytest.mark.parametrize(
    "smi, torch, device, status, words",
    [
        (nvidia_smi(H100), {}, "auto", "ok", "1 x NVIDIA H100"),
        (nvidia_smi(H100, H100), {}, "auto", "ok", "2 x NVIDIA H100"),
        (nvidia_smi(H100), {"cuda": None, "torch": "2.11.0+cpu"}, "auto", "fail", "CPU build"),
        (nvidia_smi(H100, cuda="11.8"), {}, "auto", "fail", "supports CUDA 11.8"),
        (nvidia_smi(H100, cuda="12.2"), {}, "cuda", "ok", "driver 580"),
        (nvidia_smi(H100), {"available": False, "error": "unknown error"}, "auto", "fail", "unknown error"),
        (nvidia_smi(H100), {"nccl": False}, "auto", "fail", "NCCL"),
        (nvidia_smi(H100), {}, "cpu", "ok", "not needed"),
        ("exit 9", {}, "auto", "ok", "CPU"),
        ("exit 9", {}, "cuda", "fail", "nvidia-smi finds none"),
    ],
)
def test_pytorch_against_the_driver(folder, program, smi, torch, device, status, words):
    program("nvidia-smi", smi)
    *_, result = gpus.check_driver(setup(device, torch=CUDA | torch))
    assert result.status == status and words in result.text


def test_a_job_that_was_given_no_gpu(folder, program, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert only(gpus.check_driver(setup(torch=CUDA))).status == "fail"
    assert only(gpus.check_driver(setup(torch=CUDA, site=Site(gpu_request="none")))).status == "ok"


def built_extension(folder: Path) -> Path:
    """gsplat's extension as it is noted once it was seen to load."""
    library = folder / "gsplat_cuda/gsplat_cuda.so"
    library.parent.mkdir(parents=True)
    library.touch()
    note = json.dumps({"library": str(library), "architectures": ["8.0"]})
    (folder / f"{gsplat_build.build_prefix()}-8.0.ready").write_text(note)
    return library


def test_architectures_of_gpus_and_builds(folder, program, monkeypatch):
    program("nvidia-smi", nvidia_smi(H100))
    assert only(gpus.check_architectures(setup(torch=CUDA))).status == "ok"
    result = only(gpus.check_architectures(setup(torch=CUDA | {"architectures": ["sm_80", "sm_100"]})))
    assert result.status == "fail" and "9.0" in result.text
    for has in (["sm_90"], ["compute_80"], ["sm_90a"]):
        assert only(gpus.check_architectures(setup(torch=CUDA | {"architectures": has}))).status == "ok"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;8.6")
    assert only(gpus.check_architectures(setup(torch=CUDA))).status == "fail"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX")
    assert only(gpus.check_architectures(setup(torch=CUDA))).status == "ok"
    built_extension(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    program("cuobjdump", "case $1 in *elf) echo 'ELF file    1: gsplat_cuda.1.sm_80.cubin';; esac")
    result = only(gpus.check_architectures(setup(torch=CUDA)))
    assert (
        result.status == "fail"
        and "sm_80" in result.text
        and "dist3dgs.launch.gsplat_build" in (result.fix or "")
    )
    program("cuobjdump", "case $1 in *elf) echo 'ELF file    1: gsplat_cuda.1.sm_90.cubin';; esac")
    assert only(gpus.check_architectures(setup(torch=CUDA))).status == "ok"
    assert not list(gpus.check_architectures(setup("cpu", torch=CUDA)))


def test_what_gsplat_is_compiled_with(folder, program, monkeypatch, tmp_path):
    program("nvidia-smi", nvidia_smi(H100))
    monkeypatch.setattr(gsplat_build, "toolkit", lambda environ=None: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none/python"))  # no ninja beside it
    result = only(gpus.check_compiler(setup(torch=CUDA)))
    assert result.status == "fail" and all(name in result.text for name in ("nvcc", "g++", "ninja"))
    for name in ("g++", "ninja"):
        program(name, "true")
    (tmp_path / "toolkit/bin").mkdir(parents=True)
    monkeypatch.setattr(gsplat_build, "toolkit", lambda environ=None: tmp_path / "toolkit")
    program("../toolkit/bin/nvcc", "echo 'Cuda compilation tools, release 11.8, V11.8.89'")
    result = only(gpus.check_compiler(setup(torch=CUDA)))
    assert result.status == "fail" and "11.8" in result.text and "12.8" in result.text
    program("../toolkit/bin/nvcc", "echo 'Cuda compilation tools, release 12.4, V12.4.99'")
    result = only(gpus.check_compiler(setup(torch=CUDA)))
    assert result.status == "warn" and "not built" in result.text
    built_extension(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    assert only(gpus.check_compiler(setup(torch=CUDA))).status == "ok"
    assert only(gpus.check_compiler(setup("cpu", torch=CUDA))).status == "ok"


@pytest.mark.parametrize(
    "said, status",
    [
        ("slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)", "fail"),
        ("scontrol: fatal: Could not establish a configuration source", "warn"),
    ],
)
def test_a_slurm_that_does_not_answer(folder, program, said, status):
    assert only(machine.check_slurm(setup())).status == "ok", "none is here"
    for name in ("squeue", "sbatch", "sinfo", "scontrol"):
        program(name, f"echo '{said}' >&2; exit 1")
    result = only(machine.check_slurm(setup()))
    assert result.status == status and said in result.text
    several = setup(overlay="layouts: [n2g1]")
    assert only(machine.check_network(several)).status == "warn"


def test_a_plugin_that_is_not_the_tested_one(folder):
    assert only(software.check_plugin(Setup())).status == "ok"
    Path("requirements.lock").write_text("snakemake-executor-plugin-slurm==0.0.1\n")
    result = only(software.check_plugin(Setup()))
    assert result.status == "warn" and "snakemake-executor-plugin-slurm==0.0.1" in (result.fix or "")


def test_an_interface_that_is_not_there(folder, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    result = only(machine.check_network(setup()))
    assert result.status == "fail" and "GLOO_SOCKET_IFNAME=nowhere0" in result.text
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert only(machine.check_network(setup())).status == "ok"


@pytest.fixture
def small(tmp_path: Path):
    """A file system of 8 MiB, where we may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    argv = [str(mount), "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if mount is None or umount is None or subprocess.run(argv, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run([umount, folder], check=True)


def test_shared_memory(folder, small):
    assert only(machine.check_shared_memory(setup("cpu", shm=small))).status == "ok", "Gloo does without"
    result = only(machine.check_shared_memory(setup("cuda", shm=small)))
    assert result.status == "fail" and "8 MiB" in result.text
    assert only(machine.check_shared_memory(setup(shm=folder / "none"))).status == "fail"


def test_a_disk_without_room(folder, small):
    assert {r.status for r in storage.check_disk(setup())} == {"ok"}
    results = list(storage.check_disk(setup(overlay=f"results: {small}/results")))
    assert [r.status for r in results].count("fail") == 1 and len(results) > 1
    (failed,) = (r for r in results if r.status == "fail")
    assert str(small) in failed.text and "max_gaussians" not in failed.text
    # Enough for each point and not for all of them; what has a record is written already.
    points = [spec.point for spec in setup().study.specs()]
    one = storage.run_bytes(setup().study.specs()[0])
    subprocess.run(["mount", "-o", f"remount,size={one * 3 // 2}", small], check=True)
    assert "warn" in {r.status for r in storage.check_disk(setup(overlay=f"results: {small}/results"))}
    record = points[0].folder(small / "results") / "record.json"
    record.parent.mkdir(parents=True)
    record.touch()
    assert {r.status for r in storage.check_disk(setup(overlay=f"results: {small}/results"))} == {"ok"}


@pytest.mark.slow
def test_a_run_writes_no_more_than_was_told(tmp_path):
    run = tiny.spec(steps=60, densify={"kind": "none"})
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    assert tiny.launch(run, scene, tmp_path / "run").status == "ok"
    checkpoints = [p.stat().st_size for p in (tmp_path / "run/checkpoints").iterdir()]
    told = storage.run_bytes(run, num_points=200) - storage.OTHER_BYTES
    ply = (tmp_path / "run/point_cloud.ply").stat().st_size
    assert len(checkpoints) == run.train.keep_checkpoints
    # Headers apart, of some kilobytes each.
    assert sum(checkpoints) + max(checkpoints) + ply == pytest.approx(told, rel=0.05)


def test_packed_scenes(folder):
    assert "none packed" in only(storage.check_scenes(setup())).text
    path = Path("data/builtin/scene.safetensors")
    path.parent.mkdir(parents=True)
    tiny.write_tiny(path)
    assert only(storage.check_scenes(setup())).status == "warn", "nothing says what it should be"
    digest = PackedScene.open(path).digest
    (path.parent / "ingest.json").write_text(json.dumps({"digest": digest}))
    for full in (False, True):
        assert only(storage.check_scenes(setup(full=full))).status == "ok"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert only(storage.check_scenes(setup())).status == "ok", "headers alone"
    assert only(storage.check_scenes(setup(full=True))).status == "fail"
    path.write_bytes(whole[:-1])
    assert only(storage.check_scenes(setup())).status == "fail"
    path.write_bytes(whole)
    (path.parent / "ingest.json").write_text(json.dumps({"digest": "0" * 64}))
    assert only(storage.check_scenes(setup())).status == "fail", "of another ingestion"


def test_archives(folder):
    assert not list(storage.check_archives(setup()))
    archive = Path("data/archives/scenes.zip")
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"whole")
    entry = {"num_bytes": 5, "sha256": sha256(archive)}
    absent = {"num_bytes": 1, "sha256": "00"}
    lock = {"https://example.org/scenes.zip": entry, "https://example.org/absent.zip": absent}
    Path("config/scenes.lock.yaml").write_text(json.dumps(lock))
    assert only(storage.check_archives(setup(full=True))).status == "ok"
    archive.write_bytes(b"other")
    assert only(storage.check_archives(setup())).status == "ok", "sizes alone"
    assert only(storage.check_archives(setup(full=True))).status == "fail"
    archive.write_bytes(b"half")
    assert only(storage.check_archives(setup())).status == "fail"
    Path("config/scenes.lock.yaml").write_text("[")
    assert only(storage.check_archives(setup())).status == "fail"


@pytest.mark.parametrize(
    "variable, status",
    [("HOME", "warn"), ("XDG_CACHE_HOME", "fail"), ("DIST3DGS_KERNEL_CACHE", "warn"), ("TMPDIR", "fail")],
)
def test_folders_that_cannot_be_written(folder, monkeypatch, variable, status):
    """A file in a folder's place: root writes everywhere else."""
    assert only(storage.check_folders(setup("cpu"))).status == "ok"
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv(variable, str(folder / "file/below"))
    results = list(storage.check_folders(setup("cpu")))
    # The kernels' folder is in the cache.
    assert len(results) == 1 + (variable == "XDG_CACHE_HOME")
    assert results[0].status == status and str(folder / "file") in results[0].text and results[0].fix


def test_results_that_cannot_be_written(folder):
    Path("results").touch()
    result = only(storage.check_folders(setup("cpu")))
    assert result.status == "fail" and "results" in result.text
    Path(".snakemake").touch()
    assert len(list(storage.check_folders(setup("cpu")))) == 2
