"""Sample what a job uses on its node: memory, CPU, network, disk and, where there are NVIDIA GPUs, those.

One CSV per node and attempt, one row per sample and GPU (gpu_index is empty on a node without). Memory of the job
is the PSS of its process tree: shared pages are counted once. The page cache is the node's and stands apart. Network
and InfiniBand bytes are the node's, without the loopback; disk bytes are those of the job's own processes.
"""

import argparse
import csv
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from ..units import GIB
from .nvml import GpuIdentity, Nvml

COLUMNS = (
    "t", "node", "cpu_percent", "rss_gib", "pss_gib", "page_cache_gib", "gpu_index", "gpu_mem_gib",
    "gpu_util_percent", "gpu_power_w", "net_rx_bytes", "net_tx_bytes", "ib_rx_bytes", "ib_tx_bytes", "disk_read_bytes",
    "disk_write_bytes",
)  # fmt: skip
#: The thread waits at least this multiple of the CPU time that a sample took, to stay under 1 % of a core.
REST = 100
#: nvidia-smi starts a process for every sample, which NVML does not.
SMI_EVERY_S = 10.0
#: Fields that nvidia-smi is asked for.
SMI_QUERY = "index,memory.used,utilization.gpu,power.draw"


class Monitor:
    """A thread that samples the tree below `pid` every `interval_s` until stopped or the process is gone."""

    def __init__(self, pid: int, path: Path, node: str, interval_s: float = 2.0) -> None:
        self.path, self.node, self.interval_s = path, node, interval_s
        self.pid = pid
        self._own_pid = os.getpid()
        self._stop = threading.Event()
        self._known: dict[int, psutil.Process] = {}
        self._disk: dict[
            tuple[int, float], tuple[int, int]
        ] = {}  # process -> bytes read, written, when last seen
        self._gpus = gpu_sampler()
        self._thread = threading.Thread(
            target=self.write_samples, args=[self._stop.wait], name="monitor", daemon=True
        )

    def start(self) -> "Monitor":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def write_samples(self, wait: Callable[[float], bool]) -> None:
        """Write samples to `path` until `wait`, which is given the seconds to the next one, returns True."""
        with self.path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            while True:
                before_s = time.thread_time()
                for row in self.sample():
                    writer.writerow(row)
                f.flush()
                if wait(max(self.interval_s, REST * (time.thread_time() - before_s))):
                    return

    def sample(self) -> list[dict[str, Any]]:
        row: dict[str, Any] = {"t": round(time.time(), 3), "node": self.node, **self._tree()}
        row |= {**network_bytes(), **infiniband_bytes()}
        if self._disk:
            read, written = (sum(column) for column in zip(*self._disk.values(), strict=True))
            row |= {"disk_read_bytes": read, "disk_write_bytes": written}
        cached = getattr(psutil.virtual_memory(), "cached", 0)
        row["page_cache_gib"] = round(cached / GIB, 4)
        return [row | gpu for gpu in self._gpus()] or [row]

    def _tree(self) -> dict[str, float]:
        cpu = rss = pss = 0.0
        try:
            root = psutil.Process(self.pid)
            processes = [p for p in (root, *root.children(recursive=True)) if p.pid != self._own_pid]
        except psutil.Error:
            processes = []
        # cpu_percent is a difference between calls, so the same objects must be kept.
        self._known = {p.pid: self._known.get(p.pid, p) for p in processes}
        for p in self._known.values():
            try:
                cpu += p.cpu_percent()
                memory = p.memory_info()
                rss += memory.rss
                pss += _pss(p.pid) or memory.rss
                if (moved := _disk_bytes(p)) is not None:
                    self._disk[p.pid, p.create_time()] = moved
            except psutil.Error:
                continue
        return {
            "cpu_percent": round(cpu, 1),
            "rss_gib": round(rss / GIB, 4),
            "pss_gib": round(pss / GIB, 4),
        }


def network_bytes() -> dict[str, int]:
    """Return the bytes received and sent since boot, loopback excluded; {} where unavailable."""
    cards = psutil.net_io_counters(pernic=True) or {}
    others = [card for name, card in cards.items() if name != "lo"]
    if not others:
        return {}
    return {
        "net_rx_bytes": sum(card.bytes_recv for card in others),
        "net_tx_bytes": sum(card.bytes_sent for card in others),
    }


def infiniband_bytes(root: Path = Path("/sys/class/infiniband")) -> dict[str, int]:
    """Like `network_bytes`, for the InfiniBand and RoCE ports, which NCCL uses past the kernel's network.

    The counters are in words of four bytes (InfiniBand specification, PortCounters).
    """
    found: dict[str, int] = {}
    for name, counter in (("ib_rx_bytes", "port_rcv_data"), ("ib_tx_bytes", "port_xmit_data")):
        for path in root.glob(f"*/ports/*/counters/{counter}"):
            try:
                found[name] = found.get(name, 0) + 4 * int(path.read_text())
            except (OSError, ValueError):
                continue
    return found


def allocated_gpus(environ: Mapping[str, str], known: Iterable[GpuIdentity] = ()) -> set[int] | None:
    """Return the indices of the GPUs that the job was given on this node; None where no variable tells.

    known: GPUs of the node, by which UUIDs are understood.
    """
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        words = [word.strip() for word in environ.get(name, "").split(",") if word.strip()]
        if words and all(word.isdigit() for word in words):
            return {int(word) for word in words}
        if named := {gpu.index for gpu in known if any(gpu.is_named(word) for word in words)}:
            return named
    return None


def of_the_job(gpus: list[dict[str, Any]], allocated: set[int] | None) -> list[dict[str, Any]]:
    """Select the job's own GPUs among the visible ones.

    Where Slurm confines devices a job sees its own alone, counted from 0; where it sees more, they are told by index.
    """
    if allocated is None or len(gpus) <= len(allocated):
        return gpus
    return [gpu for gpu in gpus if gpu["gpu_index"] in allocated]


def gpu_sampler() -> Callable[[], list[dict[str, Any]]]:
    """Choose how to sample this node's GPUs: NVML, else nvidia-smi, else not at all."""
    try:
        nvml = Nvml()
    except OSError:
        if not shutil.which("nvidia-smi"):
            return list
        smi, allocated = NvidiaSmi(), allocated_gpus(os.environ)
        return lambda: of_the_job(smi.gpus(), allocated)
    allocated = allocated_gpus(os.environ, nvml.identities())
    return lambda: of_the_job(
        [
            {
                "gpu_index": gpu.index,
                "gpu_mem_gib": None if gpu.memory_gib is None else round(gpu.memory_gib, 4),
                "gpu_util_percent": gpu.utilisation_percent,
                "gpu_power_w": gpu.power_w,
            }
            for gpu in nvml.gpus()
        ],
        allocated,
    )


class NvidiaSmi:
    """Runs nvidia-smi at intervals until it fails once."""

    def __init__(self) -> None:
        self._next = 0.0

    def gpus(self) -> list[dict[str, Any]]:
        if time.monotonic() < self._next:
            return []
        before_s = _children_s()
        command = ["nvidia-smi", f"--query-gpu={SMI_QUERY}", "--format=csv,noheader,nounits"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            self._next = math.inf
            return []
        # Its CPU time is a child's, and counts towards the same one percent.
        self._next = time.monotonic() + max(SMI_EVERY_S, REST * (_children_s() - before_s))
        return [gpu for line in text.splitlines() if (gpu := parse_gpu(line))]


def resources_path(attempt: Path, node: str) -> Path:
    """Return the path of a node's samples of an attempt."""
    return Path(attempt, f"resources.{node}.csv")


def peak_pss_gib(paths: Iterable[Path]) -> float | None:
    """Return the job's largest PSS on any node; None without samples."""
    peak = None
    for path in paths:
        with path.open(newline="", encoding="utf-8") as f:
            for row in csv.DictReader(f):
                try:
                    peak = max(peak or 0.0, float(row["pss_gib"]))
                except (KeyError, TypeError, ValueError):
                    continue  # a torn last line
    return peak


def start_beside(pid: int, attempt: Path, node: str) -> None:
    """Sample the tree below `pid` from a process of its own, which ends when `pid` has ended."""
    argv = [sys.executable, "-m", __name__, "--pid", str(pid), "--node", node]
    argv += ["--out", str(resources_path(attempt, node))]
    # Closed streams: srun waits until nobody holds the other ends of its pipes.
    null = subprocess.DEVNULL
    subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.monitoring.sampler", description=__doc__)
    parser.add_argument("--pid", required=True, type=int)
    parser.add_argument("--node", required=True)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    monitor = Monitor(args.pid, args.out, args.node).start()
    try:
        process = psutil.Process(args.pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    except psutil.Error:
        pass
    monitor.stop()


def parse_gpu(line: str) -> dict[str, Any] | None:
    """Parse a row of nvidia-smi that answers `SMI_QUERY`; None for anything else."""
    parts = [p.strip() for p in line.split(",")]
    if len(parts) != 4 or not parts[0].isdigit():
        return None
    number = [float(p) if p.replace(".", "", 1).isdigit() else None for p in parts[1:]]
    memory = None if number[0] is None else round(number[0] / 1024, 4)
    return {
        "gpu_index": int(parts[0]),
        "gpu_mem_gib": memory,
        "gpu_util_percent": number[1],
        "gpu_power_w": number[2],
    }


def _children_s() -> float:
    """Return the CPU seconds of children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _disk_bytes(process: psutil.Process) -> tuple[int, int] | None:
    """Return the bytes a process has read from and written to storage; None where the kernel does not tell."""
    try:
        io = process.io_counters()
    except (psutil.Error, AttributeError, OSError):
        return None
    return io.read_bytes, io.write_bytes


def _pss(pid: int) -> int | None:
    """Return the proportional set size in bytes; None where the kernel does not tell."""
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open() as f:
            for line in f:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


if __name__ == "__main__":
    main()
