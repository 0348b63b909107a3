"""Slurm's own answers, as our parsers read them."""

import subprocess
import sys

import pytest

from dist3dgs.units import expand_hosts


@pytest.mark.slurm
def test_host_lists_as_slurm_expands_them(on_cluster):
    for text in ("gpu[01-03,7],cpu1", "rack[1-2]n[08-10]", "x[9-11]"):
        assert expand_hosts(text) == on_cluster("scontrol", "show", "hostnames", text).split()


@pytest.mark.slurm
def test_gpus_of_a_job_as_a_whole(on_cluster):
    """`salloc --gpus=2`: not per node."""
    code = "from dist3dgs.slurm.allocation import current; print('has', current().gpus_per_node)"
    done = subprocess.run(
        ["salloc", "-p", "gpu", "-A", "lab", "-N1", "--gpus=2", "-t", "2", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "has 2" in done.stdout, done.stderr
