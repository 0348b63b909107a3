"""Jobs of this study that are queued or running, and the guard against training a point twice.

A Snakemake that was killed leaves its jobs behind. The next one does not know them and submits the same points again;
found here, the second job is made to wait for the first (`--dependency=afterany`, one CPU, no GPU) and then uses its
result or takes over. Jobs are told apart by their comment, which names the results folder and the point: several
studies may run in one folder.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..config.naming import COARSE, Point
from .client import SlurmError, available, rows, slurm

#: The rule that trains a point, or merges its blocks; those of its parts.
RULES = "train", "train_coarse", "train_block"
_TRAINING = tuple(f"rule_{rule}_wildcards_" for rule in RULES)
#: A list this young is used again: the resources of one submission are asked for key by key.
CACHE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job in the queue."""

    id: int
    state: str
    reason: str
    name: str
    comment: str
    workdir: str
    partition: str
    nodes: str
    num_nodes: int
    time_used: str
    time_limit: str
    start: str

    @property
    def part(self) -> str:
        """The part of a point that it trains; empty for a whole point."""
        return self.comment.rpartition("_")[2] if self.comment.startswith(_TRAINING[1:]) else ""

    @property
    def waits_for_ever(self) -> str | None:
        """The reason for which this job can never start, in words, or None."""
        return NEVER.get(self.reason.strip("()")) or (COULD_NOT_START if self.could_not_start else None)

    @property
    def could_not_start(self) -> bool:
        """True if a node failed to start this job (its prolog, say) and Slurm holds it since."""
        return self.state == "PENDING" and "launch fail" in self.reason.lower().replace("_", " ")

    @property
    def is_final(self) -> bool:
        """True if it can never start because of what it asks for, so that only another job can."""
        return self.state == "PENDING" and self.reason.strip("()") in NEVER.keys() - PASSES_OR_MEANT


COULD_NOT_START = "a node could not start it (a prolog that fails, say), and Slurm holds it"
#: squeue's reasons of jobs that stay in the queue although nothing will ever start them as they are.
NEVER = {
    "PartitionTimeLimit": "its time limit is longer than the partition allows",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionConfig": "it asks for more than the partition's nodes have or allow",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "BadConstraints": "no node has what it asks for",
    "InvalidAccount": "its account is not known",
    "InvalidQOS": "its QOS is not known",
    "DependencyNeverSatisfied": "the job it waits for failed",
    "AssocMaxCpuPerJobLimit": "the account allows fewer CPUs per job",
    "AssocMaxMemPerJob": "the account allows less memory per job",
    "AssocMaxGRESPerJob": "the account allows fewer GPUs per job",
    "AssocMaxWallDurationPerJobLimit": "the account allows less time per job",
    "AssocMaxNodePerJobLimit": "the account allows fewer nodes per job",
    "QOSMaxCpuPerJobLimit": "the QOS allows fewer CPUs per job",
    "QOSMaxMemoryPerJob": "the QOS allows less memory per job",
    "QOSMaxGRESPerJob": "the QOS allows fewer GPUs per job",
    "QOSMaxWallDurationPerJobLimit": "the QOS allows less time per job",
    "QOSMaxNodePerJobLimit": "the QOS allows fewer nodes per job",
    "JobHeldUser": "it is held by the user (scontrol release)",
    "JobHeldAdmin": "it is held by an administrator",
}
#: Of these, reasons that somebody may fix or has meant, and those that Slurm also gives while nodes are down.
PASSES_OR_MEANT = {
    *("PartitionDown", "PartitionInactive", "PartitionConfig"),
    *("DependencyNeverSatisfied", "JobHeldUser", "JobHeldAdmin"),
}
#: Separates squeue's fields: no job's name contains it.
SEPARATOR = "\x1f"


def queued(timeout_s: float = 20) -> list[Job]:
    """List this user's jobs that are queued or running. Raises `SlurmError` if Slurm does not answer."""
    fields = SEPARATOR.join(["%i", "%T", "%r", "%j", "%P", "%N", "%D", "%M", "%l", "%S", "%Z", "%k"])
    found = []
    for row in rows(slurm("squeue", "-h", "--me", "-o", fields, timeout_s=timeout_s), 12, SEPARATOR):
        if row[0].isdigit():  # array tasks are not ours
            keys = [
                "state",
                "reason",
                "name",
                "partition",
                "nodes",
                "num_nodes",
                "time_used",
                "time_limit",
                "start",
                "workdir",
                "comment",
            ]
            values = dict(zip(keys, row[1:], strict=True))
            count = int(values.pop("num_nodes") or 0)
            found.append(Job(id=int(row[0]), num_nodes=count, **values))
    return found


def submitted_as(name: str, comment: str) -> list[int]:
    """List this user's jobs of a name and a comment that the controller remembers, ended or not, oldest first.

    Raises `SlurmError` if Slurm does not answer.
    """
    listed = rows(slurm("squeue", "-h", "--me", "-t", "all", "--name", name, "-o", "%i|%k", timeout_s=20), 2)
    return sorted(int(number) for number, said in listed if number.isdigit() and said == comment)


def comment_of(point: Point, results: Path | str = "results") -> str:
    """Return the comment that Snakemake's plugin gives the job that trains `point`: rule, results folder, wildcards."""
    names = "_".join([str(results), *filter(None, point.names)]).replace("/", "_")
    return _TRAINING[0 if not point.part else 1 if point.part == COARSE else 2] + names


class Queue:
    """The queue as this process last saw it."""

    def __init__(self, workdir: Path | None = None, *, results: Path | str = "results") -> None:
        """Args:
        workdir: folder that Snakemake runs in; by default the current one.
        results: results folder of the study, as its config names it.
        """
        self.workdir, self.results = str((workdir or Path.cwd()).resolve()), results
        self._read_at, self._jobs = -1e9, list[Job]()
        self.answered = False  # whether Slurm answered when it was last asked

    def jobs(self) -> list[Job]:
        """List queued and running jobs submitted from this folder, of any study.

        Empty where there is no Slurm; those last seen where it does not answer.
        """
        if time.monotonic() - self._read_at > CACHE_S and available():
            try:
                self._jobs = [j for j in queued() if str(Path(j.workdir).resolve()) == self.workdir]
                self.answered = True
            except SlurmError:
                self.answered = False
            self._read_at = time.monotonic()
        return self._jobs

    def forget(self) -> None:
        """Look again next time: the queue has changed."""
        self._read_at = -1e9

    def of_point(self, point: Point, *, but: int | None = None) -> list[Job]:
        """List the jobs that train `point`, without job `but`."""
        comment = comment_of(point, self.results)
        return [j for j in self.jobs() if j.comment == comment and j.id != but]

    def of_point_and_parts(self, point: Point) -> list[Job]:
        """List the jobs that train `point` or a part of it (`Job.part`)."""
        jobs = self.jobs()
        comments = {comment_of(replace(point, part=part), self.results) for part in {j.part for j in jobs}}
        return [j for j in jobs if j.comment in comments]

    def of_points(self, points: Iterable[Point]) -> list[Job]:
        """List the jobs of this folder, without those that train other points or other studies'."""
        jobs = self.jobs()
        ours = {comment_of(point, self.results) for point in points} if jobs else set()
        return [j for j in jobs if j.comment in ours or not j.comment.startswith(_TRAINING)]


def describe(job: Job) -> str:
    """Describe a queued or running job in one line."""
    if job.state == "PENDING":
        never = job.waits_for_ever
        start = "" if job.start in ("N/A", "") else f", expected to start {job.start}"
        return f"queued ({job.reason}{start}){': will never start, ' + never if never else ''}"
    return f"{job.state.lower()} on {job.nodes} for {job.time_used}"
