"""Records -> `runs.csv` (one row per run, failures included), `points.csv` (repeats aggregated) and the others.

All are plain CSV: an empty cell is "not known", never 0. Rows are sorted, numbers are written in full, so the same
records give the same bytes. Columns of measurements follow the table of metrics (`runs/metrics.py`).
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.naming import Layout
from ..errors import UserError, snakemake
from ..files import sha256, write_text
from ..runs.events import PHASES
from ..runs.metrics import GROUP, Metric
from ..runs.record import RunRecord, load_or_explain
from .journey_tables import CHALLENGE_COLUMNS, PERFORMANCE_COLUMNS, journey_tables
from .measures import known_metrics
from .points import numbers, point_columns, point_rows
from .resource_tables import (
    COST_COLUMNS,
    RESOURCE_COLUMNS,
    SAMPLED,
    cost_of_quality,
    resource_rows,
    sampled_metrics,
)
from .scaling_tables import (
    CAPTION,
    OVER_SCENES_CAPTION,
    OVER_SCENES_COLUMNS,
    SCALING_COLUMNS,
    over_scenes_rows,
    scaling_rows,
    write_typeset,
)
from .trainers import TRAINERS_COLUMNS, trainers_rows
from .trainers import caption as trainers_caption

Row = dict[str, Any]

#: Columns that are whole numbers or text; every other column is a number.
INTEGERS = {
    *("repeat", "nodes", "workers_per_node", "ranks", "baseline_ranks", "seed", "step", "rank"),
    *(
        "global_batch",
        "attempt",
        "evidence_line",
        "solved_by_attempt",
        "n",
        "n_ok",
        "n_failed",
        "n_degraded",
        "n_other",
        "n_reached",
    ),
    *("n_shared", "n_scenes", "cores"),
}
TEXTS = {
    *("scene", "strategy", "layout", "status", "cause", "causes", "phase", "node", "evidence", "remedy"),
    *("devices", "hosts", "nodes_shared", "cpu", "git_sha", "code_digest", "scene_digest", "slurm_job_id"),
    *("source", "record", "record_sha256", "baseline_layout", "baseline_strategy", "baseline_is", "scaling"),
    *("reason", "negative_scaling", "git_dirty", "hardware", "left_out", "outcome", "gain_of"),
    *("run", "baseline", "attempts", "evidence_file", "memory_of", "one_node_layout", "scenes"),
    *("trainer", "differs", "differences", "unit_of_work"),
}

RUN_COLUMNS = (
    *("scene", "strategy", "layout", "repeat", "nodes", "workers_per_node", "ranks", "seed"),
    *("status", "cause", "phase", "step", "rank", "node", "evidence", "remedy"),
)
RUN_COLUMNS_END = (
    *("devices", "hosts", "nodes_shared", "cpu"),
    *("git_sha", "git_dirty", "code_digest", "scene_digest", "slurm_job_id", "attempt"),
    *("started_at", "finished_at", "source", "record", "record_sha256"),
)


def tabulate(
    record_paths: list[Path],
    runs_csv: Path,
    points_csv: Path,
    baseline: str | None = None,
    *,
    more: Mapping[str, Metric] | None = None,
    values_of: Callable[[Sequence[RunRecord]], Sequence[Mapping[str, float]]] | None = None,
) -> None:
    """Read every record and write both tables, beside them those of the journey and of resources (*_tables.py).

    baseline: `strategy/layout` that points are compared with instead of the smallest layout.
    more: further metrics; values_of: returns them for each record, in order.

    Raises `UserError` for a file that is not a record and for two records of the same run.
    """
    paths = sorted(Path(p) for p in record_paths)
    records = load_records(paths)
    used = [resource_rows(record, path.parent) for record, path in zip(records, paths, strict=True)]
    metrics = known_metrics(records) | SAMPLED | dict(more or {})
    added = values_of(records) if values_of is not None else [{}] * len(records)
    columns = run_columns(metrics, phase_order({phase for r in records for phase in r.metrics.phases_s}))
    measured = [
        numbers(metrics, r) | sampled_metrics(mine) | dict(own)
        for r, mine, own in zip(records, used, added, strict=True)
    ]
    points = point_rows(records, baseline, measured, metrics)
    runs = [run_row(r, path) | row for r, path, row in zip(records, paths, measured, strict=True)]
    by_point = {(p["scene"], p["strategy"], p["layout"]): p for p in points}
    for run in runs:
        own = by_point[run["scene"], run["strategy"], run["layout"]]
        reference = by_point.get((run["scene"], own.get("baseline_strategy"), own.get("baseline_layout")))
        run |= cost_of_quality(run, reference)
    runs.sort(key=_run_order)
    write_table(runs_csv, runs, columns)
    write_table(points_csv, points, point_columns(metrics))
    beside = points_csv.with_name
    write_table(beside("resources.csv"), [row for mine in used for row in mine], RESOURCE_COLUMNS)
    challenges, performance = journey_tables(records, baseline)
    write_table(beside("technical_challenges.csv"), challenges, CHALLENGE_COLUMNS)
    write_table(beside("performance_comparison.csv"), performance, PERFORMANCE_COLUMNS)
    scaling = scaling_rows(points)
    write_table(beside("scaling.csv"), scaling, SCALING_COLUMNS)
    write_typeset(beside("scaling"), scaling, SCALING_COLUMNS, CAPTION)
    over_scenes = over_scenes_rows(points, scaling)
    write_table(beside("over_scenes.csv"), over_scenes, OVER_SCENES_COLUMNS)
    write_typeset(beside("over_scenes"), over_scenes, OVER_SCENES_COLUMNS, OVER_SCENES_CAPTION)
    trainers = trainers_rows(points, records)
    write_table(beside("trainers.csv"), trainers, TRAINERS_COLUMNS)
    write_typeset(beside("trainers"), trainers, TRAINERS_COLUMNS, trainers_caption(trainers))


def run_columns(metrics: Mapping[str, Metric], phases: Iterable[str] = ()) -> list[str]:
    """Return the columns of runs.csv. Raises `UserError` where a metric from outside has the name of another column."""
    columns = [
        *(*RUN_COLUMNS, *metrics, *COST_COLUMNS, *(f"phase_{p}_s" for p in phases), *RUN_COLUMNS_END),
    ]
    if twice := [name for name, n in Counter(columns).items() if n > 1]:
        raise UserError(
            f"entry points `{GROUP}`: {', '.join(twice)} is another column of runs.csv; give the metric another name"
        )
    return columns


def load_records(paths: Iterable[Path]) -> list[RunRecord]:
    """Load records; one that cannot be read becomes a row that says why. Two of the same run are refused."""
    seen: dict[tuple[str, str, str, int], Path] = {}
    records = []
    for path in paths:
        record = load_or_explain(path)
        run = record.run
        key = (run.scene, run.strategy, run.layout, run.repeat)
        if key in seen:
            raise UserError(
                f"{path} and {seen[key]} are records of the same run ({run.scene}/{run.strategy}/{run.layout}"
                f"/r{run.repeat}); give the tables one of the two, or another repeat number"
            )
        seen[key] = path
        records.append(record)
    return records


def run_row(record: RunRecord, path: Path) -> Row:
    """Return a run's row of runs.csv without its metrics."""
    failure, layout = record.failure, Layout.parse(record.run.layout)
    provenance, environment = record.provenance, record.environment
    row: Row = {
        **record.run.model_dump(exclude={"settings"}),
        "nodes": layout.nodes,
        "workers_per_node": layout.workers_per_node,
        "ranks": record.world_size,
        "status": record.status,
        "devices": summarise(environment.devices),
        "hosts": summarise(environment.hosts),
        "nodes_shared": environment.nodes_shared,
        "cpu": environment.cpu,
        "record": "/".join(path.parts[-5:]),
        "record_sha256": sha256(path),
    }
    if failure is not None:
        row |= failure.model_dump(exclude={"evidence"})
        row["evidence"] = " | ".join(
            f"{e.file}{'' if e.line is None else f':{e.line}'}: {e.text}" for e in failure.evidence
        )
    row |= {f"phase_{name}_s": seconds for name, seconds in record.metrics.phases_s.items()}
    names = ("git_sha", "git_dirty", "code_digest", "scene_digest", "slurm_job_id", "attempt", "source")
    return row | {name: getattr(provenance, name) for name in (*names, "started_at", "finished_at")}


def phase_order(names: Iterable[str]) -> list[str]:
    """Return the trainer's phases in their order, then foreign ones (imported logs) by name."""
    found = set(names)
    return [p for p in PHASES if p in found] + sorted(found - set(PHASES))


def summarise(names: Sequence[str]) -> str:
    """Return `4 x NVIDIA H200, 1 x cpu`."""
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in Counter(names).items())


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    write_text(path, text.getvalue())


def read_table(path: Path, needed: Sequence[str] = ()) -> list[Row]:
    """Read a table of this module back: numbers as numbers, empty cells as None.

    Raises `UserError` for a file that is no such table or lacks one of the `needed` columns.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            rows = list(reader)
            names = reader.fieldnames or ()
    except FileNotFoundError:
        raise UserError(f"{path}: no such table; make it with: {snakemake('tables')}") from None
    except (csv.Error, UnicodeDecodeError) as e:
        raise UserError(
            f"{path}: not a table of dist3dgs ({e}); delete it and make it again: {snakemake('tables')}"
        ) from None
    missing = [name for name in needed if name not in names]
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise UserError(
            f"{path}: not this table of dist3dgs: it has no column {', '.join(missing[:6])}{more}; make it from the "
            "records: snakemake tables"
        )
    return [{name: _value(name, cell, path) for name, cell in row.items() if name} for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return repr(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    # Evidence is text from a log: a spreadsheet must show it, not run it as a formula.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _value(name: str, cell: str | None, path: Path) -> Any:
    if cell is None or cell == "":
        return None
    if name in TEXTS:
        return cell
    try:
        return int(cell) if name in INTEGERS else float(cell)
    except ValueError:
        raise UserError(
            f"{path}: column {name!r} holds {cell!r}, expected a number; delete the table and make it again: "
            f"{snakemake('tables')}"
        ) from None


def _run_order(row: Row) -> tuple[Any, ...]:
    return row["scene"], row["strategy"], row["ranks"], row["nodes"], row["repeat"]
