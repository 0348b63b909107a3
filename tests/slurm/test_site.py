"""`dist3dgs site init`, the profile and the chooser, on the real cluster."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dist3dgs.config.naming import Layout, Point
from dist3dgs.errors import UserError
from dist3dgs.slurm import partition_choice, partitions
from dist3dgs.slurm.partition_choice import Prediction
from dist3dgs.slurm.planner import Planner
from dist3dgs.slurm.queue import Queue, describe
from dist3dgs.slurm.resources import PROFILE_DEFAULTS
from dist3dgs.slurm.site import read_site, site_of_profile
from dist3dgs.slurm.site_init import inspect, render, render_profile, run_init


def test_the_shipped_profile_is_the_template_with_the_defaults(repository, monkeypatch):
    monkeypatch.chdir(repository)
    profile = Path("profiles/slurm")
    assert (profile / "site.yaml").read_text() == render(read_site({}))
    assert (profile / "config.yaml").read_text() == render_profile(profile / "site.yaml")
    settings = yaml.safe_load((profile / "config.yaml").read_text())
    assert settings["default-resources"] == PROFILE_DEFAULTS and "config" not in settings


def test_every_line_of_the_profile_says_what_it_does(repository):
    files = [repository / "profiles/slurm" / name for name in ("config.yaml", "site.yaml")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    plain = [line for line in lines if line.strip() and "#" not in line]
    # What is left without a comment of its own stands under one that speaks for it, or says it by its name.
    assert {line.split(":")[0].strip() for line in plain} <= {
        "dist3dgs-slurm-site", "mem_mb", "dist3dgs-slurm-logdir",
        "dist3dgs-slurm-init-seconds-before-status-checks",
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"account": "123", "gpu_partition": "gpu-long", "gpu_speed": {"h100": 1.0, "l40s": 0.87}},
        {"gpu_type": "3090", "gpu_speed": {"3090": 0.5, "a100-sxm4-80gb": 1}},
        {"account": "2024_01", "gpu_partition": "on", "cpu_partition": "no", "qos": "1e5"},
        {"modules": ["cuda/12", "on"], "image": "/sw/x y.sif", "binds": ["/a b:/c", "/d"], "poll_s": 5},
        {"retry_gpu_hours": 3.5, "max_mem_gib": 251.5, "account": "0x10", "gpu_type": "a100_1g.5gb"},
    ],
)
def test_a_profile_read_back_is_the_site_it_was_made_from(settings, tmp_path):
    site = read_site(settings)
    out = tmp_path / "a profile" / "config.yaml"
    out.parent.mkdir()
    (out.parent / "site.yaml").write_text(render(site))
    out.write_text(render_profile(out.parent / "site.yaml"))
    assert site_of_profile(out) == site


def test_a_profile_that_names_no_site_is_answered_with_its_place(tmp_path):
    profile = tmp_path / "config.yaml"
    assert site_of_profile(profile) == read_site({})
    for text, words in {
        "config: {site: {account: lab}}": "config: site:.*site.yaml.*dist3dgs site init",
        "executor: slurm": "dist3dgs-slurm-site: FILE.*dist3dgs site init",
        "dist3dgs-slurm-site: nowhere.yaml": "nowhere.yaml: no such file",
    }.items():
        profile.write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            site_of_profile(profile)
        assert "\n" not in str(caught.value)


def test_what_a_shell_would_read_is_no_account():
    with pytest.raises(UserError, match="account"):
        read_site({"account": "lab; rm -rf /"})
    with pytest.raises(UserError, match=r"account.*in quotes"):
        read_site(yaml.safe_load("account: 2024_01"))
    with pytest.raises(UserError, match="did you mean `gpu_partition`"):
        read_site({"gpu_partitions": "x"})


def test_the_manual_names_every_line_of_the_profile(repository):
    manual = (repository / "config/README.md").read_text()
    profile = yaml.safe_load((repository / "profiles/slurm/config.yaml").read_text())
    site = yaml.safe_load((repository / "profiles/slurm/site.yaml").read_text())
    names = {*site, *profile["default-resources"], *profile}
    assert {name for name in names if f"`{name}`" not in manual} == set()


@pytest.mark.slurm
def test_site_init_reads_the_cluster(on_cluster, tmp_path):
    site = inspect().site
    assert (site.account, site.gpu_partition, site.cpu_partition) == ("lab", "gpu", "cpu")
    assert (site.gpu_type, site.gpu_request, site.cpus_per_gpu) == ("h100", "gres", 4)
    assert site.max_runtime_min == 240 and site.mem_gib_per_gpu * 4 < 12000 / 1024
    assert set(site.gpu_speed) == {"h100", "l40s"}
    # What the partition of ingest has, not what a scene may take.
    assert (site.ingest_cpus, site.ingest_runtime_min) == (16, 60) and 20 < site.ingest_mem_gib < 24
    notes = "\n".join(run_init(tmp_path / "p/config.yaml"))
    assert "your accounts: lab, poor" in notes and "accounting (sacct): yes" in notes
    with pytest.raises(UserError, match="--force"):
        run_init(tmp_path / "p/config.yaml")


@pytest.mark.slurm
def test_site_init_without_accounting(on_plain_cluster, tmp_path):
    out = tmp_path / "config.yaml"
    notes = "\n".join(run_init(out))
    assert "keeps no accounts" in notes and "can never start" in notes and "accounting (sacct): no" in notes
    assert site_of_profile(out).account is None


@pytest.mark.slurm
def test_the_chooser_prefers_what_ends_first(on_cluster):
    """All h100 nodes are taken for an hour: the slower partition that is free now ends earlier."""
    site = inspect().site.model_copy(update={"gpu_speed": {"h100": 1.0, "l40s": 0.87}})
    free = partition_choice.choose(Layout.parse("n1g4"), site, 1800)
    assert free is not None and free.gpu_type == "h100"
    blocker = on_cluster(
        "sbatch", "--parsable", "-p", "gpu", "-A", "lab", "-N2", "--gres=gpu:4", "-t", "60", "-o", "/dev/null",
        "--wrap", "sleep 600",
    ).strip()  # fmt: skip
    try:
        end = time.monotonic() + 10
        while "RUNNING" not in on_cluster("squeue", "-h", "-j", blocker, "-o", "%T"):
            assert time.monotonic() < end
            time.sleep(0.1)
        only = [p for p in partitions.read_partitions() if p.name in ("gpu", "l40s")]
        found = partition_choice.offers(Layout.parse("n1g4"), only, site, 1800)
        assert [o.partition for o in found] == ["l40s", "gpu"]
        line = partition_choice.trade_off(found)
        assert (
            line.startswith("l40s (l40s) at 0.87x the speed, starts now, ends ")
            and "earlier than gpu (h100)" in line
        )
        layout = Layout.parse("n2g4")
        text, refused = partition_choice.run(
            [layout], site, {layout: Prediction(seconds=1800, source="a record")}
        )
        assert not refused
        assert (
            "2 nodes are more than partition 'l40s' has (1)" in text
            and "n2g4, 30 min on the fastest GPUs (a record)" in text
        )
    finally:
        on_cluster("scancel", blocker)


@pytest.mark.slurm
def test_partitions_and_preflight_by_hand(on_cluster, repository, tmp_path):
    profile = tmp_path / "config.yaml"
    run_init(profile)
    cli = [sys.executable, "-m", "dist3dgs.cli"]
    common = ["--profile", str(profile), "--config", str(repository / "config")]
    done = subprocess.run(
        [*cli, "partitions", *common, "--layouts", "n1g1", "--json"], capture_output=True, text=True
    )
    answer = json.loads(done.stdout)["n1g1"]
    assert (answer["runtime_s"], answer["runtime_from"]) == (7200, "site.runtime_min")
    assert {o["partition"] for o in answer["offers"]} == {"gpu", "l40s", "low", "high"}
    done = subprocess.run(
        [*cli, "preflight", *common, "--layouts", "n2g4", "n3g1"], capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and "n2g4: Slurm takes it" in done.stdout
        and "n3g1: 3 nodes are more" in done.stdout
    )


@pytest.mark.slurm
def test_a_job_that_can_never_start_is_named(on_plain_cluster, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    job = on_plain_cluster(
        "sbatch", "--parsable", "-D", str(tmp_path), "-p", "gpu", "-t", "300", "--wrap", "true"
    ).strip()
    try:
        end = time.monotonic() + 10
        while not (mine := [j for j in Queue().jobs() if j.waits_for_ever]):
            assert time.monotonic() < end
            time.sleep(0.2)
        assert mine[0].id == int(job) and "will never start" in describe(mine[0])
    finally:
        on_plain_cluster("scancel", job)


def test_without_slurm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(UserError, match="apt-get install slurm-client"):
        partitions.read_partitions()


@pytest.mark.slurm
def test_the_chooser_can_be_the_source_of_the_partition(on_cluster, tmp_path):
    site = inspect().site.model_copy(update={"gpu_partition": "auto", "gpu_type": None})
    planner = Planner(tmp_path, site, Queue(tmp_path))
    asked = planner.resources(Point.parse("s", "t", "n2g4"), 1, "{}")
    assert asked["slurm_partition"] == "gpu" and asked["gres"] == "gpu:h100:4"
