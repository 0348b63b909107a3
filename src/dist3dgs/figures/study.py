"""Input of a figure: the two tables and the records behind them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..analysis.journey_tables import PERFORMANCE_COLUMNS
from ..analysis.measures import DERIVED
from ..analysis.points import point_columns
from ..analysis.tables import load_records, read_table, run_columns
from ..runs.record import METRICS, RunRecord

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    runs: list[Row]
    points: list[Row]
    records: list[RunRecord]
    paths: list[Path]
    """Files of the records, in their order; samples of resources lie beside them."""
    performance: list[Row]
    """Rows of performance_comparison.csv."""

    @classmethod
    def load(cls, runs_csv: Path, points_csv: Path, records: list[Path]) -> "Study":
        """Raises `UserError` for a table that is not ours."""
        paths = sorted(map(Path, records))
        metrics = METRICS | DERIVED
        runs = read_table(runs_csv, run_columns(metrics))
        points = read_table(points_csv, point_columns(metrics))
        performance = read_table(points_csv.with_name("performance_comparison.csv"), PERFORMANCE_COLUMNS)
        return cls(runs, points, load_records(paths), paths, performance)

    @cached_property
    def scenes(self) -> list[str]:
        return sorted({row["scene"] for row in self.points})

    @cached_property
    def strategies(self) -> list[str]:
        return sorted({row["strategy"] for row in self.points})

    def not_ok(self) -> list[Row]:
        """Return runs that failed, are degraded or unknown."""
        return [row for row in self.runs if row["status"] in ("failed", "degraded", "unknown")]
