"""Records -> `runs.csv` (one row per run, failures included), `points.csv` (repeats aggregated), the story's tables.

All are plain CSV: an empty cell is "not known", never 0. Rows are sorted, numbers are written in full, so the same
records give the same bytes.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError, snakemake
from .events import PHASES
from .files import sha256, write_text
from .names import Layout
from .record import RunRecord, load_or_explain
from .scaling.journey_tables import CHALLENGE_COLUMNS, PERFORMANCE_COLUMNS, story_tables
from .scaling.measures import compute_to_comm, global_batch, rank_hours
from .scaling.points import POINT_COLUMNS, point_rows
from .scaling.resource_tables import RESOURCE_COLUMNS, RUN_RESOURCE_COLUMNS, resource_rows, run_resources

Row = dict[str, Any]

#: Columns that are numbers; every other column is text. `phase_*_s` are numbers too.
INTEGERS = {
    *("repeat", "nodes", "workers_per_node", "ranks", "baseline_ranks", "seed", "step", "rank"),
    *("global_batch", "attempt", "n", "n_ok", "n_failed", "n_degraded", "n_other", "n_reached"),
    "n_shared",
}
TEXTS = {
    *("scene", "strategy", "layout", "status", "cause", "causes", "phase", "node", "evidence", "remedy"),
    *(
        "devices",
        "hosts",
        "nodes_shared",
        "cpu",
        "git_sha",
        "code_digest",
        "scene_digest",
        "slurm_job_id",
        "source",
        "record",
    ),
    *("record_sha256", "baseline_layout", "baseline_strategy", "scaling", "reason", "negative_scaling"),
    *("git_dirty", "hardware", "left_out", "outcome", "gain_of"),
}

RUN_COLUMNS = (
    *("scene", "strategy", "layout", "repeat", "nodes", "workers_per_node", "ranks", "seed"),
    *("status", "cause", "phase", "step", "rank", "node", "evidence", "remedy"),
    *("total_s", "train_s", "rank_hours", "steps", "images", "global_batch"),
    *("step_s", "step_s_mean", "step_s_p5", "step_s_p95", "steps_per_s", "images_per_s"),
    *("comm_s", "exposed_comm_s", "compute_to_comm", "peak_rss_gib", "peak_host_gib", "peak_gpu_gib"),
    *RUN_RESOURCE_COLUMNS,
    *("num_gaussians", "psnr", "ssim", "lpips", "loss", "train_accuracy", "accuracy", "epochs", "epoch_s"),
)
RUN_COLUMNS_END = (
    *("devices", "hosts", "nodes_shared", "cpu"),
    *("git_sha", "git_dirty", "code_digest", "scene_digest", "slurm_job_id", "attempt"),
    *("started_at", "finished_at", "source", "record", "record_sha256"),
)


def tabulate(record_paths: list[Path], runs_csv: Path, points_csv: Path) -> None:
    """Read every record and write both tables, beside them the story's and what was used (scaling/*_tables.py).

    Raises `UserError` for a file that is not a record and for two records of the same run.
    """
    paths = sorted(Path(p) for p in record_paths)
    records = load_records(paths)
    used = [resource_rows(record, path.parent) for record, path in zip(records, paths, strict=True)]
    rows = [
        run_row(record, path) | run_resources(record, mine)
        for record, path, mine in zip(records, paths, used, strict=True)
    ]
    write_table(
        points_csv.with_name("resources.csv"), [row for mine in used for row in mine], RESOURCE_COLUMNS
    )
    rows.sort(key=_run_order)
    phases = phase_order({phase for r in records for phase in r.metrics.phases_s})
    write_table(runs_csv, rows, [*RUN_COLUMNS, *(f"phase_{p}_s" for p in phases), *RUN_COLUMNS_END])
    write_table(points_csv, point_rows(records), POINT_COLUMNS)
    challenges, performance = story_tables(records)
    write_table(points_csv.with_name("technical_challenges.csv"), challenges, CHALLENGE_COLUMNS)
    write_table(points_csv.with_name("performance_comparison.csv"), performance, PERFORMANCE_COLUMNS)


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
    """One row of runs.csv."""
    m, failure, layout = record.metrics, record.failure, Layout.parse(record.run.layout)
    provenance, environment = record.provenance, record.environment
    row: Row = {
        **record.run.model_dump(exclude={"settings"}),
        "nodes": layout.nodes,
        "workers_per_node": layout.workers_per_node,
        "ranks": layout.world_size,
        "status": record.status,
        "rank_hours": rank_hours(record),
        "global_batch": global_batch(record),
        "compute_to_comm": compute_to_comm(record),
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
    simple = (
        "total_s",
        "train_s",
        "steps",
        "images",
        "steps_per_s",
        "images_per_s",
        "comm_s",
        "exposed_comm_s",
    )
    for name in (
        *simple,
        "peak_rss_gib",
        "peak_host_gib",
        "peak_gpu_gib",
        "num_gaussians",
        "psnr",
        "ssim",
        "lpips",
        "loss",
        "train_accuracy",
        "accuracy",
        "epochs",
        "epoch_s",
    ):
        row[name] = getattr(m, name)
    if m.step_s is not None:
        row |= {"step_s": m.step_s.median, "step_s_mean": m.step_s.mean}
        row |= {"step_s_p5": m.step_s.p5, "step_s_p95": m.step_s.p95}
    row |= {f"phase_{name}_s": seconds for name, seconds in m.phases_s.items()}
    for name in ("git_sha", "git_dirty", "code_digest", "scene_digest", "slurm_job_id", "attempt", "source"):
        row[name] = getattr(provenance, name)
    row |= {"started_at": provenance.started_at, "finished_at": provenance.finished_at}
    return row


def phase_order(names: Iterable[str]) -> list[str]:
    """The trainer's phases in their order, then foreign ones (imported logs) by name."""
    found = set(names)
    return [p for p in PHASES if p in found] + sorted(found - set(PHASES))


def summarise(names: Sequence[str]) -> str:
    """`4 x NVIDIA H200, 1 x cpu`."""
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


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
