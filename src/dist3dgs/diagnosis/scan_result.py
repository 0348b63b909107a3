"""The result of one pass over a job's files: facts, progress, and the lines that rules matched."""

from dataclasses import dataclass, field

from ..logs.facts import Facts, Line
from ..logs.readers import events as own_events
from ..logs.readers import nvidia_smi, psrecord, resources
from ..logs.step_series import StepFormat, StepSeries
from .heartbeats import Heartbeats
from .loss_watch import LossWatch
from .rules import Hit


@dataclass
class FileInfo:
    """One file that was read, or not."""

    path: str
    format: str
    bytes: int = 0
    lines: int = 0
    note: str | None = None


@dataclass
class Progress:
    """Where progress lines stand in one text file."""

    count: int = 0
    bytes: int = 0
    last: Line | None = None
    after_time: float | None = None  # of the first line below `last` that has one


@dataclass
class Scan:
    """What one pass found."""

    files: list[FileInfo] = field(default_factory=list)
    job_id: str | None = None
    facts: Facts = field(default_factory=Facts)
    series: dict[tuple[int, str, int | None], StepSeries] = field(default_factory=dict)
    hits: list[Hit] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    loss: LossWatch = field(default_factory=LossWatch)
    smi: list[tuple[str, dict[str, nvidia_smi.GpuSamples]]] = field(
        default_factory=list
    )  # file's name, its GPUs
    processes: list[psrecord.ProcessSamples] = field(default_factory=list)
    nodes: list[resources.NodeSamples] = field(default_factory=list)
    diary: own_events.RunDiary | None = None
    first_time: dict[int, float] = field(default_factory=dict)
    last_time: dict[int, float] = field(default_factory=dict)
    last_stamped: dict[int, Line] = field(
        default_factory=dict
    )  # the last line with a time above any end from outside
    heartbeats: dict[int, Heartbeats] = field(default_factory=dict)  # with which a file ends
    timeless_below: dict[int, list[Line]] = field(default_factory=dict)  # lines without one below it
    warmup_steps: int = 0  # left out of the statistics of progress displays
    warmup_epochs: int = 0

    def series_of(
        self, index: int, fmt: StepFormat, total: int | None = None, description: str = ""
    ) -> StepSeries:
        """Add the series of a progress display of the file of that index."""
        warmup = self.warmup_epochs if fmt.epochs else self.warmup_steps
        series = StepSeries(fmt, total, description, warmup=warmup)
        self.series[index, fmt.name, total] = series
        return series

    def progress_of(self, index: int) -> Progress:
        return self.progress.setdefault(index, Progress())
