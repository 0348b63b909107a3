"""Our own `resources.*.csv` (columns: dist3dgs.monitoring.sampler)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..csv_columns import Table, cells
from ..lines import read_blocks
from ..log_data import Added, LogData
from ..samples import MAX_GPUS, GpuSamples, NodeSamples

FORMAT = "resources"


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    return {"t", "node", "pss_gib"} <= set(first.split(","))


def add(path: Path, index: int, log: LogData) -> Added:
    """Add the samples of one node."""
    log.nodes.append(read(path))
    return Added()


def read(path: Path) -> NodeSamples:
    """Add up all whole rows; on a node with GPUs there is one row per sample and GPU."""
    s = NodeSamples()
    header: list[str] = []
    for block in read_blocks(path):
        if not header:
            header = next((cells(raw) for raw in block.lines if raw.strip()), [])
        table = Table.of(block.data.replace(b"\r", b""), len(header))
        if len(table.rows):
            _take(s, table, {name: i for i, name in enumerate(header)})
    return s


def _take(s: NodeSamples, table: Table, columns: dict[str, int]) -> None:
    def column(name: str) -> NDArray[np.float64]:
        if name not in columns:
            return np.full(len(table.rows), np.nan)
        values = table.numbers(columns[name])
        return np.where((values >= 0) & (values < 1e15), values, np.nan)

    t = column("t")
    valid = np.isfinite(t)
    if not valid.any():
        return
    if not s.node:
        s.node = table.texts(columns["node"])[int(np.flatnonzero(valid)[0])]
    # All rows of a sample repeat its time and the node's usage.
    before = np.append(np.nan if s.last_t is None else s.last_t, t[valid][:-1])
    new = t[valid] != before
    pss = column("pss_gib")[valid]
    s.num_samples += int(new.sum())
    s.pss_sum_gib += float(np.nansum(pss[new]))
    s.cpu_sum += float(np.nansum(column("cpu_percent")[valid][new]))
    s.first_t = float(t[valid][0]) if s.first_t is None else s.first_t
    s.last_t = float(t[valid][-1])
    if np.isfinite(pss).any():
        s.peak_pss_gib = max(float(np.nanmax(pss)), s.peak_pss_gib or 0.0)
    index = column("gpu_index")
    memory = np.floor(column("gpu_mem_gib") * 1024)
    busy, power = column("gpu_util_percent"), column("gpu_power_w")
    for i in np.unique(index[valid & np.isfinite(index)]).tolist():
        key = str(int(i))
        if key not in s.gpus and len(s.gpus) >= MAX_GPUS:
            continue
        mine = valid & (index == i)
        s.gpus.setdefault(key, GpuSamples()).add(
            {"t": t[mine], "memory": memory[mine], "busy": busy[mine], "power": power[mine]}
        )
