"""What one rank does so that nothing hangs unseen and nothing outlives the job."""

import ctypes
import errno
import faulthandler
import os
import signal
import sys
from pathlib import Path

#: Share of the collectives' timeout after which a rank that got nowhere writes its stacks, before any rank gives up.
STACKS_AFTER = 0.8
_PR_SET_PDEATHSIG = 1
#: What gloo and NCCL say of a collective that waited too long.
_TIMEOUTS = ("Timed out waiting", "Application timeout", "collective operation timeout", "Wait timeout")


def die_with_parent() -> None:
    """Have the kernel kill this process when torchrun ends, however it ends: it lives in a session of its own, so that
    no signal to the launcher's process group would reach it. Linux only; elsewhere the launcher's sweep must do."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Stacks:
    """This rank's stacks, in a file of its own that the launcher copies into the log.

    Written on SIGUSR1 and when `progress` was not called for long; both work while Python itself is stuck.
    """

    def __init__(self, folder: Path, rank: int, timeout_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.patience_s = STACKS_AFTER * timeout_s
        self._file = Path(folder, f"stacks.rank{rank}.txt").open("w", encoding="utf-8")  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True, chain=False)
        self.progress()

    def progress(self) -> None:
        """Something was achieved: the patience starts anew."""
        faulthandler.dump_traceback_later(self.patience_s, file=self._file)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()


def error_type(e: BaseException) -> str:
    """The name under which the event file reports an error: its class, or what it means where only its text says."""
    text = str(e)
    if "NaN or infinite parameters" in text:
        return "Diverged"
    if "appears not to match" in text:  # PyTorch's verification of DistributedDataParallel's parameters
        return "ParameterMismatch"
    if any(sign in text for sign in _TIMEOUTS):
        return "CollectiveTimeout"
    full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or any(sign in text for sign in ("os error 28", "os error 122", "os error 27")):
        return "DiskFull"
    return type(e).__name__


def exit_now(status: int) -> None:
    """End without destructors: those of a broken process group may wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
