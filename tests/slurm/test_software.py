"""Snakemake's own software deployment as an addition: environment modules really loaded around a real training."""

import os
import subprocess
import sys

import pytest
from cluster import Cluster
from study import Study, plain_bin

from dist3dgs.errors import UserError
from dist3dgs.slurm.settings import VARIABLE, read_site


@pytest.mark.slow
def test_environment_modules_are_loaded_before_the_launcher_and_before_the_ranks(tmp_path):
    if " " in sys.executable:
        # Programs of an environment in such a path start through /bin/sh, which may drop exported functions.
        pytest.skip("the stand-in for `module` does not get through to an environment whose path has a space")
    study = Study(tmp_path, Cluster("none"), layouts=["n1g1"], train={"steps": 4})
    loaded = tmp_path / "loaded"
    # What a site's `module` is to a shell: a function; this one writes down what it is asked for.
    env = os.environ | {"BASH_FUNC_module%%": f"() {{ echo \"$@\" >> '{loaded}'; }}"}
    env["PATH"] = f"{plain_bin()}:{env['PATH']}"
    # As in a job of the study, where the executor has left it.
    env[VARIABLE] = read_site({"gpu_request": "none", "modules": ["cuda/12.8", "nccl"]}).model_dump_json()
    command = [
        str(plain_bin() / "python"),
        "-m",
        "snakemake",
        "-j2",
        "--sdm",
        "env-modules",
        "--",
        study.target("n1g1"),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert study.record("n1g1")["status"] == "ok"
    assert loaded.read_text().splitlines() == ["purge", "load cuda/12.8 nccl", "load cuda/12.8 nccl"]


def test_a_module_name_that_a_shell_would_read_is_refused():
    with pytest.raises(UserError, match="modules"):
        read_site({"modules": ["cuda; rm -rf /"]})
