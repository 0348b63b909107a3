"""Supervision of a running job: stop requests, stalls, progress for the person waiting."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..config.models import RunSpec
from ..runs.attempts import Attempt
from ..runs.events import EventTail
from ..slurm.allocation import node_name

POLL_S = 0.2
REPORT_EVERY_S = 15.0
#: A job whose ranks write no event for this many collective timeouts has stalled where no timeout reaches.
STALL_FACTOR = 2.0
#: Between asking hung ranks for their stacks and killing them.
DUMP_S = 3.0


class Watch:
    """Waits for a process group; stops it on request or when it stalls."""

    def __init__(
        self, process: subprocess.Popen[bytes], attempt: Attempt, spec: RunSpec, grace_s: float
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
        """Called from a signal handler: ask the ranks to stop; they get `grace_s` to leave a checkpoint."""
        if self.stop_signal is None:
            self.stop_signal = signal.Signals(number).name
            # The ranks themselves, where there are any: torchrun would give them 30 s, whatever is left to us.
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
        self._signal_ranks(signal.SIGKILL)  # ranks that outlived torchrun: they are in sessions of their own
        self._collect_stacks()

    def _new_events(self) -> list[dict[str, Any]]:
        """Events since the last call; remember the pids of the ranks on this host."""
        events = self._tail.new()
        starts = [e for e in events if e["event"] == "start" and e.get("host") == node_name()]
        self._pids += [e["pid"] for e in starts if isinstance(e.get("pid"), int)]
        return events

    def _end_stall(self) -> None:
        """Have all ranks write their stacks, then end them: nobody is expected to answer a polite request."""
        if self.stalled:
            return
        self.stalled = True
        self._signal_ranks(signal.SIGUSR1)
        self._signal_ranks(signal.SIGCONT)  # one that was stopped writes its stacks only when it runs
        self._kill_at = time.monotonic() + DUMP_S

    def _signal_ranks(self, number: int) -> bool:
        """Signal the ranks on this host; whether there was any."""
        reached = False
        for pid in self._pids:
            # A pid may have gone to somebody else since.
            with contextlib.suppress(OSError):
                if b"dist3dgs.train" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, number)
                    reached = True
        return reached

    def _collect_stacks(self) -> None:
        """Copy what ranks wrote about being stuck into the log."""
        with contextlib.suppress(OSError), self.attempt.log_path.open("a", encoding="utf-8") as log:
            for path in sorted(self.attempt.folder.glob("stacks.rank*.txt")):
                text = path.read_text(encoding="utf-8", errors="replace")
                if text:
                    rank = path.name.split(".")[1].removeprefix("rank")
                    log.write(f"\nstacks of rank {rank} when nothing went on:\n{text}")
                path.unlink()

    def _signal(self, number: int) -> None:
        """Signal torchrun and everything it started (it was started in a session of its own)."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Display:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, spec: RunSpec) -> None:
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
            self._task = self._bar.add_task(str(spec.point), total=spec.num_steps, note="starting")
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
            at = "" if step is None else f" step {step}/{self.spec.num_steps}"
            print(f"{self.spec.point}:{at} {note}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
