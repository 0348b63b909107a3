"""Read the use of a run's nodes and GPUs from the samples beside its record (`attempts/*/resources.*.csv`)."""

import csv
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runs.attempts import Attempt, attempts, continued_attempts
from ..runs.record import RunRecord

#: Width of the bins in which the most frequent value (mode) is looked for.
MODE_BIN = {
    "gpu_mem_gib": 0.25,
    "gpu_util_percent": 5.0,
    "gpu_power_w": 10.0,
    "pss_gib": 0.25,
    "cpu_percent": 10.0,
}
#: A gap longer than this between two samples is not bridged when energy is summed.
MAX_GAP_S = 30.0
NODE_QUANTITIES = ("cpu_percent", "rss_gib", "pss_gib", "page_cache_gib")
GPU_QUANTITIES = ("gpu_mem_gib", "gpu_util_percent", "gpu_power_w")
COUNTERS = (
    *("net_rx_bytes", "net_tx_bytes", "ib_rx_bytes", "ib_tx_bytes", "disk_read_bytes", "disk_write_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One quantity on one node, or on one GPU of it."""

    node: str
    gpu: int | None
    quantity: str
    times: list[float]
    """Unix seconds, ascending."""
    values: list[float]

    @property
    def peak(self) -> float:
        return max(self.values)

    @property
    def average(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def mode(self) -> float:
        """Median of the values in the fullest bin."""
        width = MODE_BIN.get(self.quantity, 1.0)
        fullest, _ = Counter(math.floor(v / width) for v in self.values).most_common(1)[0]
        return statistics.median(v for v in self.values if math.floor(v / width) == fullest)

    def integral(self) -> float:
        """Return value times seconds by the trapezoidal rule; from watts, joules."""
        steps = zip(self.times, self.times[1:], self.values, self.values[1:], strict=False)
        return sum((t1 - t0) * (a + b) / 2 for t0, t1, a, b in steps if 0 < t1 - t0 <= MAX_GAP_S)

    def growth(self) -> float:
        """Return the rise of a counter while it was sampled, summed over attempts where each starts it anew."""
        steps = zip(self.times, self.times[1:], self.values, self.values[1:], strict=False)
        return sum(b - a for t0, t1, a, b in steps if b > a and t1 - t0 <= MAX_GAP_S)


@dataclass(frozen=True)
class Span:
    """Time that the first rank spent in a phase, Unix seconds."""

    phase: str
    start: float
    end: float


def read_samples(point_folder: Path) -> list[Samples]:
    """Return all samples of a run's newest attempt; torn and foreign rows are skipped, no files give an empty list."""
    return _samples(attempts(point_folder)[-1:])


def read_chain(point_folder: Path) -> list[Samples]:
    """Like `read_samples`, for all attempts that make up the run: those whose time its record adds up."""
    return _samples(continued_attempts(point_folder))


def samples_elsewhere(records: Sequence[RunRecord], paths: Sequence[Path]) -> list[tuple[RunRecord, Path]]:
    """Return the records that were made with samples of which none lie beside them: only the records were copied."""
    return [
        (record, path)
        for record, path in zip(records, paths, strict=True)
        if any(name.startswith("resources.") for name in record.provenance.evidence_sha256)
        and not any(attempt.resources_paths() for attempt in attempts(path.parent))
    ]


def copy_command(path: Path) -> str:
    """Return the command that brings the attempts of all records of a study to where this one of them lies."""
    results = path.parents[4] if len(path.parents) > 4 else path.parent
    return (
        "rsync -a --include='*/' --include='attempts/***' --exclude='*' "
        f"HOST:PROJECT/results/ {shlex.quote(str(results))}/"
    )


def _samples(tried: Sequence[Attempt]) -> list[Samples]:
    found: dict[tuple[str, int | None, str], tuple[list[float], list[float]]] = {}
    for path in [path for attempt in tried for path in attempt.resources_paths()]:
        for time_s, node, gpu, quantity, value in _rows(path):
            times, values = found.setdefault((node, gpu, quantity), ([], []))
            # A node with several GPUs repeats the node's own values in each GPU's row.
            if times and (time_s < times[-1] or (gpu is None and time_s == times[-1])):
                continue
            times.append(time_s)
            values.append(value)
    return [
        Samples(node=node, gpu=gpu, quantity=quantity, times=times, values=values)
        for (node, gpu, quantity), (times, values) in sorted(
            found.items(), key=lambda x: (x[0][0], x[0][1] or 0, x[0][2])
        )
    ]


def _rows(path: Path) -> Iterator[tuple[float, str, int | None, str, float]]:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as f:
            for row in csv.DictReader(line.replace("\0", "") for line in f):
                time_s, index = _number(row.get("t")), _number(row.get("gpu_index"))
                if time_s is None:
                    continue
                for quantity in (*NODE_QUANTITIES, *COUNTERS, *(GPU_QUANTITIES if index is not None else ())):
                    value = _number(row.get(quantity))
                    gpu = int(index) if index is not None and quantity in GPU_QUANTITIES else None
                    if value is not None:
                        yield time_s, row.get("node") or path.stem, gpu, quantity, value
    except (OSError, csv.Error):
        return


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_spans(point_folder: Path) -> list[Span]:
    """Return phases of the newest attempt on rank 0, nested ones cut out of their outer ones.

    A phase that was never left (the run died in it) lasts to the rank's last event.
    """
    tried = attempts(point_folder)
    spans: list[Span] = []
    # Before its first event a rank starts Python and imports.
    since = tried[-1].summary().started_at if tried else None
    stack: list[str] = [] if since is None else ["startup"]
    for event in tried[-1].events() if tried else []:
        time_s, phase = event.get("t"), event.get("phase")
        if event.get("rank") != 0 or not isinstance(time_s, int | float):
            continue
        if stack and since is not None and time_s > since:
            spans.append(Span(stack[-1], since, time_s))
        since = time_s
        if event["event"] == "enter" and isinstance(phase, str):
            stack.append(phase)
        elif event["event"] == "leave" and stack:
            stack.pop()
    return merge(spans)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Join spans of one phase that touch; a densification of under a second inside stepping belongs to it."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: s.start):
        phase = "step" if span.phase == "densify" and span.end - span.start < 1 else span.phase
        last = merged[-1] if merged else None
        if last is not None and last.phase == phase and span.start - last.end < 1:
            merged[-1] = Span(phase, last.start, max(last.end, span.end))
        else:
            merged.append(Span(phase, span.start, span.end))
    return merged


def energy_wh(samples: Sequence[Samples]) -> float | None:
    """Return watt-hours drawn by all sampled GPUs, or None where no power was sampled."""
    power = [s for s in samples if s.quantity == "gpu_power_w" and len(s.values) > 1]
    return sum(s.integral() for s in power) / 3600 if power else None


def thin(samples: Samples, num: int) -> tuple[list[float], list[float]]:
    """At most about `num` points: the largest value of each stretch, so that no peak is lost."""
    size = math.ceil(len(samples.values) / num)
    starts = range(0, len(samples.values), max(size, 1))
    best = [max(range(i, min(i + size, len(samples.values))), key=samples.values.__getitem__) for i in starts]
    return [samples.times[i] for i in best], [samples.values[i] for i in best]
