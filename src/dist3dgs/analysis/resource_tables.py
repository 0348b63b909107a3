"""Tabulate what the runs used: one row per node and per GPU, and what a decibel more than the baseline's cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runs.metrics import Metric
from ..runs.record import GpuTotals, RunRecord
from .measures import QUALITY_TOLERANCE_DB
from .resource_usage import Samples, energy_wh, read_chain

Row = dict[str, Any]

RESOURCE_COLUMNS = (
    *("scene", "strategy", "layout", "repeat", "node", "gpu"),
    *("memory_peak_gib", "memory_average_gib", "memory_mode_gib"),
    *("use_peak_percent", "use_average_percent", "use_mode_percent"),
    *("power_peak_w", "power_average_w", "power_mode_w", "energy_wh"),
)
#: Metrics that need the samples beside a record, or its nvidia-smi log.
SAMPLED: dict[str, Metric] = {
    m.name: m
    for m in (
        *(
            Metric(
                name=f"gpu0_memory_{what}_gib",
                label=f"GPU 0 memory, {what}",
                unit="GiB",
                description="memory in use on the first GPU of the first node, as the driver states it",
            )
            for what in ("peak", "average", "mode")
        ),
        Metric(name="gpu_util_average_percent", label="GPU utilisation", unit="%"),
        Metric(name="gpu_power_average_w", label="power per GPU", unit="W"),
        Metric(name="energy_wh", label="energy of all GPUs", unit="Wh"),
    )
}
#: What runs.csv says of cost and quality against the baseline's medians.
COST_COLUMNS = ("psnr_over_baseline_db", "rank_hours_per_db_gained", "wh_per_db_gained")


def resource_rows(record: RunRecord, point_folder: Path) -> list[Row]:
    """Return rows of resources.csv: of a node's host (gpu empty: PSS of the job, CPU of it) and of each GPU."""
    run = {name: getattr(record.run, name) for name in ("scene", "strategy", "layout", "repeat")}
    if record.metrics.gpus:
        return [run | _imported(gpu) for gpu in record.metrics.gpus]
    samples = read_chain(point_folder)
    places = sorted({(s.node, s.gpu) for s in samples}, key=lambda x: (x[0], -1 if x[1] is None else x[1]))
    return [
        run
        | {"node": node, "gpu": gpu}
        | _place([s for s in samples if (s.node, s.gpu) == (node, gpu)], "host" if gpu is None else "gpu")
        for node, gpu in places
    ]


def sampled_metrics(rows: Sequence[Row]) -> Row:
    """Return the metrics of `SAMPLED` from a run's rows of resources.csv."""
    gpus = [row for row in rows if row["gpu"] is not None]
    first = gpus[0] if gpus else {}
    return {
        **{f"gpu0_{name}": first.get(name) for name in RESOURCE_COLUMNS if name.startswith("memory_")},
        "gpu_util_average_percent": _mean(gpus, "use_average_percent"),
        "gpu_power_average_w": _mean(gpus, "power_average_w"),
        "energy_wh": _whole(gpus, "energy_wh"),
    }


def cost_of_quality(run: Row, baseline: Mapping[str, Any] | None) -> Row:
    """Compare a run's PSNR [dB] and cost with the baseline's (a row of points.csv).

    The cost of a decibel is what was spent beyond the baseline, over the decibels gained on it. It is left out where
    no more were gained than the tolerance of the quality to reach: noise is not a gain.
    """
    if baseline is None or run.get("psnr") is None or baseline.get("psnr") is None:
        return {}
    gained_db = run["psnr"] - baseline["psnr"]
    row: Row = {"psnr_over_baseline_db": gained_db}
    if gained_db > QUALITY_TOLERANCE_DB:
        for name, unit in (("rank_hours", "rank_hours"), ("energy_wh", "wh")):
            if run.get(name) is not None and baseline.get(name) is not None:
                row[f"{unit}_per_db_gained"] = (run[name] - baseline[name]) / gained_db
    return row


def _place(samples: Sequence[Samples], kind: str) -> Row:
    names = (
        {"memory": "pss_gib", "use": "cpu_percent"}
        if kind == "host"
        else {"memory": "gpu_mem_gib", "use": "gpu_util_percent"}
    )
    names |= {"power": "gpu_power_w"}
    units = {"memory": "gib", "use": "percent", "power": "w"}
    by = {s.quantity: s for s in samples}
    row: Row = {"energy_wh": energy_wh(samples)}
    for name, quantity in names.items():
        if (found := by.get(quantity)) is not None:
            values = {"peak": found.peak, "average": found.average, "mode": found.mode}
            row |= {f"{name}_{what}_{units[name]}": value for what, value in values.items()}
    return row


def _imported(gpu: GpuTotals) -> Row:
    return {
        "node": None,
        "gpu": gpu.gpu,
        "memory_peak_gib": gpu.memory_peak_gib,
        "memory_average_gib": gpu.memory_average_gib,
        "memory_mode_gib": gpu.memory_mode_gib,
        "use_average_percent": gpu.utilisation_average_percent,
        "power_average_w": gpu.power_average_w,
        "energy_wh": gpu.energy_wh,
    }


def _whole(rows: Sequence[Row], name: str) -> float | None:
    """Return the sum; None if a part is unknown."""
    values = [row.get(name) for row in rows]
    return None if not values or None in values else sum(v for v in values if v is not None)


def _mean(rows: Sequence[Row], name: str) -> float | None:
    whole = _whole(rows, name)
    return None if whole is None else whole / len(rows)
