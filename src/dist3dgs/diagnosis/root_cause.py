"""Choose, among the lines that rules matched, the one that explains the others."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .rules import RULES, Hit, Rule, Tier
from .scan import Scan

#: A process that survives an error prints more text than a dying one had left in its buffer.
SURVIVED_BYTES = 1 << 14
#: Progress lines after a mere warning that refute it.
WARNED_ROWS = 2
#: Lines with which Slurm begins to end a job; what follows them is an echo of the end.
ENDING = re.compile(
    r"srun: Job step aborted|srun: (?:got|Force Terminated|forcing job termination)|\bgot signal: ?15|received SIGTERM|SIGTERM"
)
#: Reports of a worker's own failure, of which a lost rendezvous elsewhere is an echo.
REPORT = re.compile(
    r"ChildFailedError|failed \(exitcode|Root Cause|terminated with the following error|FAILED|return code = -?[1-9]"
)

#: The end of a job, with its id.
JOB_END = re.compile(r"\*\*\* (?:JOB|STEP) (\d+)\S* (?:ON \S+ )?CANCELLED AT")
TASK_FAILED = re.compile(r"error: \S+: tasks? [\d,-]+: ")
#: A process that failed by itself, not by SIGTERM (15, in a shell 143).
FAILED_CODE = re.compile(r"(?:exit ?code|return code|exit status)[ :=]*-?(?!0\b|15\b|143\b)\d")

#: NCCL's message to a rank beyond its world.
INVALID_RANK = re.compile(r"(?i)invalid (?:argument|usage)|ncclInvalid(?:Argument|Usage)")
MAX_TASKS = 65536

#: File index of hits made of our own ranks' events and our launcher's summary.
OWN = -1
#: Errors of a rank whose peer has gone.
PEER_GONE = re.compile(
    r"connection (reset|closed)|closed by peer|broken pipe|remote (worker|process)", re.IGNORECASE
)

BY_NAME = {r.name: r for r in RULES}


@dataclass
class Choice:
    """The root cause, and reasons against the other candidates."""

    root: Hit | None = None
    others: list[Hit] = field(default_factory=list)  # of the same cause, further evidence
    ruled_out: list[tuple[Hit, str]] = field(default_factory=list)
    symptoms: list[Hit] = field(default_factory=list)
    notes: list[Hit] = field(default_factory=list)


def choose(scan: Scan, finished: bool) -> Choice:
    """Pick the root among `scan.hits`. `finished`: the log itself states that the training completed."""
    choice = Choice()
    live: list[Hit] = []
    for hit in scan.hits:
        if hit.rule.tier == Tier.NOTE:
            choice.notes.append(hit)
        elif survived(hit, scan, finished):
            choice.ruled_out.append((hit, "the training went on after it"))
        elif hit.rule.tier == Tier.SYMPTOM:
            choice.symptoms.append(hit)
        else:
            live.append(hit)
    if any(FAILED_CODE.search(h.line.text) for h in choice.symptoms):
        # A launcher ends the other tasks with SIGTERM when one failed by itself.
        live = [h for h in live if h.rule.name != "terminated"]
    live = _of_the_last_job(live, scan, choice)
    live = _without_complaints(live, scan, choice)
    live = [h for h in live if h.rule.tier != Tier.IGNORED or _counts(h, scan, choice)]
    live = _reported_first(live, choice)
    live = _before_the_end(live, choice)
    live = _without_echoes(live, choice)
    live = _after_timeouts(live, choice)
    live = _desynchronised(live, choice)
    live = _the_program_first(live, choice)
    _name_ranks_beyond_the_world(live, scan, choice)
    if not live:
        return choice
    root = min(live, key=_nearness)
    same = [h for h in live if h is not root and h.rule.cause == root.rule.cause]
    choice.root = _best_evidence(root, same)
    choice.others = [h for h in [root, *same] if h is not choice.root]
    choice.ruled_out += [(h, _why_not(h, choice.root)) for h in live if h.rule.cause != root.rule.cause]
    return choice


def _of_the_last_job(live: list[Hit], scan: Scan, choice: Choice) -> list[Hit]:
    """Keep the hits of the last job in a file to which several jobs were appended."""
    kept, symptoms = live, choice.symptoms
    for index in {h.file_index for h in live}:
        mine = sorted((h for h in scan.hits if h.file_index == index), key=lambda h: h.order)
        ends = [h for h in mine if JOB_END.search(h.line.text)]
        last = next((a for a, b in reversed(list(pairwise(ends))) if _job_of(a) != _job_of(b)), None)
        if last is None:
            continue
        earlier = [h for h in kept if h.file_index == index and h.order <= last.order]
        where = f"it belongs to another job, which ended at {_at(last)}"
        choice.ruled_out += [(h, where) for h in earlier]
        kept = [h for h in kept if h not in earlier]
        symptoms = [h for h in symptoms if h.file_index != index or h.order > last.order]
    choice.symptoms = symptoms
    return kept


def _job_of(end: Hit) -> str | None:
    m = JOB_END.search(end.line.text)
    return m[1] if m else None


def _without_complaints(live: list[Hit], scan: Scan, choice: Choice) -> list[Hit]:
    """Drop failures of conda or pip before the program began, unless the program failed for want of them."""
    kept = []
    for hit in live:
        if hit.rule.complaint is None or not hit.rule.complaint.search(hit.line.text):
            kept.append(hit)
            continue
        progress = scan.progress.get(hit.file_index)
        stop = next((h for h in live if h.rule.tier == Tier.STOP), None)
        error = next((h for h in live if _later_error(h, hit)), None)
        if progress is not None and progress.count > hit.steps_before:
            choice.ruled_out.append((hit, "the program ran after it"))
        elif error is not None:
            choice.ruled_out.append((hit, f"the program ran into another error ({_at(error)})"))
        elif stop is not None and not any(TASK_FAILED.search(h.line.text) for h in choice.symptoms):
            choice.ruled_out.append((hit, f"the job ran on until its end from outside ({_at(stop)})"))
        else:
            kept.append(hit)
    return kept


def _later_error(hit: Hit, complaint: Hit) -> bool:
    """Return True for an error below in the same file, unless it may follow from the environment (a missing module)."""
    return (
        hit.file_index == complaint.file_index
        and hit.order > complaint.order
        and hit.rule.tier in (Tier.PROOF, Tier.SPECIFIC, Tier.GENERIC)
        and hit.rule.name not in ("environment", "extension-build")
    )


def survived(hit: Hit, scan: Scan, finished: bool) -> bool:
    """Return True if the same file shows that training continued after the line."""
    progress = scan.progress.get(hit.file_index)
    if progress is None or progress.last is None:
        went_on = False
    else:
        went_on = progress.bytes > hit.bytes_before and progress.count > 0
        if went_on and progress.bytes - hit.bytes_before > SURVIVED_BYTES:
            return True
        warned = hit.rule.warns or "NCCL WARN" in hit.line.text
        if went_on and warned and progress.count - hit.steps_before >= WARNED_ROWS:
            return True
    return finished and (went_on or _finish_below(hit, scan))


def _finish_below(hit: Hit, scan: Scan) -> bool:
    """Return True if the trainer (not a wrapper) states below the line in the same file that it finished."""
    done = scan.facts.one.get("finish")
    return bool(done and done.line.file == hit.line.file and (done.line.number or 0) > (hit.line.number or 0))


def _counts(hit: Hit, scan: Scan, choice: Choice) -> bool:
    """Count an exception that did not itself end the process if something failed, or nothing ended well."""
    if hit.rule.name == "port-warned" and any(p.count for p in scan.progress.values()):
        return False
    if choice.symptoms:
        return True
    ended = any(key in scan.facts.one for key in ("finish", "wrapper_finish", "teardown"))
    return hit.rule.name in ("bare-exception", "port-warned") and not ended


def _nearness(hit: Hit) -> tuple[int, bool, int, int]:
    return (hit.rule.tier, hit.handled, hit.file_index, hit.order)


def _reported_first(live: list[Hit], choice: Choice) -> list[Hit]:
    """Keep the first error that one of our ranks reported, unless it only noticed that a peer had gone.

    It explains what other ranks report later, and the same error in the ranks' output.
    """
    errors = (Tier.SPECIFIC, Tier.GENERIC, Tier.COMMUNICATION)
    own = [h for h in live if h.event is not None and h.rule.tier in errors]
    killed = next((h for h in live if h.rule.name == "killed-by-signal"), None)
    first = next((h for h in own if not PEER_GONE.search(h.line.text)), None)
    if first is None and killed is not None:
        choice.ruled_out += [(h, f"a rank had been killed ({_at(killed)})") for h in own]
        return [h for h in live if h not in own]
    if first is None:
        return live
    place = f"rank {first.rank}" if first.rank is not None else "a rank"
    echoes = [h for h in live if h is not first and h.rule.tier in errors]
    others = [h for h in echoes if h.rule.cause != first.rule.cause]
    choice.ruled_out += [(h, f"{place} had failed before ({_at(first)})") for h in others]
    return [h for h in live if h not in echoes]


def _before_the_end(live: list[Hit], choice: Choice) -> list[Hit]:
    """Drop lines printed while a job was being killed; keep errors before that, which explain why it was stopped."""
    kept = []
    stops = {
        h.file_index: h for h in reversed(live) if h.rule.tier == Tier.STOP and h.rule.name != "cancelled"
    }
    stops |= {
        h.file_index: h for h in reversed(live) if h.rule.tier == Tier.STOP and h.file_index not in stops
    }
    for hit in live:
        stop = stops.get(hit.file_index)
        if (
            stop is None
            and len(stops) == 1
            and (OWN in stops or hit.rule.tier in (Tier.COMMUNICATION, Tier.SIGNAL))
        ):
            # Another file of the same job. Of our own runs an error that came first is an event.
            stop = next(iter(stops.values()))
            begin = -1
        else:
            begin = _ending_begins(stop) if stop else 0
        if (
            stop is not None
            and stop.rule.name == "preempted"
            and hit.rule.name == "oom-killer"
            and hit.order > begin
        ):
            # Slurm counts kills when the step ends; preemption is not caused by memory.
            choice.ruled_out.append((hit, f"the job was ended for another one ({_at(stop)})"))
        elif stop is None or hit is stop or hit.rule.tier in (Tier.PROOF, Tier.STOP):
            kept.append(hit)
        elif hit.order > begin or hit.rule.tier == Tier.SIGNAL:
            choice.ruled_out.append(
                (
                    hit,
                    f"it came with or after the end from outside ({stop.rule.cause}, {_at(stop)})",
                )
            )
        else:
            kept.append(hit)
    errors = [h for h in kept if h.rule.tier in (Tier.SPECIFIC, Tier.GENERIC, Tier.COMMUNICATION)]
    for stop in stops.values():
        earlier = [h for h in errors if h.file_index == stop.file_index and h.order < stop.order]
        if earlier and stop in kept:
            kept.remove(stop)
            choice.ruled_out.append((stop, f"the job had already failed ({_at(earlier[0])})"))
    return kept


def _ending_begins(stop: Hit) -> int:
    """Return the order of the first of the lines above `stop` that were printed while the job was being ended."""
    begin = stop.order
    for back, text in enumerate(reversed(stop.context(40)), 1):
        if ENDING.search(text):
            begin = stop.order - back
    return begin


def _without_echoes(live: list[Hit], choice: Choice) -> list[Hit]:
    """Drop rendezvous and connection errors that follow the failure of a worker."""
    reports = [h for h in choice.symptoms if REPORT.search(h.line.text)]
    kept = []
    for hit in live:
        if hit.rule.name in ("rendezvous", "nccl-error") and hit.rule.tier == Tier.COMMUNICATION:
            earlier = next((r for r in reports if _precedes(r, hit)), None)
            if earlier is not None:
                choice.ruled_out.append(
                    (hit, f"a worker had failed before ({earlier.line.file}:{earlier.line.number})")
                )
                continue
        kept.append(hit)
    return kept


def _precedes(a: Hit, b: Hit) -> bool:
    if a.file_index != b.file_index:
        return a.line.time is not None and b.line.time is not None and a.line.time < b.line.time
    own = re.search(r"Root Cause|ChildFailedError", a.line.text) and a.order > b.order
    return a.order < b.order and not own


def _after_timeouts(live: list[Hit], choice: Choice) -> list[Hit]:
    """Drop errors below a collective's timeout: they come from the broken collective."""
    first = {h.file_index: h for h in reversed(live) if h.rule.name == "collective-timeout"}
    kept = []
    for hit in live:
        timeout = first.get(hit.file_index)
        if (
            timeout is not None
            and hit.order > timeout.order
            and hit.rule.tier in (Tier.SPECIFIC, Tier.GENERIC)
        ):
            choice.ruled_out.append((hit, f"the collectives had timed out before ({_at(timeout)})"))
        else:
            kept.append(hit)
    return kept


def _desynchronised(live: list[Hit], choice: Choice) -> list[Hit]:
    """Drop network errors where ranks timed out in different collectives, which causes such errors."""
    timeouts = [h for h in live if h.rule.name == "collective-timeout"]
    if len(collectives(timeouts)) < 2:
        # One collective and a network fault before it: the fault is why it never ended.
        faults = [h for h in live if h.rule.name == "nccl-network"]
        if timeouts and faults and min(f.order for f in faults) < min(t.order for t in timeouts):
            choice.ruled_out += [
                (t, f"the network fault came first ({_at(faults[0])})") for t in timeouts[:1]
            ]
            return [h for h in live if h not in timeouts]
        return live
    network = [h for h in live if h.rule.name in ("nccl-network", "nccl-error")]
    choice.ruled_out += [
        (h, "the ranks wait in different collectives, which is what it follows from") for h in network[:1]
    ]
    return [h for h in live if h not in network]


def _the_program_first(live: list[Hit], choice: Choice) -> list[Hit]:
    """Drop suspicions against the GPU where a kernel of the program faulted; hardware errors outrank both."""
    caught = next((h for h in live if h.rule.name == "kernel-fault"), None)
    if caught is None:
        return live
    faults = [h for h in live if h.rule.name == "gpu-fault"]
    choice.ruled_out += [
        (h, f"a kernel of the program did it ({_at(caught)}); the GPU is the second suspect")
        for h in faults[:1]
    ]
    return [h for h in live if h not in faults]


def _name_ranks_beyond_the_world(live: list[Hit], scan: Scan, choice: Choice) -> None:
    """Name the cause of NCCL's `invalid argument` if exactly the tasks beyond the world failed."""
    refused = [h for h in live if h.rule.name == "nccl-error" and INVALID_RANK.search(h.line.text)]
    if not refused:
        return
    failed = {t for h in choice.symptoms for t in _failed_tasks(h.line.text)}
    world = scan.facts.get("world_size")
    beyond = world is not None and any(
        rank is not None and rank >= world for rank in [*failed, *(h.rank for h in refused)]
    )
    # The first tasks found their ranks; those from some number on did not.
    from_one_on = len(failed) > 1 and min(failed) > 0 and failed == set(range(min(failed), max(failed) + 1))
    if beyond or from_one_on:
        for hit in refused:
            hit.rule, hit.pattern = BY_NAME["ranks-beyond-the-world"], 0


def _failed_tasks(text: str) -> set[int]:
    """Parse the task numbers of `srun: error: node01: tasks 8-13,15: Exited with exit code 1`."""
    m = re.search(r"error: \S+: tasks? ([\d,-]+): ", text)
    tasks: set[int] = set()
    for part in m[1].split(",") if m else ():
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            tasks |= set(range(int(first), min(int(last or first), int(first) + MAX_TASKS) + 1))
    return tasks


def collectives(timeouts: Sequence[Hit]) -> dict[str, Hit]:
    """Map each `OpType SeqNum` to the first line that names it."""
    found: dict[str, Hit] = {}
    for hit in timeouts:
        if m := re.search(r"SeqNum=(\d+), OpType=(\w+)", hit.line.text):
            found.setdefault(f"{m[2]} {m[1]}", hit)
    return found


def _best_evidence(root: Hit, same: Sequence[Hit]) -> Hit:
    """Choose the most specific wording among lines of the same rule near the root."""
    near = [
        h
        for h in same
        if h.rule is root.rule and h.file_index == root.file_index and abs(h.order - root.order) < 200
    ]
    return min([root, *near], key=lambda h: (h.pattern, h.order))


def _at(hit: Hit) -> str:
    return f"line {hit.line.number}" if hit.line.number is not None else hit.line.file.rpartition("/")[2]


def _why_not(hit: Hit, root: Hit) -> str:
    rule: Rule = root.rule
    if hit.rule.tier > rule.tier:
        return f"{rule.cause} ({_at(root)}) explains it"
    return f"it came after {rule.cause} ({_at(root)})"
