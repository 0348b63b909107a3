"""`nvidia-smi --query-gpu=... --format=csv -l N` logs, with or without units and header."""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..lines import CONTROL, cells, read_blocks

MAX_GPUS = 1024
#: Values of one GPU's memory that are counted exactly, in MiB; a GPU has fewer than 300,000.
MAX_VALUES = 1 << 19
HEADER = (b"memory.used", b"utilization.gpu", b"power.draw")


@dataclass
class GpuSamples:
    """Running statistics of one GPU; memory in MiB, utilisation in %, power in W."""

    name: str | None = None
    memory_mib: Counter[int] = field(default_factory=Counter)
    utilisation: Counter[int] = field(default_factory=Counter)
    power_sum: float = 0.0
    power_count: int = 0
    total_mib: float | None = None

    @property
    def num_samples(self) -> int:
        return max(self.memory_mib.total(), self.utilisation.total())


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    if "," not in first:
        return False
    if re.search(r"\b(?:memory\.used|utilization\.gpu|power\.draw)\b", first):
        return True
    return bool(re.search(r",\s*\d+ MiB\b", first) and re.search(r"\bNVIDIA|Tesla|GeForce|%,", first))


def read(path: Path) -> dict[str, GpuSamples]:
    """Samples per GPU, keyed by index (or UUID, or name when neither was asked for). Torn rows are skipped."""
    gpus: dict[str, GpuSamples] = {}
    columns: dict[str, int] = {}
    for block in read_blocks(path):
        for raw in block.lines:
            found = cells(raw)
            if any(name in raw for name in HEADER) and (named := _columns(found)):
                columns = named
                continue
            if not columns:
                columns = _guess(found)
            if columns and max(columns.values()) < len(found):
                _sample(found, columns, gpus)
    return gpus


def _columns(row: list[str]) -> dict[str, int]:
    names = {re.sub(r"\s*\[.*?\]$", "", c): i for i, c in enumerate(row)}
    return names if names.keys() & {"memory.used", "utilization.gpu", "power.draw"} else {}


def _guess(row: list[str]) -> dict[str, int]:
    """Columns of a log without header, from the units of its first row."""
    columns: dict[str, int] = {}
    for i, cell in enumerate(row):
        if cell.endswith("MiB"):
            columns.setdefault("memory.used", i)
        elif cell.endswith("%"):
            columns.setdefault("utilization.gpu", i)
        elif cell.endswith(" W"):
            columns.setdefault("power.draw", i)
        elif re.fullmatch(r"\d{1,4}", cell):
            columns.setdefault("index", i)
    return columns


@lru_cache(4096)
def _number(text: str) -> float | None:
    """The number that a cell begins with; the same few stand in a log again and again."""
    m = re.match(r"\d{1,12}(?:\.\d{1,6})?", text)
    return float(m[0]) if m else None


def _sample(row: list[str], columns: dict[str, int], gpus: dict[str, GpuSamples]) -> None:
    def cell(name: str) -> str | None:
        i = columns.get(name)
        return row[i] if i is not None and i < len(row) else None

    def value(name: str) -> float | None:
        return _number(cell(name) or "")

    memory, busy, power = value("memory.used"), value("utilization.gpu"), value("power.draw")
    if memory is None and busy is None:
        return
    key = cell("index") or cell("uuid") or cell("pci.bus_id") or cell("name") or "0"
    if key not in gpus and len(gpus) >= MAX_GPUS:
        return
    gpu = gpus.setdefault(CONTROL.sub("", key)[:64], GpuSamples())
    gpu.name = gpu.name or cell("name")
    gpu.total_mib = gpu.total_mib or value("memory.total")
    if memory is not None and (len(gpu.memory_mib) < MAX_VALUES or int(memory) in gpu.memory_mib):
        gpu.memory_mib[int(memory)] += 1
    if busy is not None and busy <= 100:
        gpu.utilisation[int(busy)] += 1
    if power is not None:
        gpu.power_sum += power
        gpu.power_count += 1
