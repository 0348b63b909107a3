"""Retry by reason: which failures are followed by another attempt, and with what."""

import pytest

from dist3dgs.events import EventWriter, events_path
from dist3dgs.evidence import Attempt
from dist3dgs.slurm.attempts import Try, read_try
from dist3dgs.slurm.retry import MAX_FAILED, TRIES_AFTER, decide


def failed(*causes: str, hours: float = 0.1, steps: list[int] | None = None) -> list[Try]:
    steps = steps or [100 * (i + 1) for i in range(len(causes))]
    return [
        Try(number=i, status="failed", cause=cause, gpu_hours=hours, step=step)
        for i, (cause, step) in enumerate(zip(causes, steps, strict=True))
    ]


@pytest.mark.parametrize(
    "cause",
    [
        "code_error",
        "misconfiguration",
        "allocation_mismatch",
        "diverged",
        "cancelled",
        "submission_rejected",
        "disk_full",
    ],
)
def test_what_would_end_the_same_way_is_not_tried_again(cause):
    decision = decide(failed(cause))
    assert decision.action == "close" and cause in decision.reason


@pytest.mark.parametrize("cause", sorted(TRIES_AFTER))
def test_capacity_and_infrastructure_are_tried_again_but_not_for_ever(cause):
    assert decide(failed(cause)).action == "train"
    assert decide(failed(*[cause] * (TRIES_AFTER[cause] + 1))).action == "close"


def test_resources_grow_with_the_reason():
    assert decide(failed("host_oom")).mem_factor == 1.5
    assert decide(failed("host_oom", "host_oom")).mem_factor == 2.25
    assert decide(failed("time_limit")).runtime_factor == 1.5
    both = decide(failed("time_limit", "node_failure", "host_oom"))
    assert (both.mem_factor, both.runtime_factor) == (1.5, 1.5)
    assert decide(failed("node_failure")).mem_factor == 1.0


def test_the_budget_of_gpu_hours_ends_it():
    assert decide(failed("node_failure", hours=3), retry_gpu_hours=4).action == "train"
    decision = decide(failed("node_failure", "node_failure", hours=3), retry_gpu_hours=4)
    assert (
        decision.action == "close"
        and "6.00 GPU-hours" in decision.reason
        and "retry_gpu_hours" in decision.reason
    )
    assert decide(failed("node_failure", hours=0), retry_gpu_hours=0).action == "close"


def test_what_a_checkpoint_keeps_is_not_lost():
    """One time limit of two hours on 16 GPUs is more than the default budget of GPU-hours; hardly any is lost."""
    limit = Try(number=0, status="stopped", cause="time_limit", step=5000, gpu_hours=32, lost=0.0)
    preempted = Try(number=1, status="stopped", cause="preempted", step=9000, gpu_hours=32, lost=0.1)
    assert decide([limit]).action == "train" and decide([limit, preempted]).action == "train"
    crashed = Try(number=2, status="failed", cause="node_failure", step=9000, gpu_hours=32, lost=0.1)
    assert decide([crashed]).action == "close"
    assert decide([limit], retry_gpu_hours=0).action == "close"


def test_what_is_lost_is_read_from_the_diary(tmp_path):
    attempt = Attempt(tmp_path / "000")
    say = EventWriter(events_path(attempt.folder, "gpu01"), 0)
    say("resume", step=100)
    say("step", step=200)
    assert read_try(attempt, {"status": "stopped"}).lost == 1.0
    say("checkpoint", step=250)
    say("step", step=300)
    tried = read_try(attempt, {"status": "stopped"})
    assert (tried.step, tried.lost) == (300, 0.25)
    assert read_try(Attempt(tmp_path / "001"), {"status": "failed"}).lost == 1.0


def test_a_time_limit_without_progress_is_a_loop():
    assert decide(failed("time_limit", "time_limit", steps=[100, 180])).action == "train"
    stuck = decide(failed("time_limit", "time_limit", steps=[100, 100]))
    assert stuck.action == "close" and "without getting further" in stuck.reason


def test_many_different_failures_end_before_snakemakes_retries(repository):
    import yaml

    causes = ["node_failure", "rendezvous", "nccl_error", "port_in_use", "killed", "host_oom", "gpu_fault"]
    tries = failed(*(causes * 2)[:MAX_FAILED])
    assert decide(tries[:-1]).action == "train" and decide(tries).action == "close"
    profile = yaml.safe_load((repository / "profiles/slurm/config.yaml").read_text())
    assert profile["retries"] > MAX_FAILED


def test_a_finished_attempt_is_used_and_a_running_one_waited_for():
    assert decide([*failed("time_limit"), Try(number=1, status="ok")]).action == "adopt"
    running = Try(number=1, status="running", slurm_job_id=7)
    assert decide([*failed("time_limit"), running]).action == "wait"
    assert decide([]).action == "train"
