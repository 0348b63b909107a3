"""Step times from the consoles of many trainers: what a progress line looks like, and statistics over all of them.

A format is searched for in whole blocks of a log, and only after one of its lines was seen. Each step counts once:
nerfstudio draws its table anew with every row, eight ranks print the same step, a progress bar is redrawn.
"""

# ruff: noqa: E501 (a pattern is read best on one line)

import re
import statistics
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..record import StepTime

#: Beyond this many samples every second one is dropped and the rest weigh double: 2 MiB per series at most.
MAX_SAMPLES = 1 << 17
#: A step this many steps and rows below the highest seen is a restart, not an echo of another rank or a redrawn row.
RESTART_GAP = 64
RESTART_ROWS = 32

UNIT_S = {b"d": 86400.0, b"h": 3600.0, b"m": 60.0, b"s": 1.0, b"ms": 1e-3}
MULTIPLE = {b"": 1.0, b"K": 1e3, b"M": 1e6, b"B": 1e9}


@dataclass(slots=True)  # not frozen: a log has a million, and freezing makes each three times as dear
class Progress:
    """One progress line. `step` counts from 0 or 1 as the trainer does."""

    step: int
    total: int | None = None
    seconds: float | None = None  # per step
    elapsed_s: float | None = None  # since the trainer's start of counting
    rate: float | None = None  # in `StepFormat.rate_unit`
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class StepFormat:
    """How one trainer prints progress. `parse` gets the pattern's groups and may raise ValueError to skip."""

    name: str
    pattern: re.Pattern[bytes]
    parse: Callable[[Sequence[bytes]], Progress]
    rate_unit: str = ""
    redrawn: bool = False  # the same rows stand in the file many times
    smoothed: bool = False  # the time is a moving average: its percentiles are too narrow
    epochs: bool = False  # counts epochs, not steps
    skip_first: int = 0  # steps whose shown time includes start-up


@dataclass
class StepSeries:
    """Statistics of one progress display in bounded memory."""

    format: StepFormat
    total: int | None = None
    description: str = ""
    last: int = -1
    first: int | None = None
    count: int = 0  # progress lines that counted
    restarts: int = 0
    elapsed_s: float | None = None
    first_elapsed_s: float | None = None
    earlier_s: float = 0.0  # shown by the same display before it was started again
    loss: float | None = None
    seconds: array = field(default_factory=lambda: array("d"))
    rates: array = field(default_factory=lambda: array("d"))
    thinned: int = 1
    sampled: bool = False  # of a long log not every row was read
    _phase: int = 0
    _stride: int = 1

    def add(self, p: Progress) -> None:
        if p.step <= self.last:
            again = self.complete and p.step * 2 < self.last  # a short bar that is drawn for every evaluation
            if not again and p.step > self.last - max(RESTART_GAP, RESTART_ROWS * self._stride):
                return
            self.restarts += 1
            self.earlier_s += self.elapsed_s or 0.0
        self._stride = max(1, p.step - self.last)
        self.last = p.step
        self.first = p.step if self.first is None else self.first
        self.count += 1
        if p.elapsed_s is not None:
            self.elapsed_s = p.elapsed_s
            self.first_elapsed_s = p.elapsed_s if self.first_elapsed_s is None else self.first_elapsed_s
        if p.loss is not None:
            self.loss = p.loss
        self._phase += 1
        if self._phase % self.thinned or p.step < self.format.skip_first:
            return
        if p.seconds is not None and 0 < p.seconds < 1e9:
            self.seconds.append(p.seconds)
        if p.rate is not None and 0 < p.rate < 1e9:
            self.rates.append(p.rate)
        if len(self.seconds) >= MAX_SAMPLES or len(self.rates) >= MAX_SAMPLES:
            self.seconds, self.rates = self.seconds[::2], self.rates[::2]
            self.thinned *= 2

    @property
    def num_steps(self) -> int:
        """Steps done: the last one shown, counting from 1 (a 0-based display that names its total ends one short)."""
        if (
            self.total is not None
            and self.last == self.total - 1
            and self.format.name in ("nerfstudio", "gsplat stats")
        ):
            return self.total
        return max(self.last, 0)

    def step_time(self) -> StepTime | None:
        """Statistics of the seconds per step, or None if the display shows no times."""
        if self.seconds:
            values = sorted(self.seconds)
            mean = self.span_mean() or statistics.fmean(values)
            return StepTime(median=_quantile(values, 0.5), mean=mean, p5=_quantile(values, 0.05), p95=_quantile(values, 0.95))  # fmt: skip
        return None

    def span_mean(self) -> float | None:
        """Mean from the display's own clock (1 s resolution), if it ran long enough to mean something."""
        if self.elapsed_s is None or self.first_elapsed_s is None or self.first is None or self.restarts:
            return None
        steps, seconds = self.last - self.first, self.elapsed_s - self.first_elapsed_s
        return seconds / steps if steps > 0 and seconds >= 20 else None

    @property
    def complete(self) -> bool:
        return self.total is not None and self.last >= self.total - (0 if self.format.epochs else 1) > 0


def _quantile(values: Sequence[float], q: float) -> float:
    """Linear-interpolated quantile of sorted `values`."""
    at = q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def parse_duration(text: bytes) -> float:
    """Seconds of `4 m, 9 s`, `81.297 ms`, `1 d, 19 h, 58 m, 12 s`. Raises ValueError on anything else."""
    parts = re.findall(rb"([\d.]+) (ms|[dhms])\b", text)
    if not parts:
        raise ValueError(text)
    return sum(float(number) * UNIT_S[unit] for number, unit in parts)


def parse_clock(text: bytes) -> float:
    """Seconds of `41`, `05:12`, `1:02:03` or `2 days, 1:02:03`."""
    parts = text.split(b":")
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit():
        return 60.0 * int(parts[0]) + int(parts[1])
    days, _, clock = text.rpartition(b" day")
    seconds = 0.0
    for part in clock.replace(b"s, ", b"").replace(b", ", b"").split(b":"):
        seconds = seconds * 60 + float(part)
    return seconds + (float(days) * 86400 if days else 0.0)


def _number(text: bytes) -> float:
    return float(text.replace(b",", b""))


def _int(text: bytes) -> int | None:
    return int(text) if text else None


def _nerfstudio(g: Sequence[bytes]) -> Progress:
    rate = re.search(rb" ([\d.]+) ?([KMB]?)$", g[2].rstrip())
    return Progress(
        int(g[0]),
        seconds=parse_duration(g[1]) if g[1] else None,
        rate=float(rate[1]) * MULTIPLE[rate[2]] if rate else None,
    )


def _tqdm(g: Sequence[bytes]) -> Progress:
    rate = float(g[3])
    seconds = rate if g[4] == b"s/it" else (1 / rate if rate > 0 else None)
    return Progress(int(g[0]), int(g[1]), seconds=seconds, elapsed_s=parse_clock(g[2]))


def _megatron(g: Sequence[bytes]) -> Progress:
    return Progress(int(g[0]), int(g[1]), seconds=float(g[3]) * (1e-3 if g[2] == b"ms" else 1))


def _epoch(g: Sequence[bytes]) -> Progress:
    return Progress(int(g[0]), int(g[1]), seconds=float(g[2]) if g[2] else None, rate=_number(g[3]) if g[3] else None)  # fmt: skip


NUM = rb"([\d.]+)"
FORMATS: tuple[StepFormat, ...] = (
    StepFormat(
        "nerfstudio",
        re.compile(rb"(?m)^\r?(\d+) \(\d+\.\d+%\)(?: +((?:[\d.]+ (?:ms|[dhms])(?:, )?)+))?([^\n\x1b]*)"),
        _nerfstudio,
        rate_unit="rays/s",
        redrawn=True,
        smoothed=True,
        skip_first=20,
    ),
    StepFormat(
        "tqdm",
        re.compile(rb"%\|[^|\n]*\| *(\d+)/(\d+) \[([\d:]+)<[^,\]\n]*, +" + NUM + rb"(it/s|s/it)"),
        _tqdm,
        smoothed=True,
    ),
    StepFormat(
        "megatron",
        re.compile(rb"iteration +(\d+)/ *(\d+) \|[^\n]*?elapsed time per iteration \((ms|s)\): " + NUM),
        _megatron,
    ),
    StepFormat(
        "epochs",
        re.compile(rb"[Ee]poch:? *\[?(\d+)/(\d+)\]?(?![^\n]*it/s)(?:[^\n]*?\b[Tt]ime:? *" + NUM + rb" ?s\b)?(?:[^\n]*?Throughput: " + NUM + rb" img/s)?"),
        _epoch,
        rate_unit="img/s",
        epochs=True,
    ),
    StepFormat(
        "step dt",
        re.compile(rb"[Ss]tep (\d+)(?:/(\d+))? \([\d.]+%\) \|[^\n]*?dt: ([\d.]+)ms"),
        lambda g: Progress(int(g[0]), _int(g[1]), seconds=float(g[2]) * 1e-3),
    ),
    StepFormat(
        "detectron",
        re.compile(rb"iter: (\d+) [^\n]*?\btime: " + NUM),
        lambda g: Progress(int(g[0]), seconds=float(g[1])),
        smoothed=True,
    ),
    StepFormat(
        "mmengine",
        re.compile(rb"Epoch ?(?:\(train\))? *\[(\d+)\]\[ *(\d+)/(\d+)\][^\n]*?\b[Tt]ime:? +" + NUM),
        lambda g: Progress((int(g[0]) - 1) * int(g[2]) + int(g[1]), seconds=float(g[3])),
    ),
    StepFormat(
        "gsplat stats",
        re.compile(rb"Step: +(\d+) \{[^\n]*?'ellipse_time': " + NUM),
        lambda g: Progress(int(g[0]), elapsed_s=float(g[1])),
    ),
    StepFormat(
        "opensplat", re.compile(rb"Step (\d+): [\d.]+ \(\d+%\)"), lambda g: Progress(int(g[0]))
    ),
    StepFormat(
        "key value",
        re.compile(
            rb"(?:\b[Ss]tep|\b[Ii]ter(?:ation)?|opt_step|global_step)s?\]?[ \t=:#\[]+(\d+)(?: ?/ ?(\d+))?\b"
            rb"(?=[^\n]*(?:loss|lr\b|learning rate|samples|tokens|psnr|elapsed))"
        ),
        lambda g: Progress(int(g[0]), _int(g[1])),
    ),
    StepFormat(
        "trainer dict",
        re.compile(rb"\{'loss': [^\n]*?'epoch': " + NUM + rb"\}"),
        lambda g: Progress(int(float(g[0]) * 1e6)),
    ),
)  # fmt: skip
