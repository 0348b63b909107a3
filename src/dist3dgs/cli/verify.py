"""`dist3dgs verify`: is this machine, or a node of the cluster, ready for the study? Nothing is downloaded or changed.

Each check is one function from a `Setup` to its results, listed in `CHECKS`. PyTorch is asked in a process of its own.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from packaging.version import Version

from ..config.matrix import Study, load_study
from ..config.models import RunSpec, Scene
from ..config.naming import Layout
from ..config.published_scenes import PUBLISHED
from ..errors import UserError
from ..files import sha256
from ..launch import commands, gsplat_build, node
from ..scenes.download.fetch import locked_archives
from ..scenes.pack import PackedScene, content_digest
from ..scenes.sources import LOCK_FILE
from ..slurm import client
from ..slurm.allocation import job_id, node_name, reachable
from ..slurm.partitions import read_partitions
from ..slurm.resources import layout_resources
from ..slurm.site import Site
from ..slurm.submission import explain, sbatch_argv
from ..units import format_bytes
from .cluster import site_of

#: Importing PyTorch takes minutes from a busy parallel file system.
PROBE_TIMEOUT_S = 300.0
#: Limit of the job of `--on-node`; it takes seconds.
NODE_RUNTIME_MIN, NODE_MEM_MB, NODE_CPUS = 10, 4000, 2
#: NCCL puts the buffers between ranks of a node there, some 10 MiB for each pair of ranks.
MIN_SHM_BYTES, GOOD_SHM_BYTES = 64 << 20, 1 << 30
#: Renders, TensorBoard, logs and samples of one run; working copies of an ingestion.
OTHER_BYTES, WORK_BYTES = 50 << 20, 1 << 30
#: Interfaces that other nodes cannot reach.
BRIDGES = ("docker", "virbr", "veth", "podman", "cni", "br-")
#: Packages whose versions decide whether jobs are submitted and followed as tested.
SCHEDULING = ("snakemake", "snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep")

PROBE = """
import importlib.metadata, json, sys
import torch
facts = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda, "error": None}
facts["available"] = torch.cuda.is_available()
if facts["cuda"] and not facts["available"]:
    try:
        torch.cuda.init()
    except Exception as e:
        facts["error"] = str(e).splitlines()[0]
facts["architectures"] = torch.cuda.get_arch_list()
facts["nccl"] = torch.distributed.is_available() and torch.distributed.is_nccl_available()
facts["gloo"] = torch.distributed.is_available() and torch.distributed.is_gloo_available()
try:
    facts["dist3dgs"] = importlib.metadata.version("dist3dgs")
except importlib.metadata.PackageNotFoundError:
    facts["dist3dgs"] = None
print(json.dumps(facts))
"""

#: What Slurm's commands say where they were never configured.
_NO_CLUSTER = re.compile(r"establish a? ?configuration source|DNS SRV lookup failed")

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Result:
    """One line of the output. fix: the command or setting that changes a `warn` or `fail`."""

    check: str
    status: Status
    text: str
    fix: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; capability is None for drivers that do not tell."""

    name: str
    driver: str
    capability: tuple[int, int] | None


@dataclass
class Setup:
    """Subject of the checks: a study and a site, on this machine. study is None where its config is not valid."""

    study: Study | None = None
    site: Site = field(default_factory=Site)
    full: bool = False
    lock: Path = Path("requirements.lock")
    shm: Path = Path("/dev/shm")
    _probe: subprocess.Popen[str] | None = None

    def start(self) -> "Setup":
        """Begin to import PyTorch, so that the other checks run meanwhile."""
        software = commands.software_of(self.site)
        argv = [*commands.wrapped(software, uses_gpus=bool(self.gpus)), software.python, "-c", PROBE]
        with contextlib.suppress(OSError):
            self._probe = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        return self

    @cached_property
    def torch(self) -> dict[str, Any]:
        """Facts that PyTorch states; {"failed": reason} where it cannot be imported."""
        if self._probe is None:
            return {"failed": f"{commands.software_of(self.site).container_command} was not found"}
        try:
            out, err = self._probe.communicate(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._probe.kill()
            self._probe.communicate()
            return {"failed": f"importing it took more than {PROBE_TIMEOUT_S:.0f} s"}
        try:
            return dict(json.loads(out.splitlines()[-1]))
        except (IndexError, ValueError):
            lines = [line for line in err.splitlines() if line.strip()]
            return {"failed": lines[-1].strip() if lines else f"exit status {self._probe.returncode}"}

    @cached_property
    def gpus(self) -> list[Gpu]:
        """GPUs of this machine; [] without a driver."""
        text = _output("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
        if text is None:
            text = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        rows = [
            [word.strip() for word in line.split(",")] for line in (text or "").splitlines() if "," in line
        ]
        return [Gpu(row[0], row[1], _pair(row[2]) if len(row) > 2 else None) for row in rows]

    @property
    def device(self) -> str:
        return self.study.config.hardware.device if self.study else "auto"

    @property
    def elsewhere(self) -> bool:
        """True if GPUs are on other machines: Slurm is asked for them, and this is no job."""
        asks = self.site.gpu_request != "none" and self.device != "cpu"
        return asks and self.has_slurm and job_id() is None

    @property
    def has_slurm(self) -> bool:
        """True if Slurm is here and answers."""
        return client.available() and self.slurm_problem is None

    @cached_property
    def slurm_problem(self) -> str | None:
        """Why Slurm does not answer; None where it does."""
        try:
            client.slurm("scontrol", "show", "config")
        except client.SlurmError as e:
            return e.text
        return None

    @property
    def computes_on_gpus(self) -> bool:
        """True if ranks on this machine would use its GPUs."""
        return self.device == "cuda" or (self.device == "auto" and bool(self.gpus))


Check = Callable[[Setup], Iterable[Result]]


def check_python(s: Setup) -> Iterator[Result]:
    needed = metadata.metadata("dist3dgs")["Requires-Python"]
    found = ".".join(map(str, sys.version_info[:3]))
    if not Requirement(f"python{needed}").specifier.contains(found):
        yield Result("python", "fail", f"{found}, needed: {needed}", "make setup PYTHON=python3.11")
    else:
        yield Result("python", "ok", f"{found}, {sys.executable}")


def check_packages(s: Setup) -> Iterator[Result]:
    """Installed packages against what dist3dgs needs, and against the lock where there is one."""
    wrong = []
    for text in metadata.requires("dist3dgs") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None:
            wrong.append(f"{needed.name} is missing")
        elif not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} is {found}, needed: {needed.specifier}")
    if wrong:
        yield Result("packages", "fail", "; ".join(wrong), "make setup")
        return
    locked = _locked(s.lock)
    other = [
        f"{name} is {found}, locked: {version}"
        for name, version in locked.items()
        if (found := _version(name)) is not None and _public(found) != _public(version)
    ]
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield Result("packages", "warn", f"not those of {s.lock}: {'; '.join(other[:5])}{more}", "make setup")
    else:
        yield Result(
            "packages", "ok", f"as in {s.lock}" if locked else "as needed; no requirements.lock here"
        )


def check_torch(s: Setup) -> Iterator[Result]:
    facts = s.torch
    where = f" in {s.site.image}" if s.site.image else ""
    if "failed" in facts:
        yield Result("torch", "fail", f"cannot be imported{where}: {facts['failed']}", "make setup")
    elif facts["dist3dgs"] is None:
        fix = f"pip install . in the image, or set site.image to another one than {s.site.image}"
        yield Result("torch", "fail", f"{facts['torch']}{where}, which has no dist3dgs", fix)
    elif not facts["gloo"]:
        yield Result("torch", "fail", f"{facts['torch']}{where} has no Gloo backend", "make setup")
    else:
        build = f"CUDA {facts['cuda']}" if facts["cuda"] else "CPU build"
        yield Result("torch", "ok", f"{facts['torch']} ({build}){where}, Python {facts['python']}")


def check_driver(s: Setup) -> Iterator[Result]:
    """PyTorch's CUDA against the driver's."""
    if s.device == "cpu":
        yield Result("driver", "ok", "not needed (hardware.device: cpu)")
        return
    if not s.gpus:
        yield _without_gpus(s)
        return
    facts, gpu = s.torch, s.gpus[0]
    names = Counter(g.name for g in s.gpus)
    text = f"{', '.join(f'{n} x {name}' for name, n in names.items())}, driver {gpu.driver}"
    if "failed" in facts:
        yield Result("driver", "warn", f"{text}; not compared, as PyTorch cannot be imported", "make setup")
    elif facts["cuda"] is None:
        fix = "make setup TORCH=cuda; or set hardware.device: cpu"
        yield Result("driver", "fail", f"{text}, and PyTorch {facts['torch']} is a CPU build", fix)
    elif (newest := _drivers_cuda()) and newest[0] < int(facts["cuda"].split(".")[0]):
        fix = "ask for a newer driver, or install a PyTorch built for it: https://pytorch.org/get-started/locally"
        supports = ".".join(map(str, newest))
        yield Result("driver", "fail", f"{text} supports CUDA {supports}, PyTorch needs {facts['cuda']}", fix)
    elif not facts["available"]:
        why = facts["error"] or "torch.cuda.is_available() is False"
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if shown is None else f" (CUDA_VISIBLE_DEVICES={shown!r})"
        yield Result("driver", "fail", f"{text}, but PyTorch sees no GPU: {why}{hidden}", "nvidia-smi")
    else:
        yield Result("driver", "ok", f"{text}, PyTorch for CUDA {facts['cuda']}")
    if "failed" not in facts and facts["cuda"] and not facts["nccl"]:
        yield Result("driver", "fail", "this PyTorch has no NCCL", "make setup TORCH=cuda")


def _without_gpus(s: Setup) -> Result:
    if s.elsewhere:
        fix = "dist3dgs verify --on-node"
        return Result("driver", "warn", "no NVIDIA GPU here; the jobs' nodes are another matter", fix)
    if s.device == "cuda" or (job_id() is not None and s.site.gpu_request != "none"):
        asked = "hardware.device is cuda" if s.device == "cuda" else "this job asked for a GPU"
        return Result(
            "driver", "fail", f"{asked} and nvidia-smi finds none", "nvidia-smi; or hardware.device: cpu"
        )
    return Result("driver", "ok", "no NVIDIA GPU: ranks compute on the CPU")


def check_architectures(s: Setup) -> Iterator[Result]:
    """The GPUs' compute capabilities against the code in PyTorch and in gsplat's extension."""
    capabilities = sorted({gpu.capability for gpu in s.gpus if gpu.capability is not None})
    if not s.computes_on_gpus or not capabilities:
        return
    shown = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
    wanted = ";".join(f"{major}.{minor}" for major, minor in capabilities)
    build = f"TORCH_CUDA_ARCH_LIST='{wanted}' python -m dist3dgs.launch.gsplat_build"
    in_torch = s.torch.get("architectures") or []
    if in_torch and (lacking := _not_covered(capabilities, in_torch)):
        text = f"PyTorch has no code for compute capability {lacking}; it has {' '.join(in_torch)}"
        yield Result(
            "architectures", "fail", text, "install a PyTorch whose torch.cuda.get_arch_list() has it"
        )
        return
    library = gsplat_build.library()
    if library is not None:
        built = _architectures_in(library)
        if built and (lacking := _not_covered(capabilities, built)):
            text = (
                f"gsplat's extension has no code for compute capability {lacking}; it has {' '.join(built)}"
            )
            fix = f"rm -r {library.parent} && {build}"
            yield Result("architectures", "fail", text, fix)
        else:
            what = (
                f"gsplat's extension has {' '.join(built)}"
                if built
                else "gsplat's extension could not be read"
            )
            yield Result("architectures", "ok", f"compute capability {shown}; {what}")
        return
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    listed = _architectures_named(named or "")
    if listed and (lacking := _not_covered(capabilities, listed)):
        text = f"TORCH_CUDA_ARCH_LIST={named} leaves out compute capability {lacking} of this machine's GPUs"
        yield Result("architectures", "fail", text, f"export TORCH_CUDA_ARCH_LIST='{wanted}'")
    else:
        yield Result("architectures", "ok", f"compute capability {shown}")


def check_compiler(s: Setup) -> Iterator[Result]:
    """Check what gsplat's CUDA extension is compiled with, where it is not built yet."""
    if not s.computes_on_gpus and not s.elsewhere:
        yield Result("compiler", "ok", "not needed: the CPU renderer brings its own")
        return
    if (library := gsplat_build.library()) is not None:
        yield Result("compiler", "ok", f"not needed: gsplat's extension is built ({library})")
        return
    status: Status = "warn" if s.elsewhere else "fail"
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")
    missing = [] if nvcc else [f"nvcc in CUDA_HOME={home}" if home else "nvcc"]
    missing += [] if shutil.which(os.environ.get("CXX") or "g++") else [os.environ.get("CXX") or "g++"]
    missing += [] if shutil.which("ninja") else ["ninja"]
    where = "; or do it on a node: dist3dgs verify --on-node" if s.elsewhere else ""
    if missing:
        fix = "module load cuda gcc (or set CUDA_HOME), then: python -m dist3dgs.launch.gsplat_build" + where
        text = f"gsplat's CUDA extension is not built, and there is no {', no '.join(missing)}"
        yield Result("compiler", status, text, fix)
        return
    release = re.search(r"release (\d+)\.(\d+)", _output(str(nvcc), "--version") or "")
    cuda = s.torch.get("cuda")
    if release is None:
        yield Result("compiler", status, f"{nvcc} does not tell its version", f"{nvcc} --version")
    elif cuda and release[1] != cuda.split(".")[0]:
        text = f"nvcc is of CUDA {release[1]}.{release[2]}, PyTorch of CUDA {cuda}: the extension would not build"
        yield Result("compiler", status, text, f"module load cuda/{cuda}, or set CUDA_HOME to its folder")
    else:
        text = f"nvcc {release[1]}.{release[2]}; gsplat's CUDA extension is not built yet, the first job would do it"
        yield Result("compiler", "warn", text, "python -m dist3dgs.launch.gsplat_build")


def check_slurm(s: Setup) -> Iterator[Result]:
    """Slurm's commands and controller, and the partitions of the site."""
    if not client.available():
        yield Result("slurm", "ok", "not on this machine; only --profile profiles/slurm needs it")
        return
    version = (_output("sinfo", "--version") or "slurm").strip()
    if s.slurm_problem is not None:
        # Client commands alone, as on a laptop, are no fault of a study that runs there.
        status: Status = "warn" if _NO_CLUSTER.search(s.slurm_problem) else "fail"
        text = f"{version} does not answer: {(s.slurm_problem.splitlines() or ['no message'])[-1].strip()}"
        yield Result("slurm", status, text, "scontrol ping; export SLURM_CONF=FILE names its configuration")
        return
    up = {p.name for p in read_partitions() if p.up}
    wanted = {"cpu_partition": s.site.cpu_partition, "gpu_partition": s.site.gpu_partition}
    if s.site.gpu_request == "none" or s.site.gpu_partition == "auto":
        del wanted["gpu_partition"]
    absent = [f"site.{key}: {name}" for key, name in wanted.items() if name and name not in up]
    if absent:
        text = f"{version}; no partition is up for you by the name of {', '.join(absent)}"
        yield Result("slurm", "fail", text, "dist3dgs site init --force")
    else:
        yield Result("slurm", "ok", f"{version}; whether it takes each layout's job: dist3dgs preflight")


def check_plugin(s: Setup) -> Iterator[Result]:
    """Snakemake and its Slurm plugin: pinned against installed."""
    locked = _locked(s.lock)
    found = {name: _version(name) for name in SCHEDULING}
    text = ", ".join(f"{name.removeprefix('snakemake-executor-plugin-')} {v}" for name, v in found.items())
    if missing := [name for name, version in found.items() if version is None]:
        yield Result("plugin", "fail", f"{', '.join(missing)}: not installed", "make setup")
    elif other := [n for n, v in found.items() if n in locked and v != locked[n]]:
        tested = ", ".join(f"{name}=={locked[name]}" for name in other)
        fix = f"pip install {tested.replace(',', '')}"
        yield Result("plugin", "warn", f"{text}; tested: {tested}", fix)
    else:
        yield Result("plugin", "ok", text)


def check_network(s: Setup) -> Iterator[Result]:
    """The interface over which NCCL and Gloo would meet other nodes."""
    known = sorted(psutil.net_if_addrs())
    for variable in node.INTERFACE_VARIABLES:
        named = os.environ.get(variable, "")
        words = [word for word in named.lstrip("=").split(",") if word]
        # NCCL takes beginnings of names; ^ is what not to take.
        if words and not named.startswith("^") and not any(k.startswith(w) for w in words for k in known):
            fix = f"unset {variable}, or set it to one of: {' '.join(known)}"
            yield Result("network", "fail", f"{variable}={named}, and there is no such interface", fix)
            return
    layouts = [Layout.parse(text) for text in (s.study.config.layouts if s.study else [])]
    if all(layout.nodes == 1 for layout in layouts):
        yield Result("network", "ok", "not needed: every layout has one node")
        return
    if not s.has_slurm:
        text = "layouts of several nodes need Slurm, which does not answer here"
        yield Result("network", "warn", text, "dist3dgs verify, on the cluster's login node")
        return
    other = _other_node(s.site)
    if other is None:
        yield Result(
            "network", "warn", "no other node of the partition is known, so no route to it", "sinfo -N"
        )
        return
    name, address = other
    interface = node.interface_of(node.address_between(address, address))
    choose = "export NCCL_SOCKET_IFNAME=NAME GLOO_SOCKET_IFNAME=NAME, of: ip -brief address"
    if interface is None:
        yield Result("network", "fail", f"no route to {name} ({address})", f"ip route get {address}")
    elif interface.startswith(BRIDGES):
        yield Result("network", "warn", f"the route to {name} is a container bridge: {interface}", choose)
    else:
        ib = ", InfiniBand" if any(Path("/sys/class/infiniband").glob("*")) else ""
        yield Result("network", "ok", f"{interface} to {name} ({address}){ib}")


def check_shared_memory(s: Setup) -> Iterator[Result]:
    """NCCL's way between the GPUs of a node that cannot reach each other directly."""
    try:
        total = os.statvfs(s.shm)
        size, free = total.f_blocks * total.f_frsize, total.f_bavail * total.f_frsize
        with tempfile.TemporaryFile(dir=s.shm):
            pass
    except OSError as e:
        yield Result("shared memory", "fail", f"{s.shm}: {e.strerror}", f"mount -t tmpfs tmpfs {s.shm}")
        return
    text = f"{s.shm}: {format_bytes(free)} of {format_bytes(size)} free"
    fix = f"mount -o remount,size=8G {s.shm} (a container: --shm-size=8g); delete what dead jobs left there"
    if free < GOOD_SHM_BYTES and (s.computes_on_gpus or s.elsewhere):
        yield Result("shared memory", "fail" if free < MIN_SHM_BYTES else "warn", text, fix)
    else:
        yield Result("shared memory", "ok", text)


def check_disk(s: Setup) -> Iterator[Result]:
    """Free space against the most that the study will write, by file system."""
    if s.study is None:
        return
    packs = _data_bytes(s.study)
    needs: list[tuple[str, Path, int, int]] = [
        ("results", Path(s.study.config.results), *_results_bytes(s.study)),
        ("data", Path(s.study.config.data), packs, packs),
        ("temporary files", _temporary(), WORK_BYTES, WORK_BYTES),
    ]
    by_device: dict[int, list[tuple[str, Path, int, int]]] = {}
    for need in needs:
        by_device.setdefault(_existing(need[1]).stat().st_dev, []).append(need)
    for on_it in by_device.values():
        room = os.statvfs(_existing(on_it[0][1]))
        free = room.f_bavail * room.f_frsize
        least, most = sum(n[3] for n in on_it), sum(n[2] for n in on_it)
        parts = ", ".join(f"{format_bytes(n[2])} of {n[0]} ({n[1]})" for n in on_it)
        text = f"up to {parts}; {format_bytes(free)} free"
        fix = f"df -h {on_it[0][1]}; another folder: `results:`, `data:` or TMPDIR; less: train.keep_checkpoints"
        if free < least:
            yield Result("disk", "fail", f"{text}, not enough for one point", fix)
        elif free < most:
            yield Result("disk", "warn", f"{text}, not enough if every run reaches max_gaussians", fix)
        else:
            yield Result("disk", "ok", text)


def _results_bytes(study: Study) -> tuple[int, int]:
    """Most bytes that all points without a record will write, and the largest of them."""
    results = Path(study.config.results)
    left = [
        run_bytes(spec, _num_points(study, spec.scene))
        for spec in study.specs()
        if not (spec.point.folder(results) / "record.json").is_file()
    ]
    return sum(left), max(left, default=0)


def run_bytes(spec: RunSpec, num_points: int | None = None) -> int:
    """Most bytes of one run. num_points: of its scene, which is what it keeps where it does not densify.

    A Gaussian has its parameters and two moments of each in a checkpoint, and a row of statistics; another checkpoint
    is written before the oldest is deleted.
    """
    train = spec.train
    num_sh = 3 * (train.sh_degree + 1) ** 2
    in_checkpoint = 4 * 3 * (11 + num_sh) + 24
    in_export = 4 * (14 + num_sh)
    fixed = train.densify.kind == "none" and num_points is not None
    num_gaussians = num_points if fixed and num_points is not None else train.densify.max_gaussians
    return num_gaussians * (in_checkpoint * (train.keep_checkpoints + 1) + in_export) + OTHER_BYTES


def _num_points(study: Study, scene: str) -> int | None:
    with contextlib.suppress(UserError):
        return len(PackedScene.open(_pack(study, scene)).points)
    return None


def _data_bytes(study: Study) -> int:
    """Bytes of the packed scenes that are not made yet, and of the archives they come from."""
    total, archives = 0, {}
    for name in dict.fromkeys(study.config.scenes):
        scene = study.scene(name)
        if _pack(study, name).is_file():
            continue
        total += _packed_bytes(scene)
        if scene.download in PUBLISHED and not (Path(study.config.data) / name / "source").is_dir():
            archive, _ = PUBLISHED[scene.download]
            num_scenes = sum(a.url == archive.url for a, _ in PUBLISHED.values())
            archives[archive.url] = archive.num_bytes
            total += archive.num_bytes // num_scenes
    return total + sum(archives.values())


def _packed_bytes(scene: Scene) -> int:
    """Estimate of a packed scene: raw pixels of every photograph."""
    if scene.builtin is not None:
        return scene.builtin.num_images * scene.builtin.width_px * scene.builtin.height_px * 3
    width = scene.max_width_px or 4000 // scene.downscale
    count = 300
    if scene.images is not None:
        with contextlib.suppress(OSError):
            count = sum(1 for _ in os.scandir(scene.images))
    return count * width * (width * 3 // 4) * 3


def check_scenes(s: Setup) -> Iterator[Result]:
    """Packed scenes on disk: whole, and the ones that their ingest.json describes; --full: every byte."""
    if s.study is None:
        return
    good = []
    for name in dict.fromkeys(s.study.config.scenes):
        path = _pack(s.study, name)
        if not path.is_file():
            continue
        fix = f"rm {path} && snakemake --profile profiles/local {path}"
        try:
            digest = PackedScene.open(path).digest
            known = json.loads((path.parent / "ingest.json").read_text(encoding="utf-8"))["digest"]
            found = content_digest(path) if s.full else digest
        except UserError as e:
            yield Result("scenes", "fail", str(e), fix)
        except (OSError, ValueError, KeyError, TypeError):
            yield Result("scenes", "warn", f"{path.parent / 'ingest.json'} has no digest of the scene", fix)
        else:
            if {digest, known} != {found}:
                text = f"{path}: its content is {found[:12]}, its header says {digest[:12]}, ingest.json {known[:12]}"
                yield Result("scenes", "fail", text, fix)
            else:
                good.append(name)
    missing = len(dict.fromkeys(s.study.config.scenes)) - sum(
        _pack(s.study, name).is_file() for name in dict.fromkeys(s.study.config.scenes)
    )
    how = "every byte" if s.full else "headers; --full reads every byte"
    text = f"{len(good)} whole ({how})" if good else "none packed yet" if missing else ""
    if text:
        yield Result("scenes", "ok", f"{text}, {missing} to be made" if good and missing else text)


def check_archives(s: Setup) -> Iterator[Result]:
    """Downloaded archives on disk against config/scenes.lock.yaml; --full: their SHA-256."""
    data = Path(s.study.config.data if s.study else "data")
    try:
        archives = locked_archives(LOCK_FILE, data)
    except UserError as e:
        yield Result("archives", "fail", str(e), f"git checkout {LOCK_FILE}")
        return
    good = 0
    for path, num_bytes, digest in archives:
        if num_bytes is not None and path.stat().st_size != num_bytes:
            text = f"{path} has {path.stat().st_size} bytes, {LOCK_FILE} says {num_bytes}"
        elif s.full and digest is not None and sha256(path) != digest:
            text = f"{path} does not have the SHA-256 of {LOCK_FILE}"
        else:
            good += 1
            continue
        yield Result("archives", "fail", text, f"rm {path}; the next run of snakemake fetches it again")
    if good:
        yield Result("archives", "ok", f"{good} as in {LOCK_FILE} ({'SHA-256' if s.full else 'sizes'})")


def check_folders(s: Setup) -> Iterator[Result]:
    """Folders that must be writable here."""
    home = Path(os.environ.get("HOME") or "/nonexistent")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    kernels = Path(os.environ.get("DIST3DGS_KERNEL_CACHE") or cache / "dist3dgs" / "kernels")
    folders: list[tuple[str, Path, Status, str]] = [
        ("home", home, "warn", "export HOME=FOLDER"),
        ("cache (Snakemake, matplotlib)", cache, "fail", "export XDG_CACHE_HOME=FOLDER"),
        ("kernels of the CPU renderer", kernels, "warn", "export DIST3DGS_KERNEL_CACHE=FOLDER"),
        ("temporary files", _temporary(), "fail", "export TMPDIR=FOLDER"),
        ("Snakemake's notes", Path(".snakemake"), "fail", "chmod u+w . ; or work in a clone of your own"),
    ]
    if s.computes_on_gpus:
        fix = "export TORCH_EXTENSIONS_DIR=FOLDER"
        status: Status = "fail" if gsplat_build.library() is None else "warn"
        folders.append(("gsplat's extension", gsplat_build.folder(), status, fix))
    if s.study is not None:
        for key in ("results", "data"):
            folder = Path(getattr(s.study.config, key))
            folders.append(
                (key, folder, "fail", f"chmod u+w {folder}; or set `{key}:` in config/config.yaml")
            )
    wrong = [
        Result("folders", status, f"{what}: {path}: {problem}", fix)
        for what, path, status, fix in folders
        if (problem := _not_writable(path))
    ]
    yield from wrong or [Result("folders", "ok", f"writable: {', '.join(what for what, *_ in folders)}")]


#: In the order in which they are shown; PyTorch, which is imported meanwhile, is needed from `check_torch` on.
CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_torch,
    check_driver,
    check_architectures,
    check_compiler,
    check_slurm,
    check_plugin,
    check_network,
    check_shared_memory,
    check_disk,
    check_scenes,
    check_archives,
    check_folders,
)


def verify(s: Setup) -> list[Result]:
    """The results of all checks."""
    s.start()
    results = []
    for check in CHECKS:
        try:
            results += list(check(s))
        except (OSError, client.SlurmError, UserError) as e:  # one check's trouble must not hide the others
            name = check.__name__.removeprefix("check_").replace("_", " ")
            results.append(Result(name, "fail", f"could not be checked: {e}", None))
    return results


def run_verify(
    config: Path,
    overlays: Sequence[Path],
    profile: Path,
    *,
    full: bool,
    as_json: bool,
    where: str | None = None,
) -> int:
    """Check this machine, or a node of partition `where` ("" for the site's); 0 unless a check failed."""
    study, site, results = None, Site(), []
    try:
        study = load_study(config, overlays)
    except UserError as e:
        results.append(Result("config", "fail", str(e), "see config/README.md"))
    try:
        site = site_of(profile)
    except UserError as e:
        results.append(Result("site", "fail", str(e), f"dist3dgs site init --out {profile} --force"))
    host = node_name()
    if where is None:
        results += verify(Setup(study, site, full))
    else:
        given = ["--config", str(config), "--profile", str(profile), *(["--full"] if full else [])]
        given += [word for path in overlays for word in ("--configfile", str(path))]
        host, on_node = on_a_node(site, where, given)
        results = [r for r in results if r.check not in {o.check for o in on_node}] + on_node
    if as_json:
        print(json.dumps({"host": host, "checks": [asdict(r) for r in results]}, indent=1))
    else:
        print("\n".join(shown(results, host)))
    return int(any(r.status == "fail" for r in results))


def shown(results: Sequence[Result], host: str) -> list[str]:
    """The lines for a person: each result, with what to do below it where it is not ok, and the totals."""
    width = max(len(r.check) for r in results)
    lines = []
    for r in results:
        lines.append(f"{r.status:<4}  {r.check:<{width}}  {r.text}")
        if r.status != "ok" and r.fix:
            lines.append(f"{'':<{width + 8}}fix: {r.fix}")
    counts = Counter(r.status for r in results)
    lines.append(f"{host}: {counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
    return lines


def on_a_node(site: Site, partition: str, given: Sequence[str]) -> tuple[str, list[Result]]:
    """Run the checks in a Slurm job that asks for what a job of layout n1g1 does, but briefly; the host and results.

    Raises `UserError` where Slurm does not take or cannot start the job.
    """
    client.require()
    chosen = partition or (site.cpu_partition if site.gpu_request == "none" else site.gpu_partition)
    if chosen == "auto":
        raise UserError(
            "site.gpu_partition is auto: name the partition to look at: dist3dgs verify --on-node PARTITION "
            "(dist3dgs partitions compares them)"
        )
    request = layout_resources(Layout(1, 1), site) | {
        "slurm_partition": chosen or "",
        "runtime": NODE_RUNTIME_MIN,
    }
    request |= {"mem_mb": min(int(request["mem_mb"]), NODE_MEM_MB)}
    request |= {"cpus_per_task": min(int(request["cpus_per_task"]), NODE_CPUS)}
    argv = ["srun", "--job-name=dist3dgs-verify", *sbatch_argv(request, site.account)[1:]]
    argv += commands.wrapped(commands.Software(modules=tuple(site.modules)), uses_gpus=False)
    argv += [sys.executable, "-m", "dist3dgs.cli", "verify", "--json", *given]
    print(f"a job in partition {chosen or '(default)'} looks at its node; Ctrl-C gives up", file=sys.stderr)
    # Without the variables of a job that this may run in: they would be taken for options.
    environ = {
        k: v for k, v in client.environment().items() if not k.startswith("SLURM_") or k == "SLURM_CONF"
    }
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environ
    )
    try:
        value = json.loads(done.stdout)
        return str(value["host"]), [Result(**r) for r in value["checks"]]
    except (ValueError, KeyError, TypeError):
        text = (done.stderr or done.stdout).strip()
    refusal = explain(text, request, account=str(site.account))
    if refusal.known:
        raise UserError(f"no node could be looked at: {refusal}")
    raise UserError(f"no node could be looked at: srun ended with status {done.returncode}: {text[-2000:]}")


def _output(*argv: str) -> str | None:
    """Standard output of a program; None where it is missing, fails or hangs."""
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=20, check=True, errors="replace"
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _drivers_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver supports, from the head of nvidia-smi's table."""
    found = re.search(r"CUDA(?: UMD)? Version: *(\d+\.\d+)", _output("nvidia-smi") or "")
    return _pair(found[1]) if found else None


def _pair(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text.strip())
    return (int(found[1]), int(found[2])) if found else None


def _not_covered(capabilities: Sequence[tuple[int, int]], architectures: Sequence[str]) -> str:
    """Capabilities for which no listed architecture has code: `sm_XY` runs on its major version from Y on, and
    `compute_XY` is compiled further on anything newer. "" where all are covered."""

    def covers(architecture: str, capability: tuple[int, int]) -> bool:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if not found:
            return False
        has = int(found[2]), int(found[3])
        if found[4] == "a":  # of this one chip
            return has == capability
        return has <= capability and (found[1] == "compute" or has[0] == capability[0])

    lacking = [c for c in capabilities if not any(covers(a, c) for a in architectures)]
    return ", ".join(f"{major}.{minor}" for major, minor in lacking)


def _architectures_named(text: str) -> list[str]:
    """Of TORCH_CUDA_ARCH_LIST, such as `8.0 9.0+PTX`; [] where it is in names (Hopper)."""
    found = []
    for word in re.split(r"[ ;]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", word)
        if not match:
            return []
        found.append(f"sm_{match[1]}{match[2]}{match[3]}")
        found += [f"compute_{match[1]}{match[2]}"] if match[4] else []
    return found


def _architectures_in(library: Path) -> list[str]:
    """Ask CUDA's own tool for the architectures of a compiled library; [] where it is missing."""
    home = os.environ.get("CUDA_HOME")
    tool = str(Path(home, "bin", "cuobjdump")) if home else "cuobjdump"
    elf, ptx = (_output(tool, option, str(library)) or "" for option in ("--list-elf", "--list-ptx"))
    found = re.findall(r"\.(sm_\d+[af]?)\.cubin", elf)
    found += [f"compute_{number}" for number in re.findall(r"\.sm_(\d+[af]?)\.ptx", ptx)]
    return sorted(set(found))


def _other_node(site: Site) -> tuple[str, str] | None:
    """Name and address of a node of the training partition that is not this one."""
    partition = site.cpu_partition if site.gpu_request == "none" else site.gpu_partition
    chosen = [f"--partition={partition}"] if partition and partition != "auto" else []
    names = dict.fromkeys(client.slurm("sinfo", "-h", "-N", "-o", "%N", *chosen).split())
    for name in names:
        if name != node_name():
            (shown, *_) = client.blocks(client.slurm("scontrol", "-o", "show", "node", name)) or [{}]
            return name, reachable(name, shown.get("NodeAddr", name))
    return None


def _temporary() -> Path:
    """Return the folder for temporary files; Python silently takes another one where it cannot be written."""
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir())


def _not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder, or in the nearest above it that exists; None if one can."""
    try:
        there = _existing(folder)
        if not there.is_dir():
            return f"{there} is no folder"
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as e:
        return e.strerror or "cannot be written"


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    path = Path(path).absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _pack(study: Study, scene: str) -> Path:
    return Path(study.config.data, scene, "scene.safetensors")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str) -> str:
    """Without what tells builds of one version apart (+cpu, +cu130)."""
    return Version(version).public


def _locked(path: Path) -> Mapping[str, str]:
    """Versions by package of a requirements file; {} where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", text, re.M))
