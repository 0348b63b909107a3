"""Keep a rank from hanging unnoticed and from outliving its job."""

import contextlib
import ctypes
import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from ..files import write_text
from ..launch.disk_reserve import FULL
from ..parallel.collectives import Communicator
from ..runs.attempts import FLIGHT
from ..splats.host_copy import HostCopy, on_device

#: Share of the collectives' timeout without progress after which a rank writes its stacks, before any rank gives up.
STACKS_AFTER = 0.8
#: Share of it after which a waiting rank reports it, before NCCL's watchdog aborts the process.
REPORT_AFTER = 0.9
#: Ranks exchange stop requests after so many steps or seconds, whichever comes first.
POLL_STEPS, POLL_S = 10, 2.0
_PR_SET_PDEATHSIG = 1
#: Parts of gloo's and NCCL's messages on a collective that timed out.
_TIMEOUTS = ("Timed out waiting", "Application timeout", "collective operation timeout", "Wait timeout")


def die_with_parent() -> None:
    """Have the kernel kill this process when torchrun ends, however it ends. Linux only.

    A rank runs in its own session, so no signal to the launcher's process group reaches it. Elsewhere the launcher
    kills it.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Stacks:
    """Write this rank's stacks to a file that the launcher copies into the log.

    On SIGUSR1, and when `progress` was not called for too long; both work while Python itself hangs.
    """

    def __init__(
        self, folder: Path, rank: int, timeout_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.timeout_s, self._now = timeout_s, now
        self._closed = threading.Event()
        self._file = Path(folder, f"stacks.rank{rank}.txt").open("w", encoding="utf-8")  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True, chain=False)
        self.progress()

    def progress(self) -> None:
        """Restart the timeout: the rank made progress."""
        self._since = self._now()
        faulthandler.dump_traceback_later(STACKS_AFTER * self.timeout_s, file=self._file)

    def report_hang(
        self, waits: Callable[[], bool], report: Callable[[float], None], dump: Callable[[], None]
    ) -> None:
        """Call `report`, with the seconds, from a thread after `REPORT_AFTER` of the timeout without progress.

        Args:
            waits: returns True if this rank is waiting for others; a rank that hangs by itself must not report.
            dump: called before, and by ranks that hang by themselves too.
        """

        def watch() -> None:
            dumped_at = -math.inf
            while not self._closed.wait(self.timeout_s / 100):
                silent_s = self._now() - self._since
                if silent_s <= REPORT_AFTER * self.timeout_s:
                    continue
                if dumped_at < self._since:
                    dump()
                    dumped_at = self._now()
                if waits():
                    report(silent_s)
                    return

        threading.Thread(target=watch, name="hang", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()


def dump_flight_recorder(folder: Path, rank: int, step: int | None) -> None:
    """Write this rank's last collectives, as torch's flight recorder has them, to `flight.rankN.json`.

    gloo records what NCCL does but dumps nothing by itself, and each has a recorder of its own: that of NCCL is taken
    where it has entries. torch 2.13 has no public name for the dumps; where another version has none at all, nothing is
    written. Never raises: it is called when something has failed already.
    """
    with contextlib.suppress(Exception):
        for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
            dump = getattr(torch._C._distributed_c10d, name, None)
            text = dump(includeCollectives=True, onlyActive=False).decode() if dump is not None else ""
            if text.startswith('{"') and '"entries":[' in text:
                head = json.dumps({"rank": rank, "step": step, "dumped_ns": time.time_ns()})
                write_text(folder / f"{FLIGHT}{rank}.json", f"{head[:-1]}, {text[1:]}\n")
                return


#: Ranks whose steps take longer than this, seconds, wait for the answer: the device's idle time is little beside it.
SLOW_S = 0.25


class StopPoll:
    """Schedule of the steps after which ranks exchange stop requests: the same on all ranks."""

    def __init__(
        self, comm: Communicator, device: torch.device, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._comm, self._device, self._now = comm, device, now
        self._step, self._at, self._next = -1, now(), 0
        self._asked: HostCopy | None = None
        #: True if steps are so slow that the answer cannot wait for the next one, as far as is known on all ranks.
        self.slow = True

    def due(self, step: int) -> bool:
        """Return True if ranks exchange stop requests after this step: the same answer on all ranks."""
        return step >= self._next

    def ask(self, step: int, requested: bool) -> None:
        """Begin to exchange stop requests after this step; `answer` ends it. Collective."""
        now = self._now()
        step_s = (now - self._at) / (step - self._step) if 0 <= self._step < step else POLL_S
        both = on_device([float(requested), step_s], self._device)
        self._comm.all_reduce(both, op=dist.ReduceOp.MAX, name="all_reduce(stop)")
        self._asked = HostCopy(both)
        self._step, self._at = step, now

    def answer(self) -> bool:
        """Return True if any rank was told to stop when they were last asked; False if they were not asked since.

        The slowest rank's step time decides when to ask again. A step after `ask` the host does not wait for this.
        """
        if self._asked is None:
            return False
        stop, slowest_s = self._asked.read()
        self._asked = None
        self.slow = slowest_s > SLOW_S
        self._next = self._step + max(1, min(POLL_STEPS, int(POLL_S / max(slowest_s, 1e-9))))
        return bool(stop)

    def agree(self, step: int, requested: bool) -> bool:
        """Ask and wait for the answer, and for that of an earlier `ask`. Collective."""
        before = self.answer()
        self.ask(step, requested)
        return self.answer() or before


def waits_for_others(device: torch.device) -> bool:
    """Return True if the GPU is still busy. After minutes that is a collective: no kernel lasts so long.

    A rank that hangs in Python or in a file system, or that was stopped, has an idle GPU.
    """
    with contextlib.suppress(RuntimeError):
        return not torch.cuda.default_stream(device).query()
    return False


def error_type(e: BaseException) -> str:
    """Name an error for the event file: its class, or its meaning where only its message says that."""
    text = str(e)
    if "NaN or infinite parameters" in text:
        return "Diverged"
    if "appears not to match" in text:  # PyTorch's verification of DistributedDataParallel's parameters
        return "ParameterMismatch"
    if any(sign in text for sign in _TIMEOUTS):
        return "CollectiveTimeout"
    full = isinstance(e, OSError) and e.errno in FULL
    if full or any(sign in text for sign in ("os error 28", "os error 122", "os error 27")):
        return "DiskFull"
    return type(e).__name__


def exit_now(status: int) -> None:
    """Exit without destructors: those of a broken process group may wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
