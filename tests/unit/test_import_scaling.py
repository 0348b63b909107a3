"""Scaling studies of other programs: their logs become records, the records speedups, the page says whose they are."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from dist3dgs import cli
from dist3dgs.diagnose.readers import read_logs
from dist3dgs.errors import UserError
from dist3dgs.record import Provenance, RunRecord, load_record
from dist3dgs.report import write_report
from dist3dgs.scaling.journey import attempts, performance_comparison
from dist3dgs.scaling.points import point_rows
from dist3dgs.tabulate import tabulate

from .records import make_record

#: Throughput of each of three epochs, as the scaling tables of a workshop on ResNet-50 have the last.
THROUGHPUT = {
    1: (690.0, 700.2, 704.9),
    2: (1300.4, 1298.1, 1340.0),
    4: (2470.0, 2520.9, 2581.4),
    8: (4300.0, 4534.0, 4702.4),
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def workshop(gpus: int) -> str:
    """Print what the workshop's program and its wrapper do, line by line in their shapes."""
    rates = THROUGHPUT[gpus]
    losses = ((5.801, 5.702, 0.71, 0.80), (5.402, 5.700, 1.42, 0.91), (5.149, 5.664, 2.16, 0.98))
    lines = [
        f"Epoch [{i}/3] LR: 0.001000 | Loss (train, val): {a:.3f}, {b:.3f} | "
        f"Accuracy (train, val): {c:.2f}%, {d:.2f}% | Throughput: {rate:.1f} img/s"
        for i, (rate, (a, b, c, d)) in enumerate(zip(rates, losses, strict=True), 1)
    ]
    memory = [
        f"[gpu_memory_log - GPU {g}] Peak = {26532 - g} MiB, Avg = 22458.63 MiB, Mode = {26532 - g} MiB"
        for g in range(gpus)
    ]
    return "\n".join([*lines, "Total time : 00:09:55", *memory]) + "\n"


def put(tmp_path: Path, log: Path, layout: str, *flags: str, strategy: str = "resnet50") -> RunRecord:
    command = ["import", str(log), "--scene", "images", "--strategy", strategy, "--layout", layout]
    assert cli.main([*command, "--results", str(tmp_path / "results"), *flags]) == 0
    return load_record(tmp_path / f"results/images/{strategy}/{layout}/r0/record.json")


def imported(tmp_path: Path, *flags: str) -> list[RunRecord]:
    return [
        put(tmp_path, write(tmp_path / f"logs/{n}/train.log", workshop(n)), f"n1g{n}", *flags)
        for n in THROUGHPUT
    ]


def by_layout(records: list[RunRecord]) -> dict[str, dict[str, Any]]:
    return {row["layout"]: row for row in point_rows(records)}


def test_the_last_epoch_counts_unless_asked_otherwise(tmp_path: Path) -> None:
    first, *_ = records = imported(tmp_path)
    m = first.metrics
    assert first.status == "ok"
    assert (m.loss, m.train_accuracy, m.accuracy, m.images_per_s) == (5.149, 2.16, 0.98, 704.9)
    assert (m.epochs, m.total_s, first.run.settings["epoch_statistic"]) == (3, 595.0, "last")
    rows = by_layout(records)
    assert [round(rows[f"n1g{n}"]["speedup"], 3) for n in (2, 4, 8)] == [1.901, 3.662, 6.671]
    means = by_layout(imported(tmp_path, "--epochs", "mean"))
    assert [round(means[f"n1g{n}"]["speedup"], 3) for n in (2, 4, 8)] == [1.880, 3.614, 6.461]
    medians = by_layout(imported(tmp_path, "--epochs", "median"))
    assert medians["n1g2"]["speedup"] == pytest.approx(1300.4 / 700.2)


def test_memory_that_the_log_states_for_each_gpu(tmp_path: Path) -> None:
    record = put(tmp_path, write(tmp_path / "train.log", workshop(2)), "n1g2")
    assert [g.gpu for g in record.metrics.gpus] == ["0", "1"]
    gpu = record.metrics.gpus[0]
    assert gpu.memory_peak_gib == gpu.memory_mode_gib == 26532 / 1024
    assert gpu.memory_average_gib == pytest.approx(22458.63 / 1024)
    assert record.metrics.peak_gpu_gib == 26532 / 1024


def test_the_mode_is_a_sample_and_not_above_the_peak(tmp_path: Path) -> None:
    rows = [1, *[26532] * 5, *[26528] * 3, *[12000] * 6]
    text = "timestamp, index, memory.used [MiB]\n" + "".join(
        f"2025/01/01 10:00:{i:02d}.000, 0, {mib} MiB\n" for i, mib in enumerate(rows)
    )
    (gpu,) = read_logs([write(tmp_path / "gpu_memory.csv", text)]).gpus
    assert gpu.memory_peak_gib == gpu.memory_mode_gib == 26532 / 1024, "8 samples lie within a few MiB"


def test_the_batch_is_given_or_called_unknown(tmp_path: Path) -> None:
    unknown = by_layout(imported(tmp_path))["n1g4"]
    assert unknown["global_batch"] is None and unknown["scaling"] == "unknown"
    assert "--batch-per-rank" in unknown["reason"]
    each = by_layout(imported(tmp_path, "--batch-per-rank", "128"))["n1g4"]
    assert (each["global_batch"], each["scaling"]) == (512, "throughput")
    assert each["efficiency_throughput"] == pytest.approx(2581.4 / 704.9 / 4)
    whole = by_layout(imported(tmp_path, "--global-batch", "128"))["n1g4"]
    assert (whole["global_batch"], whole["scaling"]) == (128, "strong")


def test_a_batch_makes_images_of_steps(tmp_path: Path) -> None:
    text = "".join(
        f" iteration {i:5d}/   10 | elapsed time per iteration (ms): {2000.0 if i < 3 else 250.0} | loss: 1.0 |\n"
        for i in range(1, 11)
    )
    log = write(tmp_path / "a.log", text)
    m = put(tmp_path, log, "n1g2", "--batch-per-rank", "8", "--warmup-steps", "2").metrics
    assert m.images == 160 and m.step_s is not None and m.step_s.mean == 0.25
    assert m.train_s == pytest.approx(2 * 2.0 + 8 * 0.25), (
        "the warm-up is left out of means, not of the whole"
    )
    m = put(tmp_path, log, "n1g2").metrics
    assert m.images is None and m.step_s is not None and m.step_s.mean == pytest.approx(0.6)


def test_warm_up_epochs_are_left_out_of_means(tmp_path: Path) -> None:
    flags = ("--epochs", "mean", "--warmup-epochs", "1")
    record = put(tmp_path, write(tmp_path / "a.log", workshop(1)), "n1g1", *flags)
    assert record.metrics.images_per_s == pytest.approx((700.2 + 704.9) / 2)
    assert record.run.settings["warmup_epochs"] == 1
    assert record.metrics.epochs == 3, "they were done all the same"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--batch-per-rank", "0"], "at least 1"),
        (["--warmup-epochs", "-1"], "at least 0"),
        (["--warmup-epochs", "3"], "leaves none of the 3 epochs"),
    ],
)
def test_flags_that_cannot_be(
    tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "a.log", workshop(1))
    command = [
        "import",
        str(log),
        "--scene",
        "images",
        "--layout",
        "n1g1",
        "--results",
        str(tmp_path / "results"),
    ]
    assert cli.main([*command, *flags]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def table(seconds: float, ranks: int) -> str:
    """Write a transformer's own metrics.csv; the first epoch is slower, as it always is."""
    rows = [(1, 1.5 * seconds, 0.9, 71.0), (2, 1.01 * seconds, 0.5, 80.0), (3, seconds, 0.4, 84.0)]
    head = "epoch,epoch_time_s,train_loss,val_acc,world_size\n"
    return head + "".join(f"{e},{s:.4f},{loss},{acc},{ranks}\n" for e, s, loss, acc in rows)


def lines(seconds: float, ranks: int) -> str:
    """Print the same as lines of a log."""
    rows = [(1, 1.5 * seconds), (2, 1.01 * seconds), (3, seconds)]
    return f"world_size: {ranks}\n" + "".join(f"Epoch {e}/3 | loss=0.4000 | time={s:.2f}s\n" for e, s in rows)


@pytest.mark.parametrize("name, text", [("metrics.csv", table), ("train.log", lines)])
@pytest.mark.parametrize(
    "one, four, speedup, ratio", [(19.53, 42.34, 0.46, 0.52), (99.94, 124.95, 0.80, 1.00)]
)
def test_epoch_times_are_compared(
    tmp_path: Path, name: str, text: Any, one: float, four: float, speedup: float, ratio: float
) -> None:
    records = [
        put(tmp_path, write(tmp_path / f"{n}/{name}", text(s, n)), f"n1g{n}", strategy="transformer")
        for n, s in ((1, one), (4, four))
    ]
    assert [r.status for r in records] == ["ok", "ok"]
    assert [r.metrics.epoch_s for r in records] == [one, four]
    assert records[0].metrics.train_s == pytest.approx(3.51 * one, abs=0.02)
    paths = sorted((tmp_path / "results").rglob("record.json"))
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    with (tmp_path / "points.csv").open(newline="", encoding="utf-8") as f:
        rows = {row["layout"]: row for row in csv.DictReader(f)}
    assert round(float(rows["n1g4"]["speedup"]), 2) == speedup
    assert round(float(rows["n1g4"]["r_derived"]), 2) == ratio
    assert (rows["n1g4"]["outcome"], rows["n1g4"]["gain_of"]) == ("loss", "seconds per epoch")
    assert rows["n1g4"]["negative_scaling"] == "yes"


def test_a_device_is_named_where_the_logs_do_not(tmp_path: Path) -> None:
    """A table on one GPU and a log on four: only the second shows that it ran on GPUs."""
    one, four = write(tmp_path / "metrics.csv", table(19.53, 1)), write(tmp_path / "a.log", workshop(4))
    apart = by_layout([put(tmp_path, one, "n1g1"), put(tmp_path, four, "n1g4")])
    assert apart["n1g4"]["baseline_layout"] == "n1g4"
    named = ("--device", "NVIDIA A100")
    together = by_layout([put(tmp_path, one, "n1g1", *named), put(tmp_path, four, "n1g4", *named)])
    assert together["n1g4"]["baseline_layout"] == "n1g1"
    assert together["n1g4"]["hardware"] == "NVIDIA A100"


def test_a_table_alone_says_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = put(tmp_path, write(tmp_path / "metrics.csv", table(19.53, 1)), "n1g1")
    assert "whether more were asked for" in record.reasons["status"]
    assert "whether more were asked for" in capsys.readouterr().out
    failed = put(
        tmp_path,
        write(
            tmp_path / "job.log", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
        ),
        "n1g1",
        strategy="other",
    )
    assert failed.status != "ok"


def test_a_table_that_names_other_ranks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "metrics.csv", table(42.34, 4))
    command = [
        "import",
        str(log),
        "--scene",
        "images",
        "--layout",
        "n1g1",
        "--results",
        str(tmp_path / "results"),
    ]
    assert cli.main(command) != 0 and "4 devices" in capsys.readouterr().err


def test_the_same_epochs_are_the_same_work(tmp_path: Path) -> None:
    rows = by_layout(imported(tmp_path))
    assert rows["n1g4"]["speedup_total"] == pytest.approx(1.0), "all of them took 595 s"
    short = workshop(4).replace("/3]", "/2]").split("\n")
    log = write(tmp_path / "short.log", "\n".join(short[:2] + short[3:]))
    records = [load_record(tmp_path / "results/images/resnet50/n1g1/r0/record.json")]
    records.append(put(tmp_path, log, "n1g4", "--force"))
    row = by_layout(records)["n1g4"]
    assert "speedup_total" not in row
    assert "epochs" in row["reason"]


def test_lines_of_batches_are_no_epochs(tmp_path: Path) -> None:
    text = "".join(
        f"Epoch 1 | batch {i}/9 | time=0.50s\nEpoch [1][{i}/9]  time: 0.5 s\n" for i in range(1, 10)
    )
    assert read_logs([write(tmp_path / "a.log", text)]).epoch_s is None


def source(record: RunRecord, kind: str) -> RunRecord:
    return record.model_copy(
        update={"provenance": Provenance(source=kind, started_at=record.provenance.started_at)}
    )  # type: ignore[arg-type]


def test_an_import_is_expected_to_do_what_its_own_program_did() -> None:
    """A smaller and faster program on the same data says nothing of how long ResNet-50 takes."""
    runs = [
        source(make_record("images", "vit", "n1g1", total_s=100.0, started_at=1.0), "imported"),
        source(make_record("images", "resnet50", "n1g4", total_s=300.0, started_at=2.0), "imported"),
        source(make_record("images", "resnet50", "n1g8", total_s=200.0, started_at=3.0), "imported"),
        make_record("images", "replicated", "n1g1", total_s=10.0, started_at=4.0),
    ]
    first, alone, larger, own = performance_comparison(attempts(runs))
    assert first.baseline == "attempt 1 (n1g1)" and own.baseline == "attempt 4 (n1g1)"
    assert alone.baseline == "attempt 2 (n1g4)" and alone.expected_s == 300.0
    assert larger.baseline == "attempt 2 (n1g4)" and larger.expected_s == 150.0


def test_nothing_is_expected_of_other_hardware() -> None:
    runs = [
        make_record("images", layout="n1g1", started_at=1.0),
        make_record("images", layout="n1g2", gpu=True),
    ]
    assert performance_comparison(attempts(runs))[1].baseline == "attempt 2 (n1g2)"


def page_of(tmp_path: Path, paths: list[Path]) -> str:
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    write_report(tmp_path / "report.html", paths, tmp_path / "figures", tmp_path, [], {})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_names_the_program(tmp_path: Path) -> None:
    imported(tmp_path)
    paths = sorted((tmp_path / "results").rglob("record.json"))
    page = page_of(tmp_path, paths)
    assert "resnet50 on images: a scaling study" in page
    assert "Gaussian" not in page and "photograph" not in page.lower()
    assert "unknown" in page and "global batch unknown" in page
    assert load_record(paths[0]).environment.devices == ["GPU"], "a log with a GPU's memory ran on one"
    gpu_0 = re.search(r"n1g8[^>]*</td><td[^>]*>GPU 0</td>(.*?)</tr>", page)
    assert gpu_0 is not None and re.findall(r">([\d.]+)<", gpu_0[1]) == ["25.9", "21.9", "25.9"]
    stats = "Step:  99 {'mem': 1.0, 'ellipse_time': 9.0, 'num_GS': 10}\n"
    log = write(tmp_path / "gs.log", f"python simple_trainer.py default\n{stats}")
    put(tmp_path, log, "n1g1", strategy="gsplat")
    paths = sorted((tmp_path / "results").rglob("record.json"))
    assert "3D Gaussian Splatting, resnet50 on images" in page_of(tmp_path, paths)


def test_a_page_of_epoch_times_speaks_of_epochs(tmp_path: Path) -> None:
    for n, s in ((1, 40.0), (4, 12.0)):
        put(tmp_path, write(tmp_path / f"{n}/metrics.csv", table(s, n)), f"n1g{n}", strategy="transformer")
    page = page_of(tmp_path, sorted((tmp_path / "results").rglob("record.json")))
    assert "3.33 times the epochs per hour" in page and "images per second" not in page.split("</section>")[0]


def test_impossible_flags_of_the_function() -> None:
    from dist3dgs.diagnose.importer import Reading

    with pytest.raises(UserError, match="not both"):
        Reading(batch_per_rank=1, global_batch=4).check()
