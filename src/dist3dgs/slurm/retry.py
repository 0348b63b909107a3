"""Decide if a failed attempt is tried again, and with what, by its cause and the GPU-hours it has cost.

The same decision is taken in two places from the same files: on the login node, where it becomes the resources of the
next submission (`resources`), and in the job, where the launcher acts on it. A point ends in one of three ways: its
outputs are there; a failure that trying again cannot mend is recorded; or the tries or the budget are used up and
that is recorded. The last two need no GPU: they get a small job of their own ("close"), so that a killed attempt
never leaves a hole in the graph.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..runs.causes import Cause, CauseOfFailure, find_cause
from .outcome import Try

#: All causes together, requeues not counted. Less than the profile's `retries`, so that the last attempt of
#: Snakemake is always the one that closes.
MAX_FAILED = 9
Action = Literal["train", "close", "adopt", "wait"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Action of a point's next job. Factors apply to the site's memory and time for the layout."""

    action: Action
    reason: str
    cause: Cause | None = None
    mem_factor: float = 1.0
    runtime_factor: float = 1.0


def decide(tries: Sequence[Try], *, retry_gpu_hours: float = 24.0) -> Decision:
    """Decide from the attempts of one series (`attempts.settle`), oldest first.

    Args:
        retry_gpu_hours: what the failed attempts of the point may have lost together; 0: never try again.
    """
    running = [t for t in tries if t.running]
    if running:
        job = running[0].slurm_job_id
        return Decision(action="wait", reason=f"attempt {running[0].number} runs in Slurm job {job}")
    failed = [t for t in tries if t.failed]
    if tries and tries[-1].status == "ok":
        return Decision(action="adopt", reason=f"attempt {tries[-1].number} has finished; its result is used")
    if not failed:
        return Decision(action="train", reason="first attempt")
    last = failed[-1]
    cause: Cause = last.cause or "unknown"
    if why := _give_up(failed, cause, retry_gpu_hours):
        return Decision(
            action="close", reason=f"attempt {last.number} ended with {cause}: {why}", cause=cause
        )
    return Decision(
        action="train",
        reason=f"attempt {last.number} ended with {cause}",
        cause=cause,
        mem_factor=math.prod(_policy(t).mem_factor for t in failed),
        runtime_factor=math.prod(_policy(t).runtime_factor for t in failed),
    )


def _policy(failed: Try) -> CauseOfFailure:
    """Return the retry policy of an attempt's cause; no retries for a name that no table has."""
    cause: Cause = failed.cause or "unknown"
    return find_cause(cause) or CauseOfFailure(cause, "")


def _give_up(failed: list[Try], cause: Cause, retry_gpu_hours: float) -> str | None:
    """Why no further attempt is made, or None."""
    same = sum(1 for t in failed if (t.cause or "unknown") == cause)
    counted = sum(1 for t in failed if not _policy(t).requeued)
    tries = _policy(failed[-1]).tries
    spent = sum(t.gpu_hours * (t.lost if _policy(t).resumed else 1.0) for t in failed)
    if not tries:
        return "trying again would end the same way"
    if same > tries:
        return f"{same} attempts ended so; at most {tries} are followed by another"
    if counted >= MAX_FAILED:
        return f"{counted} attempts have failed, for several reasons; no more are made"
    if stuck(failed):
        return "two attempts in a row met the time limit, the second without getting further"
    if spent >= retry_gpu_hours:
        budget = f"the budget is {retry_gpu_hours:g} (site.retry_gpu_hours)"
        return f"failed attempts have lost {spent:.2f} GPU-hours, {budget}"
    return None


def stuck(failed: list[Try]) -> bool:
    """Return True if the last two attempts met the time limit and the second got no further than the first."""
    if len(failed) < 2 or failed[-1].cause != "time_limit" or failed[-2].cause != "time_limit":
        return False
    return (failed[-1].step or 0) <= (failed[-2].step or 0)
