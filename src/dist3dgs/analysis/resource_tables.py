"""Tabulate what the runs used: one row per node and per GPU, and what a decibel cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs.record import GpuTotals, RunRecord
from .measures import rank_hours
from .resource_usage import Samples, energy_wh, read_chain

Row = dict[str, Any]

RESOURCE_COLUMNS = (
    *("scene", "strategy", "layout", "repeat", "node", "gpu"),
    *("memory_peak_gib", "memory_average_gib", "memory_mode_gib"),
    *("use_peak_percent", "use_average_percent", "use_mode_percent"),
    *("power_peak_w", "power_average_w", "power_mode_w", "energy_wh"),
)
#: What runs.csv has of it.
RUN_RESOURCE_COLUMNS = (
    *("gpu_util_average_percent", "gpu_power_average_w", "energy_wh", "wh_per_db", "rank_hours_per_db"),
)


def resource_rows(record: RunRecord, point_folder: Path) -> list[Row]:
    """Rows of resources.csv: of a node's host (gpu empty: PSS of the job, CPU of it) and of each GPU."""
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


def run_resources(record: RunRecord, rows: Sequence[Row]) -> Row:
    """Its columns of runs.csv, from its rows of resources.csv."""
    gpus = [row for row in rows if row["gpu"] is not None]
    hours, psnr = rank_hours(record), record.metrics.psnr
    energy = _whole(gpus, "energy_wh")
    return {
        "gpu_util_average_percent": _mean(gpus, "use_average_percent"),
        "gpu_power_average_w": _mean(gpus, "power_average_w"),
        "energy_wh": energy,
        "wh_per_db": energy / psnr if energy is not None and psnr else None,
        "rank_hours_per_db": hours / psnr if hours is not None and psnr else None,
    }


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
    """The sum; unknown if one of the parts is."""
    values = [row.get(name) for row in rows]
    return None if not values or None in values else sum(v for v in values if v is not None)


def _mean(rows: Sequence[Row], name: str) -> float | None:
    whole = _whole(rows, name)
    return None if whole is None else whole / len(rows)
