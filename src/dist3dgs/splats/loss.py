"""Photometric losses and metrics: L1, SSIM (Wang et al. 2004) and PSNR.

SSIM here is the one of the 3DGS paper (Kerbl et al. 2023, eq. 7): an 11x11 Gaussian window of sigma 1.5, zero
padding, constants 0.01^2 and 0.03^2 for a value range of 1, the mean over pixels and channels.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist3dgs.errors import UserError
from dist3dgs.splats import triton_kernels
from dist3dgs.splats.loss_window import C1, C2, RADIUS, WEIGHTS

#: Rows on each side of a strip that the gradient of its pixels depends on: their windows, and the windows of these.
HALO_PX = 2 * RADIUS


@dataclass(frozen=True)
class Strip:
    """Rows of an image whose loss is computed by itself, with up to `HALO_PX` rows of the neighbours on each side."""

    top: int
    """Row of the whole image where the strip with its neighbours' rows begins."""
    first: int
    """First row, counted from `top`, of the strip itself."""
    last: int
    """The row after its last."""
    height: int
    """Rows of the whole image."""


def l1_ssim_loss(
    image: Tensor, target: Tensor, ssim_weight: float = 0.2, strip: Strip | None = None
) -> Tensor:
    """Compute (1 - w) mean|image - target| + w (1 - SSIM), 0-dim, differentiable in `image`.

    Args:
        image: [H,W,3] float, about 0..1.
        target: [H,W,3] uint8 (0..255) or float (0..1).
        ssim_weight: w, 0..1; 0.2 in the 3DGS paper.
        strip: image and target are these rows of larger ones. The value is the strip's share of the whole image's
            loss. The gradient in the strip's own rows is that of the whole image's loss; in its neighbours' it has no
            meaning.

    Raises:
        UserError: wrong shape, dtype, device or weight.
    """
    _check(image, target)
    if not 0 <= ssim_weight <= 1:
        raise UserError(f"ssim_weight is {ssim_weight}: expected a number from 0 to 1")
    if image.device.type == "cpu":
        return _CpuLoss.apply(image, target, float(ssim_weight), strip)
    if strip is not None:  # the Triton kernels compute whole images
        return TorchLoss.apply(image, target, float(ssim_weight), strip)
    return gpu_loss(image).apply(image, target, float(ssim_weight))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Compute the mean structural similarity, 0-dim, differentiable in `image`; arguments as in `l1_ssim_loss`.

    image: [H,W,3] float. target: [H,W,3] uint8 or float.
    """
    _check(image, target)
    loss = _CpuLoss if image.device.type == "cpu" else gpu_loss(image)
    return 1 - loss.apply(image, target, 1.0)


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Compute the peak signal to noise ratio, dB, 0-dim, for a peak of 1; infinite for equal images.

    image: [H,W,3] float, about 0..1. target: [H,W,3] uint8 (0..255) or float (0..1).
    """
    _check(image, target)
    return -10 * torch.log10((image - _as_float(target, image)).square().mean())


def ssim_reference(image: Tensor, target: Tensor) -> Tensor:
    """Compute SSIM by its definition in plain torch, as the reference for the faster implementations.

    image: [H,W,3] of any float dtype. target: [H,W,3] uint8 or float.
    """
    target = _as_float(target, image)
    # convolved channel by channel with the outer product of the window
    kernel = _kernel(image.device, image.dtype)
    x, y = (t.movedim(-1, 0)[:, None] for t in (image, target))
    stack = torch.cat([x, y, x * x, y * y, x * y])
    mean_x, mean_y, xx, yy, xy = torch.nn.functional.conv2d(stack, kernel, padding=RADIUS).split(3)
    numerator = (2 * mean_x * mean_y + C1) * (2 * (xy - mean_x * mean_y) + C2)
    spread = (xx - mean_x * mean_x) + (yy - mean_y * mean_y) + C2
    return (numerator / ((mean_x * mean_x + mean_y * mean_y + C1) * spread)).mean()


def gpu_loss(image: Tensor) -> Any:
    """Choose the loss for an image [H,W,3] on a GPU: in Triton kernels, or in plain torch for float64, for extremely
    large images and where Triton is missing.
    """
    large = 12 * image.shape[0] * image.shape[1] >= 1 << 31  # the kernels count in int32
    kernels = (
        None if large or image.dtype != torch.float32 else triton_kernels.load("loss_triton", image.device)
    )
    return TorchLoss if kernels is None else kernels.TritonLoss


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[1,1,11,11] the window. Copied to a device once: each copy waits for what is under way there."""
    weights = _window(device, dtype)
    return (weights[:, None] * weights)[None, None]


@functools.cache
def _window(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(WEIGHTS, dtype=torch.float64).to(dtype).to(device)


def _blur(planes: Tensor) -> Tensor:
    """Convolve [..., H, W] with the window, down and then across: 22 multiplications a pixel instead of 121."""
    window = _window(planes.device, planes.dtype)
    batch = planes.reshape(-1, 1, *planes.shape[-2:])
    down = torch.nn.functional.conv2d(batch, window[None, None, :, None], padding=(RADIUS, 0))
    return torch.nn.functional.conv2d(down, window[None, None, None], padding=(0, RADIUS)).view(planes.shape)


class TorchLoss(torch.autograd.Function):
    """(1 - w) L1 + w (1 - SSIM) of image [H,W,3] float and target [H,W,3] uint8 or float, in plain torch on any device.

    Written for few launches and little memory: mean(x^2) and mean(y^2) are only needed as their sum, and the gradient
    is computed in the forward pass, not recorded. With a = mean(x) mean(y) + C1/2, c = cov(x, y) + C2/2,
    b = mean(x)^2 + mean(y)^2 + C1 and d = var(x) + var(y) + C2, SSIM is 4 a c / (b d).
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, weight: float, strip: Strip | None = None) -> Tensor:
        height, width = image.shape[:2]
        own = strip or Strip(0, 0, height, height)
        rows, n = slice(own.first, own.last), own.height * width * 3
        planes = image.new_empty(4, 3, height, width)
        x, y, squares, product = planes
        x.copy_(image.movedim(-1, 0))
        if target.dtype == torch.uint8 and image.dtype == torch.float32:
            torch.div(target.movedim(-1, 0), 255, out=y)
        else:
            y.copy_(_as_float(target, image).movedim(-1, 0))
        torch.mul(x, x, out=squares).addcmul_(y, y)
        torch.mul(x, y, out=product)
        mean_x, mean_y, d, c = _blur(planes)
        a, b = mean_x * mean_y, (mean_x * mean_x).addcmul_(mean_y, mean_y)
        c.sub_(a).add_(C2 / 2)
        d.sub_(b).add_(C2)
        a.add_(C1 / 2)
        b.add_(C1)
        scale = (b * d).reciprocal_()
        quarter = (a * c).mul_(scale)  # of SSIM
        difference = x - y
        l1 = difference[:, rows].abs().sum() / n
        if ctx.needs_input_grad[0]:
            maps = image.new_empty(3, 3, height, width)
            torch.sub(c, a, out=maps[0]).mul_(mean_y).add_((b - d).mul_(quarter).mul_(mean_x), alpha=2)
            torch.mul(quarter, b, out=maps[1])
            maps[2].copy_(a)
            by_mean, by_square, by_product = _blur(maps.mul_(scale))
            gradient = by_mean.addcmul_(x, by_square, value=-2).addcmul_(y, by_product)
            gradient.mul_(-4 * weight / n).add_(difference.sign_(), alpha=(1 - weight) / n)
            ctx.save_for_backward(gradient)
        share = (own.last - own.first) / own.height
        return l1.mul_(1 - weight).add_(weight * share).sub_(quarter[:, rows].sum(), alpha=4 * weight / n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.movedim(0, -1) * v, None, None, None


class _CpuLoss(torch.autograd.Function):
    """(1 - w) L1 + w (1 - SSIM), value and gradient from the compiled kernels."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, weight: float, strip: Strip | None = None) -> Tensor:
        from dist3dgs.splats.cpu.jit.threads import run
        from dist3dgs.splats.cpu.kernels import photometric

        image = image.contiguous()
        target = (target if target.dtype == torch.uint8 else target.to(image.dtype)).contiguous()
        height, length = image.shape[0], image.shape[1] * 3
        own = strip or Strip(0, 0, height, height)
        n = own.height * length
        num_tasks = height * -(-length // photometric.STRIP)
        get, suffix = photometric.kernels(image.dtype), "_u8" if target.dtype == torch.uint8 else ""
        wanted = ctx.needs_input_grad[0]
        totals = image.new_empty(num_tasks, 2)
        maps = image.new_empty(3 if wanted else 0, height, length)
        shared = (photometric.weights(image.dtype), height, length, image, target)
        run(get(f"compare{suffix}"), *shared, totals, maps, int(wanted), num_tasks=num_tasks)
        if wanted:
            gradient = torch.empty_like(image)
            factors = ((1 - weight) / n, -weight / n)
            run(get(f"gradient{suffix}"), *shared, maps, gradient, *factors, num_tasks=num_tasks)
            ctx.save_for_backward(gradient)
        by_row = totals.double().reshape(height, -1, 2)[own.first : own.last]
        l1, similarity = (by_row.sum((0, 1)) / n).tolist()
        share = (own.last - own.first) / own.height
        return image.new_tensor((1 - weight) * l1 + weight * (share - similarity))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * v, None, None, None


def _check(image: Tensor, target: Tensor) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or target.shape != image.shape or image.numel() == 0:
        raise UserError(
            f"image {list(image.shape)} and target {list(target.shape)}: expected both [height, width, 3], not empty"
        )
    if image.dtype not in (torch.float32, torch.float64):
        raise UserError(f"image is {image.dtype}: expected float32 or float64, values about 0..1")
    if target.dtype != torch.uint8 and not target.is_floating_point():
        raise UserError(f"target is {target.dtype}: expected uint8 in 0..255 or floats in 0..1")
    if image.device != target.device:
        raise UserError(f"image is on {image.device}, target on {target.device}: expected the same device")


def _as_float(target: Tensor, image: Tensor) -> Tensor:
    return target.to(image.dtype) / 255 if target.dtype == torch.uint8 else target.to(image.dtype)
