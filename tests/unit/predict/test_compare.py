"""Predicted beside measured: the reference runs, synthetic ones, and the figure with its band."""

import json
import shutil
from pathlib import Path

import pytest

from dist3dgs.analysis.tables import read_table, tabulate
from dist3dgs.cli import main
from dist3dgs.config.models import Strategy, TrainSettings
from dist3dgs.predict.compare import GOOD_ERROR, PREDICTED, compare_runs, machine_with, predicted_metrics
from dist3dgs.runs.record import QualityPoint, load_record
from tests.unit.helpers.drawn import Drawn
from tests.unit.helpers.records import make_record


def run(layout, step_s, strategy="sharded", repeat=0, scene="garden"):
    """A record on a GPU whose steps take `step_s` at 1 M Gaussians and half of it at none."""
    ranks = int(layout[3:])
    steps = 1000 // ranks
    curve, elapsed = [], 0.0
    for i in range(1, 6):
        n = 200_000 * i
        mean = n - 100_000 if i > 1 else n
        elapsed += steps / 5 * step_s * (0.5 + 0.5 * mean / 1e6)
        curve.append(QualityPoint(step=steps * i // 5, elapsed_s=elapsed, psnr=20.0 + i, num_gaussians=n))
    settings = {
        "train": TrainSettings(steps=1000).model_dump(),
        "parallel": Strategy(kind=strategy).model_dump(),
    }
    record = make_record(
        scene, strategy, layout, repeat, gpu=True, images=1000, settings=settings, curve=curve, train_s=elapsed,
        steps=steps, step_parts_s={},
    )  # fmt: skip
    devices = ["NVIDIA H200"] * ranks
    return record.model_copy(
        update={"environment": record.environment.model_copy(update={"devices": devices})}
    )


def test_the_reference_runs_are_predicted_from_one_rank(repository):
    paths = sorted((repository / "results/reference").glob("builtin/*/*/r0/record.json"))
    found = compare_runs([load_record(p) for p in paths], repository / "config")
    by_point = {f"{c.record.run.strategy}/{c.record.run.layout}": c for c in found}
    one = by_point.pop("replicated/n1g1")
    assert one.fitted and abs(one.ratio - 1) < 0.02
    assert len(by_point) == 4 and not any(c.fitted for c in by_point.values())
    assert all(1 - c.width <= c.ratio <= 1 + c.width for c in by_point.values())
    assert abs(by_point["replicated/n1g2"].ratio - 1) < GOOD_ERROR


def test_the_smallest_layout_predicts_the_others(repository):
    """Two ranks share the work of a step; one that took twice as long is told by its ratio."""
    good, bad = run("n1g2", 0.021), run("n1g4", 0.042)
    found = {
        c.record.run.layout: c for c in compare_runs([run("n1g1", 0.02), good, bad], repository / "config")
    }
    assert found["n1g1"].ratio == pytest.approx(1, abs=0.02)
    assert found["n1g2"].ratio == pytest.approx(1, abs=0.1)
    assert found["n1g4"].ratio == pytest.approx(0.5, abs=0.06)


def test_what_cannot_be_compared_is_left_out(repository):
    without_curve = make_record("garden", layout="n1g1", gpu=True)
    failed = run("n1g2", 0.02).model_copy(update={"status": "failed"})
    assert compare_runs([without_curve, failed], repository / "config") == []
    assert machine_with("NVIDIA H200", repository / "config") is not None
    assert machine_with("NVIDIA RTX 5090", repository / "config") is None
    assert machine_with("cpu", Path("no such folder")) is None


def test_the_figure_shows_held_out_points_and_the_band(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    drawn = Drawn(tmp_path, [run("n1g1", 0.02), *(run("n1g2", 0.02 + 0.001 * i, repeat=i) for i in range(3))])
    (row,) = drawn.rows("prediction")
    assert row["layout"] == "n1g2" and row["n"] == "3"
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    figure = drawn.picture("prediction")
    assert [a for a in figure.findobj() if a.get_gid() == "band"]
    assert "predicted / measured" in [t.get_text() for t in figure.axes[0].texts]


def test_the_verb_prints_them_side_by_side(repository, tmp_path, monkeypatch, capsys):
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--compare"]) == 2 and "0 records" in capsys.readouterr().err
    shutil.copytree(repository / "results/reference/builtin", tmp_path / "results/builtin")
    assert main(["predict", "--compare"]) == 0
    text = capsys.readouterr().out
    assert "builtin/replicated/n1g2/r0" in text and "measured" in text and text.count("(fitted to)") == 1
    assert main(["predict", "--compare", "--json"]) == 0
    assert {r["fitted"] for r in json.loads(capsys.readouterr().out)} == {True, False}


def test_the_tables_have_each_run_s_prediction_beside_its_measurement(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    failed = run("n1g4", 0.02).model_copy(update={"status": "failed"})
    records = [run("n1g1", 0.02), run("n1g2", 0.021), failed]
    paths = [tmp_path / f"{i}/record.json" for i in range(len(records))]
    for path, record in zip(paths, records, strict=True):
        path.parent.mkdir()
        path.write_text(record.model_dump_json())
    tables = [tmp_path / "runs.csv", tmp_path / "points.csv"]
    tabulate(paths, *tables, more=PREDICTED, values_of=predicted_metrics)
    for rows in map(read_table, tables):
        of = {row["layout"]: row for row in rows}
        two = of["n1g2"]
        assert two["predicted_step_low_s"] < two["predicted_step_s"] < two["predicted_step_high_s"]
        m = records[1].metrics
        assert two["predicted_over_measured"] == pytest.approx(two["predicted_step_s"] * m.steps / m.train_s)
        assert of["n1g4"]["predicted_step_s"] is None
