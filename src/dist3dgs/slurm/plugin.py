"""What Snakemake's Slurm plugin (2.8) lacks, added to its executor class by the Snakefile.

* Regular looks at the queue: the plugin looks again after 10 s more each time, up to 180 s, and starts over only when
  a job succeeded; the end of a half-hour run is noticed up to three minutes late. There is no setting for it. One
  `squeue` for all jobs of a run every few seconds is what the plugin's documentation recommends sites to expect.
* Jobs that are told to end wait for their rule: see `wait_for_the_rule`.
* A say for the study's `Planner` in four moments of a job. Without it, a point that needs no training waits in the
  queue for a job that does nothing (and has none where submissions are refused), and a job that dies before the
  launcher starts is submitted again until the retries are used up, with no word about why.

Each function leaves the plugin as it was, and says so by returning False, where it is absent or another one.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Protocol


class Listener(Protocol):
    """What is told about the jobs of a run. `job` is Snakemake's."""

    def finish(self, job: Any) -> bool:
        """Whether the job's outputs were made here, so that there is nothing to submit."""

    def failed(self, job: Any, slurm_job: int, log: Path | None) -> None:
        """A submitted job has ended without success."""

    def interrupted(self, jobs: list[Any]) -> None:
        """Snakemake was interrupted and is about to cancel its jobs."""

    def look(self) -> None:
        """The queue is about to be looked at."""


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

    async def sleep(self: Any) -> None:
        """The wait between two looks, which ends with the run: a finished Snakemake would sit it out."""
        end = time.monotonic() + (self.next_seconds_between_status_checks or seconds)
        while self.wait and time.monotonic() < end:
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
        check, call_soon = Executor.check_active_jobs, "_main_event_loop"
    except (ImportError, AttributeError):
        return False

    def run_job(self: Any, job: Any) -> None:
        if not listener.finish(job):
            submit(self, job)
            return
        info, loop = SubmittedJobInfo(job), getattr(self, call_soon, None)

        def done() -> None:
            RealExecutor.report_job_submission(
                self, info
            )  # not the remote one's, which would look for it in the queue
            self.report_job_success(info)

        done() if loop is None else loop.call_soon_threadsafe(done)

    def report_job_error(self: Any, info: Any, msg: str | None = None, **details: Any) -> None:
        if str(info.external_jobid or "").isdigit():
            listener.failed(info.job, int(info.external_jobid), (info.aux or {}).get("slurm_logfile"))
        error(self, info, msg, **details)

    def cancel_jobs(self: Any, active_jobs: list[Any]) -> None:
        listener.interrupted([info.job for info in active_jobs])
        cancel(self, active_jobs)

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> Any:
        listener.look()
        async for info in check(self, active_jobs):
            yield info

    Executor.run_job, Executor.report_job_error = run_job, report_job_error
    Executor.cancel_jobs, Executor.check_active_jobs = cancel_jobs, check_active_jobs
    return True
