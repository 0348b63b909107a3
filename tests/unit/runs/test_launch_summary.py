"""The summary of an attempt: later versions read it, and facts do not change."""

import json
import math
from pathlib import Path

import pytest

from dist3dgs.runs.attempts import AttemptState, attempts, new_attempt, publish, read_state
from dist3dgs.runs.launch_summary import Ended, LaunchSummary, SlurmJob


def test_what_is_saved_is_loaded(tmp_path):
    saved = LaunchSummary(
        spec_digest="d", spec={"layout": "n1g2"}, status="running", slurm=SlurmJob(job_id=7, nodes=["n1"])
    ).save(tmp_path)
    loaded = LaunchSummary.load(tmp_path / "launch.json")
    assert loaded.model_dump() == saved.model_dump()
    assert loaded.job_id == 7 and loaded.final_cause is None


EXAMPLES = sorted((Path(__file__).parents[2] / "data/launch").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_a_summary_from_before_there_was_a_version_loads_whole(path, tmp_path):
    """Written on a real Slurm by the last version without `schema_version`."""
    LaunchSummary.load(path).updated(retry_at=5.0).save(tmp_path)
    assert json.loads((tmp_path / "launch.json").read_text()) == {
        "schema_version": 1,
        "retry_at": 5.0,
    } | json.loads(path.read_text())


def test_such_attempts_are_read_as_before(tmp_path):
    for path in EXAMPLES:
        new_attempt(tmp_path).launch_path.write_text(path.read_text())
    states = {path.stem: read_state(a) for path, a in zip(EXAMPLES, attempts(tmp_path), strict=True)}
    note = "Slurm job 1: stopped 12 s before its time limit"
    assert states == {
        "killed": AttemptState(
            number=0, status="failed", cause="killed", slurm_job_id=2, gpu_hours=states["killed"].gpu_hours
        ),
        "lost": AttemptState(
            number=1, status="lost", cause="cancelled", slurm_job_id=3, gpu_hours=states["lost"].gpu_hours,
            note="Slurm job 3: JobState=CANCELLED Reason=None ExitCode=1:0 EndTime=2026-11-26T17:57:35",
        ),
        "time_limit": AttemptState(
            number=2, status="stopped", cause="time_limit", slurm_job_id=1, note=note,
            gpu_hours=states["time_limit"].gpu_hours,
        ),
    }  # fmt: skip
    assert states["killed"].gpu_hours == pytest.approx(2 * 10.168 / 3600, rel=1e-3)
    assert all(state.failed for state in states.values())


def test_unknown_fields_are_kept(tmp_path):
    path = tmp_path / "launch.json"
    newer = {"schema_version": 2, "status": "failed", "slurm": {"job_id": 7, "rack": 1}, "colour": "red"}
    path.write_text(json.dumps(newer))
    LaunchSummary.load(path).updated(asked_slurm=True).save(tmp_path)
    assert json.loads(path.read_text()) == {"asked_slurm": True} | newer


def test_a_field_of_a_wrong_type_counts_as_unknown(tmp_path):
    path = tmp_path / "launch.json"
    ended = {"cause": "gremlins", "note": "they came", "at": 5.0}
    wrong = {"status": "gone", "started_at": "noon", "argv": 3, "slurm": {"job_id": 7, "nodes": [1, 2]}}
    path.write_text(json.dumps({"spec_digest": "d", "ended": ended} | wrong))
    loaded = LaunchSummary.load(path)
    assert (loaded.spec_digest, loaded.job_id, loaded.end_time) == ("d", 7, 5.0)
    assert (loaded.status, loaded.started_at, loaded.argv, loaded.final_cause) == (None, None, [], None)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_what_is_no_summary_is_refused_and_an_attempt_with_it_counts_as_unwritten(tmp_path, text):
    attempt = new_attempt(tmp_path)
    attempt.launch_path.write_text(text)
    with pytest.raises(ValueError):
        LaunchSummary.load(attempt.launch_path)
    assert attempt.summary().is_empty


def test_facts_of_an_ended_attempt_do_not_change():
    ended = LaunchSummary(status="running", host="a").updated(status="failed", finished_at=5.0)
    with pytest.raises(ValueError, match="host"):
        ended.updated(host="b")
    with pytest.raises(ValueError, match="no field"):
        ended.updated(colour="red")
    later = ended.updated(status="lost", ended=Ended(cause="time_limit", at=6.0)).filled(host="b", attempt=3)
    assert (later.host, later.attempt, later.final_cause, later.end_time) == ("a", 3, "time_limit", 5.0)


def test_a_status_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="status"):
        LaunchSummary().updated(status="gone")


def test_a_job_without_a_time_limit_can_be_saved(tmp_path):
    LaunchSummary(slurm=SlurmJob(job_id=1, time_left_s=math.inf)).save(tmp_path)
    assert json.loads((tmp_path / "launch.json").read_text())["slurm"]["time_left_s"] is None


def test_an_attempt_that_wrote_nothing_is_published_as_lost(tmp_path):
    new_attempt(tmp_path)
    publish(tmp_path, "it is gone", spec={"layout": "n1g1"}, spec_digest="d")
    for path in (tmp_path / "launch.json", tmp_path / "attempts/000/launch.json"):
        summary = LaunchSummary.load(path)
        assert (summary.status, summary.spec_digest, summary.attempt) == ("lost", "d", 0)
        assert summary.published and summary.closing_note == "it is gone" and summary.finished_at
