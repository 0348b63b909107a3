"""Detect a job that stood still before it was stopped."""

from collections.abc import Sequence

from ..record import Evidence
from .readers.events import RunDiary
from .rules import Hit
from .scan import Scan

#: Half an hour, and ten times a step, without a step is no progress.
SILENCE_S = 1800.0
SILENCE_STEPS = 10
#: Without any step: an hour.
NO_STEP_S = 3600.0
#: Heartbeats alone prove more than silence does: so long without a step, or so many where they state no time.
ALIVE_S = 600.0
ALIVE_BEATS = 20


def silent_before(stop: Hit, scan: Scan) -> Sequence[Evidence] | None:
    """The last sign of progress, if the time from it to `stop` is provably long; else None.

    The last step's time is that on its own line or, at the latest, that of the next line which has one.
    """
    if scan.diary is not None and scan.diary.last_step_t is not None:
        return _by_diary(scan.diary)
    if stop.line.time is None:
        return None
    steps = [p for p in scan.progress.values() if p.last is not None]
    if steps:
        known = [(t, p.last) for p in steps if p.last and (t := p.last.time or p.after_time) is not None]
        if len(known) < len(steps):
            return None
        t, line = max(known, key=lambda x: x[0])
        means = [s.step_time() for s in scan.series.values() if not s.format.epochs]
        step_s = max([m.mean for m in means if m is not None], default=0.0)
        if stop.line.time - t < max(SILENCE_S, SILENCE_STEPS * step_s):
            return None
        return [Evidence(file=line.file, line=line.number, text=line.text[:1000])]
    last = scan.last_stamped.get(stop.file_index)
    if last is None or last.time is None or stop.line.time - last.time < NO_STEP_S:
        return None
    return [Evidence(file=last.file, line=last.number, text=last.text[:1000])]


def only_alive(scan: Scan) -> Sequence[Evidence] | None:
    """Return the first and the last of the heartbeats that a job ends in, if they go on for long without a step."""
    for index, beats in scan.heartbeats.items():
        stepped = {i for i, p in scan.progress.items() if p.last is not None} | {
            key[0] for key in scan.series
        }
        if stepped - {index}:
            continue  # the steps stand in another file
        enough = ALIVE_S
        lines = [beats.first, beats.last]
        if index in stepped:
            means = [s.step_time() for s in scan.series.values() if not s.format.epochs]
            step_s = max([m.mean for m in means if m is not None], default=0.0)
            enough = max(SILENCE_S, SILENCE_STEPS * step_s)
            last = scan.progress[index].last if index in scan.progress else None
            lines = [*([last] if last is not None else []), *lines]
        if beats.seconds is None:
            if stepped or beats.count < ALIVE_BEATS:
                continue
        elif beats.seconds < enough:
            continue
        return [Evidence(file=x.file, line=x.number, text=x.text.strip()[:1000]) for x in lines]
    return None


def _by_diary(diary: RunDiary) -> Sequence[Evidence] | None:
    """Our own events alone: their clock is Unix time, that of the lines around the stop is local.

    The ranks' last words (a signal, an error) are at or before the stop.
    """
    line = diary.last_step_line
    if line is None or diary.last_t is None or diary.last_step_t is None:
        return None
    step_s = max((s.get("mean", 0.0) for s in diary.step_s.values()), default=0.0)
    if diary.last_t - diary.last_step_t < max(SILENCE_S, SILENCE_STEPS * step_s):
        return None
    return [Evidence(file=line.file, line=line.number, text=line.text[:1000])]
