"""Recommendations from records: what to use and what not, why, doublings, the front, and when to stay silent."""

import json
import shutil

import pytest

from dist3dgs.analysis.points import point_rows
from dist3dgs.cli import main
from dist3dgs.config.naming import Layout
from dist3dgs.predict.machine import load_machine
from dist3dgs.predict.model import predictor
from dist3dgs.predict.recommend import (
    alternatives,
    comparisons,
    costs,
    describe_alternatives,
    front,
    paragraph,
    sentences,
)
from dist3dgs.predict.workload import Workload
from tests.unit.helpers.records import make_record, make_workload, write_records


def study(rates, strategy="replicated", scene="garden", **more):
    """Rows of points with these images per second by layout."""
    records = [
        make_record(scene, strategy, layout, images_per_s=rate, gpu=True, **more)
        for layout, rate in rates.items()
    ]
    return point_rows(records)


def test_the_fastest_that_gains_is_recommended_with_time_and_cost():
    text = paragraph(study({"n1g1": 4.0, "n1g2": 7.6, "n1g4": 13.0}))
    assert text.startswith("garden: for the shortest time use replicated on n1g4")
    assert "3.25 times sooner" in text and "GPU-minutes" in text


def test_a_ratio_that_speaks_for_a_layout_is_no_reason_against_it():
    text = paragraph(study({"n1g1": 4.0, "n1g2": 3.0}, comm_s=1.0, compute_s=100.0))
    assert "Not replicated above 1 GPU here: n1g2 is 0.75 times as fast as the baseline." in text


def test_a_long_list_of_what_not_to_use_is_cut():
    rates = {"n1g1": 4.0, "n1g2": 8.4} | {f"n1g{n}": 3.0 for n in range(3, 9)}
    text = paragraph(study(rates))
    assert text.count("replicated on n1g") < 8 and "and 4 more" in text


def test_a_strategy_is_not_recommended_above_the_size_where_r_is_too_small():
    text = paragraph(study({"n1g1": 4.0, "n1g4": 1.84}, comm_s=None))
    assert "use n1g1: no larger layout gains" in text
    # 0.46 times as fast on 4: 1 / (1/0.46 - 1/4) = 0.52
    assert (
        "Not replicated above 1 GPU here: R = 0.5 < 3 (n1g4 is 0.46 times as fast as the baseline)." in text
    )


def test_it_pays_up_to_a_size_and_not_above():
    text = paragraph(study({"n1g1": 4.0, "n1g2": 7.6, "n1g4": 7.0, "n1g8": 3.0}))
    assert "use replicated on n1g2" in text
    assert "The next doubling, n1g4 (measured), saves nothing" in text
    assert "Not replicated above 4 GPUs here" in text and "n1g8 is 0.75 times" in text


def test_a_layout_that_misses_the_quality_is_neither_fast_nor_cheap():
    records = [make_record("garden", layout="n1g1", images_per_s=4.0, gpu=True)]
    records.append(make_record("garden", layout="n1g2", images_per_s=40.0, psnr=24.0, gpu=True))
    points = point_rows(records)
    assert [c.row["layout"] for c in costs(points)] == ["n1g1"]
    text = paragraph(points)
    assert "Not replicated above 1 GPU here: n1g2 ends at" in text and "next doubling" not in text


def test_the_front_drops_what_is_slower_and_no_cheaper():
    points = study({"n1g1": 4.0, "n1g2": 8.4, "n1g4": 14.0, "n1g8": 14.0})
    kept = front(points)
    assert [c.row["layout"] for c in kept] == ["n1g2", "n1g4"]  # two ranks are faster and cheaper than one
    assert kept[0].rank_hours < kept[1].rank_hours and kept[0].time_s > kept[1].time_s
    assert "Slower and no cheaper than one of these: replicated on n1g1, replicated on n1g8" in paragraph(
        points
    )


def test_costs_that_are_compared_have_one_unit():
    """A minute of one rank, a little more of two: not GPU-seconds here and GPU-minutes there."""
    points = study({"n1g1": 40.0, "n1g2": 50.0})
    assert {60 * c.rank_hours >= 1 for c in costs(points)} == {True, False}
    text = paragraph(points)
    assert "Best in time or cost" in text and "The last doubling" in text
    assert text.count("GPU-minutes") == 4 and "GPU-seconds" not in text


def test_marginal_hours_of_a_doubling_are_differences():
    points = study({"n1g1": 4.0, "n1g2": 7.0, "n1g4": 11.0})
    two, four = (next(c for c in costs(points) if c.row["layout"] == name) for name in ("n1g2", "n1g4"))
    assert four.rank_hours == pytest.approx(4 * four.time_s / 3600)
    more, saved = four.rank_hours - two.rank_hours, (two.time_s - four.time_s) / 3600
    said = " ".join(sentences(*comparisons(points)))
    assert f"for {60 * more:.3g} GPU-minutes more, {more / saved:.3g} GPU-hours for each hour saved" in said
    assert "The last doubling, n1g2 to n1g4, saved" in said
    assert "next doubling" not in said  # nothing twice as large was measured, and nothing is predicted


def test_an_unmeasured_doubling_is_predicted_where_a_model_is_given(repository):
    made = predictor(load_machine("h200-nvlink", repository / "config"))
    workload = Workload(gaussians=3e6, width_px=1297, height_px=840)

    def predict(strategy, layout):
        return made.forecast(workload, layout) if strategy == "sharded" else None

    points = study({"n1g1": 4.0, "n1g2": 7.6}, "sharded")
    said = " ".join(sentences(*comparisons(points), predict))
    assert "The next doubling, n1g4 (predicted, within" in said and "for each hour saved" in said
    eight = " ".join(sentences(*comparisons(study({"n1g1": 4.0, "n1g8": 28.0}, "sharded")), predict))
    assert "n2g8 (predicted" in eight and "simulation" in eight
    other = " ".join(sentences(*comparisons(study({"n1g1": 4.0, "n1g2": 7.6})), predict))
    assert "no prediction of the next doubling with replicated" in other


def test_alternatives_are_a_batch_a_strategy_and_fewer_ranks(repository):
    made = predictor(load_machine("a100-40-nvlink", repository / "config"))
    workload = Workload(gaussians=60e6, width_px=1297, height_px=840, kind="sharded", images=30_000)
    found = alternatives(made, workload, Layout(1, 8))
    batch, strategy, fewer = found
    assert batch.what.startswith("batch_per_rank: 4") and batch.forecast.total_s.value > 0
    assert strategy.what == "replicated on n1g8" and not strategy.forecast.fits
    assert str(fewer.forecast.layout) == "n1g4"
    text = describe_alternatives(found, "GPU")
    assert text.startswith("Predicted alternatives") and "does not fit in memory" in text
    tried = {("sharded", Layout(1, 8)), ("replicated", Layout(1, 8)), ("sharded", Layout(1, 4))}
    assert alternatives(made, workload, Layout(1, 8), tried) == [batch], "what was measured is no alternative"
    one = alternatives(made, workload, Layout(1, 1))
    assert [str(a.forecast.layout) for a in one] == ["n1g1", "n1g2"]


def test_block_jobs_have_a_batch_per_block_and_other_strategies_none(repository):
    made = predictor(load_machine("h100-nvlink", repository / "config"))
    jobs = Workload(gaussians=1e6, width_px=800, height_px=600, kind="blocks", blocks=4, batch=8)
    larger, other = alternatives(made, jobs, Layout(1, 1))
    assert larger.what.startswith("batch_per_rank: 8 ") and larger.forecast.batch == 32
    assert other.forecast.workload.blocks is None and other.forecast.batch == 4


def test_too_few_data_are_said_to_be_too_few():
    assert "too few data" in paragraph(study({"n1g1": 4.0}))
    text = paragraph(study({"n1g1": 4.0, "n1g2": 7.0}))
    assert "Only 1 and 2 ranks were measured" in text and "single run" in text


def test_points_that_never_succeeded_are_named():
    records = [
        make_record("garden", layout=name, images_per_s=r, gpu=True) for name, r in (("n1g1", 4), ("n1g2", 7))
    ]
    records.append(make_record("garden", layout="n1g4", status="failed", gpu=True))
    assert "Nothing is known of replicated on n1g4" in paragraph(point_rows(records))


def test_scenes_are_paragraphs_of_their_own():
    points = study({"n1g1": 4.0, "n1g2": 7.0}) + study({"n1g1": 4.0, "n1g2": 3.0}, scene="room")
    garden, room = paragraph(points).split("\n\n")
    assert garden.startswith("garden: for") and room.startswith("room: use n1g1")


def test_the_verb_reads_records_and_predicts_alternatives(repository, tmp_path, monkeypatch, capsys):
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    assert main(["recommend"]) == 2 and "no records" in capsys.readouterr().err
    shutil.copytree(repository / "results/reference/builtin", tmp_path / "results/builtin")
    assert main(["recommend"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("builtin: ") and "Predicted alternatives: batch_per_rank: 4" in text
    assert main(["recommend", "--json"]) == 0
    (scene,) = json.loads(capsys.readouterr().out)
    assert scene["scene"] == "builtin" and scene["front"][0]["layout"] == "n1g1"


def test_records_of_an_unknown_machine_are_recommended_from_alone(repository, tmp_path, monkeypatch, capsys):
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    records = [
        make_record("garden", layout=n, images_per_s=r, gpu=True) for n, r in (("n1g1", 4), ("n1g2", 7))
    ]
    write_records(tmp_path / "results", records)
    assert main(["recommend"]) == 0
    text = capsys.readouterr().out
    assert "use replicated on n1g2" in text and "Nothing is predicted" in text and "--machine" in text


def test_a_front_is_of_points_with_one_baseline():
    from dist3dgs.figures import cost_time
    from dist3dgs.figures.study import Study

    runs = [
        make_workload("transformer", variant, layout, images_per_s=rate, total_s=1000 / rate)
        for variant, rates in {"small": (100.0, 180.0), "large": (10.0, 18.0)}.items()
        for layout, rate in zip(("n1g1", "n1g2"), rates, strict=True)
    ]
    points = point_rows(runs)
    assert [c.name for c in comparisons(points)] == ["transformer, large", "transformer, small"]
    drawn = cost_time.data(Study(runs=[], points=points, records=runs, paths=[], performance=[]))
    assert all(r["on_front"] for r in drawn), "a small model beats no large one"
