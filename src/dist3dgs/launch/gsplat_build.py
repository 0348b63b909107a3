"""gsplat's CUDA extension, built once per machine before any rank imports it.

    python -m dist3dgs.launch.gsplat_build      # on a node with nvcc: builds it, or says what is missing

gsplat 1.5.3 compiles itself when it is first imported, about 1,000 s of processor time, and takes for granted that it
is alone: each process removes the lock and, until the library is there, the build folder of the others. Ranks all
import it at once, so one process before them does, under a lock of our own.
"""

import contextlib
import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from ..errors import UserError
from ..files import write_text

MODULE = "dist3dgs.launch.gsplat_build"
#: The build, or the wait for another process that builds, ends after this.
TIMEOUT_S = 1800.0
_MEND = (
    "Build it once on a node with nvcc: set CUDA_HOME to the CUDA toolkit, TORCH_CUDA_ARCH_LIST to the GPUs in use "
    "(9.0: H100) and TORCH_EXTENSIONS_DIR to a folder that every node sees (in the job as well), then run: "
    "python -m dist3dgs.launch.gsplat_build; or set hardware.device: cpu"
)


def folder() -> Path:
    """Return the folder where PyTorch keeps what it builds at run time."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")


def library() -> Path | None:
    """The built extension, if it was seen to load with these versions and is still there. Imports nothing."""
    try:
        path = Path(_note().read_text(encoding="utf-8").strip())
    except (OSError, PackageNotFoundError):
        return None
    return path if path.is_file() else None


def is_ready() -> bool:
    """Return True if there is a `library`."""
    return library() is not None


def prepare() -> None:
    """Import the extension, which builds it where it is missing; one process at a time.

    Raises `UserError` where there is no gsplat, no compiler, or the build fails.
    """
    with _alone():
        try:
            from gsplat.cuda._backend import _C
        except ModuleNotFoundError as e:
            raise UserError(
                f"{e.name} is not installed for {sys.executable}: make setup TORCH=cuda"
            ) from None
        except Exception as e:  # whatever a build ends with: ninja, the compiler, the loader
            raise UserError(
                f"gsplat's CUDA extension: Error building extension: {str(e)[-2000:]}\n{_MEND}"
            ) from None
        if _C is None:
            raise UserError(
                f"gsplat's CUDA extension is not built, and a CUDA toolkit to build it was not found. {_MEND}"
            )
        with contextlib.suppress(OSError):
            write_text(_note(), f"{_C.__file__}\n")


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
        message = f"error: gsplat's CUDA extension: the build took more than {timeout_s:.0f} s. {_MEND}\n"
        (log or sys.stderr.buffer).write(message.encode())
        return 124
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)  # compilers outlive the process that started them
        process.wait()


def _note() -> Path:
    versions = f"{version('gsplat')}-torch-{version('torch')}-py{platform.python_version()}"
    return folder() / f"dist3dgs-gsplat-{versions}.ready"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = (folder() / "dist3dgs-gsplat.lock").open("a")
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
    try:
        prepare()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 2
    print("gsplat: its CUDA extension is ready", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
