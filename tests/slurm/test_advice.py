"""`preflight` and `partitions` agree with real submissions to the cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs.config.naming import Layout
from dist3dgs.slurm.resources import layout_resources
from dist3dgs.slurm.site import read_site
from dist3dgs.slurm.site_init import render, render_profile
from dist3dgs.slurm.submission import excess, test_only

ask = test_only  # pytest would collect it by its name
del test_only

SITE = {
    "account": "lab",
    "gpu_type": "h100",
    "cpus_per_gpu": 2,
    "mem_gib_per_gpu": 1,
    "runtime_min": 30,
    "ingest_mem_gib": 8,
    "ingest_runtime_min": 50,
}


class Verbs:
    """`dist3dgs VERB` with a site of its own, in a folder of its own."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.config = folder, config

    def __call__(self, verb: str, *layouts: str, **site) -> "subprocess.CompletedProcess[str]":
        profile = self.folder / "config.yaml"
        (self.folder / "site.yaml").write_text(render(read_site(SITE | site)))
        profile.write_text(render_profile(self.folder / "site.yaml"))
        argv = [
            sys.executable,
            "-m",
            "dist3dgs.cli",
            verb,
            "--profile",
            str(profile),
            "--config",
            str(self.config),
        ]
        return subprocess.run([*argv, "--layouts", *layouts], capture_output=True, text=True, cwd=self.folder)


@pytest.fixture
def verbs(on_cluster, repository, tmp_path) -> Verbs:
    return Verbs(tmp_path, repository / "config")


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("layout", "changes", "said", "not_said"),
    [
        ("n9g1", {}, "9 nodes are more than partition 'gpu' has (2)", "CPUs"),
        ("n9g4", {}, "9 nodes are more than partition 'gpu' has (2)", "CPUs"),
        ("n1g5", {"cpus_per_gpu": 1}, "'gpu:h100:5' per node is more", "CPUs"),
        ("n1g4", {"cpus_per_gpu": 9}, "36 CPUs per node are more", "nodes are more than partition"),
        ("n1g4", {"mem_gib_per_gpu": 9}, "MB per node are more", "CPUs"),
        ("n1g1", {"runtime_min": 300}, "300 minutes are more", "CPUs"),
        ("n9g1", {"gpu_request": "none"}, "9 nodes are more than partition 'cpu' has (1)", "CPUs"),
        ("n1g40", {"gpu_request": "none"}, "80 CPUs per node are more", "nodes are more than partition"),
    ],
)
def test_a_refusal_names_what_is_too_much(on_cluster, layout, changes, said, not_said):
    site = read_site(SITE | changes)
    refusal = ask(layout_resources(Layout.parse(layout), site), site.account).refusal
    assert refusal is not None and said in refusal.reason and not_said not in refusal.reason, str(refusal)


def test_where_nothing_is_known_nothing_is_too_much():
    assert excess(layout_resources(Layout(1, 1), read_site({})), []) == []


@pytest.mark.slurm
def test_preflight_asks_for_ingest_too(verbs):
    done = verbs("preflight", "n1g1")
    assert "ingest builtin: Slurm takes it (cpu)" in done.stdout and done.returncode == 0
    done = verbs("preflight", "n1g1", ingest_runtime_min=120)
    assert done.returncode == 2
    ingest = next(line for line in done.stdout.splitlines() if line.startswith("ingest builtin"))
    assert "minutes are more than partition 'cpu'" in ingest and "site.ingest_runtime_min" in ingest
    pack = verbs.folder / "data/builtin/scene.safetensors"
    pack.parent.mkdir(parents=True)
    pack.touch()
    done = verbs("preflight", "n1g1", ingest_runtime_min=120)
    assert "ingest" not in done.stdout and done.returncode == 0


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("layout", "changes", "partition"),
    [
        ("n2g4", {}, "gpu"),
        ("n1g2", {"gpu_request": "none"}, "cpu"),
        ("n1g2", {"gpu_partition": "auto", "gpu_type": None}, "gpu"),
        ("n2g2", {"gpu_request": "none"}, None),
        ("n1g4", {"gpu_type": None, "mem_gib_per_gpu": 32, "max_mem_gib": 100}, None),
    ],
)
def test_partitions_and_preflight_agree(verbs, layout, changes, partition):
    """About the partition that the site names; `None`: it takes no such job."""
    before, table = verbs("preflight", layout, **changes), verbs("partitions", layout, **changes)
    name = "cpu" if changes.get("gpu_request") == "none" else "gpu"
    row = next(line for line in table.stdout.splitlines() if line.split()[:1] == [name])
    if partition:
        assert before.returncode == table.returncode == 0
        assert f"{layout}: Slurm takes it ({partition})" in before.stdout and "starts now" in row
    else:
        assert before.returncode == 2 and "more than" in before.stdout and "more than" in row


@pytest.mark.slurm
def test_what_no_partition_takes_is_an_exit_status(verbs):
    done = verbs("partitions", "n1g1", "n9g1")
    assert done.returncode == 2 and "taken by no partition" in done.stderr and "n9g1" in done.stderr
    assert "n1g1" not in done.stderr


@pytest.mark.slurm
def test_a_profile_of_another_cluster_says_so(verbs, tmp_path, repository):
    foreign = {"gpu_partition": "boost", "cpu_partition": "serial"}
    done = verbs("preflight", "n1g1", **foreign)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    for words in ("site.gpu_partition: boost", "site.cpu_partition: serial", "dist3dgs site init --force"):
        assert words in done.stderr
    done = verbs("partitions", "n1g1", **foreign)
    assert "site.gpu_partition: boost" in done.stderr and "site init" in done.stderr
    # Ranks on CPUs never go to the other one.
    done = verbs("preflight", "n1g1", gpu_partition="boost", gpu_request="none")
    assert done.returncode == 0, done.stderr


@pytest.mark.slurm
def test_a_study_does_not_start_on_partitions_that_are_not_there(make_study):
    study = make_study(layouts=["n1g1"], site={"gpu_partition": "boost"})
    assert study.run("train_all", check=False) != 0
    assert "site.gpu_partition: boost" in study.log() and "dist3dgs site init --force" in study.log()
    assert not list(study.folder.glob("results/**/launch.json"))
