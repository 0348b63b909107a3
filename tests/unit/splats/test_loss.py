"""L1 + SSIM: the compiled kernels against torch and torchmetrics."""

import itertools
import sys

import pytest
import torch
from torch import Tensor

from dist3dgs.errors import UserError
from dist3dgs.splats import loss as losses
from dist3dgs.splats import triton_kernels
from dist3dgs.splats.loss import HALO_PX, Strip, TorchLoss, l1_ssim_loss, psnr, ssim, ssim_reference


def images(height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A smooth photograph in bytes and a noisy rendering of it."""
    g = torch.Generator().manual_seed(height * width)
    small = torch.rand(1, 3, height // 5 + 1, width // 5 + 1, generator=g)
    photo = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0].movedim(0, -1)
    noisy = photo + 0.1 * torch.randn(height, width, 3, generator=g)
    return noisy.to(dtype).requires_grad_(), (photo * 255).round().to(torch.uint8).contiguous()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize(
    "size",
    [(1, 1), (2, 3), (16, 16), (40, 57), (33, 300), pytest.param((270, 480), marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("function", [l1_ssim_loss, TorchLoss.apply], ids=["kernels", "torch"])
def test_value_and_gradient(function, size: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    image, target = images(*size, dtype)
    loss = function(image, target, 0.2)
    loss.backward()
    exact, photo = image.detach().double().requires_grad_(), target.double() / 255
    truth = 0.8 * (exact - photo).abs().mean() + 0.2 * (1 - ssim_reference(exact, photo))
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=tolerance)
    assert image.grad is not None and exact.grad is not None
    assert (image.grad - exact.grad).norm() <= tolerance * exact.grad.norm()
    assert torch.allclose(function(image, (target / 255).to(dtype), 0.2), loss)
    assert torch.equal(function(image.detach(), target, 0.2), loss), "evaluation needs no gradient"


@pytest.mark.parametrize("function", [l1_ssim_loss, TorchLoss.apply], ids=["kernels", "torch"])
def test_strips_add_up_to_the_whole_image(function) -> None:
    """Value and gradient; strips of one row, of less than a window and at both ends of the image."""
    image, target = images(45, 50, torch.float64)
    whole = function(image, target, 0.2)
    whole.backward()
    total = 0.0
    for first, last in itertools.pairwise((0, 16, 17, 24, 45)):
        top, bottom = max(0, first - HALO_PX), min(45, last + HALO_PX)
        rows = image.detach()[top:bottom].requires_grad_()
        strip = Strip(top, first - top, last - top, 45)
        part = function(rows, target[top:bottom], 0.2, strip)
        part.backward()
        total += part.item()
        assert torch.allclose(
            rows.grad[first - top : last - top], image.grad[first:last], rtol=1e-12, atol=1e-16
        )
    assert total == pytest.approx(whole.item(), rel=1e-13)


@pytest.mark.slow
def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure  # imports for two seconds

    image, target = images(120, 90, torch.float32)
    # torchmetrics pads by reflection: in a frame of zeros, its map inside the frame is that of zero padding
    a, b = (
        torch.nn.functional.pad(t.detach().movedim(-1, 0)[None], (10,) * 4) for t in (image, target / 255)
    )
    _, similarity = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    assert ssim(image, target).item() == pytest.approx(
        similarity[..., 10:-10, 10:-10].mean().item(), abs=1e-5
    )


def test_the_same_bits_for_any_number_of_threads() -> None:
    image, target = images(64, 70, torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        image.grad = None
        loss = l1_ssim_loss(image, target)
        loss.backward()
        results.append((loss.item(), image.grad))
    torch.set_num_threads(before)
    assert all(loss == results[0][0] and torch.equal(grad, results[0][1]) for loss, grad in results)


def test_equal_images() -> None:
    _, target = images(20, 20, torch.float32)
    same = (target / 255).requires_grad_()
    assert l1_ssim_loss(same, target).item() == pytest.approx(0, abs=1e-6)
    assert ssim(same, target).item() == pytest.approx(1, abs=1e-6)
    assert psnr(same, same).item() == float("inf")
    assert psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)).item() == pytest.approx(20, abs=1e-4)


@pytest.mark.slow
def test_gradient_scales_with_what_comes_in() -> None:
    image, target = images(12, 12, torch.float64)
    for function in (l1_ssim_loss, TorchLoss.apply):
        assert torch.autograd.gradcheck(
            lambda x, f=function: 3 * f(x, target, 0.5), [image], eps=1e-7, atol=1e-6
        )


@pytest.mark.parametrize("bad", [
    lambda: l1_ssim_loss(torch.zeros(4, 4), torch.zeros(4, 4)),
    lambda: l1_ssim_loss(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3)),
    lambda: l1_ssim_loss(torch.zeros(0, 4, 3), torch.zeros(0, 4, 3)),
    lambda: l1_ssim_loss(torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4, 3)),
    lambda: l1_ssim_loss(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3, dtype=torch.int64)),
    lambda: l1_ssim_loss(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), 1.5),
])  # fmt: skip
def test_bad_input(bad) -> None:
    with pytest.raises(UserError, match="expected"):
        bad()


def test_without_triton_a_gpu_computes_the_loss_in_plain_torch(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "dist3dgs.splats.loss_triton", raising=False)
    triton_kernels.load.cache_clear()
    image = torch.zeros(4, 4, 3)
    with pytest.warns(UserWarning, match="plain torch"):
        assert losses.gpu_loss(image) is TorchLoss
    assert losses.gpu_loss(image.double()) is TorchLoss
    triton_kernels.load.cache_clear()
