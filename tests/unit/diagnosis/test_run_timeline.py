"""Seconds and steps of a run: only what its log shows, each step once."""

# ruff: noqa: E501 (lines of logs are as long as they are)

from pathlib import Path

import pytest

from dist3dgs.cli.logs import run_import, run_read
from dist3dgs.diagnosis.run_timeline import main_series
from dist3dgs.diagnosis.scan import scan
from dist3dgs.diagnosis.summary import read_logs
from dist3dgs.logs.step_formats import FORMATS
from dist3dgs.logs.step_series import ProgressLine, StepSeries
from dist3dgs.runs.record import load_record

TQDM = next(f for f in FORMATS if f.name == "tqdm")
MEGATRON = next(f for f in FORMATS if f.name == "megatron")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def nerfstudio(first: int, num_steps: int) -> str:
    """The ten-row table, drawn anew with every row; the first half of the run is four times as fast."""
    rows = []
    out = []
    for step in range(0, num_steps, 10):
        ms = 10.0 if step < num_steps // 2 else 40.0
        rows.append(
            f"{step} ({100 * step / num_steps:.2f}%)          {ms:.3f} ms            1 m, 2 s             12.50 M"
        )
        if step >= first:
            out.append("\r\x1b[14A\x1b[1K\rStep (% Done)       Train Iter (time)\x1b[0m")
            out += [f"{row}       \x1b[0m" for row in rows[-10:]]
    return "\n".join([*out, f"{num_steps - 1} ({100 * (num_steps - 1) / num_steps:.2f}%)    \x1b[0m"]) + "\n"


def megatron(steps: range, total: int, ms: float) -> str:
    row = " iteration {:8d}/ {:7d} | consumed samples: 1 | elapsed time per iteration (ms): {} | lm loss: 2.1 |\n"
    return "".join(row.format(i, total, ms) for i in steps)


def test_rows_drawn_again_count_once_each(tmp_path: Path) -> None:
    found = scan([write(tmp_path / "a.log", nerfstudio(0, 2000))])
    series = main_series(found)
    assert series is not None and series.count == 201 and len(series.seconds) == 198
    step_s = series.step_time()
    # Counted as often as they are drawn, the rows would not be half fast and half slow.
    assert step_s is not None and step_s.mean == pytest.approx((98 * 0.010 + 100 * 0.040) / 198)
    assert (step_s.p5, step_s.p95) == (0.010, 0.040)


def test_a_step_counts_once_however_often_it_is_shown() -> None:
    series = StepSeries(MEGATRON, 10_000)
    for top in range(200):
        for row in range(max(0, top - 9), top + 1):
            for _rank in range(2):
                series.add(ProgressLine(row * 10, 10_000, seconds=1.0))
    assert (series.count, series.restarts, series.num_steps) == (200, 0, 1990)


def test_a_log_with_its_beginning_cut_off_states_no_seconds_of_the_run(tmp_path: Path) -> None:
    whole = read_logs([write(tmp_path / "whole.log", nerfstudio(0, 7000))])
    assert (whole.iterations, whole.iterations_asked, whole.steps_shown) == (7000, 7000, None)
    assert whole.phases_s["stepping"] == pytest.approx(7000 * 0.025, rel=0.01)
    cut = write(tmp_path / "cut.log", nerfstudio(5600, 7000))
    s = read_logs([cut])
    assert (s.iterations, s.iterations_asked) == (7000, 7000)
    assert s.step_s is None and "stepping" not in s.phases_s and not s.throughput
    assert s.steps_shown == (5510, 6999) and s.reasons["step_s"] == "only steps 5510-6999 are shown"
    assert s.step_s_shown is not None and s.step_s_shown.mean == pytest.approx(0.040)
    assert run_import([cut], scene="garden", layout="n1g1", results=tmp_path) == 0
    record = load_record(tmp_path / "garden" / "imported" / "n1g1" / "r0" / "record.json")
    m = record.metrics
    assert (m.steps, m.train_s, m.step_s, m.steps_per_s) == (7000, None, None, None)
    assert "step" not in m.phases_s and record.reasons["step_s"].startswith("only steps")


def test_a_log_that_begins_at_a_resumed_step(tmp_path: Path) -> None:
    s = read_logs([write(tmp_path / "a.log", megatron(range(43_600, 43_680, 10), 311_541, 25_000.0))])
    assert (s.iterations, s.iterations_asked, s.steps_shown) == (43_670, 311_541, (43_600, 43_670))
    assert s.step_s is None and "stepping" not in s.phases_s
    one = read_logs([write(tmp_path / "b.log", megatron(range(43_680, 43_690, 10), 311_541, 25_000.0))])
    assert "stepping" not in one.phases_s and one.steps_shown == (43_680, 43_680)


def test_a_log_with_a_hole_in_the_middle(tmp_path: Path) -> None:
    rows = megatron(range(0, 100), 1000, 20.0) + "...\n" + megatron(range(900, 1001), 1000, 60.0)
    s = read_logs([write(tmp_path / "a.log", rows)])
    assert s.iterations == 1000 and "stepping" not in s.phases_s and s.step_s is None
    rows = megatron(range(0, 500), 1000, 20.0) + "...\n" + megatron(range(570, 1001), 1000, 60.0)
    s = read_logs([write(tmp_path / "b.log", rows)])
    assert s.step_s is not None and s.phases_s["stepping"] == pytest.approx(931 * s.step_s.mean)


def test_the_mean_times_the_steps_counts_the_first_rows_stride(tmp_path: Path) -> None:
    s = read_logs([write(tmp_path / "a.log", megatron(range(100, 1001, 100), 1000, 20.0))])
    assert s.phases_s["stepping"] == pytest.approx(20.0)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_bar_that_begins_again_for_every_epoch_adds_up(tmp_path: Path, epochs: int) -> None:
    bars = "".join(
        f"\rEpoch {e}: {n}%|###| {n}/100 [00:{n // 2:02d}<00:50,  2.00it/s, v_num=0]"
        for e in range(epochs)
        for n in range(0, 101, 5)
    )
    s = read_logs([write(tmp_path / "a.log", bars + "\n`Trainer.fit` stopped: `max_epochs=3` reached.\n")])
    assert s.iterations == 100 * epochs and s.phases_s["stepping"] == 50.0 * epochs
    assert s.iterations_asked == (100 if epochs == 1 else None)


def test_a_bar_of_another_rank_is_no_new_epoch() -> None:
    series = StepSeries(TQDM, 100)
    for epoch in range(2):
        for n in range(0, 101, 10):
            series.add(ProgressLine(n, 100, seconds=0.5, elapsed_s=n / 2))
        if epoch == 0:
            series.add(ProgressLine(0, 100, seconds=0.5, elapsed_s=0.0))
            series.add(
                ProgressLine(100, 100, seconds=0.5, elapsed_s=50.0)
            )  # the slower rank's end of the first epoch
    assert (series.num_steps, series.stepping_s()) == (200, 100.0)


def test_a_bar_that_a_resumed_run_begins_in_the_middle() -> None:
    series = StepSeries(TQDM, 30_000)
    for n in range(7000, 30_001, 100):
        series.add(ProgressLine(n, 30_000, seconds=0.02, elapsed_s=(n - 7000) * 0.02))
    assert series.num_steps == 30_000 and not series.covers_run
    cut = StepSeries(TQDM, 30_000)  # the clock ran before the first row that is there
    for n in range(24_000, 30_001, 100):
        cut.add(ProgressLine(n, 30_000, seconds=0.02, elapsed_s=n * 0.02))
    assert cut.covers_run and cut.stepping_s() == 600.0


def test_a_run_that_repeats_steps_after_a_crash() -> None:
    series = StepSeries(MEGATRON, 1000)
    for n in [*range(0, 641), *range(500, 1001)]:
        series.add(ProgressLine(n, 1000, seconds=1.0))
    assert series.num_steps == 1000 and series.stepping_s() == pytest.approx(641 + 501)


def test_two_ranks_logs_are_no_restart(tmp_path: Path) -> None:
    logs = [write(tmp_path / f"rank{r}.log", megatron(range(1, 1001), 1000, 20.0)) for r in range(2)]
    s = read_logs(logs)
    assert s.iterations == 1000 and s.phases_s["stepping"] == pytest.approx(20.0)


def test_the_total_is_read_from_the_percentage() -> None:
    nerf = next(f for f in FORMATS if f.name == "nerfstudio")

    def total(*rows: tuple[int, float]) -> int | None:
        series = StepSeries(nerf)
        for step, percent in rows:
            series.add(ProgressLine(step, percent=percent))
        return series.stated_total

    assert total((6990, 99.86), (6999, 99.99)) == 7000
    assert total((5000, 16.67)) == 30_000  # of 29,991 to 30,008 the round one
    assert total((0, 0.0)) is None and total((10, 0.03)) is None


def test_step_times_from_the_times_on_the_lines(tmp_path: Path) -> None:
    row = "2025-01-01 {:02d}:{:02d}:{:02d} step {}/6000 loss 0.1\n"
    times = [(n, 36_000 + n // 10 * 2) for n in range(0, 6001, 10)]
    s = read_logs(
        [write(tmp_path / "a.log", "".join(row.format(t // 3600, t // 60 % 60, t % 60, n) for n, t in times))]
    )
    assert s.step_s_kind == "between lines" and s.step_s is not None
    assert (s.step_s.median, s.step_s.mean) == (0.2, 0.2)
    assert s.phases_s["stepping"] == 1200.0 and s.total_s == 1200.0


def test_seconds_of_evaluations_that_lines_state(tmp_path: Path) -> None:
    log = (
        "".join(f"[rank{r}]: Evaluation time: 35.{e} s\n" for e in range(3) for r in range(2))
        + "Eval took 35.0 s\n"
    )
    assert read_logs([write(tmp_path / "a.log", log)]).phases_s["evaluation"] == pytest.approx(105.3)
    many = "".join(f"Evaluation time: 35.{e} s\n" for e in range(200))
    assert "evaluation" not in read_logs([write(tmp_path / "b.log", many)]).phases_s


def test_a_rendered_path_is_evaluation(tmp_path: Path) -> None:
    log = "Rendering trajectory: 10%|# | 24/240 [00:01<00:09, 23.10it/s]\nRendering trajectory: 100%|##| 240/240 [00:10<00:00, 23.10it/s]\n"
    assert read_logs([write(tmp_path / "a.log", log)]).phases_s == {"evaluation": 10.0}


def test_gsplats_own_statistics_files(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train_step29999_rank0.json", '{"mem": 5.63, "ellipse_time": 612.3, "num_GS": 3456789}'
    )
    write(tmp_path / "train_step29999_rank1.json", '{"mem": 6.63, "ellipse_time": 611.3, "num_GS": 3456789}')
    val = write(
        tmp_path / "val_step29999.json",
        '{"psnr": 27.234, "ssim": 0.8654, "lpips": 0.098, "ellipse_time": 0.006, "num_GS": 3456789}',
    )
    s = read_logs([train, tmp_path / "train_step29999_rank1.json", val])
    assert (s.trainer, s.iterations, s.devices_used, s.gpu_peak_gib) == ("gsplat", 30_000, 2, 6.63)
    assert s.phases_s == {"stepping": 612.3} and s.quality["psnr"] == 27.234
    assert "stepping" not in read_logs([val]).phases_s


def test_epochs_and_their_seconds(tmp_path: Path) -> None:
    row = "2025-01-01 10:{:02d}:00 Epoch {}/10 - loss: 0.5 - time: 60.0s - throughput: 120.5 samples/s\n"
    s = read_logs([write(tmp_path / "a.log", "".join(row.format(e, e) for e in range(1, 11)))])
    assert s.epochs == 10 and s.phases_s["stepping"] == pytest.approx(600.0)
    assert s.total_s is None and "600 s" in s.reasons["total_s"]  # the times on the lines are 540 s apart
    assert (
        s.throughput[0].unit == "samples/s" and s.reasons["iterations"] == "the log counts epochs, not steps"
    )


def test_metrics_with_epochs_from_zero(tmp_path: Path) -> None:
    text = "Epoch,Epoch Time (s),Train Accuracy,Test Accuracy,Samples/sec\n0,55.0,0.11,0.10,900\n1,50.0,0.19,0.18,990\n2,51.0,0.21,0.20,990\n"
    s = read_logs([write(tmp_path / "metrics.csv", text)])
    assert s.epochs == 3 and s.phases_s["stepping"] == pytest.approx(156.0)
    assert (s.throughput[0].unit, s.throughput[0].mean) == ("samples/s", 960.0)
    late = read_logs([write(tmp_path / "late.csv", "epoch,epoch_time\n9,50.0\n10,50.0\n")])
    assert late.epochs == 10 and late.steps_shown == (9, 10) and "stepping" not in late.phases_s


def test_a_wrapper_around_another_trainer_is_not_all_environment(tmp_path: Path) -> None:
    log = write(
        tmp_path / "a.log",
        "Start: Thu Dec 11 05:13:21 AM CST 2025\nhello\nEnd: Thu Dec 11 05:23:21 AM CST 2025\n",
    )
    assert read_logs([log]).phases_s == {} and read_logs([log]).total_s == 600


def test_text_says_what_is_known_and_why_the_rest_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "job.out", nerfstudio(5600, 7000) + "nerfstudio.engine.trainer\n")
    smi = write(
        tmp_path / "gpu.csv",
        "timestamp, index, name, memory.used [MiB], power.draw [W]\n"
        + "".join(f"2025/12/11 05:13:0{s}.000, 0, NVIDIA A100, 2048 MiB, 200.00 W\n" for s in range(5)),
    )
    (tmp_path / "empty.err").write_bytes(b"")
    assert run_read([log, smi, tmp_path / "empty.err", tmp_path / "missing.log"], False) == 0
    text = capsys.readouterr().out
    for part in ("trainer          nerfstudio", "iterations       7,000 of 7,000", "median 40 ms", "only of steps 5,510 to 6,999",
                 "NVIDIA A100", "memory peak 2.00, average 2.00, mode 2.00 GiB", "power 200 W, energy 0.222 Wh, 5 samples over 4.0 s",
                 "empty.err: the file is empty", "missing.log: no such file", "  stepping       only steps 5510-6999", "  quality        no PSNR"):  # fmt: skip
        assert part in text, text
    assert "\n  step_s " in text and "step_s           " not in text.split("not known")[0]
    capsys.readouterr()
    run_read([write(tmp_path / "quiet.log", "hello\n")], False)
    assert "\nstep time" not in capsys.readouterr().out
