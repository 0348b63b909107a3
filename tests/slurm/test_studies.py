"""Two studies in one folder, and points that are trained again on request, on the real Slurm."""

import json
import os
import subprocess

import pytest
import yaml
from study import Study, plain_bin

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_two_studies_in_one_folder_leave_each_others_jobs_and_logs_alone(make_study):
    study = make_study(layouts=["n1g1"], train={"steps": 400})
    (study.folder / "other.yaml").write_text(yaml.safe_dump({"results": "results_b"}))
    first = study.start("train_all")
    study.wait(lambda: study.last_step("n1g1"), "the first study to train", 200)
    second = study.start("--configfile", "other.yaml", "--", "train_all")
    study.wait(lambda: len(study.jobs("PENDING,RUNNING")) == 2, "both studies to have a job", 100)
    queued = study.cluster("squeue", "-h", "-o", "%k|%C|%E", "-t", "PENDING,RUNNING")
    assert sorted(line.split("|")[0] for line in queued.splitlines()) == [
        "rule_train_wildcards_results_b_tiny_replicated_n1g1_r0",
        "rule_train_wildcards_results_tiny_replicated_n1g1_r0",
    ]
    assert "afterany" not in queued
    assert (first.wait(300), second.wait(300)) == (0, 0), study.log()
    assert "already trains it" not in study.log()
    for results in ("results", "results_b"):
        point = study.folder / results / "tiny/replicated/n1g1/r0"
        assert json.loads((point / "record.json").read_text())["status"] == "ok"
        assert len(list((point / "attempts").iterdir())) == 1
        assert (study.folder / results / "logs/train/tiny/replicated/n1g1/r0.log").is_file()
        jobs = study.folder / f"logs/slurm/rule_train/{results}_tiny_replicated_n1g1_r0"
        assert len(list(jobs.iterdir())) == 1


def retry(study: Study, *argv: str) -> str:
    env = study.cluster.environment(os.environ | {"PYTHONUNBUFFERED": "1"})
    env["PATH"] = f"{plain_bin()}:{env['PATH']}"
    command = [str(plain_bin() / "python"), "-m", "dist3dgs.cli", "retry", *argv]
    done = subprocess.run(command, cwd=study.folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def set_site(study: Study, **changes: str) -> None:
    path = study.folder / "profiles/slurm/site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_a_point_that_was_given_up_is_trained_again_on_request_alone(make_study):
    study = make_study(layouts=["n1g1"], site={"account": "nobody"})
    study.run("train_all")
    assert study.record("n1g1")["failure"]["cause"] == "submission_rejected"
    set_site(study, account="lab")
    study.run("train_all")
    assert len(study.attempts("n1g1")) == 1, "by itself nothing is tried again"

    # Also where the outcome has not become a record, which the policy would only publish once more.
    (study.point("n1g1") / "record.json").unlink()
    text = retry(study, "tiny/replicated/n1g1")
    assert "--profile profiles/slurm" in text and "its record is ok" in text
    assert [a["status"] for a in study.attempts("n1g1")] == ["failed", "ok"]
    assert "no point of the study has failed" in retry(study)
