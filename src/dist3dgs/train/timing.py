"""Time of a rank by phase of the run and by part of a step."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

from ..runs.events import EventWriter

T = TypeVar("T")

#: Steps left out of the step-time statistics: caches fill and kernels load.
WARM_UP_STEPS = 5
#: On CUDA the parts of every n-th step are timed, each behind a synchronisation, and those of the first step after the
#: warm-up, so that a short run has them too; all others run free.
CUDA_SAMPLE_EVERY = 50
#: Phases that count as `train_s`, besides the steps.
TRAINING = ("densify",)
PROGRESS_EVERY_S = 1.0
#: Seconds between `progress` events: well below the launcher's timeouts.
PULSE_EVERY_S = 5.0


class Clock:
    """Wall time by phase, without that of nested phases; step durations; parts of steps."""

    def __init__(
        self, events: EventWriter, device: torch.device, on_progress: Callable[[], None] | None = None
    ) -> None:
        """on_progress: called periodically, between phases and steps."""
        self.events, self.device = events, device
        self._on_progress, self._told, self._pulsed = on_progress, 0.0, 0.0
        self.phases_s: dict[str, float] = defaultdict(float)
        self.parts_s: dict[str, float] = defaultdict(float)
        self.step_s: list[float] = []
        self.phase = "startup"
        self.train_s = 0.0
        self._nested_s = 0.0
        self._mark = 0.0
        self._stepping, self._sampled = False, True
        self._has_tail = False

    @contextlib.contextmanager
    def enter(self, phase: str) -> Iterator[None]:
        """Count the body's time as `phase`, without that of nested phases."""
        self.drain()
        outer, outer_nested = self.phase, self._nested_s
        self.phase, self._nested_s = phase, 0.0
        self.events("enter", phase=phase)
        self._progress()
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.phases_s[phase] += elapsed - self._nested_s
        if phase in TRAINING:
            self.train_s += elapsed - self._nested_s
        self.events("leave", phase=phase, s=round(elapsed, 6))
        # Reached only without an error: after one the phase stays open and names where it happened.
        self.phase, self._nested_s = outer, outer_nested + elapsed

    def pulse(self, **fields: object) -> None:
        """Report progress to the launcher, from rank 0 and every `PULSE_EVERY_S`; call it often in what may take
        long.
        """
        now = time.perf_counter()
        if now < self._pulsed + PULSE_EVERY_S:
            return
        self._pulsed = now
        self._progress()
        if self.events.rank == 0:
            self.events("progress", phase=self.phase, **fields)

    def start_step(self, step: int) -> None:
        self._sampled = (
            self.device.type == "cpu" or step % CUDA_SAMPLE_EVERY == 0 or len(self.step_s) == WARM_UP_STEPS
        )
        if self._sampled:
            self.drain()
        self._stepping = True
        self._mark = self._started = time.perf_counter()
        if self._started > self._told + PROGRESS_EVERY_S:
            self._progress()

    def part(self, name: str) -> None:
        """Count the time since the last mark as part `name`."""
        if self._sampled:
            self._synchronise()
            now = time.perf_counter()
            self.parts_s[name] += now - self._mark
            self._mark = now

    def between(self, items: Iterator[T], producing: str, using: str) -> Iterator[T]:
        """Yield `items`; count the time to get the next one as `producing` and that of the loop's body as `using`."""
        for item in items:
            self.part(producing)
            yield item
            self.part(using)
        self.part(producing)

    def end_step(self) -> None:
        duration = time.perf_counter() - self._started
        self.step_s.append(duration)
        self.train_s += duration
        self._stepping, self._has_tail = False, True

    def drain(self) -> None:
        """Wait for the device and count the wait to the step that gave it the work.

        Call it between steps before anything that waits: a CUDA step ends on the host before it ends on the device,
        and where the next step waits for the rest, that counts there.
        """
        if self._has_tail and self.device.type == "cuda":
            started = time.perf_counter()
            torch.cuda.synchronize(self.device)
            waited_s = time.perf_counter() - started
            self.step_s[-1] += waited_s
            self.train_s += waited_s
        self._has_tail = False

    def stage(self) -> tuple[str, bool]:
        """Return the phase of collectives that start now, and whether they are timed.

        `step` is the inside of a training step alone; exchanges between two steps are counted apart. On CUDA steps
        are sampled, like their parts, and what is exchanged after them; everything else is timed.
        """
        if self._stepping:
            return "step", self._sampled
        return ("between steps", self._sampled) if self.phase == "step" else (self.phase, True)

    @property
    def scale(self) -> float:
        """Factor from the sampled steps' seconds to all steps'."""
        sampled_s = sum(self.parts_s.values())
        return sum(self.step_s) / sampled_s if sampled_s and self.device.type != "cpu" else 1.0

    def summary(self) -> dict[str, object]:
        """Return the fields of the `timing` event."""
        steps = np.asarray(self.step_s[WARM_UP_STEPS:] or self.step_s)
        statistics = None
        if len(steps):
            p5, median, p95 = map(float, np.percentile(steps, [5, 50, 95]))
            statistics = {"median": median, "mean": float(steps.mean()), "p5": p5, "p95": p95}
        return {
            "phases_s": dict(self.phases_s),
            "parts_s": {k: v * self.scale for k, v in self.parts_s.items()},
            "step_s": statistics,
            "steps": len(self.step_s),
            "train_s": self.train_s,
        }

    def _progress(self) -> None:
        self._told = time.perf_counter()
        if self._on_progress is not None:
            self._on_progress()

    def _synchronise(self) -> None:
        if self._sampled and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
