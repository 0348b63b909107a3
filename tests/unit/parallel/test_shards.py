"""Shares, moves between ranks, and what the guard says about the ranks that joined."""

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.config.models import Strategy
from dist3dgs.config.naming import Layout
from dist3dgs.errors import UserError
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.compression import PowerSgd, orthonormalise
from dist3dgs.parallel.digests import ReplicasDiffer, checksum, rows_checksum
from dist3dgs.parallel.rendezvous import Member, WorldMismatch, check_members
from dist3dgs.parallel.sharded import Sharded, even, plan_moves, strided
from dist3dgs.parallel.strategy import Setup
from dist3dgs.splats.render import RenderSettings, get_renderer
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import make_trainer, run_ranks

sizes = st.lists(st.integers(0, 10_000), min_size=1, max_size=64)


@given(sizes)
def test_moves_make_the_shares_even_and_move_no_more_than_the_surplus(sizes):
    moves, targets = plan_moves(sizes), even(sum(sizes), len(sizes))
    after = list(sizes)
    for (giver, taker), count in moves.items():
        assert count > 0 and giver != taker
        after[giver] -= count
        after[taker] += count
    assert after == targets
    assert sum(moves.values()) == sum(max(0, n - t) for n, t in zip(sizes, targets, strict=True))
    assert not {g for g, _ in moves} & {t for _, t in moves}, "a rank both gives and takes"


@given(st.integers(0, 500), st.integers(1, 32))
def test_strided_is_a_permutation_cut_into_even_shares(total, ranks):
    order = strided(total, ranks).tolist()
    assert sorted(order) == list(range(total))
    at = 0
    for r, n in enumerate(even(total, ranks)):
        assert order[at : at + n] == list(range(r, total, ranks))
        at += n


def uneven(comm: Communicator) -> torch.Tensor:
    """Rank r sends r + d rows, filled with its number, to every rank d."""
    send = [comm.rank + d for d in range(comm.world_size)]
    receive = [r + comm.rank for r in range(comm.world_size)]
    return comm.exchange(torch.full((sum(send), 2), float(comm.rank)), send, receive)


def test_an_uneven_exchange_brings_everything_in_rank_order():
    for rank, got in enumerate(run_ranks(3, uneven)):
        assert got[:, 0].tolist() == [float(r) for r in range(3) for _ in range(r + rank)]


def rows_of(names: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows every number of which follows from the row's name: whatever travels can be told to be complete."""
    base = names.double()[:, None]
    return {
        "means": (base * 3 + torch.arange(3)).float(),
        "opacities": (base[:, 0] * 7).float(),
        "shN": (base[:, :, None] + torch.arange(45).reshape(15, 3)).float(),
        "adam/means.exp_avg": (base * 11 + torch.arange(3)).float(),
        "adam/means.exp_avg_sq": (base * 13 + torch.arange(3)).float(),
        "lineage": names.clone(),
        "statistics/count": names * 5,
    }


def strategy_of(comm: Communicator, rebalance_above: float) -> Sharded:
    strategy = Strategy(kind="sharded", rebalance_above=rebalance_above)
    return Sharded(
        Setup(
            comm=comm,
            renderer=get_renderer("cpu"),
            settings=RenderSettings(),
            strategy=strategy,
            device=torch.device("cpu"),
        )
    )


def rebalanced(
    comm: Communicator, sizes: list[int], rebalance_above: float, max_rows: int | None = None
) -> list[torch.Tensor]:
    """Names of a rank's rows after a rebalance of shards of these sizes; fails where a row is not whole."""
    first = sum(sizes[: comm.rank])
    before = rows_of(torch.arange(first, first + sizes[comm.rank]) + 1000)
    sharded = strategy_of(comm, rebalance_above)
    sharded.max_rows = max_rows
    after = sharded.rebalance(before) or before
    assert len(after["lineage"]) == sharded.shards[comm.rank]
    whole = rows_of(after["lineage"])
    assert all(torch.equal(after[k], t) for k, t in whole.items()), "a row was torn apart"
    return after["lineage"]


@pytest.mark.parametrize(
    "sizes, rebalance_above, max_rows, moves",
    [
        ([40, 10, 25], 1.0, None, True),
        ([130, 80, 90], 1.2, None, True),  # the largest is 1.3 times the mean
        ([115, 85, 100], 1.2, 115, False),
        ([115, 85, 100], 1.2, 114, True),  # a rank has room for 114
        ([0, 0, 50], 1.2, None, True),
        ([5, 0, 0, 0], 1.2, None, True),
    ],
)
def test_moments_and_names_follow_rows_that_move(sizes, rebalance_above, max_rows, moves):
    shards = run_ranks(len(sizes), rebalanced, sizes, rebalance_above, max_rows)
    assert sorted(torch.cat(shards).tolist()) == list(range(1000, 1000 + sum(sizes)))
    assert [len(s) for s in shards] == (even(sum(sizes), len(sizes)) if moves else sizes)


class Lossy(Communicator):
    """Does something to what one rank receives in one kind of exchange."""

    kind, damage = "", staticmethod(lambda t: t)

    def exchange(self, tensor, send, receive, name="all_to_all"):
        out = super().exchange(tensor, send, receive, name)
        return self.damage(out) if self.kind in name and self.rank == self.world_size - 1 else out


def swap(t: torch.Tensor) -> torch.Tensor:
    """The moments of two rows changed places; nothing else did."""
    return t[[1, 0, *range(2, len(t))]] if t.shape[1:] == (3,) and t[0, 0] % 11 == 0 else t


def flip(t: torch.Tensor) -> torch.Tensor:
    if t.dtype == torch.int64:
        return t
    t = t.clone()
    t.view(torch.int32).flatten()[3] ^= 1
    return t


def damaged(comm: Communicator, kind: str, damage) -> str:
    lossy = Lossy(comm.rank, comm.world_size)
    lossy.kind, lossy.damage = kind, damage
    sharded = strategy_of(lossy, 1.2)
    try:
        rows = sharded.distribute(lambda: rows_of(torch.arange(120) * 11))
        sharded.rebalance({k: t[: 60 if comm.rank == 0 else 5] for k, t in rows.items()})
    except ReplicasDiffer as e:
        return f"{type(e).__name__}: {e}"
    return ""


@pytest.mark.parametrize(
    "kind, what", [("distribute", "the first distribution"), ("rebalance", "a rebalance")]
)
@pytest.mark.parametrize("damage", [swap, flip])
def test_rows_damaged_on_their_way_are_noticed_by_all(damage, kind, what):
    assert run_ranks(2, damaged, "nowhere", flip) == ["", ""]
    for said in run_ranks(2, damaged, kind, damage):
        assert said.startswith(f"RowsDiffer: the rows of all ranks together differ after {what}")


def test_the_sum_over_rows_knows_no_order_but_every_row():
    rows = rows_of(torch.arange(1000))
    shuffled = {k: t[torch.randperm(1000)] for k, t in rows.items()}  # each tensor another way
    order = torch.randperm(1000)
    want = rows_checksum(rows)
    assert rows_checksum({k: t[order] for k, t in rows.items()}) == want
    parts = [rows_checksum({k: t[cut] for k, t in rows.items()}) for cut in (order[:300], order[300:])]
    assert sum(parts) % 2**64 == want
    doubled = order.clone()
    doubled[0] = doubled[1]
    exchanged = rows | {
        "adam/means.exp_avg": rows["adam/means.exp_avg_sq"],
        "adam/means.exp_avg_sq": rows["means"],
    }
    others = [shuffled, {k: t[doubled] for k, t in rows.items()}, exchanged]
    assert len({want, *map(rows_checksum, others)}) == 4


def test_the_checksum_made_on_a_gpu_sees_every_change():
    tensor = torch.randn(1000, 3)
    tensor[5], tensor[6] = 1.0, 2.0
    want = checksum(tensor)
    assert checksum(tensor.clone()) == want
    flipped = tensor.clone().view(torch.int32)
    flipped[999, 2] ^= 1
    exchanged = tensor.clone()
    exchanged[[5, 6]] = tensor[[6, 5]]
    assert len({want, checksum(flipped.view(torch.float32)), checksum(exchanged)}) == 3


def test_columns_become_orthonormal_or_zero():
    columns = torch.randn(50, 3)
    columns[:, 2] = 2 * columns[:, 0]
    basis = orthonormalise(columns)
    assert torch.allclose(basis.T @ basis, torch.diag(torch.tensor([1.0, 1.0, 0.0])), atol=1e-5)


def compress(comm: Communicator) -> list[torch.Tensor]:
    """Return powersgd's sum of a rank-2 gradient, and of the sum over 30 steps of one of full rank."""
    g = torch.Generator().manual_seed(comm.rank)
    power = PowerSgd(comm, 2)
    low = torch.randn(200, 2, generator=torch.Generator().manual_seed(9)) @ torch.randn(2, 45, generator=g)
    low_sum = low.clone()
    comm.all_reduce(low_sum)
    for _ in range(3):
        approximate = power.start("low", low.clone())()
    full = torch.randn(200, 45, generator=g)
    full_sum, total = full.clone(), torch.zeros(200, 45)
    comm.all_reduce(full_sum)
    for _ in range(60):
        total += power.start("full", full.clone())()
    return [low_sum, approximate, full_sum, total / 60]


def test_powersgd_is_exact_for_low_rank_and_loses_nothing_over_time():
    """Vogels et al. 2019: error feedback makes the average of what is sent converge to the gradient."""
    low_sum, approximate, full_sum, mean = run_ranks(2, compress)[0]
    assert (approximate - low_sum).norm() / low_sum.norm() < 1e-4
    assert (mean - full_sum).norm() / full_sum.norm() < 0.35
    one_step = 1 - (2 / 45)  # what a rank-2 product of noise misses at least, squared and roughly
    assert one_step > 0.9


def members(layout: str, **changes) -> list[Member]:
    size = Layout.parse(layout)
    base = {"visible_devices": size.workers_per_node, "spec_digest": "s", "torch": "2"} | changes
    return [
        Member(rank=r, host=f"n{r // size.workers_per_node}", device=f"GPU-{r}", **base)
        for r in range(size.world_size)
    ]


@pytest.mark.parametrize("layout", ["n1g1", "n1g4", "n2g4", "n8g8"])
def test_a_whole_world_passes(layout):
    check_members(members(layout), Layout.parse(layout))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda m: m[:-1], "7 joined, 8 are wanted"),
        (lambda m: [replace(x, host="n0") for x in m], "ranks per host: 8 on n0"),
        (lambda m: [*m[:-1], replace(m[-1], device="GPU-6")], "two ranks on one device (GPU-6 of n1)"),
        (lambda m: [replace(x, visible_devices=8) for x in m], "ask for n2g8"),
        (lambda m: [*m[:-1], replace(m[-1], device="cpu")], "some ranks compute on GPUs and some on the CPU"),
        (lambda m: [*m[:-1], replace(m[-1], spec_digest="other")], "different settings"),
        (lambda m: [*m[:-1], replace(m[-1], torch="1")], "different PyTorch versions"),
    ],
)
def test_every_disagreement_is_named_with_the_table_of_ranks(change, says):
    with pytest.raises(WorldMismatch) as e:
        check_members(change(members("n2g4")), Layout.parse("n2g4"))
    assert says in str(e.value)
    assert re.search(r"rank 0 +host n0  device GPU-0", str(e.value))


def test_one_rank_of_four_workers_may_see_all_their_gpus_and_no_more():
    """`ranks: one`: the run is allowed, so that its record can say `degraded`."""
    (one,) = members("n1g1", visible_devices=4)
    check_members([one], Layout(1, 1), allocated=Layout(1, 4))
    with pytest.raises(WorldMismatch, match=r"4 GPUs.* n0 .*1 would"):
        check_members([one], Layout(1, 1))
    with pytest.raises(WorldMismatch, match="8 GPUs"):
        check_members([replace(one, visible_devices=8)], Layout(1, 1), allocated=Layout(1, 4))


def test_cpu_ranks_share_their_device():
    layout = Layout.parse("n1g4")
    check_members([replace(m, device="cpu", visible_devices=0) for m in members("n1g4")], layout)


@pytest.mark.parametrize(
    "kind, room, needed",
    [("replicated", 599, "600"), ("hybrid", 299, "300"), ("sharded", 299, "300"), ("blocks", 299, "300")],
)
def test_a_model_that_may_outgrow_a_rank_is_refused_before_it_is_loaded(
    kind, room, needed, tiny_scene, tmp_path
):
    """600 Gaussians at most; the number that a rank would need is in the message."""
    run = tiny.spec("n1g2", strategy={"kind": kind})
    for limit in (room, room + 1):
        spec = run.model_copy(
            update={"hardware": run.hardware.model_copy(update={"max_gaussians_per_rank": limit})}
        )
        comm = mock.Mock(spec=Communicator, rank=0, world_size=2)
        trainer = make_trainer(comm, spec, tiny_scene, tmp_path)
        comm.gather_objects.side_effect = Loaded
        with pytest.raises(UserError if limit == room else Loaded) as refused:
            trainer.start()
        if limit == room:
            assert f"need {needed} on" in str(refused.value) and "max_gaussians_per_rank" in str(
                refused.value
            )


class Loaded(Exception):
    """The ranks began to load the model."""
