"""Repeats of a point aggregated, and every point compared with its baseline: the rows of points.csv.

Only runs with status `ok` count: a degraded run (4 GPUs allocated, 1 used) says nothing about 4 GPUs.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..names import Layout
from ..record import RunRecord
from .measures import (
    QUALITY_TOLERANCE_DB,
    compute_to_comm,
    efficiency,
    global_batch,
    rank_hours,
    scaling_definition,
    time_to_quality,
)
from .spread import Spread

Row = dict[str, Any]

#: Measured per run, aggregated to median (`name`), `name_min` and `name_max`.
AGGREGATED = (
    *(
        "total_s",
        "train_s",
        "rank_hours",
        "steps",
        "images",
        "step_s",
        "steps_per_s",
        "images_per_s",
        "comm_s",
        "exposed_comm_s",
    ),
    *("compute_to_comm", "peak_rss_gib", "peak_host_gib", "peak_gpu_gib", "num_gaussians"),
    *("psnr", "ssim", "lpips", "time_to_quality_s"),
)
_COMPARED = ("speedup", "speedup_time_to_quality", "speedup_total")

POINT_COLUMNS = (
    *("scene", "strategy", "layout", "nodes", "workers_per_node", "ranks"),
    *("n_ok", "n_failed", "n_degraded", "n_other", "n_shared", "causes", "global_batch"),
    *("baseline_layout", "baseline_ranks", "scaling"),
    *(f"{name}{end}" for name in _COMPARED for end in ("", "_min", "_max")),
    *("efficiency_strong", "efficiency_throughput", "efficiency_time_to_quality"),
    *("negative_scaling", "target_psnr", "reason"),
    *(f"{name}{end}" for name in AGGREGATED for end in ("", "_min", "_max")),
)


def point_rows(records: Iterable[RunRecord]) -> list[Row]:
    """One row per (scene, strategy, layout), sorted; points without a successful run have counts and causes only."""
    groups: dict[tuple[str, str], dict[Layout, list[RunRecord]]] = {}
    for record in records:
        series = groups.setdefault((record.run.scene, record.run.strategy), {})
        series.setdefault(Layout.parse(record.run.layout), []).append(record)
    return [row for key in sorted(groups) for row in _series_rows(*key, groups[key])]


def _series_rows(scene: str, strategy: str, layouts: dict[Layout, list[RunRecord]]) -> list[Row]:
    """All layouts of one scene and strategy, compared with the smallest one that succeeded."""
    order = sorted(layouts, key=lambda layout: (layout.world_size, layout.nodes))
    baseline = next((x for x in order if any(r.status == "ok" for r in layouts[x])), None)
    target = None
    if baseline is not None:
        final = Spread.of(r.metrics.psnr for r in layouts[baseline] if r.status == "ok")
        target = None if final is None else final.median - QUALITY_TOLERANCE_DB
    rows: dict[Layout, Row] = {}
    for layout in order:
        rows[layout] = {
            "scene": scene,
            "strategy": strategy,
            "layout": str(layout),
            "nodes": layout.nodes,
            "workers_per_node": layout.workers_per_node,
            "ranks": layout.world_size,
            "target_psnr": target,
            **_aggregate(layouts[layout], target),
        }
    if baseline is not None:
        for row in rows.values():
            _compare(row, rows[baseline])
    return list(rows.values())


def _aggregate(records: Sequence[RunRecord], target_psnr: float | None) -> Row:
    statuses = Counter(r.status for r in records)
    causes = Counter(r.failure.cause for r in records if r.failure is not None)
    ok = [r for r in records if r.status == "ok"]
    batches = {global_batch(r) for r in ok}
    row: Row = {
        "n_ok": statuses["ok"],
        "n_failed": statuses["failed"],
        "n_degraded": statuses["degraded"],
        "n_other": statuses["unknown"],
        # Successful runs during which other jobs were on their nodes.
        "n_shared": sum(1 for r in ok if r.environment.nodes_shared),
        "causes": ", ".join(f"{cause} x{n}" if n > 1 else cause for cause, n in sorted(causes.items())),
        "global_batch": batches.pop() if len(batches) == 1 else None,
    }
    for name in AGGREGATED:
        values = [_measure(r, name, target_psnr) for r in ok]
        if name == "time_to_quality_s" and None in values:
            continue  # the median of the repeats that got there would hide those that did not
        spread = Spread.of(values)
        if spread is not None:
            row |= {name: spread.median, f"{name}_min": spread.low, f"{name}_max": spread.high}
    return row


def _measure(record: RunRecord, name: str, target_psnr: float | None) -> float | None:
    if name == "time_to_quality_s":
        return None if target_psnr is None else time_to_quality(record.metrics.curve, target_psnr)
    if name == "compute_to_comm":
        return compute_to_comm(record)
    if name == "rank_hours":
        return rank_hours(record)
    if name == "step_s":
        return None if record.metrics.step_s is None else record.metrics.step_s.median
    value: float | None = getattr(record.metrics, name)
    return value


def _compare(row: Row, baseline: Row) -> None:
    """Add speedups, the efficiencies that are defined, and the reasons for those that are not."""
    row["baseline_layout"], row["baseline_ranks"] = baseline["layout"], baseline["ranks"]
    if not row["n_ok"]:
        row["reason"] = "no successful run"
        return
    ranks, baseline_ranks = row["ranks"], baseline["ranks"]
    reasons = []
    _ratio(row, "speedup", row, "images_per_s", baseline.get("images_per_s"))
    if same_work(row.get("images"), baseline.get("images")):
        _ratio(row, "speedup_total", row, "total_s", baseline.get("total_s"), inverse=True)
    else:
        reasons.append("no ratio of total times: the runs did not see the same number of images")
    _ratio(
        row,
        "speedup_time_to_quality",
        row,
        "time_to_quality_s",
        baseline.get("time_to_quality_s"),
        inverse=True,
    )

    definition, why = scaling_definition(row["global_batch"], ranks, baseline["global_batch"], baseline_ranks)
    row["scaling"] = "baseline" if row is baseline else definition
    if why:
        reasons.append(why)
    speedup = row.get("speedup")
    if speedup is None:
        reasons.append("images/s not known")
    else:
        wanted = ("strong", "throughput") if row is baseline else (definition,)
        for name in filter(None, wanted):
            row[f"efficiency_{name}"] = efficiency(speedup, ranks, baseline_ranks)
        row["negative_scaling"] = ranks > baseline_ranks and speedup < 1
    to_quality = row.get("speedup_time_to_quality")
    if to_quality is not None:
        row["efficiency_time_to_quality"] = efficiency(to_quality, ranks, baseline_ranks)
    elif row.get("target_psnr") is None:
        reasons.append("no held-out PSNR of the baseline to reach")
    else:
        best = row.get("psnr_max")
        ended = "" if best is None else f" (its best run ended at {best:.2f} dB)"
        reasons.append(f"not every run reached {row['target_psnr']:.2f} dB{ended}")
    row["reason"] = "; ".join(reasons) or None


def same_work(images: float | None, baseline_images: float | None) -> bool:
    """Whether two runs saw as many images, to 2 % (a last partial batch)."""
    return bool(images and baseline_images) and abs(images / baseline_images - 1) <= 0.02  # type: ignore[operator]


def _ratio(
    row: Row, name: str, source: Row, measure: str, reference: float | None, inverse: bool = False
) -> None:
    """`name`, `name_min`, `name_max`: measure / baseline's median, or the inverse where less is better."""
    if not reference:
        return
    ends = ("", "_max", "_min") if inverse else ("", "_min", "_max")
    for end, from_end in zip(("", "_min", "_max"), ends, strict=True):
        value = source.get(f"{measure}{from_end}")
        if value:
            row[f"{name}{end}"] = reference / value if inverse else value / reference
