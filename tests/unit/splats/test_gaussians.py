"""Initial sizes from the distances of neighbours, wherever the points lie."""

import resource

import pytest
import torch

from dist3dgs.splats.gaussians import mean_neighbour_distance
from tests.unit.helpers.bounded import ends_within


def by_definition(points: torch.Tensor, k: int = 3) -> torch.Tensor:
    """All distances from differences, in float64."""
    p = points.double()
    distances = (p[:, None] - p[None]).square().sum(-1).sqrt()
    return distances.topk(k + 1, largest=False).values[:, 1:].square().mean(1).sqrt()


@pytest.mark.parametrize("away", [0.0, 1.0, 5.0, 50.0, 1000.0])
def test_distances_are_exact_far_from_the_origin_too(away):
    """Neighbours a few thousandths apart; the product form of the distance loses them from about 1 on."""
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * 0.02 + away
    got = mean_neighbour_distance(points)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), by_definition(points).clamp_min(1e-7), rtol=1e-6)


def test_few_points_and_points_in_one_place():
    assert mean_neighbour_distance(torch.zeros(0, 3)).tolist() == []
    assert mean_neighbour_distance(torch.zeros(1, 3)).tolist() == [1.0]
    assert mean_neighbour_distance(torch.tensor([[0.0, 0, 0], [3, 4, 0]])).tolist() == [5.0, 5.0]
    assert mean_neighbour_distance(torch.ones(50, 3)).tolist() == [pytest.approx(1e-7)] * 50


def test_the_order_of_the_points_does_not_matter():
    points = torch.randn(3000, 3, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(mean_neighbour_distance(points)[order], mean_neighbour_distance(points[order]))


@pytest.mark.slow
def test_many_points_are_not_compared_in_pairs():
    """All pairs of a million would be half an hour and 8 GB for 2,048 rows at a time; a tree takes 4 s and 0.1 GB."""
    points = torch.randn(300_000, 3, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ends_within(cpu_s=60):
        distances = mean_neighbour_distance(points)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 0.3
    some = torch.arange(0, 300_000, 15_000)
    pairs = (points[some, None].double() - points[None].double()).square().sum(-1)
    want = pairs.topk(4, largest=False).values[:, 1:].mean(1).sqrt()
    assert torch.allclose(distances[some].double(), want, rtol=1e-6)
