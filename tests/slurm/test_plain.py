"""A cluster without slurmdbd: no accounts, no sacct, and a node that cannot start jobs."""

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
