"""gsplat's own Python over a stand-in of its extension: what the `cuda` renderer draws, on CPU tensors."""

import dataclasses
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dist3dgs.splats.render import Projection, RenderSettings, get_renderer, render
from tests.unit.helpers import gsplat_standin as standin
from tests.unit.helpers.clouds import GRADIENTS, edge_pixels, random_cloud, relative, run

OPTIONS = (
    {}, {"antialiased": True}, {"depth": True}, {"degree": 0}, {"degree": 1}, {"degree": 2, "joined": True},
    {"absgrad": False},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _standin():
    with standin.installed():
        yield


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("seed", "size"), [(0, (50, 35)), (1, (16, 16))])
def test_agrees_with_the_other_renderers(options, seed, size) -> None:
    cloud = random_cloud(200, seed, *size)
    ignore = edge_pixels(cloud, options.get("antialiased", False), tolerance=1e-3)
    exact = run(cloud, "cuda", torch.float64, ignore=ignore, **options)
    single = run(cloud, "cuda", torch.float32, ignore=ignore, **options)
    for other in ("reference", "cpu"):
        truth = run(cloud, other, torch.float64, ignore=ignore, **options)
        # gsplat's own torch code has its constants in float32, hence 3e-7 and not the rounding of float64
        for got, tolerance in ((exact, 3e-7), (single, 1e-3)):
            assert torch.equal(truth.ids, got.ids) and torch.equal(truth.radii, got.radii)
            for name in ("colors", "alphas", "depths"):
                a, b = getattr(truth, name), getattr(got, name)
                assert (a is None) == (b is None) and (a is None or relative(a, b) <= tolerance), name
            for name in GRADIENTS:
                a, b = truth.gradients[name], got.gradients[name]
                assert (a is None) == (b is None), name
                assert a is None or relative(a, b) <= tolerance, f"{name}: {relative(a, b):.1e}"


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_the_same_as_gsplats_own_rasterization(mode: str) -> None:
    from gsplat import rasterization

    cloud = random_cloud(200, 5, 50, 35)
    x = [getattr(cloud, n).float() for n in ("means", "quats", "scales", "opacities")]
    sh = torch.cat([cloud.sh0, cloud.shn], 1).float()
    camera = cloud.viewmat.float()[None], cloud.K.float()[None], cloud.width, cloud.height
    settings = RenderSettings(sh_degree=3, antialiased=mode == "antialiased")
    ours = render(get_renderer("cuda"), *x, sh, *camera, settings)
    colors, alphas, _ = rasterization(*x, sh, *camera, sh_degree=3, packed=True, rasterize_mode=mode)
    assert relative(colors, ours.colors) < 1e-6 and relative(alphas, ours.alphas) < 1e-6


@pytest.mark.parametrize(("degree", "joined"), [(0, False), (1, False), (3, False), (2, True), (None, True)])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("num_gaussians", [0, 200])
def test_several_views_at_once(degree, joined, antialiased, num_gaussians) -> None:
    """One call of gsplat gives the projections and gradients of one call per camera; the second camera sees nothing."""
    cloud, renderer = random_cloud(num_gaussians, 3, 50, 35), get_renderer("cuda")
    views = [cloud.viewmat.clone() for _ in range(4)]
    views[1][2, 3], views[2][0, 3], views[3][1, 3] = -90.0, 0.4, -0.3
    settings = RenderSettings(sh_degree=degree, antialiased=antialiased)
    found = {}
    for way in ("apart", "together"):
        leaves = [
            getattr(cloud, n).clone().requires_grad_() for n in ("means", "quats", "scales", "opacities")
        ]
        leaves += [t.clone().requires_grad_() for t in (cloud.sh0, cloud.shn, *views)]
        sh0, shn, *matrices = leaves[4:]
        colors = sh0[:, 0] if degree is None else torch.cat([sh0, shn], 1) if joined else (sh0, shn)
        gaussians, size = (*leaves[:4], colors), (cloud.width, cloud.height)
        standin.calls.clear()
        if way == "apart":
            projections = [renderer.project(*gaussians, view, cloud.K, *size, settings) for view in matrices]
        else:
            whole, numbers = renderer.project_views(*gaussians, matrices, [cloud.K] * 4, *size, settings)
            projections = whole.split(numbers.tolist())
            assert standin.calls.count("projection_ewa_3dgs_packed_fwd") == (num_gaussians > 0)
        g, total = torch.Generator().manual_seed(1), torch.zeros(())
        for p in projections:
            for t in (p.means2d, p.conics, p.depths, p.colors, p.opacities):
                total = total + (t * torch.randn(t.shape, generator=g, dtype=t.dtype)).sum()
        total.backward()
        found[way] = projections, [leaf.grad for leaf in leaves]
    (apart, gradients), (together, sums) = found["apart"], found["together"]
    others = get_renderer("reference").project_views(*gaussians, matrices, [cloud.K] * 4, *size, settings)
    assert torch.equal(numbers, others[1]) and torch.equal(whole.ids, others[0].ids)
    assert len(apart[1].ids) == 0 and (num_gaussians == 0 or len(apart[0].ids) > 20)
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.radii, other.radii)
        for field in dataclasses.fields(Projection):
            a, b = (getattr(p, field.name).detach() for p in (one, other))
            assert relative(a, b) < 1e-12, field.name
    for one, other in zip(gradients, sums, strict=True):
        # Of no Gaussians, the cameras have no gradient or none that is not 0.
        one, other = (None if t is None or not t.any() else t for t in (one, other))
        assert (one is None) == (other is None)
        assert one is None or relative(one, other) < 1e-6


@pytest.mark.parametrize("num_gaussians", [0, 5])
def test_nothing_to_see_still_has_gradients(num_gaussians: int) -> None:
    shapes = ((3,), (4,), (3,), ())
    x = [torch.ones(num_gaussians, *s).requires_grad_() for s in shapes]
    K = torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]])
    r, red = get_renderer("cuda"), torch.tensor([1.0, 0, 0])
    p = r.project(x[0] - 5, *x[1:], torch.ones(num_gaussians, 3), torch.eye(4), K, 8, 8)
    image = r.rasterize(p, 8, 8, RenderSettings(render_depth=True, absgrad=True), background=red)
    image.colors.sum().backward()
    assert image.colors[..., 0].min() == 1 and image.alphas.max() == 0
    assert x[0].grad is not None and p.means2d.absgrad.shape == (0, 2)


def test_the_stand_in_has_the_arguments_of_the_pinned_gsplat() -> None:
    """Names and order as declared in its C++ header."""
    found = find_spec("gsplat")
    assert found is not None and found.origin is not None
    header = re.sub(r"//[^\n]*", "", (Path(found.origin).parent / "cuda/include/Ops.h").read_text())
    for function in standin.FUNCTIONS:
        (declared,) = re.findall(rf"\b{function.__name__}\(([^)]*)\)", header)
        names = [argument.split()[-1].lstrip("&") for argument in declared.split(",")]
        assert list(inspect.signature(function).parameters) == names, function.__name__
