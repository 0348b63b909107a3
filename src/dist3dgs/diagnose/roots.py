"""From the lines that rules took to the one that explains the others."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .rules import RULES, Hit, Rule, Tier
from .scan import Scan

#: Text printed by a process that goes on after an error is more than what a dying one still had in its buffer.
SURVIVED_BYTES = 1 << 14
#: After a warning, which need not have ended anything, so many progress lines are enough.
WARNED_ROWS = 2
#: Lines with which Slurm begins to end a job; what follows them is an echo of the end.
ENDING = re.compile(
    r"srun: Job step aborted|srun: (?:got|Force Terminated|forcing job termination)|\bgot signal: ?15|received SIGTERM|SIGTERM"
)
#: Which rules' lines tell of a worker's own failure, so that a lost rendezvous elsewhere is its echo.
REPORT = re.compile(
    r"ChildFailedError|failed \(exitcode|Root Cause|terminated with the following error|FAILED|return code = -?[1-9]"
)

#: Where a job is over, and which.
JOB_END = re.compile(r"\*\*\* (?:JOB|STEP) (\d+)\S* (?:ON \S+ )?CANCELLED AT")
TASK_FAILED = re.compile(r"error: \S+: tasks? [\d,-]+: ")
#: A process that ended by itself, and not by SIGTERM (15, in a shell 143).
FAILED_CODE = re.compile(r"(?:exit ?code|return code|exit status)[ :=]*-?(?!0\b|15\b|143\b)\d")

#: What NCCL says to a rank that its world has no place for.
INVALID_RANK = re.compile(r"(?i)invalid (?:argument|usage)|ncclInvalid(?:Argument|Usage)")
MAX_TASKS = 65536

BY_NAME = {r.name: r for r in RULES}


@dataclass
class Choice:
    """The root and why not the others."""

    root: Hit | None = None
    others: list[Hit] = field(default_factory=list)  # of the same cause, further evidence
    ruled_out: list[tuple[Hit, str]] = field(default_factory=list)
    symptoms: list[Hit] = field(default_factory=list)
    notes: list[Hit] = field(default_factory=list)


def choose(scan: Scan, finished: bool) -> Choice:
    """Pick the root among `scan.hits`. `finished`: the log says itself that the training came to its end."""
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
    """A file to which one job after the other was appended is judged by the last one."""
    kept, symptoms = live, choice.symptoms
    for index in {h.file_index for h in live}:
        mine = sorted((h for h in scan.hits if h.file_index == index), key=lambda h: h.order)
        ends = [h for h in mine if JOB_END.search(h.line.text)]
        last = next((a for a, b in reversed(list(pairwise(ends))) if _job_of(a) != _job_of(b)), None)
        if last is None:
            continue
        earlier = [h for h in kept if h.file_index == index and h.order <= last.order]
        where = f"it belongs to another job, which ended at line {last.line.number}"
        choice.ruled_out += [(h, where) for h in earlier]
        kept = [h for h in kept if h not in earlier]
        symptoms = [h for h in symptoms if h.file_index != index or h.order > last.order]
    choice.symptoms = symptoms
    return kept


def _job_of(end: Hit) -> str | None:
    m = JOB_END.search(end.line.text)
    return m[1] if m else None


def _without_complaints(live: list[Hit], scan: Scan, choice: Choice) -> list[Hit]:
    """What conda or pip could not do before the program began matters only if the program could not do without."""
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
            choice.ruled_out.append((hit, f"the program ran into another error (line {error.line.number})"))
        elif stop is not None and not any(TASK_FAILED.search(h.line.text) for h in choice.symptoms):
            choice.ruled_out.append(
                (hit, f"the job ran on until its end from outside (line {stop.line.number})")
            )
        else:
            kept.append(hit)
    return kept


def _later_error(hit: Hit, complaint: Hit) -> bool:
    """An error below in the same file that is not of the environment itself: a module that is missing may be why."""
    return (
        hit.file_index == complaint.file_index
        and hit.order > complaint.order
        and hit.rule.tier in (Tier.PROOF, Tier.SPECIFIC, Tier.GENERIC)
        and hit.rule.name not in ("environment", "extension-build")
    )


def survived(hit: Hit, scan: Scan, finished: bool) -> bool:
    """True if the same file shows training going on after the line."""
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
    """The trainer's own word that it finished stands below the line in the same file (a wrapper's does not count)."""
    done = scan.facts.one.get("finish")
    return bool(done and done.line.file == hit.line.file and (done.line.number or 0) > (hit.line.number or 0))


def _counts(hit: Hit, scan: Scan, choice: Choice) -> bool:
    """An exception that did not itself end the process counts if something did fail, or nothing ended well."""
    if hit.rule.name == "port-warned" and any(p.count for p in scan.progress.values()):
        return False
    if choice.symptoms:
        return True
    ended = any(key in scan.facts.one for key in ("finish", "wrapper_finish", "teardown"))
    return hit.rule.name in ("bare-exception", "port-warned") and not ended


def _nearness(hit: Hit) -> tuple[int, bool, int, int]:
    return (hit.rule.tier, hit.handled, hit.file_index, hit.order)


def _before_the_end(live: list[Hit], choice: Choice) -> list[Hit]:
    """What a stopped job prints while it is killed is an echo; an error before that is why it had to be stopped."""
    kept = []
    stops = {
        h.file_index: h for h in reversed(live) if h.rule.tier == Tier.STOP and h.rule.name != "cancelled"
    }
    stops |= {
        h.file_index: h for h in reversed(live) if h.rule.tier == Tier.STOP and h.file_index not in stops
    }
    for hit in live:
        stop = stops.get(hit.file_index)
        if stop is None and len(stops) == 1 and hit.rule.tier in (Tier.COMMUNICATION, Tier.SIGNAL):
            stop = next(iter(stops.values()))  # another file of the same job
            begin = -1
        else:
            begin = _ending_begins(stop) if stop else 0
        if (
            stop is not None
            and stop.rule.name == "preempted"
            and hit.rule.name == "oom-killer"
            and hit.order > begin
        ):
            # Slurm counts kills when the step ends; that others needed the node does not come from memory.
            choice.ruled_out.append((hit, f"the job was ended for another one (line {stop.line.number})"))
        elif stop is None or hit is stop or hit.rule.tier in (Tier.PROOF, Tier.STOP):
            kept.append(hit)
        elif hit.order > begin or hit.rule.tier == Tier.SIGNAL:
            choice.ruled_out.append(
                (
                    hit,
                    f"it came with or after the end from outside ({stop.rule.cause}, line {stop.line.number})",
                )
            )
        else:
            kept.append(hit)
    errors = [h for h in kept if h.rule.tier in (Tier.SPECIFIC, Tier.GENERIC, Tier.COMMUNICATION)]
    for stop in stops.values():
        earlier = [h for h in errors if h.file_index == stop.file_index and h.order < stop.order]
        if earlier and stop in kept:
            kept.remove(stop)
            choice.ruled_out.append((stop, f"the job had already failed (line {earlier[0].line.number})"))
    return kept


def _ending_begins(stop: Hit) -> int:
    """Order of the first line of the run of lines above `stop` with which the job is being ended."""
    begin = stop.order
    for back, text in enumerate(reversed(stop.context(40)), 1):
        if ENDING.search(text):
            begin = stop.order - back
    return begin


def _without_echoes(live: list[Hit], choice: Choice) -> list[Hit]:
    """A rendezvous or connection lost after a worker somewhere failed is that failure's echo."""
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
    """Whatever made ranks wait until the timeout stands above it; errors below come from the broken collective."""
    first = {h.file_index: h for h in reversed(live) if h.rule.name == "collective-timeout"}
    kept = []
    for hit in live:
        timeout = first.get(hit.file_index)
        if (
            timeout is not None
            and hit.order > timeout.order
            and hit.rule.tier in (Tier.SPECIFIC, Tier.GENERIC)
        ):
            choice.ruled_out.append(
                (hit, f"the collectives had timed out before (line {timeout.line.number})")
            )
        else:
            kept.append(hit)
    return kept


def _desynchronised(live: list[Hit], choice: Choice) -> list[Hit]:
    """Ranks that time out in different collectives are themselves what a mismatch on the wire comes from."""
    timeouts = [h for h in live if h.rule.name == "collective-timeout"]
    if len(collectives(timeouts)) < 2:
        # One collective and a network fault before it: the fault is why it never ended.
        faults = [h for h in live if h.rule.name == "nccl-network"]
        if timeouts and faults and min(f.order for f in faults) < min(t.order for t in timeouts):
            choice.ruled_out += [
                (t, f"the network fault came first (line {faults[0].line.number})") for t in timeouts[:1]
            ]
            return [h for h in live if h not in timeouts]
        return live
    network = [h for h in live if h.rule.name in ("nccl-network", "nccl-error")]
    choice.ruled_out += [
        (h, "the ranks wait in different collectives, which is what it follows from") for h in network[:1]
    ]
    return [h for h in live if h not in network]


def _the_program_first(live: list[Hit], choice: Choice) -> list[Hit]:
    """Drop what accuses the GPU where a kernel of the program was caught; a broken GPU's own word outranks both."""
    caught = next((h for h in live if h.rule.name == "kernel-fault"), None)
    if caught is None:
        return live
    faults = [h for h in live if h.rule.name == "gpu-fault"]
    choice.ruled_out += [
        (h, f"a kernel of the program did it (line {caught.line.number}); the GPU is the second suspect")
        for h in faults[:1]
    ]
    return [h for h in live if h not in faults]


def _name_ranks_beyond_the_world(live: list[Hit], scan: Scan, choice: Choice) -> None:
    """Name NCCL's `invalid argument` by its cause where just the tasks failed that the world has no ranks for."""
    refused = [h for h in live if h.rule.name == "nccl-error" and INVALID_RANK.search(h.line.text)]
    if not refused:
        return
    failed = {t for h in choice.symptoms for t in _failed_tasks(h.line.text)}
    world = scan.facts.get("world_size")
    beyond = world is not None and any(
        rank is not None and rank >= world for rank in [*failed, *(h.rank for h in refused)]
    )
    # The first tasks found their ranks and those from one on did not.
    from_one_on = len(failed) > 1 and min(failed) > 0 and failed == set(range(min(failed), max(failed) + 1))
    if beyond or from_one_on:
        for hit in refused:
            hit.rule, hit.pattern = BY_NAME["ranks-beyond-the-world"], 0


def _failed_tasks(text: str) -> set[int]:
    """Task numbers of `srun: error: node01: tasks 8-13,15: Exited with exit code 1`."""
    m = re.search(r"error: \S+: tasks? ([\d,-]+): ", text)
    tasks: set[int] = set()
    for part in m[1].split(",") if m else ():
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            tasks |= set(range(int(first), min(int(last or first), int(first) + MAX_TASKS) + 1))
    return tasks


def collectives(timeouts: Sequence[Hit]) -> dict[str, Hit]:
    """`OpType SeqNum` -> the first line that names it."""
    found: dict[str, Hit] = {}
    for hit in timeouts:
        if m := re.search(r"SeqNum=(\d+), OpType=(\w+)", hit.line.text):
            found.setdefault(f"{m[2]} {m[1]}", hit)
    return found


def _best_evidence(root: Hit, same: Sequence[Hit]) -> Hit:
    """Of the lines of one rule around the root in its file, the one with the most telling wording."""
    near = [
        h
        for h in same
        if h.rule is root.rule and h.file_index == root.file_index and abs(h.order - root.order) < 200
    ]
    return min([root, *near], key=lambda h: (h.pattern, h.order))


def _why_not(hit: Hit, root: Hit) -> str:
    rule: Rule = root.rule
    if hit.rule.tier > rule.tier:
        return f"{rule.cause} (line {root.line.number}) explains it"
    return f"it came after {rule.cause} (line {root.line.number})"
