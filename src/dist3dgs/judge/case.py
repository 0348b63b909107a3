"""The evidence of one run, read once: the attempts that hang together, their events, what the launcher knew."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evidence import Attempt, attempts, since_fresh_start
from ..names import Layout, how_to_make
from ..record import Evidence

Events = list[dict[str, Any]]


class Case:
    """launch: the newest launch.json. spec: the run spec. story: attempts under this spec, oldest first."""

    def __init__(self, launch: dict[str, Any], spec: dict[str, Any], story: list[Attempt]) -> None:
        self.launch, self.spec = launch, spec
        self.last = story[-1]
        self.earlier = story[:-1]
        #: The attempts that the last one continues.
        self.story = since_fresh_start(story)
        self.diary: Events = [e for a in self.story for e in a.events()]
        self.events: Events = list(self.last.events())

    @classmethod
    def of(cls, launch_json: Path) -> "Case":
        """The case of a point. Raises `UserError` if its `launch.json` cannot be read."""
        launch_json = Path(launch_json)
        try:
            launch = json.loads(launch_json.read_text(encoding="utf-8"))
            digest, spec = launch["spec_digest"], launch["spec"]
        except FileNotFoundError:
            raise UserError(
                f"{launch_json}: no such launch summary{how_to_make(launch_json, '; train the point: ')}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as e:
            what = (
                f"it has no {e}"
                if isinstance(e, KeyError)
                else "no mapping"
                if isinstance(e, TypeError)
                else e
            )
            raise UserError(
                f"{launch_json}: not a launch summary ({what}); delete it"
                f"{how_to_make(launch_json, ' and train the point again: ')}"
            ) from None
        # Attempts under other settings tell another story.
        story = [a for a in attempts(launch_json.parent) if a.launch().get("spec_digest") == digest]
        if not story:
            raise UserError(
                f"{launch_json.parent}/attempts: no attempt of the run that {launch_json.name} tells of; delete that"
                f"{how_to_make(launch_json, ' and train the point again: ')}"
            )
        return cls(launch, spec, story)

    def of_kind(self, kind: str) -> Events:
        """The last attempt's events of one kind, in file order."""
        return [e for e in self.events if e["event"] == kind]

    @property
    def world_size(self) -> int:
        return Layout.parse(self.spec["layout"]).world_size

    @property
    def last_step(self) -> int:
        return max((e["step"] for e in self.events if isinstance(e.get("step"), int)), default=0)

    def name(self, file: str) -> str:
        """Path of a file of the last attempt, as records give it: relative to the point's folder."""
        return f"attempts/{self.last.folder.name}/{file}"

    def evidence_of(self, event: dict[str, Any], text: str | None = None) -> Evidence:
        """Where one of the last attempt's events stands: its node's file and line. text: in place of the line."""
        for path in self.last.event_files():
            try:
                with path.open(encoding="utf-8", errors="replace") as f:
                    for number, line in enumerate(f, 1):
                        # The time tells most lines apart without reading them as JSON.
                        if str(event.get("t")) in line and _is(event, line):
                            shown = line.strip()[:1000] if text is None else text
                            return Evidence(file=self.name(path.name), line=number, text=shown)
            except OSError:
                continue
        shown = json.dumps(event)[:1000] if text is None else text
        return Evidence(file=self.name("events.jsonl"), line=None, text=shown)

    def matches(self, pattern: re.Pattern[str]) -> list[str]:
        """What the pattern's group is in every line of the training log where it is found."""
        try:
            with self.last.log_path.open(encoding="utf-8", errors="replace") as f:
                return [found[1] for line in f if (found := pattern.search(line))]
        except OSError:
            return []

    def line_with(self, wanted: Callable[[str], bool]) -> tuple[int, str] | None:
        """Number and text of the first line of the training log that `wanted` accepts."""
        try:
            with self.last.log_path.open(encoding="utf-8", errors="replace") as f:
                for number, line in enumerate(f, 1):
                    if wanted(line):
                        return number, line.strip()[:2000]
        except OSError:
            pass
        return None


def _is(event: dict[str, Any], line: str) -> bool:
    try:
        return bool(json.loads(line) == event)
    except (ValueError, RecursionError):
        return False
