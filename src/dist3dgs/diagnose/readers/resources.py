"""Our own `resources.*.csv` (columns: dist3dgs.monitor)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..lines import cells, read_blocks
from .nvidia_smi import MAX_GPUS, GpuSamples


@dataclass
class NodeSamples:
    """Running statistics of one node's samples."""

    node: str = ""
    num_samples: int = 0
    peak_pss_gib: float | None = None
    first_t: float | None = None
    last_t: float | None = None
    gpus: dict[str, GpuSamples] = field(default_factory=dict)


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    return {"t", "node", "pss_gib"} <= set(first.split(","))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    header: list[str] = []
    for block in read_blocks(path):
        for raw in block.lines:
            found = cells(raw)
            if not header:
                header = found
            elif len(found) == len(header):
                yield dict(zip(header, found, strict=True))


def _value(row: dict[str, str], key: str) -> float | None:
    try:
        value = float(row.get(key) or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value < 1e15 else None


def read(path: Path) -> NodeSamples:
    """Statistics of all whole rows; on a node with GPUs there is one row per sample and GPU."""
    s = NodeSamples()
    for row in _rows(path):
        t, pss = _value(row, "t"), _value(row, "pss_gib")
        if t is None:
            continue
        s.node = s.node or row["node"]
        s.first_t = t if s.first_t is None else s.first_t
        if t != s.last_t:
            s.num_samples += 1
        s.last_t = t
        if pss is not None:
            s.peak_pss_gib = max(pss, s.peak_pss_gib or 0.0)
        key = row.get("gpu_index") or ""
        if not key or (key not in s.gpus and len(s.gpus) >= MAX_GPUS):
            continue
        gpu = s.gpus.setdefault(key[:64], GpuSamples())
        memory, busy, power = (_value(row, k) for k in ("gpu_mem_gib", "gpu_util_percent", "gpu_power_w"))
        if memory is not None:
            gpu.memory_mib[int(memory * 1024)] += 1
        if busy is not None and busy <= 100:
            gpu.utilisation[int(busy)] += 1
        if power is not None:
            gpu.power_sum, gpu.power_count = gpu.power_sum + power, gpu.power_count + 1
    return s
