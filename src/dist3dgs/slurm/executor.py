"""Snakemake's executor of this workflow on Slurm (`executor: dist3dgs-slurm`): a subclass of the Slurm plugin's.

Adds what a study needs and the plugin lacks (docs/decisions/0063-executor-plugin.md):

* The site: account, partitions and sizes come from a file that no command-line option replaces.
* Regular looks at the queue: the plugin waits 10 s longer each time, up to 180 s, and starts over only when a job
  succeeded, so that the end of a half-hour run is noticed up to three minutes late.
* The study's `Planner` is asked at each moment of a job. Without it, a point that needs no training waits in the
  queue, a refused submission and a job that dies before its launcher starts are tried again until the retries are used
  up without a word about why, and a job that is gone (preempted where Slurm cancels such jobs) is waited for for ever.
* No job is lost: where squeue has failed five times in a row the plugin forgets all the jobs it asked about.
* No job is submitted twice: sbatch fails where its answer is lost ("Socket timed out"), although Slurm has taken the
  job. The queue is asked before a job is submitted again, and one that is there is followed.
* Ctrl-C is heeded: while other threads start programs, as the plugin's do, CPython now and then does not notice a
  SIGINT in a main thread that waits for a lock, where Snakemake's is all the time.
* One Snakemake per job: it runs the rule in the batch step. The plugin starts a second one by `srun`, through a shell
  that dies of the SIGTERM that both outlive, and with it the run's last checkpoint.

Only methods that are public in the plugin or in Snakemake's interface are overridden or called; `interface_problem`
compares them, and the installed versions, with what is tested.
"""

import asyncio
import inspect
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Protocol

from packaging.requirements import Requirement
from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings
from snakemake_executor_plugin_slurm import common_settings as common_settings
from snakemake_executor_plugin_slurm.utils import get_job_wildcards
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from ..errors import UserError
from .client import SlurmError
from .queue import submitted_as
from .site import current_site, export, load_site, no_site

#: Seconds between looks at the queue while a job is about to end, and how long that may take after its last output.
QUICK_S, ENDING_S = 2.0, 30.0
#: Seconds until a job that Slurm does not take at present is submitted again.
RESUBMIT_S = 20.0
#: A signal without effect but that the main thread's system call ends: Python handles signals, and repeats the call.
WAKE = signal.SIGURG
#: Methods that are overridden here, or called, and the parameters that they are expected to have.
METHODS = {
    "__init__": ("self", "workflow", "logger"),
    "run_jobs": ("self", "jobs"),
    "run_job": ("self", "job"),
    "check_active_jobs": ("self", "active_jobs"),
    "cancel_jobs": ("self", "active_jobs"),
    "report_job_submission": ("self", "job_info", "register_job"),
    "report_job_success": ("self", "job_info"),
    "report_job_error": ("self", "job_info", "msg", "kwargs"),
    "additional_general_args": ("self",),
    "get_job_exec_prefix": ("self", "job"),
    "get_python_executable": ("self",),
    "get_account_arg": ("self", "job"),
    "sleep": ("self",),
}


class Listener(Protocol):
    """Decides about the jobs of a run. `job` is Snakemake's."""

    def finish(self, job: Any) -> bool:
        """Make the job's outputs here if nothing is left to run; True if so, and nothing is to be submitted."""

    def asks(self, job: Any) -> dict[str, int | str]:
        """Return the resources that have changed since the job was scheduled."""

    def refused(self, job: Any, text: str) -> bool:
        """Handle a job that could not be submitted, for the reason in `text`; return True to submit it again later."""

    def failed(self, job: Any, slurm_job: int, log: Path | None) -> None:
        """Handle a submitted job that has ended without success."""

    def poll_final_state(self, slurm_job: int) -> bool | None:
        """Return True if a job that the plugin waits for has ended well, None while it lives, as far as is known."""

    def interrupted(self, jobs: list[Any]) -> None:
        """Note that Snakemake was interrupted and is about to cancel its jobs."""

    def look(self) -> None:
        """Act before a look at the queue."""


_listener: Listener | None = None


def register(listener: Listener | None) -> None:
    """Let `listener`, or nobody, decide about the jobs of this process. The Snakefile calls it."""
    global _listener
    _listener = listener


@dataclass
class ExecutorSettings(SlurmSettings):
    """The Slurm plugin's settings, as `dist3dgs-slurm-...`, and the site.

    Snakemake makes them before it reads the Snakefile, and only where this executor is chosen, also for a dry-run: a
    wrong version or site ends here, before any graph is built, and the Snakefile finds the site in the environment.
    """

    # Snakemake makes its option from the type, and knows no `Path | None`.
    site: Optional[Path] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "File with what differs from cluster to cluster (account, partitions, sizes), as "
            "`dist3dgs site init` writes it.",
            "env_var": False,
            "required": False,
        },
    )

    def __post_init__(self) -> None:
        if problem := interface_problem():
            stop(problem)
        super().__post_init__()
        try:
            if self.site is None:
                raise UserError(no_site("the profile of executor dist3dgs-slurm"))
            export(load_site(Path(self.site)))
        except UserError as e:
            stop(str(e))


class Executor(SlurmExecutor):
    """Submits the workflow's jobs as the study's planner decides."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        if _listener is None:
            raise WorkflowError(
                "executor dist3dgs-slurm runs the workflow of dist3dgs alone: its Snakefile registers who plans the"
                " jobs (dist3dgs.slurm.executor.register). For another workflow: --executor slurm"
            )
        if workflow.group_settings.overwrite_groups:
            raise WorkflowError(
                "--groups: a group asks Slurm for the sum of its jobs, and its points cannot be retried one by one. "
                "Leave it out; where the site limits jobs, lower `jobs` in profiles/slurm/config.yaml, or train points "
                "of one layout in one allocation (docs/decisions/0068)"
            )
        # Before the plugin's own, which starts the thread that looks at the queue.
        self.listener, self.poll_s = _listener, current_site().poll_s
        self.main_loop: asyncio.AbstractEventLoop | None = None
        self.reported = set[int]()
        self.followed = set[int]()  # Slurm jobs whose submission was reported
        self.seen_since = dict[str, float]()
        if threading.current_thread() is threading.main_thread():
            signal.signal(WAKE, lambda number, frame: None)
        super().__init__(workflow, logger)

    # -- the command line of a job

    def additional_general_args(self) -> str:
        """Return options of the Snakemake inside a job: none, so that it runs the rule itself, in the batch step."""
        return ""

    def get_job_exec_prefix(self, job: Any) -> str:
        """Return the batch script's first command: ignore SIGTERM, to wait for the run's last checkpoint."""
        return "trap : TERM"

    def get_python_executable(self) -> str:
        """Quote Python's path for the batch script, where a space would end it."""
        return shlex.quote(super().get_python_executable())

    def get_account_arg(self, job: Any) -> Iterator[str]:
        """Give sbatch no account where the site names none: the plugin would give that of the user's last job."""
        if job.resources.get("slurm_account"):
            yield from super().get_account_arg(job)
        else:
            yield ""

    # -- submitting

    def run_jobs(self, jobs: list[Any]) -> None:
        """Keep the main thread's loop: `run_job` runs in another thread and must report through it."""
        try:
            self.main_loop = asyncio.get_running_loop()
        except RuntimeError:
            self.main_loop = None
        super().run_jobs(jobs)

    def run_job(self, job: Any) -> None:
        """Submit `job`, unless the planner has made its outputs here."""
        if not self.listener.finish(job):
            for name, value in self.listener.asks(job).items():
                setattr(job.resources, name, value)
            super().run_job(job)
            return
        info = SubmittedJobInfo(job)

        def done() -> None:
            # Not the remote executor's, which would look for it in the queue.
            RealExecutor.report_job_submission(self, info)
            self.report_job_success(info)

        self.in_main_thread(done)

    def submit_later(self, job: Any) -> None:
        """Submit `job` once more, `RESUBMIT_S` from now."""
        timer = threading.Timer(RESUBMIT_S, self.submit_again, [job])
        timer.daemon = True
        timer.start()

    def submit_again(self, job: Any) -> None:
        """Submit `job` once more, if Snakemake still runs; or follow the job that Slurm took without saying so."""
        if not self.wait:
            return
        wildcards = get_job_wildcards(job)
        comment = f"rule_{job.name}_wildcards_{wildcards}" if wildcards else f"rule_{job.name}"
        try:
            taken = [n for n in submitted_as(self.run_uuid, comment) if n not in self.followed]
        except SlurmError:
            self.submit_later(job)
            return
        if not taken:
            self.run_job(job)
            return
        log = self.slurm_logdir / f"rule_{job.name}" / wildcards / f"{taken[0]}.log"
        print(
            f"dist3dgs: Slurm has taken {comment} as job {taken[0]}, without an answer (log: {log})",
            file=sys.stderr,
        )
        info = SubmittedJobInfo(job, external_jobid=str(taken[0]), aux={"slurm_logfile": log})
        self.in_main_thread(lambda: self.report_job_submission(info))

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        """Note the Slurm job, which no other submission can have made."""
        if (number := slurm_job(job_info)) is not None:
            self.followed.add(number)
        super().report_job_submission(job_info, register_job=register_job)

    def in_main_thread(self, report: Callable[[], None]) -> None:
        """Call `report` where Snakemake expects to be told about jobs."""
        if self.main_loop is None:
            report()
        else:
            self.main_loop.call_soon_threadsafe(report)

    # -- how jobs end

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        self.reported.add(id(job_info))
        super().report_job_success(job_info)

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        """Tell the planner; a submission that may be taken later is no error."""
        self.reported.add(id(job_info))
        if (number := slurm_job(job_info)) is not None:
            self.listener.failed(job_info.job, number, (job_info.aux or {}).get("slurm_logfile"))
        elif self.listener.refused(job_info.job, submission_error(msg or "")):
            self.submit_later(job_info.job)
            return
        super().report_job_error(job_info, msg=msg, **kwargs)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        self.listener.interrupted([info.job for info in active_jobs])
        super().cancel_jobs(active_jobs)

    # -- looking at the queue

    @RemoteExecutor.next_seconds_between_status_checks.getter
    def next_seconds_between_status_checks(self) -> float:
        """Return the plugin's time until the next look, at most the site's `poll_s`."""
        return min(RemoteExecutor.next_seconds_between_status_checks.fget(self), self.poll_s)

    async def sleep(self) -> None:
        """Wait between two looks: until the run has ended, which a finished Snakemake would sit out, or until a job has
        left its outputs and so is about to end. Wakes the main thread now and then: it handles signals when it wakes.
        """
        began, pause = time.monotonic(), self.next_seconds_between_status_checks
        while self.wait and (waited := time.monotonic() - began) < pause:
            if (main := threading.main_thread().ident) is not None:
                signal.pthread_kill(main, WAKE)
            if waited >= QUICK_S and any(
                [has_outputs(info, self.seen_since) for info in list(self.active_jobs)]
            ):
                return
            await asyncio.sleep(min(0.5, pause))

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Look at the queue as the plugin does; ask the planner about jobs that it goes on waiting for, or drops."""
        self.listener.look()
        self.reported.clear()
        waiting = [info async for info in super().check_active_jobs(active_jobs)]
        known = self.reported | {id(info) for info in waiting}
        # Where squeue does not answer, the plugin hands nothing back, and would never look at these jobs again.
        for info in [*waiting, *(info for info in active_jobs if id(info) not in known)]:
            number = slurm_job(info)
            ended = self.listener.poll_final_state(number) if number is not None else None
            if ended is None:
                yield info
            elif ended:
                self.report_job_success(info)
            else:
                log = str((info.aux or {}).get("slurm_logfile"))
                self.report_job_error(info, msg=f"Slurm job {number} is gone. ", aux_logs=[log])


def slurm_job(info: Any) -> int | None:
    """Return the Slurm job of a submitted Snakemake job; None if it was not submitted."""
    text = str(info.external_jobid or "")
    return int(text) if text.isdigit() else None


def has_outputs(info: Any, seen_since: dict[str, float]) -> bool:
    """Return True if a job has just made all its outputs, by files alone: a network file system may show them later."""
    now = time.time()
    since = seen_since.setdefault(str(info.external_jobid), now)
    try:
        made = [Path(str(path)).stat().st_mtime for path in info.job.output]
    except OSError:
        return False
    return bool(made) and min(made) >= since and now - max(made) < ENDING_S


def submission_error(message: str) -> str:
    """Return the message of sbatch, or of the plugin before it, without the plugin's words around it."""
    quoted = re.search(r"The error message was '(.*?)'\.\n", message, re.DOTALL)
    return quoted.group(1) if quoted else message.removeprefix("Job submission failed with exception: ")


def stop(problem: str) -> None:
    """End Snakemake with one line; its own way prints a traceback around it."""
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def interface_problem(
    executor: type = SlurmExecutor,
    requirements: Iterable[str] | None = None,
    version: Callable[[str], str] = metadata.version,
) -> str | None:
    """Say how Snakemake, its plugins or their interface differ from what is tested, or None.

    Args:
        executor: the class that `Executor` extends.
        requirements: what this package requires, by default as installed (pyproject.toml holds the pins).
        version: gives the installed version of a distribution.
    """
    if requirements is None:
        try:
            requirements = metadata.requires("dist3dgs") or []
        except metadata.PackageNotFoundError:  # run from its sources
            requirements = []
    for wanted in map(Requirement, requirements):
        if wanted.name.startswith("snakemake") and wanted.marker is None:
            found = version(wanted.name)
            if not wanted.specifier.contains(found, prereleases=True):
                return (
                    f"{wanted.name} {found} is not tested with dist3dgs; expected {wanted.specifier}: "
                    f"pip install '{wanted}'"
                )
    for name, expected in METHODS.items():
        method = getattr(executor, name, None)
        has = tuple(inspect.signature(method).parameters) if callable(method) else None
        if has != expected:
            is_there = "is missing" if has is None else f"takes ({', '.join(has)})"
            return (
                f"{executor.__module__}.{executor.__name__}.{name} {is_there}, expected ({', '.join(expected)}); "
                "install the versions that pyproject.toml pins: make setup"
            )
    interval = getattr(executor, "next_seconds_between_status_checks", None)
    if not isinstance(interval, property) or interval.fset is None:
        return (
            f"{executor.__module__}.{executor.__name__}.next_seconds_between_status_checks is no property that can be "
            "set; install the versions that pyproject.toml pins: make setup"
        )
    return None
