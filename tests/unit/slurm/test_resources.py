"""What a layout asks for, down to the sbatch line that the executor plugin makes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from dist3dgs.config.models import Scene
from dist3dgs.config.naming import Layout, Point
from dist3dgs.slurm.outcome import resolve_outcomes
from dist3dgs.slurm.planner import Planner
from dist3dgs.slurm.queue import Queue, comment_of
from dist3dgs.slurm.resources import (
    DECIDED_BY,
    KEYS,
    PROFILE_DEFAULTS,
    contradiction,
    ingest_resources,
    layout_resources,
    rule_defaults,
    rule_resources,
    sfm_limits,
    small_resources,
)
from dist3dgs.slurm.retry import Decision
from dist3dgs.slurm.site import Site, export, read_site

GOLDEN = Path(__file__).parents[1] / "golden"
SITE = {"account": "lab", "gpu_type": "h100", "cpus_per_gpu": 8, "mem_gib_per_gpu": 60, "max_mem_gib": 500}


class Resources(dict):
    """As the plugin sees a job's resources: a mapping with attributes."""

    __getattr__ = dict.__getitem__


def sbatch_line(resources, site: Site) -> str:
    """The plugin's own sbatch line for these resources."""
    job = SimpleNamespace(resources=Resources(resources), threads=1, is_group=lambda: False)
    validate_slurm_extra(job)
    params = {
        "run_uuid": "dist3dgs_run", "slurm_logfile": "logs/slurm/%j.log", "comment_str": "rule_train",
        "workdir": "/study",
        "account": f"-A {site.account}", "partition": f"-p {resources['slurm_partition']}",
    }  # fmt: skip
    settings = SimpleNamespace(requeue=True, no_requeue=False, qos=None, reservation=None)
    return get_submit_command(job, params, settings=settings) + set_gres_string(job)


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("gres", {"gpu_request": "gres"}),
        ("gpus-per-node", {"gpu_request": "gpus-per-node"}),
        ("none", {"gpu_request": "none"}),
        ("qos", {"qos": "gold"}),
        ("hyphen", {"gpu_type": "a100-sxm4-80gb"}),
    ],
)
def test_sbatch_lines(way, settings):
    """Golden: every layout from one GPU to 500, for each way of asking for GPUs."""
    site = read_site({**SITE, **settings})
    layouts = ["n1g1", "n1g2", "n1g4", "n2g1", "n2g2", "n2g4", "n8g8", "n16g8", "n125g4"]
    lines = [f"{name}: {sbatch_line(layout_resources(Layout.parse(name), site), site)}" for name in layouts]
    text, path = "\n".join(lines) + "\n", GOLDEN / f"sbatch-{way}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; if that is meant: UPDATE_GOLDEN=1 pytest {__file__}"


def test_growth_stops_at_the_nodes_memory_and_the_partitions_limit():
    site = read_site({**SITE, "max_runtime_min": 200})
    grown = layout_resources(
        Layout(1, 8), site, Decision(action="train", reason="", mem_factor=1.5, runtime_factor=2.25)
    )
    assert grown["mem_mb"] == 500 * 1024 and grown["runtime"] == 200


def test_small_jobs_ask_for_no_gpu_and_wait_for_what_they_wait_for():
    site = read_site(SITE)
    line = sbatch_line(small_resources(site, after=[7, 8]), site)
    assert "--dependency=afterany:7:8" in line and "gres" not in line and "--cpus-per-task=1" in line
    gold = read_site({**SITE, "qos": "gold"})
    assert "--qos=gold" in sbatch_line(small_resources(gold), gold) and "--qos" not in line


def test_every_rule_on_the_cluster_is_told_who_pays():
    """Text, whatever it looks like: `default-resources` of a profile are evaluated, and 2024_01 is a number there."""
    asked = rule_defaults(read_site({"account": "2024_01", "cpu_partition": "cpu", "qos": "gold"}))
    assert asked == {"slurm_account": "2024_01", "slurm_partition": "cpu", "qos": "gold"}
    assert rule_defaults(read_site({"cpu_partition": None})) == {}


def planner(tmp_path: Path, **site) -> Planner:
    made = Planner(tmp_path, read_site({**SITE, **site}), Queue(tmp_path))
    made.own_job = None
    made.queue.of_point = lambda point, but=None: []  # type: ignore[method-assign]
    return made


def attempt(folder: Path, number: int, **launch) -> None:
    path = folder / f"attempts/{number:03d}/launch.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"started_at": 1000.0, "finished_at": 1100.0, "spec": {"layout": "n1g4"}, **launch})
    )


def test_the_next_submission_follows_the_reason(tmp_path):
    point = Point.parse("garden", "sharded", "n1g4")
    first = planner(tmp_path).resources(point, 1, "{}")
    attempt(point.folder(tmp_path), 0, status="failed", ended={"cause": "host_oom", "note": "", "at": 1100.0})
    # Asked as the plugin's job step asks: inside a job nothing is submitted and sbatch is not consulted.
    inside = planner(tmp_path)
    inside.own_job = 99
    assert inside.resources(point, 2, "{}")["mem_mb"] == pytest.approx(1.5 * int(first["mem_mb"]), abs=1)
    attempt(point.folder(tmp_path), 1, status="failed", cause="code_error")
    assert planner(tmp_path).resources(point, 3, "{}") == small_resources(read_site(SITE))


@pytest.mark.slow
def test_an_outcome_is_published_after_a_launcher_that_outlives_its_job(tmp_path, monkeypatch):
    """Where Slurm has ended the job and its processes live on: what they do last must not undo what is published."""
    from dist3dgs.slurm import planner as module

    monkeypatch.setattr(module, "SNAKEMAKE_EXIT_S", 0.2)
    point, made = Point.parse("garden", "sharded", "n1g4"), planner(tmp_path)
    folder = point.folder(tmp_path)
    attempt(folder, 0, status="failed", ended={"cause": "cancelled", "note": "", "at": 1100.0})
    told = []
    monkeypatch.setattr(
        module,
        "resolve_outcomes",
        lambda folder, digest: told.append(folder) or resolve_outcomes(folder, digest),
    )
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print(flush=True); time.sleep(1)"
    arguments = [sys.executable, "-c", hold, str(folder / ".lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline()
        made.resources(point, 1, "{}")
        told.clear()
        assert made.finish(point, 1, "{}")
        assert launcher.poll() is not None, "published beside a running launcher"
    assert told == [folder], "what the launcher wrote last was not resolved again"
    assert json.loads((folder / "launch.json").read_text())["ended"]["cause"] == "cancelled"


def test_a_point_without_history_costs_no_call(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("a command was called"))
    quiet = planner(tmp_path)
    functions = rule_resources(
        lambda wildcards, attempt: quiet.resources(wildcards, attempt, "{}"), quiet.site
    )
    point = Point.parse("garden", "sharded", "n2g4")
    values = {k: f(point, 1) if callable(f) else f for k, f in functions.items()}
    assert values == layout_resources(Layout(2, 4), read_site(SITE)) | {"slurm_account": "lab"}
    assert set(values) == {*KEYS, "slurm_account"}


def test_the_comment_names_the_point_as_the_plugin_does():
    from snakemake_executor_plugin_slurm.utils import get_job_wildcards

    point = Point.parse("garden", "sharded", "n2g4", "r3")
    for results in ("results", "/scratch/me/results of may"):
        job = SimpleNamespace(wildcards=[results, "garden", "sharded", "n2g4", "r3"])
        assert comment_of(point, results) == f"rule_train_wildcards_{get_job_wildcards(job)}"


def test_the_site_reaches_the_launcher_through_the_environment(monkeypatch):
    from dist3dgs.slurm.site import VARIABLE, current_site

    monkeypatch.delenv(VARIABLE, raising=False)
    assert current_site() == read_site({})
    site = read_site({**SITE, "modules": ["cuda/12.8"]})
    monkeypatch.setenv(VARIABLE, "")  # restored after the test
    export(site)
    assert current_site() == site


def scene(**sfm) -> Scene:
    return Scene.model_validate({"builtin": {}, "sfm": sfm})


def test_an_ingest_job_asks_for_what_its_scene_may_use_up_to_what_the_site_allows():
    site = read_site(
        {**SITE, "cpu_partition": "cpu", "ingest_cpus": 12, "ingest_mem_gib": 20, "ingest_runtime_min": 60}
    )
    asked = ingest_resources(scene(num_threads=4, memory_gib=6, timeout_s=1800), site)
    assert (asked["cpus_per_task"], asked["mem_mb"], asked["runtime"]) == (4, 8 * 1024, 40)
    assert asked["slurm_partition"] == "cpu" and asked["nodes"] == asked["tasks"] == 1
    most = ingest_resources(scene(num_threads=64, memory_gib=500, timeout_s=1e6), site)
    assert (most["cpus_per_task"], most["mem_mb"], most["runtime"]) == (12, 20 * 1024, 60)
    assert ingest_resources(scene(), site)["cpus_per_task"] == 12


def test_structure_from_motion_meets_its_own_limits_before_those_of_its_job():
    """Killed with its job, it could not say which setting to raise."""
    small = scene(memory_gib=6, timeout_s=1800)
    assert sfm_limits(small) == {"sfm_mem_mb": 6 * 1024, "sfm_timeout_s": 1800}
    for runtime, mem_gib in ((1, 1), (10, 3), (60, 20), (10_000, 1000)):
        site = read_site({**SITE, "ingest_mem_gib": mem_gib, "ingest_runtime_min": runtime})
        request = ingest_resources(small, site)
        limits = sfm_limits(small, request)
        assert 0 < limits["sfm_mem_mb"] < request["mem_mb"]
        assert 0 < limits["sfm_timeout_s"] < request["runtime"] * 60
    assert limits == sfm_limits(small)


def test_a_default_that_no_job_would_heed_is_refused_with_what_decides():
    site = read_site({**SITE, "gpu_partition": "gpu", "cpu_partition": "cpu"})
    assert contradiction({**PROFILE_DEFAULTS, "slurm_account": "'lab'", "constraint": "'a100'"}, site) is None
    for name, setting in {
        "slurm_partition": "site.gpu_partition", "slurm_account": "site.account", "qos": "site.qos",
        "runtime": "site.runtime_min", "mem_mb": "site.mem_gib_per_gpu", "mem": "site.ingest_mem_gib",
        "cpus_per_task": "site.ingest_cpus", "nodes": "layout", "gres": "site.gpu_request",
    }.items():  # fmt: skip
        problem = contradiction({name: "4711"}, site)
        assert f"{name}=4711" in problem and setting in problem and "--set-resources" in problem
        assert "\n" not in problem
    everywhere = read_site({**SITE, "gpu_partition": "all", "cpu_partition": "all"})
    assert contradiction({"slurm_partition": "all"}, everywhere) is None
    assert {*KEYS, *rule_defaults(read_site({"account": "a", "qos": "b"}))} <= set(DECIDED_BY)
