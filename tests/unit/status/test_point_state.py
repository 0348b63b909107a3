"""Find what a point is doing now, from folders of attempts and jobs in the queue."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist3dgs.config.naming import Point
from dist3dgs.runs.attempts import Attempt
from dist3dgs.runs.record import Evidence, Failure, Run, RunRecord, save_record
from dist3dgs.slurm.queue import Job, comment_of
from dist3dgs.status.point_state import AttemptProgress, PointState, quoted, state_line, state_of
from tests.unit.helpers.evidence import phase, spec, start, step, write_attempt

POINT = Point.parse("tiny", "replicated", "n1g2")
NOW = 0.0


@pytest.fixture(autouse=True)
def _now() -> None:
    """Start each test at its own time: some ten minutes into a slow run of all tests a point would be silent."""
    global NOW
    NOW = time.time()


def job(number: int, state: str = "PENDING", reason: str = "Priority", start: str = "N/A") -> Job:
    return Job(
        id=number, state=state, reason=reason, name="", comment="", workdir="", partition="gpu", nodes="gpu01",
        num_nodes=1, time_used="0:00", time_limit="10:00", start=start,
    )  # fmt: skip


def look(folder: Path, *jobs: Job, **how: Any) -> PointState:
    return state_of(POINT, folder, jobs=jobs, **how)


def failed_record(folder: Path, at: float) -> None:
    failure = Failure(
        cause="code_error", step=12, evidence=[Evidence(file="train.log", text="ValueError: \x1b[1mno")]
    )
    run = Run(scene="tiny", strategy="replicated", layout="n1g2", repeat=0, seed=1)
    save_record(RunRecord(run=run, status="failed", failure=failure), folder / "record.json")
    os.utime(folder / "record.json", (at, at))


def attempt(folder: Path, *events: dict[str, Any], **launch: Any) -> None:
    launch = {"started_at": NOW - 60, "finished_at": NOW - 10, **launch}
    write_attempt(folder, spec("n1g2", steps=200), list(events), **launch)


def test_nothing_yet_is_waiting_and_a_job_is_queued_with_slurms_reason(tmp_path: Path) -> None:
    assert state_line(look(tmp_path)) == f"{POINT}: waiting"
    assert state_line(look(tmp_path, job(7))) == f"{POINT}: queued, Slurm job 7, Priority"
    soon = time.strftime("%Y-%m-%dT14:52:00")
    assert look(tmp_path, job(7, start=soon)).detail.endswith(", expected to start 14:52")
    assert "will never start" in look(tmp_path, job(7, reason="PartitionTimeLimit")).detail


def test_a_job_that_runs_is_starting_until_its_ranks_come_to_a_step(tmp_path: Path) -> None:
    state = look(tmp_path, job(7, "RUNNING"))
    assert state.is_starting and state_line(state) == f"{POINT}: starting, Slurm job 7 on gpu01"
    attempt(tmp_path, start(0, NOW), status="running", slurm={"job_id": 7})
    assert state_line(look(tmp_path, job(7, "RUNNING"))) == f"{POINT}: starting"
    with (tmp_path / "attempts/000/events.jsonl").open("a") as f:
        f.write(json.dumps(step(25, NOW)) + "\n")
    state = look(tmp_path, job(7, "RUNNING"))
    assert state_line(state) == f"{POINT}: running, step 25/100, 10.0 steps/s, 8 s left"


def test_a_failed_attempt_of_a_slurm_job_is_retried_and_its_retry_named_when_queued(tmp_path: Path) -> None:
    ended = {"cause": "host_oom", "note": "", "at": NOW}
    attempt(tmp_path, step(40, NOW), status="running", ended=ended, slurm={"job_id": 7})
    state = look(tmp_path)
    assert (state.state, state.after) == ("retrying", "out of memory at step 40")
    state = look(tmp_path, job(8))
    assert (state.state, state.text) == (
        "queued",
        "Slurm job 8, Priority; again after: out of memory at step 40",
    )
    attempt(tmp_path, status="running", slurm={"job_id": 8})
    state = look(tmp_path, job(8, "RUNNING"))
    assert (state.state, state.attempt, state.after) == ("running", 1, "out of memory at step 40")


@pytest.mark.parametrize("status", ["stopped", "interrupted"])
def test_a_run_that_ended_with_snakemake_is_stopped_and_no_failure(tmp_path: Path, status: str) -> None:
    attempt(tmp_path, step(40, NOW), status=status, signal="SIGTERM")
    assert state_line(look(tmp_path)) == f"{POINT}: stopped, at step 40"


def test_a_job_that_slurm_put_back_is_queued_though_its_attempt_has_not_ended(tmp_path: Path) -> None:
    attempt(tmp_path, step(40, NOW), status="running", slurm={"job_id": 7})
    state = look(tmp_path, job(7, reason="BeginTime"))
    assert state.state == "queued" and state.after == "preemption or a lost node"
    assert look(tmp_path, job(7), jobs_at=NOW - 100).state == "running", "the queue of before it started"


def test_the_retry_that_is_queued_is_named_rather_than_the_old_failure(tmp_path: Path) -> None:
    attempt(tmp_path, status="failed", cause="code_error", published=True)
    failed_record(tmp_path, NOW)
    assert look(tmp_path).state == "failed"
    assert state_line(look(tmp_path, job(9))) == f"{POINT}: queued, Slurm job 9, Priority"


def test_what_an_earlier_run_finished_does_not_count_for_a_point_that_is_trained_again(
    tmp_path: Path,
) -> None:
    attempt(tmp_path, status="failed", cause="code_error", published=True)
    failed_record(tmp_path, NOW)
    assert look(tmp_path, since=NOW + 1).state == "waiting"
    assert look(tmp_path, since=NOW - 100).state == "failed"


def test_a_failure_says_its_cause_with_the_line_that_proves_it(tmp_path: Path) -> None:
    failed_record(tmp_path, NOW)
    state = look(tmp_path)
    assert state.detail == "code error at step 12: ValueError: [1mno"
    assert state.command == f"dist3dgs diagnose {tmp_path / 'record.json'}"


def test_an_outcome_without_a_record_is_about_to_get_one(tmp_path: Path) -> None:
    attempt(tmp_path, status="ok", published=True)
    assert look(tmp_path).state == "ended"


def test_events_are_read_on_from_the_last_look_torn_lines_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    progress = AttemptProgress(Attempt(tmp_path))
    assert progress.read().describe(100) == "starting"
    path.write_text(json.dumps(phase("enter", "load", NOW)) + "\n" + json.dumps(step(10, NOW))[:20])
    assert progress.read().describe(100) == "starting (load)"
    path.write_text(json.dumps(phase("enter", "load", NOW)) + "\n" + json.dumps(step(10, NOW)) + "\n")
    assert progress.read().step == 10
    (tmp_path / "events.node2.jsonl").write_text("[]\n{torn\n" + json.dumps(step(100, NOW + 5)) + "\n")
    assert progress.read().describe(100) == "step 100/100, finishing" and progress.last_t == NOW + 5


def test_only_the_end_of_a_long_file_is_read_first(tmp_path: Path) -> None:
    lines = [json.dumps(step(i, NOW)) for i in range(3000)]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, ""]))
    assert AttemptProgress(Attempt(tmp_path)).read().step == 2999


@pytest.mark.parametrize("text, width, shown", [("a\tb\n c\x07", 90, "a b c"), ("x" * 100, 10, "xxxxxxx...")])
def test_quoted_lines_stay_on_one_line(text: str, width: int, shown: str) -> None:
    assert quoted(text, width) == shown


def test_a_point_of_block_jobs_is_what_its_parts_are_doing(tmp_path: Path) -> None:
    whole = Point.parse("tiny", "blocks-jobs", "n1g1")

    def queued(number: int, part: str, state: str = "PENDING") -> Job:
        comment = comment_of(replace(whole, part=part))
        assert replace(job(number), comment=comment).part == part
        return replace(job(number, state), comment=comment)

    def now(*jobs: Job) -> PointState:
        return state_of(whole, tmp_path, jobs=jobs)

    assert state_line(now(queued(3, "coarse"))) == f"{whole}: queued, coarse: Slurm job 3, Priority"
    attempt(tmp_path / "parts/coarse", status="ok")
    assert state_line(now()) == f"{whole}: waiting, 1 part done"
    attempt(tmp_path / "parts/block-0", start(0, NOW), step(20, NOW), status="running", finished_at=None)
    (tmp_path / "parts/block-0/launch.json").unlink()
    state = now(queued(5, "block-1"))
    assert (state.state, state.step, state.parts) == ("running", 20, ("block-0", "block-1"))
    assert state.detail.startswith("block-0: step 20/") and state.detail.endswith(
        "; block-1: Slurm job 5, Priority; 1 part done"
    )
    # Its last job is the point's own.
    assert state_line(now(queued(6, ""))) == f"{whole}: queued, Slurm job 6, Priority"
