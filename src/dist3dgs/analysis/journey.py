"""A study's attempts in order, from its records alone: outcome, changed settings, cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.naming import Layout
from ..runs.record import Evidence, Metrics, RunRecord
from .measures import rank_hours
from .points import application, conditions, hardware

#: Seconds in these phases can be shared among ranks; all others are serial. Foreign logs call it stepping.
PARALLEL_PHASES = ("step", "stepping")
#: Serial phases that recur during the steps: their seconds grow with the number of steps.
RECURRING_PHASES = ("densify", "evaluate", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt and its place in the journey."""

    number: int
    record: RunRecord
    changes: list[str]
    """Settings that differ from the previous attempt: `layout n1g1 → n1g4`, `train.steps 7000 → 30000`."""
    rank_hours: float | None


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """A cause met in the study, from its first occurrence to whether it was overcome."""

    cause: str
    attempts: list[int]
    evidence: list[Evidence]
    remedy: str | None
    solved_by: int | None
    """Number of the first later attempt of the same scene and layout that succeeded."""


@dataclass(frozen=True, kw_only=True)
class Performance:
    """Expected, measured and best possible wall time of one run, all for the baseline's number of steps."""

    attempt: int
    name: str
    status: str
    baseline: str | None
    steps: int | None
    """Steps that the run did."""
    normalised_steps: int | None
    """Steps in which it would have done the baseline's work; stepping and recurring phases are scaled to them."""
    expected_s: float | None
    """Baseline's wall time / how many times more ranks."""
    measured_s: float | None
    best_possible_s: float | None
    """This run's serial phases, for the baseline's work + baseline's stepping / how many times more ranks."""
    reason: str | None


def attempts(records: Sequence[RunRecord]) -> list[Attempt]:
    """All attempts at all runs in order of their start; those without a known start come first, by their job ids."""
    ordered = sorted((one for record in records for one in _each_attempt(record)), key=_order)
    journey = []
    for i, record in enumerate(ordered):
        changes = [] if i == 0 else differences(ordered[i - 1], record)
        journey.append(Attempt(number=i + 1, record=record, changes=changes, rank_hours=_cost(record)))
    return journey


def _each_attempt(record: RunRecord) -> list[RunRecord]:
    """Return a run's attempts as records of their own: the earlier ones with what they cost and why they ended."""
    if not record.earlier:
        return [record]
    found = []
    for e in record.earlier:
        known = e.started_at is not None and e.finished_at is not None
        found.append(
            record.model_copy(
                update={
                    "status": "ok" if e.failure is None else "failed",
                    "failure": e.failure,
                    "earlier": [],
                    "metrics": Metrics(total_s=e.finished_at - e.started_at if known else None),  # type: ignore[operator]
                    "provenance": record.provenance.model_copy(
                        update={
                            "attempt": e.attempt,
                            "started_at": e.started_at,
                            "finished_at": e.finished_at,
                        }
                    ),
                }
            )
        )
    return [*found, record]


def _cost(record: RunRecord) -> float | None:
    """Return rank-hours of the attempt alone: a resumed run's total counts those it continues."""
    p = record.provenance
    if record.earlier and p.started_at is not None and p.finished_at is not None:
        return (p.finished_at - p.started_at) * record.world_size / 3600
    return rank_hours(record)


def _order(record: RunRecord) -> tuple[Any, ...]:
    start, run = record.provenance.started_at, record.run
    layout = Layout.parse(run.layout)
    job = record.provenance.slurm_job_id or ""
    number = int(job) if job.isdecimal() else 0
    return (
        start is not None,
        start or 0.0,
        number,
        run.scene,
        run.strategy,
        layout.world_size,
        layout,
        run.repeat,
    )


def differences(before: RunRecord, after: RunRecord) -> list[str]:
    """Return the settings that changed between two runs, as `name old → new`."""
    a, b = before.run, after.run
    changed = [
        f"{name} {getattr(a, name)} → {getattr(b, name)}"
        for name in ("scene", "strategy", "layout")
        if getattr(a, name) != getattr(b, name)
    ]
    if a.scene != b.scene and (
        application(before) != application(after) or "criteria" in {*a.settings, *b.settings}
    ):
        return changed  # another program: all its settings differ
    if a.settings and b.settings:  # a log that states no settings shows no change
        flat_a, flat_b = _flat(a.settings), _flat(b.settings)
        if len(flat_a.keys() & flat_b.keys()) < min(len(flat_a), len(flat_b)) / 2:
            return [*changed, "another program"]  # a list of all settings of both would say less
        for name in sorted(flat_a.keys() | flat_b.keys()):
            if name.split(".")[0] in ("scene", "strategy", "layout", "repeat", "seed"):
                continue
            if flat_a.get(name) != flat_b.get(name):
                changed.append(f"{name} {_show(flat_a.get(name))} → {_show(flat_b.get(name))}")
    if before.provenance.code_digest != after.provenance.code_digest and None not in (
        before.provenance.code_digest,
        after.provenance.code_digest,
    ):
        changed.append("training code")
    if not changed and a.repeat != b.repeat:
        changed.append(f"repeat {a.repeat} → {b.repeat}")
    if not changed and before.provenance.attempt != after.provenance.attempt:
        changed.append(f"attempt {before.provenance.attempt} → {after.provenance.attempt}")
    return changed


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show(value: Any) -> str:
    return "(not set)" if value is None else str(value)


def technical_challenges(journey: Sequence[Attempt]) -> list[Challenge]:
    """Return one entry per cause, in the order met."""
    met: dict[str, list[Attempt]] = {}
    for attempt in journey:
        if attempt.record.failure is not None:
            met.setdefault(attempt.record.failure.cause, []).append(attempt)
    challenges = []
    for cause, group in met.items():
        failures = [a.record.failure for a in group if a.record.failure is not None]
        last = group[-1]
        solved = next(
            (
                a.number
                for a in journey
                if a.number > last.number
                and a.record.status == "ok"
                and (a.record.run.scene, a.record.run.layout)
                == (last.record.run.scene, last.record.run.layout)
            ),
            None,
        )
        challenges.append(
            Challenge(
                cause=cause,
                attempts=[a.number for a in group],
                evidence=next((f.evidence for f in failures if f.evidence), []),
                remedy=next((f.remedy for f in failures if f.remedy), None),
                solved_by=solved,
            )
        )
    return challenges


def performance_comparison(journey: Sequence[Attempt], baseline: str | None = None) -> list[Performance]:
    """Compare every attempt with the smallest successful one of its scene that did the same work, if there is one.

    baseline: `strategy/layout` to compare with instead, where it succeeded.
    """
    by_program: dict[tuple[str, str], list[Attempt]] = {}
    for a in journey:
        if a.record.metrics.total_s:
            by_program.setdefault((a.record.run.scene, application(a.record)), []).append(a)
    for alike in by_program.values():
        alike.sort(key=_size)
    settings = {a.number: json.dumps(_comparable(a.record), sort_keys=True, default=str) for a in journey}
    return [
        _performance(
            a,
            _baseline(a, by_program.get((a.record.run.scene, application(a.record)), []), settings, baseline),
        )
        for a in journey
    ]


def _baseline(
    attempt: Attempt, alike: Sequence[Attempt], settings: Mapping[int, str], named: str | None
) -> Attempt | None:
    """Choose the smallest and shortest success: under the same settings, else of the same strategy, else of the scene.

    Strategies of our own that do the same work count as the same settings (`points.conditions`). The baseline is of the
    same program and hardware: another one's time says nothing of what to expect. Where nothing succeeded, a run that
    finished on fewer ranks than it was given shows what those can do.

    Args:
        alike: attempts of the same scene and program that took a known time, the smallest first.
        settings: what must be the same in two attempts, by their numbers.
        named: `strategy/layout` that comes first where it succeeded.
    """
    run, record = attempt.record.run, attempt.record

    def is_named(other: Attempt) -> bool:
        return f"{other.record.run.strategy}/{other.record.run.layout}" == named

    def does_the_same(other: Attempt) -> bool:
        return settings[other.number] == settings[attempt.number] or conditions(other.record) == conditions(
            record
        )

    ok = [a for a in alike if a.record.status == "ok"]
    groups = (
        (a for a in ok if is_named(a)),
        (a for a in ok if does_the_same(a)),
        (a for a in ok if a.record.run.strategy == run.strategy),
        ok,
        (a for a in alike if a.record.status == "degraded" and a.record.metrics.ranks),
    )
    # The smallest comes first, so little of a long list is looked at.
    found = (next((a for a in group if _same_hardware(a.record, record)), None) for group in groups)
    return next((a for a in found if a is not None), None)


def _same_hardware(a: RunRecord, b: RunRecord) -> bool:
    """Return False where both are named and differ; a run that failed early, or a log, may not name its devices."""
    known = {hardware(r) for r in (a, b)} - {"", "GPU"}
    return len(known) < 2


def _comparable(record: RunRecord) -> dict[str, Any]:
    """Return the settings except the amount of work and the number of ranks."""
    flat = _flat(record.run.settings)
    apart = {"scene", "strategy", "layout", "repeat", "seed", "train.steps", "parallel.ranks"}
    return {name: value for name, value in flat.items() if name not in apart}


def _size(attempt: Attempt) -> tuple[int, float, int]:
    m = attempt.record.metrics
    return _ranks_used(attempt.record), m.images or m.steps or m.epochs or 0, attempt.number


def _ranks_used(record: RunRecord) -> int:
    """Return the ranks that did the work; of a degraded run, those known to have worked."""
    return len(record.metrics.ranks) if record.status == "degraded" else record.world_size


def _performance(attempt: Attempt, baseline: Attempt | None) -> Performance:
    record, run = attempt.record, attempt.record.run
    values: dict[str, Any] = {
        "attempt": attempt.number,
        "name": f"{run.scene}/{run.strategy}/{run.layout}/r{run.repeat}",
        "status": record.status,
        "baseline": None,
        "steps": record.metrics.steps,
        **dict.fromkeys(("normalised_steps", "expected_s", "measured_s", "best_possible_s", "reason")),
    }
    if baseline is None:
        values["reason"] = "no successful run of this program on this scene and hardware to compare with"
        return Performance(**values)
    base = baseline.record
    used = _ranks_used(base)
    name = base.run.layout if used == base.world_size else f"{used} rank of {base.run.layout}"
    values["baseline"] = f"attempt {baseline.number} ({name})"
    ratio = record.world_size / used
    total_s = base.metrics.total_s
    base_work, work = _work(base, record)
    assert total_s is not None  # _baseline() asks for it
    values["expected_s"] = total_s / ratio
    values["normalised_steps"] = base.metrics.steps
    if record.status not in ("ok", "degraded"):
        values["reason"] = "the run did not finish"
        return Performance(**values)
    if record.metrics.total_s is None:
        values["reason"] = "its wall time is not known"
        return Performance(**values)
    stepping, base_stepping = _stepping(record), _stepping(base)
    if stepping is None or base_stepping is None or not work or not base_work:
        values["reason"] = "no phases: stepping cannot be told from the serial rest"
        if work and work == base_work:
            values["measured_s"] = record.metrics.total_s
        return Performance(**values)
    if record.metrics.steps:
        values["normalised_steps"] = round(record.metrics.steps * base_work / work)
    recurring_s = sum(s for name, s in record.metrics.phases_s.items() if name in RECURRING_PHASES)
    once_s = record.metrics.total_s - stepping - recurring_s
    serial_s = once_s + recurring_s * base_work / work
    values["measured_s"] = serial_s + stepping * base_work / work
    values["best_possible_s"] = serial_s + base_stepping / ratio
    return Performance(**values)


def _work(base: RunRecord, record: RunRecord) -> tuple[float | None, float | None]:
    """Return the work of each of two runs, in the unit both know: images seen, else epochs, else steps."""
    a, b = base.metrics, record.metrics
    for name in ("images", "epochs"):
        works = getattr(a, name), getattr(b, name)
        if all(works):
            return works
    return a.steps, b.steps


def _stepping(record: RunRecord) -> float | None:
    found = [s for name, s in record.metrics.phases_s.items() if name in PARALLEL_PHASES]
    return sum(found) if found else None
