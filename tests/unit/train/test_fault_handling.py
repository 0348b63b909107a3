"""Stop requests, hangs, and progress reports during an evaluation."""

import itertools
import math
import time

import pytest
import torch

from dist3dgs.parallel.collectives import Communicator
from dist3dgs.runs.events import EventWriter, read_events
from dist3dgs.train import timing as clocks
from dist3dgs.train.fault_handling import Stacks, StopPoll
from dist3dgs.train.timing import Clock
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import run_ranks, train

CPU = torch.device("cpu")


def polls(comm: Communicator, step_s: list[float], told_at: int) -> list[int]:
    """Steps after which a rank asks, by a clock on which its steps last `step_s`; the last rank is told to stop."""
    now = 0.0
    poll = StopPoll(comm, CPU, lambda: now)
    asked = []
    for step in range(200):
        if poll.due(step):
            asked.append(step)
            if poll.agree(step, comm.rank == comm.world_size - 1 and step >= told_at):
                return asked
        now += step_s[comm.rank]
    return asked


def test_fast_steps_are_asked_about_by_number_and_slow_ones_by_time():
    fast = polls(Communicator(), [0.001], 1000)
    assert fast[:3] == [0, 1, 11] and max(b - a for a, b in itertools.pairwise(fast)) == 10
    for step_s in (0.5, 1.9, 3.0, 60.0):
        slow = polls(Communicator(), [step_s], 1000)
        assert max(b - a for a, b in itertools.pairwise(slow)) == max(1, math.floor(2.0 / step_s))


def test_ranks_of_different_speed_ask_after_the_same_steps_and_agree():
    """Else one would wait in an all-reduce that another never enters."""
    one, two = run_ranks(2, polls, [0.01, 0.7], 21)
    assert one == two and one[-1] == 21 and one[-2] >= 19


class WatchedClock:
    """A clock that is set by hand and counts how often it is looked at."""

    def __init__(self) -> None:
        self.now, self.looks = 100.0, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now

    def wait_for_looks(self, until=lambda: False) -> None:
        """Wait until the thread has looked three times at the time as it is set, or `until` holds."""
        wanted, end = self.looks + 3, time.monotonic() + 60
        while self.looks < wanted and not until():
            assert time.monotonic() < end, "the thread does not look"
            time.sleep(0.005)


@pytest.mark.parametrize("waits", [True, False])
def test_a_rank_that_waits_says_so_before_nccl_ends_it_and_one_that_hangs_does_not(waits, tmp_path):
    told, dumps, clock = [], [], WatchedClock()
    stacks = Stacks(tmp_path, 0, timeout_s=1.0, now=clock)
    stacks.report_hang(lambda: waits, told.append, lambda: dumps.append(1))
    clock.now = 100.89
    clock.wait_for_looks()
    assert not told and not dumps
    clock.now = 100.91
    clock.wait_for_looks(lambda: bool(told))
    stacks.close()
    assert told == [pytest.approx(0.91)] * waits
    assert dumps == [1], "its collectives, once, whether it waits or hangs by itself"


def test_a_rank_that_gets_on_does_not_report(tmp_path):
    told, clock = [], WatchedClock()
    stacks = Stacks(tmp_path, 0, timeout_s=1.0, now=clock)
    clock.now = 1000.0  # silent for long, and then
    stacks.progress()
    stacks.report_hang(lambda: True, told.append, lambda: told.append(0.0))
    clock.wait_for_looks()
    stacks.close()
    assert not told


def test_progress_is_told_now_and_then_by_rank_0_alone(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now)
    calls = []
    pulsing = [Clock(EventWriter(tmp_path / f"{r}", r), CPU, lambda: calls.append(1)) for r in (0, 1)]
    for _ in range(40):
        for clock in pulsing:
            clock.pulse(step=7)
        now += 0.5
    told = list(read_events(tmp_path / "0"))
    assert len(told) == 4 and all(e["event"] == "progress" and e["step"] == 7 for e in told)
    assert not list(read_events(tmp_path / "1")) and len(calls) == 8


def test_every_turn_of_an_evaluation_and_every_step_are_signs_of_going_on(tiny_scene, tmp_path, monkeypatch):
    """The launcher ends a run without events: a long evaluation must not look like one."""
    monkeypatch.setattr(clocks, "PULSE_EVERY_S", 0.0)
    run_ranks(1, train, tiny.spec(steps=6, eval_every=6, log_every=100), tiny_scene, tmp_path)
    told = [e for e in read_events(tmp_path / "events.jsonl") if e["event"] == "progress"]
    assert [e["step"] for e in told if e["phase"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [e["views"] for e in told if e["phase"] == "evaluate"] == [0, 1, 2]


def half_lpips(comm, spec, scene, out):
    from dist3dgs.splats import lpips

    lpips.load_lpips = lambda device: (lambda a, b: 0.5) if comm.rank == 0 else None
    return train(comm, spec, scene, out)["steps"]


def test_lpips_is_evaluated_by_all_ranks_or_by_none(tiny_scene, tmp_path):
    """The weights may be on rank 0's node alone."""
    run_ranks(2, half_lpips, tiny.spec("n1g2", steps=4, lpips=True), tiny_scene, tmp_path)
    events = list(read_events(tmp_path / "events.jsonl"))
    assert any("not on the nodes of ranks 1" in e["message"] for e in events if e["event"] == "warning")
    (quality,) = [e for e in events if e["event"] == "eval"]
    assert quality["lpips"] is None and quality["psnr"] > 0
