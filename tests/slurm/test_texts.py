"""Commands of the texts that ask or change a cluster, on the test cluster: tests/texts.py lists them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from study import REPOSITORY, plain_bin
from tests.texts import PLACES, Command, How, commands

pytestmark = pytest.mark.slurm
#: Nodes of the test cluster have 16 CPUs, and its partition of GPUs allows four hours.
SMALLER = {"--cpus-per-task=32": "--cpus-per-task=16", "--time=600": "--time=200"}


@pytest.fixture(scope="module")
def study(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone with the profile that `dist3dgs site init` writes for the test cluster."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("Snakefile", "workflow", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    for name in ("config", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shell(cluster, folder, "dist3dgs site init --force")
    other = Cluster("none")  # one of the commands starts it
    was_up = other.is_up()
    yield folder
    if not was_up:
        other.down()


def shell(cluster: Cluster, folder: Path, command: str, exits: tuple[int, ...] = (0,)) -> None:
    """Run a line as a user of the cluster would."""
    environment = cluster.environment(os.environ) | {"USER": "root"}
    environment |= dict.fromkeys(("SALLOC_PARTITION", "SBATCH_PARTITION"), "gpu")
    environment["PATH"] = f"{plain_bin()}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode in exits, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    for job in re.findall(r"Submitted batch job (\d+)", done.stdout):
        cluster("scancel", job, check=False)  # what it would train is not of interest here


@pytest.fixture
def places(cluster: Cluster) -> dict[str, str]:
    """The texts' placeholders, with a job of ours in the queue."""
    account = ["-A", "lab"] if cluster.accounting == "dbd" else []
    job = cluster("sbatch", "--parsable", "--hold", *account, "-o", "/dev/null", "--wrap", "true").strip()
    return PLACES | SMALLER | {"JOB": job, "ID": job}


@pytest.mark.parametrize("command", commands(How.ON_SLURM), ids=lambda c: c.text)
def test_it_runs(cluster: Cluster, study: Path, places: dict[str, str], command: Command) -> None:
    assert command.way is not None
    shell(cluster, study, command.filled(places), command.way.exits)
    cluster("scancel", places["JOB"], check=False)
