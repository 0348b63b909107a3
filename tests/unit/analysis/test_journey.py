"""The journey of a study, on the four historic configurations it grew from."""

import csv

import pytest

from dist3dgs import figures
from dist3dgs.analysis.journey import attempts, differences, performance_comparison, technical_challenges
from dist3dgs.analysis.tables import tabulate
from dist3dgs.runs.record import EarlierAttempt, Failure, RankMetrics
from tests.unit.helpers.records import make_record, write_records


@pytest.fixture
def historic():
    """One-GPU baseline; four GPUs of which one was used; the stride crash; its mended successor; a long run.

    Seconds are those of the study (facts of its logs): 679 s of which 284 s stepping, then 617 s of which 284 s.
    """
    short = {"train": {"steps": 7000, "global_batch": None}, "parallel": {"init": "broadcast"}}
    independent = short | {"parallel": {"init": "independent"}}
    long = short | {"train": {"steps": 30000, "global_batch": None}}
    common = {"scene": "bicycle", "strategy": "ddp", "gpu": True}

    def run(layout, start, total_s, stepping, images=7000, **more):
        phases = {"caching": total_s - stepping - 40, "step": stepping}
        return make_record(
            layout=layout,
            started_at=start,
            images=images,
            total_s=total_s,
            phases_s=phases,
            **{**common, **more},
        )

    crash = {"status": "failed", "cause": "parameter_mismatch", "settings": independent}
    return [
        run("n1g4", 4e9, 300.0, 120.0, settings=short, repeat=1),
        run("n1g1", 1e9, 679.0, 284.0, settings=short),
        run("n1g4", 3e9, 60.0, 0.0, evidence="params[1] does not match strides", repeat=2, **crash),
        run("n1g4", 2e9, 617.0, 284.0, status="degraded", cause="allocation_mismatch", settings=short),
        run("n1g1", 5e9, 1700.0, 1300.0, images=30000, settings=long, repeat=1),
    ]


def test_attempts_are_in_order_of_their_start(historic):
    journey = attempts(historic)
    assert [a.number for a in journey] == [1, 2, 3, 4, 5]
    assert [a.record.status for a in journey] == ["ok", "degraded", "failed", "ok", "ok"]


def test_logs_without_a_start_come_first_in_the_order_of_their_jobs():
    records = [make_record(repeat=i) for i in range(3)]
    jobs = ((None, "9104940"), (1e9, None), (None, "9097883"))
    records = [
        r.model_copy(
            update={"provenance": r.provenance.model_copy(update={"started_at": t, "slurm_job_id": j})}
        )
        for r, (t, j) in zip(records, jobs, strict=True)
    ]
    assert [a.record.run.repeat for a in attempts(records)] == [2, 0, 1]


def test_images_are_not_compared_with_steps():
    """A log that tells only its steps, beside a baseline that knows both, with four images a step."""
    base = make_record(global_batch=4, images=4000, total_s=200.0, phases_s={"step": 150.0}, started_at=1.0)
    log = make_record(
        layout="n1g2", images=None, steps=1000, total_s=120.0, phases_s={"step": 75.0}, started_at=2.0
    )
    assert performance_comparison(attempts([base, log]))[1].measured_s == pytest.approx(120.0)


def test_what_changed_between_attempts(historic):
    journey = attempts(historic)
    assert journey[0].changes == []
    assert journey[1].changes == ["layout n1g1 → n1g4"]
    assert journey[2].changes == ["parallel.init broadcast → independent"]
    assert journey[4].changes == ["layout n1g4 → n1g1", "train.steps 7000 → 30000"]


def test_repeats_and_imported_logs_are_not_changes_of_settings():
    a, b = make_record(repeat=0), make_record(repeat=1)
    assert differences(a, b) == ["repeat 0 → 1"]
    imported = make_record(settings={})
    assert differences(a, imported) == []


def test_settings_of_another_program_are_not_listed():
    theirs = make_record(settings={"trainer": "nerfstudio", "steps": 7000})
    assert differences(theirs, make_record(scene="fox")) == ["scene builtin → fox", "another program"]


def test_cost_counts_allocated_gpus_used_or_not(historic):
    journey = attempts(historic)
    assert journey[1].rank_hours == pytest.approx(4 * 617 / 3600)


def test_challenges_have_evidence_and_who_overcame_them(historic):
    mismatch, crash = technical_challenges(attempts(historic))
    assert (mismatch.cause, mismatch.attempts, mismatch.solved_by) == ("allocation_mismatch", [2], 4)
    assert (crash.cause, crash.attempts, crash.solved_by) == ("parameter_mismatch", [3], 4)
    assert crash.evidence[0].text == "params[1] does not match strides" and crash.remedy


def test_a_challenge_met_again_later_is_not_overcome():
    records = [
        make_record(status="failed", started_at=1.0),
        make_record(started_at=2.0, repeat=1),
        make_record(status="failed", started_at=3.0, repeat=2),
    ]
    (challenge,) = technical_challenges(attempts(records))
    assert challenge.attempts == [1, 3] and challenge.solved_by is None


def test_serial_phases_bound_what_four_gpus_could_have_done(historic):
    """The "4-GPU" run of 617 s: ideal scaling would be 170 s, but perfect stepping could not go under 404 s."""
    degraded = performance_comparison(attempts(historic))[1]
    assert degraded.expected_s == pytest.approx(679 / 4)
    assert degraded.measured_s == pytest.approx(617)
    assert degraded.best_possible_s == pytest.approx(617 - 284 + 284 / 4)


def test_long_run_is_normalised_to_the_short_one(historic):
    long = performance_comparison(attempts(historic))[4]
    assert long.normalised_steps == 7000 and long.steps == 30000
    assert long.measured_s == pytest.approx(400 + 1300 * 7000 / 30000)


def test_evaluation_and_densification_of_a_long_run_are_normalised_too():
    """Of 3,000 steps for 700: startup and load are once, all that recurs while stepping scales with the steps."""
    once = {"startup": 8.0, "load": 2.0}
    short = once | {"step": 70.0, "densify": 7.0, "evaluate": 12.0, "checkpoint": 1.0}
    long = once | {name: s * 30 / 7 for name, s in short.items() if name not in once}
    runs = [
        make_record(images=700, started_at=1.0, phases_s=short, total_s=sum(short.values())),
        make_record(images=3000, repeat=1, started_at=2.0, phases_s=long, total_s=sum(long.values())),
    ]
    compared = performance_comparison(attempts(runs))[1]
    assert compared.measured_s == pytest.approx(100.0), "as long as the short run"


def test_the_named_baseline_is_what_runs_are_expected_from():
    sizes = ("n1g1", "n1g2", "n1g4")
    runs = [make_record(layout=x, started_at=float(i), total_s=100.0) for i, x in enumerate(sizes)]
    last = performance_comparison(attempts(runs), "replicated/n1g2")[2]
    assert last.baseline == "attempt 2 (n1g2)" and last.expected_s == pytest.approx(50.0)


def test_strategies_that_do_the_same_work_have_one_baseline():
    """As in the demo: sharded runs on two ranks alone, and what is expected of it comes from the run on one."""
    train = {"parallel": {"kind": "replicated"}, "train": {"sh_degree": 3}}
    one = make_record(settings=train)
    two = make_record(strategy="sharded", layout="n1g2", settings=train | {"parallel": {"kind": "sharded"}})
    _, found = performance_comparison(attempts([one, two]))
    assert found.baseline == "attempt 1 (n1g1)" and found.expected_s == pytest.approx(one.metrics.total_s / 2)


def test_unfinished_run_has_an_expectation_but_no_measurement(historic):
    crash = performance_comparison(attempts(historic))[2]
    assert crash.expected_s is not None and crash.measured_s is None and crash.best_possible_s is None
    assert crash.reason == "the run did not finish"


def test_without_a_success_nothing_is_expected():
    (only,) = performance_comparison(attempts([make_record(status="failed")]))
    assert only.expected_s is None and "no successful run" in (only.reason or "")


@pytest.mark.slow
def test_journey_figure_keeps_every_failure_apart_from_successes(tmp_path):
    records = [
        make_record(
            layout=f"n1g{1 + i % 3}", repeat=i, started_at=float(i), status="failed" if i == 17 else "ok"
        )
        for i in range(40)
    ]
    paths = write_records(tmp_path, records)
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    figures.draw("journey", tmp_path / "runs.csv", tmp_path / "points.csv", paths, tmp_path / "journey")
    with (tmp_path / "journey.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [(r["attempt"], r["last_attempt"], r["status"]) for r in rows] == [
        ("1", "17", "ok"),
        ("18", "18", "failed"),
        ("19", "40", "ok"),
    ]
    cost = sum(float(r["rank_hours"]) for r in rows)
    assert cost == pytest.approx(sum(r.metrics.total_s * r.world_size / 3600 for r in records))


def test_a_run_that_was_tried_three_times_is_three_attempts_and_their_costs_add_up():
    record = make_record(layout="n1g2", started_at=300.0, total_s=180.0)
    earlier = [
        EarlierAttempt(attempt=0, started_at=0.0, finished_at=50.0, failure=Failure(cause="preempted")),
        EarlierAttempt(attempt=1, started_at=100.0, finished_at=130.0, failure=Failure(cause="node_failure")),
    ]
    provenance = record.provenance.model_copy(update={"attempt": 2})
    record = record.model_copy(update={"earlier": earlier, "provenance": provenance})
    journey = attempts([record])
    assert [(a.record.status, a.record.failure and a.record.failure.cause) for a in journey] == [
        ("failed", "preempted"),
        ("failed", "node_failure"),
        ("ok", None),
    ]
    assert [a.changes for a in journey] == [[], ["attempt 0 → 1"], ["attempt 1 → 2"]]
    assert [a.rank_hours for a in journey] == pytest.approx([2 * s / 3600 for s in (50, 30, 100)])
    assert [c.solved_by for c in technical_challenges(journey)] == [3, 3]


def test_a_long_run_under_another_name_is_normalised_to_the_short_one_not_to_itself():
    short = {"strategy": "replicated", "train": {"steps": 700}, "parallel": {"init": "broadcast"}}
    long = {"strategy": "extended", "train": {"steps": 3000}, "parallel": {"init": "broadcast"}}
    runs = [
        make_record(images=700, settings=short, started_at=1.0, total_s=20.0, phases_s={"step": 14.0}),
        make_record(
            strategy="extended",
            images=3000,
            settings=long,
            started_at=2.0,
            total_s=80.0,
            phases_s={"step": 70.0},
        ),
    ]
    extended = performance_comparison(attempts(runs))[1]
    assert extended.baseline == "attempt 1 (n1g1)" and extended.normalised_steps == 700
    assert extended.measured_s == pytest.approx(10 + 70 * 700 / 3000)


def test_a_run_on_one_of_four_devices_shows_by_itself_what_one_can_do():
    """The real job: 617 s, of which 285 s stepping; four devices could not have made it shorter than 403 s."""
    job = make_record(
        layout="n1g4", status="degraded", cause="allocation_mismatch", total_s=617.0, phases_s={"step": 285.2}
    )
    job = job.model_copy(update={"metrics": job.metrics.model_copy(update={"ranks": [RankMetrics(rank=0)]})})
    (p,) = performance_comparison(attempts([job]))
    assert p.baseline == "attempt 1 (1 rank of n1g4)"
    assert p.expected_s == pytest.approx(617 / 4) and p.measured_s == pytest.approx(617)
    assert p.best_possible_s == pytest.approx(617 - 285.2 + 285.2 / 4)


def test_the_story_is_two_tables_beside_the_others(tmp_path, historic):
    paths = write_records(tmp_path, historic)
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    with (tmp_path / "technical_challenges.csv").open(newline="", encoding="utf-8") as f:
        assert [(r["cause"], r["solved_by_attempt"]) for r in csv.DictReader(f)] == [
            ("allocation_mismatch", "4"),
            ("parameter_mismatch", "4"),
        ]
    with (tmp_path / "performance_comparison.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 5 and rows[1]["best_possible_s"] == "404.0" and rows[2]["measured_s"] == ""


def test_a_finished_run_without_a_wall_time_did_finish():
    base, other = make_record(layout="n1g1"), make_record(layout="n1g2", started_at=1.9e9)
    other = other.model_copy(update={"metrics": other.metrics.model_copy(update={"total_s": None})})
    reason = performance_comparison(attempts([base, other]))[1].reason
    assert reason == "its wall time is not known"


def test_the_journeys_settings_are_valid(repository):
    """What `make journey` lays over config.yaml: its five points are there and nothing else is asked for."""
    import yaml
    from snakemake.utils import update_config

    from dist3dgs.config.load import FILES
    from dist3dgs.config.matrix import Study

    raw = {}
    for name in (*FILES, "journey.yaml"):
        update_config(raw, yaml.safe_load((repository / "config" / name).read_text()))
    study = Study.from_config(raw)
    points = {f"{p.point.strategy}/{p.point.layout}" for p in study.specs()}
    script = (repository / "scripts" / "journey.sh").read_text()
    asked = script.split("for point in ")[1].split(";")[0].split()
    assert points == set(asked)
    assert study.config.results in script
