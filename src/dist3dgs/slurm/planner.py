"""Plans the `train` job of each point on the login node: what it asks for, whether it is submitted at all.

One `Planner` per Snakemake process; the executor tells it about jobs (`executor.register`).
"""

import contextlib
import fcntl
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.matrix import load_spec, run_digest
from ..config.naming import Layout, Point
from ..errors import UserError
from ..runs.attempts import ATTEMPTS, publish
from ..runs.record import RunRecord
from .allocation import job_id
from .client import SlurmError, slurm
from .outcome import (
    LIVE_STATES,
    job_end,
    log_cause,
    mark_interrupted,
    read_tail,
    record_failed_part,
    record_refusal,
    record_unstarted,
    resolve_outcomes,
)
from .partition_choice import Offer, choose
from .queue import RULES, Job, Queue
from .resources import Resources, layout_resources, small_resources
from .retry import Decision, next_action
from .runtime_prediction import predict, read_records, time_limit_min
from .site import Site
from .submission import Refusal, explain, max_time, test_only

#: Submissions after a refusal in unknown words; seconds between messages about one that may pass, of all jobs.
UNKNOWN_REFUSALS, SAID_AGAIN_S = 3, 60.0
#: Seconds after which a job that has left the queue, or can never start, is given up.
GONE_S, NEVER_S = 60.0, 60.0
#: Grace periods for the launcher to exit after its job's end, and for the Snakemake around it after that.
LAUNCHER_EXIT_S, SNAKEMAKE_EXIT_S = 90.0, 3.0
#: `gpu_partition: auto` has a partition chosen for each layout; seconds for which a choice, and records, are kept.
AUTO, CHOICE_S = "auto", 60.0


class Planner:
    """Gives the `train` rule its resources, point by point and attempt by attempt, and closes what needs no job.

    One per Snakemake process. Only when a point has a history (an `attempts` folder, or an attempt number above 1)
    are files read; the queue is asked once per few seconds, however many points there are.
    """

    def __init__(
        self,
        results: Path,
        site: Site,
        queue: Queue | None = None,
        *,
        on_cluster: bool = True,
        in_job: bool = False,
        refusal: Callable[[Point], str | None] = lambda point: None,
    ) -> None:
        """Args:
        on_cluster: False where the profile describes no cluster: nothing is asked of Slurm then.
        in_job: this is the Snakemake that the plugin starts within a job. A user's own, which may as well run
            inside of a job (salloc), is not.
        refusal: why a point cannot run, known before its first job is submitted; None if it can.
        """
        self.on_cluster = on_cluster
        self.results, self.site, self.queue = Path(results), site, queue or Queue(results=results)
        self.own_job = job_id() if in_job else None
        self._refusal = refusal
        self._refused: set[tuple[Point, int]] = set()
        self._chosen: dict[Layout, tuple[Offer | None, float]] = {}
        self._first: dict[tuple[Layout, int], Resources] = {}
        self._records: dict[str, tuple[list[RunRecord], float]] = {}
        self._limits: dict[tuple[str, str, Layout, str | None], int | None] = {}
        self._known: dict[tuple[Point, int], Resources] = {}
        self._to_finish: dict[tuple[Point, int], str] = {}
        self._held: dict[int, str] = {}
        self._never: dict[int, str] = {}
        self._stuck_since: dict[int, float] = {}
        self._unseen_since: dict[int, float] = {}
        self._refusals: dict[tuple[Point, int], int] = {}
        self._said_at: dict[str, float] = {}

    def resources(self, point: Point, attempt: int, spec_text: str) -> Resources:
        """Plan Snakemake's `attempt` (1, 2, ...) at `point`, whose spec is `spec_text` (one-line JSON)."""
        key = (point, attempt)
        if key not in self._known:
            self._known[key] = self._plan(point, attempt, spec_text)
        return self._known[key]

    def finish(self, point: Point, attempt: int, spec_text: str) -> bool:
        """Make the point's outcome here if nothing is left to train: no job, so it neither queues nor is refused."""
        folder, digest = point.folder(self.results), run_digest(spec_text)
        with contextlib.suppress(UserError):  # a part is not there yet on this node: the launcher looks again
            if note := record_failed_part(folder, spec_text):
                say(f"{point}: {note}")
                return True
        self.resources(point, attempt, spec_text)
        reason = self._to_finish.get((point, attempt))
        if reason is None:
            return False
        if (point, attempt) in self._refused:
            say(f"{point} cannot be submitted: {reason}")
            record_refusal(folder, spec_text, reason)
        else:
            say(f"{point}: {reason}")
        if _outlive_launcher(folder):
            with contextlib.suppress(SlurmError):
                # Its last write has replaced what Slurm had said about its end.
                resolve_outcomes(folder, digest)
        publish(folder, reason, spec_digest=digest, spec=json.loads(spec_text))
        return True

    def failed(self, point: Point, slurm_job: int, log: Path | None, spec_text: str) -> None:
        """Handle a failed job of the point: one that never came to an attempt is recorded as one."""
        self.queue.forget()  # or the ended job would be waited for
        folder, held = point.folder(self.results), self._held.get(slurm_job)
        if never := self._never.get(slurm_job):
            record_refusal(folder, spec_text, never)
            return
        if note := record_unstarted(folder, slurm_job, log, spec_text, held):
            say(f"{point}: {note}")

    def interrupted(self, points: list[Point]) -> None:
        """Mark points whose jobs an interrupted Snakemake cancels: that is not a user's scancel of a run."""
        for point in points:
            mark_interrupted(point.folder(self.results))

    def refused(self, point: Point, attempt: int, spec_text: str, text: str) -> bool:
        """Handle a refusal of sbatch, or of the plugin before it; return True to submit the job again later.

        A refusal for good is recorded as an attempt, which closes the point.
        """
        request = self.resources(point, attempt, spec_text)
        refusal = explain(text, request, account=str(self.site.account), max_time=max_time(request))
        if "sbatch: " not in text:  # the plugin did not come to ask it
            refusal = test_only(request, self.site.account).refusal or refusal
        count = self._refusals.get((point, attempt), 0) + 1
        again = refusal.transient or (not refusal.known and count <= UNKNOWN_REFUSALS)
        if not again:
            say(f"{point} cannot be submitted: {refusal}")
            record_refusal(point.folder(self.results), spec_text, str(refusal))
        else:
            self.not_taken(str(point), refusal)
        self._refusals[(point, attempt)] = count
        return again

    def not_taken(self, name: str, refusal: Refusal) -> None:
        """Say that a job is to be submitted again; once a minute for all jobs that are refused for the same reason."""
        if time.monotonic() - self._said_at.get(refusal.reason, -math.inf) > SAID_AGAIN_S:
            say(
                f"{name} is not taken yet: {refusal}; asking again, for this and all others that are refused so"
            )
            self._said_at[refusal.reason] = time.monotonic()

    def asks(self, point: Point, attempt: int, spec_text: str) -> Resources:
        """Return the resources that have changed since the job was scheduled: the partition, if it is chosen."""
        if self.site.gpu_partition != AUTO or not self.on_cluster:
            return {}
        before = self._known.pop((point, attempt), {})
        now = self.resources(point, attempt, spec_text)
        return {key: value for key, value in now.items() if before.get(key) != value}

    def poll_final_state(self, slurm_job: int) -> bool | None:
        """Return True if a job that left the queue a while ago ended well; None if it lives or Slurm does not say.

        The plugin waits for what it does not recognise as ended: a preempted job where Slurm cancels those, a job
        that Slurm has forgotten, all the time that accounting is behind.
        """
        if any(job.id == slurm_job for job in self.queue.jobs()) or not self.queue.answered:
            self._unseen_since.pop(slurm_job, None)
            return None
        if time.monotonic() - self._unseen_since.setdefault(slurm_job, time.monotonic()) < GONE_S:
            return None
        self._unseen_since.pop(slurm_job)
        try:
            state, text, _ = job_end(slurm_job)
        except SlurmError:
            return None
        if state in LIVE_STATES:
            return None
        say(f"Slurm job {slurm_job} is not in the queue any more: {text}")
        return state == "COMPLETED"

    def look(self) -> None:
        """Cancel jobs that will not start: the point is submitted again, or closed where the request is the reason."""
        now = time.monotonic()
        for job in self.queue.of_points({point for point, _ in self._known}):
            if job.could_not_start and job.id not in self._held:
                self._held[job.id] = job.reason
                say(
                    f"Slurm job {job.id} could not be started ({job.reason}) and is held; cancelled, to submit another"
                )
                _cancel(job)
            elif not job.is_final:
                self._stuck_since.pop(job.id, None)
            elif now - self._stuck_since.setdefault(job.id, now) >= NEVER_S and job.id not in self._never:
                request: Resources = {"slurm_partition": job.partition, "nodes": job.num_nodes}
                todo = explain(job.reason, request, account=str(self.site.account)).remedy
                why = f"Slurm job {job.id} would never start: {job.waits_for_ever}"
                self._never[job.id] = f"{why}. {todo}. Slurm said: {job.reason}"
                say(f"{self._never[job.id]}; cancelled")
                _cancel(job)

    def _plan(self, point: Point, attempt: int, spec_text: str) -> Resources:
        if not self.on_cluster:
            return self._of_layout(point.layout, self.site)
        site = self._site_for(point.layout, spec_text)
        if self.own_job is None and (others := self._others(point)):
            say(f"{point}: Slurm job {others[0]} already trains it; the new job waits for that one")
            return small_resources(self.site, after=others)
        folder, decision = point.folder(self.results), Decision(action="train", reason="first attempt")
        if attempt > 1 or (folder / ATTEMPTS).is_dir():
            decision = self._decide(folder, spec_text)
        if decision.action == "wait":
            return small_resources(self.site, after=decision.after)
        if decision.action != "train":
            return self._to_close(point, attempt, decision.reason)
        timed = self._timed(site, point, spec_text)
        if decision.cause is None:
            if attempt == 1 and self.own_job is None and (why := self._refusal(point)):
                self._refused.add((point, attempt))
                return self._to_close(point, attempt, why)
            return self._of_layout(point.layout, timed)
        # A prediction that was too short does not shorten the next attempt as well.
        longer = timed if timed.runtime_min > site.runtime_min else site
        return layout_resources(point.layout, longer, decision)

    def _of_layout(self, layout: Layout, site: Site) -> Resources:
        """Return the resources of a first attempt: one dictionary for all points of a layout."""
        if site.gpu_partition != self.site.gpu_partition:
            return layout_resources(layout, site)
        key = (layout, site.runtime_min)
        if key not in self._first:
            self._first[key] = layout_resources(layout, site)
        return self._first[key]

    def _others(self, point: Point) -> list[int]:
        return [
            j.id for j in self.queue.of_point(point) if j.id not in self._held.keys() | self._never.keys()
        ]

    def _to_close(self, point: Point, attempt: int, reason: str) -> Resources:
        """Plan a point with nothing to train: finished here, or by a small job where the plugin cannot be told."""
        self._to_finish[(point, attempt)] = reason
        return small_resources(self.site)

    def _site_for(self, layout: Layout, spec_text: str) -> Site:
        """Return the site, with `gpu_partition: auto` replaced by the partition where the layout would end first."""
        if self.site.gpu_partition != AUTO or self.own_job is not None:
            return self.site
        chosen, at = self._chosen.get(layout, (None, -math.inf))
        if time.monotonic() - at > CHOICE_S:
            chosen = choose(layout, self.site, self._seconds(spec_text))
            self._chosen[layout] = (chosen, time.monotonic())
            if chosen is not None:
                say(f"{layout}: partition {chosen.partition}, where it would end first")
        if chosen is None:
            return self.site
        return self.site.model_copy(update=chosen.settings)

    def _timed(self, site: Site, point: Point, spec_text: str) -> Site:
        """Return the site with the time limit that the scene's records predict for the point, if they do."""
        if self.own_job is not None or not site.runtime_margin:
            return site
        records, at = self._records.get(point.scene, ([], -math.inf))
        if time.monotonic() - at > CHOICE_S:
            records = read_records(self.results, point.scene)
            self._records[point.scene] = records, time.monotonic()
            self._limits = {key: limit for key, limit in self._limits.items() if key[0] != point.scene}
        if not records:
            return site
        key = (point.scene, point.strategy, point.layout, site.gpu_type)
        if key not in self._limits:
            found = time_limit_min(load_spec(spec_text), records, site)
            self._limits[key] = found[0] if found else None
            if found:
                say(f"{point.scene}/{point.strategy}/{point.layout}: time limit {found[0]} min, {found[1]}")
        limit = self._limits[key]
        return site if limit is None else site.model_copy(update={"runtime_min": limit})

    def _seconds(self, spec_text: str) -> float:
        """Predict how long a run of this spec takes on the fastest GPUs."""
        records = read_records(self.results)
        specs = [load_spec(spec_text)] if records else []
        return predict(specs, records, self.site.gpu_speed, self.site.runtime_min * 60.0).seconds

    def _decide(self, folder: Path, spec_text: str) -> Decision:
        # In a job that Slurm has requeued, the earlier attempt of the same job has ended.
        me = None if self.own_job is None else (self.own_job, sys.maxsize)
        try:
            return next_action(folder, run_digest(spec_text), self.site, me=me)
        except SlurmError as e:
            say(f"Slurm does not answer ({e.text}); {folder} is submitted as for a first attempt")
            return Decision(action="train", reason="Slurm does not answer")


def _cancel(job: Job) -> None:
    with contextlib.suppress(SlurmError):
        slurm("scancel", str(job.id))


def _outlive_launcher(folder: Path) -> bool:
    """Wait for a launcher that Slurm has given up but not killed, as where it tracks processes by their parents.

    The Snakemake around it would remove the outcome published here, as the output of a job that has failed. Returns
    True if there was one.
    """
    end, waited = time.monotonic() + LAUNCHER_EXIT_S, False
    while time.monotonic() < end and _locked(folder / ".lock"):
        waited = True
        time.sleep(0.5)
    if waited:
        time.sleep(SNAKEMAKE_EXIT_S)
    return waited


def _locked(path: Path) -> bool:
    """Return True if a launcher holds the point's lock."""
    with contextlib.suppress(OSError), path.open("r+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@dataclass
class TrainJobs:
    """Translates Snakemake's jobs into points for a `Planner`; explains failed jobs of other rules."""

    planner: Planner
    point_of: Callable[[Any], Point]
    spec_text: Callable[[Point], str]
    since: float = field(default_factory=time.time)  # older logs are not of these jobs

    def finish(self, job: Any) -> bool:
        point = self._point(job)
        return point is not None and self.planner.finish(point, job.attempt, self.spec_text(point))

    def asks(self, job: Any) -> dict[str, int | str]:
        point = self._point(job)
        return {} if point is None else self.planner.asks(point, job.attempt, self.spec_text(point))

    def refused(self, job: Any, text: str) -> bool:
        if (point := self._point(job)) is not None:
            return self.planner.refused(point, job.attempt, self.spec_text(point), text)
        request = dict(job.resources.items())
        refusal = explain(text, request, for_ingest=True, account=str(self.planner.site.account))
        if refusal.transient:
            self.planner.not_taken(_named(job), refusal)
        else:
            say(f"{_named(job)} cannot be submitted: {refusal}")
        return refusal.transient

    def poll_final_state(self, slurm_job: int) -> bool | None:
        return self.planner.poll_final_state(slurm_job)

    def failed(self, job: Any, slurm_job: int, log: Path | None) -> None:
        if (point := self._point(job)) is not None:
            self.planner.failed(point, slurm_job, log, self.spec_text(point))
        else:
            logs = [path for path in map(Path, map(str, job.log)) if path.is_file()]
            mine = [path for path in logs if path.stat().st_mtime > self.since]
            say(f"{_named(job)} failed: {_why(slurm_job, mine, log)}")

    def interrupted(self, jobs: list[Any]) -> None:
        self.planner.interrupted([p for job in jobs if (p := self._point(job)) is not None])

    def look(self) -> None:
        self.planner.look()

    def _point(self, job: Any) -> Point | None:
        return self.point_of(job.wildcards) if not job.is_group() and job.rule.name in RULES else None


def _named(job: Any) -> str:
    """Name a job by its rule and wildcards, as in `ingest garden`."""
    return (
        job.name if job.is_group() else " ".join([job.rule.name, "/".join(map(str, job.wildcards))]).strip()
    )


def _why(slurm_job: int, logs: list[Path], job_log: Path | None) -> str:
    """Explain a failed job in one line that names the log: its own last error, else its end according to Slurm.

    Args:
        logs: of the rule, written by this job.
        job_log: the Slurm job's own.
    """
    for log in logs:
        errors = [line for line in read_tail(log).splitlines() if re.match(r"error: |\w*Error\b", line)]
        if errors:
            return f"{errors[-1].removeprefix('error: ')} (log: {log})"
    try:
        ending = job_end(slurm_job)[1]
    except SlurmError as e:
        ending = f"Slurm does not say how ({e.text})"
    found = log_cause(job_log) if job_log is not None and job_log.is_file() else None
    where = job_log if found or not logs else logs[0]
    return f"Slurm job {slurm_job} {ending}{f': {found[1]}' if found else ''} (log: {where})"


def say(text: str) -> None:
    """Write a line to Snakemake's own log and the terminal."""
    logging.getLogger("snakemake.logging").warning(f"dist3dgs: {text}")
