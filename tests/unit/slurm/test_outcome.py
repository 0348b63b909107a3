"""How attempts ended that could not say so, or not all of it."""

import json
from pathlib import Path

import pytest

from dist3dgs.slurm import outcome
from dist3dgs.slurm.client import SlurmError
from dist3dgs.slurm.outcome import resolve_outcomes


@pytest.fixture
def killed(tmp_path) -> Path:
    """A point with one attempt in which a rank was killed, in Slurm job 7."""
    path = tmp_path / "attempts/000/launch.json"
    path.parent.mkdir(parents=True)
    facts = {"attempt": 0, "status": "failed", "cause": "killed", "finished_at": 1.0, "slurm": {"job_id": 7}}
    path.write_text(json.dumps(facts))
    return tmp_path


@pytest.mark.parametrize(
    ("state", "steps", "cause"),
    [
        ("OUT_OF_MEMORY", "", "host_oom"),
        ("FAILED", "FAILED\nOUT_OF_MEMORY\n", "host_oom"),
        ("FAILED", "", "killed"),
    ],
)
def test_a_killed_rank_is_a_lack_of_memory_where_slurm_says_so(killed, monkeypatch, state, steps, cause):
    asked = []
    monkeypatch.setattr(
        outcome, "job_end", lambda job: asked.append(job) or (state, f"JobState={state}", 2.0)
    )
    monkeypatch.setattr(outcome, "slurm", lambda *argv: steps)
    for _ in range(3):
        (only,) = resolve_outcomes(killed)
        assert only.cause == cause and only.failed
    assert asked == [7]  # once


def test_while_its_job_runs_nothing_is_asked_of_it(killed, monkeypatch):
    monkeypatch.setattr(outcome, "job_end", lambda job: ("RUNNING", "", None))
    assert resolve_outcomes(killed)[0].cause == "killed"
    monkeypatch.setattr(outcome, "job_end", lambda job: pytest.fail("asked within the job itself"))
    assert resolve_outcomes(killed, me=(7, 0))[0].cause == "killed"


def test_without_accounting_the_launchers_word_stands(killed, monkeypatch):
    def no_accounting(*argv: str) -> str:
        raise SlurmError(argv, 1, "Slurm accounting storage is disabled")

    monkeypatch.setattr(outcome, "job_end", lambda job: ("FAILED", "", None))
    monkeypatch.setattr(outcome, "slurm", no_accounting)
    assert resolve_outcomes(killed)[0].cause == "killed"


@pytest.mark.parametrize(("silent_s", "cause"), [(7200.0, "no_progress"), (60.0, "time_limit")])
def test_the_retry_policy_gets_the_cause_that_the_record_will_have(tmp_path, monkeypatch, silent_s, cause):
    """Slurm's TIMEOUT is one piece of evidence: of a run that hung it is not the cause."""
    path = tmp_path / "attempts/000/launch.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"attempt": 0, "status": "running", "started_at": 1.0, "slurm": {"job_id": 7}})
    )
    say = {"t": 1000.0, "rank": 0, "event": "step", "step": 25, "loss": 0.1, "step_s": 0.1}
    (path.parent / "events.n1.jsonl").write_text(json.dumps(say) + "\n")
    monkeypatch.setattr(outcome, "job_end", lambda job: ("TIMEOUT", "JobState=TIMEOUT", 1000.0 + silent_s))
    assert (
        [t.cause for t in resolve_outcomes(tmp_path)]
        == [cause]
        == [t.cause for t in resolve_outcomes(tmp_path)]
    )
    assert json.loads(path.read_text())["ended"]["cause"] == "time_limit", "Slurm's word is kept"
