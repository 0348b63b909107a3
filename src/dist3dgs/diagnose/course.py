"""How a job went, from one pass over its logs: steps and their times, phases, throughput, its end."""

import re
import statistics
from itertools import pairwise
from typing import Any

from ..record import Evidence, Model, StepTime
from .facts import Line
from .scan import Scan
from .steps import StepSeries
from .text import NO_TRAINING

#: What stands before the progress bar of an evaluation.
EVALUATION = re.compile(r"(?i)\beval|\bvalid|\btest")


class Rate(Model):
    """Throughput as the log shows it."""

    unit: str
    mean: float
    last: float


def main_series(scan: Scan) -> StepSeries | None:
    """The training's own progress display: the most telling format, then the one that ran longest."""
    able = [
        s
        for s in scan.series.values()
        if s.last >= 0 and not s.format.epochs and not NO_TRAINING.search(s.description)
    ]
    able = [s for s in able if s.format.name != "metrics.csv"]
    weak = ("tqdm", "key value", "trainer dict", "opensplat")
    return max(
        able,
        key=lambda s: (bool(s.seconds), s.format.name not in weak, s.elapsed_s or 0, s.count),
        default=None,
    )


def iterations(scan: Scan, series: StepSeries | None) -> tuple[int | None, int | None]:
    asked = scan.facts.get("iterations_asked")
    if scan.diary is not None and scan.diary.num_events:
        return max([scan.diary.last_step, *scan.diary.steps.values()]), asked
    if series is None or series.format.name == "trainer dict":
        return None, asked
    total = (
        asked
        or series.total
        or next((o.total for o in scan.series.values() if o.total == series.last + 1), None)
    )
    # Displays that count from 0 end at total - 1.
    done = total if total and series.last == total - 1 else series.num_steps
    return done, total


def step_time(scan: Scan, series: StepSeries | None) -> tuple[StepTime | None, Any]:
    diary = scan.diary
    if diary is not None and diary.step_s:
        slowest = max(diary.step_s.values(), key=lambda s: s.get("mean", 0.0))
        if {"median", "mean", "p5", "p95"} <= slowest.keys():
            return StepTime(**slowest), "per step"
    if series is not None:
        step_s = series.step_time()
        if step_s is not None:
            return step_s, "moving average" if series.format.smoothed else "per step"
    for s in scan.series.values():
        if s.format.epochs and (step_s := s.step_time()) is not None:
            return step_s, "per epoch"
    return None, None


def phases(
    scan: Scan, series: StepSeries | None, iterations: int | None
) -> tuple[dict[str, float], float | None]:
    diary, f = scan.diary, scan.facts
    if diary is not None and diary.phases_s:
        names = dict.fromkeys(name for phases in diary.phases_s.values() for name in phases)
        slowest = {n: max(p.get(n, 0.0) for p in diary.phases_s.values()) for n in names}
        span = (
            diary.last_t - diary.started_at
            if diary.last_t is not None and diary.started_at is not None
            else None
        )
        return slowest, span
    total = f.get("duration_s") or f.get("train_s")
    start = min(scan.first_time.values(), default=None)
    end = max(scan.last_time.values(), default=None)
    if total is None and start is not None and end is not None and end > start:
        total = end - start
    marks = [(x.value, x.line.time) for x in f.many.get("mark", []) if x.line.time is not None]
    phases: dict[str, float] = {}
    names = {"start": "environment", "caching_eval": "caching_eval", "caching_train": "caching"}
    begin = next((t for name, t in marks if name == "start"), start)
    order = [("start", begin), *[(n, t) for n, t in marks if n not in ("start", "end")]]
    for (name, t), (_, t_next) in pairwise(order):
        phase = names.get(str(name))
        if t is not None and t_next is not None and t_next >= t and phase is not None:
            phases[phase] = phases.get(phase, 0.0) + t_next - t
    stepping = f.get("stepping_s") or _stepping(series, iterations)
    if stepping is not None:
        phases["stepping"] = stepping
    if (evaluation := _evaluation(scan)) is not None:
        phases["evaluation"] = evaluation
    if total is not None and not phases and iterations is None and marks:
        phases["environment"] = total  # it never came further
    if total is not None and phases and total >= sum(phases.values()):
        phases["other"] = total - sum(phases.values())
    return phases, total


def _evaluation(scan: Scan) -> float | None:
    """Seconds that progress bars of evaluations show, where all of them were read."""
    bars = [s for s in scan.series.values() if EVALUATION.search(s.description) and s.elapsed_s is not None]
    if not bars or any(s.sampled for s in bars):
        return None
    return sum(s.earlier_s + (s.elapsed_s or 0.0) for s in bars)


def _stepping(series: StepSeries | None, iterations: int | None) -> float | None:
    if series is None or not iterations:
        return None
    if series.elapsed_s is not None and not series.restarts:
        return series.elapsed_s
    step_s = series.step_time()
    return step_s.mean * iterations if step_s is not None else None


def rates(scan: Scan, step_s: StepTime | None, kind: str | None) -> list[Rate]:
    rates = [
        Rate(unit=s.format.rate_unit, mean=statistics.fmean(s.rates), last=s.rates[-1])
        for s in scan.series.values()
        if s.rates and s.format.rate_unit
    ]
    if step_s is not None and kind != "per epoch" and step_s.mean > 0:
        rates.append(Rate(unit="steps/s", mean=1 / step_s.mean, last=1 / step_s.mean))
    return rates


def finished(scan: Scan, series: StepSeries | None) -> Evidence | None:
    """The trainer's own word that it came to its end: its banner, our `end` event, a display at its total."""
    if scan.diary is not None and scan.diary.end is not None:
        event, line = scan.diary.end
        return _evidence(line) if event.get("status") == "ok" else None
    if scan.diary is not None and scan.diary.num_events:
        return None
    if (state := scan.facts.one.get("job_state")) and str(state.value).startswith("COMPLETED"):
        return _evidence(state.line)
    if (fact := scan.facts.one.get("finish")) is not None:
        return _evidence(fact.line)
    complete = [
        s
        for s in scan.series.values()
        if s.complete and not NO_TRAINING.search(s.description) and (s is series or s.format.epochs)
    ]
    last = next((p.last for p in scan.progress.values() if p.last), None)
    return _evidence(last) if complete and last is not None else None


def ended(scan: Scan) -> Evidence | None:
    if (code := scan.facts.one.get("exit_code")) and code.value != 0:
        return None
    for key in ("wrapper_finish", "teardown"):
        if (fact := scan.facts.one.get(key)) is not None:
            return _evidence(fact.line)
    if (code := scan.facts.one.get("exit_code")) is not None:
        return _evidence(code.line)
    return None


def _evidence(line: Line) -> Evidence:
    return Evidence(file=line.file, line=line.number, text=line.text.strip()[:1000])
