"""The scaling tables: ratios versus one GPU and one node, means over scenes, csv, Markdown and LaTeX."""

import math

import pytest

from dist3dgs.analysis.points import point_rows
from dist3dgs.analysis.scaling_tables import over_scenes_rows, scaling_rows
from dist3dgs.analysis.tables import read_table, tabulate
from dist3dgs.analysis.typeset import markdown, tabular, tex
from dist3dgs.runs.record import Collective, GpuTotals
from tests.unit.helpers.records import make_record, write_records


def tables(records):
    points = point_rows(records)
    scaling = scaling_rows(points)
    by_layout = {(r["scene"], r["strategy"], r["layout"]): r for r in scaling}
    return by_layout, over_scenes_rows(points, scaling)


def test_ratios_are_versus_one_gpu_and_versus_one_node_of_as_many_workers():
    rates = {"n1g1": 10.0, "n1g4": 36.0, "n2g4": 63.0, "n2g2": 30.0}
    memory = {"n1g1": 8.0, "n1g4": 8.4, "n2g4": 8.2, "n2g2": 8.0}
    rows, _ = tables(
        [make_record(layout=x, images_per_s=r, peak_gpu_gib=memory[x]) for x, r in rates.items()]
    )
    eight, four, two = (rows["builtin", "replicated", x] for x in ("n2g4", "n1g4", "n2g2"))
    assert (eight["throughput_vs_1_gpu"], eight["throughput_vs_1_node"]) == pytest.approx((6.3, 1.75))
    assert (eight["memory_vs_1_gpu"], eight["memory_vs_1_node"]) == pytest.approx((8.2 / 8, 8.2 / 8.4))
    assert eight["one_node_layout"] == "n1g4" and four["throughput_vs_1_node"] == 1
    assert two["throughput_vs_1_gpu"] == pytest.approx(3.0)
    assert two["throughput_vs_1_node"] is None and two["one_node_layout"] is None, "n1g2 did not run"
    assert rows["builtin", "replicated", "n1g1"]["throughput_vs_1_node"] is None


def test_without_its_own_run_on_one_gpu_a_strategy_has_the_baselines():
    rows, _ = tables(
        [make_record(images_per_s=10.0), make_record(strategy="bf16", layout="n1g2", images_per_s=17.0)]
    )
    assert rows["builtin", "bf16", "n1g2"]["throughput_vs_1_gpu"] == pytest.approx(1.7)


def test_memory_is_compared_by_what_both_know():
    gpus = [GpuTotals(gpu="0", memory_peak_gib=9.5, memory_average_gib=7.0, memory_mode_gib=8.0)]
    one = make_record(peak_gpu_gib=4.0, gpus=gpus, gpu=True)
    two = make_record(layout="n1g2", peak_gpu_gib=5.0, gpu=True)
    rows, _ = tables([one, two])
    assert rows["builtin", "replicated", "n1g2"]["memory_vs_1_gpu"] == pytest.approx(1.25)


def test_what_a_rank_sends_in_a_step_has_densification_and_no_digests():
    sent = {"step": 800_000_000, "densify": 200_000_000, "between steps": 70_000_000, "init": 90_000_000}
    totals = [
        Collective(op="all_reduce", phase=phase, calls=100, bytes=b // 2, bytes_all_ranks=b)
        for phase, b in sent.items()
    ]
    known = make_record(layout="n1g2", collectives=totals, timed_steps=100)
    rows, _ = tables([make_record(), known, make_record(layout="n1g4", timed_steps=100)])
    assert rows["builtin", "replicated", "n1g2"]["sent_mb_per_step"] == pytest.approx(5.0)
    assert rows["builtin", "replicated", "n1g4"]["sent_mb_per_step"] is None, "no phase is known"


def test_no_ratio_to_another_machine():
    rows, _ = tables(
        [make_record(images_per_s=10.0), make_record(layout="n1g2", gpu=True, images_per_s=300.0)]
    )
    assert rows["builtin", "replicated", "n1g2"]["throughput_vs_1_gpu"] is None


def test_over_scenes_ratios_have_a_geometric_mean_of_those_that_know_them():
    speedups = {"a": 1.5, "b": 1.9, "c": 1.0}
    records = []
    for scene, s in speedups.items():
        records.append(make_record(scene, images_per_s=10.0))
        psnr = 20.0 if scene == "c" else 27.4
        records.append(make_record(scene, layout="n1g2", images_per_s=10 * s, psnr=psnr))
    _, means = tables(records)
    two = next(r for r in means if r["layout"] == "n1g2")
    assert two["speedup_geomean"] == pytest.approx(math.prod(speedups.values()) ** (1 / 3))
    assert (two["n_scenes"], two["scenes"], two["speedup_scenes"]) == (3, "a b c", 3)
    assert two["speedup_time_to_quality_scenes"] == 2, "c misses the quality"
    assert two["psnr_over_baseline_mean_db"] == pytest.approx(-7.4 / 3)


def test_a_mean_of_some_scenes_says_of_how_many(tmp_path):
    records = [
        make_record("a"),
        make_record("a", layout="n1g2"),
        make_record("b"),
        make_record("b", layout="n1g2", psnr=1.0),
    ]
    tabulate(write_records(tmp_path, records), tmp_path / "runs.csv", tmp_path / "points.csv")
    line = next(x for x in (tmp_path / "over_scenes.md").read_text().splitlines() if "n1g2" in x)
    assert line.count("(1)") == 1, line
    scaling = read_table(tmp_path / "scaling.csv")
    assert len(scaling) == 4 and scaling[1]["throughput_vs_1_gpu"] > 1
    latex = (tmp_path / "scaling.tex").read_text()
    assert r"\toprule" in latex and latex.count("n1g2 &") == 2


def test_without_a_success_the_tables_are_empty(tmp_path):
    paths = write_records(tmp_path, [make_record(status="failed")])
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    assert read_table(tmp_path / "scaling.csv") == [] == read_table(tmp_path / "over_scenes.csv")
    assert "No run succeeded" in (tmp_path / "scaling.md").read_text()


def test_hostile_names_are_text_in_both():
    assert (
        tex(r"50 % of \input{x} & $a_b$ é ×") == r"50 \% of \textbackslash{}input\{x\} \& \$a\_b\$ e $\times$"
    )
    assert markdown(["a"], [["x|y"]], numbers_from=1).splitlines()[2] == r"| x\|y |"
    assert r"\$1" in tabular(["a"], [["$1"]], numbers_from=1)
