"""gsplat's CUDA extension: compiled once per kind of GPU, before any rank needs it, and loaded without a compiler.

    python -m dist3dgs.launch.gsplat_build      # on a node with nvcc: builds it, or says what is missing

gsplat 1.5.3 compiles itself when it is first used, about 1,000 s of processor time, and takes for granted that it is
alone: each process removes the lock and, until the library is there, the build folder of the others. Here one process
compiles the same sources under a lock, in a folder named after the versions and the GPUs' architecture; a build that
was cut short continues where it was. `load` then puts the library where gsplat looks for a compiled one first.
"""

import argparse
import contextlib
import fcntl
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from ..files import write_text
from ..monitoring.nvml import identities
from .world_check import listed_devices

MODULE, HERE = "dist3dgs.launch.gsplat_build", "--here"
#: The build, or the wait for another process that builds, ends after this.
TIMEOUT_S = 1800.0
#: Module in which gsplat looks for its compiled extension before it compiles one.
COMPILED = "gsplat.csrc"
#: Module name compiled into the library.
EXTENSION = "gsplat_cuda"
#: Versions with the interface that `splats/render/cuda.py` calls: from the first up to, but without, the second.
GSPLAT_VERSIONS = ("1.5.3", "1.6")
#: More compilers at once than this need more memory than they save time (gsplat's own limit).
MAX_JOBS = 10
_FAILED = (
    "gsplat's CUDA extension: Error building extension: "  # a rule of `dist3dgs diagnose` knows these words
)
_FIX = (
    "Build it once on a node with nvcc: set CUDA_HOME to the CUDA toolkit, TORCH_CUDA_ARCH_LIST to the GPUs in use "
    "(9.0: H100) and TORCH_EXTENSIONS_DIR to a folder that every node sees (in the job as well), then run: "
    "python -m dist3dgs.launch.gsplat_build; or set hardware.device: cpu"
)


def folder() -> Path:
    """Return the folder where PyTorch keeps what it builds at run time."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")


def library() -> Path | None:
    """Return the built extension if it was seen to load with these versions and has code for this machine's GPUs.

    Imports neither torch nor gsplat. Where the GPUs cannot be told, any build of these versions will do.
    """
    try:
        notes = sorted(folder().glob(f"{build_prefix()}-*.ready"))
    except (OSError, PackageNotFoundError):
        return None
    capabilities = gpu_capabilities()
    for note in notes:
        try:
            built = json.loads(note.read_text(encoding="utf-8"))
            path, architectures = Path(built["library"]), [str(a) for a in built["architectures"]]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if path.is_file() and all(covers(architectures, c) for c in capabilities):
            return path
    return None


def is_ready() -> bool:
    """Return True if there is a `library`."""
    return library() is not None


def covers(architectures: Sequence[str], capability: str) -> bool:
    """Return True if code for one of the architectures runs on a GPU of this compute capability, such as `9.0`.

    architectures: as in TORCH_CUDA_ARCH_LIST, `8.0`, `9.0a` or `9.0+PTX`; none, or a name (`Hopper`), is taken for
    one that runs.
    """
    wanted = tuple(map(int, capability.split(".")))
    for architecture in architectures:
        found = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architecture)
        if found is None:
            return True
        has = int(found[1]), int(found[2])
        if has == wanted or (has <= wanted and not found[3] and (found[4] or has[0] == wanted[0])):
            return True
    return not architectures


def gpu_capabilities() -> list[str]:
    """Return the compute capabilities of the GPUs this process may use, `["9.0"]`; [] where no driver tells."""
    gpus, listed = identities(), listed_devices()
    if listed is not None:
        # CUDA takes the beginning of a UUID for the whole. Entries of forms that are not known here mean any.
        mine = [gpu for gpu in gpus if any(gpu.is_named(entry) for entry in listed)]
        gpus = mine or (gpus if listed else [])
    return sorted({gpu.capability for gpu in gpus if gpu.capability}, key=float)


def toolkit(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the root of the CUDA toolkit: it holds bin/nvcc and the headers. None where there is none.

    PyTorch takes the folder above that of `nvcc`, which is wrong where that is a script that calls the real one.
    """
    named = [environ.get("CUDA_HOME"), environ.get("CUDA_PATH")]
    candidates = [Path(name) for name in named if name]
    if nvcc := shutil.which("nvcc", path=environ.get("PATH")):
        candidates += [Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent]
    candidates += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for home in candidates:
        headers = [home / "include/cuda_runtime.h", *home.glob("targets/*/include/cuda_runtime.h")]
        if (home / "bin/nvcc").is_file() and any(header.is_file() for header in headers):
            return home
    return None


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `environ` with what a build needs: ninja on PATH, CUDA_HOME, the architecture, a number of compilers."""
    result = dict(environ)
    # pip puts ninja beside the interpreter; a Python that was started by its path alone does not have that on PATH.
    result["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    if home := toolkit(environ):
        result["CUDA_HOME"] = str(home)
        if not (home / "include/cuda_runtime.h").is_file():
            # conda's toolkit has its headers below targets/, where nvcc looks and the C++ compiler does not.
            for name, below in (("CPATH", "include"), ("LIBRARY_PATH", "lib")):
                found = [str(path) for path in sorted(home.glob(f"targets/*/{below}"))]
                result[name] = os.pathsep.join([*found, *filter(None, [environ.get(name)])])
    if not result.get("TORCH_CUDA_ARCH_LIST") and (capabilities := gpu_capabilities()):
        result["TORCH_CUDA_ARCH_LIST"] = ";".join(capabilities) + "+PTX"
    result.setdefault("MAX_JOBS", str(min(MAX_JOBS, len(os.sched_getaffinity(0)))))
    return result


def check_version() -> None:
    """Raise `UserError` unless the installed gsplat is one whose interface is known here."""
    first, end = (_numbers(text) for text in GSPLAT_VERSIONS)
    try:
        installed = version("gsplat")
    except PackageNotFoundError:
        raise UserError(f"gsplat is not installed for {sys.executable}: make setup TORCH=cuda") from None
    if not first <= _numbers(installed) < end:
        raise UserError(
            f"{_FAILED}gsplat {installed} is installed for {sys.executable}, whose functions take other arguments than "
            f"those of {GSPLAT_VERSIONS[0]}: expected gsplat>={GSPLAT_VERSIONS[0]},<{GSPLAT_VERSIONS[1]}; run: "
            f"{sys.executable} -m pip install 'gsplat>={GSPLAT_VERSIONS[0]},<{GSPLAT_VERSIONS[1]}'"
        )


def check_architectures(architectures: Sequence[str]) -> None:
    """Raise `UserError` if a build for these, as in TORCH_CUDA_ARCH_LIST, has no code for a GPU of this machine."""
    capabilities = gpu_capabilities()
    if lacking := [c for c in capabilities if not covers(architectures, c)]:
        raise UserError(
            f"{_FAILED}TORCH_CUDA_ARCH_LIST={';'.join(architectures)} leaves out compute capability "
            f"{', '.join(lacking)} of the GPUs here, where it would end with 'no kernel image is available': unset it, "
            f"or export TORCH_CUDA_ARCH_LIST='{';'.join(capabilities)}'"
        )


def prepare(here: bool = False) -> Path:
    """Build the extension where it is missing, one process at a time, and return the library.

    here: the GPUs of this machine will use it.

    Raises `UserError` where there is no gsplat or another version of it, no compiler, or the build fails.
    """
    with _alone():
        if (found := library()) is not None:
            return found
        check_version()
        os.environ.update(environment())
        try:
            module, architectures = _brought() or _compile(here)
        except UserError:
            raise
        except ModuleNotFoundError as e:
            raise UserError(
                f"{e.name} is not installed for {sys.executable}: make setup TORCH=cuda"
            ) from None
        except Exception as e:  # any error of ninja, the compiler or the loader
            raise UserError(f"{_FAILED}{str(e)[-2000:]}\n{_FIX}") from None
        path = Path(module.__file__)
        with contextlib.suppress(OSError):
            note = json.dumps({"library": str(path), "architectures": architectures})
            write_text(folder() / f"{build_prefix()}-{_tag(architectures)}.ready", note + "\n")
        return path


def load() -> None:
    """Put the extension where gsplat looks for a compiled one; build it first where it is missing.

    Raises `UserError` as `prepare` does.
    """
    if COMPILED in sys.modules:
        return
    check_version()
    path = library() or prepare(here=True)
    if COMPILED not in sys.modules and importlib.util.find_spec(COMPILED) is None:
        sys.modules[COMPILED] = _import(path)


def prepare_in_child(
    command: Sequence[str],
    environ: Mapping[str, str],
    log: IO[bytes] | None = None,
    preexec: Callable[[], None] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> int:
    """Run `command`, which ends in `-m dist3dgs.launch.gsplat_build`; return its exit status, 124 after `timeout_s`."""
    print(
        "gsplat: loading its CUDA extension; the first time it is compiled, which takes minutes",
        file=sys.stderr,
        flush=True,
    )
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log and subprocess.STDOUT, env=dict(environ),
        start_new_session=True, preexec_fn=preexec,
    )  # fmt: skip
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        message = (
            f"error: gsplat's CUDA extension: the build took more than {timeout_s:.0f} s; the next one goes on from "
            f"there. {_FIX}\n"
        )
        (log or sys.stderr.buffer).write(message.encode())
        return 124
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)  # compilers outlive the process that started them
        process.wait()


def _brought() -> tuple[Any, list[str]] | None:
    """Return the extension of a wheel that was built with it; None where gsplat comes as sources."""
    if importlib.util.find_spec(COMPILED) is None:
        return None
    return importlib.import_module(COMPILED), []


def _compile(here: bool) -> tuple[Any, list[str]]:
    """Compile gsplat's sources with its own flags; return the loaded module and the architectures it has code for.

    here: as in `prepare`.
    """
    found = importlib.util.find_spec("gsplat")
    assert found is not None and found.submodule_search_locations
    root = Path(found.submodule_search_locations[0], "cuda")
    sources = sorted([*root.glob("csrc/*.cu"), *root.glob("csrc/*.cpp"), root / "ext.cpp"])
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    architectures = [word for word in re.split(r"[ ;]+", named.strip()) if word]
    if any(path.suffix == ".cu" for path in sources):
        if here:
            check_architectures(architectures)
        check_toolkit(architectures)
    from torch.utils import cpp_extension

    build = folder() / f"{build_prefix()}-{_tag(architectures)}"
    build.mkdir(parents=True, exist_ok=True)
    # PyTorch's own lock: a process that was killed leaves it, and the next would wait for it for ever. Ours is held.
    (build / "lock").unlink(missing_ok=True)
    module = cpp_extension.load(
        EXTENSION, [str(path) for path in sources], extra_cflags=["-O3", "-Wno-attributes"],
        extra_cuda_cflags=["-O3", "-use_fast_math"],
        extra_include_paths=[str(root / "include"), str(root / "csrc/third_party/glm")], build_directory=str(build),
    )  # fmt: skip
    sys.modules[COMPILED] = module  # a second import of the same library in one process may fail
    return module, architectures


def check_toolkit(architectures: Sequence[str]) -> None:
    """Raise `UserError` unless there is a CUDA toolkit of PyTorch's major version and a GPU to compile for."""
    import torch

    home, wanted = toolkit(), torch.version.cuda
    if home is None:
        raise UserError(
            f"gsplat's CUDA extension is not built, and a CUDA toolkit to build it was not found. {_FIX}"
        )
    said = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, errors="replace")
    release = re.search(r"release (\d+)\.(\d+)", said.stdout)
    if wanted is None:
        raise UserError(
            f"{_FAILED}it needs the CUDA build of PyTorch, and {torch.__version__} is a CPU build: make setup "
            f"TORCH=cuda. {_FIX}"
        )
    if release is not None and release[1] != wanted.split(".")[0]:
        raise UserError(
            f"{_FAILED}the toolkit in {home} is of CUDA {release[1]}.{release[2]}, PyTorch "
            f"{torch.__version__} of CUDA {wanted}: their first numbers must be the same. Set CUDA_HOME to a toolkit "
            f"of CUDA {wanted} (module load cuda/{wanted}), or install a PyTorch for CUDA {release[1]}"
        )
    if not architectures:
        raise UserError(f"{_FAILED}no GPU is seen here, so it is not known what to compile for. {_FIX}")


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(EXTENSION, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_prefix() -> str:
    """Return the start of the names of a build's folder and note: what the extension is compiled against.

    The same version of PyTorch is there for several CUDAs, and one home folder for several kinds of processors.
    """
    versions = (
        f"{version('gsplat')}-torch-{version('torch')}-cuda-{_cuda_of_torch()}-py{platform.python_version()}"
    )
    return f"dist3dgs-gsplat-{versions}-{platform.machine()}"


def _cuda_of_torch() -> str:
    """Return `13.0` of a PyTorch built for CUDA 13.0, `none` of a CPU build; reads a file and imports nothing."""
    found = importlib.util.find_spec("torch")
    text = ""
    if found is not None and found.origin is not None:
        with contextlib.suppress(OSError):
            text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    cuda = re.search(r"^cuda\b[^=\n]*= *['\"]([\d.]+)", text, re.MULTILINE)
    return cuda[1] if cuda else "none"


def _tag(architectures: Sequence[str]) -> str:
    return re.sub(r"[^\w.+-]", "_", "-".join(architectures)) or "any"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    path = folder() / "dist3dgs-gsplat.lock"
    try:
        folder().mkdir(parents=True, exist_ok=True)
        try:
            lock: IO[str] = path.open("a")
        except PermissionError:  # another user's, in a folder that we share
            lock = path.open()
    except OSError:  # not ours to write: built by somebody else, or the build itself will say what is wrong
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("gsplat: another process builds its CUDA extension; waiting", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument(HERE, action="store_true", help="the GPUs of this machine will use it (default: any)")
    try:
        prepare(here=parser.parse_args().here)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 2
    print("gsplat: its CUDA extension is ready", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
