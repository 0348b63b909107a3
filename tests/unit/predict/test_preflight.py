"""Findings about requests: the historic cases, thresholds, and what each tells to change."""

import shutil
from types import SimpleNamespace

import pytest

from dist3dgs.cli import main
from dist3dgs.config.matrix import load_study
from dist3dgs.config.models import TrainSettings, validate
from dist3dgs.config.naming import Layout, Point
from dist3dgs.predict.machine import load_machine
from dist3dgs.predict.model import predictor
from dist3dgs.predict.preflight import (
    Limits,
    accelerator_memory,
    allocation,
    batch_rule,
    check_study,
    disk,
    host_memory,
    time_limit,
    worst,
)
from dist3dgs.predict.study import machine_of
from dist3dgs.predict.workload import Workload


@pytest.fixture(scope="module")
def study(repository):
    return load_study(repository / "config", [repository / "config/mipnerf360.yaml"])


@pytest.fixture(scope="module")
def config(repository):
    return repository / "config"


def spec_of(study, layout, strategy="sharded", train=None, **parallel):
    spec = study.spec(Point("garden", strategy, Layout.parse(layout)))
    changed = spec.parallel.model_copy(update=parallel)
    return spec.model_copy(
        update={
            "parallel": changed,
            "train": validate(TrainSettings, spec.train.model_dump() | (train or {}), "t"),
        }
    )


def planner(workers):
    """The planner study's job: 16 ranks on 4 nodes of 256 GB, each with data workers of 8 GiB."""
    return host_memory(
        ranks_per_node=4, process_gib=6, workers=workers, worker_gib=8, node_gib=256 * 1e9 / 2**30
    )


def test_eight_workers_per_rank_are_refused_and_two_accepted():
    refused = planner(8)
    assert refused.status == "refuse" and "at most 6 workers per rank fit" in refused.setting
    assert (
        "4 ranks x (6.0 GiB + 8 workers x 8.0 GiB)" in refused.arithmetic[0] and "280.0 GiB" in refused.text
    )
    assert planner(2).status == "ok" and planner(2).setting == ""


def test_the_largest_number_that_is_named_fits_and_the_next_does_not():
    assert planner(6).status != "refuse" and planner(7).status == "refuse"


def test_without_workers_the_ranks_that_fit_are_named():
    found = host_memory(ranks_per_node=8, process_gib=10, node_gib=64, scene_gib=4)
    assert found.status == "refuse" and "at most 6 ranks per node" in found.setting
    assert host_memory(ranks_per_node=8, process_gib=10, node_gib=64, assumed=True).status == "warn"
    assert host_memory(ranks_per_node=6, process_gib=10, node_gib=64).status == "warn"  # above 90 %


def test_a_checkpoint_counts_once_per_node_in_host_memory(study, config):
    with_it = host_memory(ranks_per_node=4, process_gib=3.0, node_gib=16, checkpoint_gib=5.0)
    assert (
        with_it.status == "refuse" and "5.0 GiB of a checkpoint on rank 0 = 17.0 GiB" in with_it.arithmetic[0]
    )
    assert "at most 3 ranks per node fit" in with_it.setting
    limits = Limits(runtime_s=7200, longest_s=86400, mem_gib_per_rank=32, most_mem_gib=1024)
    (found,) = check_study(study, [Layout(1, 4)], limits, load_machine("h100-nvlink", config)).values()
    assert next("of a checkpoint" in f.arithmetic[0] for f in found if f.check == "host memory")


@pytest.mark.parametrize(
    ("gaussians", "layout", "kind", "status"),
    [(5.8e6, "n1g1", "sharded", "ok"), (22e6, "n1g1", "sharded", "warn"), (60e6, "n1g4", "replicated", "refuse"),
     (60e6, "n1g4", "sharded", "ok")],
)  # fmt: skip
def test_gpu_memory_is_compared_with_its_bounds(config, gaussians, layout, kind, status):
    made = predictor(load_machine("a100-40-nvlink", config))
    workload = Workload(gaussians=gaussians, width_px=1297, height_px=840, kind=kind)
    found = accelerator_memory(made, made.forecast(workload, Layout.parse(layout)))
    assert found.status == status, found
    if status != "ok":
        assert "max_gaussians: at most 2" in found.setting and "sharded" in found.setting
    assert "kB x" in found.arithmetic[0]


def test_a_resolution_of_4k_needs_more(config):
    made = predictor(load_machine("a100-40-nvlink", config))
    sizes = [(1297, 840), (5187, 3361)]
    highs = [
        made.memory_gb(Workload(gaussians=5e6, width_px=w, height_px=h), Layout(1, 1)).high for w, h in sizes
    ]
    assert highs[1] - highs[0] > 4


def test_a_run_longer_than_its_limit_is_resumed_unless_no_checkpoint_is_reached(config):
    made = predictor(load_machine("v100-nvlink", config))
    workload = Workload(gaussians=5.8e6, width_px=1297, height_px=840)
    forecast = made.forecast(workload, Layout(1, 1))
    assert time_limit(forecast, 6 * 3600, 24 * 3600, 2000).status == "ok"
    short = time_limit(forecast, 600, 24 * 3600, 2000)
    assert short.status == "warn" and "site.runtime_min" in short.setting
    never = time_limit(forecast, 600, 600, 30_000)
    assert never.status == "refuse" and "checkpoint_every" in never.setting


def test_an_allocation_larger_than_the_node_or_than_its_ranks(study, config):
    l40s = load_machine("l40s-pcie", config)
    assert allocation(spec_of(study, "n1g4"), Layout(1, 4), l40s).status == "ok"
    large = allocation(spec_of(study, "n1g8"), Layout(1, 8), l40s)
    assert large.status == "refuse" and "n1g4" in large.setting
    idle = allocation(spec_of(study, "n1g4", "replicated", ranks="one"), Layout(1, 4), l40s)
    assert idle.status == "warn" and "1 of 4 used" in idle.text


def test_the_batch_rule_is_judged_by_what_it_leaves(study):
    assert batch_rule(spec_of(study, "n1g4")).status == "ok"
    assert "negative" in batch_rule(spec_of(study, "n2g8")).arithmetic[0]
    momentum = batch_rule(spec_of(study, "n1g8", train={"batch_per_rank": 8}))
    assert momentum.status == "warn" and "momentum" in momentum.setting
    counts = batch_rule(spec_of(study, "n16g8"))
    assert counts.status == "warn" and "train.densify.every" in counts.setting
    assert (
        batch_rule(spec_of(study, "n1g4", train={"steps": 200, "densify": {"kind": "none"}})).status == "warn"
    )


def test_disk_counts_every_checkpoint_that_is_there_at_a_time(study, tmp_path):
    spec = spec_of(study, "n1g1", train={"densify": {"max_gaussians": 1_000_000}, "keep_checkpoints": 2})
    one = disk(tmp_path / "results/not/there", spec, 1)
    assert "2.2 GB a point" in one.text
    assert disk(tmp_path, spec, 10**9).status == "warn"
    assert (
        disk(tmp_path, spec_of(study, "n1g1", train={"densify": {"max_gaussians": 10**15}}), 1).status
        == "refuse"
    )


def test_a_study_keeps_the_most_severe_finding_of_each_check(study, config):
    limits = Limits(runtime_s=7200, longest_s=86400, mem_gib_per_rank=32, most_mem_gib=1024)
    found = check_study(study, [Layout(1, 4), Layout(1, 16)], limits, load_machine("l40s-pcie", config))
    four, sixteen = found.values()
    assert worst(four) != "refuse" and worst(sixteen) == "refuse"
    checks = [f.check for f in four]
    assert len(checks) == len(set(checks)) == 6
    assert {f.check for f in sixteen if f.status == "refuse"} == {"allocation"}
    without = check_study(study, [Layout(1, 4)], limits, None)
    assert {f.check for f in without[Layout(1, 4)]} == {"host memory", "batch rule", "disk"}


def test_a_batch_that_ranks_cannot_share_is_refused(repository, tmp_path):
    overlay = tmp_path / "batch.yaml"
    overlay.write_text("train: {global_batch: 4}\nlayouts: [n1g1]\n")
    study = load_study(repository / "config", [overlay])
    limits = Limits(runtime_s=7200, longest_s=86400, mem_gib_per_rank=32, most_mem_gib=1024)
    (found,) = check_study(study, [Layout(1, 3)], limits, None).values()
    assert worst(found) == "refuse" and "multiple of the 3 ranks" in found[0].text


def test_points_that_the_config_leaves_out_are_not_judged(repository, tmp_path, config):
    overlay = tmp_path / "o.yaml"
    overlay.write_text("layouts: [n1g1, n1g16]\nexclude: [{layout: n1g16, reason: no such machine}]\n")
    study = load_study(config, [overlay])
    limits = Limits(runtime_s=7200, longest_s=86400, mem_gib_per_rank=32, most_mem_gib=1024)
    found = check_study(study, [Layout(1, 1), Layout(1, 16)], limits, load_machine("l40s-pcie", config))
    assert found[Layout(1, 16)] == []
    (room,) = [f.text for f in found[Layout(1, 1)] if f.check == "disk"]
    assert "GB for 1;" in room


def test_a_study_on_cpus_is_compared_with_cpus_whatever_gpus_the_site_has(repository, tmp_path):
    overlay = tmp_path / "o.yaml"
    overlay.write_text("hardware: {device: cpu}\n")
    study = load_study(repository / "config", [overlay])
    assert machine_of(study, repository / "config", None, gpu_type="a100").accelerator == "cpu"
    assert machine_of(study, repository / "config", "h200-nvlink", gpu_type="a100").accelerator != "cpu"


def test_the_verb_explains_without_slurm(repository, tmp_path, monkeypatch, capsys):
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    job = ["preflight", "--no-slurm", "--machine", "l40s-pcie", "--layouts", "n4g4", "--process-gib", "6"]
    assert main([*job, "--workers", "8", "--worker-gib", "8", "--explain"]) == 2
    text = capsys.readouterr().out
    assert "refuse  host memory" in text and "at most 7 workers per rank fit" in text and "256.0 GiB" in text
    assert main([*job, "--workers", "2", "--worker-gib", "8"]) == 0
    assert "refuse" not in capsys.readouterr().out


def test_a_workload_states_its_own_sizes(repository, tmp_path, monkeypatch, capsys):
    """The planner's job from its settings alone: 8 loaders on each of 16 ranks are refused, 2 accepted."""
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    overlay = tmp_path / "planner.yaml"
    overlay.write_text(
        "{scenes: [], workloads: [planner], layouts: [n4g4], workload_library: {planner: {loader_workers: 8}}}"
    )
    job = ["preflight", "--no-slurm", "--machine", "l40s-pcie", "--configfile", str(overlay)]
    assert main(job) == 2
    text = capsys.readouterr().out
    assert "(planner/full)" in text
    assert "refuse  host memory        280.0 GiB of 256.0 GiB" in text
    assert "at most 7 workers per rank fit" in text
    assert main([*job, "--workers", "2"]) == 0
    overlay.write_text("{scenes: [], workloads: [planner], layouts: [n4g4]}")
    assert main(job) == 0, "2 are what the shipped entry has"


def test_of_a_workload_without_sizes_the_records_tell(repository, tmp_path, config, monkeypatch):
    overlay = tmp_path / "o.yaml"
    overlay.write_text("{scenes: [], workloads: [resnet50], layouts: [n1g4]}")
    study = load_study(config, [overlay])
    limits = Limits(runtime_s=7200, longest_s=86400, mem_gib_per_rank=4, most_mem_gib=1024)
    (found,) = check_study(study, [Layout(1, 4)], limits, None)[Layout(1, 4)]
    assert "assumed" in found.text and found.status != "refuse"
    measured = SimpleNamespace(
        run=SimpleNamespace(strategy="default"), metrics=SimpleNamespace(peak_rss_gib=5.0)
    )
    monkeypatch.setattr("dist3dgs.predict.preflight.records_of", lambda study, name: [measured])
    (found,) = check_study(study, [Layout(1, 4)], limits, None)[Layout(1, 4)]
    assert found.status == "refuse" and "20.0 GiB" in found.text
