"""Samples of real processes."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist3dgs.monitor import Monitor, _parse_gpu, peak_pss_gib, resources_path, start_beside

#: Holds 200 MiB and burns a core for a while, in a child of its own child.
BUSY = """
import subprocess, sys
code = "import time; x = bytearray(200 << 20); t = time.time()\\nwhile time.time() < t + {s}: sum(range(10000))"
sys.exit(subprocess.call([sys.executable, "-c", code]))
"""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_the_whole_tree_is_seen(tmp_path: Path) -> None:
    path = resources_path(tmp_path, "node1")
    process = subprocess.Popen([sys.executable, "-c", BUSY.replace("{s}", "2.5")])
    monitor = Monitor(process.pid, path, "node1", interval_s=0.2).start()
    process.wait()
    monitor.stop()
    samples = rows(path)
    assert len(samples) >= 4
    assert max(float(r["pss_gib"]) for r in samples) > 0.19
    assert max(float(r["cpu_percent"]) for r in samples) > 15
    assert (peak_pss_gib([path]) or 0) > 0.19
    assert all((r["node"] == "node1" and r["gpu_index"] == "") or r["gpu_index"].isdigit() for r in samples)


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
    assert _parse_gpu("3, 2048, 97, 345.21") == {
        "gpu_index": 3, "gpu_mem_gib": 2.0, "gpu_util_percent": 97.0, "gpu_power_w": 345.21,
    }  # fmt: skip
    assert (_parse_gpu("0, [N/A], [N/A], [N/A]") or {})["gpu_mem_gib"] is None
    assert _parse_gpu("No devices were found") is None


def test_sampling_costs_less_than_one_percent_of_a_core(tmp_path: Path) -> None:
    monitor = Monitor(os.getpid(), tmp_path / "r.csv", "n")
    monitor._sample()
    started = time.process_time()
    for _ in range(10):
        monitor._sample()
    assert (time.process_time() - started) / 10 / monitor.interval_s < 0.01


def test_costly_samples_are_taken_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node where a sample takes 20 ms of a core the next one is 2 s later, however short the interval."""

    def costly(self: Monitor) -> dict[str, float]:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return {"cpu_percent": 0.0, "rss_gib": 0.0, "pss_gib": 0.0}

    monkeypatch.setattr(Monitor, "_tree", costly)
    monitor = Monitor(os.getpid(), tmp_path / "r.csv", "n", interval_s=0.01).start()
    time.sleep(1)
    monitor.stop()
    assert len(rows(tmp_path / "r.csv")) == 1
