"""Read the evidence of one run once: attempts, their events, the launcher's summary."""

from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.models import validate
from ..config.naming import COARSE, PARTS, Layout, how_to_make
from ..config.workloads import Criteria
from ..diagnosis import Diagnosis, diagnose_attempt
from ..errors import UserError
from ..logs.readers import events
from ..runs.attempts import ATTEMPTS, Attempt, attempts, since_fresh_start
from ..runs.launch_summary import FILE, LaunchSummary
from ..runs.record import Evidence
from ..workloads.figures_of_merit import Found, find
from ..workloads.process import OUTPUT, output_path, output_paths

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
    def of(cls, launch_json: Path, criteria: dict[str, Any] | None = None) -> "RunEvidence":
        """Read the evidence of a point. Raises `UserError` if its `launch.json` cannot be read.

        criteria: of a workload, in the place of those that it was run with.
        """
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
        spec = summary.spec or {}
        return cls(summary, spec if criteria is None else spec | {"criteria": criteria}, tried)

    def of_kind(self, kind: str) -> Events:
        """List the last attempt's events of one kind, in order of time."""
        return [e for e in self.events if e["event"] == kind]

    @cached_property
    def parts(self) -> "dict[str, RunEvidence]":
        """Evidence of the jobs before this one, by name, as far as it is there; empty for a part itself.

        Only points whose blocks train in jobs of their own have any.
        """
        blocks = self.spec.get("parallel", {}).get("blocks")
        if blocks is None or self.spec.get("part"):
            return {}
        folder = self.last.folder.parents[1] / PARTS
        names = [COARSE, *(f"block-{i}" for i in range(blocks))]
        return {name: RunEvidence.of(path) for name in names if (path := folder / name / FILE).is_file()}

    def diagnose(self) -> Diagnosis:
        """Judge the last attempt, or that of the first of its parts that has failed or is degraded."""
        for name, part in self.parts.items():
            if (verdict := part.diagnose()).status != "ok":
                evidence = [
                    e.model_copy(update={"file": f"{PARTS}/{name}/{e.file}"}) for e in verdict.evidence
                ]
                return verdict.model_copy(update={"evidence": evidence})
        verdict = diagnose_attempt(self.last, self.summary, self.totals)
        if verdict.status == "ok" and (wanting := self._wanting()):
            output = f"{ATTEMPTS}/{self.last.folder.name}/{output_path(self.last.folder, 0).name}"
            return Diagnosis(
                status="failed",
                cause="no_result",
                phase="step",
                explanation="The program ended without what it is measured by.",
                evidence=[Evidence(file=output, text=text) for text in wanting],
                remedy=f"compare the output with `figures_of_merit` and `success` of {self.spec['scene']} in "
                "config/workloads.yaml; a changed pattern is applied to what the run has printed",
            )
        return verdict

    @cached_property
    def workload(self) -> Found | None:
        """Figures of merit and signs of success of a workload; None for a training of ours."""
        if "criteria" not in self.spec:
            return None
        criteria = validate(Criteria, self.spec["criteria"], "criteria")
        out = self.last.folder.parents[1] / OUTPUT
        return find(criteria, output_paths(self.last.folder), out, self.world_size)

    def _wanting(self) -> list[str]:
        """List what a workload ended without."""
        if (found := self.workload) is None:
            return []
        figures = self.spec["criteria"]["figures_of_merit"]
        wanting = [
            f"no figure of merit {name!r}: {why}"
            for name, why in found.missing.items()
            if figures[name].get("required", True)
        ]
        return wanting + [f"no sign of success: {why}" for why in found.unmet]

    @property
    def world_size(self) -> int:
        return Layout.parse(self.spec["layout"]).world_size

    @property
    def last_step(self) -> int:
        return max((e["step"] for e in self.events if isinstance(e.get("step"), int)), default=0)
