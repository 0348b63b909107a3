"""Tables of samples: nvidia-smi, our own resources, psrecord; each number on a file composed here."""

# ruff: noqa: E501 (lines of logs are as long as they are)

import math
from pathlib import Path

import pytest

from dist3dgs.diagnosis.summary import read_logs
from dist3dgs.logs.csv_columns import Table
from dist3dgs.logs.facts import Facts
from dist3dgs.logs.lines import BLOCK_BYTES
from dist3dgs.logs.readers import metrics_csv, nvidia_smi, psrecord, resources
from dist3dgs.monitoring.sampler import COLUMNS


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def smi(path: Path, columns: str, rows: list[str]) -> Path:
    return write(path, "\n".join([columns, *rows] if columns else rows) + "\n")


def test_numbers_of_a_column() -> None:
    text = b"1,2\n 1024 MiB, 90 %\n12.50,1e-05\n-3,nan\n[N/A],0007\n,5x\ntorn\n1,2,3\n123456789012345678,.5\n"
    table = Table.of(text, 2)
    first, second = (table.numbers(c).tolist() for c in (0, 1))
    assert (
        first[:4] == [1, 1024, 12.5, -3]
        and all(map(math.isnan, first[4:6]))
        and first[6] == float(123456789012345678)
    )
    assert second[:3] == [2, 90, 1e-05] and math.isnan(second[3]) and second[4] == 7 and math.isnan(second[5])
    assert second[6] == 0.5
    assert table.rows.tolist() == [0, 1, 2, 3, 4, 5, 8]


def test_times_of_a_column() -> None:
    table = Table.of(
        b"2025/12/31 23:59:59.500, 1\n2026/01/01 00:00:00.250, 1\nno time at all or so, 1\nx, 1", 2
    )
    a, b, c, d = table.clock(0).tolist()
    assert b - a == 0.75 and math.isnan(c) and math.isnan(d)
    assert a == 1767225599.5


def test_gpus_of_several_nodes_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "n2").mkdir()
    columns = "index, utilization.gpu [%], memory.used [MiB]"
    files = [smi(tmp_path / "n1.csv", columns, ["0, 90 %, 1024 MiB"]), smi(tmp_path / "n2.csv", columns, ["0, 80 %, 2048 MiB"]),
             smi(tmp_path / "n2" / "n2.csv", columns, ["0, 80 %, 3072 MiB"])]  # fmt: skip
    s = read_logs(files)
    assert {g.gpu: g.memory_peak_gib for g in s.gpus} == {"n1:0": 1.0, "n2:0": 2.0, "n2/n2:0": 3.0}
    assert s.gpu_peak_gib == 3.0 and s.devices_used == 3


def test_gpus_without_an_index_are_numbered_within_a_sample(tmp_path: Path) -> None:
    rows = [
        f"2025/12/11 05:13:{t:02d}.{g}23, NVIDIA A100, {90 - 80 * g} %, {1024 + 7168 * g} MiB"
        for t in range(10)
        for g in (0, 1)
    ]
    s = read_logs([smi(tmp_path / "a.csv", "timestamp, name, utilization.gpu [%], memory.used [MiB]", rows)])
    assert [(g.gpu, g.name, g.memory_peak_gib, g.utilisation_average_percent) for g in s.gpus] == [
        ("0", "NVIDIA A100", 1.0, 90),
        ("1", "NVIDIA A100", 8.0, 10),
    ]
    timeless = [row.split(", ", 1)[1] for row in rows]
    s = read_logs([smi(tmp_path / "b.csv", "name, utilization.gpu [%], memory.used [MiB]", timeless)])
    assert [g.gpu for g in s.gpus] == ["all GPUs"]
    bare = [row.split(", ", 1)[1] for row in timeless]
    s = read_logs([smi(tmp_path / "c.csv", "utilization.gpu [%], memory.used [MiB]", bare)])
    assert [(g.gpu, g.memory_peak_gib) for g in s.gpus] == [("all GPUs", 8.0)]
    mixed = [*timeless, "Tesla T4, 1 %, 10 MiB"]
    s = read_logs([smi(tmp_path / "d.csv", "name, utilization.gpu [%], memory.used [MiB]", mixed)])
    assert [g.gpu for g in s.gpus] == ["all NVIDIA A100", "all Tesla T4"]


def test_numbering_goes_on_across_blocks(tmp_path: Path) -> None:
    rows = [
        f"2025/12/11 {t // 3600:02d}:{t // 60 % 60:02d}:{t % 60:02d}.{g}00, {g * 10} %, {1024 * (g + 1)} MiB"
        for t in range(10_000)
        for g in range(3)
    ]
    path = smi(tmp_path / "a.csv", "timestamp, utilization.gpu [%], memory.used [MiB]", rows)
    assert path.stat().st_size > BLOCK_BYTES
    s = read_logs([path])
    assert [(g.gpu, g.num_samples, g.memory_average_gib) for g in s.gpus] == [
        (str(i), 10_000, i + 1.0) for i in range(3)
    ]
    assert s.total_s == pytest.approx(9999, abs=1)


@pytest.mark.parametrize("order", ["used first", "total first"])
def test_the_larger_of_two_memories_is_the_total(tmp_path: Path, order: str) -> None:
    rows = []
    for mib in (1024, 2048):
        sizes = (f"{mib} MiB", "81920 MiB")
        a, b = sizes if order == "used first" else sizes[::-1]
        rows.append(f"0, NVIDIA A100, 90 %, {a}, {b}")
    s = read_logs([smi(tmp_path / "a.csv", "", rows)])
    assert s.gpus[0].memory_peak_gib == 2.0 and s.gpus[0].name == "NVIDIA A100"


def test_rows_without_header_and_units_are_named_and_not_guessed(tmp_path: Path) -> None:
    s = read_logs([smi(tmp_path / "a.csv", "", ["2025/12/11 05:13:00.123, 0, 90, 1000, 300.1"])])
    assert s.files[0].format == "nvidia-smi" and "without header" in (s.files[0].note or "") and not s.gpus


def test_power_is_integrated_over_the_times(tmp_path: Path) -> None:
    watts = [100.0, 300.0, 300.0, 100.0]
    rows = [f"2025/12/11 23:59:{50 + 5 * i:02d}.000, 0, {w:.2f} W" for i, w in enumerate(watts[:2])]
    rows += [f"2025/12/12 00:00:{5 * i:02d}.000, 0, {w:.2f} W" for i, w in enumerate(watts[2:])]
    rows.append("2025/12/12 02:00:00.000, 0, 900.00 W")  # two hours of which nobody knows
    s = read_logs([smi(tmp_path / "a.csv", "timestamp, index, power.draw [W]", rows)])
    assert s.gpus[0].energy_wh == pytest.approx((1000 + 1500 + 1000) / 3600)
    assert (
        s.gpus[0].power_average_w == pytest.approx(340.0)
        and s.gpus[0].seconds == 7210.0
        and s.total_s == 7210.0
    )


def test_our_own_resource_samples(tmp_path: Path) -> None:
    rows = [",".join(COLUMNS)]
    for i, pss in enumerate((1.0, 3.0, 2.0)):
        for gpu in (0, 1):
            row = {"t": 100.0 + 2 * i, "node": "g01", "cpu_percent": 150 + 50 * i, "rss_gib": 9, "pss_gib": pss, "page_cache_gib": 50,
                   "gpu_index": gpu, "gpu_mem_gib": 4.0 * (gpu + 1) + i, "gpu_util_percent": 80 + i, "gpu_power_w": 200 + 100 * i}  # fmt: skip
            rows.append(",".join(str(row.get(c, "")) for c in COLUMNS))
    path = write(tmp_path / "resources.g01.csv", "\n".join(rows) + "\n104,g01,1")
    n = resources.read(path)
    assert (n.node, n.num_samples, n.peak_pss_gib, n.pss_sum_gib, n.cpu_sum) == ("g01", 3, 3.0, 6.0, 600.0)
    s = read_logs([path])
    assert s.host_peak_gib == 3.0 and s.total_s == 4.0
    (host,) = s.hosts
    assert (host.host, host.memory_average_gib, host.cpu_average_percent) == ("g01", 2.0, 200.0)
    assert [
        (g.gpu, g.memory_peak_gib, g.memory_average_gib, g.utilisation_average_percent) for g in s.gpus
    ] == [
        ("g01:0", 6.0, 5.0, 81.0),
        ("g01:1", 10.0, 9.0, 81.0),
    ]
    assert s.gpus[0].energy_wh == pytest.approx((500 + 700) / 3600) and s.gpus[0].power_average_w == 300.0
    bare = write(
        tmp_path / "resources.n.csv",
        ",".join(COLUMNS) + "\n1.0,n,5,1,0.5,2" + "," * (len(COLUMNS) - 6) + "\n",
    )
    assert read_logs([bare]).host_peak_gib == 0.5 and not read_logs([bare]).gpus


def test_psrecord_averages(tmp_path: Path) -> None:
    rows = "# Elapsed time   CPU (%)     Real (MB)   Virtual (MB)\n" + "".join(
        f"{t:12.3f} {100 + t:12.3f} {1024 * (t + 1):12.3f} {2000:12.3f}\n" for t in range(3)
    )
    for text in (rows, rows + "   3.000   1.2.3   1  1\n    4.0  9"):  # whole; torn
        s = read_logs([write(tmp_path / "a.txt", text)])
        (host,) = s.hosts
        assert (host.memory_peak_gib, host.memory_average_gib) == (3.0, 2.0)
        assert (host.cpu_average_percent, host.cpu_peak_percent, host.num_samples) == (101.0, 102.0, 3)
        assert s.total_s == 2.0


@pytest.mark.slow
def test_a_long_metrics_csv_keeps_its_course(tmp_path: Path) -> None:
    text = "step,time,loss\n" + "".join(f"{i},0.5,{1 / (i + 1)}\n" for i in range(300_000))
    series = metrics_csv.read(write(tmp_path / "metrics.csv", text), Facts())
    assert (series.first, series.last) == (0, 299_999) and series.covers_run and series.sampled
    assert 130_000 < series.count < 200_000
    step_s = series.step_time()
    assert step_s is not None and step_s.median == 0.5


def test_files_of_one_kind_are_known_by_their_heads() -> None:
    assert nvidia_smi.sniff("2025/12/11 05:13:00.123, 0, 90, 1000, 300.1")
    assert nvidia_smi.sniff("2025/12/11 05:13:00.123, 0, 90 %, 1000 MiB, 300.10 W")
    assert not nvidia_smi.sniff("2025/12/11 05:13:00.123, worker 3, says hello")
    assert not nvidia_smi.sniff("epoch,time,loss") and not psrecord.sniff("epoch,time")
