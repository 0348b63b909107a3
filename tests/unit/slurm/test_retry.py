"""Retry by reason: which failures are followed by another attempt, and with what."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from dist3dgs.runs.attempts import Attempt, AttemptState, read_state
from dist3dgs.runs.causes import CAUSES
from dist3dgs.runs.events import EventWriter, events_path
from dist3dgs.runs.launch_summary import LaunchSummary, SlurmJob
from dist3dgs.slurm import outcome
from dist3dgs.slurm.allocation import Allocation, Node
from dist3dgs.slurm.retry import MAX_FAILED, decide, next_action, too_small
from dist3dgs.slurm.site import VARIABLE, read_site


def failed(*causes: str, hours: float = 0.1, steps: list[int] | None = None) -> list[AttemptState]:
    steps = steps or [100 * (i + 1) for i in range(len(causes))]
    return [
        AttemptState(number=i, status="failed", cause=cause, gpu_hours=hours, step=step)
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


@pytest.mark.parametrize("cause", sorted(c.name for c in CAUSES.values() if c.retries))
def test_capacity_and_infrastructure_are_tried_again_but_not_for_ever(cause):
    assert decide(failed(cause)).action == "train"
    assert decide(failed(*[cause] * (CAUSES[cause].retries + 1))).action == "close"


def test_resources_grow_with_the_reason():
    assert decide(failed("host_oom")).mem_factor == 1.5
    assert decide(failed("host_oom", "host_oom")).mem_factor == 2.25
    assert decide(failed("time_limit")).runtime_factor == 1.5
    both = decide(failed("time_limit", "node_failure", "host_oom"))
    assert (both.mem_factor, both.runtime_factor) == (1.5, 1.5)
    assert decide(failed("node_failure")).mem_factor == 1.0


def loading(*workers: int, causes: str = "host_oom") -> list[AttemptState]:
    return [
        replace(s, loader_workers=w) for s, w in zip(failed(*[causes] * len(workers)), workers, strict=True)
    ]


def test_loaders_that_used_up_the_memory_are_halved_and_the_memory_stays():
    decision = decide(loading(8))
    assert (decision.action, decision.loader_workers, decision.mem_factor) == ("train", 4, 1.0)
    assert "4 loader workers per rank instead of 8, as attempt 0 ran out" in decision.reason
    assert [decide(loading(*w)).loader_workers for w in ((8, 4), (8, 4, 2), (1,))] == [2, 1, 0]
    # Without any left the ranks themselves need more.
    assert decide(loading(1, 0)).mem_factor == 1.5 and decide(loading(1, 0)).loader_workers == 0
    assert decide(loading(8, 4, 2, 1)).action == "close"
    # A lost node afterwards does not bring them back.
    assert decide([*loading(8), replace(failed("killed")[0], number=1, loader_workers=4)]).loader_workers == 4
    assert decide(loading(8, causes="killed")).loader_workers is None
    assert decide(failed("host_oom")).loader_workers is None


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
    limit = AttemptState(number=0, status="stopped", cause="time_limit", step=5000, gpu_hours=32, lost=0.0)
    preempted = AttemptState(number=1, status="stopped", cause="preempted", step=9000, gpu_hours=32, lost=0.1)
    assert decide([limit]).action == "train" and decide([limit, preempted]).action == "train"
    crashed = AttemptState(number=2, status="failed", cause="node_failure", step=9000, gpu_hours=32, lost=0.1)
    assert decide([crashed]).action == "close"
    assert decide([limit], retry_gpu_hours=0).action == "close"


def test_what_is_lost_is_read_from_the_diary(tmp_path):
    attempt = Attempt(tmp_path / "000")
    say = EventWriter(events_path(attempt.folder, "gpu01"), 0)
    say("resume", step=100)
    say("step", step=200)
    assert read_state(attempt, LaunchSummary(status="stopped")).lost == 1.0
    say("checkpoint", step=250)
    say("step", step=300)
    tried = read_state(attempt, LaunchSummary(status="stopped"))
    assert (tried.step, tried.lost) == (300, 0.25)
    assert read_state(Attempt(tmp_path / "001"), LaunchSummary(status="failed")).lost == 1.0


def test_of_a_program_without_steps_the_time_since_its_checkpoint_is_lost(tmp_path):
    attempt = Attempt(tmp_path / "000")
    say = EventWriter(events_path(attempt.folder, "n1"), 0)
    say("start")
    now = time.time()
    times = LaunchSummary(status="failed", cause="time_limit", started_at=now - 75, finished_at=now + 25)
    before = read_state(attempt, times)
    assert (before.step, before.lost) == (None, 1.0)
    say("checkpoint", step=None, path="a.pt")
    after = read_state(attempt, times)
    assert after.lost == pytest.approx(0.25, abs=0.02)
    # Each attempt that leaves a checkpoint got further; two that leave none did not.
    assert decide([after, after]).action == "train" and decide([before, before]).action == "close"


def test_a_time_limit_without_progress_is_a_loop():
    assert decide(failed("time_limit", "time_limit", steps=[100, 180])).action == "train"
    stuck = decide(failed("time_limit", "time_limit", steps=[100, 100]))
    assert stuck.action == "close" and "without getting further" in stuck.reason


def test_many_different_failures_end_before_snakemakes_retries(repository):
    import yaml

    causes = ["node_failure", "rendezvous", "nccl_error", "port_in_use", "killed", "host_oom", "gpu_fault"]
    states = failed(*(causes * 2)[:MAX_FAILED])
    assert decide(states[:-1]).action == "train" and decide(states).action == "close"
    profile = yaml.safe_load((repository / "profiles/slurm/config.yaml").read_text())
    assert profile["retries"] > MAX_FAILED


def test_a_finished_attempt_is_used_and_a_running_one_waited_for():
    assert decide([*failed("time_limit"), AttemptState(number=1, status="ok")]).action == "adopt"
    running = AttemptState(number=1, status="running", slurm_job_id=7)
    assert decide([*failed("time_limit"), running]).action == "wait"
    assert decide([]).action == "train"


def given(nodes: int = 1, gpus: int = 0, cpus: int | None = 1) -> Allocation:
    names = tuple(Node(name=f"n{i}", address="127.0.0.1") for i in range(nodes))
    return Allocation(job_id=7, nodes=names, gpus_per_node=gpus, cpus_per_node=cpus)


@pytest.mark.parametrize(
    ("layout", "has", "site", "small"),
    [
        ("n1g4", given(cpus=1), {}, True),
        ("n1g4", given(cpus=2), {}, True),  # one core, two threads
        ("n1g1", given(cpus=2), {"cpus_per_gpu": 1}, True),
        ("n2g1", given(cpus=4), {"gpu_request": "none", "cpus_per_gpu": 1}, True),
        ("n1g1", given(cpus=2), {"gpu_request": "none", "cpus_per_gpu": 1}, False),
        ("n1g4", given(gpus=4, cpus=2), {}, False),
        ("n1g4", given(gpus=2, cpus=16), {}, False),  # a mismatch, which the guard names
        ("n1g4", given(cpus=32), {}, False),
        ("n2g4", given(nodes=2, gpus=4, cpus=32), {}, False),
        ("n1g4", given(cpus=None), {}, False),
    ],
)
def test_small_jobs_do_not_train(monkeypatch, layout, has, site, small):
    monkeypatch.setenv(VARIABLE, "{}")
    assert bool(too_small(Path(f"results/s/t/{layout}/r0"), has, read_site(site))) == small


def test_by_hand_any_allocation_trains(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert too_small(Path("results/s/t/n1g4/r0"), given(), read_site({})) is None


def test_the_next_action_waits_for_a_job_that_runs_elsewhere(tmp_path, monkeypatch):
    """The launcher that has just failed decides as if the other job were not there."""
    monkeypatch.setattr(outcome, "job_end", lambda job: ("RUNNING", "", None))
    for number, job in enumerate((8, 7)):
        attempt = Attempt(tmp_path / f"attempts/{number:03d}")
        LaunchSummary(status="running", slurm=SlurmJob(job_id=job)).save(attempt.folder)
    site = read_site({})
    found = next_action(tmp_path, "d", site, me=(7, 0))
    assert (found.action, found.after) == ("wait", (8,))
    assert Attempt(tmp_path / "attempts/001").summary().final_cause == "killed"  # in this job, and silent
    assert next_action(tmp_path, "d", site, me=(7, 0), ignore_running=True).cause == "killed"
