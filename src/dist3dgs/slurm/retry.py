"""Decide what the next job of a point does: train, close it as it is, adopt a result, or wait.

`next_action` resolves the outcomes of the point's attempts and decides by their causes and the GPU-hours they cost.
It is called once on each path: by the planner on the login node, where the decision becomes the resources of the next
submission; by the launcher at the start of its job (`take_turn`); and by the launcher after a failed attempt. All read
the same files. A point whose attempts are used up needs no GPU: its last attempt is published as the outcome, so that
a killed attempt never leaves a hole in the graph.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config.naming import Layout, point_folder
from ..runs.attempts import AttemptState
from ..runs.causes import Cause, CauseOfFailure, find_cause
from .allocation import PATIENCE_S, Allocation
from .client import SlurmError
from .outcome import resolve_outcomes
from .site import VARIABLE, Site

#: All causes together, requeues not counted. Less than the profile's `retries`, so that the last attempt of
#: Snakemake is always the one that closes.
MAX_FAILED = 9
#: Exit status of a launcher whose point is to be submitted again.
EX_TEMPFAIL = 75
WAIT_POLL_S = 5.0
#: A job for one CPU gets a whole core, which may be as many as this.
SMALL_CPUS = 8
Action = Literal["train", "close", "adopt", "wait"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Action of a point's next job. Factors apply to the site's memory and time for the layout."""

    action: Action
    reason: str
    cause: Cause | None = None
    mem_factor: float = 1.0
    runtime_factor: float = 1.0
    loader_workers: int | None = None  # of each rank of a workload; None: as its settings say
    after: tuple[int, ...] = ()  # Slurm jobs to wait for


def next_action(
    point: Path,
    spec_digest: str,
    site: Site,
    *,
    me: tuple[int, int] | None = None,
    ignore_running: bool = False,
) -> Decision:
    """Write down how the point's attempts ended, and decide what follows them.

    Args:
        me: (Slurm id, restarts) of the calling job; None on the login node.
        ignore_running: decide as if attempts that run in other jobs were not there.

    Raises:
        SlurmError: Slurm does not answer.
    """
    states = resolve_outcomes(point, spec_digest, me)
    if ignore_running:
        states = [s for s in states if not s.running]
    return decide(states, retry_gpu_hours=site.retry_gpu_hours)


def take_turn(point: Path, spec_digest: str, allocation: Allocation, site: Site) -> Decision:
    """Decide what this job does, after waiting for any other running job of the point.

    Exits with `EX_TEMPFAIL` if the job is to train and is too small for it.

    Raises:
        SlurmError: Slurm does not answer for `PATIENCE_S`.
    """
    silent_since: float | None = None
    while True:
        try:
            decision = next_action(point, spec_digest, site, me=(allocation.job_id, allocation.restarts))
        except SlurmError as e:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
            print(f"Slurm does not answer ({e.text}); asking again", file=sys.stderr, flush=True)
            time.sleep(WAIT_POLL_S)
            continue
        if decision.action == "train" and (why := too_small(point, allocation, site)):
            # Submitted to wait for another job of the point, which has left the training to be done.
            print(f"Slurm job {allocation.job_id}: {why}; to be submitted anew", file=sys.stderr, flush=True)
            sys.exit(EX_TEMPFAIL)
        if decision.action != "wait":
            return decision
        print(f"{decision.reason}; waiting for it to end", file=sys.stderr, flush=True)
        time.sleep(WAIT_POLL_S)


def decide(states: Sequence[AttemptState], *, retry_gpu_hours: float = 24.0) -> Decision:
    """Decide from the states of a point's open attempts, oldest first.

    Args:
        retry_gpu_hours: what the failed attempts of the point may have lost together; 0: never try again.
    """
    running = [s for s in states if s.running]
    if running:
        job = running[0].slurm_job_id
        jobs = tuple(s.slurm_job_id for s in running if s.slurm_job_id)
        reason = f"attempt {running[0].number} runs in Slurm job {job}"
        return Decision(action="wait", reason=reason, after=jobs)
    failed = [s for s in states if s.failed]
    if states and states[-1].status == "ok":
        return Decision(
            action="adopt", reason=f"attempt {states[-1].number} has finished; its result is used"
        )
    if not failed:
        return Decision(action="train", reason="first attempt")
    last = failed[-1]
    cause: Cause = last.cause or "unknown"
    if why := _give_up(failed, cause, retry_gpu_hours):
        return Decision(
            action="close", reason=f"attempt {last.number} ended with {cause}: {why}", cause=cause
        )
    workers, why = next_loader_workers(states)
    return Decision(
        action="train",
        reason=f"attempt {last.number} ended with {cause}{f': {why}' if why else ''}",
        cause=cause,
        # Where loaders used the memory up, fewer of them are the answer.
        mem_factor=math.prod(_policy(s).mem_factor for s in failed if not _has_loaders_to_spare(s)),
        runtime_factor=math.prod(_policy(s).runtime_factor for s in failed),
        loader_workers=workers,
    )


def next_loader_workers(states: Sequence[AttemptState]) -> tuple[int | None, str | None]:
    """Return the loader workers of each rank of a workload's next attempt, and why they are fewer than in its settings.

    None for both where its settings decide. A rank's loaders are halved after each attempt that ran out of host memory.
    """
    failed = [s for s in states if s.failed]
    short = [s for s in failed if _has_loaders_to_spare(s)]
    if not short:
        return None, None
    last = short[-1]
    had = last.loader_workers or 0
    why = f"{had // 2} loader workers per rank instead of {had}, as attempt {last.number} ran out of host memory"
    return had // 2, why


def _has_loaders_to_spare(state: AttemptState) -> bool:
    return state.cause == "host_oom" and bool(state.loader_workers)


def _policy(failed: AttemptState) -> CauseOfFailure:
    """Return the retry policy of an attempt's cause; no retries for a name that no table has."""
    cause: Cause = failed.cause or "unknown"
    return find_cause(cause) or CauseOfFailure(cause, "")


def _give_up(failed: list[AttemptState], cause: Cause, retry_gpu_hours: float) -> str | None:
    """Return why no further attempt is made, or None."""
    same = sum(1 for s in failed if (s.cause or "unknown") == cause)
    counted = sum(1 for s in failed if not _policy(s).requeued)
    allowed = _policy(failed[-1]).retries
    spent = sum(s.gpu_hours * (s.lost if _policy(s).resumed else 1.0) for s in failed)
    if not allowed:
        return "trying again would end the same way"
    if same > allowed:
        return f"{same} attempts ended so; at most {allowed} are followed by another"
    if counted >= MAX_FAILED:
        return f"{counted} attempts have failed, for several reasons; no more are made"
    if stuck(failed):
        return "two attempts in a row met the time limit, the second without getting further"
    if spent >= retry_gpu_hours:
        budget = f"the budget is {retry_gpu_hours:g} (site.retry_gpu_hours)"
        return f"failed attempts have lost {spent:.2f} GPU-hours, {budget}"
    return None


def stuck(failed: list[AttemptState]) -> bool:
    """Return True if the last two attempts met the time limit and the second got no further than the first."""
    if len(failed) < 2 or failed[-1].cause != "time_limit" or failed[-2].cause != "time_limit":
        return False
    if failed[-1].step is None and failed[-1].lost < 1.0:  # a program of others that has left a checkpoint
        return False
    return (failed[-1].step or 0) <= (failed[-2].step or 0)


def too_small(point: Path, allocation: Allocation, site: Site) -> str | None:
    """Return why a job that was submitted to wait (`resources.small_resources`) cannot train, or None."""
    layout = Layout.parse(point_folder(Path(point)).parent.name)
    has, needs = allocation.cpus_per_node or SMALL_CPUS + 1, site.cpus_per_gpu * layout.workers_per_node
    small = len(allocation.nodes) == 1 and allocation.gpus_per_node == 0 and has <= SMALL_CPUS
    lacks = has < needs or layout.nodes > 1 or site.gpu_request != "none"
    if small and lacks and os.environ.get(VARIABLE):
        return f"{has} CPU(s) on one node without a GPU cannot train {layout}"
    return None
