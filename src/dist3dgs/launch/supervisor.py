"""Supervision of a running job: stop requests, time limit, stalls, progress for the person waiting."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.matrix import AnySpec
from ..runs.attempts import Attempt
from ..runs.events import EventTail
from ..slurm.allocation import Allocation, node_name
from ..slurm.outcome import read_tail

POLL_S = 0.2
REPORT_EVERY_S = 15.0
#: Collective timeouts without an event of any rank after which a job has stalled where no timeout reaches.
STALL_FACTOR = 2.0
#: Seconds between asking hung ranks for their stacks and killing them.
DUMP_S = 3.0
#: Seconds to wait for killed ranks to be gone; one in a system call that does not end is left behind.
GONE_S = 30.0


class Watch:
    """Waits for a process group; stops it on request or when it stalls."""

    def __init__(
        self, process: subprocess.Popen[bytes], attempt: Attempt, spec: AnySpec, grace_s: float
    ) -> None:
        self.process, self.attempt, self.spec, self.grace_s = process, attempt, spec, grace_s
        self.stop_signal: str | None = None
        self.stalled = False
        self._kill_at: float | None = None
        self._tail = EventTail(attempt.folder)
        self._pids: list[int] = []  # of the ranks on this host
        self._last_event = time.monotonic()
        self._display = Display(spec)

    def request_stop(self, number: int) -> None:
        """Ask the ranks to stop; they get `grace_s` seconds to leave a checkpoint. Called from a signal handler."""
        if self.stop_signal is None:
            self.stop_signal = signal.Signals(number).name
            # The ranks themselves: torchrun would kill them after 30 s, however much time is left.
            if not self._signal_ranks(signal.SIGTERM):
                self._signal(signal.SIGTERM)
            self._kill_at = time.monotonic() + self.grace_s

    def wait(self) -> None:
        """Return when the process has ended and nothing of its group is left."""
        while self.process.poll() is None:
            time.sleep(POLL_S)
            events = self._new_events()
            now = time.monotonic()
            if events:
                self._last_event = now
            self._display.update(events)
            if self._kill_at is not None and now > self._kill_at:
                self._signal_ranks(signal.SIGKILL)
                self._signal(signal.SIGKILL)
            waited_in_vain = any(e.get("type") == "CollectiveTimeout" for e in events)
            if waited_in_vain or now - self._last_event > STALL_FACTOR * self.spec.hardware.timeout_s:
                self._end_stall()
        self._display.update(self._new_events())
        self._display.close()
        self._signal(signal.SIGKILL)
        # Ranks that outlived torchrun: they are in sessions of their own. A killed process is not gone at once, and the
        # next attempt needs its memory.
        end = time.monotonic() + GONE_S
        while self._signal_ranks(signal.SIGKILL) and time.monotonic() < end:
            time.sleep(0.02)
        self._collect_stacks()

    def _new_events(self) -> list[dict[str, Any]]:
        """Return events since the last call; remember the pids of the ranks on this host."""
        events = self._tail.new()
        starts = [e for e in events if e["event"] == "start" and e.get("host") == node_name()]
        self._pids += [e["pid"] for e in starts if isinstance(e.get("pid"), int)]
        return events

    def _end_stall(self) -> None:
        """Have all ranks write their stacks, then kill them: hung ranks do not answer SIGTERM."""
        if self.stalled:
            return
        self.stalled = True
        self._signal_ranks(signal.SIGUSR1)
        self._signal_ranks(signal.SIGCONT)  # a stopped process writes its stacks once it runs
        self._kill_at = time.monotonic() + DUMP_S

    def _signal_ranks(self, number: int) -> bool:
        """Signal the ranks on this host; return True if there was any."""
        reached = False
        for pid in self._pids:
            # The pid may have been reused.
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"dist3dgs.train" in command or b"dist3dgs.workloads" in command:
                    os.kill(pid, number)
                    reached = True
        return reached

    def _collect_stacks(self) -> None:
        """Append the stacks of hung ranks to the log."""
        with contextlib.suppress(OSError), self.attempt.log_path.open("a", encoding="utf-8") as log:
            for path in sorted(self.attempt.folder.glob("stacks.rank*.txt")):
                text = path.read_text(encoding="utf-8", errors="replace")
                if text:
                    rank = path.name.split(".")[1].removeprefix("rank")
                    log.write(f"\nstacks of rank {rank} when it hung:\n{text}")
                path.unlink()

    def _signal(self, number: int) -> None:
        """Signal torchrun and everything it started (it was started in a session of its own)."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Display:
    """Shows a progress bar on a terminal, a line every `REPORT_EVERY_S` elsewhere."""

    def __init__(self, spec: AnySpec) -> None:
        self.spec, self._last_report = spec, time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(str(spec.point), total=spec.last_step, note="starting")
            self._bar.start()

    def update(self, events: list[dict[str, Any]]) -> None:
        for e in events:
            kind = e.get("event")
            if kind == "step":
                note = (
                    f"loss {e['loss']:.4f}, {e['num_gaussians']} Gaussians, {e['step_s'] * 1e3:.0f} ms/step"
                )
                self._show(e["step"], note)
            elif kind == "eval":
                self._show(e["step"], f"held-out PSNR {e['psnr']:.2f} dB", always=True)
            elif kind == "error":
                self._show(
                    None, f"rank {e.get('rank')}: {e.get('type')}: {str(e.get('message'))[:200]}", always=True
                )

    def _show(self, step: int | None, note: str, always: bool = False) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, note=note, **({} if step is None else {"completed": step}))
        elif always or now - self._last_report > REPORT_EVERY_S:
            self._last_report = now
            at = "" if step is None else f" step {step}/{self.spec.last_step}"
            print(f"{self.spec.point}:{at} {note}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@dataclass
class TimeLimit:
    """Record of a run that was stopped for its job's time limit."""

    reached: bool = False
    note: str = ""


def margin_s(time_left_s: float) -> float:
    """Seconds before the allocation's end at which a run is stopped to leave a checkpoint: a tenth, 5 to 120 s."""
    return min(120.0, max(5.0, 0.1 * time_left_s))


@contextlib.contextmanager
def before_time_limit(allocation: Allocation | None, stop: Callable[[int], None]) -> Iterator[TimeLimit]:
    """Call `stop(SIGTERM)` shortly before the allocation ends.

    Slurm's own signal comes with KillWait (30 s by default), reaches Snakemake as well and leaves the job in state
    TIMEOUT; stopping first leaves a checkpoint, the evidence and a say in what happens next.
    """
    limit = TimeLimit()
    left = allocation.time_left_s if allocation is not None else None
    if allocation is None or left is None or math.isinf(left):
        yield limit
        return

    def reached() -> None:
        limit.reached = True
        limit.note = f"Slurm job {allocation.job_id}: stopped {margin_s(left):.0f} s before its time limit"
        print(limit.note, file=sys.stderr, flush=True)
        stop(signal.SIGTERM)

    timer = threading.Timer(max(0.0, left - margin_s(left)), reached)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()


#: Last line of an srun that asked about its job while the controller was away. It asks once.
_NO_CONTROLLER = re.compile(
    r"srun: error: Unable to confirm allocation.*(contact slurm controller|timed out|[Zz]ero [Bb]ytes)"
)


def srun_found_no_controller(log: Path) -> bool:
    """Return True if the last launch in `log` ended because srun found no controller, before any rank was started."""
    return any(_NO_CONTROLLER.search(line) for line in read_tail(log, 4096).splitlines()[-2:])
