"""Shards by space: cuts, views where they see most, bytes of a scene in two halves, rows that move."""

from itertools import pairwise

import pytest
import torch

from dist3dgs.config.models import Strategy
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.placement import assign_views, morton_order
from dist3dgs.parallel.sharded import Sharded, even
from dist3dgs.parallel.strategy import Setup
from dist3dgs.splats.camera import Camera
from dist3dgs.splats.gaussians import Gaussians
from dist3dgs.splats.render import RenderSettings, get_renderer
from tests.unit.helpers.ranks import run_ranks
from tests.unit.parallel.test_equivalence import NUM_GAUSSIANS, batch, some_gaussians
from tests.unit.parallel.test_shards import rows_of


def test_a_cut_of_the_curve_separates_two_clusters_whatever_else_is_far_away():
    means = torch.randn(1000, 3)
    means[::2, 0] += 100
    means[:3] = torch.tensor([[1e6, 0, 0], [-1e6, 0, 0], [0, 1e6, 0]])
    order = morton_order(means)
    assert sorted(order.tolist()) == list(range(1000))
    halves = means[order[:500], 0], means[order[500:], 0]
    assert halves[0].max() <= halves[1].min()
    assert len(morton_order(torch.empty(0, 3))) == 0


def test_views_go_where_they_see_most_and_every_rank_gets_its_number():
    assert assign_views([[1, 9, 5, 0], [8, 2, 6, 0]], [2, 2]) == [1, 0, 1, 0]
    assert assign_views([[9, 8], [7, 0]], [1, 1]) == [1, 0]  # by the sum, not the first come
    assert assign_views([[3], [5]], [1, 0]) == [0]


def two_halves(comm: Communicator, placement: str) -> list[float]:
    """Bytes of the step of two views, each of which sees one of two clouds; loss of the whole step."""
    values = some_gaussians(torch.float32)
    left = torch.arange(NUM_GAUSSIANS) % 2 == 0
    values["means"][left, 0] -= 1000.0
    (camera,) = batch(torch.float32, 1, 1)[0]
    away = camera.viewmat.clone()
    away[:3, 3] += away[:3, :3] @ torch.tensor([1000.0, 0.0, 0.0])
    other = Camera(name="left", viewmat=away, K=camera.K, width=camera.width, height=camera.height)
    strategy = Strategy(kind="sharded", placement=placement)
    sharded = Sharded(
        Setup(
            comm=comm,
            renderer=get_renderer("cpu"),
            settings=RenderSettings(far=100.0),
            strategy=strategy,
            device=torch.device("cpu"),
        )
    )
    gaussians = Gaussians(sharded.distribute(lambda: values))
    comm.meters.clear()
    # The view of the right cloud first: strided ranks and ranks in order of x would both be given the wrong one.
    rendered = sharded.render(gaussians, [[camera], [other]], sh_degree=1, background=None, track=False)
    loss = rendered.anchor + sum(view.image.colors.square().sum() for view in rendered.views)
    loss.backward()
    total = loss.detach().clone()
    comm.all_reduce(total)
    return [float(sum(m.bytes for (_, op), m in comm.meters.items() if "projection" in op)), float(total)]


def test_nothing_travels_where_each_view_sees_one_ranks_half():
    strided, space = (run_ranks(2, two_halves, placement) for placement in ("strided", "space"))
    assert strided[0][1] == pytest.approx(space[0][1], rel=1e-5)
    assert strided[0][0] > 40 * 88
    assert space[0][0] < 0.1 * strided[0][0]


def cut_again(comm: Communicator, sizes: list[int]) -> list[torch.Tensor]:
    """Names and x of a rank's rows after uneven shards were cut anew."""
    first = sum(sizes[: comm.rank])
    before = rows_of(torch.arange(first, first + sizes[comm.rank]) * 7919 % sum(sizes))
    strategy = Strategy(kind="sharded", placement="space", rebalance_above=1.0)
    sharded = Sharded(
        Setup(
            comm=comm,
            renderer=get_renderer("cpu"),
            settings=RenderSettings(),
            strategy=strategy,
            device=torch.device("cpu"),
        )
    )
    after = sharded.rebalance(before)
    assert after is not None and len(after["lineage"]) == sharded.shards[comm.rank]
    whole = rows_of(after["lineage"])
    assert all(torch.equal(after[k], t) for k, t in whole.items()), "a row was torn apart"
    return [after["lineage"], after["means"][:, 0]]


def test_a_rebalance_cuts_space_anew_and_keeps_rows_whole():
    sizes = [40, 0, 25, 36]
    ranks = run_ranks(4, cut_again, sizes)
    assert sorted(torch.cat([names for names, _ in ranks]).tolist()) == list(range(sum(sizes)))
    assert [len(names) for names, _ in ranks] == even(sum(sizes), 4)
    for (_, nearer), (_, farther) in pairwise(ranks):
        assert nearer.max() < farther.min()  # these rows lie on a line
