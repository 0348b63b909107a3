"""The reader of event files, `events.NODE.jsonl`, for logs and records alike (vocabulary: dist3dgs.runs.events)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runs.events import PROGRESS, parse_event, read_lines
from ..facts import Line
from ..lines import clean
from ..log_data import Added, LogData

#: As `dist3dgs.runs.events` writes them; other spellings are parsed one by one.
STEP, FIRST_RANK = b'"event": "step"', b'"rank": 0,'
#: Errors and signals kept of one run.
MAX_ERRORS = 4096

#: An event and its line.
Placed = tuple[dict[str, Any], Line]


@dataclass
class RankPhases:
    """The phases a rank is in, innermost last."""

    stack: list[str] = field(default_factory=lambda: ["startup"])
    left: str = "startup"
    at_signal: str | None = None

    def take(self, kind: str, phase: str) -> None:
        """Take an `enter`, `leave` or `signal` event."""
        if kind == "enter":
            self.stack.append(phase)
        elif kind == "leave" and phase in self.stack:
            self.left = phase
            del self.stack[len(self.stack) - 1 - self.stack[::-1].index(phase) :]
            if phase == "startup":
                self.stack.clear()
        elif kind == "signal" and self.at_signal is None:
            self.at_signal = self.stack[-1] if self.stack else self.left

    @property
    def innermost(self) -> str:
        """The phase in which the rank ended.

        A rank that was told to stop leaves all phases in order: then the one in which the signal reached it, else the
        one it left last.
        """
        return self.stack[-1] if self.stack else self.at_signal or self.left


@dataclass
class RunEvents:
    """Totals and the last state of one run, from its events."""

    world_size: int | None = None
    hosts: dict[int, str] = field(default_factory=dict)
    devices: dict[int, str] = field(default_factory=dict)
    device_ids: dict[int, str] = field(default_factory=dict)
    visible_devices: int = 0
    """Most devices that a rank saw on its node."""
    pids: dict[int, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    started_at: float | None = None
    last_t: float | None = None
    alive: Placed | None = None
    """The last event before a rank was told to stop."""
    last_step: int = 0
    last_step_t: float | None = None
    """Unix time of the last step, or of a later sign that the run continues."""
    last_step_line: Line | None = None
    last_step_s: float = 0.0
    """Seconds per step before the last `step` event."""
    progress: Placed | None = None
    """The last event that shows the run going on."""
    furthest_step: int = 0
    """Largest step that any event names."""
    step_s: dict[int, dict[str, float]] = field(default_factory=dict)
    exposed_s: dict[int, float] = field(default_factory=dict)
    """Seconds in collectives of the steps that computation does not hide, by rank."""
    steps: dict[int, int] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    phases_s: dict[int, dict[str, float]] = field(default_factory=dict)
    peak_rss_gib: dict[int, float] = field(default_factory=dict)
    peak_gpu_gib: dict[int, float] = field(default_factory=dict)
    phases: dict[int, RankPhases] = field(default_factory=dict)
    evals: list[dict[str, Any]] = field(default_factory=list)
    num_gaussians: int | None = None
    loss: float | None = None
    errors: list[Placed] = field(default_factory=list)
    signals: list[Placed] = field(default_factory=list)
    end: Placed | None = None
    num_events: int = 0
    events_of: dict[str, int] = field(default_factory=dict)
    """Number of events by file."""

    def phase_of(self, rank: int) -> str:
        """Return the phase in which the rank ended."""
        return self.phases.get(rank, RankPhases()).innermost

    def signal_t(self) -> float | None:
        """Return the Unix time at which the first rank was told to stop; None if none was."""
        return min((t for e, _ in self.signals if (t := time_of(e)) is not None), default=None)


FORMAT = "events"


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    return first.startswith("{") and '"event"' in first and '"rank"' in first


def add(path: Path, index: int, log: LogData) -> Added:
    """Note the file: those of all nodes are read together, merged by time."""
    log.event_files.append(path)
    return Added()


def read(paths: Sequence[Path], keep: list[dict[str, Any]] | None = None) -> RunEvents:
    """Read a run's events, those of several nodes merged by time; incomplete and foreign lines are skipped.

    Args:
        keep: a list to which every event is appended. Of consecutive steps only the last one of rank 0 counts in the
            totals, and is parsed where none are kept: a run has a million.
    """
    found = RunEvents()
    step: tuple[Path, int, bytes, dict[str, Any] | None] | None = None
    for path, number, raw in read_lines(paths):
        event = None
        if keep is not None and (event := parse_event(raw)) is not None:
            keep.append(event)
        if STEP in raw and raw.endswith(b"}\n"):
            if FIRST_RANK in raw:
                step = path, number, raw, event
            continue
        if step is not None:
            _take(found, *step)
            step = None
        _take(found, path, number, raw, event)
    if step is not None:
        _take(found, *step)
    return found


def time_of(event: dict[str, Any]) -> float | None:
    """Return the Unix time of an event, if it states one."""
    return _num(event, "t")


def _take(found: RunEvents, path: Path, number: int, raw: bytes, event: dict[str, Any] | None) -> None:
    """Add one line; `event`: what it says, where that was parsed before."""
    if event is None:
        event = parse_event(raw)
    if event is not None:
        name = str(path)
        found.events_of[name] = found.events_of.get(name, 0) + 1
        _note(found, event, Line(name, number, clean(raw)))


def _num(event: dict[str, Any], key: str) -> float | None:
    value = event.get(key)
    return (
        float(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
        else None
    )


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event whose time, rank, step and phase are of their types, or None where they are not."""
    rank, step = event.get("rank"), event.get("step")
    whole = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 62
    return event | {
        "t": _num(event, "t"),
        "rank": rank if isinstance(rank, int) and 0 <= rank < 1 << 20 else None,
        "step": step if whole else None,
        "phase": _text(event["phase"]) if isinstance(event.get("phase"), str) else None,
    }


def _text(value: Any, limit: int = 64) -> str:
    """Format a value for display: JSON may escape control characters and ends of lines."""
    return clean(str(value).encode("utf-8", "replace")).replace("\n", " ")[:limit]


def _note(d: RunEvents, e: dict[str, Any], line: Line) -> None:
    rank = e["rank"] if isinstance(e.get("rank"), int) and 0 <= e["rank"] < 1 << 20 else 0
    t, kind = _num(e, "t"), e["event"]
    d.num_events += 1
    placed = _checked(e), line
    if not d.signals and kind != "signal":
        d.alive = placed
    if t is not None:
        d.started_at = t if d.started_at is None else d.started_at
        d.last_t = t
        if kind in PROGRESS and d.last_step_t is not None:
            d.last_step_t = t
    if kind in PROGRESS:
        d.progress = placed
    d.furthest_step = max(d.furthest_step, placed[0].get("step") or 0)
    if kind == "start":
        world = _num(e, "world_size")
        d.world_size = int(world) if world else d.world_size
        d.hosts[rank] = _text(e.get("host"), 256)
        d.device_ids[rank] = _text(e.get("device"), 256)
        d.visible_devices = max(d.visible_devices, int(_num(e, "visible_devices") or 0))
        if isinstance(e.get("pid"), int):
            d.pids[rank] = e["pid"]
        d.phases[rank] = RankPhases()
        d.devices[rank] = _text(e.get("device_name") or e.get("device"), 256)
        d.versions = (
            {_text(k): _text(v) for k, v in (e.get("versions") or {}).items()}
            if isinstance(e.get("versions"), dict)
            else {}
        )
        d.end = None
    if kind in ("enter", "leave", "signal"):
        d.phases.setdefault(rank, RankPhases()).take(kind, _text(e.get("phase")))
    if kind == "leave":
        phases = d.phases_s.setdefault(rank, {})
        name = _text(e.get("phase"))
        phases[name] = phases.get(name, 0.0) + (_num(e, "s") or 0.0)
    elif kind == "step":
        step = _num(e, "step")
        if step is not None and rank == 0:
            d.last_step, d.last_step_t, d.last_step_line = int(step), t, line
            d.loss = _num(e, "loss")
            d.last_step_s = _num(e, "step_s") or 0.0
        d.num_gaussians = int(_num(e, "num_gaussians") or 0) or d.num_gaussians
    elif kind == "densify":
        d.num_gaussians = int(_num(e, "num_gaussians") or 0) or d.num_gaussians
    elif kind == "eval":
        if len(d.evals) < 10_000:
            d.evals.append(e)
    elif kind == "timing":
        if isinstance(e.get("step_s"), dict) and {"median", "mean", "p5", "p95"} <= e["step_s"].keys():
            d.step_s[rank] = {
                k: float(e["step_s"][k])
                for k in ("median", "mean", "p5", "p95")
                if _num(e["step_s"], k) is not None
            }
        if isinstance(e.get("phases_s"), dict):
            d.phases_s[rank] = {
                _text(k): v for k in e["phases_s"] if (v := _num(e["phases_s"], k)) is not None
            }
        d.steps[rank], d.images[rank] = int(_num(e, "steps") or 0), int(_num(e, "images") or 0)
    elif kind == "comm" and e.get("phase") == "step":
        d.exposed_s[rank] = d.exposed_s.get(rank, 0.0) + (_num(e, "exposed_s") or 0.0)
    elif kind == "memory":
        for store, key in ((d.peak_rss_gib, "peak_rss_gib"), (d.peak_gpu_gib, "peak_gpu_gib")):
            if (value := _num(e, key)) is not None:
                store[rank] = value
    elif kind == "error" and len(d.errors) < MAX_ERRORS:
        d.errors.append(placed)
    elif kind == "signal" and len(d.signals) < MAX_ERRORS:
        d.signals.append(placed)
    elif kind == "end":
        d.end = placed
