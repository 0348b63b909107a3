"""Read the evidence of one run once: attempts, their events, the launcher's summary."""

from pathlib import Path
from typing import Any

from ..config.naming import Layout, how_to_make
from ..diagnosis import Diagnosis, diagnose_attempt
from ..errors import UserError
from ..logs.readers import events
from ..runs.attempts import Attempt, attempts, since_fresh_start
from ..runs.launch_summary import LaunchSummary

Events = list[dict[str, Any]]


class RunEvidence:
    """Evidence about the last attempt of a run, and the attempts before it.

    Args:
        summary: the newest launch.json.
        spec: the run spec.
        tried: attempts under this spec, oldest first.
    """

    def __init__(self, summary: LaunchSummary, spec: dict[str, Any], tried: list[Attempt]) -> None:
        self.summary, self.spec = summary, spec
        self.last = tried[-1]
        self.earlier = tried[:-1]
        #: The last attempt and those that it continues, oldest first.
        self.attempts = since_fresh_start(tried)
        #: Events of the last attempt, their totals, and the events of all of `attempts`.
        self.events: Events = []
        self.totals = events.read(self.last.event_files(), keep=self.events)
        before = [e for attempt in self.attempts[:-1] for e in attempt.events()]
        self.events_of_attempts: Events = before + self.events

    @classmethod
    def of(cls, launch_json: Path) -> "RunEvidence":
        """Read the evidence of a point. Raises `UserError` if its `launch.json` cannot be read."""
        launch_json = Path(launch_json)
        try:
            summary = LaunchSummary.load(launch_json)
            if missing := [name for name in ("spec_digest", "spec") if getattr(summary, name) is None]:
                raise ValueError(f"it has no {missing[0]!r}")
        except FileNotFoundError:
            raise UserError(
                f"{launch_json}: no such launch summary{how_to_make(launch_json, '; train the point: ')}"
            ) from None
        except (OSError, ValueError) as e:
            raise UserError(
                f"{launch_json}: not a launch summary ({e}); delete it"
                f"{how_to_make(launch_json, ' and train the point again: ')}"
            ) from None
        # Attempts under other settings are another run.
        tried = [a for a in attempts(launch_json.parent) if a.summary().spec_digest == summary.spec_digest]
        if not tried:
            raise UserError(
                f"{launch_json.parent}/attempts: no attempt of the run recorded in {launch_json.name}; delete that file"
                f"{how_to_make(launch_json, ' and train the point again: ')}"
            )
        return cls(summary, summary.spec or {}, tried)

    def of_kind(self, kind: str) -> Events:
        """List the last attempt's events of one kind, in order of time."""
        return [e for e in self.events if e["event"] == kind]

    def diagnose(self) -> Diagnosis:
        """Judge the last attempt."""
        return diagnose_attempt(self.last, self.summary, self.totals)

    @property
    def world_size(self) -> int:
        return Layout.parse(self.spec["layout"]).world_size

    @property
    def last_step(self) -> int:
        return max((e["step"] for e in self.events if isinstance(e.get("step"), int)), default=0)
