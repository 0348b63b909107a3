"""The functional fused Adam against torch.optim.Adam; moments through changes of the set of Gaussians."""

import subprocess
import sys

import pytest
import torch

from dist3dgs.splats.densify.change import Change
from dist3dgs.splats.gaussians import NAMES, Gaussians, initial_gaussians
from dist3dgs.train.optimizer import Optimizer
from dist3dgs.train.schedules import AdamRule
from tests.unit.helpers import gsplat_standin


def some(n: int = 30) -> Gaussians:
    g = torch.Generator().manual_seed(1)
    points, colors = torch.randn(n, 3, generator=g), torch.rand(n, 3, generator=g)
    return Gaussians(initial_gaussians(points, colors, init_opacity=0.1, init_scale=1.0))


def gradients(gaussians: Gaussians, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for t in gaussians.values():
        t.grad = torch.randn(t.shape, generator=g)


@pytest.mark.parametrize("batch", [1, 4, 1024])
def test_updates_are_those_of_torch_optim(batch):
    ours, theirs, rule = some(), some(), AdamRule(batch)
    optimizer = Optimizer(ours, rule)
    rates = {name: 0.01 * (i + 1) for i, name in enumerate(NAMES)}
    reference = torch.optim.Adam(
        [{"params": [theirs[k]], "lr": rates[k]} for k in NAMES], betas=rule.betas, eps=rule.eps
    )
    for seed in range(5):
        gradients(ours, seed)
        gradients(theirs, seed)
        optimizer.step(rates, NAMES)
        reference.step()
    for name in NAMES:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6), name
        assert ours[name].grad is None


@pytest.mark.slow
def test_a_step_does_not_import_the_compiler():
    """It takes seconds, on every rank."""
    code = """
import sys, torch
from dist3dgs.splats.gaussians import NAMES, Gaussians, initial_gaussians
from dist3dgs.train.optimizer import Optimizer
from dist3dgs.train.schedules import AdamRule
from tests.unit.helpers import gsplat_standin
points = torch.rand(9, 3)
gaussians = Gaussians(initial_gaussians(points, points, init_opacity=0.1, init_scale=1.0))
for t in gaussians.values():
    t.grad = torch.ones_like(t)
Optimizer(gaussians, AdamRule(1)).step(dict.fromkeys(NAMES, 0.01), NAMES)
print([m for m in sys.modules if m.startswith("torch._dynamo")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_moments_follow_their_rows_and_fresh_ones_start_at_zero():
    gaussians = some(4)
    optimizer = Optimizer(gaussians, AdamRule(1))
    gradients(gaussians, 0)
    optimizer.step(dict.fromkeys(NAMES, 0.01), [n for n in NAMES if n != "shN"])
    before = {k: t.clone() for k, t in optimizer.moments().items()}
    assert set(optimizer.steps()) == set(NAMES) - {"shN"}
    origin = torch.tensor([3, -1, 0])
    parameters = {k: t.detach()[[3, 3, 0]].clone() for k, t in gaussians.items()}
    after = optimizer.apply(Change(parameters, origin, torch.arange(3), reset_moments=("opacities",)))
    assert after.num_gaussians == 3
    for key, value in optimizer.moments().items():
        if key.startswith("opacities"):
            assert not value.any()
            continue
        assert torch.equal(value[0], before[key][3]) and torch.equal(value[2], before[key][0])
        assert not value[1].any()
    assert all(count == 1.0 for count in optimizer.steps().values())


@pytest.mark.parametrize("masked", [False, True], ids=["rows", "mask"])
def test_selective_updates_are_adams_on_the_rows_that_were_seen_and_none_on_the_others(masked):
    """By rows as on a CPU, and by a mask as on a GPU, where gsplat's kernel has no bias correction of its own."""
    ours, theirs, rule = some(), some(), AdamRule(4, selective=True)
    optimizer, reference = Optimizer(ours, rule), Optimizer(theirs, AdamRule(4))
    optimizer.by_mask = masked
    rates = {name: 0.01 * (i + 1) for i, name in enumerate(NAMES)}
    unseen = torch.arange(30) % 3 == 0
    before = {name: t.detach().clone() for name, t in ours.items()}
    with gsplat_standin.installed():
        for seed in range(3):
            for gaussians in (ours, theirs):
                gradients(gaussians, seed)
            for t in ours.values():
                t.grad[unseen] = 0
            optimizer.step(rates, NAMES)
            reference.step(rates, NAMES)
    assert optimizer.steps() == reference.steps() == dict.fromkeys(NAMES, 3.0)
    for name in NAMES:
        assert torch.equal(ours[name][unseen], before[name][unseen]), name
        assert torch.allclose(ours[name][~unseen], theirs[name][~unseen], rtol=1e-5, atol=1e-6), name
    for key, moment in optimizer.moments().items():
        assert not moment[unseen].any(), key
        assert torch.allclose(moment[~unseen], reference.moments()[key][~unseen], rtol=1e-5, atol=1e-6), key


def test_a_rank_without_gaussians_updates_nothing():
    """gsplat's kernel would divide by their number on the host, which kills the process."""
    empty, rule = (
        Gaussians({name: t.detach()[:0] for name, t in some(1).items()}),
        AdamRule(4, selective=True),
    )
    optimizer = Optimizer(empty, rule)
    optimizer.by_mask = True
    gradients(empty, 0)
    with gsplat_standin.installed():
        optimizer.step(dict.fromkeys(NAMES, 0.01), NAMES)
    assert optimizer.steps() == dict.fromkeys(NAMES, 1.0)
