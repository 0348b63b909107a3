"""Files of a run: one folder per attempt, and a summary that exists however the run ended.

    results/{point}/launch.json                     the newest attempt's `launch.json`: the output of the train rule
    results/{point}/attempts/000/launch.json        what was asked, started and how it ended
    results/{point}/attempts/000/events.*.jsonl     what the ranks did, one file per node (see runs/events.py)
    results/{point}/attempts/000/train.log          everything the ranks printed
    results/{point}/attempts/000/flight.rank*       last collectives of each rank of a run that hung
    results/{point}/attempts/000/resources.*.csv    host and GPU samples, one file per node (see monitoring/sampler.py)
    results/{point}/checkpoints/, renders/, tensorboard/, point_cloud.ply

Attempts are never overwritten: the next one gets the next number.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .events import event_files, read_events

ATTEMPTS = "attempts"
#: Names of flight recorder dumps begin so; the rank follows.
FLIGHT = "flight.rank"


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def launch_path(self) -> Path:
        return self.folder / "launch.json"

    @property
    def log_path(self) -> Path:
        return self.folder / "train.log"

    def events(self) -> Iterator[dict[str, Any]]:
        """Read the events of all nodes, merged by time."""
        return read_events(self.folder)

    def event_files(self) -> list[Path]:
        return event_files(self.folder)

    def resources_paths(self) -> list[Path]:
        return sorted(self.folder.glob("resources.*.csv"))

    def flight_paths(self) -> list[Path]:
        """List the dumps of the ranks' flight recorders: ours, which state the step, then torch's own."""
        return sorted(self.folder.glob(f"{FLIGHT}*"), key=lambda p: (p.suffix != ".json", p.name))

    def launch(self) -> dict[str, Any]:
        """Read its launch.json; {} if the launcher was killed before writing one."""
        try:
            value = json.loads(self.launch_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def attempts(point_folder: Path) -> list[Attempt]:
    """List all attempts of a point, oldest first."""
    folder = Path(point_folder, ATTEMPTS)
    names = [p for p in folder.glob("[0-9]*") if p.is_dir() and p.name.isdigit()] if folder.is_dir() else []
    return [Attempt(p) for p in sorted(names, key=lambda p: int(p.name))]


def since_fresh_start(tried: Sequence[Attempt]) -> list[Attempt]:
    """Return the last attempt and those that it continues through checkpoints."""
    first = len(tried) - 1
    while first > 0 and any(e["event"] == "resume" for e in tried[first].events()):
        first -= 1
    return list(tried[max(first, 0) :])


def chain(point_folder: Path) -> list[Attempt]:
    """Return the newest attempt of a point and those under the same settings that it continues."""
    tried = attempts(point_folder)
    digest = tried[-1].launch().get("spec_digest") if tried else None
    return since_fresh_start([a for a in tried if a.launch().get("spec_digest") == digest])


def new_attempt(point_folder: Path) -> Attempt:
    """Make the folder of the next attempt; safe against two launchers at once (the loser gets the next number)."""
    number = attempts(point_folder)[-1].number + 1 if attempts(point_folder) else 0
    while True:
        folder = Path(point_folder, ATTEMPTS, f"{number:03d}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
            return Attempt(folder)
        except FileExistsError:
            number += 1


def text_digest(text: str) -> str:
    """Return a short digest of a text, such as a spec's JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
