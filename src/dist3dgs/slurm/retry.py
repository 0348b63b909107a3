"""Whether to try again, with what, decided by the reason of the failure and the GPU-hours it has cost.

The same decision is taken in two places from the same files: on the login node, where it becomes the
resources of the
next submission (`resources`), and in the job, where the launcher acts on it. A point ends in one of three
ways: its
outputs are there; a failure that trying again cannot mend is recorded; or the tries or the budget are used
up and
that is recorded. The last two need no GPU: they get a small job of their own ("close"), so that a killed
attempt
never leaves a hole in the graph.
"""

from dataclasses import dataclass
from typing import Literal

from ..record import Cause
from .attempts import Attempt

#: How often a cause may end an attempt before the point is given up. What is not listed is not retried: a
#: code error, a wrong setting, an allocation that does not fit or a diverged run ends the same way every time.
TRIES_AFTER: dict[Cause, int] = {
    "time_limit": 6,  # each attempt resumes: several limits in a row are progress (but see `stuck`)
    "preempted": 20,
    "node_failure": 4,
    "host_oom": 3,
    "shared_memory": 2,
    "rendezvous": 2,
    "collective_timeout": 2,
    "nccl_error": 2,
    "port_in_use": 3,
    "gpu_fault": 2,
    "killed": 2,
    "unknown": 1,
}
GROWING_MEMORY: frozenset[Cause] = frozenset({"host_oom"})
FEWER_WORKERS: frozenset[Cause] = frozenset({"host_oom", "shared_memory"})

Action = Literal["train", "close", "adopt"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the next job of a point does. Factors apply to the site's memory and time for the layout."""

    action: Action
    reason: str
    cause: Cause | None = None
    mem_factor: float = 1.0
    runtime_factor: float = 1.0
    fewer_loader_workers: int = 0  # how often their number is to be halved


def decide(series: list[Attempt], *, retry_gpu_hours: float = 24.0) -> Decision:
    """Decide from the ended attempts of one series (`attempts.series`), oldest first.

    Args:
        retry_gpu_hours: what the failed attempts of the point may have cost together.
    """
    failed = [a for a in series if a.status == "failed"]
    if series and series[-1].status == "ok":
        return Decision(
            action="adopt", reason=f"attempt {series[-1].number} has finished; its result is used"
        )
    if not failed:
        return Decision(action="train", reason="first attempt")
    last = failed[-1]
    cause: Cause = last.cause or "unknown"
    same = sum(1 for a in failed if a.cause == last.cause)
    spent = sum(a.gpu_hours for a in failed)

    def close(why: str) -> Decision:
        return Decision(action="close", reason=why, cause=cause)

    if cause not in TRIES_AFTER:
        return close(f"attempt {last.number} ended with {cause}: trying again would end the same way")
    if same > TRIES_AFTER[cause]:
        return close(f"{same} attempts ended with {cause}; no more than {TRIES_AFTER[cause]} are tried again")
    if cause == "time_limit" and stuck(failed):
        return close("two attempts in a row met the time limit without a step forward")
    if spent >= retry_gpu_hours > 0 or retry_gpu_hours == 0:
        return close(
            f"failed attempts have cost {spent:.2f} GPU-hours; the budget is {retry_gpu_hours:g} "
            "(site.retry_gpu_hours)"
        )
    return Decision(
        action="train",
        reason=f"attempt {last.number} ended with {cause}",
        cause=cause,
        mem_factor=1.5 ** sum(1 for a in failed if a.cause in GROWING_MEMORY),
        runtime_factor=1.5 ** sum(1 for a in failed if a.cause == "time_limit"),
        fewer_loader_workers=sum(1 for a in failed if a.cause in FEWER_WORKERS),
    )


def stuck(failed: list[Attempt]) -> bool:
    """Whether the last two attempts met the time limit and the second got no further than the first."""
    if len(failed) < 2 or failed[-1].cause != "time_limit" or failed[-2].cause != "time_limit":
        return False
    a, b = failed[-2].step, failed[-1].step
    return (b or 0) <= (a or 0)
