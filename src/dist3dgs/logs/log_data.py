"""The numbers and facts of one job's logs, as the readers collect them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .facts import Facts
from .lines import Block
from .samples import GpuSamples, NodeSamples, ProcessSamples, RankTrace
from .step_series import StepFormat, StepSeries


class Added(NamedTuple):
    """Result of reading one file of a format of its own.

    Args:
        note: something to tell the user about the file.
        blocks: its lines, where rules and text patterns apply to them too.
    """

    note: str | None = None
    blocks: Iterable[Block] | None = None


@dataclass
class LogData:
    """Facts, series and samples of one job.

    Args:
        job_id: rows of other jobs in the same table are left out.
        warmup_steps, warmup_epochs: this many are left out of the statistics of step and epoch times.
    """

    job_id: str | None = None
    warmup_steps: int = 0
    warmup_epochs: int = 0
    facts: Facts = field(default_factory=Facts)
    #: By file index, name of the format and total of the display.
    series: dict[tuple[int, str, int | None], StepSeries] = field(default_factory=dict)
    #: Name of each file and its GPUs.
    gpu_logs: list[tuple[str, dict[str, GpuSamples]]] = field(default_factory=list)
    processes: list[ProcessSamples] = field(default_factory=list)
    nodes: list[NodeSamples] = field(default_factory=list)
    event_files: list[Path] = field(default_factory=list)
    #: By rank: its last collectives.
    flight: dict[int, RankTrace] = field(default_factory=dict)

    def series_of(
        self, index: int, fmt: StepFormat, total: int | None = None, description: str = ""
    ) -> StepSeries:
        """Add the series of a progress display of the file of that index."""
        warmup = self.warmup_epochs if fmt.epochs else self.warmup_steps
        series = StepSeries(fmt, total, description, warmup=warmup)
        self.series[index, fmt.name, total] = series
        return series

    def name_of_gpu_log(self, path: Path) -> str:
        """Return the file's stem, with the folder or a number where that is taken."""
        taken = {name for name, _ in self.gpu_logs}
        choices = [
            path.stem,
            f"{path.parent.name}/{path.stem}",
            *(f"{path.stem}.{i}" for i in range(2, 10_000)),
        ]
        return next(name for name in choices if name not in taken)
