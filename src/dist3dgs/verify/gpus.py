"""Check the driver, the architectures of compiled kernels, and the compiler of gsplat's CUDA extension."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..launch import gsplat_build
from ..slurm.allocation import job_id
from .setup import Result, Setup, Status, output, version_pair


def check_driver(s: Setup) -> Iterator[Result]:
    """Compare PyTorch's CUDA with the driver's."""
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
    """Compare the GPUs' compute capabilities with the code in PyTorch and in gsplat's extension."""
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
    home, path = gsplat_build.toolkit(), gsplat_build.environment()["PATH"]  # as the build will see them
    missing = [] if home else ["CUDA toolkit (nvcc and cuda_runtime.h)"]
    missing += [
        name for name in (os.environ.get("CXX") or "g++", "ninja") if not shutil.which(name, path=path)
    ]
    where = "; or do it on a node: dist3dgs verify --on-node" if s.elsewhere else ""
    if missing:
        fix = "module load cuda gcc (or set CUDA_HOME), then: python -m dist3dgs.launch.gsplat_build" + where
        text = f"gsplat's CUDA extension is not built, and there is no {', no '.join(missing)}"
        yield Result("compiler", status, text, fix)
        return
    assert home is not None  # else it is missing
    nvcc = home / "bin/nvcc"
    release = re.search(r"release (\d+)\.(\d+)", output(str(nvcc), "--version") or "")
    cuda = s.torch.get("cuda")
    if release is None:
        yield Result("compiler", status, f"{nvcc} does not tell its version", f"{nvcc} --version")
    elif cuda and release[1] != cuda.split(".")[0]:
        text = f"nvcc is of CUDA {release[1]}.{release[2]}, PyTorch of CUDA {cuda}: the extension would not build"
        yield Result("compiler", status, text, f"module load cuda/{cuda}, or set CUDA_HOME to its folder")
    else:
        text = f"nvcc {release[1]}.{release[2]}; gsplat's CUDA extension is not built yet, the first job would do it"
        yield Result("compiler", "warn", text, "python -m dist3dgs.launch.gsplat_build")


def _drivers_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver supports, from the head of nvidia-smi's table."""
    found = re.search(r"CUDA(?: UMD)? Version: *(\d+\.\d+)", output("nvidia-smi") or "")
    return version_pair(found[1]) if found else None


def _not_covered(capabilities: Sequence[tuple[int, int]], architectures: Sequence[str]) -> str:
    """Return the capabilities for which no listed architecture has code; "" if all are covered.

    `sm_XY` runs on its major version from Y on, and `compute_XY` is compiled further on anything newer.
    """

    def covers(architecture: str, capability: tuple[int, int]) -> bool:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if not found:
            return False
        has = int(found[2]), int(found[3])
        if found[4] == "a":  # for this chip only
            return has == capability
        return has <= capability and (found[1] == "compute" or has[0] == capability[0])

    lacking = [c for c in capabilities if not any(covers(a, c) for a in architectures)]
    return ", ".join(f"{major}.{minor}" for major, minor in lacking)


def _architectures_named(text: str) -> list[str]:
    """Parse TORCH_CUDA_ARCH_LIST, such as `8.0 9.0+PTX`; [] where it is in names (Hopper)."""
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
    home = gsplat_build.toolkit()
    tool = shutil.which("cuobjdump") or (str(home / "bin/cuobjdump") if home else "cuobjdump")
    elf, ptx = (output(tool, option, str(library)) or "" for option in ("--list-elf", "--list-ptx"))
    found = re.findall(r"\.(sm_\d+[af]?)\.cubin", elf)
    found += [f"compute_{number}" for number in re.findall(r"\.sm_(\d+[af]?)\.ptx", ptx)]
    return sorted(set(found))
