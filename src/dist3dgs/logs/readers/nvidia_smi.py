"""`nvidia-smi --query-gpu=... --format=csv -l N` logs, with a header or, where the units tell the columns, without."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..csv_columns import Table, cells
from ..lines import Block, clean, read_blocks
from ..log_data import Added, LogData
from ..samples import MAX_GPUS, GpuSamples

MEASURED = frozenset({"memory.used", "utilization.gpu", "power.draw"})
#: Rows no further apart are one sample of all GPUs; nvidia-smi queries them one after the other.
ONE_SAMPLE_S = 0.25
STAMP = re.compile(r"^20\d\d/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3},")
#: Name in a log without names of GPUs and times, whose rows cannot be told apart.
ALL = "all GPUs"
NO_HEADER = (
    "rows of nvidia-smi without header and units, so what its columns are is not known; log with --format=csv"
)


FORMAT = "nvidia-smi"


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    if "," not in first:
        return False
    if re.search(r"\b(?:memory\.used|utilization\.gpu|power\.draw)\b", first) or _bare(first):
        return True
    has_unit = re.search(r",\s*\d+ (?:MiB|%)", first)
    return bool(has_unit and (STAMP.match(first) or re.search(r"\bNVIDIA|Tesla|GeForce|%,|MiB,", first)))


def _bare(row: str) -> bool:
    """Recognise a row of `--format=csv,noheader,nounits`: a time, then numbers and names only."""
    return bool(STAMP.match(row)) and all(
        re.fullmatch(r"[\d.]+|\[[^\]]*\]|NVIDIA .*|GPU-[\w-]+", cell) for cell in cells(row.encode())[1:]
    )


def add(path: Path, index: int, log: LogData) -> Added:
    """Add the GPUs of one log under the file's name: every node has a GPU 0."""
    gpus, note = read(path)
    if gpus:
        log.gpu_logs.append((log.name_of_gpu_log(path), gpus))
    return Added(note)


def read(path: Path) -> tuple[dict[str, GpuSamples], str | None]:
    """Return samples per GPU, and a note about the file.

    They are keyed by index, UUID or bus; else numbered by their order within one sample. Torn rows are skipped.
    """
    gpus: dict[str, GpuSamples] = {}
    columns: dict[str, int] = {}
    number = _Numbering()
    width = 0
    for block in read_blocks(path):
        if not columns:
            columns, width = _layout(block)
            if not columns:
                return {}, NO_HEADER
        table = Table.of(block.data.replace(b"\r", b""), width)
        if not len(table.rows):
            continue
        _take(table, columns, number, gpus)
    return gpus, None


def _layout(block: Block) -> tuple[dict[str, int], int]:
    """Map column names to indices, and count columns, from the header or the units of the first rows."""
    for raw in block.lines[:20]:
        row = cells(raw)
        names = {re.sub(r"\s*\[.*?\]$", "", c): i for i, c in enumerate(row)}
        if names.keys() & MEASURED:
            return names, len(row)
    rows = [row for row in map(cells, block.lines[:200]) if len(row) > 1]
    if not rows:
        return {}, 0
    return _guess(rows), len(rows[0])


def _guess(rows: list[list[str]]) -> dict[str, int]:
    """Guess the columns of a log without header from the units of its first rows."""
    columns: dict[str, int] = {}
    sizes: list[int] = []
    for i, cell in enumerate(rows[0]):
        if cell.endswith("MiB"):
            sizes.append(i)
        elif cell.endswith("%"):
            columns.setdefault("utilization.gpu", i)
        elif cell.endswith(" W"):
            columns.setdefault("power.draw", i)
        elif STAMP.match(cell + ","):
            columns.setdefault("timestamp", i)
        elif re.fullmatch(r"GPU-[\w-]+", cell):
            columns.setdefault("uuid", i)
        elif re.fullmatch(r"\d{1,4}", cell):
            columns.setdefault("index", i)
        elif re.match(r"NVIDIA|Tesla|GeForce|Quadro", cell):
            columns.setdefault("name", i)
    if sizes:
        columns["memory.used"] = _used(rows, sizes)
    return columns if columns.keys() & MEASURED else {}


def _used(rows: list[list[str]], sizes: list[int]) -> int:
    """Choose the column of used memory: the largest is the total, and `used` stands before `free`."""
    if len(sizes) == 1:
        return sizes[0]

    def mean(i: int) -> float:
        values = [float(m[0]) for row in rows if i < len(row) and (m := re.match(r"\d+", row[i]))]
        return sum(values) / max(len(values), 1)

    total = max(sizes, key=mean)
    return next(i for i in sizes if i != total)


@dataclass
class _Numbering:
    """Counts rows within a sample, across blocks."""

    last_t: float | None = None
    position: int = -1

    def of(self, t: NDArray[np.float64]) -> NDArray[np.int64]:
        before = np.append(self.last_t if self.last_t is not None else -np.inf, t[:-1])
        new = ~(np.abs(t - before) <= ONE_SAMPLE_S)
        at = np.arange(len(t))
        starts = np.where(new, at, -1)
        start = np.maximum.accumulate(starts)
        # Rows before the first new sample continue the last one of the block before.
        position = np.where(start >= 0, at - start, at + self.position + 1)
        self.last_t, self.position = float(t[-1]), int(position[-1])
        return position


def _take(table: Table, columns: dict[str, int], number: _Numbering, gpus: dict[str, GpuSamples]) -> None:
    wanted = (("memory", "memory.used"), ("busy", "utilization.gpu"), ("power", "power.draw"))
    values = {key: table.numbers(columns[name]) for key, name in wanted if name in columns}
    if "timestamp" in columns:
        values["t"] = table.clock(columns["timestamp"])
    there = np.any([np.isfinite(v) for key, v in values.items() if key != "t"], axis=0)
    codes, keys = _keys(table, columns, values.get("t"), number)
    if keys == [] and "name" in columns:  # the only possible distinction
        codes, names = _codes(table.texts(columns["name"]))
        several = len(np.unique(codes[there])) > 1
        keys = [f"all {name}" if several else ALL for name in names]
    for code in np.unique(codes[there]).tolist():
        key = (keys[code] if keys else ALL) if keys is not None else str(code)
        if key not in gpus and len(gpus) >= MAX_GPUS:
            continue
        gpu = gpus.setdefault(key, GpuSamples())
        mine = there & (codes == code)
        gpu.add({name: v[mine] for name, v in values.items()})
        if gpu.name is None and "name" in columns:
            gpu.name = _cell(table, columns["name"], int(np.flatnonzero(mine)[0])) or None


def _keys(
    table: Table, columns: dict[str, int], t: NDArray[np.float64] | None, number: _Numbering
) -> tuple[NDArray[np.int64], list[str] | None]:
    """Return a code for each row's GPU, and the codes' names; None: the codes are the names; []: unknown."""
    if "index" in columns:
        index = table.numbers(columns["index"])
        return np.where((index >= 0) & (index < 1 << 40), index, -1).astype(np.int64), None
    for name in ("uuid", "gpu_uuid", "pci.bus_id", "gpu_bus_id", "serial"):
        if name in columns:
            return _codes(table.texts(columns[name]))
    if t is not None:
        return number.of(t), None
    return np.zeros(len(table.rows), np.int64), []


def _codes(texts: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    known: dict[str, int] = {}
    codes = [known.setdefault(text, len(known)) for text in texts]
    return np.array(codes, np.int64), [text[:64] for text in known]


def _cell(table: Table, column: int, row: int) -> str:
    start, end = table.span(column)
    return clean(table.data[start[row] : end[row]]).strip()[:64]
