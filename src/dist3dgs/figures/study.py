"""What a figure is drawn from: the two tables and the records behind them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..record import RunRecord
from ..tabulate import load_records, read_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    runs: list[Row]
    points: list[Row]
    records: list[RunRecord]
    paths: list[Path]
    """Of the records, in their order; samples of resources lie beside them."""

    @classmethod
    def load(cls, runs_csv: Path, points_csv: Path, records: list[Path]) -> "Study":
        paths = sorted(map(Path, records))
        return cls(read_table(runs_csv), read_table(points_csv), load_records(paths), paths)

    @cached_property
    def scenes(self) -> list[str]:
        return sorted({row["scene"] for row in self.points})

    @cached_property
    def strategies(self) -> list[str]:
        return sorted({row["strategy"] for row in self.points})

    def not_ok(self) -> list[Row]:
        """Runs that failed, are degraded or unknown."""
        return [row for row in self.runs if row["status"] in ("failed", "degraded", "unknown")]
