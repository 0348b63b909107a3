"""`dist3dgs predict` on the shipped study: from published rates, from its own records, and what it refuses."""

import json
import shutil

import pytest

from dist3dgs.cli import main
from dist3dgs.config.matrix import load_study
from dist3dgs.config.naming import Layout
from dist3dgs.predict.calibration import predicted_train_s, segments
from dist3dgs.predict.machine import load_machine
from dist3dgs.predict.study import machine_of, predictor_of, records_of, scene_facts, workload_at
from dist3dgs.runs.record import load_record

REFERENCE = "results/reference/builtin/replicated/n1g{}/r0/record.json"


@pytest.fixture
def folder(repository, tmp_path, monkeypatch):
    """The shipped config without records."""
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keep_records(repository, folder, *ranks):
    for n in ranks:
        target = folder / f"results/builtin/replicated/n1g{n}/r0/record.json"
        target.parent.mkdir(parents=True)
        shutil.copy(repository / REFERENCE.format(n), target)


def predict(capsys, *arguments):
    status = main(["predict", *arguments])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_a_table_with_intervals_and_where_the_numbers_are_from(folder, capsys):
    status, text = predict(
        capsys, "n1g1", "n1g4", "--machine", "a100-40-nvlink", "--strategy", "sharded", "--explain"
    )
    assert status == 0
    assert "published points" in text and "GPU-hours" in text and "all_to_all(projections)" in text
    assert "assumed of NVIDIA A100" in text


def test_json_has_every_number_with_its_bounds(folder, capsys):
    status, text = predict(
        capsys, *("n128g8", "--machine", "h100-nvlink", "--gaussians", "1e9", "--strategy", "sharded"),
        *("--size", "4000x3000", "--global-batch", "2048", "--json"),
    )  # fmt: skip
    (found,) = json.loads(text)["predictions"]
    assert status == 0 and found["ranks"] == 1024 and found["simulated"]
    assert found["step_s"][1] < found["step_s"][0] < found["step_s"][2]
    assert found["global_batch"] == 2048


def test_without_records_the_machine_must_be_named(folder, capsys):
    status, text = predict(capsys)
    assert status == 2 and "--machine" in text and "h100-nvlink" in text


def test_records_calibrate_the_prediction(repository, folder, capsys):
    keep_records(repository, folder, 1)
    status, text = predict(capsys, "n1g2")
    assert status == 0 and "1 records of this study" in text and "on cpu" in text
    study = load_study(folder / "config")
    machine = machine_of(study, folder / "config", None)
    made = predictor_of(study, machine, scene_facts(study, "builtin"))
    two = load_record(repository / REFERENCE.format(2))
    assert predicted_train_s(made, two, (540, 360)) == pytest.approx(two.metrics.train_s, rel=0.1)
    one = made.forecast(
        workload_at(study, scene_facts(study, "builtin"), "replicated", Layout(1, 1)), Layout(1, 1)
    )
    record = load_record(repository / REFERENCE.format(1))
    assert one.total_s.low < record.metrics.total_s < one.total_s.high


def test_a_published_scene_is_predicted_as_it_was_published(repository, folder):
    """Bonsai is small and cheap, garden large and dear; gsplat's documentation has 1.25 and 5.84 M Gaussians."""
    study = load_study(folder / "config", [folder / "config/mipnerf360.yaml"])
    bonsai, garden = scene_facts(study, "bonsai"), scene_facts(study, "garden")
    assert (bonsai.gaussians, bonsai.size_px, bonsai.size_known) == (1_250_000, (1559, 1039), False)
    assert bonsai.density < 1 < garden.density
    small = workload_at(study, bonsai, "replicated", Layout(1, 1))
    large = workload_at(study, garden, "replicated", Layout(1, 1))
    assert (small.gaussians, large.gaussians) == (1_250_000, 5_000_000)  # the settings bound it
    assert workload_at(study, bonsai, "mcmc", Layout(1, 1)).gaussians == 5_000_000


def test_larger_layouts_narrow_the_interval_of_others(repository, folder):
    study = load_study(folder / "config")
    cpu = load_machine("cpu", folder / "config")
    records = [load_record(repository / REFERENCE.format(n)) for n in (1, 2)]
    scene = scene_facts(study, "builtin")
    alone, both = (predictor_of(study, cpu, scene, records[:n]) for n in (1, 2))
    assert both.error_several < alone.error_several and both.source.startswith("2 records")


def test_records_of_another_machine_do_not_calibrate(repository, folder):
    keep_records(repository, folder, 1)
    study = load_study(folder / "config")
    h100 = load_machine("h100-nvlink", folder / "config")
    assert not predictor_of(study, h100, scene_facts(study, "builtin")).calibrated
    assert len(records_of(study, "builtin")) == 1


def test_segments_are_cut_at_evaluations(repository):
    record = load_record(repository / REFERENCE.format(1))
    found = segments(record)
    assert len(found) == 5
    assert sum(s.step_s * 300 for s in found) == pytest.approx(record.metrics.train_s, rel=1e-3)
    assert segments(record.model_copy(update={"status": "failed"})) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["n1g4", "--global-batch", "6"], "no multiple"),
        (["--gaussians", "-1"], "--gaussians"),
        (["--gaussians", "nan"], "--gaussians"),
        (["n1g2", "--global-batch", "0"], "--global-batch"),
        (["n1x4"], "layout"),
        (["--strategy", "shard"], "sharded"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(folder, capsys, arguments, words):
    status, text = predict(capsys, *arguments, "--machine", "cpu")
    assert status == 2 and words in text and "Traceback" not in text


def test_ranks_beyond_the_cores_take_turns(folder, capsys):
    _, text = predict(capsys, "n1g2", "n1g4", "--machine", "cpu", "--json")
    two, four = json.loads(text)["predictions"]
    assert four["step_terms_s"]["pixels"] > 1.9 * two["step_terms_s"]["pixels"]
    assert "take turns" in four["notes"][0]
