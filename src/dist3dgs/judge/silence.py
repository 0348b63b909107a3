"""Whether a run that was stopped had been standing still: then the stop is not why it failed."""

from typing import Any

from ..diagnose.rules import remedy
from ..diagnose.stalls import NO_STEP_S, SILENCE_S, SILENCE_STEPS
from ..record import Evidence, Failure
from .case import Case

#: Ends from outside that a run which stands still comes to.
STOPS = ("time_limit", "cancelled")
PROGRESS = ("step", "progress", "densify", "eval", "checkpoint", "export")
REMEDY = remedy("no-step", "dist3dgs")


def no_progress(case: Case) -> Failure | None:
    """The failure of a run without a step for half an hour and ten steps, or with none at all in an hour; else None.

    Also of one that the launcher ended because no event came for twice the timeout of the collectives.
    """
    ended = case.launch.get("ended") or {}
    end_t = ended.get("at") or case.launch.get("finished_at")
    stalled = bool(case.launch.get("stalled")) and not case.of_kind("error")
    if end_t is None or not (stalled or ended.get("cause") in STOPS):
        return None
    if not case.events:
        return _never_began(case, end_t) if stalled else None
    progress = [e for e in case.events if e["event"] in PROGRESS]
    last = progress[-1] if progress else case.events[-1]
    silence_s = end_t - last["t"]
    if not stalled and silence_s < (_patience_s(progress) if progress else NO_STEP_S):
        return None
    what = (
        f"no event after it for {silence_s:.0f} s, until {ended.get('note') or 'the launcher ended the run'}"
    )
    return Failure(
        cause="no_progress",
        step=last.get("step") if isinstance(last.get("step"), int) else None,
        evidence=[
            case.evidence_of(last),
            Evidence(file=case.name("launch.json"), text=what),
        ],
        remedy=REMEDY,
    )


def _never_began(case: Case, end_t: float) -> Failure:
    """The launcher ended ranks that never wrote an event: a slow file system, or a node with too much to do."""
    text = f"no event at all in {end_t - case.launch.get('started_at', end_t):.0f} s, until the launcher ended the run"
    evidence = [Evidence(file=case.name("launch.json"), text=text)]
    return Failure(cause="no_progress", phase="startup", evidence=evidence, remedy=REMEDY)


def _patience_s(progress: list[dict[str, Any]]) -> float:
    step_s = max((e["step_s"] for e in progress if isinstance(e.get("step_s"), int | float)), default=0.0)
    return max(SILENCE_S, SILENCE_STEPS * step_s)
