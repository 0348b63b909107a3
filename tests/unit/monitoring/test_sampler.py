"""Samples of real processes."""

import cProfile
import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dist3dgs.monitoring import sampler as monitor_module
from dist3dgs.monitoring.nvml import GpuIdentity
from dist3dgs.monitoring.sampler import (
    Monitor,
    NvidiaSmi,
    allocated_gpus,
    infiniband_bytes,
    network_bytes,
    of_the_job,
    parse_gpu,
    peak_pss_gib,
    resources_path,
    start_beside,
)

#: Holds 200 MiB and burns a core for a while, in a child of its own child.
BUSY = """
import subprocess, sys
code = "import time; x = bytearray(200 << 20); t = time.time()\\nwhile time.time() < t + {s}: sum(range(10000))"
sys.exit(subprocess.call([sys.executable, "-c", code]))
"""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.slow
def test_the_whole_tree_is_seen(tmp_path: Path) -> None:
    path = resources_path(tmp_path, "node1")
    process = subprocess.Popen([sys.executable, "-c", BUSY.replace("{s}", "120")])
    monitor = Monitor(process.pid, path, "node1", interval_s=0.2).start()
    deadline = time.time() + 100
    samples: list[dict[str, str]] = []
    while time.time() < deadline:
        time.sleep(0.2)
        samples = rows(path)[:-1] if path.exists() else []  # the last row may be half written
        if (
            len(samples) >= 4
            and float(samples[-1]["pss_gib"]) > 0.19
            and float(samples[-1]["cpu_percent"]) > 1
        ):
            break
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.wait()
    monitor.stop()
    assert len(samples) >= 4
    assert max(float(r["pss_gib"]) for r in samples) > 0.19
    assert max(float(r["cpu_percent"]) for r in samples) > 1
    assert (peak_pss_gib([path]) or 0) > 0.19
    assert all((r["node"] == "node1" and r["gpu_index"] == "") or r["gpu_index"].isdigit() for r in samples)


@pytest.mark.slow
def test_beside_a_process_it_ends_with_it(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY.replace("{s}", "4")])
    start_beside(process.pid, tmp_path, "n2")
    process.wait()
    path = resources_path(tmp_path, "n2")
    deadline = time.time() + 15
    size = -1
    while time.time() < deadline:  # until nothing is written any more
        time.sleep(2.5)
        if path.stat().st_size == size:
            break
        size = path.stat().st_size
    assert path.stat().st_size == size
    assert (peak_pss_gib([path]) or 0) > 0.19


def test_a_torn_file_still_has_a_peak(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("t,node,pss_gib\n1,a,0.5\n2,a,1.5\n3,a")
    assert peak_pss_gib([path]) == 1.5
    assert peak_pss_gib([]) is None


def test_nvidia_smi_rows() -> None:
    assert parse_gpu("3, 2048, 97, 345.21") == {
        "gpu_index": 3, "gpu_mem_gib": 2.0, "gpu_util_percent": 97.0, "gpu_power_w": 345.21,
    }  # fmt: skip
    assert (parse_gpu("0, [N/A], [N/A], [N/A]") or {})["gpu_mem_gib"] is None
    assert parse_gpu("No devices were found") is None


def test_a_sample_takes_few_calls(tmp_path: Path) -> None:
    """1 % of a core at the default interval is 20 ms. Processes of others on the machine cost a few calls each."""
    monitor = Monitor(os.getpid(), tmp_path / "r.csv", "n")
    monitor.sample()
    profile = cProfile.Profile()
    profile.runcall(monitor.sample)
    calls = sum(entry.callcount for entry in profile.getstats())
    assert calls < 2000 + 50 * len(psutil.pids())


def test_sampling_takes_at_most_one_percent_of_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling costs at most one percent of a core: after a sample that took 50 ms the next one waits 5 s."""
    costs_s, used_s, pauses_s = [0.05, 0.001, 0.001], 0.0, []

    class Costly(Monitor):
        def sample(self) -> list[dict[str, Any]]:
            nonlocal used_s
            used_s += costs_s[len(pauses_s)]
            return [{"t": 0.0, "node": "n"}]

    def wait(seconds: float) -> bool:
        pauses_s.append(seconds)
        return len(pauses_s) == len(costs_s)

    monkeypatch.setattr(monitor_module.time, "thread_time", lambda: used_s)
    Costly(os.getpid(), tmp_path / "r.csv", "n", interval_s=2.0).write_samples(wait)
    assert pauses_s == [pytest.approx(5.0), 2.0, 2.0] and len(rows(tmp_path / "r.csv")) == 3


class Card:
    def __init__(self, received: int, sent: int) -> None:
        self.bytes_recv, self.bytes_sent = received, sent


def test_a_nodes_talk_to_itself_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"lo": Card(10**9, 10**9), "eth0": Card(5, 6), "ib0": Card(7, 8)}
    monkeypatch.setattr(monitor_module.psutil, "net_io_counters", lambda pernic: cards)
    assert network_bytes() == {"net_rx_bytes": 12, "net_tx_bytes": 14}
    for nothing in (None, {}, {"lo": Card(1, 1)}):
        monkeypatch.setattr(monitor_module.psutil, "net_io_counters", lambda pernic, nothing=nothing: nothing)
        assert network_bytes() == {}


def test_infiniband_ports_count_words_of_four_bytes(tmp_path: Path) -> None:
    for device, port, received, sent in (
        ("mlx5_0", "1", "100\n", "10\n"),
        ("mlx5_1", "1", "5\n", "not told"),
    ):
        folder = tmp_path / device / "ports" / port / "counters"
        folder.mkdir(parents=True)
        (folder / "port_rcv_data").write_text(received)
        (folder / "port_xmit_data").write_text(sent)
    assert infiniband_bytes(tmp_path) == {"ib_rx_bytes": 420, "ib_tx_bytes": 40}
    assert infiniband_bytes(tmp_path / "none") == {}


def test_disk_bytes_are_the_jobs_own_and_outlive_its_processes(tmp_path: Path) -> None:
    code = "import os, sys, time; f = open(sys.argv[1], 'wb'); f.write(bytes(8 << 20)); f.flush(); os.fsync(f.fileno())"
    code += "; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")])
    monitor = Monitor(process.pid, tmp_path / "r.csv", "n")
    deadline = time.time() + 60
    row = monitor.sample()[0]
    while row.get("disk_write_bytes", 0) < 8 << 20 and time.time() < deadline:
        if "disk_write_bytes" not in row and not Path(f"/proc/{process.pid}/io").exists():
            pytest.skip("no /proc/PID/io here")
        time.sleep(0.1)
        row = monitor.sample()[0]
    process.kill()
    process.wait()
    if not row.get("disk_write_bytes"):
        pytest.skip("the temporary folder is in memory: nothing is written to storage")
    assert 8 << 20 <= row["disk_write_bytes"] < 64 << 20, "not what all others on the machine write"
    assert monitor.sample()[0]["disk_write_bytes"] == row["disk_write_bytes"]


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({"SLURM_JOB_GPUS": "2,3"}, [2, 3]),
        ({"SLURM_JOB_GPUS": "0,1,2,3", "SLURM_STEP_GPUS": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-6f1c-2,GPU-6f1c-3"}, [2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-77"}, [0, 1, 2, 3]),  # of no GPU that is known
        ({"SLURM_JOB_GPUS": "4,5,6,7"}, [0, 1, 2, 3]),  # confined: a job counts its own from 0
        ({}, [0, 1, 2, 3]),
    ],
)
def test_where_devices_are_not_confined_the_jobs_own_are_kept(
    environ: dict[str, str], kept: list[int]
) -> None:
    seen = [{"gpu_index": i} for i in range(4)]
    known = [GpuIdentity(i, f"GPU-6f1c-{i}", "9.0") for i in range(4)]
    assert [gpu["gpu_index"] for gpu in of_the_job(seen, allocated_gpus(environ, known))] == kept


def test_what_nvidia_smi_takes_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used_s = 1000.0, 0.0

    def run(argv: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        nonlocal used_s
        used_s += 0.5
        return subprocess.CompletedProcess(argv, 0, "0, 1, 2, 3\n", "")

    times = SimpleNamespace(times=lambda: SimpleNamespace(children_user=used_s, children_system=0.0))
    monkeypatch.setattr(monitor_module, "os", times)
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(monitor_module.subprocess, "run", run)
    smi = NvidiaSmi()
    assert smi.gpus()
    now += monitor_module.REST * 0.5 - 0.1
    assert not smi.gpus()
    now += 0.2
    assert smi.gpus()
