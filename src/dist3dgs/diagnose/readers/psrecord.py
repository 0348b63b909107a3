"""`psrecord --log`: elapsed seconds, CPU %, resident MB, virtual MB."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..lines import clean, read_blocks


@dataclass
class ProcessSamples:
    """Running statistics of one process tree; MB as psrecord writes them are MiB."""

    num_samples: int = 0
    elapsed_s: float = 0.0
    cpu_sum: float = 0.0
    cpu_peak: float = 0.0
    memory_sum_mib: float = 0.0
    memory_peak_mib: float = 0.0


def sniff(head: str) -> bool:
    return bool(re.search(r"^#\s*Elapsed time\s+CPU \(%\)\s+Real \(MB\)", head, re.M))


def read(path: Path) -> ProcessSamples:
    """Statistics of all whole rows; torn and foreign ones are skipped."""
    s = ProcessSamples()
    for block in read_blocks(path):
        for raw in block.lines:
            try:
                t, cpu, real, *_ = (float(x) for x in clean(raw).split()[:4])
            except ValueError:
                continue
            if not (0 <= t < 1e9 and 0 <= cpu < 1e7 and 0 <= real < 1e9):
                continue
            s.num_samples += 1
            s.elapsed_s = max(s.elapsed_s, t)
            s.cpu_sum, s.cpu_peak = s.cpu_sum + cpu, max(s.cpu_peak, cpu)
            s.memory_sum_mib, s.memory_peak_mib = s.memory_sum_mib + real, max(s.memory_peak_mib, real)
    return s
