"""The launcher's turn inside a Slurm job: wait for another job of the point, then train, use a result, or close.

Used by `dist3dgs launch` when it runs in an allocation. Exit status 75 (EX_TEMPFAIL) tells Snakemake to submit the
point again; the resources of that submission come from the same decision, taken on the login node.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from ..evidence import Attempt, attempts
from ..files import write_json
from .allocation import Allocation
from .attempts import Try, settle
from .commands import SlurmError
from .retry import Decision, decide
from .settings import Site

EX_TEMPFAIL = 75
WAIT_POLL_S = 5.0
#: A controller that is down for less than this is waited for.
PATIENCE_S = 600.0


def take(point: Path, spec_digest: str, allocation: Allocation, site: Site) -> Decision:
    """What this job is to do, after every other job of the point that runs has ended."""
    silent_since: float | None = None
    while True:
        try:
            tries = settle(point, spec_digest, (allocation.job_id, allocation.restarts))
        except SlurmError as e:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
            print(f"Slurm does not answer ({e.text}); asking again", file=sys.stderr, flush=True)
            time.sleep(WAIT_POLL_S)
            continue
        decision = decide(tries, retry_gpu_hours=site.retry_gpu_hours)
        if decision.action != "wait":
            return decision
        print(f"{decision.reason}; waiting for it to end", file=sys.stderr, flush=True)
        time.sleep(WAIT_POLL_S)


def after_failure(point: Path, spec_digest: str, allocation: Allocation, site: Site) -> Decision:
    """Whether the attempt that has just failed in this job is followed by another."""
    tries = settle(point, spec_digest, (allocation.job_id, allocation.restarts))
    return decide([t for t in tries if not t.running], retry_gpu_hours=site.retry_gpu_hours)


def publish(point: Path, note: str) -> dict[str, Any]:
    """Make the newest attempt the point's outcome: its summary becomes `launch.json` of the point."""
    attempt = attempts(point)[-1]
    summary = {**attempt.launch(), "published": True, "closing_note": note}
    # What the launcher could not write itself, because it was killed.
    if summary.get("status") in ("running", "stopped"):
        summary["status"] = "lost"
    summary.setdefault("finished_at", (summary.get("ended") or {}).get("at") or time.time())
    if summary.get("finished_at") is None:
        summary["finished_at"] = time.time()
    write_json(attempt.launch_path, summary)
    write_json(Path(point) / "launch.json", summary)
    return summary


def refuse(point: Path, spec: dict[str, Any], spec_digest: str, note: str) -> Attempt:
    """Write down an attempt that never began: sbatch refused it."""
    from ..evidence import new_attempt

    attempt = new_attempt(point)
    now = time.time()
    facts = {
        "spec_digest": spec_digest,
        "spec": spec,
        "attempt": attempt.number,
        "status": "failed",
        "argv": [],
    }
    ended = {"cause": "submission_rejected", "note": note, "at": now}
    write_json(
        attempt.launch_path, {**facts, "ended": ended, "started_at": now, "finished_at": now, "slurm": None}
    )
    with contextlib.suppress(OSError):
        attempt.log_path.write_text(note + "\n", encoding="utf-8")
    return attempt


def story(tries: list[Try]) -> str:
    """The attempts in one line each, for a log."""
    return "\n".join(
        f"attempt {t.number}: {t.status}, {t.cause or '-'}, step {t.step if t.step is not None else '-'}, "
        f"{t.gpu_hours:.3f} GPU-hours{': ' + t.note if t.note else ''}"
        for t in tries
    )
