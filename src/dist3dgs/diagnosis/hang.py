"""Detect a hang that ended in a time limit or a cancellation."""

from collections.abc import Sequence

from ..logs.readers.events import Placed, RunEvents, time_of
from ..runs.record import Evidence
from .root_cause import OWN
from .rules import Hit
from .scan_result import Scan

#: Half an hour and ten times a step without a step is a hang.
SILENCE_S = 1800.0
SILENCE_STEPS = 10
#: If there was no step at all: an hour.
NO_STEP_S = 3600.0
#: Heartbeats prove more than silence: so long without a step, or so many if they state no time.
ALIVE_S = 600.0
ALIVE_BEATS = 20


def patience_s(step_s: float | None) -> float:
    """Return the seconds without progress that prove a hang; `step_s`: time of a step, None if there was none."""
    return NO_STEP_S if step_s is None else max(SILENCE_S, SILENCE_STEPS * step_s)


def silent_before(stop: Hit, scan: Scan) -> Sequence[Evidence] | None:
    """Return the last sign of progress, if the time from it to `stop` is provably long; else None.

    The last step's time is that on its own line or, at the latest, that of the next line which has one.
    """
    if scan.events is not None and (stop.file_index == OWN or scan.events.last_step_t is not None):
        return _by_events(scan.events, stop)
    if stop.line.time is None:
        return None
    steps = [p for p in scan.progress.values() if p.last is not None]
    if steps:
        known = [(t, p.last) for p in steps if p.last and (t := p.last.time or p.after_time) is not None]
        if len(known) < len(steps):
            return None
        t, line = max(known, key=lambda x: x[0])
        if stop.line.time - t < patience_s(_step_s(scan)):
            return None
        return [Evidence(file=line.file, line=line.number, text=line.text[:1000])]
    last = scan.last_stamped.get(stop.file_index)
    if last is None or last.time is None or stop.line.time - last.time < patience_s(None):
        return None
    return [Evidence(file=last.file, line=last.number, text=last.text[:1000])]


def only_alive(scan: Scan) -> Sequence[Evidence] | None:
    """Return the first and the last heartbeat at a job's end, if they went on for long without a step."""
    for index, beats in scan.heartbeats.items():
        stepped = {i for i, p in scan.progress.items() if p.last is not None} | {
            key[0] for key in scan.series
        }
        if stepped - {index}:
            continue  # the steps are in another file
        enough = ALIVE_S
        lines = [beats.first, beats.last]
        if index in stepped:
            enough = patience_s(_step_s(scan))
            last = scan.progress[index].last if index in scan.progress else None
            lines = [*([last] if last is not None else []), *lines]
        if beats.seconds is None:
            if stepped or beats.count < ALIVE_BEATS:
                continue
        elif beats.seconds < enough:
            continue
        return [Evidence(file=x.file, line=x.number, text=x.text.strip()[:1000]) for x in lines]
    return None


def _step_s(scan: Scan) -> float:
    means = [s.step_time() for s in scan.series.values() if not s.format.epochs]
    return max([m.mean for m in means if m is not None], default=0.0)


def last_sign(events: RunEvents) -> Placed | None:
    """Return the last event that shows the run going on; of a run that did not get so far the last one of all."""
    return events.progress or events.alive


def _by_events(events: RunEvents, stop: Hit) -> Sequence[Evidence] | None:
    """Compare Unix times alone: lines of the job's log have local ones.

    Where the stop is such a line, the last event (a signal, an error) is at or before it.
    """
    last = last_sign(events)
    own = stop.file_index == OWN
    end_t = stop.line.time if own else events.last_t
    if last is None or end_t is None or (t := time_of(last[0])) is None:
        return None
    means = [s.get("mean", 0.0) for s in events.step_s.values()]
    if end_t - t < patience_s(max([events.last_step_s, *means]) if events.progress else None):
        return None
    line = last[1]
    evidence = [Evidence(file=line.file, line=line.number, text=line.text[:1000])]
    if own:
        text = f"no event after it for {end_t - t:.0f} s, until {stop.line.text}"
        evidence.append(Evidence(file=stop.line.file, text=text))
    return evidence
