"""Run times told beforehand: from the records of runs that were made."""

import json
import math

import pytest

from dist3dgs.config.models import Hardware, RunSpec, Strategy, TrainSettings
from dist3dgs.config.naming import Point
from dist3dgs.runs.record import Environment, Metrics, Run, RunRecord, load_record
from dist3dgs.slurm.planner import Planner
from dist3dgs.slurm.queue import Queue
from dist3dgs.slurm.runtime_prediction import predict, read_records, time_limit_min
from dist3dgs.slurm.site import read_site


def spec(layout: str, **train) -> RunSpec:
    settings = TrainSettings(**{"steps": 8000, "keep": "images", **train})
    return RunSpec(
        scene="s",
        strategy="t",
        layout=layout,
        repeat=0,
        seed=1,
        parallel=Strategy(),
        train=settings,
        hardware=Hardware(),
    )


def record(layout: str, train_s: float, images: int, device: str = "NVIDIA H100 80GB HBM3") -> RunRecord:
    return RunRecord(
        run=Run(scene="s", strategy="t", layout=layout, repeat=0, seed=1),
        status="ok",
        metrics=Metrics(total_s=train_s + 50, train_s=train_s, images=images),
        environment=Environment(devices=[device]),
    )


def test_without_records_it_is_the_time_limit():
    found = predict([spec("n1g4")], [], {}, 7200)
    assert (found.seconds, found.source) == (7200, "site.runtime_min")


@pytest.mark.parametrize(
    ("layout", "train", "seconds"),
    [
        ("n1g4", {}, 250),  # as it was
        ("n1g4", {"steps": 16000}, 450),
        ("n2g4", {}, 150),  # the same images on twice the ranks
        ("n2g4", {"keep": "steps"}, 850),  # 8,000 steps, an image per rank each, at 0.1 s
    ],
)
def test_what_a_rank_takes_for_an_image_is_carried_over(layout, train, seconds):
    found = predict([spec(layout, **train)], [record("n1g4", 200, 8000), record("n1g1", 1e6, 8000)], {}, 7200)
    assert found.seconds == pytest.approx(seconds) and found.source == "from s/t/n1g4/r0"


def test_another_layout_is_predicted_by_the_model_with_its_bound(repository, monkeypatch):
    """From the demo's run on one rank: two do not take half of its time."""
    monkeypatch.chdir(repository)
    one, two = (
        load_record(repository / f"results/reference/builtin/replicated/n1g{n}/r0/record.json")
        for n in (1, 2)
    )
    asked = RunSpec.model_validate(two.run.settings)
    found = predict([asked], [one], {}, 7200)
    assert found.source == "model fitted to 1 records of builtin"
    assert found.seconds == pytest.approx(two.metrics.total_s, rel=0.1)
    assert found.most_s is not None and found.seconds < found.most_s
    ideal = predict(
        [asked], [one.model_copy(update={"metrics": one.metrics.model_copy(update={"curve": []})})], {}, 1
    )
    assert ideal.most_s is None and ideal.seconds < 0.95 * found.seconds
    assert predict([asked], [one, two], {}, 7200).source == "from builtin/replicated/n1g2/r0"


def test_slower_gpus_took_longer():
    slow = record("n1g4", 200, 8000, device="NVIDIA L40S")
    assert predict([spec("n1g4")], [slow], {"h100": 1.0, "l40s": 0.5}, 7200).seconds == pytest.approx(125)
    assert predict([spec("n1g4")], [slow], {"a100-sxm4": 0.5}, 7200).seconds == pytest.approx(250)


def test_records_are_read_from_the_results(tmp_path):
    path = tmp_path / "s/t/n1g4/r0/record.json"
    path.parent.mkdir(parents=True)
    path.write_text(record("n1g4", 200, 8000).model_dump_json())
    (tmp_path / "s/t/n1g4/r1").mkdir()
    (tmp_path / "s/t/n1g4/r1/record.json").write_text("{")
    assert [r.run.layout for r in read_records(tmp_path)] == ["n1g4"]


def test_the_time_limit_follows_the_records_with_a_margin():
    asked, known = spec("n1g4"), [record("n1g4", 3550, 8000)]
    site = read_site({"runtime_min": 60, "max_runtime_min": 600})
    assert time_limit_min(asked, [], site) is None
    assert time_limit_min(asked, known, site) == (10 + 90, "from s/t/n1g4/r0")  # 1.5 x 3,600 s
    assert time_limit_min(asked, known, site.model_copy(update={"runtime_margin": 0.0})) is None
    assert time_limit_min(asked, known, site.model_copy(update={"max_runtime_min": 45})) == (
        45,
        "from s/t/n1g4/r0",
    )
    slower = site.model_copy(update={"gpu_speed": {"h100": 1.0, "l40s": 0.5}, "gpu_type": "l40s"})
    assert time_limit_min(asked, known, slower) == (10 + 180, "from s/t/n1g4/r0")


def test_the_planner_asks_for_the_time_that_records_of_the_scene_predict(tmp_path):
    point, elsewhere = Point.parse("s", "t", "n1g4"), Point.parse("other", "t", "n1g4")
    path = tmp_path / "s/t/n1g1/r0/record.json"
    path.parent.mkdir(parents=True)
    path.write_text(record("n1g1", 3550, 8000).model_dump_json())
    text = spec("n1g4").model_dump_json()

    def asked(point: Point, **site: float) -> object:
        planner = Planner(tmp_path, read_site({"runtime_min": 60, **site}), Queue(tmp_path))
        planner.queue.of_point = lambda point, but=None: []  # type: ignore[method-assign]
        return planner.resources(point, 1, text)["runtime"]

    # A quarter of the images on each of four ranks (scaled ideally: the record has no curve), 50 s beside the training.
    assert asked(point) == 10 + math.ceil(1.5 * (3550 / 4 + 50) / 60)
    assert asked(elsewhere) == asked(point, runtime_margin=0) == 60
    # The next attempt of a run that took longer has one and a half times the usual limit, not of the prediction.
    ended = {"cause": "time_limit", "note": "", "at": 1100.0}
    launch = {
        "started_at": 1000.0,
        "finished_at": 1100.0,
        "status": "failed",
        "ended": ended,
        "spec": json.loads(text),
    }
    path = point.folder(tmp_path) / "attempts/000/launch.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(launch))
    assert asked(point) == 1.5 * 60
