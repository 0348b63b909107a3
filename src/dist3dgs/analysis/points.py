"""Aggregate the repeats of each point and compare it with its baseline: the rows of points.csv.

Only runs with status `ok` count: a degraded run (4 GPUs allocated, 1 used) says nothing about 4 GPUs.

One comparison, one definition. Points are compared within a scene where they computed the same thing on the same
hardware with the same code (`conditions`): a variant of a workload with itself alone. The baseline is the smallest
layout of those that succeeded, whichever strategy ran it: on one rank, strategies that only share out the work
differently are one program. The config's `baseline` names another. Where the baseline has a held-out quality, a point's
gain is the ratio of the times to that quality, and a point that does not reach it has no gain (`missed_quality`);
elsewhere it is the ratio of images per second, and where an imported log shows no rate the ratio of seconds per epoch.
There, a point whose validation accuracy is below the baseline's has no gain either. A gain or a loss is called so only
beyond the joint spread of both sides' repeats.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ..config.naming import Layout
from ..runs.metrics import Metric
from ..runs.record import RunRecord
from .measures import (
    ACCURACY_SHARE,
    QUALITY_TOLERANCE_DB,
    efficiency,
    global_batch,
    known_metrics,
    ratio_derived,
    ratio_measured,
    scaling_definition,
    time_to_quality,
    value,
)

Row = dict[str, Any]
Outcome = Literal["baseline", "gain", "loss", "no_difference", "missed_quality", "not_compared"]

_COMPARED = ("speedup", "speedup_time_to_quality", "speedup_total", "gain")

POINT_COLUMNS = (
    *("scene", "strategy", "layout", "nodes", "workers_per_node", "ranks", "hardware"),
    *(
        "n_ok",
        "n_failed",
        "n_degraded",
        "n_other",
        "n_shared",
        "cores",
        "causes",
        "left_out",
        "global_batch",
        "unit_of_work",
    ),
    *("baseline_strategy", "baseline_layout", "baseline_ranks", "baseline_is"),
    *("scaling", "outcome", "gain_of"),
    *(f"{name}{end}" for name in _COMPARED for end in ("", "_min", "_max")),
    *("efficiency_strong", "efficiency_throughput", "efficiency_time_to_quality"),
    *("r_measured", "r_derived", "negative_scaling", "target_psnr", "target_accuracy", "n_reached", "reason"),
    *(f"time_to_quality_s{end}" for end in ("", "_min", "_max")),
)


def point_columns(metrics: Mapping[str, Metric]) -> list[str]:
    """Return the columns of points.csv: POINT_COLUMNS, then every metric that is aggregated, with its extremes."""
    names = [m.name for m in metrics.values() if m.over_repeats]
    return [*POINT_COLUMNS, *(f"{name}{end}" for name in names for end in ("", "_min", "_max"))]


#: With one run on either side nothing is known about the noise: smaller differences are not called gains or losses.
SINGLE_RUN_NOISE = 0.05
#: Training settings that leave the mathematics of a step alone. Runs of other lengths are compared by rates.
_NO_WORK = {
    *("steps", "keep"),
    *(
        "eval_every",
        "eval_views",
        "lpips",
        "checkpoint_every",
        "keep_checkpoints",
        "digest_every",
        "log_every",
    ),
    *("tensorboard", "batch_per_rank", "global_batch"),
}

Conditions = tuple[str, str, str, str]
#: Scene, strategy, layout.
Key = tuple[str, str, Layout]


def numbers(metrics: Mapping[str, Metric], record: RunRecord) -> Row:
    """Return every metric of a run; None where it is not known."""
    return {name: value(m, record) for name, m in metrics.items()}


def point_rows(
    records: Iterable[RunRecord],
    baseline: str | None = None,
    measured: Sequence[Row] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> list[Row]:
    """Return one row per (scene, strategy, layout), sorted; points without a successful run have counts and causes.

    Args:
        records: of any scenes, strategies and layouts, failures included.
        baseline: `strategy/layout` to compare with instead of the smallest layout, where a scene has it.
        measured: the metrics of each record, where more is known than the records say.
        metrics: the table of metrics, by default that of `known_metrics`.
    """
    records = list(records)
    metrics = known_metrics(records) if metrics is None else metrics
    measured = [numbers(metrics, r) for r in records] if measured is None else measured
    known = {id(record): row for record, row in zip(records, measured, strict=True)}
    points: dict[Key, list[RunRecord]] = {}
    for record in records:
        key = record.run.scene, record.run.strategy, Layout.parse(record.run.layout)
        points.setdefault(key, []).append(record)
    order = sorted(points, key=lambda k: (k[0], k[1], k[2].world_size, k[2].nodes))
    # The point that others are compared with, by scene and conditions; a point's own conditions are its counted runs'.
    references: dict[tuple[str, Conditions], Key] = {}
    for scene in dict.fromkeys(k[0] for k in order):
        mine = [k for k in order if k[0] == scene]
        for key in sorted(mine, key=lambda k: _baseline_order(k, _ranks(points[k]), baseline)):
            for record in points[key]:
                if record.status == "ok":
                    references.setdefault((scene, conditions(record)), key)
    rows: dict[Key, Row] = {}
    counted: dict[Key, Sequence[RunRecord]] = {}
    compared: list[tuple[Row, Key]] = []
    for key in order:
        counted[key], left_out = _alike(points[key], references, key, points)
        own = next(iter(counted[key]), None)
        reference = None if own is None else references[key[0], conditions(own)]
        target = None
        if own is not None and reference is not None:
            target = _target([r for r in points[reference] if _counts_as(r, own)])
        rows[key] = _row(key, points[key], counted[key], left_out, target)
        if reference is not None:
            compared.append((rows[key], reference))
    for key, row in _over_repeats(counted, known, metrics).items():
        rows[key] |= row
    for row, reference in compared:
        own = counted[row["scene"], row["strategy"], Layout.parse(row["layout"])][0]
        if _counts_as(counted[reference][0], own):
            _compare(row, rows[reference], baseline)
        else:
            row["outcome"] = "not_compared"
            row["reason"] = (
                f"not compared: {reference[1]} {reference[2]} has runs like it, but counts others, which differ in "
                f"{_difference(conditions(counted[reference][0]), conditions(own))}"
            )
    for row in rows.values():
        if not row["n_ok"]:
            row |= {"reason": "no successful run", "outcome": "not_compared"}
        key = row["scene"], row["strategy"], Layout.parse(row["layout"])
        told = [row.get("reason"), row["left_out"], _in_jobs(counted[key])]
        row["reason"] = "; ".join(filter(None, told)) or None
    return [rows[key] for key in order]


def _over_repeats(
    counted: Mapping[Key, Sequence[RunRecord]], known: Mapping[int, Row], metrics: Mapping[str, Metric]
) -> dict[Key, Row]:
    """Combine the metrics of each point's runs, with their extremes; what no run knows is left out."""
    import pandas as pd

    how = {name: m.over_repeats for name, m in metrics.items() if m.over_repeats}
    keys = list(counted)
    runs = [known[id(r)] | {"point": i} for i, key in enumerate(keys) for r in counted[key]]
    points = pd.DataFrame(runs, columns=["point", *how], dtype=float).groupby("point")
    parts = [points.agg(how), points.min().add_suffix("_min"), points.max().add_suffix("_max")]
    wide = pd.concat(parts, axis=1)
    return {
        keys[int(i)]: {name: float(v) for name, v in zip(wide.columns, row, strict=True) if not math.isnan(v)}
        for i, row in zip(wide.index, wide.to_numpy(), strict=True)
    }


def conditions(record: RunRecord) -> Conditions:
    """Return what must be the same in two runs for their times to be compared: hardware, code, data, work.

    Strategies of our own that train with the same settings do the same work; a foreign program is compared with
    itself alone.
    """
    provenance, settings = record.provenance, record.run.settings
    if provenance.source == "dist3dgs" and isinstance(train := settings.get("train"), dict):
        work = json.dumps({k: v for k, v in train.items() if k not in _NO_WORK}, sort_keys=True)
    else:
        work = f"{application(record)} {settings.get('trainer') or ''}"
    return hardware(record), provenance.code_digest or "", provenance.scene_digest or "", work


def application(record: RunRecord) -> str:
    """Name the program that ran: ours, or of an import its strategy, which stands for the program there."""
    own = record.provenance.source == "dist3dgs"
    return "dist3dgs" if own else f"imported {record.run.strategy}"


def unit_of_work(record: RunRecord) -> str | None:
    """Name what a workload's throughput counts: image, sample or token; None for our own trainer and for imports."""
    criteria = record.run.settings.get("criteria")
    return str(criteria.get("unit_of_work") or "image") if isinstance(criteria, dict) else None


def hardware(record: RunRecord) -> str:
    """Name the devices that a run computed on, e.g. `NVIDIA H200`, or its processor: `cpu (AMD EPYC)`."""
    kinds = sorted(set(record.environment.devices))
    cpu = record.environment.cpu
    return ", ".join(f"cpu ({cpu})" if kind == "cpu" and cpu else kind for kind in kinds)


def _counts_as(record: RunRecord, other: RunRecord) -> bool:
    return record.status == "ok" and conditions(record) == conditions(other)


def _in_jobs(records: Sequence[RunRecord]) -> str | None:
    """Say what the times and the cost of a point are of whose blocks train in jobs of their own."""
    jobs = next((r.metrics.jobs for r in records if r.metrics.jobs), None)
    if jobs is None:
        return None
    return (
        f"{len(jobs) - 2} blocks in jobs of their own: times are of the coarse training, the slowest block and the "
        f"merge, as if all blocks ran at once; rank-hours are of all {len(jobs)} jobs"
    )


def place(point: Row) -> str:
    """Name a point's layout in words, with its jobs where blocks train in jobs of their own: `n1g1 (4 block jobs)`."""
    layout, ranks = str(point["layout"]), point["ranks"]
    return layout if Layout.parse(layout).world_size == ranks else f"{layout} ({ranks} block jobs)"


def _ranks(records: Sequence[RunRecord]) -> int:
    """Return the ranks that work at once in the runs of a point."""
    return max(record.world_size for record in records)


def _baseline_order(key: Key, ranks: int, named: str | None) -> tuple[Any, ...]:
    """Sort candidates: the named one first, then by ranks, nodes, and `replicated` before other strategies."""
    _, strategy, layout = key
    return (
        f"{strategy}/{layout}" != named,
        ranks,
        layout.nodes,
        strategy != "replicated",
        strategy,
    )


def _alike(
    records: Sequence[RunRecord],
    references: dict[tuple[str, Conditions], Key],
    key: Key,
    points: Mapping[Key, Sequence[RunRecord]],
) -> tuple[list[RunRecord], str | None]:
    """Choose the successful runs of a point that may be averaged, and say in words what was left out.

    Those that can be compared with a baseline elsewhere come first, then those that most points are compared with,
    then the most numerous, then the newest.
    """
    groups: dict[Conditions, list[RunRecord]] = {}
    for record in records:
        if record.status == "ok":
            groups.setdefault(conditions(record), []).append(record)
    if len(groups) < 2:
        return next(iter(groups.values()), []), None

    def rank(found: Conditions) -> tuple[bool, int, int, float]:
        newest = max(r.provenance.finished_at or 0.0 for r in groups[found])
        alike = sum(
            any(r.status == "ok" and conditions(r) == found for r in runs)
            for other, runs in points.items()
            if other[0] == key[0]
        )
        return references[key[0], found] != key, alike, len(groups[found]), newest

    best = max(groups, key=rank)
    others = [found for found in groups if found != best]
    count = sum(len(groups[other]) for other in others)
    what = f"{count} run{'s' if count > 1 else ''} left out: other {_difference(best, *others)}"
    return groups[best], what


def _difference(one: Conditions, *others: Conditions) -> str:
    """Name what differs between conditions."""
    names = ("hardware", "training code", "packed scene", "training settings")
    return " and ".join(name for i, name in enumerate(names) if any(other[i] != one[i] for other in others))


def _target(baseline: Sequence[RunRecord]) -> float | None:
    """Return the PSNR to reach: the baseline's final one less the tolerance, so that most of its own runs reach it."""
    finals = [
        r.metrics.psnr for r in baseline if r.metrics.psnr is not None and math.isfinite(r.metrics.psnr)
    ]
    return statistics.median_low(finals) - QUALITY_TOLERANCE_DB if finals else None


def _row(
    key: Key,
    records: Sequence[RunRecord],
    counted: Sequence[RunRecord],
    left_out: str | None,
    target: float | None,
) -> Row:
    scene, strategy, layout = key
    statuses = Counter(r.status for r in records)
    causes = Counter(r.failure.cause for r in records if r.failure is not None)
    batches = {global_batch(r) for r in counted}
    units = {unit_of_work(r) for r in records}
    row: Row = {
        "scene": scene,
        "strategy": strategy,
        "layout": str(layout),
        "nodes": layout.nodes,
        "workers_per_node": layout.workers_per_node,
        "ranks": _ranks(records),
        "hardware": hardware(counted[0]) if counted else None,
        "n_ok": len(counted),
        "n_failed": statuses["failed"],
        "n_degraded": statuses["degraded"],
        "n_other": statuses["unknown"] + statuses["ok"] - len(counted),
        # Successful runs during which other jobs were on their nodes.
        "n_shared": sum(1 for r in counted if r.environment.nodes_shared),
        # Of a node, where ranks are on processors: those beyond them take turns.
        "cores": min((r.environment.cores or 0 for r in counted if "cpu" in r.environment.devices), default=0)
        or None,
        "causes": ", ".join(f"{cause} x{n}" if n > 1 else cause for cause, n in sorted(causes.items())),
        "left_out": left_out,
        "target_psnr": target,
        "global_batch": batches.pop() if len(batches) == 1 else None,
        "unit_of_work": units.pop() if len(units) == 1 else None,
    }
    return row | _times_to_quality(counted, target)


def _times_to_quality(records: Sequence[RunRecord], target: float | None) -> Row:
    """Aggregate the times to the target; a run that never reaches it counts as infinitely late.

    So a point has a time where more than half of its runs got there, and one unlucky evaluation does not delete it.
    """
    if target is None or not any(r.metrics.curve for r in records):
        return {}
    times = [time_to_quality(r.metrics.curve, target) for r in records]
    reached = [t for t in times if t is not None]
    median = statistics.median(math.inf if t is None else t for t in times)
    row: Row = {"n_reached": len(reached)}
    if math.isfinite(median):
        names = ("time_to_quality_s", "time_to_quality_s_min", "time_to_quality_s_max")
        row |= dict(zip(names, (median, min(reached), max(reached)), strict=True))
    return row


def _compare(row: Row, baseline: Row, named: str | None) -> None:
    """Add speedups, the outcome, the efficiencies that are defined, and the reasons for those that are not.

    named: `strategy/layout` that the config asks to be the baseline.
    """
    row["baseline_strategy"], row["baseline_layout"] = baseline["strategy"], baseline["layout"]
    row["baseline_ranks"] = baseline["ranks"]
    ranks, baseline_ranks = row["ranks"], baseline["ranks"]
    is_named = f"{baseline['strategy']}/{baseline['layout']}" == named
    row["baseline_is"] = "named" if is_named else "one_rank" if baseline_ranks == 1 else "smallest"
    reasons = []
    if row is baseline and row["baseline_is"] == "smallest":
        reasons.append(f"no run on fewer than {ranks} ranks to compare with")
    if named is not None and not is_named:
        reasons.append(
            f"not compared with {named}, the baseline of the config: no run of it succeeded on this scene with the "
            "same settings, code and hardware"
        )
    _ratio(row, "speedup", "images_per_s", baseline)
    if row.get("speedup") is None:
        _ratio(row, "speedup", "epoch_s", baseline, inverse=True)
    if baseline.get("accuracy") is not None:
        row["target_accuracy"] = ACCURACY_SHARE * baseline["accuracy"]
    if any(same_work(row.get(name), baseline.get(name)) for name in ("images", "epochs")):
        _ratio(row, "speedup_total", "total_s", baseline, inverse=True)
    else:
        reasons.append("no ratio of total times: the runs did not see the same number of images or epochs")
    _ratio(row, "speedup_time_to_quality", "time_to_quality_s", baseline, inverse=True)

    definition, why = scaling_definition(row["global_batch"], ranks, baseline["global_batch"], baseline_ranks)
    if definition is None and None in (row["global_batch"], baseline["global_batch"]):
        row["scaling"] = "unknown"
    else:
        row["scaling"] = definition
    if row is baseline:
        row["scaling"] = "baseline"
    if why:
        reasons.append(why)
    speedup = row.get("speedup")
    if speedup is None:
        reasons.append("neither images/s nor seconds per epoch known")
    else:
        wanted = ("strong", "throughput") if row is baseline else (definition,)
        for name in filter(None, wanted):
            row[f"efficiency_{name}"] = efficiency(speedup, ranks, baseline_ranks)
        if baseline_ranks == 1:
            row["r_measured"] = ratio_measured(
                baseline.get("compute_s_per_image"), row.get("comm_s_per_image")
            )
            row["r_derived"] = ratio_derived(speedup, ranks)
        row["negative_scaling"] = ranks > baseline_ranks and _beyond_spread(row, "speedup", baseline) < 0
    row["outcome"] = _outcome(row, baseline)
    to_quality = row.get("speedup_time_to_quality")
    if to_quality is not None:
        row["efficiency_time_to_quality"] = efficiency(to_quality, ranks, baseline_ranks)
    elif row.get("target_psnr") is None:
        if row["outcome"] == "missed_quality":
            reasons.append(
                f"its validation accuracy, {row['accuracy']:.4g}, is below the {row['target_accuracy']:.4g} to reach"
            )
        elif baseline.get("accuracy") is None:
            reasons.append("no held-out PSNR or validation accuracy of the baseline to reach")
    elif missed_quality(row):
        reached = f"{row.get('n_reached', 0)} of {row['n_ok']} runs"
        best = row.get("psnr_max")
        ended = "" if best is None else f" (its best run ended at {best:.2f} dB)"
        reasons.append(f"{reached} reached {row['target_psnr']:.2f} dB{ended}")
    else:
        reasons.append("no evaluations during training: the time to equal quality is not known")
    if row["outcome"] not in ("not_compared", "missed_quality"):
        for end in ("", "_min", "_max"):
            row[f"gain{end}"] = row.get(f"{_definition(baseline)}{end}")
        row["gain_of"] = _gain_of(row, baseline)
    row["reason"] = "; ".join(reasons) or None


def missed_quality(row: Row) -> bool:
    """Return whether most of a point's runs ended below the quality to reach."""
    target, accuracy = row.get("target_psnr"), row.get("accuracy")
    if target is None:
        return accuracy is not None and accuracy < (row.get("target_accuracy") or 0.0)
    if row.get("time_to_quality_s") is not None:
        return False
    return row.get("n_reached") is not None or (row.get("psnr") is not None and row["psnr"] < target)


def _definition(baseline: Row) -> str:
    """Name the ratio by which the points of one baseline are compared, all of them by the same."""
    return "speedup" if baseline.get("time_to_quality_s") is None else "speedup_time_to_quality"


def _gain_of(row: Row, baseline: Row) -> str:
    if "quality" in _definition(baseline):
        return "time to equal quality"
    rated = row.get("images_per_s") and baseline.get("images_per_s")
    return f"{row['unit_of_work'] or 'image'}s per second" if rated else "seconds per epoch"


def _outcome(row: Row, baseline: Row) -> Outcome:
    if row is baseline:
        return "baseline"
    if missed_quality(row):
        return "missed_quality"
    if row.get(_definition(baseline)) is None:
        return "not_compared"
    sign = _beyond_spread(row, _definition(baseline), baseline)
    return "gain" if sign > 0 else "loss" if sign < 0 else "no_difference"


def _beyond_spread(row: Row, name: str, baseline: Row) -> int:
    """Return 1 or -1 where the ratio differs from 1 in every pair of repeats, and else 0.

    Where either side is a single run, a difference must exceed `SINGLE_RUN_NOISE` as well.
    """
    noise = SINGLE_RUN_NOISE if min(row["n_ok"], baseline["n_ok"]) < 2 else 0.0
    value, low, high = (row.get(f"{name}{end}") or math.nan for end in ("", "_min", "_max"))
    if low > 1 and value > 1 + noise:
        return 1
    return -1 if high < 1 and value < 1 / (1 + noise) else 0


def same_work(images: float | None, baseline_images: float | None) -> bool:
    """Return whether two runs saw as many images, to 2 % (a last partial batch)."""
    return bool(images and baseline_images) and abs(images / baseline_images - 1) <= 0.02  # type: ignore[operator]


def _ratio(row: Row, name: str, measure: str, baseline: Row, inverse: bool = False) -> None:
    """Add `name`, `name_min`, `name_max`: measure / baseline, or the inverse where less is better.

    The extremes are those of any pair of repeats, so both sides' spread counts; the baseline's own are its repeats
    over their median.
    """
    own = [row.get(f"{measure}{end}") for end in ("", "_min", "_max")]
    base = [baseline.get(f"{measure}{end}") for end in ("", "_max", "_min")]
    if row is baseline:
        base = [base[0]] * 3
    if not all(own) or not all(base):
        return
    ratios = [a / b for a, b in zip(own, base, strict=True)]  # type: ignore[operator]
    if inverse:
        ratios = [1 / ratios[0], 1 / ratios[2], 1 / ratios[1]]
    row |= dict(zip((name, f"{name}_min", f"{name}_max"), ratios, strict=True))
