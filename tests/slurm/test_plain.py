"""A cluster without slurmdbd: no accounts, no sacct, and a node that cannot start jobs."""

import signal
import time

import pytest
from study import Study

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_trains_without_accounting_on_another_node_than_the_one_that_cannot_start_it(plain_cluster, tmp_path):
    """The prolog of one node fails: Slurm drains it and holds the job, which would never start again by itself."""
    study = Study(tmp_path, plain_cluster, layouts=["n1g1"], train={"steps": 16})
    plain_cluster.break_prolog("gpu01")
    try:
        study.run("train_all", timeout=200)
    finally:
        plain_cluster.mend_prolog("gpu01")
    record, (first, second) = study.record("n1g1"), study.attempts("n1g1")
    assert record["status"] == "ok" and record["environment"]["hosts"] == ["gpu02"]
    assert first["ended"]["cause"] == "node_failure"
    assert "launch failed requeued held" in first["ended"]["note"].replace("_", " ")
    assert second["status"] == "ok" and len(study.jobs()) == 2


def test_a_preempted_job_that_slurm_cancels_is_submitted_again(plain_cluster, tmp_path):
    """Where PreemptMode is CANCEL nobody queues it again, and Snakemake's plugin waits for it for ever."""
    plain_cluster("scontrol", "update", "PartitionName=low", "PreemptMode=CANCEL")
    train = {"steps": 100_000, "checkpoint_every": 20, "eval_every": 100_000}
    study = Study(
        tmp_path,
        plain_cluster,
        layouts=["n1g2"],
        site={"gpu_partition": "low", "gpu_type": "l40s"},
        train=train,
    )
    snakemake, urgent = study.start("train_all"), ""
    try:
        study.wait(lambda: study.last_step("n1g2") > 40, "training", 180)
        words = ["-p", "high", "-N1", "--gres=gpu:4", "-t", "5", "-o", "/dev/null", "--wrap", "sleep 10"]
        urgent = plain_cluster("sbatch", "--parsable", *words).strip()
        study.wait(lambda: study.events("n1g2", "resume"), "the next attempt", 300)
    finally:
        plain_cluster("scontrol", "update", "PartitionName=low", "PreemptMode=REQUEUE")
        plain_cluster("scancel", urgent, check=False)
        for _ in range(3):
            snakemake.send_signal(signal.SIGINT)
            time.sleep(0.3)
        snakemake.wait(90)
    assert "Traceback" not in study.terminal() and "the same command goes on" in study.terminal()
    first, _ = study.attempts("n1g2")
    assert first["ended"]["cause"] == "preempted" and "PREEMPTED" in first["ended"]["note"]
    assert study.events("n1g2", "resume")[0]["step"] >= 20
    states = sorted(state for _, state, comment in study.jobs() if "n1g2" in comment)
    assert len(states) == 2 and "PREEMPTED" in states
