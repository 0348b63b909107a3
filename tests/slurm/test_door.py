"""The main command as a person types it: a fresh clone, a profile by `dist3dgs site init`, photographs to report."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cluster import Cluster
from PIL import Image

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
#: The one thing that the test cluster needs said: its GPUs are fake. The rest makes the study small.
OVERLAY = {
    "hardware": {"device": "cpu"},
    "scenes": ["tiny"],
    "layouts": ["n1g2"],
    "scene_library": {
        "tiny": {
            "builtin": {"num_images": 16, "width_px": 320, "height_px": 240},
            "sfm": {"num_features": 1200},
        },
        "mine": {"images": "photographs of mine", "sfm": {"num_features": 1200}},
        "blank": {"images": "blank photographs"},
    },
    "train": {
        "steps": 24,
        "sh_degree": 0,
        "eval_every": 1000,
        "eval_views": 1,
        "lpips": False,
        "tensorboard": False,
        "densify": {"kind": "none"},
    },
}
#: Looks at once where the test is not about the profile: the wait before the first look is for real queues.
AT_ONCE = ("--dist3dgs-slurm-init-seconds-before-status-checks", "1")


class Clone:
    """The project's files alone in `folder`; commands are run there."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, files):
            source, copy = REPOSITORY / name, folder / name
            if source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)
        self.overlay(OVERLAY)

    def overlay(self, settings: Mapping[str, Any]) -> None:
        (self.folder / "overlay.yaml").write_text(yaml.safe_dump(dict(settings)))

    def __call__(self, *argv: str, python: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command of the environment whose Python is `python`: `clone("dist3dgs", "status")`."""
        env = self.cluster.environment()
        env["PATH"] = f"{Path(python or sys.executable).parent}:{env['PATH']}"
        program = shutil.which(argv[0], path=env["PATH"])
        start = [program, *argv[1:]] if python is None else [str(python), "-m", *argv]
        return subprocess.run(start, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600)

    def snakemake(
        self, *targets: str, options: tuple[str, ...] = (), profile: str = "slurm", python: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        common = ("--profile", f"profiles/{profile}", "--configfile", "overlay.yaml")
        return self("snakemake", *common, *options, "--", *targets, python=python)

    def json(self, path: str) -> dict[str, Any]:
        return json.loads((self.folder / path).read_text())

    def jobs(self, rule: str) -> list[dict[str, str]]:
        """Jobs of a rule, as the controller remembers them."""
        keys = ("id", "cpus", "minutes", "memory", "partition", "account", "state", "folder", "comment")
        lines = self.cluster("squeue", "-h", "-t", "all", "-o", "%i|%C|%l|%m|%P|%a|%T|%Z|%k").splitlines()
        found = [dict(zip(keys, line.split("|", len(keys) - 1), strict=True)) for line in lines]
        return [
            job for job in found
            if Path(job["folder"]).resolve() == self.folder.resolve() and job["comment"].startswith(f"rule_{rule}_")
        ]  # fmt: skip


def last(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="module")
def clone(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """With the profile exactly as `site init` writes it, and one point made by its file, from photographs."""
    made = Clone(tmp_path_factory.mktemp("door") / "a fresh clone", cluster)
    done = made("dist3dgs", "site", "init", "--force")
    assert done.returncode == 0, last(done)
    done = made.snakemake("results/tiny/replicated/n1g2/r0/record.json")
    assert done.returncode == 0, last(done)
    return made


def test_one_point_from_photographs_by_its_file(clone: Clone):
    """Every step that costs something ran in a Slurm job, with what its partition has."""
    assert clone.json("results/tiny/replicated/n1g2/r0/record.json")["status"] == "ok"
    (ingest,) = clone.jobs("ingest")
    site = yaml.safe_load((clone.folder / "profiles/slurm/site.yaml").read_text())
    assert (ingest["state"], ingest["partition"], ingest["account"]) == ("COMPLETED", "cpu", "lab")
    assert int(ingest["cpus"]) == site["ingest_cpus"] and ingest["minutes"] == "1:00:00"
    # The nodes of the test cluster say that they have more cores than this machine.
    cores = len(os.sched_getaffinity(0))
    used = clone.json("data/tiny/ingest.json")["sfm"]["num_threads"]
    assert used == min(cores, site["ingest_cpus"])
    (train,) = clone.jobs("train")
    assert (train["partition"], train["account"], train["state"]) == ("gpu", "lab", "COMPLETED")
    assert not clone.jobs("record") and not clone.jobs("photographs")


def test_a_job_is_one_snakemake_and_no_srun(clone: Clone):
    (log,) = (clone.folder / "logs/slurm/rule_ingest/tiny").glob("*.log")
    assert log.read_text().count("Snakemake version") == 1
    steps = clone.cluster("sacct", "-nP", "-j", log.stem, "-o", "JobID").split()
    assert f"{log.stem}.batch" in steps and f"{log.stem}.0" not in steps


@pytest.fixture(scope="module")
def study(clone: Clone) -> Clone:
    """All of a study of the built-in scene and of a folder of photographs."""
    photographs = clone.folder / "data/tiny/photographs/images"
    shutil.copytree(photographs, clone.folder / "photographs of mine")
    clone.overlay(OVERLAY | {"scenes": ["tiny", "mine"]})
    done = clone.snakemake("all")
    assert done.returncode == 0, last(done)
    return clone


def test_photographs_to_report(study: Clone):
    for scene in ("tiny", "mine"):
        record = study.json(f"results/{scene}/replicated/n1g2/r0/record.json")
        assert record["status"] == "ok" and record["run"]["scene"] == scene
    assert study.json("data/mine/ingest.json")["num_images"]["registered"] == 16
    report = (study.folder / "results/report/report.html").read_text()
    assert "tiny" in report and "mine" in report
    rows = (study.folder / "results/tables/runs.csv").read_text().splitlines()
    assert len(rows) == 3
    assert len(study.jobs("ingest")) == len(study.jobs("train")) == 2  # the first point was there already
    again = study.snakemake("all", options=("-n",))
    assert "Nothing to be done" in last(again)


def test_one_off_the_matrix_by_a_python_whose_path_has_a_space(study: Clone, tmp_path: Path):
    """Two nodes. `--config` on the command line leaves the site as it is."""
    environment = tmp_path / "my environment"
    environment.symlink_to(Path(sys.executable).parents[1])
    target = "results/tiny/replicated/n2g1/r0/record.json"
    options = ("--config", "seed=7", *AT_ONCE)
    done = study.snakemake(target, options=options, python=environment / "bin/python")
    assert done.returncode == 0, last(done)
    record = study.json(target)
    assert record["status"] == "ok" and study.json(target.replace("record", "launch"))["spec"]["seed"] == 7
    (job,) = [job for job in study.jobs("train") if "n2g1" in job["comment"]]
    assert (job["partition"], job["account"]) == ("gpu", "lab")


def test_figures_from_records_in_another_clone(study: Clone, tmp_path: Path):
    other = Clone(tmp_path / "another clone", study.cluster)
    other.overlay(OVERLAY | {"scenes": ["tiny", "mine"]})
    for record in (study.folder / "results").glob("*/*/*/r*/record.json"):
        copy = other.folder / record.relative_to(study.folder)
        copy.parent.mkdir(parents=True)
        shutil.copy(record, copy)
    done = other.snakemake("figures", profile="cached")
    assert done.returncode == 0, last(done)
    assert (other.folder / "results/figures/speedup.svg").is_file() and not (other.folder / "data").exists()


def test_an_ingest_that_fails_says_why_and_names_its_log(clone: Clone):
    folder = clone.folder / "blank photographs"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((240, 320, 3), 100 + i, np.uint8)).save(folder / f"{i}.jpg")
    done = clone.snakemake("data/blank/scene.safetensors", options=AT_ONCE)
    assert done.returncode == 1
    (line,) = [line for line in last(done).splitlines() if "ingest blank failed" in line]
    assert "sfm_failed" in line and "logs/ingest/blank.log" in line


def test_an_ingest_that_its_partition_refuses_says_which_settings(clone: Clone):
    done = clone.snakemake(
        "data/blank/scene.safetensors", options=("--set-resources", "ingest:runtime=90", *AT_ONCE)
    )
    assert done.returncode == 1
    (line,) = [line for line in last(done).splitlines() if "ingest blank cannot" in line]
    assert "cannot be submitted" in line and "90 minutes" in line and "site.ingest_runtime_min" in line


def test_the_command_line_does_not_contradict_the_site_in_silence(clone: Clone):
    target, again = "results/tiny/replicated/n1g1/r0/record.json", ("-n", "--nolock")
    kept = clone.snakemake(target, options=("--config", "seed=7", *again))
    assert kept.returncode == 0 and re.search(r"slurm_account=lab, slurm_partition=gpu", kept.stdout)
    for name in ("slurm_partition=low", "slurm_account=poor", "runtime=5", "mem_mb=9000"):
        done = clone.snakemake(target, options=("--default-resources", name, *again))
        told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and len(told) == 1
        assert f"--default-resources {name} would decide nothing" in told[0] and "site." in told[0]
    allowed = clone.snakemake(target, options=("--default-resources", "constraint=fast", *again))
    assert allowed.returncode == 0 and "constraint=fast" in allowed.stdout
    by_rule = clone.snakemake(target, options=("--set-resources", "train:slurm_partition=low", *again))
    assert "slurm_partition=low" in by_rule.stdout


def test_a_site_at_its_former_place_is_answered_with_the_new_one(clone: Clone):
    done = clone.snakemake("all", options=("-n", "--nolock", "--config", "site={account: lab}"))
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(told) == 1 and "site.yaml" in told[0]
