"""Every failure on the real Slurm: noticed, resumed, recorded.

The injections are in scripts/slurm/drill.py and run side by side.
"""

import re
from itertools import pairwise

import pytest
from drill import NAMES, Outcome, run_all

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def outcomes(cluster, tmp_path_factory):
    return run_all(cluster, tmp_path_factory.mktemp("failure drill"))


@pytest.fixture
def outcome(outcomes, request) -> Outcome:
    found = outcomes[request.node.get_closest_marker("drill").args[0]]
    if isinstance(found, BaseException):
        raise found
    return found


def drill(name: str):
    assert name in NAMES
    return pytest.mark.drill(name)


def check_resumed(o: Outcome, cause: str, *, lost_at_most: int) -> None:
    """The record is ok, told by two attempts, the second from a checkpoint of the first and not from zero."""
    assert o.exit_code == 0 and o.record["status"] == "ok", o.study.log()[-3000:]
    assert o.ends == [cause, "ok"]
    assert o.first_steps[1] > 1, "trained again from zero"
    assert o.steps_lost is not None and 0 <= o.steps_lost <= lost_at_most
    assert o.record["provenance"]["attempt"] == 1


@drill("time_limit")
def test_time_limit(outcome):
    check_resumed(outcome, "time_limit", lost_at_most=0)  # stopped before the limit, with a checkpoint
    first, second = outcome.attempts
    assert "before its time limit" in first["ended"]["note"]
    assert second["slurm"]["job_id"] != first["slurm"]["job_id"]
    assert second["slurm"]["time_left_s"] > 120 > first["slurm"]["time_left_s"]


@drill("out_of_memory")
def test_host_out_of_memory(outcome):
    assert outcome.exit_code == 0 and outcome.record["status"] == "ok", outcome.study.log()[-3000:]
    assert set(outcome.ends[:-1]) == {"host_oom"}
    asked = [int(m) for m in re.findall(r"rule train:.*?mem_mb=(\d+)", outcome.study.log(), re.DOTALL)]
    assert asked[1] == pytest.approx(1.5 * asked[0], rel=0.01)
    assert "memory limit" in outcome.attempts[0]["ended"]["note"]


@drill("loaders_out_of_memory")
def test_a_program_whose_loaders_are_out_of_memory_gets_fewer_of_them(outcome):
    assert outcome.exit_code == 0 and outcome.record["status"] == "ok", outcome.study.log()[-3000:]
    assert set(outcome.ends[:-1]) == {"host_oom"} and outcome.ends[-1] == "ok"
    workers = [a["loader_workers"] for a in outcome.attempts]
    assert workers[0] == 4 and all(fewer == more // 2 for more, fewer in pairwise(workers))
    asked = set(re.findall(r"rule train:.*?mem_mb=(\d+)", outcome.study.log(), re.DOTALL))
    assert len(asked) == 1, "the same memory each time"
    m, reasons = outcome.record["metrics"], outcome.record["reasons"]
    assert m["loader_workers"] == workers[-1] and m["lost_s"] > 0 and "(host_oom)" in reasons["lost_s"]
    assert "ran out of host memory" in reasons["loader_workers"]


@drill("rank_killed")
def test_one_rank_killed(outcome):
    check_resumed(outcome, "killed", lost_at_most=60)


@drill("node_lost")
def test_node_lost(outcome):
    check_resumed(outcome, "node_failure", lost_at_most=60)
    first, second = (a["slurm"]["nodes"] for a in outcome.attempts)
    assert not set(first) & set(second)
    assert outcome.record["environment"]["hosts"] == second


@drill("preempted")
def test_preempted_and_requeued(outcome):
    check_resumed(outcome, "preempted", lost_at_most=0)
    first, second = (a["slurm"] for a in outcome.attempts)
    assert first["job_id"] == second["job_id"] and second["restarts"] == 1


@drill("cancelled")
def test_cancelled_by_the_user_is_recorded_and_not_retried(outcome):
    assert outcome.exit_code == 0, outcome.study.log()[-3000:]
    assert outcome.record["status"] == "failed" and outcome.record["failure"]["cause"] == "cancelled"
    assert outcome.ends == ["cancelled"]
    assert len(outcome.study.jobs()) == 1, "the verdict needs no job"


@drill("interrupted")
def test_ctrl_c_on_snakemake_is_no_cancellation_of_the_run(outcome):
    check_resumed(outcome, "interrupted", lost_at_most=0)


@drill("snakemake_killed")
def test_a_job_of_a_killed_snakemake_is_found_and_not_doubled(outcome):
    assert outcome.exit_code == 0 and outcome.record["status"] == "ok", outcome.study.log()[-3000:]
    assert outcome.ends == ["ok"] and outcome.first_steps == [1]
    assert "already trains it; the new job waits for that one" in outcome.study.log()
    steps = [e["step"] for e in outcome.study.events("n1g1", "step")]
    assert len(steps) == len(set(steps)), "a step was done twice"


def check_refused(o: Outcome, reason: str, said: str) -> None:
    """The record gives the reason in our words with sbatch's own line, after one submission; no job has run."""
    assert o.exit_code == 0, o.study.log()[-3000:]
    said_once = o.study.terminal()
    assert said_once.count("cannot be submitted") == 1 and "is not taken yet" not in said_once
    failure = o.record["failure"]
    assert failure["cause"] == "submission_rejected"
    text = failure["evidence"][0]["text"]
    assert reason in text and "Slurm said: " in text and said in text, text
    # What its nodes cannot do Slurm keeps as a job that failed as it was submitted.
    assert {state for _, state, comment in o.study.jobs() if o.layout in comment} <= {"FAILED"}
    assert not o.study.events(o.layout)


@drill("refused")
def test_a_refused_submission_is_recorded_in_words_while_others_go_on(outcome):
    check_refused(outcome, "2 nodes are more than partition 'cpu' has", "Node count specification invalid")
    assert outcome.study.record("n1g1")["status"] == "ok"
    assert sum("n1g1" in comment for _, _, comment in outcome.study.jobs()) == 1


@drill("too_many_gpus")
def test_more_gpus_than_a_node_has(outcome):
    check_refused(outcome, "'gpu:h100:8'", "Requested node configuration is not available")


@drill("too_long")
def test_more_time_than_the_partition_allows(outcome):
    check_refused(outcome, "2000 minutes are more", "Requested time limit is invalid")


@drill("bad_account")
def test_a_bad_account_gives_every_point_its_row_without_a_job(outcome):
    check_refused(outcome, "account 'nobody' is not known", "nvalid account")
    assert outcome.study.jobs() == []


@drill("controller_away")
def test_a_run_that_ends_while_the_controller_is_away_is_neither_lost_nor_doubled(outcome):
    assert outcome.exit_code == 0 and outcome.record["status"] == "ok", outcome.study.log()[-3000:]
    assert outcome.ends == ["ok"] and len(outcome.study.jobs()) == 1
    away_from, away_until = outcome.away
    (attempt,) = outcome.attempts
    assert away_from < attempt["finished_at"] < away_until, (
        "the run did not end while the controller was away"
    )


@drill("never_starts")
def test_a_job_that_dies_before_the_launcher_is_recorded_and_not_submitted_for_ever(outcome):
    assert outcome.exit_code == 0, outcome.study.log()[-3000:]
    assert outcome.ends == ["unknown", "unknown"] and len(outcome.study.jobs()) == 2
    failure = outcome.record["failure"]
    assert "ended before the launcher started" in failure["evidence"][0]["text"]
    assert "module: not found" in failure["evidence"][0]["text"]
    kept = (outcome.study.point("n1g1") / "attempts/000/train.log").read_text()
    assert "module: not found" in kept
