"""What Snakemake's Slurm plugin (2.8) lacks, added to its executor class by the Snakefile.

* Regular looks at the queue: the plugin looks again after 10 s more each time, up to 180 s, and starts over only when
  a job succeeded; the end of a half-hour run is noticed up to three minutes late. There is no setting for it. One
  `squeue` for all jobs of a run every few seconds is what the plugin's documentation recommends sites to expect.
* Jobs that are told to end wait for their rule: see `wait_for_the_rule`.
* A say for the study's `Planner` in the moments of a job. Without it, a point that needs no training waits in the
  queue for a job that does nothing (and has none where submissions are refused), a refused submission and a job that
  dies before the launcher starts are tried again until the retries are used up, with no word about why, and a job
  that is gone (preempted where Slurm cancels such jobs, forgotten) is waited for for ever.
* No job is lost: where squeue has failed five times in a row the plugin forgets all the jobs it was asked about.

Each function leaves the plugin as it was, and says so by returning False, where it is absent or another one.
"""

import asyncio
import contextlib
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol


class Listener(Protocol):
    """What is told about the jobs of a run. `job` is Snakemake's."""

    def finish(self, job: Any) -> bool:
        """Whether the job's outputs were made here, so that there is nothing to submit."""

    def asks(self, job: Any) -> dict[str, int | str]:
        """Resources that have changed since the job was scheduled."""

    def refused(self, job: Any, text: str) -> bool:
        """The job could not be submitted, for the reason in `text`. Whether it is to be submitted again later."""

    def failed(self, job: Any, slurm_job: int, log: Path | None) -> None:
        """A submitted job has ended without success."""

    def fate(self, slurm_job: int) -> bool | None:
        """Whether a job that the plugin waits for has ended well; None: it lives, as far as is known."""

    def interrupted(self, jobs: list[Any]) -> None:
        """Snakemake was interrupted and is about to cancel its jobs."""

    def look(self) -> None:
        """The queue is about to be looked at."""


#: Between looks at the queue while a job is about to end, and how long that may take after its last output.
QUICK_S, ENDING_S = 2.0, 30.0
#: Until a job that Slurm takes at present from nobody is submitted again.
RESUBMIT_S = 20.0


def limit_interval(seconds: float) -> bool:
    """Never let the plugin wait longer than `seconds` between two looks."""
    try:
        from snakemake_executor_plugin_slurm import Executor
        from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

        inherited = RemoteExecutor.next_seconds_between_status_checks
        read, write = inherited.fget, inherited.fset
    except (ImportError, AttributeError):
        return False

    def limited(self: object, value: float) -> None:
        write(self, min(value, seconds))

    seen_since: dict[str, float] = {}

    async def sleep(self: Any) -> None:
        """The wait between two looks. It ends with the run, which a finished Snakemake would sit out, and early where
        a job has left its outputs and so is about to end."""
        began, pause = time.monotonic(), self.next_seconds_between_status_checks or seconds
        while self.wait and (waited := time.monotonic() - began) < pause:
            if waited >= QUICK_S and any([has_outputs(info, seen_since) for info in list(self.active_jobs)]):
                return
            await asyncio.sleep(min(0.5, seconds))

    Executor.next_seconds_between_status_checks = property(read, limited)
    Executor.sleep = sleep
    return True


def wait_for_the_rule() -> bool:
    """Let a job that is told to end wait for its rule, in the Snakemake that starts the other one inside the job.

    The shell between the two dies of the SIGTERM that both outlive: the outer one then believes that the rule has
    failed, the batch script ends, and Slurm kills the launcher before the run's last checkpoint. `exec`: no such shell.
    """
    try:
        from snakemake_executor_plugin_slurm_jobstep import Executor
    except ImportError:
        return False
    Executor.get_python_executable = lambda self: f"exec {sys.executable}"
    return True


def listen(listener: Listener) -> bool:
    """Let `listener` have its say about each job."""
    try:
        from snakemake_executor_plugin_slurm import Executor
        from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
        from snakemake_interface_executor_plugins.executors.real import RealExecutor

        submit, error, cancel = Executor.run_job, Executor.report_job_error, Executor.cancel_jobs
        success, check, call_soon = (
            Executor.report_job_success,
            Executor.check_active_jobs,
            "_main_event_loop",
        )
    except (ImportError, AttributeError):
        return False

    def run_job(self: Any, job: Any) -> None:
        if not listener.finish(job):
            for name, value in listener.asks(job).items():
                setattr(job.resources, name, value)
            submit(self, job)
            return
        info, loop = SubmittedJobInfo(job), getattr(self, call_soon, None)

        def done() -> None:
            RealExecutor.report_job_submission(
                self, info
            )  # not the remote one's, which would look for it in the queue
            self.report_job_success(info)

        done() if loop is None else loop.call_soon_threadsafe(done)

    def submit_later(self: Any, job: Any) -> None:
        def again() -> None:
            with contextlib.suppress(RuntimeError):  # Snakemake has ended meanwhile
                self._job_submission_executor.submit(self.run_job, job)

        timer = threading.Timer(RESUBMIT_S, again)
        timer.daemon = True
        timer.start()

    def report_job_success(self: Any, info: Any) -> None:
        reported.add(id(info))
        success(self, info)

    def report_job_error(self: Any, info: Any, msg: str | None = None, **details: Any) -> None:
        reported.add(id(info))
        if str(info.external_jobid or "").isdigit():
            listener.failed(info.job, int(info.external_jobid), (info.aux or {}).get("slurm_logfile"))
        elif listener.refused(info.job, submission_error(msg or "")):
            submit_later(self, info.job)
            return
        error(self, info, msg, **details)

    def cancel_jobs(self: Any, active_jobs: list[Any]) -> None:
        listener.interrupted([info.job for info in active_jobs])
        cancel(self, active_jobs)

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> Any:
        listener.look()
        reported.clear()
        waiting = [info async for info in check(self, active_jobs)]
        known = reported | {id(info) for info in waiting}
        # Where squeue does not answer, the plugin hands nothing back, and would never look at these jobs again.
        for info in [*waiting, *(info for info in active_jobs if id(info) not in known)]:
            ended = listener.fate(int(info.external_jobid)) if str(info.external_jobid).isdigit() else None
            if ended is None:
                yield info
            elif ended:
                self.report_job_success(info)
            else:
                log = str((info.aux or {}).get("slurm_logfile"))
                self.report_job_error(info, msg=f"Slurm job {info.external_jobid} is gone. ", aux_logs=[log])

    reported = set[int]()
    Executor.run_job, Executor.report_job_error = run_job, report_job_error
    Executor.report_job_success = report_job_success
    Executor.cancel_jobs, Executor.check_active_jobs = cancel_jobs, check_active_jobs
    return True


def has_outputs(info: Any, seen_since: dict[str, float]) -> bool:
    """Whether a job has made all its outputs just now, by files alone: a network file system may show it later."""
    now = time.time()
    since = seen_since.setdefault(str(info.external_jobid), now)
    try:
        made = [Path(str(path)).stat().st_mtime for path in info.job.output]
    except OSError:
        return False
    return bool(made) and min(made) >= since and now - max(made) < ENDING_S


def submission_error(message: str) -> str:
    """What sbatch, or the plugin before it, said, without the plugin's words around it."""
    quoted = re.search(r"The error message was '(.*?)'\.\n", message, re.DOTALL)
    return quoted.group(1) if quoted else message.removeprefix("Job submission failed with exception: ")
