"""Nodes and devices of a job, and their memory and load, from one pass over its logs."""

from collections import Counter

from pydantic import Field

from ..logs.samples import GpuSamples
from ..runs.record import Model
from .scan import Scan

MIB_PER_GIB = 1024.0
MODE_BIN_MIB = 64


class GpuUse(Model):
    """One GPU over the job."""

    gpu: str = Field(description="index or UUID; before it the node or file, where there are several")
    name: str | None = None
    num_samples: int = Field(description="0: a line of the log states the numbers")
    seconds: float | None = Field(None, description="from the first sample to the last")
    memory_peak_gib: float | None = None
    memory_average_gib: float | None = None
    memory_mode_gib: float | None = Field(
        None, description="the most frequent value of the fullest bin of 64 MiB"
    )
    utilisation_average_percent: float | None = None
    power_average_w: float | None = None
    energy_wh: float | None = Field(None, description="power integrated over the samples' times")


class HostUse(Model):
    """CPU and memory of the job on one node, or of one process tree."""

    host: str
    num_samples: int
    memory_peak_gib: float | None = None
    memory_average_gib: float | None = None
    cpu_average_percent: float | None = Field(None, description="100 is one core")
    cpu_peak_percent: float | None = None


def nodes(scan: Scan) -> list[str]:
    """List the nodes as Slurm does; else the hosts of our ranks; else every host that a line names."""
    names = scan.facts.get("nodes")
    hosts = scan.events.hosts.values() if scan.events is not None else ()
    found = list(names) if names else list(dict.fromkeys(hosts))
    for name in scan.facts.all("worker_host") if not found else []:
        if name.split(".")[0] not in {known.split(".")[0] for known in found}:
            found.append(name)
    return found


def devices_asked(scan: Scan) -> int | None:
    """Return the GPUs of the allocation as the job's environment, script or accounting states."""
    f = scan.facts
    if (total := f.get("gpus_asked")) is not None:
        return total
    per_node = f.get("gpus_per_node")
    if per_node is not None:
        nodes = f.get("num_nodes") or (len(f.get("nodes")) if f.get("nodes") else 1)
        return per_node * nodes
    return None


def devices_used(scan: Scan) -> int | None:
    """Return the devices that took part in the training."""
    if scan.events is not None and scan.events.world_size:
        return scan.events.world_size
    f = scan.facts
    stated = max([x for x in (f.get("devices_used"), f.get("world_size")) if x], default=0)
    named = _ranks(scan)
    if named > stated and (stated or named >= (devices_asked(scan) or 0)):
        return named
    busy = [g for _, g in gpus_of_logs(scan) if g.utilisation]
    if not stated and len(busy) > 1:
        stated = sum(1 for g in busy if max(g.utilisation) > 5)
    return stated or None


def _ranks(scan: Scan) -> int:
    """Return the least number of ranks. Alone it does not prove that others idled: they may have printed nothing."""
    ranks = scan.facts.all("rank")
    return max(ranks) + 1 if len(ranks) > 1 else 0


def host_peak(scan: Scan) -> float | None:
    peaks = [
        scan.facts.get("host_peak_gib"),
        *(p.memory_peak_mib / MIB_PER_GIB for p in scan.processes if p.num_samples),
    ]
    peaks += [n.peak_pss_gib for n in scan.nodes]
    return max([p for p in peaks if p is not None], default=None)


def gpu_peak(scan: Scan, gpus: list[GpuUse]) -> float | None:
    peaks = [scan.facts.get("gpu_peak_gib"), *(g.memory_peak_gib for g in gpus)]
    peaks += scan.events.peak_gpu_gib.values() if scan.events else []
    return max((p for p in peaks if p is not None), default=None)


def gpus_of_logs(scan: Scan) -> list[tuple[str, GpuSamples]]:
    """List the GPUs of nvidia-smi logs; those of several files by file name too, since every node has a GPU 0."""
    several = len(scan.gpu_logs) > 1
    return [
        (f"{stem}:{key}" if several else key, g) for stem, gpus in scan.gpu_logs for key, g in gpus.items()
    ]


def gpus(scan: Scan) -> list[GpuUse]:
    of_nodes = [(f"{n.node}:{key}", g) for n in scan.nodes for key, g in n.gpus.items()]
    sampled = [gpu(key, g) for key, g in [*gpus_of_logs(scan), *of_nodes]]
    return sampled or _stated(scan)


def _stated(scan: Scan) -> list[GpuUse]:
    """Take the memory of each GPU from the last line about it."""
    last = {fact.value[0]: fact.value for fact in scan.facts.many.get("gpu_memory", [])}
    return [
        GpuUse(
            gpu=index,
            num_samples=0,
            memory_peak_gib=peak / MIB_PER_GIB,
            memory_average_gib=average / MIB_PER_GIB,
            memory_mode_gib=mode / MIB_PER_GIB,
        )
        for index, peak, average, mode in last.values()
    ]


def hosts(scan: Scan) -> list[HostUse]:
    """List CPU and memory from our own resource samples and psrecord."""
    found = [
        HostUse(
            host=n.node, num_samples=n.num_samples, memory_peak_gib=n.peak_pss_gib,
            memory_average_gib=n.pss_sum_gib / n.num_samples, cpu_average_percent=n.cpu_sum / n.num_samples,
        )
        for n in scan.nodes if n.num_samples
    ]  # fmt: skip
    for i, p in enumerate((p for p in scan.processes if p.num_samples), 1):
        found.append(
            HostUse(
                host="process tree" if len(scan.processes) == 1 else f"process tree {i}",
                num_samples=p.num_samples,
                memory_peak_gib=p.memory_peak_mib / MIB_PER_GIB,
                memory_average_gib=p.memory_sum_mib / p.num_samples / MIB_PER_GIB,
                cpu_average_percent=p.cpu_sum / p.num_samples,
                cpu_peak_percent=p.cpu_peak,
            )
        )
    return found


def gpu(key: str, g: GpuSamples) -> GpuUse:
    memory, busy = g.memory_mib, g.utilisation
    return GpuUse(
        gpu=key,
        name=g.name,
        num_samples=g.num_samples,
        seconds=g.last_t - g.first_t if g.last_t is not None and g.first_t is not None else None,
        memory_peak_gib=max(memory) / MIB_PER_GIB if memory else None,
        memory_average_gib=sum(m * n for m, n in memory.items()) / memory.total() / MIB_PER_GIB
        if memory
        else None,
        memory_mode_gib=_mode_mib(memory) / MIB_PER_GIB if memory else None,
        utilisation_average_percent=sum(u * n for u, n in busy.items()) / busy.total() if busy else None,
        power_average_w=g.power_sum / g.power_count if g.power_count else None,
        energy_wh=g.energy_j / 3600 if g.energy_j > 0 else None,
    )


def _mode_mib(memory: Counter[int]) -> int:
    """Return the most frequent sample of the fullest bin, so that noise of a few MiB does not split a plateau."""
    bins: Counter[int] = Counter()
    for mib, count in memory.items():
        bins[mib // MODE_BIN_MIB] += count
    fullest = bins.most_common(1)[0][0]
    return max((m for m in memory if m // MODE_BIN_MIB == fullest), key=lambda m: (memory[m], m))
