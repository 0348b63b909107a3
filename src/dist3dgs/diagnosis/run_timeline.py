"""Course of a job from one pass over its logs: steps and their times, phases, throughput, its end."""

import re
import statistics
from itertools import pairwise
from typing import NamedTuple

from ..logs.facts import Line
from ..logs.step_series import StepSeries
from ..runs.record import Evidence, Model, StepTime
from .progress import NO_TRAINING
from .scan import REPEATS_RANKS, Scan

#: Text before the progress bar of an evaluation.
EVALUATION = re.compile(r"(?i)\beval|\bvalid|\btest|\brender")
#: Lines of results that may follow a program's own run time; below more of them something else runs.
MAX_RESULT_LINES = 64
#: Time left in a progress line: `eta: 0:12:04`, `eta: 1 day, 2:00:01`.
ETA = re.compile(r"(?i)\beta:? +(?:\d+ days?, )?\d+(?::\d\d)+")


class Rate(Model):
    """Throughput as the log shows it."""

    unit: str
    mean: float
    median: float
    last: float
    per_epoch: bool = False


class EpochTime(Model):
    """Seconds per epoch."""

    mean: float
    median: float
    last: float


def main_series(scan: Scan) -> StepSeries | None:
    """Choose the training's own progress display: by format, then the one that ran longest."""
    able = [
        s
        for s in scan.series.values()
        if s.last >= 0 and not s.format.epochs and not NO_TRAINING.search(s.description)
    ]
    able = [s for s in able if s.format.name != "metrics.csv"]
    weak = ("tqdm", "key value", "key value with time", "trainer dict", "opensplat")
    return max(
        able,
        key=lambda s: (bool(s.seconds), s.format.name not in weak, s.elapsed_s or 0, s.count),
        default=None,
    )


def iterations(scan: Scan, series: StepSeries | None) -> tuple[int | None, int | None]:
    """Return training steps done and requested."""
    asked = scan.facts.get("iterations_asked")
    if scan.events is not None and scan.events.num_events:
        return max([scan.events.last_step, *scan.events.steps.values()]), asked
    if series is None or series.format.name == "trainer dict":
        return scan.facts.get("steps_done"), asked
    total = (
        asked
        or series.stated_total
        or next((o.total for o in scan.series.values() if o.total == series.last + 1), None)
    )
    # Displays that count from 0 end at total - 1.
    done = total if total and series.last == total - 1 else series.num_steps
    return done, total


def epochs(scan: Scan) -> int | None:
    """Return the number of epochs done."""
    return max((s.num_steps for s in scan.series.values() if s.format.epochs and s.last >= 0), default=None)


class Pace(NamedTuple):
    """Seconds per step, and the share of the run that they cover."""

    step_s: StepTime | None = None
    kind: str | None = None
    series: StepSeries | None = None  # None: of all steps, as the trainer states it

    @property
    def shown(self) -> tuple[int, int] | None:
        """Return the first and last step shown, if they are less than the run."""
        return self.series.range_shown if self.series is not None and not self.series.covers_run else None


def pace(scan: Scan, series: StepSeries | None) -> Pace:
    events = scan.events
    if events is not None and events.step_s:
        slowest = max(events.step_s.values(), key=lambda s: s.get("mean", 0.0))
        if {"median", "mean", "p5", "p95"} <= slowest.keys():
            return Pace(StepTime(**slowest), "per step")
    if series is not None and (step_s := series.step_time()) is not None:
        kind = "moving average" if series.format.smoothed else "per step"
        return Pace(step_s, "between lines" if series.format.name == "key value with time" else kind, series)
    for s in scan.series.values():
        if s.format.epochs and (step_s := s.step_time()) is not None:
            return Pace(step_s, "per epoch", s)
    return Pace()


def phases(scan: Scan, series: StepSeries | None) -> tuple[dict[str, float], float | None]:
    """Return the seconds of each phase that the log states, and of the whole job."""
    events, f = scan.events, scan.facts
    if events is not None and events.phases_s:
        names = dict.fromkeys(name for phases in events.phases_s.values() for name in phases)
        slowest = {n: max(p.get(n, 0.0) for p in events.phases_s.values()) for n in names}
        span = (
            events.last_t - events.started_at
            if events.last_t is not None and events.started_at is not None
            else None
        )
        return slowest, span
    total = stated = f.get("duration_s") or f.get("train_s")
    start = min(scan.first_time.values(), default=None)
    end = max(scan.last_time.values(), default=None)
    if total is None and start is not None and end is not None and end > start:
        total = end - start
    if total is None:
        total = samples_s(scan)
    marks = [(x.value, x.line.time) for x in f.many.get("mark", []) if x.line.time is not None]
    phases: dict[str, float] = {}
    names = {"start": "environment", "caching_eval": "caching_eval", "caching_train": "caching"}
    begin = next((t for name, t in marks if name == "start"), start)
    order = [("start", begin), *[(n, t) for n, t in marks if n not in ("start", "end")]]
    for (name, t), (_, t_next) in pairwise(order):
        phase = names.get(str(name))
        if t is not None and t_next is not None and t_next >= t and phase is not None:
            phases[phase] = phases.get(phase, 0.0) + t_next - t
    stepping = f.get("stepping_s") or _stepping(scan, series)
    if stepping is not None:
        phases["stepping"] = stepping
    if (evaluation := _evaluation(scan)) is not None:
        phases["evaluation"] = evaluation
    if not stated and total is not None and total < max(phases.values(), default=0.0):
        total = None  # the lines with times of day are not from the whole job
    if total is not None and not phases and not scan.series and marks and f.get("trainer") == "nerfstudio":
        phases["environment"] = total  # it prints its first step at once, so it never got there
    if total is not None and "stepping" in phases and total >= sum(phases.values()):
        phases["other"] = total - sum(phases.values())
    return phases, total


def samples_s(scan: Scan) -> float | None:
    """Return the seconds over which the job's resources were sampled."""
    times = [(g.first_t, g.last_t) for _, gpus in scan.gpu_logs for g in gpus.values()]
    times += [(n.first_t, n.last_t) for n in scan.nodes]
    spans = [p.elapsed_s for p in scan.processes]
    spans += [last - first for first, last in times if first is not None and last is not None]
    return max((s for s in spans if s > 0), default=None)


def _evaluation(scan: Scan) -> float | None:
    """Return the seconds of evaluations: from progress bars, if all were read, or as lines state."""
    bars = [s for s in scan.series.values() if EVALUATION.search(s.description) and s.elapsed_s is not None]
    if not bars:
        return _stated_evaluation(scan)
    if any(s.sampled for s in bars):
        return None
    return sum(s.earlier_s + (s.elapsed_s or 0.0) for s in bars)


def _stated_evaluation(scan: Scan) -> float | None:
    """Add up one wording on one rank: others state the same evaluations."""
    stated = scan.facts.many.get("evaluation_s", [])
    if len(stated) >= REPEATS_RANKS:  # not every one of so many was read
        return None
    sums: dict[str, float] = {}
    for fact in stated:
        wording, seconds = fact.value
        sums[wording] = sums.get(wording, 0.0) + seconds
    return max(sums.values(), default=None)


def _stepping(scan: Scan, series: StepSeries | None) -> float | None:
    """Return the seconds of all training steps; None if this log shows only some of them."""
    if series is None:
        series = next((s for s in scan.series.values() if s.format.epochs and s.seconds), None)
    return series.stepping_s() if series is not None and series.covers_run else None


def rates(scan: Scan, pace: Pace) -> list[Rate]:
    """List the rates that displays show, and steps per second where the mean is that of the run."""
    rates = [
        Rate(
            unit=s.rate_unit,
            mean=statistics.fmean(s.rates),
            median=statistics.median(s.rates),
            last=s.rates[-1],
            per_epoch=s.format.epochs,
        )
        for s in scan.series.values()
        if s.rates and s.rate_unit and s.covers_run
    ]
    step_s = pace.step_s
    if step_s is not None and pace.kind != "per epoch" and pace.shown is None and step_s.mean > 0:
        rate = 1 / step_s.mean
        rates.append(Rate(unit="steps/s", mean=rate, median=1 / step_s.median, last=rate))
    return rates


def epoch_time(scan: Scan) -> EpochTime | None:
    """Return the seconds per epoch, if the log shows them for all."""
    for s in scan.series.values():
        if s.format.epochs and s.seconds and s.covers_run:
            return EpochTime(
                mean=statistics.fmean(s.seconds), median=statistics.median(s.seconds), last=s.seconds[-1]
            )
    return None


def finished(scan: Scan, series: StepSeries | None) -> Evidence | None:
    """Find the trainer's statement that it completed: its banner, our `end` event, a display at its total."""
    if scan.events is not None and scan.events.end is not None:
        event, line = scan.events.end
        return _evidence(line) if event.get("status") == "ok" else None
    if scan.events is not None and scan.events.num_events:
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
    if (fact := scan.facts.one.get("loop_left")) is not None and _loop_ended(scan, fact.line):
        return _evidence(fact.line)
    times = scan.facts.many.get("own_time", [])
    if len(times) == 1 and not any(p.last for p in scan.progress.values()):
        line = times[0].line
        num_lines = next((f.lines for f in scan.files if f.path == line.file), 0)
        if num_lines - (line.number or 0) <= MAX_RESULT_LINES:
            return _evidence(line)
    if (code := scan.facts.one.get("exit_code")) is not None:
        return _evidence(code.line)
    return None


def _loop_ended(scan: Scan, left: Line) -> bool:
    """Find the end of a loop that was not left early and whose evaluation gave results."""
    begun, results = _place(scan, "begun"), _place(scan, "results")
    return not _time_was_left(scan, left.file) and begun <= max(left.number or 0, results)


def _place(scan: Scan, key: str) -> int:
    return (scan.facts.one[key].line.number or 0) if key in scan.facts.one else 0


def _time_was_left(scan: Scan, file: str) -> bool:
    """Return True if the file's last progress line shows that the training was not complete."""
    last = next((p.last for p in scan.progress.values() if p.last and p.last.file == file), None)
    m = ETA.search(last.text) if last is not None else None
    return m is not None and re.search(r"[1-9]", m[0]) is not None


def _evidence(line: Line) -> Evidence:
    return Evidence(file=line.file, line=line.number, text=line.text.strip()[:1000])
