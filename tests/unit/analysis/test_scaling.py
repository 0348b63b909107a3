"""Speedup, the three efficiencies, fits: known curves must come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist3dgs.analysis import (
    compute_to_comm,
    efficiency,
    fit_amdahl,
    fit_gustafson,
    fit_usl,
    fitted_points,
    global_batch,
    rank_hours,
    scaling_definition,
    time_to_quality,
    told_apart,
)
from dist3dgs.analysis.measures import ratio_derived
from dist3dgs.analysis.points import point_rows
from dist3dgs.report.verdict import best
from dist3dgs.runs.record import QualityPoint
from tests.unit.helpers.records import make_record, usl_rate


def curve(*points: tuple[float, float | None]) -> list[QualityPoint]:
    return [QualityPoint(step=i, elapsed_s=t, psnr=q) for i, (t, q) in enumerate(points)]


def test_usl_curve_is_recovered():
    sizes = [1, 2, 4, 8, 16]
    fit = fit_usl(sizes, [usl_rate(p, 7.0, 0.04, 0.003) for p in sizes])
    assert fit is not None and fit.checked
    assert fit.rate_one == pytest.approx(7.0)
    assert fit.sigma == pytest.approx(0.04)
    assert fit.kappa == pytest.approx(0.003)
    assert fit.peak_ranks == pytest.approx(np.sqrt(0.96 / 0.003))
    assert fit.max_relative_error < 1e-9
    assert fit.speedup(8) == pytest.approx(usl_rate(8, 1, 0.04, 0.003))


def test_usl_starts_from_any_baseline():
    sizes = [4, 8, 16, 32]
    fit = fit_usl(sizes, [usl_rate(p, 2.0, 0.02, 0.001) for p in sizes])
    assert fit is not None
    assert (fit.sigma, fit.kappa) == (pytest.approx(0.02), pytest.approx(0.001))
    assert fit.speedup(16, 4) == pytest.approx(usl_rate(16, 1, 0.02, 0.001) / usl_rate(4, 1, 0.02, 0.001))


def test_amdahl_recovers_the_serial_share():
    sizes = [1, 2, 4, 8]
    fit = fit_amdahl(sizes, [usl_rate(p, 3.0, 0.1, 0.0) for p in sizes])
    assert fit is not None and fit.checked and fit.kappa == 0 and fit.peak_ranks is None
    assert fit.sigma == pytest.approx(0.1)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(1e-3, 1e4),
    sigma=st.floats(0, 0.5),
    kappa=st.floats(0, 0.1),
    noise=st.lists(st.floats(-0.03, 0.03), min_size=5, max_size=5),
)
def test_fits_never_leave_their_bounds(rate, sigma, kappa, noise):
    sizes = [1, 2, 4, 8, 16]
    fit = fit_usl(
        sizes, [usl_rate(p, rate, sigma, kappa) * (1 + e) for p, e in zip(sizes, noise, strict=True)]
    )
    assert fit is not None
    assert fit.sigma >= 0 and fit.kappa >= 0 and fit.rate_one > 0
    assert fit.max_relative_error < 0.15


def test_superlinear_data_is_not_given_a_negative_serial_share():
    fit = fit_amdahl([1, 2, 4], [1.0, 2.2, 4.8])
    assert fit is not None and fit.sigma == 0


def test_too_few_sizes_are_said_to_be_too_few():
    assert fit_amdahl([1, 1, 1], [1.0, 1.1, 0.9]) is None
    assert fit_usl([1, 2], [1.0, 1.8]) is None
    through_two = fit_amdahl([1, 2], [1.0, 1.8])
    assert through_two is not None and not through_two.checked
    assert "nothing left to check" in through_two.describe()
    many_repeats = fit_usl([1, 2, 4, 4, 4], [1.0, 1.8, 3.0, 3.1, 2.9])
    assert many_repeats is not None and not many_repeats.checked, "repeats are not sizes"


@pytest.mark.parametrize(
    ("ranks", "rates"), [([0], [1.0]), ([1], [0.0]), ([1], [float("nan")]), ([1, 2], [1.0])]
)
def test_impossible_data_is_refused(ranks, rates):
    with pytest.raises(ValueError, match="ranks and throughput"):
        fit_amdahl(ranks, rates)


def test_time_to_quality_interpolates_and_says_never():
    c = curve((10, 20.0), (20, 24.0), (30, None), (40, 26.0))
    assert time_to_quality(c, 22.0) == pytest.approx(15)
    assert time_to_quality(c, 25.0) == pytest.approx(30)
    assert time_to_quality(c, 20.0) == 10
    assert time_to_quality(c, 15.0) == 10, "the first evaluation is an upper bound"
    assert time_to_quality(c, 26.1) is None
    assert time_to_quality([], 1.0) is None


def test_time_to_quality_takes_the_first_crossing():
    assert time_to_quality(curve((1, 20.0), (2, 30.0), (3, 20.0), (4, 40.0)), 25.0) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("batch", "ranks", "expected"), [(4, 4, "strong"), (16, 4, "throughput"), (8, 4, None), (None, 4, None)]
)
def test_scaling_is_named_by_what_is_held_equal(batch, ranks, expected):
    definition, reason = scaling_definition(batch, ranks, 4, 1)
    assert definition == expected
    assert (reason is None) == (expected is not None)


def test_one_measurement_gives_three_efficiencies():
    """The same 4-rank run is judged by each definition on its own terms."""
    assert efficiency(3.1, 4, 1) == pytest.approx(0.775)
    base = make_record(layout="n1g1", global_batch=4, images_per_s=10.0)
    strong = make_record(layout="n1g4", global_batch=4, images_per_s=20.0)
    rows = {r["layout"]: r for r in point_rows([base, strong])}
    assert rows["n1g4"]["scaling"] == "strong"
    assert rows["n1g4"]["efficiency_strong"] == pytest.approx(0.5)
    assert rows["n1g4"].get("efficiency_throughput") is None

    base = make_record(layout="n1g1", images_per_s=10.0)
    weak = make_record(layout="n1g4", images_per_s=30.0)
    rows = {r["layout"]: r for r in point_rows([base, weak])}
    assert rows["n1g4"]["efficiency_throughput"] == pytest.approx(0.75)
    assert rows["n1g4"].get("efficiency_strong") is None
    assert rows["n1g1"]["efficiency_strong"] == rows["n1g1"]["efficiency_throughput"] == 1


def test_equal_quality_is_undefined_when_a_run_never_gets_there():
    base = make_record(layout="n1g1", psnr=27.0)
    worse = make_record(layout="n1g2", psnr=26.0)
    row = point_rows([base, worse])[1]
    assert row.get("speedup_time_to_quality") is None and row.get("efficiency_time_to_quality") is None
    assert row["outcome"] == "missed_quality" and row.get("gain") is None
    assert "0 of 1 runs reached" in row["reason"] and "25.9" in row["reason"]


def test_equal_quality_needs_more_than_half_of_the_repeats():
    base = make_record(layout="n1g1", psnr=27.0)
    two = [make_record(layout="n1g2", repeat=i, psnr=q) for i, q in enumerate((27.0, 26.0))]
    assert point_rows([base, *two])[1].get("time_to_quality_s") is None


def test_baseline_is_the_smallest_that_succeeded():
    records = [
        make_record(layout="n1g1", status="failed"),
        make_record(layout="n1g2", images_per_s=8.0),
        make_record(layout="n1g4", images_per_s=12.0),
    ]
    rows = {r["layout"]: r for r in point_rows(records)}
    assert rows["n1g4"]["baseline_layout"] == "n1g2"
    assert rows["n1g4"]["speedup"] == pytest.approx(1.5)
    assert rows["n1g4"]["efficiency_throughput"] == pytest.approx(0.75)
    assert rows["n1g1"]["reason"] == "no successful run"
    assert rows["n1g1"].get("speedup") is None and rows["n1g1"].get("images_per_s") is None


def test_degraded_runs_do_not_count_as_measurements_of_their_layout():
    records = [
        make_record(layout="n1g1", images_per_s=10.0),
        make_record(layout="n1g4", status="degraded", cause="allocation_mismatch", images_per_s=11.0),
    ]
    row = point_rows(records)[1]
    assert row["n_degraded"] == 1 and row["n_ok"] == 0
    assert row.get("images_per_s") is None and row.get("speedup") is None
    assert row["causes"] == "allocation_mismatch"


def test_negative_scaling_is_marked():
    rows = point_rows(
        [make_record(layout="n1g1", images_per_s=10.0), make_record(layout="n1g2", images_per_s=9.0)]
    )
    assert rows[0]["negative_scaling"] is False and rows[1]["negative_scaling"] is True


def test_total_times_of_unequal_work_are_not_divided():
    rows = point_rows([make_record(layout="n1g1", images=2000), make_record(layout="n1g2", images=4000)])
    assert rows[1].get("speedup_total") is None and "number of images" in rows[1]["reason"]


def test_global_batch_from_measurement_then_settings_then_unknown():
    assert global_batch(make_record(layout="n1g4", batch_per_rank=2)) == 8
    settings = {"train": {"batch_per_rank": 3, "global_batch": None}}
    assert global_batch(make_record(layout="n1g2", settings=settings, images=100, steps=None)) == 6
    assert global_batch(make_record(settings={}, steps=None)) is None


def test_ratio_of_compute_to_communication():
    r = make_record(
        layout="n1g2", compute_to_comm=None, phases_s={"step": 100.0}, comm_s=25.0, exposed_comm_s=10.0
    )
    assert compute_to_comm(r) == pytest.approx(90 / 25)
    assert compute_to_comm(make_record(layout="n1g1")) is None, (
        "no communication is no ratio, not infinity or 0"
    )


def test_cost_counts_what_was_allocated():
    assert rank_hours(make_record(layout="n2g4", total_s=450.0)) == pytest.approx(1.0)
    assert rank_hours(make_record(total_s=None)) is None


def test_repeats_that_do_not_know_a_metric_are_left_out_of_its_median():
    losses = (None, 3.0, 1.0, 2.0)
    (row,) = point_rows([make_record(repeat=i, loss=v, epochs=None) for i, v in enumerate(losses)])
    assert [row[f"loss{end}"] for end in ("", "_min", "_max")] == [2.0, 1.0, 3.0]
    assert row.get("epochs") is None and row.get("epochs_min") is None


def by_point(records, baseline=None):
    return {(r["strategy"], r["layout"]): r for r in point_rows(records, baseline)}


def test_a_layout_that_misses_the_quality_never_wins_on_time():
    """Eight ranks are much faster and 0.4 dB short; two ranks reach the quality sooner."""
    rows = by_point(
        [
            make_record(layout="n1g1", images_per_s=10.0, psnr=27.0),
            make_record(layout="n1g2", images_per_s=19.4, psnr=27.0),
            make_record(layout="n1g8", images_per_s=66.1, psnr=26.6),
        ]
    )
    missed, reached = rows["replicated", "n1g8"], rows["replicated", "n1g2"]
    assert missed["outcome"] == "missed_quality" and missed.get("gain") is None
    assert missed["speedup"] == pytest.approx(6.61), "its images per second stay in the table"
    assert reached["outcome"] == "gain" and reached["gain"] == pytest.approx(1.94)
    assert reached["gain_of"] == "time to equal quality"
    assert best(list(rows.values())) is reached


def test_all_points_of_a_baseline_are_compared_by_one_definition():
    """A point without evaluations is not compared by images per second where the others are by time to quality."""
    rows = by_point([make_record(), make_record(layout="n1g2", curve=[], psnr=27.4)])
    point = rows["replicated", "n1g2"]
    assert point["outcome"] == "not_compared" and "not known" in point["reason"]
    rows = by_point([make_record(curve=[]), make_record(layout="n1g2", curve=[])])
    assert rows["replicated", "n1g2"]["gain_of"] == "images per second"


def test_final_quality_alone_is_enough_to_miss_it():
    rows = by_point([make_record(curve=[], psnr=27.4), make_record(layout="n1g2", curve=[], psnr=26.0)])
    assert rows["replicated", "n1g2"]["outcome"] == "missed_quality"


def test_one_rank_of_any_strategy_is_the_baseline_of_all_that_compute_the_same():
    rows = by_point(
        [
            make_record(layout="n1g1", images_per_s=10.0),
            make_record(strategy="bf16", layout="n1g2", images_per_s=15.0),
            make_record(strategy="sharded", layout="n1g2", images_per_s=16.0),
        ]
    )
    assert rows["bf16", "n1g2"]["speedup"] == pytest.approx(1.5)
    assert rows["sharded", "n1g2"]["speedup"] == pytest.approx(1.6)
    assert rows["bf16", "n1g2"]["baseline_strategy"] == "replicated"


def test_strategies_that_train_otherwise_have_baselines_of_their_own():
    mcmc = {"train": {"steps": 2000, "batch_per_rank": 1, "densify": {"kind": "mcmc"}}}
    rows = by_point(
        [
            make_record(layout="n1g1", images_per_s=10.0),
            make_record(strategy="mcmc", layout="n1g2", images_per_s=15.0, settings=mcmc),
        ]
    )
    row = rows["mcmc", "n1g2"]
    assert row["outcome"] == "baseline" and "no run on fewer than 2 ranks" in row["reason"]


def test_another_baseline_can_be_named():
    records = [
        make_record(layout=x, images_per_s=r) for x, r in (("n1g1", 4.0), ("n1g2", 8.0), ("n1g4", 12.0))
    ]
    rows = by_point(records, "replicated/n1g2")
    assert rows["replicated", "n1g4"]["speedup"] == pytest.approx(1.5)
    assert rows["replicated", "n1g1"]["speedup"] == pytest.approx(0.5)
    assert {r["baseline_is"] for r in rows.values()} == {"named"}


def test_a_scene_without_the_named_baseline_says_what_it_is_compared_with():
    rows = by_point([make_record(), make_record(layout="n1g4")], "replicated/n1g2")
    row = rows["replicated", "n1g4"]
    assert row["baseline_layout"] == "n1g1" and row["baseline_is"] == "one_rank"
    assert "not compared with replicated/n1g2, the baseline of the config" in row["reason"]


def test_a_baseline_on_several_ranks_is_told_from_one_on_one_rank():
    rows = by_point([make_record(layout="n1g4"), make_record(layout="n1g8")])
    assert {r["baseline_is"] for r in rows.values()} == {"smallest"}
    assert by_point([make_record()])["replicated", "n1g1"]["baseline_is"] == "one_rank"


def test_runs_on_other_hardware_are_never_one_speedup_or_one_mean():
    fast = make_record(layout="n1g2", gpu=True, images_per_s=400.0)
    rows = by_point([make_record(images_per_s=10.0), fast])
    assert rows["replicated", "n1g2"]["outcome"] == "baseline", (
        "there is no run on that hardware to compare with"
    )
    mixed = [make_record(layout="n1g2", repeat=i, images_per_s=18.0) for i in (0, 1)]
    rows = by_point([make_record(images_per_s=10.0), *mixed, fast.model_copy(update={"run": mixed[0].run})])
    row = rows["replicated", "n1g2"]
    assert row["images_per_s"] == row["images_per_s_max"] == 18.0 and row["n_ok"] == 2
    assert "1 run left out: other hardware" in row["reason"]


def test_a_point_is_not_compared_with_a_baseline_that_counts_runs_of_other_hardware():
    """One rank ran on both machines; each larger layout on one of them."""
    one = [make_record(repeat=0, images_per_s=10.0), make_record(repeat=1, images_per_s=10.0)]
    one.append(make_record(repeat=2, gpu=True, images_per_s=100.0))
    larger = [
        make_record(layout="n1g2", images_per_s=19.0),
        make_record(layout="n1g4", gpu=True, images_per_s=380.0),
    ]
    rows = by_point([*one, *larger])
    assert rows["replicated", "n1g2"]["speedup"] == pytest.approx(1.9)
    four = rows["replicated", "n1g4"]
    assert four.get("speedup") is None and four["outcome"] == "not_compared" and "hardware" in four["reason"]
    rows = by_point([*one, larger[1]])
    assert rows["replicated", "n1g4"]["speedup"] == pytest.approx(3.8), (
        "the runs that others need are counted"
    )


def test_the_spread_of_the_baseline_counts():
    """90/100/110 against 102 to 104 is no gain, and a single 0.996 no loss."""
    base = [make_record(repeat=i, images_per_s=r) for i, r in enumerate((90.0, 100.0, 110.0))]
    two = [make_record(layout="n1g2", repeat=i, images_per_s=r) for i, r in enumerate((102.0, 103.0, 104.0))]
    row = by_point([*base, *two])["replicated", "n1g2"]
    assert row["outcome"] == "no_difference" and not row["negative_scaling"]
    assert row["speedup_min"] == pytest.approx(102 / 110) and row["speedup_max"] == pytest.approx(104 / 90)
    row = by_point([make_record(images_per_s=10.0), make_record(layout="n1g2", images_per_s=9.96)])
    assert row["replicated", "n1g2"]["outcome"] == "no_difference"
    assert row["replicated", "n1g2"]["negative_scaling"] is False


def test_one_missed_repeat_of_three_does_not_delete_a_point():
    base = [make_record(repeat=i, psnr=q) for i, q in enumerate((27.0, 27.3, 26.7))]
    two = [make_record(layout="n1g2", repeat=i, psnr=q) for i, q in enumerate((27.1, 26.2, 27.2))]
    rows = by_point([*base, *two])
    row = rows["replicated", "n1g2"]
    assert row["time_to_quality_s"] > 0 and row["n_reached"] == 2 and row["outcome"] == "gain"


@pytest.mark.parametrize("finals", [(27.0, 26.0), (27.0, 26.5, 26.0, 25.0), (25.0, 26.0, 27.0)])
def test_a_baseline_cannot_miss_its_own_target(finals):
    rows = by_point([make_record(repeat=i, psnr=q) for i, q in enumerate(finals)])
    assert rows["replicated", "n1g1"]["time_to_quality_s"] > 0


@pytest.mark.parametrize(
    ("speedup", "ranks", "expected"), [(19.53 / 42.34, 4, 0.52), (99.94 / 124.95, 4, 1.0)]
)
def test_r_derived_from_a_speedup_is_that_of_one_rank(speedup, ranks, expected):
    assert ratio_derived(speedup, ranks) == pytest.approx(expected, abs=0.01)


def test_r_is_one_ranks_computation_over_all_ranks_communication():
    """The computation left on each of two ranks over their communication is half of it."""
    one = make_record(layout="n1g1", compute_s=100.0, comm_s=0.0)
    two = make_record(layout="n1g2", compute_s=50.0, comm_s=25.0, compute_to_comm=2.0)
    row = by_point([one, two])["replicated", "n1g2"]
    assert row["r_measured"] == pytest.approx(4.0) and row["compute_to_comm"] == 2.0
    assert row["r_derived"] == pytest.approx(1 / (1 / row["speedup"] - 1 / 2))


def test_no_loss_has_no_ratio():
    assert ratio_derived(2.1, 2) is None and ratio_derived(1.0, 1) is None


def test_negative_scaling_is_refused_by_laws_that_cannot_express_it():
    """The two transformers: 0.46x and 0.80x at four ranks."""
    for rates in ([1.0, 0.7, 0.46], [1.0, 0.95, 0.8]):
        fit = fit_amdahl([1, 2, 4], rates)
        assert fit is not None and fit.sigma <= 1
        assert "does not describe this data" in fit.describe() and "133" not in fit.describe()


def test_a_law_that_misses_a_point_by_a_quarter_is_refused():
    fit = fit_amdahl([1, 2, 4, 8], [1.0, 1.9, 1.95, 7.0])
    assert fit is not None and fit.problem and "misses a point" in fit.problem


def test_few_points_do_not_tell_laws_apart():
    sizes, rates = [1, 2, 4], [1.0, 1.9, 3.6]
    fits = [f for fit in (fit_amdahl, fit_gustafson, fit_usl) if (f := fit(sizes, rates))]
    assert "3 points cannot tell" in told_apart(fits)
    sizes = [1, 2, 4, 8, 16, 32]
    rates = [
        usl_rate(p, 3.0, 0.01, 0.0) * (1 + e)
        for p, e in zip(sizes, [0.001, -0.001, 0.001, -0.002, 0.001, 0], strict=True)
    ]
    fits = [f for fit in (fit_amdahl, fit_gustafson) if (f := fit(sizes, rates))]
    assert told_apart(fits).startswith("Amdahl describes the data best")


def test_gustafson_recovers_the_serial_share():
    sizes = [1, 2, 4, 8]
    fit = fit_gustafson(sizes, [5.0 * (0.2 + 0.8 * p) for p in sizes])
    assert fit is not None and fit.sigma == pytest.approx(0.2) and fit.rate_one == pytest.approx(5.0)


def test_a_fit_takes_one_baseline_and_the_layout_on_fewest_nodes():
    records = [make_record(layout="n1g1", images_per_s=1.0)]
    records += [
        make_record(strategy="sharded", layout=x, images_per_s=r)
        for x, r in (("n1g2", 1.9), ("n1g4", 3.6), ("n2g2", 3.0))
    ]
    rows = point_rows(records)
    series = [r for r in rows if r["strategy"] == "sharded"]
    assert [(p["strategy"], p["layout"]) for p in fitted_points(series, rows)] == [
        ("replicated", "n1g1"), ("sharded", "n1g2"), ("sharded", "n1g4"),
    ]  # fmt: skip
