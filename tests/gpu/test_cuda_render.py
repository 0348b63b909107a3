"""The CUDA renderer against the float64 reference and the CPU kernels, and against gsplat's own rasterization()."""

import warnings

import pytest
import torch

from tests.unit.helpers.clouds import GRADIENTS, edge_pixels, random_cloud, relative, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
COLOR, GRADIENT = 1e-4, 1e-3


@pytest.mark.parametrize(
    "options",
    [{}, {"antialiased": True}, {"depth": True}, {"degree": 0}, {"degree": 2, "joined": True}],
    ids=str,
)
@pytest.mark.parametrize("other", ["reference", "cpu"])
def test_agreement(options: dict, other: str) -> None:
    for seed, size in ((0, (90, 70)), (1, (16, 16)), (2, (33, 97))):
        cloud = random_cloud(2000, seed, *size)
        # gsplat's exponential is coarser than ours, so more pixels count as lying on a threshold
        ignore = edge_pixels(cloud, options.get("antialiased", False), tolerance=1e-3)
        truth = run(cloud, other, torch.float64, ignore=ignore, **options)
        result = run(cloud, "cuda", torch.float32, ignore=ignore, device="cuda", **options)
        assert torch.equal(truth.ids, result.ids.cpu())
        assert relative(truth.colors, result.colors) <= COLOR
        assert relative(truth.alphas, result.alphas) <= COLOR
        for name in GRADIENTS:
            a, b = truth.gradients[name], result.gradients[name]
            assert (a is None) == (b is None), name
            assert a is None or b is None or relative(a, b) <= GRADIENT, f"{name}: {relative(a, b):.1e}"


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_the_same_as_gsplat_rasterization(mode: str) -> None:
    from gsplat import rasterization

    from dist3dgs.splats.render import RenderSettings, get_renderer, render

    cloud = random_cloud(3000, 5)
    x = [getattr(cloud, n).float().cuda() for n in ("means", "quats", "scales", "opacities")]
    sh = torch.cat([cloud.sh0, cloud.shn], 1).float().cuda()
    views, Ks = cloud.viewmat.float().cuda()[None], cloud.K.float().cuda()[None]
    ours = render(
        get_renderer("cuda"), *x, sh, views, Ks, cloud.width, cloud.height,
        RenderSettings(sh_degree=3, antialiased=mode == "antialiased"),
    )  # fmt: skip
    colors, alphas, _ = rasterization(
        *x, sh, views, Ks, cloud.width, cloud.height, sh_degree=3, packed=True, rasterize_mode=mode
    )
    assert relative(colors, ours.colors) < 1e-6 and relative(alphas, ours.alphas) < 1e-6


def test_nothing_to_see() -> None:
    from dist3dgs.splats.render import RenderSettings, get_renderer

    r, means = get_renderer("auto", "cuda"), torch.zeros(5, 3, device="cuda", requires_grad=True)
    p = r.project(
        means - 5, torch.ones(5, 4, device="cuda"), torch.ones(5, 3, device="cuda") * 0.1,
        torch.ones(5, device="cuda") * 0.5, torch.ones(5, 3, device="cuda"), torch.eye(4, device="cuda"),
        torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]], device="cuda"), 8, 8,
    )  # fmt: skip
    red = torch.tensor([1.0, 0, 0], device="cuda")
    image = r.rasterize(p, 8, 8, RenderSettings(render_depth=True), background=red)
    image.colors.sum().backward()
    assert image.colors[..., 0].min() == 1 and image.alphas.max() == 0


def test_no_gaussians() -> None:
    """An empty shard."""
    from dist3dgs.splats.render import get_renderer

    r, empty = get_renderer("cuda"), [torch.zeros(0, n, device="cuda", requires_grad=True) for n in (3, 4, 3)]
    p = r.project(
        *empty, torch.zeros(0, device="cuda"), torch.zeros(0, 3, device="cuda"), torch.eye(4, device="cuda"),
        torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]], device="cuda"), 8, 8,
    )  # fmt: skip
    image = r.rasterize(p, 8, 8)
    image.colors.sum().backward()
    assert image.colors.abs().max() == 0 and empty[0].grad is not None


def test_views_do_not_wait_for_the_gpu() -> None:
    """From the second view of a camera on. gsplat itself waits twice, for the numbers of what it has packed."""
    from dist3dgs.splats.loss import l1_ssim_loss
    from dist3dgs.splats.render import RenderSettings, get_renderer

    cloud, r = random_cloud(500, 3), get_renderer("cuda")
    x = [getattr(cloud, n).float().cuda() for n in ("means", "quats", "scales", "opacities")]
    sh = cloud.sh0.float().cuda(), cloud.shn.float().cuda()
    view, K, size = cloud.viewmat.float().cuda(), cloud.K.float().cuda(), (cloud.width, cloud.height)
    photo = torch.zeros(cloud.height, cloud.width, 3, dtype=torch.uint8, device="cuda")

    def draw() -> None:
        p = r.project(*x, sh, view, K, *size, RenderSettings(sh_degree=3))
        l1_ssim_loss(r.rasterize(p, *size, background=torch.ones(3, device="cuda")).colors, photo)

    draw()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            draw()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchronizing CUDA operation" in str(w.message)]) <= 2


def test_loss_is_the_same_on_both_devices() -> None:
    """In Triton kernels, in plain torch, and in those of the CPU."""
    from dist3dgs.splats import triton_kernels
    from dist3dgs.splats.loss import TorchLoss, l1_ssim_loss

    for name in triton_kernels.INSTEAD:
        assert triton_kernels.load(name, torch.device("cuda", 0)) is not None, "Triton came with PyTorch"
    photo, found = (torch.rand(50, 60, 3) * 255).to(torch.uint8), []
    image = torch.rand(50, 60, 3)
    for function, device in ((l1_ssim_loss, "cpu"), (l1_ssim_loss, "cuda"), (TorchLoss.apply, "cuda")):
        x = image.to(device).requires_grad_()
        loss = function(x, photo.to(device), 0.2)
        loss.backward()
        found.append((loss.item(), x.grad.cpu()))
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], abs=1e-6)
        assert relative(found[0][1], gradient) < 1e-5
