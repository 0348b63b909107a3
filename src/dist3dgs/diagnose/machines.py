"""What a job ran on and used there, from one pass over its logs: job, nodes, devices, memory."""

import re
from collections import Counter
from pathlib import Path

from pydantic import Field

from ..record import Model
from .readers.nvidia_smi import GpuSamples
from .scan import Scan

MIB_PER_GIB = 1024.0


class GpuUse(Model):
    """One GPU over the job."""

    gpu: str
    name: str | None = None
    num_samples: int
    memory_peak_gib: float | None = None
    memory_average_gib: float | None = None
    memory_mode_gib: float | None = Field(None, description="the most frequent value, in bins of 64 MiB")
    utilisation_average_percent: float | None = None
    power_average_w: float | None = None


def job_id_in_name(scan: Scan) -> str | None:
    """Slurm's usual file names: slurm-%j.out, %x_%j.err, %x-%A_%a.log."""
    for f in scan.files:
        if m := re.search(r"(?:^|[-_.])(\d{4,12})(?:_\d{1,6})?\.(?:out|err|log|txt)$", Path(f.path).name):
            return m[1]
    return None


def nodes(scan: Scan) -> list[str]:
    names = scan.facts.get("nodes")
    if names:
        return list(names)
    if scan.diary is not None and scan.diary.hosts:
        return list(dict.fromkeys(scan.diary.hosts.values()))
    return list(dict.fromkeys(scan.facts.all("worker_host")))


def devices_asked(scan: Scan) -> int | None:
    """GPUs of the allocation, as the job's environment, script or accounting says."""
    f = scan.facts
    if (total := f.get("gpus_asked")) is not None:
        return total
    per_node = f.get("gpus_per_node")
    if per_node is not None:
        nodes = f.get("num_nodes") or (len(f.get("nodes")) if f.get("nodes") else 1)
        return per_node * nodes
    return None


def devices_used(scan: Scan) -> int | None:
    """Devices that took part in the training, as the trainer says."""
    if scan.diary is not None and scan.diary.world_size:
        return scan.diary.world_size
    f = scan.facts
    stated = [x for x in (f.get("devices_used"), f.get("world_size")) if x]
    ranks = f.all("rank")
    if ranks and (not stated or max(ranks) + 1 > max(stated)):
        stated.append(max(ranks) + 1 if len(ranks) > 1 else 0)
    busy = [g for g in scan.gpus.values() if g.utilisation]
    if not any(stated) and len(busy) > 1:
        stated.append(sum(1 for g in busy if max(g.utilisation) > 5))
    return max(stated, default=0) or None


def host_peak(scan: Scan) -> float | None:
    peaks = [
        scan.facts.get("host_peak_gib"),
        *(p.memory_peak_mib / MIB_PER_GIB for p in scan.processes if p.num_samples),
    ]
    peaks += [n.peak_pss_gib for n in scan.nodes]
    return max([p for p in peaks if p is not None], default=None)


def gpu_peak(scan: Scan, gpus: list[GpuUse]) -> float | None:
    peaks = [scan.facts.get("gpu_peak_gib"), *(g.memory_peak_gib for g in gpus)]
    peaks += scan.diary.peak_gpu_gib.values() if scan.diary else []
    return max((p for p in peaks if p is not None), default=None)


def node_gpus(scan: Scan) -> list[tuple[str, GpuSamples]]:
    return [(f"{n.node}:{key}", g) for n in scan.nodes for key, g in n.gpus.items()]


def gpu(key: str, g: GpuSamples) -> GpuUse:
    memory, busy = g.memory_mib, g.utilisation
    bins: Counter[int] = Counter()
    for mib, count in memory.items():
        bins[round(mib / 64)] += count
    return GpuUse(
        gpu=key,
        name=g.name,
        num_samples=g.num_samples,
        memory_peak_gib=max(memory) / MIB_PER_GIB if memory else None,
        memory_average_gib=sum(m * n for m, n in memory.items()) / memory.total() / MIB_PER_GIB
        if memory
        else None,
        memory_mode_gib=bins.most_common(1)[0][0] * 64 / MIB_PER_GIB if bins else None,
        utilisation_average_percent=sum(u * n for u, n in busy.items()) / busy.total() if busy else None,
        power_average_w=g.power_sum / g.power_count if g.power_count else None,
    )
