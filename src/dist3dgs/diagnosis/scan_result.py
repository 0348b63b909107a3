"""The result of one pass over a job's files: facts, progress, and the lines that rules matched."""

from dataclasses import dataclass, field

from ..logs.facts import Line
from ..logs.log_data import LogData
from ..logs.readers.events import RunEvents
from ..runs.record import HungCollective
from .heartbeats import Heartbeats
from .loss_watch import LossWatch
from .rules import Hit


@dataclass
class FileInfo:
    """One input file and the result of reading it."""

    path: str
    format: str
    bytes: int = 0
    lines: int = 0
    note: str | None = None


@dataclass
class Progress:
    """Positions of progress lines in one text file."""

    count: int = 0
    bytes: int = 0
    last: Line | None = None
    after_time: float | None = None  # of the first line below `last` that has one


@dataclass
class Scan(LogData):
    """Data of a job's logs, and the evidence for a verdict. Keys are the indices of `files`."""

    files: list[FileInfo] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    loss: LossWatch = field(default_factory=LossWatch)
    events: RunEvents | None = None
    hang: HungCollective | None = None
    first_time: dict[int, float] = field(default_factory=dict)
    last_time: dict[int, float] = field(default_factory=dict)
    #: The last line with a time above any end from outside.
    last_stamped: dict[int, Line] = field(default_factory=dict)
    #: Lines without a time below it.
    timeless_below: dict[int, list[Line]] = field(default_factory=dict)
    #: Heartbeats that a file ends with.
    heartbeats: dict[int, Heartbeats] = field(default_factory=dict)

    def progress_of(self, index: int) -> Progress:
        return self.progress.setdefault(index, Progress())
