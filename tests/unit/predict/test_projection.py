"""Time to finish from first steps and from epoch times."""

import json
import shutil

import pytest

from dist3dgs.cli import main
from dist3dgs.config.matrix import load_study
from dist3dgs.config.naming import Layout, Point
from dist3dgs.errors import UserError
from dist3dgs.predict.projection import StepSeen, parse_epoch, project_epochs, project_run, steps_seen
from dist3dgs.runs.events import EventWriter


@pytest.fixture
def spec(repository):
    study = load_study(repository / "config")
    return study.spec(
        Point("builtin", "replicated", Layout(1, 2))
    )  # 750 steps of 2 images, densified up to step 600


def steps(last, gaussians, *, offset=0.02, slope=1e-6, every=25):
    """Events of steps of offset + slope N seconds."""
    return [
        StepSeen(step=s, step_s=offset + slope * gaussians(s), gaussians=gaussians(s))
        for s in range(every, last + 1, every)
    ]


def test_a_fixed_number_of_gaussians_leaves_a_sharp_projection(spec):
    seen = steps(300, lambda s: 50_000)
    fixed = spec.model_copy(
        update={
            "train": spec.train.model_copy(
                update={"densify": spec.train.densify.model_copy(update={"kind": "none"})}
            )
        }
    )
    found = project_run(seen, fixed, elapsed_s=30.0)
    assert found.left_s.value == pytest.approx(450 * 0.07)
    assert found.left_s.low == pytest.approx(found.left_s.high)
    assert found.rank_hours.value == pytest.approx(2 * (30 + 31.5) / 3600)


def test_growth_is_carried_on_and_bounded(spec):
    """50 Gaussians a step up to 30,000 at step 600; the bounds are no growth and 100,000 at once."""
    found = project_run(steps(300, lambda s: 50 * s), spec, elapsed_s=10.0)
    left = 300 * (0.02 + 22_500e-6) + 150 * (0.02 + 30_000e-6)
    assert found.left_s.value == pytest.approx(left, rel=0.02)
    assert found.left_s.low == pytest.approx(450 * (0.02 + 15_000e-6), rel=0.02)
    assert found.left_s.high == pytest.approx(450 * 0.12, rel=0.02)
    assert "30,000 expected at step 600" in found.basis


def test_the_true_time_of_a_growing_run_is_inside_the_interval(spec):
    def grows(step):
        return 20_000 + 80_000 * min(1.0, step / 600) ** 0.5

    found = project_run(steps(150, grows), spec, elapsed_s=5.0)
    true = sum(0.02 + 1e-6 * grows(s) for s in range(151, 751))
    assert found.left_s.low < true < found.left_s.high
    assert found.left_s.value == pytest.approx(true, rel=0.2)


def test_nothing_is_projected_from_one_event(spec):
    assert project_run(steps(25, lambda s: 10), spec, 1.0) is None
    assert project_run([], spec, 0.0) is None


def test_steps_after_a_restart_are_those_that_count():
    def step(n, rank=0):
        return {"event": "step", "rank": rank, "step": n, "step_s": 0.1, "num_gaussians": 5}

    events = [
        {"event": "start", "rank": 0},
        step(10),
        step(20),
        {"event": "start", "rank": 0},
        step(5),
        step(5, rank=1),
    ]
    assert [s.step for s in steps_seen(events)] == [5]
    assert steps_seen([{"event": "step", "rank": 0, "step": "x", "step_s": None}]) == []


def test_epoch_times_of_the_planner():
    """2.0 h an epoch are 80 h on one GPU for 40 epochs, 9 min are 6 h on 16."""
    one, eight, sixteen = project_epochs([parse_epoch(t) for t in ("1=2.0h", "8=15min", "16=9m")], 40)
    assert (one.total_s, eight.total_s, sixteen.total_s) == (80 * 3600, 10 * 3600, 6 * 3600)
    assert (one.rank_hours, sixteen.rank_hours) == (80, 96)
    assert sixteen.speedup == pytest.approx(13.33, abs=0.01) and sixteen.efficiency == pytest.approx(
        0.833, abs=1e-3
    )


@pytest.mark.parametrize("text", ["1", "=2h", "0=2h", "1=", "1=0s", "1=soon", "1=UNLIMITED", "x=3s"])
def test_an_epoch_time_that_cannot_be_read_is_explained(text):
    with pytest.raises(UserError, match="RANKS=TIME"):
        parse_epoch(text)


def test_the_verb_projects_epochs_and_points(repository, tmp_path, monkeypatch, capsys):
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    assert main(["project", "--epochs", "40", "1=2.0h", "16=9m"]) == 0
    assert "80.0 h" in (text := capsys.readouterr().out) and "6.0 h" in text
    assert main(["project", "1=2.0h"]) == 2 and "--epochs" in capsys.readouterr().err
    assert main(["project", "1=2.0h", "builtin/replicated/n1g2"]) == 2
    capsys.readouterr()

    folder = tmp_path / "results/builtin/replicated/n1g2/r0/attempts/000"
    folder.mkdir(parents=True)
    write = EventWriter(folder / "events.node.jsonl", 0)
    write("start", world_size=2)
    for s in steps(300, lambda s: 50 * s):
        write("step", step=s.step, step_s=s.step_s, num_gaussians=s.gaussians)
    write.close()
    assert main(["project", "builtin/replicated/n1g2", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["step"] == 300 and found["left_s"]["low"] < found["left_s"]["value"]
    assert main(["project", "builtin/replicated/n1g1"]) == 0
    assert "too few steps" in capsys.readouterr().out
