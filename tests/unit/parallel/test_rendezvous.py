"""Ranks meet before there is a process group: who never comes is named, and who does not fit ends the run."""

import threading
from dataclasses import replace

import pytest
import torch.distributed as dist

from dist3dgs.config.naming import Layout
from dist3dgs.diagnosis.rules import classify
from dist3dgs.errors import UserError
from dist3dgs.parallel import rendezvous
from dist3dgs.parallel.rendezvous import (
    Member,
    RendezvousTimeoutError,
    WorldMismatch,
    check_members,
    verify_world,
)

ME = Member(rank=0, host="n0", device="cpu", visible_devices=0, spec_digest="s", torch="2")


def gather(members: list[Member], world_size: int, timeout_s: float) -> dict[int, UserError | None]:
    """Return what `verify_world` raised on each of the ranks that come."""
    store, raised = dist.HashStore(), {}

    def rank(me: Member) -> None:
        try:
            verify_world(store, me, world_size, timeout_s, lambda m: check_members(m, Layout(1, world_size)))
            raised[me.rank] = None
        except UserError as e:
            raised[me.rank] = e

    threads = [threading.Thread(target=rank, args=(m,)) for m in members]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return raised


@pytest.fixture(autouse=True)
def _no_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "STAY_S", 0.2)


def test_all_there() -> None:
    assert gather([replace(ME, rank=r) for r in range(4)], 4, 30) == dict.fromkeys(range(4))


def test_a_rank_that_never_joins_is_named_on_all_others() -> None:
    raised = gather([replace(ME, rank=r) for r in (0, 1, 3)], 4, 0.5)
    for e in raised.values():
        assert isinstance(e, RendezvousTimeoutError) and "rank(s) 2 of 4 did not join within 0.5 s" in str(e)
        assert "hardware.join_timeout_s" in str(e)
        rule = classify(f"{type(e).__name__}: {e}", [], None)
        assert rule is not None and rule.cause == "rendezvous"


def test_without_rank_0_the_others_say_so() -> None:
    raised = gather([replace(ME, rank=1)], 2, 0.3)
    assert isinstance(raised[1], RendezvousTimeoutError) and "rank(s) 0 of 2" in str(raised[1])


def test_two_ranks_on_one_device_are_refused_with_one_table() -> None:
    gpu = replace(ME, device="GPU-a", visible_devices=2)
    raised = gather([gpu, replace(gpu, rank=1)], 2, 30)
    assert all(isinstance(e, WorldMismatch) and "two ranks on one device" in str(e) for e in raised.values())
    assert "rank 1  host n0  device GPU-a" in str(raised[0])
    assert len(str(raised[1]).splitlines()) == 1


def test_fewer_ranks_than_devices_are_refused() -> None:
    gpu = replace(ME, device="GPU-a", visible_devices=4)
    raised = gather([gpu, replace(gpu, rank=1, device="GPU-b")], 2, 30)
    assert "4 GPUs are visible on n0 and 2 would be used; ask for n1g4" in str(raised[0])
