"""Running statistics of sampled hardware: GPUs, process trees, nodes. Memory stays bounded however long the log is."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAX_GPUS = 1024
#: At most this many different values of one GPU's memory in MiB are counted; a GPU has fewer than 300,000.
MAX_VALUES = 1 << 19
#: Samples further apart add no energy: the power between them is unknown.
MAX_GAP_S = 600.0


@dataclass
class GpuSamples:
    """Running statistics of one GPU; memory in MiB, utilisation in %, power in W."""

    name: str | None = None
    memory_mib: Counter[int] = field(default_factory=Counter)
    utilisation: Counter[int] = field(default_factory=Counter)
    power_sum: float = 0.0
    power_count: int = 0
    first_t: float | None = None
    last_t: float | None = None
    energy_j: float = 0.0
    _power_w: float | None = None  # of the last sample

    @property
    def num_samples(self) -> int:
        return max(self.memory_mib.total(), self.utilisation.total(), self.power_count)

    def add(self, columns: Mapping[str, NDArray[np.float64]]) -> None:
        """Take samples in order of time: `t` (s), `memory` (MiB), `busy` (%), `power` (W); NaN where unknown."""
        if (memory := columns.get("memory")) is not None and len(self.memory_mib) < MAX_VALUES:
            _count(self.memory_mib, memory, 1e9)
        if (busy := columns.get("busy")) is not None:
            _count(self.utilisation, busy, 100)
        power = columns.get("power")
        if power is not None:
            known = power[np.isfinite(power)]
            self.power_sum, self.power_count = (
                self.power_sum + float(known.sum()),
                self.power_count + len(known),
            )
        if (t := columns.get("t")) is not None:
            self._take_times(t, power)

    def _take_times(self, t: NDArray[np.float64], power: NDArray[np.float64] | None) -> None:
        known = np.isfinite(t)
        t = t[known]
        if not len(t):
            return
        if power is not None:
            # Trapezoids between neighbouring samples, the last one of the block before included.
            watts = power[known]
            if self._power_w is not None and self.last_t is not None:
                t, watts = np.append(self.last_t, t), np.append(self._power_w, watts)
            gaps = np.diff(t)
            area = gaps * (watts[1:] + watts[:-1]) / 2
            self.energy_j += float(area[(gaps > 0) & (gaps <= MAX_GAP_S) & np.isfinite(area)].sum())
            self._power_w = float(watts[-1])
        self.first_t = float(t.min()) if self.first_t is None else min(self.first_t, float(t.min()))
        self.last_t = float(t[-1])


def _count(counts: Counter[int], values: NDArray[np.float64], largest: float) -> None:
    """Count each whole value up to `largest` in `values`."""
    known = values[(values >= 0) & (values <= largest)].astype(np.int64)
    found, times = np.unique(known, return_counts=True)
    for value, n in zip(found.tolist(), times.tolist(), strict=True):
        counts[value] = counts.get(value, 0) + n


@dataclass
class ProcessSamples:
    """Running statistics of one process tree; MB as psrecord writes them are MiB."""

    num_samples: int = 0
    elapsed_s: float = 0.0
    cpu_sum: float = 0.0
    cpu_peak: float = 0.0
    memory_sum_mib: float = 0.0
    memory_peak_mib: float = 0.0


@dataclass
class NodeSamples:
    """Running statistics of one node's samples."""

    node: str = ""
    num_samples: int = 0
    peak_pss_gib: float | None = None
    pss_sum_gib: float = 0.0
    cpu_sum: float = 0.0
    first_t: float | None = None
    last_t: float | None = None
    gpus: dict[str, GpuSamples] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of one process group, as a rank began it.

    Args:
        seq: counts the group's collectives from 1; equal on all ranks.
        created_ns: Unix nanoseconds.
    """

    seq: int
    op: str
    sizes: str
    created_ns: int
    done: bool


@dataclass
class RankTrace:
    """Last collectives of one rank, by name of the process group, each in order of `seq`."""

    file: str
    rank: int
    step: int | None = None
    dumped_ns: int | None = None
    """Time of the dump by its node's clock; None if it does not state it, as those of NCCL."""
    groups: dict[str, dict[int, Collective]] = field(default_factory=dict)
    members: dict[str, list[int]] = field(default_factory=dict)
