"""gsplat's own Python over a stand-in of its extension: what the `cuda` renderer draws, on CPU tensors."""

import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dist3dgs.splats.render import RenderSettings, get_renderer, render
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
