"""Detect a hang that ended in a time limit or a cancellation; find the collective and the ranks that it hung on."""

from collections.abc import Mapping, Sequence
from statistics import median

from ..logs.readers.events import Placed, RunEvents, time_of
from ..logs.samples import Collective, RankTrace
from ..runs.record import Evidence, HungCollective, Straggler
from .root_cause import OWN
from .rules import Hit
from .scan import Scan

#: No step for half an hour and for ten times a step's time is a hang.
SILENCE_S = 1800.0
SILENCE_STEPS = 10
#: If there was no step at all, an hour is.
NO_STEP_S = 3600.0
#: Heartbeats prove more than silence: this long without a step is enough, or this many if they state no time.
ALIVE_S = 600.0
ALIVE_BEATS = 20
#: A straggler's own work in a step takes this many times as long as that of the others,
SLOWER = 1.2
#: and it begins collectives at least this many seconds after the first rank.
MIN_LATE_S = 0.05


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


def find_hang(traces: Mapping[int, RankTrace], world_size: int | None = None) -> HungCollective | None:
    """Find the first collective that ranks did not come to together; None if the dumps show none.

    Ranks run ahead of each other on GPUs, so it is the one after the last that every rank began. gloo does not record
    which collectives ended: of ranks that all began the same ones only dumps of our own tell that they hang, and none
    tells which rank stopped inside it.

    Args:
        world_size: ranks of the job, where a group's members are not recorded.
    """
    groups = dict.fromkeys(g for t in traces.values() for g in t.groups)
    found = [hang for group in groups if (hang := _hang_of(group, traces, world_size)) is not None]
    # A rank that waits in one group is missing from the others: the root is one that waits nowhere.
    waiting = {rank for hang in found for rank in hang.waiting}
    return max(
        found,
        key=lambda h: (bool(h.culprits or h.ops), waiting.isdisjoint(h.culprits), len(h.waiting)),
        default=None,
    )


def _begun_in_time(group: str, traces: Mapping[int, RankTrace]) -> dict[int, dict[int, Collective]]:
    """Return the collectives of a group by rank, without those begun after a rank that had begun them dumped.

    A stopped rank that is woken once the others have timed out begins the collective that they waited in, and dumps.
    """
    of_rank = {rank: t.groups[group] for rank, t in traces.items() if t.groups.get(group)}
    dumped_ns: dict[int, int] = {}
    for rank, of_seq in of_rank.items():
        if (ns := traces[rank].dumped_ns) is not None:
            dumped_ns |= {seq: min(ns, dumped_ns.get(seq, ns)) for seq in of_seq}
    return {
        rank: {seq: c for seq, c in of_seq.items() if seq not in dumped_ns or c.created_ns <= dumped_ns[seq]}
        for rank, of_seq in of_rank.items()
    }


def _hang_of(group: str, traces: Mapping[int, RankTrace], world_size: int | None) -> HungCollective | None:
    of_rank = _begun_in_time(group, traces)
    # gloo records the members of its last group, under no name; the default group is known to have all ranks.
    members = {rank for trace in traces.values() for rank in trace.members.get(group, ())} | of_rank.keys()
    if group in ("", "0"):
        nameless = {rank for trace in traces.values() for rank in trace.members.get("", ())}
        members |= set(range(world_size or 0)) | nameless
    # A rank that has a dump, but of other groups alone, never began a collective of this one.
    reached = {rank: max(of_rank.get(rank, {}), default=0) for rank in members & traces.keys()}
    silent = sorted(members - traces.keys())
    if not reached or len(members) < 2:
        return None
    seq = min(reached.values()) + 1
    waiting = sorted(rank for rank, last in reached.items() if last >= seq)
    missing = sorted(reached.keys() - set(waiting))
    ops: dict[int, str] = {}
    if not waiting:  # all came equally far: in different operations, or in one that does not end
        seq -= 1
        last = {rank: c for rank, cs in of_rank.items() if (c := cs.get(seq)) is not None}
        waiting, missing = sorted(last), []
        if len({c.op for c in last.values()}) > 1:
            ops = {rank: f"{c.op} {c.sizes}" for rank, c in last.items()}
        elif not silent:
            records_ends = any(c.done for cs in of_rank.values() for c in cs.values())
            # Our ranks dump only when stuck.
            stuck = all(traces[rank].dumped_ns is not None for rank in last)
            if all(c.done for c in last.values()) or not (records_ends or stuck):
                return None
    op = next((c.op for rank in waiting if (c := of_rank.get(rank, {}).get(seq)) is not None), "a collective")
    steps = [step for rank in waiting if (step := traces[rank].step) is not None]
    return HungCollective(
        group=group, seq=seq, op=op, step=max(steps, default=None), waiting=waiting, missing=missing, silent=silent,
        ops=ops,
    )  # fmt: skip


def lateness_s(traces: Mapping[int, RankTrace]) -> dict[int, float]:
    """Return for each rank by how many seconds it began collectives after the first rank, median over those recorded.

    The clocks of several nodes may differ; on one node they are the same.
    """
    late: dict[int, list[float]] = {}
    for group in dict.fromkeys(g for t in traces.values() for g in t.groups):
        of_rank = {rank: t.groups[group] for rank, t in traces.items() if t.groups.get(group)}
        common = set.intersection(*(set(cs) for cs in of_rank.values())) if len(of_rank) > 1 else set()
        for seq in common:
            first = min(cs[seq].created_ns for cs in of_rank.values())
            for rank, cs in of_rank.items():
                late.setdefault(rank, []).append((cs[seq].created_ns - first) / 1e9)
    return {rank: median(values) for rank, values in sorted(late.items())}


def hang_words(hang: HungCollective) -> str:
    """Say in one sentence where the ranks wait for each other."""
    at = f" at step {hang.step}" if hang.step is not None else ""
    place = f"number {hang.seq} of group {hang.group}{at}"
    if hang.ops:
        what = "; ".join(f"{_ranks([rank])}: {op}" for rank, op in sorted(hang.ops.items())[:8])
        return f"ranks are in different collectives, {place}: {what}"
    if not hang.culprits:
        return f"all ranks are in {hang.op}, {place}, and it does not end"
    why = "never began" if hang.missing else "left no dump of"
    verb = "waits" if len(hang.waiting) == 1 else "wait"
    return f"{_ranks(hang.culprits)} {why} {hang.op}, {place}, in which {_ranks(hang.waiting)} {verb}"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:16])) + (f", ... ({len(ranks)})" if len(ranks) > 16 else "")
    return f"rank{'s' if len(ranks) != 1 else ''} {shown}"


def stragglers(events: RunEvents | None, traces: Mapping[int, RankTrace]) -> list[Straggler]:
    """List ranks whose own work per step takes a fifth longer than that of the others; of hung runs, that come late.

    Args:
        traces: dumps of the flight recorder, by rank.
    """
    events = events or RunEvents()
    own_s = {
        rank: times["mean"] - events.exposed_s.get(rank, 0.0) / events.steps[rank]
        for rank, times in events.step_s.items()
        if "mean" in times and events.steps.get(rank)
    }
    found = []
    for rank, step_s in sorted(own_s.items()):
        others = [s for r, s in own_s.items() if r != rank]
        if others and step_s > SLOWER * median(others) > 0:
            node = events.hosts.get(rank)
            found.append(Straggler(rank=rank, node=node, step_s=step_s, others_s=median(others)))
    if own_s:
        return found
    late_s = lateness_s(traces)
    enough_s = max(MIN_LATE_S, (SLOWER - 1) * events.last_step_s)
    return [
        Straggler(rank=rank, node=events.hosts.get(rank), late_s=s)
        for rank, s in late_s.items()
        if s > enough_s
    ]


def straggler_words(s: Straggler) -> str:
    """Say in one sentence how much slower the rank is."""
    place = f"rank {s.rank}" + (f" on {s.node}" if s.node else "")
    if s.step_s is not None and s.others_s is not None:
        return f"{place} needs {_seconds(s.step_s)} of its own per step, the others {_seconds(s.others_s)}"
    return f"{place} begins collectives {_seconds(s.late_s or 0.0)} after the first rank"


def _seconds(s: float) -> str:
    return f"{s:.3g} s" if s >= 1 else f"{1e3 * s:.3g} ms"
