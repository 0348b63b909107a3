"""Each reader on a log of its format, composed here."""

# ruff: noqa: E501 (lines of logs are as long as they are)

import json
from pathlib import Path

import pytest

from dist3dgs.cli.logs import run_diagnose, run_import, run_read
from dist3dgs.diagnosis.summary import read_logs
from dist3dgs.errors import UserError
from dist3dgs.logs.lines import clean, read_blocks
from dist3dgs.logs.timestamps import Clock
from dist3dgs.runs.record import load_record

LOGS = Path(__file__).parents[2] / "data" / "logs"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def nerfstudio_table(num_steps: int, step_ms: float) -> str:
    """A table of ten rows that is redrawn with every new row, as rich does it."""
    out, rows = [], []
    for step in range(0, num_steps, 10):
        time = "4 m, 9 s" if step == 0 else "22 s, 645.554 ms" if step == 10 else f"{step_ms:.3f} ms"
        rows.append(
            f"{step} ({100 * step / num_steps:.2f}%)          {time}            1 m, 2 s             12.50 M"
        )
        out.append(
            "\r\x1b[14A\x1b[1K\rStep (% Done)       Train Iter (time)    ETA (time)           Train Rays / Sec   \x1b[0m"
        )
        out += [f"{row}                         \x1b[0m" for row in rows[-10:]]
        out.append(
            "---------------------------------------------------------------------------------------------------- \x1b[0m"
        )
    out.append(
        f"{num_steps - 1} (99.99%)                                                                                 \x1b[0m"
    )
    return "\n".join(out) + "\n"


def test_nerfstudio_console_counts_each_step_once(tmp_path: Path) -> None:
    log = write(
        tmp_path / "splat_881234.out",
        "Start: Thu Dec 11 05:13:21 AM CST 2025\nNode: gpu-amp-7\n"
        "    machine=MachineConfig(seed=42, num_devices=1, num_machines=1, machine_rank=0, dist_url='auto')\n"
        "    max_num_iterations=2000,\n"
        "[05:13:59] Caching / undistorting eval images      full_images_datamanager.py:230\n"
        "[05:14:06] Caching / undistorting train images     full_images_datamanager.py:230\n"
        "[05:18:15] Printing max of 10 lines. Set flag      writer.py:449\n"
        + nerfstudio_table(2000, 40.0)
        + "Step 600: 10 GSs duplicated, 20 GSs split. Now having 89895 GSs.\nStep 700: 5 GSs pruned. Now having 88420 GSs.\n"
        "╭──── 🎉 Training Finished 🎉 ────╮\nDuration: 420 seconds (7 minutes)\n",
    )
    s = read_logs([log])
    assert (s.job_id, s.nodes, s.devices_used, s.iterations, s.iterations_asked) == (
        "881234",
        ["gpu-amp-7"],
        1,
        2000,
        2000,
    )
    assert s.step_s is not None
    assert s.step_s.median == pytest.approx(0.040) and s.step_s.mean == pytest.approx(0.040)
    assert (
        s.phases_s["environment"] == 38 and s.phases_s["caching_eval"] == 7 and s.phases_s["caching"] == 249
    )
    assert s.phases_s["stepping"] == pytest.approx(80.0)
    assert sum(s.phases_s.values()) == pytest.approx(420)
    assert s.num_gaussians == 88420
    assert s.throughput[0].unit == "rays/s" and s.throughput[0].mean == pytest.approx(12.5e6)
    assert s.quality == {} and s.reasons["quality"]


def test_tqdm_of_gsplat_and_its_own_numbers(tmp_path: Path) -> None:
    bars = "".join(
        f"\rloss=0.1| sh degree=3| :  {n // 300}%|###       | {n}/30000 [{n // 3000:02d}:{(n // 50) % 60:02d}<10:00, {50:.2f}it/s]"
        for n in range(0, 30001, 100)
    )
    log = write(
        tmp_path / "train.log",
        "Loading checkpoint shards: 100%|##########| 2/2 [00:15<00:00,  7.91s/it]\n"
        "Model initialized. Number of GS: 54275\n" + bars + "\n"
        "Step:  29999 {'mem': 5.63, 'ellipse_time': 612.3, 'num_GS': 3456789}\n"
        "PSNR: 25.234, SSIM: 0.7654, LPIPS: 0.198 Time: 0.013s/image Number of GS: 3456789\n",
    )
    s = read_logs([log])
    assert s.iterations == 30000
    assert s.quality == {"psnr": 25.234, "ssim": 0.7654, "lpips": 0.198}
    assert s.num_gaussians == 3456789 and s.gpu_peak_gib == 5.63
    assert s.phases_s["stepping"] == 612.3
    assert s.step_s is not None and s.step_s.median == pytest.approx(0.02)


def test_workshop_epochs(tmp_path: Path) -> None:
    log = write(
        tmp_path / "epochs.log",
        "".join(
            f"Epoch [{i}/3] LR: 0.001000 | Loss (train, val): {6 - i}.149, 5.664 | Accuracy (train, val): {i}.16%, 0.98% | "
            f"Throughput: {700 + i}.9 img/s\n"
            for i in (1, 2, 3)
        ),
    )
    s = read_logs([log])
    assert s.epochs == 3 and s.finished is not None
    assert (
        s.quality["loss"] == 3.149 and s.quality["train_accuracy"] == 3.16 and s.quality["accuracy"] == 0.98
    )
    (rate,) = s.throughput
    assert rate.unit == "img/s" and rate.mean == pytest.approx(702.9) and rate.last == pytest.approx(703.9)


def test_metrics_csv(tmp_path: Path) -> None:
    log = write(
        tmp_path / "metrics.csv",
        "epoch,epoch_time (s),train_loss,val_acc\n1,10.0,2.5,31.0\n2,12.0,2.0,38.5\n3,11.0,nan,40.5\ntorn,",
    )
    s = read_logs([log])
    assert s.epochs == 3 and s.step_s_kind == "per epoch"
    assert s.step_s is not None and s.step_s.median == 11.0 and s.step_s.mean == 11.0
    assert s.quality == {"loss": 2.0, "accuracy": 40.5}


@pytest.mark.parametrize("header", [True, False])
def test_nvidia_smi_csv(tmp_path: Path, header: bool) -> None:
    rows = [f"2025/12/11 05:13:{s:02d}.000, {gpu}, {90 if gpu == 0 else 0} %, {m} MiB, 200.50 W" for s, m in enumerate((1024, 2048, 2048, 4096)) for gpu in (0, 1)]  # fmt: skip
    first = "timestamp, index, utilization.gpu [%], memory.used [MiB], power.draw [W]\n" if header else ""
    log = write(tmp_path / "gpu.csv", first + "\n".join(rows) + "\n2025/12/11 05:14:00.000, 0, 9")
    if not header:
        log.write_text(
            "\n".join(r.replace(", 0, ", ", 0, NVIDIA A100, ", 1) for r in rows if ", 0, " in r),
            encoding="utf-8",
        )
    s = read_logs([log])
    gpu = s.gpus[0]
    assert (gpu.gpu, gpu.num_samples) == ("0", 4)
    assert (gpu.memory_peak_gib, gpu.memory_average_gib, gpu.memory_mode_gib) == (4.0, 2.25, 2.0)
    assert gpu.utilisation_average_percent == 90 and gpu.power_average_w == pytest.approx(200.5)
    if header:
        assert s.devices_used == 1  # the other one never worked


def test_psrecord(tmp_path: Path) -> None:
    text = "# Elapsed time   CPU (%)     Real (MB)   Virtual (MB)\n       0.000       10.0      512.0     2000.0\n       1.000      190.0     2048.0     4000.0\n    2.0  1"
    s = read_logs([write(tmp_path / "activity.txt", text)])
    assert s.host_peak_gib == 2.0


def test_sacct_tables_and_seff(tmp_path: Path) -> None:
    table = (
        "JobID|JobName|State|ExitCode|Elapsed|MaxRSS|NodeList|AllocTRES\n"
        "4410|room-n2g2|COMPLETED|0:0|1-00:31:40||g[03-04]|cpu=16,gres/gpu=4,node=2\n"
        "4410.batch|batch|COMPLETED|0:0|1-00:31:40|18874368K|g03|cpu=16,gres/gpu=2,node=1\n"
    )
    s = read_logs([write(tmp_path / "sacct.txt", table)])
    assert (s.job_id, s.job_name, s.nodes, s.devices_asked) == ("4410", "room-n2g2", ["g03", "g04"], 4)
    assert s.total_s == 86400 + 1900 and s.host_peak_gib == 18.0
    columns = (
        "JobID           JobName      State ExitCode    Elapsed \n------------ ---------- ---------- -------- ---------- \n"
        "551            splat-8    TIMEOUT      0:0   04:00:14 \n"
    )
    s = read_logs([write(tmp_path / "columns.txt", columns)])
    assert (s.job_id, s.job_name, s.total_s) == ("551", "splat-8", 14414)


def test_own_events(tmp_path: Path) -> None:
    def event(t: float, kind: str, rank: int = 0, **fields: object) -> str:
        return json.dumps({"t": t, "rank": rank, "event": kind, **fields}) + "\n"

    text = event(100, "start", world_size=2, host="n1", device="cpu") + event(
        100, "start", 1, world_size=2, host="n2", device="cpu"
    )
    text += event(101, "leave", phase="load", s=1.0) + event(
        103, "step", step=50, loss=0.2, num_gaussians=900, step_s=0.04
    )
    text += event(104, "eval", step=50, elapsed_s=2.0, psnr=21.5, ssim=0.7, lpips=None)
    text += event(
        105,
        "timing",
        phases_s={"load": 1.0, "step": 2.0},
        step_s={"median": 0.04, "mean": 0.041, "p5": 0.03, "p95": 0.05},
        steps=50,
        images=100,
    )
    text += (
        event(105, "memory", peak_rss_gib=1.5, peak_gpu_gib=None)
        + event(106, "end", status="ok", step=50)
        + '{"t": 107, "rank'
    )
    s = read_logs([write(tmp_path / "events.jsonl", text)])
    assert (s.trainer, s.devices_used, s.nodes, s.iterations, s.num_gaussians) == (
        "dist3dgs",
        2,
        ["n1", "n2"],
        50,
        900,
    )
    assert s.step_s is not None and s.step_s.mean == 0.041 and s.phases_s == {"load": 1.0, "step": 2.0}
    assert s.quality == {"loss": 0.2, "psnr": 21.5, "ssim": 0.7} and s.total_s == 6 and s.finished is not None

    def of_rank(rank: int) -> str:
        return "".join(line for line in text.splitlines(keepends=True) if f'"rank": {rank}' in line)

    # One file per node, in any order on the command line.
    several = read_logs([write(tmp_path / f"events.n{rank + 1}.jsonl", of_rank(rank)) for rank in (1, 0)])
    assert (sorted(several.nodes), several.iterations) == (s.nodes, s.iterations)
    assert several.quality == s.quality
    assert (several.total_s, several.finished is not None) == (6, True)
    assert [(f.format, f.lines) for f in several.files] == [("events", 1), ("events", 7)]


def test_slurm_environment_and_a_pair_of_files(tmp_path: Path) -> None:
    out = write(
        tmp_path / "j.out",
        "SLURM_JOB_ID=31958\nSLURM_GPUS_ON_NODE=4\nSLURM_NNODES=2\nSLURM_JOB_NODELIST=sci[01-02]\nworld_size: 8\n",
    )
    err = write(
        tmp_path / "j.err",
        "slurmstepd: error: *** JOB 31958 ON sci01 CANCELLED AT 2024-11-20T12:00:09 DUE TO TIME LIMIT ***\n",
    )
    s = read_logs([out, err, tmp_path / "missing.csv"])
    assert (s.job_id, s.devices_asked, s.devices_used, s.nodes) == ("31958", 8, 8, ["sci01", "sci02"])
    assert [f.format for f in s.files] == ["text", "text", "missing"]


def test_clocks() -> None:
    clock = Clock()
    start = clock.read("Start: Thu Dec 11 11:59:58 PM CST 2025")
    assert start is not None
    assert clock.read("[00:00:03] Caching") == start + 5
    assert clock.read("W1212 00:00:22.560000 579664 torch/x.py:169] Terminating") == start + 24.56
    assert Clock().read("2025-02-31 99:00:00") is None


def test_line_numbers_count_newlines_not_redraws(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"one\r\ntwo\rstill two\rtwo\nthree\n")
    (block,) = read_blocks(log)
    assert [(block.number(i), clean(x)) for i, x in enumerate(block.lines)] == [
        (1, "one"),
        (2, "two"),
        (2, "still two"),
        (2, "two"),
        (3, "three"),
    ]


def test_utf16_and_nuls_and_wrong_bytes(tmp_path: Path) -> None:
    wide = tmp_path / "wide.log"
    wide.write_bytes("RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB\n".encode("utf-16"))
    assert next(clean(x) for b in read_blocks(wide) for x in b.lines).endswith("1.00 GiB")
    odd = tmp_path / "odd.log"
    odd.write_bytes(b"a\0b\0c \xff\xfe end\n")
    assert [clean(x) for b in read_blocks(odd) for x in b.lines] == ["abc �� end"]


def test_numbers_across_blocks(tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    with log.open("wb") as f:
        for i in range(60_000):
            f.write(b"[2025-01-01 00:00:00] worker %d says hello %d\r\n" % (i % 8, i))
        f.write(b"RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB\n")
    from dist3dgs.diagnosis import diagnose

    verdict = diagnose([log])
    assert verdict.cause == "gpu_oom" and verdict.evidence[0].line == 60_001


def test_import_makes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = LOGS / "allocation_mismatch" / "nerfstudio-two-gpus.log"
    assert run_import([log], scene="garden", layout="n1g2", results=tmp_path) == 0
    record = load_record(tmp_path / "garden" / "imported" / "n1g2" / "r0" / "record.json")
    assert (
        record.status == "degraded"
        and record.failure is not None
        and record.failure.cause == "allocation_mismatch"
    )
    assert record.provenance.source == "imported" and record.provenance.slurm_job_id == "884213"
    assert all("/" not in e.file for e in record.failure.evidence)
    assert record.metrics.step_s is not None and record.metrics.steps == 60
    assert record.metrics.psnr is None and "quality" in record.reasons
    with pytest.raises(UserError, match="layout"):
        run_import([log], scene="garden", layout="4gpus", results=tmp_path)
    with pytest.raises(UserError, match="scene"):
        run_import([log], scene="../x", layout="n1g4", results=tmp_path)


def test_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_diagnose([LOGS / "gpu_oom" / "gsplat.log"], False) == 1
    text = capsys.readouterr().out
    assert text.startswith("failed: gpu_oom") and "Tried to allocate" in text and "fix:" in text
    assert run_diagnose([LOGS / "ok" / "torchrun.log"], True) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
    assert run_read([LOGS / "ok" / "workshop-epochs.log"], False) == 0
    assert "img/s" in capsys.readouterr().out
    assert run_read([LOGS / "ok" / "workshop-epochs.log"], True) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 3


def test_evaluation_is_a_phase_where_its_bars_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    bars = "".join(
        f"Epoch {e}: 100%|##| 100/100 [01:40<00:00, 1.00it/s]\nValidation: 10%|# | 1/10 [00:02<00:18, 2.00s/it]\n"
        "Validation: 100%|##| 10/10 [00:20<00:00, 2.00s/it]\n"
        for e in range(3)
    )
    log.write_text(bars)
    assert read_logs([log]).phases_s["evaluation"] == 60.0


@pytest.mark.slow
def test_step_times_of_a_sample_say_so(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    row = "step %d/400000 (1.0%%) | loss: 0.1000 | dt: %.2fms\n"
    log.write_text("".join(row % (i, 20 + i % 7) for i in range(1000)))
    assert not read_logs([log]).step_s_sampled
    log.write_text("".join(row % (i, 20 + i % 7) for i in range(190_000)))
    summary = read_logs([log])
    assert log.stat().st_size > 8 << 20 and summary.step_s_sampled
    assert summary.step_s is not None and abs(summary.step_s.median - 0.023) < 0.002
