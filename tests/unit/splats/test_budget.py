"""Densification to a budget: its scores, its curve, and who grows and goes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.config.models import Densification
from dist3dgs.splats.densify import budget
from dist3dgs.splats.densify.lineage import founders
from dist3dgs.splats.gaussians import Gaussians, initial_gaussians
from dist3dgs.splats.render import RenderSettings, get_renderer
from tests.unit.helpers.clouds import random_cloud

CPU = torch.device("cpu")


def test_scores_share_out_each_pixels_error_by_blending_weights() -> None:
    """The weights of a pixel's Gaussians add up to its alpha."""
    cloud, renderer = random_cloud(500), get_renderer("cpu")
    projection = renderer.project(
        cloud.means, cloud.quats, cloud.scales, cloud.opacities, (cloud.sh0.requires_grad_(), cloud.shn), cloud.viewmat,
        cloud.K, cloud.width, cloud.height, RenderSettings(sh_degree=3),
    )  # fmt: skip
    image = renderer.rasterize(projection, cloud.width, cloud.height)
    photo = torch.randint(0, 255, image.colors.shape, dtype=torch.uint8)
    weights = budget.attribution(image.colors, photo)
    (sums,) = torch.autograd.grad((image.colors * weights).sum(), [projection.colors])
    scores = budget.Scores.zeros(500, CPU)
    scores.add(projection.ids, sums)
    error = (image.colors - photo / 255).square().mean(-1)
    assert float(scores.weight.sum() * budget.QUANTUM) == pytest.approx(image.alphas.sum().item(), rel=1e-6)
    shared = (error * image.alphas).sum().item()
    assert float(scores.error.sum() * budget.QUANTUM) == pytest.approx(shared, rel=1e-6)
    unseen = torch.ones(500, dtype=torch.bool).index_fill_(0, projection.ids, False)
    assert unseen.any() and not scores.weight[unseen].any()


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(1, 200))
def test_the_curve_grows_to_the_budget(start, most, count) -> None:
    sizes = [budget.curve(start, most, x, count) for x in range(1, count + 1)]
    assert sizes[-1] == most
    assert all(min(start, most) <= n <= most for n in sizes)
    if most >= start:
        steps = [b - a for a, b in pairwise([start, *sizes])]
        assert max(steps) - min(steps) <= 2, "equal steps, but for rounding"


def some(n: int = 100) -> tuple[Gaussians, budget.Scores]:
    g = torch.Generator().manual_seed(0)
    values = initial_gaussians(
        torch.randn(n, 3, generator=g), torch.rand(n, 3, generator=g), init_opacity=0.5, init_scale=1.0
    )
    values["quats"] = torch.randn(n, 4, generator=g)
    values["scales"] += torch.randn(n, 3, generator=g)
    values["opacities"][:3] = -20.0  # faint
    error, weight = torch.randint(1, 2**40, (2, n), generator=g)
    weight[3:6] = error[3:6] = 0  # seen by none of the views
    return Gaussians(values), budget.Scores(error, weight)


def change(gaussians, scores, target, **settings):
    most = lambda values, wanted, count: torch.zeros_like(wanted).index_fill_(  # noqa: E731
        0, values.masked_fill(~wanted, -torch.inf).topk(min(count, int(wanted.sum()))).indices, True
    )
    return budget.densify(
        gaussians, founders(len(scores.error), CPU), scores, Densification(kind="budget", **settings),
        target=target, total=lambda number: number, choose=most, step=7,
    )  # fmt: skip


def test_the_least_needed_go_and_those_with_most_error_are_split() -> None:
    gaussians, scores = some()
    made = change(gaussians, scores, 120, prune_share=0.1)
    assert len(made.origin) == len(made.lineage.unique()) == 120
    assert made.counts == {"pruned": 13, "split": 33}
    kept = made.origin[made.origin >= 0]
    gone = torch.ones(100, dtype=torch.bool).index_fill_(0, kept, False)
    assert not gone[3:6].any(), "what none of the views saw stays"
    assert gone[:3].all()
    order = scores.weight.argsort()
    least = order[(order > 5)][:10]
    assert gone[least].all()
    rest = gone.clone()
    rest[:3] = rest[least] = False
    assert int(scores.error[rest].min()) > int(scores.error[kept].max())


def test_halves_have_the_place_the_axes_and_the_variance_of_the_whole() -> None:
    gaussians, scores = some()
    halved = torch.tensor([10, 20])
    scores.error[:] = 0
    scores.error[halved] = 1
    made = change(gaussians, scores, 1000, prune_share=0, prune_opacity=0)
    first, second = ({k: t[98 + i : 100 + i] for k, t in made.parameters.items()} for i in (0, 2))
    assert made.counts == {"pruned": 0, "split": 2} and len(made.origin) == 102
    assert torch.allclose((first["means"] + second["means"]) / 2, gaussians["means"][halved], atol=1e-6)
    long = gaussians["scales"][halved].amax(-1).exp()
    apart = (first["means"] - second["means"]).norm(dim=-1) / 2
    axis = gaussians["scales"][halved].argmax(-1, keepdim=True)
    short = first["scales"].gather(1, axis)[:, 0].exp()
    assert torch.allclose(apart**2 + short**2, long**2, rtol=1e-5)
    for name in ("quats", "sh0", "shN"):
        assert torch.equal(first[name], gaussians[name][halved]) and torch.equal(second[name], first[name])


def test_a_full_budget_only_exchanges() -> None:
    """At the budget, as many are split as were pruned; above it none."""
    gaussians, scores = some()
    assert len(change(gaussians, scores, 100, prune_share=0.1).origin) == 100
    assert len(change(gaussians, scores, 50, prune_share=0.1).origin) == 87
