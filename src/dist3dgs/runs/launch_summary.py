"""`launch.json`: the summary of one attempt, from its start to its verdict.

The launcher writes it while the attempt runs. Afterwards the facts stay as they are; only the verdict is added, by
whoever learns it: the launcher, the resolution of outcomes after a kill, an interrupted Snakemake, `dist3dgs retry`.
All of them go through `LaunchSummary.updated` and `save`. The point's own `launch.json` is a copy of its newest
attempt's.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..files import write_json
from .causes import Cause

FILE = "launch.json"
#: Files without a version were written before there was one; their fields have the same names.
SCHEMA_VERSION = 1

#: running: started, its end not yet known. refused: the world check failed, no rank was started. stopped: ended by a
#: signal to the launcher. interrupted: cancelled by an interrupted Snakemake, neither a failure nor the user's wish to
#: end the run. lost: killed before it could report.
LaunchStatus = Literal["running", "ok", "failed", "refused", "stopped", "interrupted", "lost"]

#: Fields that may change after an attempt has ended. Any other may only be filled in where it is empty.
VERDICT = frozenset({"status", "cause", "ended", "asked_slurm", "published", "closing_note", "retry_at"})


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Ended(_Part):
    """The end of an attempt as the scheduler or the operating system reports it."""

    cause: Cause | None = None
    note: str | None = Field(None, description="the line or state that shows the cause")
    at: float | None = Field(None, description="Unix seconds")


class SlurmJob(_Part):
    """The Slurm job of an attempt."""

    job_id: int | None = None
    nodes: list[str] = []
    partition: str | None = None
    exclusive: bool | None = None
    restarts: int = Field(0, description="how often Slurm had requeued the job")
    time_left_s: float | None = Field(None, description="at the start; null: no limit")
    log: str | None = Field(None, description="path of the job's own log")

    @field_validator("time_left_s")
    @classmethod
    def _no_infinity(cls, value: float | None) -> float | None:
        return None if value is None or math.isinf(value) else value

    @field_validator("restarts", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return value or 0


class SharedNodes(_Part):
    """Jobs of others on the attempt's nodes while it ran."""

    shared: bool | None = Field(None, description="null: not known")
    jobs: dict[str, list[str]] = Field({}, description="job ids by node")
    reason: str | None = Field(None, description="why it is not known")


class LaunchSummary(_Part):
    """One attempt. Unknown fields, as from other versions, are kept."""

    schema_version: int = SCHEMA_VERSION
    spec_digest: str | None = None
    spec: dict[str, Any] | None = Field(None, description="the run's full settings")
    attempt: int | None = None
    status: LaunchStatus | None = None
    started_at: float | None = Field(None, description="Unix seconds")
    finished_at: float | None = Field(None, description="Unix seconds")

    host: str | None = None
    cores: int | None = Field(None, description="CPUs that the launcher may use")
    cpu: str | None = None
    driver: str | None = Field(None, description="version of the NVIDIA driver")
    python: str | None = None
    dist3dgs: str | None = None
    code_digest: str | None = None
    git_sha: str | None = None
    git_dirty: bool | None = None
    slurm: SlurmJob | None = None
    scene_file: str | None = None
    argv: list[str] = []
    world: dict[str, Any] | None = Field(None, description="ranks and devices as each layer sees them")
    world_warning: str | None = None
    loader_workers: int | None = Field(None, description="of a workload: data-loading processes of each rank")
    loader_workers_reason: str | None = Field(None, description="why they are fewer than the settings say")
    checkpoint: str | None = Field(None, description="of a workload: the file that it was told to go on from")

    returncode: int | None = None
    refused: str | None = Field(None, description="message of the world check that refused the start")
    signal: str | None = Field(None, description="name of the signal that stopped the launcher")
    stalled: bool | None = None
    disk_full: str | None = None
    peak_pss_gib: float | None = None
    co_tenancy: SharedNodes | None = None

    cause: Cause | None = Field(None, description="by the rules, from all evidence")
    ended: Ended | None = Field(None, description="as reported from outside: one piece of evidence")
    asked_slurm: bool | None = Field(None, description="the accounting was asked about a killed rank")
    published: bool | None = Field(None, description="the outcome of the point, after the last attempt")
    closing_note: str | None = None
    retry_at: float | None = Field(None, description="Unix seconds of `dist3dgs retry`")

    @field_validator("argv", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return [str(word) for word in value] if isinstance(value, list) else value

    @property
    def is_empty(self) -> bool:
        """True if the launcher was killed before it wrote anything."""
        return not self.model_fields_set

    @property
    def job_id(self) -> int | None:
        return self.slurm.job_id if self.slurm else None

    @property
    def final_cause(self) -> Cause | None:
        """The cause by the rules; before they were asked, the one reported from outside."""
        return self.cause or (self.ended.cause if self.ended else None)

    @property
    def end_time(self) -> float | None:
        """Unix seconds at which the attempt ended, from the launcher or from outside."""
        return self.finished_at or (self.ended.at if self.ended else None)

    def updated(self, **changes: Any) -> Self:
        """Return a validated copy with `changes`.

        Raises:
            ValueError: a fact of an attempt that has ended would change, or a field does not exist.
        """
        for name, value in changes.items():
            if name not in type(self).model_fields:
                raise ValueError(f"launch summary: no field {name}")
            old = getattr(self, name)
            if self.finished_at is not None and name not in VERDICT and old is not None and old != value:
                raise ValueError(f"launch summary: {name} of an attempt that has ended cannot change")
        return self.model_validate(self._as_dict() | changes)

    def filled(self, **facts: Any) -> Self:
        """Return a copy in which `facts` stand where this one has none."""
        return self.updated(**{name: value for name, value in facts.items() if getattr(self, name) is None})

    def save(self, *folders: Path) -> Self:
        """Write `launch.json` in each folder, whole or not at all."""
        for folder in folders:
            write_json(Path(folder, FILE), {"schema_version": SCHEMA_VERSION} | self._as_dict())
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `launch.json` of this or an older version; fields of a wrong type count as unknown.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not JSON, or no mapping.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except RecursionError:
            raise ValueError("too deeply nested") from None
        if not isinstance(value, dict):
            raise ValueError("no mapping")
        try:
            return cls.model_validate(value)
        except ValidationError as e:
            for error in e.errors():
                _remove(value, error["loc"])
            return cls.model_validate(value)

    def _as_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as they stand in the file."""
        return self.model_dump(exclude_unset=True)


def load_or_empty(path: Path) -> LaunchSummary:
    """Read a `launch.json`; an empty summary where there is none, as after a launcher that was killed at its start."""
    try:
        return LaunchSummary.load(path)
    except (OSError, ValueError):
        return LaunchSummary()


def _remove(value: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """Remove the innermost named field that contains `place`; one inside a list takes the list with it."""
    name, *rest = place
    inner = value.get(str(name))
    if rest and isinstance(inner, dict):
        _remove(inner, tuple(rest))
    else:
        value.pop(str(name), None)
