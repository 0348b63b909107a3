"""L1 + SSIM on a GPU in four Triton kernels; Triton comes with PyTorch's CUDA builds.

Images are rows of 3 W numbers: the neighbour to the right in the same channel is three numbers on. The window is
applied down and then across, so that each number is read from memory once and from the cache by its neighbours. No
atomic additions: the same bits every time. TRITON_INTERPRET=1 runs the kernels on a CPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist3dgs.splats.loss_window import C1, C2, WEIGHTS

ROWS, COLUMNS, TAPS = 4, 128, 11
_C1, _C2 = tl.constexpr(C1), tl.constexpr(C2)


@triton.jit
def _target(target, place, mask):
    """Photographs are bytes, 0..255, or floats, 0..1."""
    value = tl.load(target + place, mask=mask, other=0)
    if target.dtype.element_ty == tl.uint8:
        return value.to(tl.float32) / 255.0
    return value.to(tl.float32)


@triton.jit
def blur_down_kernel(image, target, weights, out, height, length, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """out [4,H,L]: x, y, x^2 + y^2 and x y, each blurred down."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    mean_x = tl.zeros((ROWS, COLUMNS), tl.float32)
    mean_y = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(11):
        at = row + (tap - 5)
        mask = (at >= 0) & (at < height) & (column < length)
        weight = tl.load(weights + tap)
        x = tl.load(image + at * length + column, mask=mask, other=0.0)
        y = _target(target, at * length + column, mask)
        mean_x += weight * x
        mean_y += weight * y
        squares += weight * (x * x + y * y)
        product += weight * (x * y)
    place, mask = row * length + column, (row < height) & (column < length)
    plane = height * length
    tl.store(out + place, mean_x, mask=mask)
    tl.store(out + plane + place, mean_y, mask=mask)
    tl.store(out + 2 * plane + place, squares, mask=mask)
    tl.store(out + 3 * plane + place, product, mask=mask)


@triton.jit
def compare_kernel(
    image, target, weights, blurred, maps, totals, height, length, WANTED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Blur `blurred` [4,H,L] across and compare; names as in `loss.TorchLoss`.

    maps [3,H,L]: quarters of the derivatives of SSIM by mean(x), -mean(x^2) and mean(x y). totals [programs,2]: sums
    of |x - y| and of quarters of SSIM.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    plane = height * length
    mean_x = tl.zeros((ROWS, COLUMNS), tl.float32)
    mean_y = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(11):
        at = column + 3 * (tap - 5)
        mask = (row < height) & (at >= 0) & (at < length)
        weight = tl.load(weights + tap)
        place = row * length + at
        mean_x += weight * tl.load(blurred + place, mask=mask, other=0.0)
        mean_y += weight * tl.load(blurred + plane + place, mask=mask, other=0.0)
        squares += weight * tl.load(blurred + 2 * plane + place, mask=mask, other=0.0)
        product += weight * tl.load(blurred + 3 * plane + place, mask=mask, other=0.0)
    both, sums = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    a, b = both + _C1 / 2, sums + _C1
    c, d = product - both + _C2 / 2, squares - sums + _C2
    scale = 1.0 / (b * d)
    quarter = a * c * scale
    place, mask = row * length + column, (row < height) & (column < length)
    if WANTED:
        tl.store(maps + place, scale * (mean_y * (c - a) + 2.0 * mean_x * quarter * (b - d)), mask=mask)
        tl.store(maps + plane + place, scale * quarter * b, mask=mask)
        tl.store(maps + 2 * plane + place, scale * a, mask=mask)
    x = tl.load(image + place, mask=mask, other=0.0)
    y = _target(target, place, mask)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(totals + 2 * program, tl.sum(tl.abs(x - y)))
    tl.store(totals + 2 * program + 1, tl.sum(tl.where(mask, quarter, 0.0)))


@triton.jit
def blur_maps_down_kernel(maps, weights, out, height, length, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """out [3,H,L]: the maps blurred down; one map a program."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    plane = tl.program_id(2) * height * length
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(11):
        at = row + (tap - 5)
        mask = (at >= 0) & (at < height) & (column < length)
        total += tl.load(weights + tap) * tl.load(maps + plane + at * length + column, mask=mask, other=0.0)
    tl.store(out + plane + row * length + column, total, mask=(row < height) & (column < length))


@triton.jit
def gradient_kernel(
    image, target, weights, blurred, gradient, height, length, l1_factor, ssim_factor, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Blur `blurred` [3,H,L] across and put the gradient of the loss together."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    plane = height * length
    by_mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    by_square = tl.zeros((ROWS, COLUMNS), tl.float32)
    by_product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(11):
        at = column + 3 * (tap - 5)
        mask = (row < height) & (at >= 0) & (at < length)
        weight = tl.load(weights + tap)
        place = row * length + at
        by_mean += weight * tl.load(blurred + place, mask=mask, other=0.0)
        by_square += weight * tl.load(blurred + plane + place, mask=mask, other=0.0)
        by_product += weight * tl.load(blurred + 2 * plane + place, mask=mask, other=0.0)
    place, mask = row * length + column, (row < height) & (column < length)
    x = tl.load(image + place, mask=mask, other=0.0)
    y = _target(target, place, mask)
    sign = tl.where(x > y, 1.0, tl.where(x < y, -1.0, 0.0))
    by_ssim = by_mean - 2.0 * x * by_square + y * by_product
    tl.store(gradient + place, l1_factor * sign + ssim_factor * by_ssim, mask=mask)


class TritonLoss(torch.autograd.Function):
    """(1 - w) L1 + w (1 - SSIM) of image [H,W,3] float32 and target [H,W,3] uint8 or float32, as `loss.TorchLoss`."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, weight: float) -> Tensor:
        image, target = image.contiguous(), target.contiguous()
        height, length, n = image.shape[0], image.shape[1] * 3, image.numel()
        weights, wanted = _weights(image.device), ctx.needs_input_grad[0]
        grid = (triton.cdiv(height, ROWS), triton.cdiv(length, COLUMNS))
        blurred = image.new_empty(4, height, length)
        maps = image.new_empty(3 if wanted else 0, height, length)
        totals = image.new_empty(grid[0] * grid[1], 2)
        size = {"ROWS": ROWS, "COLUMNS": COLUMNS}
        blur_down_kernel[grid](image, target, weights, blurred, height, length, **size)
        compare_kernel[grid](
            image, target, weights, blurred, maps, totals, height, length, WANTED=wanted, **size
        )
        if wanted:
            gradient = torch.empty_like(image)
            blur_maps_down_kernel[(*grid, 3)](maps, weights, blurred, height, length, **size)
            factors = (1 - weight) / n, -4 * weight / n
            gradient_kernel[grid](image, target, weights, blurred, gradient, height, length, *factors, **size)
            ctx.save_for_backward(gradient)
        l1, quarter = totals.sum(0)
        return l1.mul((1 - weight) / n).add_(weight).sub_(quarter, alpha=4 * weight / n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * v, None, None


def try_out(device: torch.device) -> None:
    """Run all kernels on one pixel."""
    image = torch.zeros(1, 1, 3, device=device, requires_grad=True)
    TritonLoss.apply(image, torch.zeros(1, 1, 3, dtype=torch.uint8, device=device), 0.2).backward()


_cached: dict[torch.device, Tensor] = {}


def _weights(device: torch.device) -> Tensor:
    """[11] float32, the window. Copied to a device once: each copy waits for what is under way there."""
    if device not in _cached:
        _cached[device] = torch.tensor(WEIGHTS, dtype=torch.float32).to(device)
    return _cached[device]
