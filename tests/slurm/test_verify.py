"""`dist3dgs verify` on the real cluster: the login node's view, and a node's from within a job."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dist3dgs.config.matrix import load_study
from dist3dgs.errors import UserError
from dist3dgs.slurm.site import Site
from dist3dgs.slurm.site_init import run_init
from dist3dgs.verify import gpus, machine, on_node
from dist3dgs.verify.setup import Setup

pytestmark = pytest.mark.slurm


@pytest.fixture
def folder(repository, tmp_path, monkeypatch, on_plain_cluster):
    """A study of one and two nodes, whose ranks compute on CPUs, with a profile of this cluster."""
    shutil.copytree(repository / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    Path("overlay.yaml").write_text(
        yaml.safe_dump({"hardware": {"device": "cpu"}, "layouts": ["n1g1", "n2g1"]})
    )
    run_init(Path("profile/config.yaml"))
    return tmp_path


def test_a_job_looks_at_its_node(folder):
    argv = [sys.executable, "-m", "dist3dgs.cli", "verify", "--on-node", "--json"]
    argv += ["--configfile", "overlay.yaml", "--profile", "profile/config.yaml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    value = json.loads(done.stdout)
    found = {r["check"]: r for r in value["checks"]}
    assert value["host"] in ("gpu01", "gpu02")
    assert done.returncode == 0, done.stdout
    assert found["network"]["status"] == "ok" and "gpu0" in found["network"]["text"]
    # What fails on the node is the command's exit status.
    argv.remove("--json")
    Path("results").touch()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "fail  folders" in done.stdout


def test_the_login_nodes_view(folder):
    study = load_study(Path("config"), [Path("overlay.yaml")])
    (slurm,) = machine.check_slurm(Setup(study, Site()))
    assert slurm.status == "ok" and "slurm" in slurm.text
    (slurm,) = machine.check_slurm(Setup(study, Site(gpu_partition="nowhere")))
    assert slurm.status == "fail" and "nowhere" in slurm.text
    (driver,) = gpus.check_driver(Setup(load_study(Path("config")), Site()))
    assert driver.status == "warn" and "--on-node" in (driver.fix or "")


def test_a_partition_that_is_not_there(folder):
    with pytest.raises(UserError, match="nowhere"):
        on_node.on_a_node(Site(), "nowhere", [])
    with pytest.raises(UserError, match="--on-node PARTITION"):
        on_node.on_a_node(Site(gpu_partition="auto"), "", [])
