"""Everything the report is made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analysis.tables import load_records, read_table
from ..runs.record import RunRecord
from .study import StudyFacts

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Content:
    paths: list[Path]
    records: list[RunRecord]
    """In the order of `paths`."""
    runs: list[Row]
    points: list[Row]
    performance: list[Row]
    scaling: list[Row]
    over_scenes: list[Row]
    trainers: list[Row]
    out_dir: Path
    """Folder of the report."""
    figures_dir: Path
    tables_dir: Path
    ingests: list[tuple[str, dict[str, Any]]]
    """Scene and the content of its ingest.json."""
    study: StudyFacts

    @classmethod
    def load(
        cls,
        paths: list[Path],
        out_dir: Path,
        figures_dir: Path,
        tables_dir: Path,
        ingests: list[tuple[str, dict[str, Any]]],
        study: StudyFacts,
    ) -> "Content":
        records = load_records(paths)
        return cls(
            paths=paths,
            records=records,
            runs=read_table(tables_dir / "runs.csv"),
            points=read_table(tables_dir / "points.csv"),
            performance=read_table(tables_dir / "performance_comparison.csv"),
            scaling=read_table(tables_dir / "scaling.csv"),
            over_scenes=read_table(tables_dir / "over_scenes.csv"),
            trainers=read_table(tables_dir / "trainers.csv"),
            out_dir=out_dir,
            figures_dir=figures_dir,
            tables_dir=tables_dir,
            ingests=[(scene, facts) for scene, facts in ingests if scene in _ingested(records)],
            study=study,
        )

    @property
    def scenes(self) -> list[str]:
        return sorted({p["scene"] for p in self.points})


def _ingested(records: list[RunRecord]) -> set[str]:
    """Name the scenes that records are of, and those whose exported folder workloads were given."""
    used = {r.run.scene for r in records}
    for record in records:
        train = record.run.settings.get("train")
        folder = Path(str(train.get("data") or "")) if isinstance(train, dict) else Path()
        if folder.name == "colmap":
            used.add(folder.parent.name)
    return used
