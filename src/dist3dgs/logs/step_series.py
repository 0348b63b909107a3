"""Statistics of one progress display over a whole log: its last step, the steps shown, their times."""

import heapq
import math
import re
import statistics
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..runs.record import StepTime

#: Beyond this many samples every second one is dropped and the rest count twice: at most 2 MiB per series.
MAX_SAMPLES = 1 << 17
#: Rows taken from a block that has more, evenly spaced.
EXACT_ROWS = 1 << 17
ROWS_PER_BLOCK = 1000
#: A step this many steps and rows below the highest seen is a restart, not an echo of another rank or a redrawn row.
RESTART_GAP = 64
RESTART_ROWS = 32
#: A gap of this many times the usual distance between rows, and over `RESTART_GAP`, is a hole in the log.
HOLE_STRIDES = 10
MAX_HOLES = 8
#: With fewer of its steps shown, no time of a run is stated.
COVERED = 0.9


@dataclass(slots=True)  # not frozen: a log has a million, and freezing triples the cost of each
class ProgressLine:
    """One progress line. `step` counts from 0 or 1 as the trainer does."""

    step: int
    total: int | None = None
    seconds: float | None = None  # per step
    elapsed_s: float | None = None  # since the trainer's start of counting
    rate: float | None = None  # in `StepFormat.rate_unit`
    loss: float | None = None
    percent: float | None = None  # of all steps, with two decimals
    clock_s: float | None = None  # time of day on the line
    rate_unit: str | None = None


@dataclass(frozen=True, slots=True)
class StepFormat:
    """One trainer's progress lines. `parse` gets the pattern's groups and may raise ValueError to skip."""

    name: str
    pattern: re.Pattern[bytes]
    parse: Callable[[Sequence[bytes]], ProgressLine]
    rate_unit: str = ""
    redrawn: bool = False  # the same rows are printed many times
    smoothed: bool = False  # the time is a moving average: its percentiles are too narrow
    epochs: bool = False  # counts epochs, not steps
    from_zero: bool = False  # the first step is 0, so that N steps end at N - 1
    bar: bool = False  # counts what is done, ends at its total, and may begin again for every epoch
    skip_first: int = 0  # steps whose shown time includes start-up


@dataclass
class StepSeries:
    """Statistics of one progress display in bounded memory.

    A display may start again: a bar that came to its end begins its next *round* (an epoch), whose steps are new
    ones; a step far below the last one is a resumed run, which repeats steps.
    """

    format: StepFormat
    total: int | None = None
    description: str = ""
    last: int = -1
    first: int | None = None  # of the current round
    count: int = 0  # progress lines that counted
    restarts: int = 0
    elapsed_s: float | None = None
    first_elapsed_s: float | None = None
    earlier_s: float = 0.0  # shown by the same display before it was started again
    earlier_steps: int = 0  # of completed rounds
    earlier_shown: int = 0  # steps that were shown before the current round
    began_at: int | None = None  # the very first step shown
    loss: float | None = None
    warmup: int = 0  # first steps left out of statistics, but not of the total time
    warmup_rows: int = 0  # those of them that showed a speed
    warmup_s: array = field(default_factory=lambda: array("d"))
    seconds: array = field(default_factory=lambda: array("d"))
    rates: array = field(default_factory=lambda: array("d"))
    rate_unit: str = ""
    thinned: int = 1
    sampled: bool = False  # of a long log not every row was read
    _phase: int = 0
    _stride: int = 1
    _holes: list[int] = field(default_factory=list)  # the largest distances between rows of this round
    _rows: int = 0  # of this round
    _last_round_s: float | None = None
    _clock: float | None = None
    _clock_start: float | None = None
    _total_range: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        self.rate_unit = self.rate_unit or self.format.rate_unit

    def add(self, p: ProgressLine) -> None:
        seconds = p.seconds
        if p.step <= self.last:
            again = self.at_end and p.step * 2 < self.last  # a bar that is drawn for every epoch
            if not again and p.step > self.last - max(RESTART_GAP, RESTART_ROWS * self._stride):
                return
            self._start_again(again)
        elif self._is_echo(p):
            return
        if p.clock_s is not None:
            seconds, p.elapsed_s = self._by_clock(p)
        if self._rows:
            self._stride = max(1, p.step - self.last)
            self._note_stride(self._stride)
        self.last = p.step
        self.first = p.step if self.first is None else self.first
        self.began_at = p.step if self.began_at is None else self.began_at
        self.count += 1
        self._rows += 1
        if p.elapsed_s is not None:
            self.elapsed_s = p.elapsed_s
            self.first_elapsed_s = p.elapsed_s if self.first_elapsed_s is None else self.first_elapsed_s
        if p.loss is not None:
            self.loss = p.loss
        if p.percent:
            self._note_total(p.step, p.percent)
        self.rate_unit = p.rate_unit or self.rate_unit
        self._phase += 1
        if self.began_at + self.warmup > p.step and not self.restarts:
            self.warmup_rows += seconds is not None or p.rate is not None
            if seconds is not None and 0 < seconds < 1e9:
                self.warmup_s.append(seconds)
            return
        if self._phase % self.thinned or p.step < self.format.skip_first:
            return
        if seconds is not None and 0 < seconds < 1e9:
            self.seconds.append(seconds)
        if p.rate is not None and 0 < p.rate < 1e9:
            self.rates.append(p.rate)
        if len(self.seconds) >= MAX_SAMPLES or len(self.rates) >= MAX_SAMPLES:
            self.seconds, self.rates = self.seconds[::2], self.rates[::2]
            self.thinned *= 2

    def add_all(self, steps: NDArray[np.float64], values: Mapping[str, NDArray[np.float64]]) -> None:
        """Add rows of a table: `seconds`, `rate`, `loss`, NaN where there is none."""
        if (
            self.count > EXACT_ROWS
            and len(steps) > ROWS_PER_BLOCK
            and steps[0] > self.last
            and np.all(np.diff(steps) > 0)
        ):
            kept = np.append(np.arange(0, len(steps) - 1, len(steps) // ROWS_PER_BLOCK), len(steps) - 1)
            steps, values = steps[kept], {k: v[kept] for k, v in values.items()}
            self.sampled = True
        columns = [
            [None if math.isnan(x) else x for x in values[k].tolist()] if k in values else [None] * len(steps)
            for k in ("seconds", "rate", "loss")
        ]
        for step, seconds, rate, loss in zip(steps.tolist(), *columns, strict=True):
            self.add(ProgressLine(int(step), seconds=seconds, rate=rate, loss=loss))

    def _start_again(self, complete: bool) -> None:
        self.restarts += 1
        self.earlier_s += self.elapsed_s or 0.0
        self.earlier_shown += self._shown_in_round()
        if complete:
            self.earlier_steps += self.last
        self._last_round_s, self.last = self.elapsed_s, -1
        self.first, self.first_elapsed_s, self.elapsed_s = None, None, None
        self._holes, self._rows, self._clock, self._clock_start = [], 0, None, None

    def _is_echo(self, p: ProgressLine) -> bool:
        """Return True for another rank's last row of the round before, after the first row of this one."""
        return (
            self._last_round_s is not None
            and self._last_round_s >= 2
            and p.step == self.total
            and p.elapsed_s is not None
            and (self.elapsed_s or 0) <= 1
            and self.last * 2 < p.step
            and abs(p.elapsed_s - self._last_round_s) <= 1
        )

    def _by_clock(self, p: ProgressLine) -> tuple[float | None, float]:
        """Return seconds per step since the row before and since the first one, from the lines' times of day."""
        assert p.clock_s is not None
        seconds = (
            (p.clock_s - self._clock) / (p.step - self.last)
            if self._clock is not None and p.step > self.last
            else None
        )
        self._clock = p.clock_s
        self._clock_start = p.clock_s if self._clock_start is None else self._clock_start
        return seconds, max(0.0, p.clock_s - self._clock_start)

    def _note_stride(self, stride: int) -> None:
        if len(self._holes) < MAX_HOLES:
            heapq.heappush(self._holes, stride)
        elif stride > self._holes[0]:
            heapq.heapreplace(self._holes, stride)

    def _note_total(self, step: int, percent: float) -> None:
        """Narrow down the total by a percentage that was rounded to two decimals."""
        low, high = step / (percent + 0.005) * 100, step / max(percent - 0.005, 1e-9) * 100
        low, high = max(low, self._total_range[0]), min(high, self._total_range[1])
        self._total_range = (low, high) if low <= high else (0.0, math.inf)

    @property
    def stated_total(self) -> int | None:
        """Return the number of steps requested: as shown, or the one round number that fits the percentages."""
        if self.total is not None:
            return None if self.earlier_steps else self.total  # the total of one round
        low, high = math.ceil(self._total_range[0]), self._total_range[1]
        if math.isinf(high) or low <= 0:
            return None
        high = math.floor(high)
        if low == high:
            return low
        hundred = -(-low // 100) * 100
        return hundred if hundred <= high < hundred + 100 else None

    @property
    def num_steps(self) -> int:
        """Return steps (epochs) done: those of completed rounds and the last one shown, counted from 1."""
        from_zero = self.format.from_zero or (self.format.epochs and self.began_at == 0)
        return self.earlier_steps + max(self.last + from_zero, 0)

    def _shown_in_round(self) -> int:
        """Return the steps of the current round that its rows, or the display's own clock, cover."""
        if self.first is None:
            return 0
        if self.elapsed_s is not None and self.first_elapsed_s is not None:
            # A clock that ran before the first row covers the steps before it as well.
            step_s = self._clock_mean() or (statistics.fmean(self.seconds) if self.seconds else 0.0)
            before = min(self.first, round(self.first_elapsed_s / step_s)) if step_s > 0 else 0
            if self.first_elapsed_s > 0 and self.first <= before * 1.1 + 1:
                before = self.first
            return self.last - self.first + max(before, 1)
        usual = self._usual_stride()
        large = max(RESTART_GAP, HOLE_STRIDES * usual)
        missing = 0 if self.sampled else sum(h - usual for h in self._holes if h > large)
        return round(self.last - self.first + min(usual, self.first + 1) - missing)

    def _usual_stride(self) -> float:
        rest = self.last - (self.first or 0) - sum(self._holes)
        if self._rows - 1 > len(self._holes):
            return max(1.0, rest / (self._rows - 1 - len(self._holes)))
        return float(min(self._holes, default=1))

    @property
    def steps_shown(self) -> int:
        """Return the number of distinct steps whose time this log shows."""
        return self.earlier_shown + self._shown_in_round()

    @property
    def timed(self) -> bool:
        """True if the display shows its speed."""
        return bool(self.seconds or self.rates) or self.elapsed_s is not None

    @property
    def covers_run(self) -> bool:
        return self.steps_shown >= COVERED * self.num_steps

    @property
    def range_shown(self) -> tuple[int, int]:
        """Return the first and the last step shown."""
        return self.began_at or 0, max(self.last, 0)

    def stepping_s(self) -> float | None:
        """Return the seconds of the steps shown: by the display's clock, or their mean times their number."""
        if self.elapsed_s is not None:
            return self.earlier_s + self.elapsed_s
        if not self.warmup_s:
            step_s = self.step_time()
            return step_s.mean * self.steps_shown if step_s is not None else None
        num = len(self.warmup_s) + self.thinned * len(self.seconds)
        return (sum(self.warmup_s) + self.thinned * sum(self.seconds)) / num * self.steps_shown

    def step_time(self) -> StepTime | None:
        """Return statistics of the seconds per step over the rows shown, or None if the display shows no times."""
        if not self.seconds:
            return None
        values = sorted(self.seconds)
        mean = (None if self.warmup else self.span_mean()) or statistics.fmean(values)
        median, p5, p95 = (_quantile(values, q) for q in (0.5, 0.05, 0.95))
        return StepTime(median=median, mean=mean, p5=p5, p95=p95)

    def span_mean(self) -> float | None:
        """Return the mean by the display's own clock (1 s resolution), if it ran long enough."""
        return None if self.restarts else self._clock_mean()

    def _clock_mean(self) -> float | None:
        if self.elapsed_s is None or self.first_elapsed_s is None or self.first is None:
            return None
        steps, seconds = self.last - self.first, self.elapsed_s - self.first_elapsed_s
        return seconds / steps if steps > 0 and seconds >= 20 else None

    @property
    def at_end(self) -> bool:
        """True if a bar stands at its total."""
        return self.total is not None and self.last >= self.total - (not self.format.bar) > 0

    @property
    def complete(self) -> bool:
        return self.total is not None and self.last >= self.total - (0 if self.format.epochs else 1) > 0


def _quantile(values: Sequence[float], q: float) -> float:
    """Return the linearly interpolated quantile of sorted `values`."""
    at = q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])
