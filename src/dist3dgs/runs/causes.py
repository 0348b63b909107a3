"""The table of causes of failure: what each is called, and how often another attempt may follow it.

Validation of records, the retry policy, status and docs/troubleshooting.md are derived from it. A new cause is one
entry here and the rule that finds it (`diagnosis/rules/`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from . import plugins


@dataclass(frozen=True, slots=True)
class CauseOfFailure:
    """One cause.

    Args:
        name: as records and tables have it.
        description: one sentence for docs/troubleshooting.md.
        words: for a line of status. Empty: the name without underscores.
        retries: how many attempts may follow failures of this cause. 0: never retried, because a code error, a wrong
            setting, a diverged run or a job that the user cancelled ends the same way every time.
        requeued: Slurm restarts the job by itself, so that none of Snakemake's retries is used up.
        resumed: only the steps after the last checkpoint are lost and count against `site.retry_gpu_hours`.
        mem_factor, runtime_factor: factors on the next attempt's memory and time limit.
    """

    name: str
    description: str
    words: str = ""
    retries: int = 0
    requeued: bool = False
    resumed: bool = False
    mem_factor: float = 1.0
    runtime_factor: float = 1.0


_C = CauseOfFailure

CAUSES: dict[str, CauseOfFailure] = {
    c.name: c
    for c in (
        _C("allocation_mismatch", "The run used other devices than it was allocated."),
        _C("parameter_mismatch", "Ranks have different models or call different collectives."),
        _C("host_oom", "A node or a job ran out of host memory.", "out of memory", retries=3, mem_factor=1.5),
        _C("gpu_oom", "A GPU ran out of memory.", "out of GPU memory"),
        _C("rendezvous", "The ranks did not find each other at the start, or lost each other.", retries=2),
        _C("collective_timeout", "Ranks waited in a collective that others never joined.", retries=2),
        _C("nccl_error", "NCCL or the network under it failed.", "NCCL error", retries=2),
        _C("port_in_use", "Another process has the rendezvous port.", retries=3),
        # Each attempt resumes: several time limits in a row are progress (but see `retry.stuck`).
        _C(
            "time_limit",
            "It reached its time limit.",
            "time limit reached",
            retries=6,
            resumed=True,
            runtime_factor=1.5,
        ),
        _C(
            "preempted",
            "The scheduler ended the job for another one.",
            retries=20,
            requeued=True,
            resumed=True,
        ),
        _C("node_failure", "A node of the job went down.", "node lost", retries=4),
        _C("cancelled", "A person or a program stopped the job."),
        _C("disk_full", "A disk, quota or cache folder cannot be written."),
        _C("environment", "A package, library or program is missing or has the wrong version."),
        _C("extension_build", "A compiled extension does not build."),
        _C("diverged", "The loss became NaN or infinite, or the model vanished."),
        _C("sfm_failed", "Structure from motion found no usable model.", "structure from motion failed"),
        _C("dataset_corrupt", "Input files are missing, corrupt or of another format."),
        _C("shared_memory", "/dev/shm is full.", retries=2),
        _C("unused_parameters", "DDP waited for gradients of parameters that took no part in the loss."),
        _C("gpu_fault", "A GPU or a kernel on it failed.", "GPU fault", retries=2),
        _C("submission_rejected", "The scheduler refused the job.", "submission refused"),
        _C("code_error", "The program ended with an uncaught exception."),
        _C("no_progress", "The job ran on without a training step.", retries=1),
        _C("killed", "A process was killed by SIGKILL, and nothing says by whom.", retries=2),
        _C("crashed", "A process crashed.", retries=1),
        _C("misconfiguration", "A setting or a command line is wrong."),
        _C("unknown", "No line proves a cause.", "unknown cause", retries=1),
    )
}


@cache
def _added() -> dict[str, CauseOfFailure]:
    causes: Iterable[CauseOfFailure] = plugins.added("CAUSES")
    return {c.name: c for c in causes}


def find_cause(name: str) -> CauseOfFailure | None:
    """Look a cause up, those of plug-ins included; None if nobody names it."""
    return CAUSES.get(name) or _added().get(name)


def retries_after(name: str | None) -> int:
    """Return how many further attempts failures of that cause may have; 0 for an unknown name."""
    cause = find_cause(name) if name else None
    return cause.retries if cause is not None else 0


def cause_words(name: str) -> str:
    """Return a cause in words for one line of status."""
    cause = find_cause(name)
    return cause.words if cause is not None and cause.words else name.replace("_", " ")


def _known(name: str) -> str:
    if find_cause(name) is None:
        raise ValueError(f"no such cause: {name[:64]!r}; causes are {', '.join([*CAUSES, *_added()])}")
    return name


#: A cause's name, validated against the table.
Cause = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"enum": list(CAUSES), "title": "Cause", "type": "string"})
]
