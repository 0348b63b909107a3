"""Diagnose a job: one verdict from the facts, progress and matched lines of its logs."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ..errors import UserError
from ..logs.facts import Line
from ..logs.jobs import Job, missing_counterparts
from ..logs.readers import flight_recorder
from ..logs.readers.events import RunEvents
from ..logs.readers.events import read as read_events
from ..runs.attempts import ATTEMPTS, Attempt
from ..runs.causes import Cause
from ..runs.launch_summary import LaunchSummary
from ..runs.record import Evidence, Failure, HungCollective, Model, Status, Straggler
from . import own_run, root_cause
from .hang import find_hang, hang_words, last_sign, only_alive, silent_before, stragglers
from .root_cause import BY_NAME, OWN, Choice, collectives
from .rules import Hit, Rule, Tier, all_rules, takers
from .run_timeline import main_series
from .scan import Scan, scan
from .summary import LogSummary, summarise

#: Lines that a job prints while it hangs or is being ended.
NO_LIFE = re.compile(
    r"not responding|[Ss]till (?:trying|waiting)|[Ww]aiting (?:for|in)\b|blocked for more than|"
    + root_cause.ENDING.pattern
)
#: A model has vanished if at most GONE Gaussians are left, and at most GONE_PART of a maximum of ONCE_MANY or more.
GONE = 100
GONE_PART = 0.01
ONCE_MANY = 1000
MAX_EVIDENCE = 6
MAX_EVIDENCE_TEXT = 1000


class RuledOut(Model):
    """A cause that a line suggested, and the reason against it."""

    cause: Cause
    reason: str
    evidence: Evidence | None = None


class Diagnosis(Model):
    """Verdict on a job, and the lines that prove it."""

    status: Status
    cause: Cause | None = Field(None, description="null if and only if the status is ok")
    phase: str | None = None
    step: int | None = None
    rank: int | None = Field(None, description="the rank that failed first")
    node: str | None = None
    evidence: list[Evidence] = Field(default_factory=list)
    explanation: str | None = None
    remedy: str | None = None
    collective: HungCollective | None = None
    stragglers: list[Straggler] = Field(default_factory=list)
    ruled_out: list[RuledOut] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="of files that were not read, or read too")
    looked_for: list[str] = Field(
        default_factory=list, description="what would have told more, when the cause is unknown"
    )

    def failure(self) -> Failure | None:
        """Convert to the failure of a run record; None if the status is ok."""
        if self.cause is None:
            return None
        return Failure(
            cause=self.cause, phase=self.phase, step=self.step, rank=self.rank, node=self.node,
            evidence=self.evidence, remedy=self.remedy, collective=self.collective,
        )  # fmt: skip


def diagnose(paths: Sequence[Path | str], context: Mapping[str, Any] | None = None) -> Diagnosis:
    """Judge one job from all its files.

    `context` is what the caller knows besides them: `devices_asked` (int), `exit_code`, `signal`
    (int), `own_run` (bool: started by our launcher). A launch.json is context too, never text. The other of a .out
    and .err is read where it lies beside the one given. Raises `UserError` if nothing can be read.
    """
    summaries = [p for p in map(Path, paths) if own_run.is_summary(p)]
    logs = [p for p in map(Path, paths) if p not in summaries]
    context = own_run.launch_context(summaries) | dict(context or {})
    # One file may say `complete` while the other has the traceback.
    pairs = [other for other in missing_counterparts(logs) if other.is_file()]
    found = scan(Job([*logs, *pairs], paths.job_id) if isinstance(paths, Job) else [*logs, *pairs])
    for file in found.files[len(found.files) - len(pairs) :] if pairs else ():
        file.note = file.note or "is read too: the job's other half"
    return judge(found, summarise(found), context)


def diagnose_attempt(
    attempt: Attempt, launch: LaunchSummary | None = None, events: RunEvents | None = None
) -> Diagnosis:
    """Judge one attempt of a run of our own from what launcher and ranks left; files as records name them.

    Args:
        launch: its launch.json, where that was read before.
        events: its events, where they were read before.
    """
    launch = attempt.summary() if launch is None else launch
    found = Scan()
    if launch.status != "ok":  # a training that came to its end has no line to look for
        with contextlib.suppress(UserError):
            found = scan([attempt.log_path])
    found.events = read_events(attempt.event_files()) if events is None else events
    for path in attempt.flight_paths():
        flight_recorder.add(path, 0, found)
    context = own_run.context_of(launch, attempt.launch_path)
    verdict = judge(found, summarise(found), context)
    folder, name = f"{attempt.folder}/", f"{ATTEMPTS}/{attempt.folder.name}/"
    return verdict.model_copy(
        update={
            "evidence": [_renamed(e, folder, name) for e in verdict.evidence],
            "ruled_out": [
                r.model_copy(
                    update={
                        "reason": r.reason.replace(folder, name),
                        "evidence": _renamed(r.evidence, folder, name) if r.evidence else None,
                    }
                )
                for r in verdict.ruled_out
            ],
        }
    )


def _renamed(evidence: Evidence, folder: str, name: str) -> Evidence:
    file = evidence.file
    file = name + file.removeprefix(folder) if file.startswith(folder) or "/" not in file else file
    return evidence.model_copy(update={"file": file})


def judge(found: Scan, summary: LogSummary, context: Mapping[str, Any]) -> Diagnosis:
    """Judge what one pass over the files found."""
    found.hang = find_hang(found.flight, found.events.world_size if found.events is not None else None)
    verdict = _verdict(found, summary, context)
    verdict = verdict.model_copy(
        update={
            "collective": found.hang if verdict.status == "failed" else None,
            "stragglers": stragglers(found.events, found.flight),
        }
    )
    notes = [f"{f.path}: {f.note}" for f in found.files if f.note]
    return verdict.model_copy(update={"notes": notes}) if notes else verdict


def _verdict(found: Scan, summary: LogSummary, context: Mapping[str, Any]) -> Diagnosis:
    launch: LaunchSummary | None = context.get("launch")
    own_run.add_hits(found, context)
    if context.get("own_run") or (found.events is not None and found.events.num_events):
        found.facts.add("trainer", "dist3dgs", Line("", None, ""), keep="last")
    if launch is not None and launch.status == "ok":
        return _ended_well_ours(found, launch)
    _dumped_alone(found, context)
    finished = summary.finished is not None and not launch
    collapse = _collapsed(found)
    if collapse is not None and not finished:
        found.hits.append(collapse)
    choice = root_cause.choose(found, finished)
    if choice.root is None and not finished:
        _stall_without_stop(found, choice)
    if choice.root is None:
        choice.root = _signal_of(context, found)
    if choice.root is not None:
        return _failed(found, choice)
    lost = _nan_loss(found) or collapse
    if lost is not None:
        status: Status = "failed" if choice.symptoms or launch else "degraded"
        return _diagnosis(status, lost.rule, lost, found, choice)
    if launch or not _ended_well(found, summary, choice, context):
        return _without_cause(found, summary, choice, context)
    return _mismatch(found, summary, choice, context) or Diagnosis(
        status="ok", evidence=_evidence_of_end(summary), ruled_out=_ruled_out(choice)
    )


def _dumped_alone(found: Scan, context: Mapping[str, Any]) -> None:
    """Add a hit for the hang that dumps of the flight recorder show, where they are not those of a run of ours."""
    hang = found.hang
    if hang is None or not (hang.culprits or hang.ops) or context.get("own_run") or found.events is not None:
        return
    place = found.flight[min(found.flight)].file
    index = next((i for i, f in enumerate(found.files) if f.path == place), 0)
    hit = Hit(BY_NAME["collective-timeout"], 0, Line(place, None, hang_words(hang)), index, 0)
    hit.rank, hit.step = next(iter(hang.culprits), None), hang.step
    found.hits.append(hit)


def _ended_well_ours(found: Scan, launch: LaunchSummary) -> Diagnosis:
    """Return the verdict on a run of ours that came to its end: degraded if it left devices idle."""
    idle = own_run.fewer_devices(found.events, launch)
    if not idle:
        end = found.events.end if found.events is not None else None
        return Diagnosis(status="ok", evidence=[] if end is None else [_line(end[1])])
    rule = BY_NAME["duplicate-gpu"]
    return Diagnosis(
        status="degraded", cause=rule.cause, phase="startup", evidence=idle, explanation=rule.why,
        remedy=rule.remedy_for(found.facts.get("trainer")),
    )  # fmt: skip


def _failed(found: Scan, choice: Choice) -> Diagnosis:
    root = choice.root
    assert root is not None
    rule = root.rule
    extra: Sequence[Evidence] = ()
    if rule.cause in ("time_limit", "cancelled"):
        silence = silent_before(root, found)
        # A cancelled program without steps need not have hung: a healthy service prints nothing.
        hung = rule.cause == "time_limit" and _nothing_below(root, found)
        if silence is not None and (found.events or _stepped(found) or hung):
            rule, extra = BY_NAME["no-step"], silence
        elif rule.cause == "time_limit" and (alive := only_alive(found)) is not None:
            rule, extra = BY_NAME["no-step"], alive
    if root.file_index == OWN and rule is root.rule is BY_NAME["no-step"] and found.events is not None:
        last = last_sign(found.events)
        extra = [] if last is None else [_line(last[1])]
    return _diagnosis("failed", rule, root, found, choice, extra)


def _stepped(found: Scan) -> bool:
    return any(p.last for p in found.progress.values())


def _nothing_below(stop: Hit, found: Scan) -> bool:
    """Return True if no line without a time stands between the last one with a time and the stop."""
    number = stop.line.number
    return not any(
        line.text.strip() and not line.text.startswith((" ", "\t")) and not NO_LIFE.search(line.text)
        for line in found.timeless_below.get(stop.file_index, ())
        if number is None or line.number is None or line.number < number
    )


def _diagnosis(
    status: Status, rule: Rule, root: Hit, found: Scan, choice: Choice, extra: Sequence[Evidence] = ()
) -> Diagnosis:
    first = _first_failing(found)
    rank = root.rank if root.rank is not None or rule.tier in (Tier.STOP, Tier.PROOF) else first.get("rank")
    node = root.node or (None if rule.tier == Tier.STOP else first.get("node"))
    lines = [root, *_telling(root, choice)]
    evidence = list(dict.fromkeys([*extra, *(_evidence(h) for h in lines), *_stated_reason(root)]))
    if found.hang is not None and found.flight and rule.name in own_run.HANGS:
        dump = found.flight[min(found.flight)].file
        evidence.insert(1, Evidence(file=dump, text=hang_words(found.hang)))
        evidence = list(dict.fromkeys(evidence))
    progress = found.progress.get(root.file_index)
    step = root.step
    if step is None and root.steps_before and progress and progress.count:
        step = _last_step(found)
    phase = "startup" if root.file_index == OWN else _phase(rule, root)
    if found.events is not None and found.events.num_events:
        place = own_run.Place(root, found.hits, found.events, found.hang)
        phase, step, node = place.phase, place.step, place.node
        rank = place.rank if place.rank is not None else rank
        if rule.name == "no-step" and found.events.progress is not None:
            step = found.events.progress[0].get("step")
    return Diagnosis(
        status=status, cause=rule.cause, phase=phase, step=step, rank=rank, node=node,
        evidence=evidence[:MAX_EVIDENCE], explanation=rule.why,
        remedy=rule.remedy_for(found.facts.get("trainer"), root.line.text),
        ruled_out=_ruled_out(choice),
        looked_for=[] if rule.cause != "unknown" else _looked_for(),
    )  # fmt: skip


def _stated_reason(stop: Hit) -> list[Evidence]:
    """Find Slurm's `*** REASON: ... ***` below the line with which it ended the job."""
    if stop.rule.tier != Tier.STOP or stop.line.number is None:
        return []
    return [
        Evidence(file=stop.line.file, line=stop.line.number + down, text=text.strip()[:MAX_EVIDENCE_TEXT])
        for down, text in enumerate(stop.below(3), 1)
        if "*** REASON:" in text
    ]


def _phase(rule: Rule, root: Hit) -> str | None:
    if root.phase is not None:
        return root.phase
    if rule.tier in (Tier.STOP, Tier.PROOF) and rule.phase is None and root.steps_before == 0:
        return None
    if rule.phase in ("checkpoint", "ingest", "submit", "load"):
        return rule.phase
    return "step" if root.steps_before else (rule.phase if rule.phase != "step" else None) or "startup"


def _telling(root: Hit, choice: Choice) -> list[Hit]:
    """Choose further evidence: other collectives that ranks wait in, other wordings, the task that exited first."""
    lines: list[Hit] = []
    if root.rule.name == "collective-timeout":
        lines += list(collectives([root, *choice.others]).values())
    seen = {_wording(root)}
    for hit in sorted(choice.others, key=lambda h: (h.rule.tier, h.pattern)):
        if _wording(hit) not in seen:
            seen.add(_wording(hit))
            lines.append(hit)
    if (
        root.rule.tier in (Tier.COMMUNICATION, Tier.SIGNAL, Tier.IGNORED)
        or root.rule.name == "ranks-beyond-the-world"
    ):
        lines += [h for h in choice.symptoms if re.search(r"error: \S+: tasks? ", h.line.text)][:2]
    return [h for h in lines if h is not root]


def _wording(hit: Hit) -> str:
    return re.sub(r"[\d\W_]+", "", hit.line.text)[:200]


def _first_failing(found: Scan) -> dict[str, Any]:
    """Read rank and host from torchelastic's `Root Cause (first observed failure)` block."""
    for hit in found.hits:
        if hit.rule.name == "worker-failed" and hit.rank is not None:
            return {"rank": hit.rank, "node": hit.node}
    ranks = found.facts.many.get("first_failure_rank", [])
    hosts = found.facts.many.get("first_failure_host", [])
    return {"rank": ranks[0].value if ranks else None, "node": hosts[0].value if hosts else None}


def _nan_loss(found: Scan) -> Hit | None:
    """Return a hit for the row where losses or gradients become NaN or infinite for good."""
    line = found.loss.lost()
    if line is None:
        return None
    index = next((i for i, f in enumerate(found.files) if f.path == line.file), 0)
    hit = Hit(BY_NAME["diverged"], 0, line, index, line.number or 0, steps_before=1)
    m = re.search(r"(?i)(?:step|iter(?:ation)?)[ :=\[]*(\d{1,12})", line.text)
    hit.step = int(m[1]) if m else None
    return hit


def _collapsed(found: Scan) -> Hit | None:
    """Return a hit for the last count of Gaussians, if almost none are left."""
    last, most = found.facts.one.get("num_gaussians"), found.facts.one.get("most_gaussians")
    if last is None or most is None or re.search(r"(?i)\binitiali[sz]", last.line.text):
        return None
    if most.value < ONCE_MANY or last.value > min(GONE, GONE_PART * most.value):
        return None
    line = last.line
    index = next((i for i, f in enumerate(found.files) if f.path == line.file), 0)
    # Steps below it refute nothing: there are no Gaussians left to train.
    hit = Hit(BY_NAME["collapsed"], 0, line, index, line.number or 0, steps_before=1, bytes_before=1 << 62)
    m = re.search(r"(?i)(?:step|iter(?:ation)?)[ :=\[]*(\d{1,12})", line.text)
    hit.step = int(m[1]) if m else None
    return hit


def _signal_of(context: Mapping[str, Any], found: Scan) -> Hit | None:
    """Return a hit for the signal that, as the caller says, ended the process."""
    code, signal = context.get("exit_code"), context.get("signal")
    text = f"exit code -{signal}" if isinstance(signal, int) and signal > 0 else f"exit code {code}"
    rule = next((r for r, _ in takers(text) if r.tier == Tier.SIGNAL), None)
    if rule is None:
        return None
    if rule.name == "killed" and context.get("launch"):
        rule = BY_NAME["killed-by-signal"]
    file = context.get("launch_file") or found.files[0].path
    return Hit(rule, 0, Line(file, None, text), OWN if context.get("launch") else 0, 0)


def _stall_without_stop(found: Scan, choice: Choice) -> None:
    """Take an exit code among the symptoms as the root."""
    for hit in choice.symptoms:
        if hit.rule.tier == Tier.SIGNAL:
            choice.root = hit


def _ended_well(found: Scan, summary: LogSummary, choice: Choice, context: Mapping[str, Any]) -> bool:
    if context.get("exit_code") not in (None, 0) or context.get("signal"):
        return False
    if summary.finished is not None:
        return not any(_failed_below(hit, summary.finished) for hit in choice.symptoms)
    if choice.symptoms:
        return False
    if _silent_trainer(found):
        return False
    return summary.ended is not None and not _went_on(summary.ended, found)


def _failed_below(hit: Hit, finished: Evidence) -> bool:
    """Return True if a process failed after the training had completed."""
    if hit.rule.name not in ("worker-failed", "loader-worker-gone") or hit.line.file != finished.file:
        return False
    return (hit.line.number or 0) > (finished.line or 0) > 0


def _went_on(end: Evidence, found: Scan) -> bool:
    """Return True if training continued below the supposed end: `model saved` is printed after every epoch too."""
    return any(
        p.last is not None and p.last.file == end.file and (p.last.number or 0) > (end.line or 0)
        for p in found.progress.values()
    )


def _silent_trainer(found: Scan) -> bool:
    """Return True if the trainer started but printed neither steps nor its end, as it always does."""
    return found.facts.get("trainer") == "nerfstudio" and not found.series


def _without_cause(found: Scan, summary: LogSummary, choice: Choice, context: Mapping[str, Any]) -> Diagnosis:
    """Return the verdict on a failure without a cause, or on files that prove nothing."""
    failed = bool(choice.symptoms) or context.get("exit_code") not in (None, 0) or bool(context.get("signal"))
    evidence = [_evidence(h) for h in choice.symptoms[:MAX_EVIDENCE]]
    explanation = "Nothing in these files says how the job ended."
    if choice.symptoms:
        explanation = "Something failed, and these files do not say what."
    elif _silent_trainer(found) and summary.ended is not None:
        failed, evidence = True, [summary.ended]
        explanation = (
            "The wrapper says that it is complete, but the trainer printed neither a step nor its own end."
        )
    elif _stepped(found):
        explanation = "Training was going on where the files end; nothing says how it ended."
        evidence = [_line(p.last) for p in found.progress.values() if p.last][:1]
    first = _first_failing(found)
    if launch := context.get("launch"):
        return _without_cause_ours(found, choice, launch, str(context.get("launch_file")))
    if all(f.format == "empty" for f in found.files if f.format != "missing"):
        explanation = "Nothing is written in these files."
    return Diagnosis(
        status="failed" if failed else "unknown", cause="unknown",
        evidence=evidence or [_evidence(h) for h in choice.notes[:3]],
        explanation=explanation, rank=first.get("rank"), node=first.get("node"),
        remedy=_what_to_give(found, choice, first.get("rank"), first.get("node")), ruled_out=_ruled_out(choice),
        looked_for=[*_missing_halves(found), *_looked_for()],
    )  # fmt: skip


def _without_cause_ours(found: Scan, choice: Choice, launch: LaunchSummary, launch_file: str) -> Diagnosis:
    """Return the verdict on a failed run of ours of which neither ranks, launcher nor log tell the cause."""
    events = found.events or RunEvents()
    place = own_run.Place(None, found.hits, events)
    text = f"exit status {launch.returncode} and no error event"
    log = Path(launch_file).with_name("train.log")
    return Diagnosis(
        status="failed", cause="unknown", phase=place.phase, step=place.step, rank=place.rank, node=place.node,
        evidence=[_evidence(h) for h in choice.symptoms[:MAX_EVIDENCE]] or [Evidence(file=launch_file, text=text)],
        explanation="Something failed, and neither the ranks nor their output say what.",
        remedy=f"read {log}", ruled_out=_ruled_out(choice), looked_for=_looked_for(),
    )  # fmt: skip


def _missing_halves(found: Scan) -> list[str]:
    """List the job's other .out or .err where it was not found."""
    return [
        f"the job's other half, {other.name} (not found)"
        for other in missing_counterparts([Path(f.path) for f in found.files])
    ]


def _what_to_give(found: Scan, choice: Choice, rank: int | None, node: str | None) -> str:
    """Name the files that may state a cause which these do not."""
    halves = [
        f"Give also {other.name}." for other in missing_counterparts([Path(f.path) for f in found.files])
    ]
    place = " on ".join(x for x in (None if rank is None else f"rank {rank}", node) if x)
    wanted = [*halves, *([f"Look in the log of {place}."] if place else [])]
    told = [h.rule.remedy for h in choice.symptoms if h.rule.name == "loader-worker-gone"][:1]
    return " ".join([*told, *wanted, BY_NAME["worker-failed"].remedy])


def _looked_for() -> list[str]:
    looks: dict[str, str] = {}
    for rule in all_rules():
        looks.setdefault(rule.cause, rule.looks)
    return [f"{cause}: {look}" for cause, look in looks.items() if cause != "unknown"]


def _mismatch(
    found: Scan, summary: LogSummary, choice: Choice, context: Mapping[str, Any]
) -> Diagnosis | None:
    """Return the verdict on a run that ended well on fewer devices than allocated."""
    asked, used = context.get("devices_asked") or summary.devices_asked, summary.devices_used
    if not asked or not used or used >= asked:
        return None
    rule = BY_NAME["duplicate-gpu"]
    lines = [
        found.facts.one[k].line
        for k in ("devices_used", "world_size", "gpus_asked", "gpus_per_node", "visible_devices")
        if k in found.facts.one
    ]
    return Diagnosis(
        status="degraded", cause=rule.cause, phase="startup", evidence=[_line(x) for x in lines][:MAX_EVIDENCE],
        explanation=f"{asked} devices were allocated and {used} used: {asked - used} idled for the whole run.",
        remedy=rule.remedy_for(summary.trainer).replace(" N`", f" {asked}`"), ruled_out=_ruled_out(choice),
    )  # fmt: skip


def _evidence_of_end(summary: LogSummary) -> list[Evidence]:
    return [e for e in (summary.finished, summary.ended) if e is not None][:1]


def _ruled_out(choice: Choice) -> list[RuledOut]:
    seen: dict[tuple[str, str], RuledOut] = {}
    for hit, reason in choice.ruled_out:
        if hit.rule.cause != "unknown":
            seen.setdefault(
                (hit.rule.cause, reason),
                RuledOut(cause=hit.rule.cause, reason=reason, evidence=_evidence(hit)),
            )
    return list(seen.values())[:12]


def _last_step(found: Scan) -> int | None:
    series = main_series(found)
    return series.last if series is not None and series.format.name != "trainer dict" else None


def _evidence(hit: Hit) -> Evidence:
    return _line(hit.line)


def _line(line: Any) -> Evidence:
    text = line.text.strip()
    return Evidence(
        file=line.file,
        line=line.number,
        text=text if len(text) <= MAX_EVIDENCE_TEXT else text[:MAX_EVIDENCE_TEXT] + " ...",
    )
