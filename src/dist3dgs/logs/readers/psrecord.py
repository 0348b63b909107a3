"""`psrecord --log`: elapsed seconds, CPU %, resident MB, virtual MB."""

import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..lines import clean, read_blocks
from ..log_data import Added, LogData
from ..samples import ProcessSamples

FORMAT = "psrecord"


def sniff(head: str) -> bool:
    return bool(re.search(r"^#\s*Elapsed time\s+CPU \(%\)\s+Real \(MB\)", head, re.M))


def add(path: Path, index: int, log: LogData) -> Added:
    """Add one process tree."""
    log.processes.append(read(path))
    return Added()


def read(path: Path) -> ProcessSamples:
    """Add up all whole rows; torn and foreign ones are skipped."""
    s = ProcessSamples()
    for block in read_blocks(path):
        rows = _rows(block.data)
        t, cpu, real = rows[:, 0], rows[:, 1], rows[:, 2]
        valid = (t >= 0) & (t < 1e9) & (cpu >= 0) & (cpu < 1e7) & (real >= 0) & (real < 1e9)
        if not valid.any():
            continue
        t, cpu, real = t[valid], cpu[valid], real[valid]
        s.num_samples += len(t)
        s.elapsed_s = max(s.elapsed_s, float(t.max()))
        s.cpu_sum, s.cpu_peak = s.cpu_sum + float(cpu.sum()), max(s.cpu_peak, float(cpu.max()))
        s.memory_sum_mib += float(real.sum())
        s.memory_peak_mib = max(s.memory_peak_mib, float(real.max()))
    return s


def _rows(data: bytes) -> NDArray[np.float64]:
    """Parse the first three columns, N x 3 float64: all rows at once where their widths agree, else one by one."""
    text = data[data.index(b"\n") + 1 :] if data.startswith(b"#") and b"\n" in data else data
    lines = text.split(b"\n")
    widths = {len(line.split()) for line in lines if line}
    if len(widths) == 1 and max(widths) >= 4 and not text.translate(None, b"0123456789. \n"):
        with suppress(ValueError, DeprecationWarning), warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # `1.2.3`, by age of numpy
            return np.fromstring(text, sep=" ").reshape(-1, max(widths))[:, :3]
    rows = []
    for raw in lines:
        try:
            t, cpu, real, _, *_ = (float(x) for x in clean(raw).split())
        except ValueError:
            continue
        rows.append((t, cpu, real))
    return np.array(rows, np.float64).reshape(-1, 3)
