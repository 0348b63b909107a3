"""Photometric losses and metrics: L1, SSIM (Wang et al. 2004) and PSNR.

SSIM here is the one of the 3DGS paper (Kerbl et al. 2023, eq. 7): an 11x11 Gaussian window of sigma 1.5, zero padding,
constants 0.01^2 and 0.03^2 for a value range of 1, the mean over pixels and channels.
"""

import torch
from torch import Tensor

from dist3dgs.errors import UserError

WINDOW_SIZE = 11
WINDOW_SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2


def l1_ssim_loss(image: Tensor, target: Tensor, ssim_weight: float = 0.2) -> Tensor:
    """(1 - w) mean|image - target| + w (1 - SSIM), differentiable in `image`.

    Args:
        image: [H,W,3] float, about 0..1.
        target: [H,W,3] uint8 (0..255) or float (0..1).
        ssim_weight: w, 0..1.
    """
    target = _as_float(target, image)
    return (1 - ssim_weight) * (image - target).abs().mean() + ssim_weight * (1 - ssim(image, target))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of two [H,W,3] images, differentiable in `image`."""
    target = _as_float(target, image)
    x, y = image.movedim(-1, 0), target.movedim(-1, 0)
    mean_x, mean_y, square_x, square_y, product = _blur(torch.stack([x, y, x * x, y * y, x * y])).unbind(0)
    var_x, var_y = square_x - mean_x * mean_x, square_y - mean_y * mean_y
    cov = product - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    return (numerator / ((mean_x * mean_x + mean_y * mean_y + C1) * (var_x + var_y + C2))).mean()


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio, dB, for a peak of 1; infinite for equal images."""
    return -10 * torch.log10((image - _as_float(target, image)).square().mean())


def window(like: Tensor) -> Tensor:
    """The 11 weights of the Gaussian window, summing to 1."""
    offsets = torch.arange(WINDOW_SIZE, dtype=torch.float64) - WINDOW_SIZE // 2
    weights = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    return (weights / weights.sum()).to(like)


def _blur(x: Tensor) -> Tensor:
    """[..., H, W]: every plane convolved with the window, zeros outside."""
    weights = window(x)
    planes = x.reshape(1, -1, *x.shape[-2:])
    # One channel a group: PyTorch's CPU convolution of the same planes as a batch is thirty times slower.
    kernel = (weights[:, None] * weights).expand(planes.shape[1], 1, WINDOW_SIZE, WINDOW_SIZE)
    out = torch.nn.functional.conv2d(planes, kernel.contiguous(), padding=WINDOW_SIZE // 2, groups=planes.shape[1])
    return out.reshape(x.shape)


def _as_float(target: Tensor, image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[2] != 3 or target.shape != image.shape:
        raise UserError(
            f"image {list(image.shape)} and target {list(target.shape)}: expected both [height, width, 3]"
        )
    if not image.is_floating_point():
        raise UserError(f"image is {image.dtype}: expected a float tensor in 0..1")
    return target.to(image.dtype) / 255 if target.dtype == torch.uint8 else target.to(image.dtype)
