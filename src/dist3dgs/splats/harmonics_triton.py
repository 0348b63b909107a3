"""Colours from both tensors of spherical harmonics, read by id in one Triton kernel; their gradients in another.

The backward kernel goes through all Gaussians and writes each row of the gradients once, zeros where nothing was seen.
No atomic additions: the same bits every time. Order, signs and formulas are those of `render.reference.sh_basis`.
TRITON_INTERPRET=1 runs the kernels on a CPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Gaussians of a program; each has four lanes, and the fourth is no channel.
BLOCK = 64
_C0, _C1 = tl.constexpr(0.2820947917738781), tl.constexpr(0.48860251190292)
_C2, _C2_HALF = tl.constexpr(1.092548430592079), tl.constexpr(0.5462742152960395)
_C2_ZZ, _C2_0 = tl.constexpr(0.9461746957575601), tl.constexpr(0.3153915652525201)
_C3, _C3_Z = tl.constexpr(0.5900435899266435), tl.constexpr(1.445305721320277)
_C3_ZZ, _C3_0 = tl.constexpr(2.285228997322329), tl.constexpr(0.4570457994644658)
_C3_ZZZ, _C3_1 = tl.constexpr(1.865881662950577), tl.constexpr(1.119528997770346)


@triton.jit
def _values(x, y, z):
    """Functions 1 to 15 at unit directions. Constants stand on the right: Triton's interpreter wants it so."""
    inner = z * z * -_C3_ZZ + _C3_0
    difference = x * x - y * y
    return (
        y * -_C1, z * _C1, x * -_C1,
        x * y * _C2, y * z * -_C2, z * z * _C2_ZZ - _C2_0, x * z * -_C2, difference * _C2_HALF,
        y * (x * x * 3.0 - y * y) * -_C3, x * y * z * (2.0 * _C3_Z), inner * y, z * (z * z * _C3_ZZZ - _C3_1),
        inner * x, z * difference * _C3_Z, x * (x * x - y * y * 3.0) * -_C3,
    )  # fmt: skip


@triton.jit
def _by_x(x, y, z):
    """Derivatives of `_values` by x, as polynomials."""
    zero = x * 0.0
    return (
        zero, zero, zero - _C1,
        y * _C2, zero, zero, z * -_C2, x * _C2,
        x * y * (-6.0 * _C3), y * z * (2.0 * _C3_Z), zero, zero, z * z * -_C3_ZZ + _C3_0,
        x * z * (2.0 * _C3_Z), (x * x - y * y) * (-3.0 * _C3),
    )  # fmt: skip


@triton.jit
def _by_y(x, y, z):
    """Derivatives of `_values` by y, as polynomials."""
    zero = y * 0.0
    return (
        zero - _C1, zero, zero,
        x * _C2, z * -_C2, zero, zero, y * -_C2,
        (x * x - y * y) * (-3.0 * _C3), x * z * (2.0 * _C3_Z), z * z * -_C3_ZZ + _C3_0, zero, zero,
        y * z * (-2.0 * _C3_Z), x * y * (6.0 * _C3),
    )  # fmt: skip


@triton.jit
def _by_z(x, y, z):
    """Derivatives of `_values` by z, as polynomials."""
    zero = z * 0.0
    return (
        zero, zero + _C1, zero,
        zero, y * -_C2, z * (2.0 * _C2_ZZ), x * -_C2, zero,
        zero, x * y * (2.0 * _C3_Z), y * z * (-2.0 * _C3_ZZ), z * z * (3.0 * _C3_ZZZ) - _C3_1, x * z * (-2.0 * _C3_ZZ),
        (x * x - y * y) * _C3_Z, zero,
    )  # fmt: skip


@triton.jit
def _direction(means, offset, row, mask):
    """x, y, z [BLOCK,1] of the unit direction from the camera to the mean, and one over the distance."""
    x = tl.load(means + 3 * row, mask=mask, other=1.0) + tl.load(offset, mask=mask, other=0.0)
    y = tl.load(means + 3 * row + 1, mask=mask, other=1.0) + tl.load(offset + 1, mask=mask, other=0.0)
    z = tl.load(means + 3 * row + 2, mask=mask, other=1.0) + tl.load(offset + 2, mask=mask, other=0.0)
    inverse = 1.0 / tl.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


@triton.jit
def _add_products(sums, values, v):
    """sums + values * v, 15 of them."""
    return (
        sums[0] + values[0] * v, sums[1] + values[1] * v, sums[2] + values[2] * v, sums[3] + values[3] * v,
        sums[4] + values[4] * v, sums[5] + values[5] * v, sums[6] + values[6] * v, sums[7] + values[7] * v,
        sums[8] + values[8] * v, sums[9] + values[9] * v, sums[10] + values[10] * v, sums[11] + values[11] * v,
        sums[12] + values[12] * v, sums[13] + values[13] * v, sums[14] + values[14] * v,
    )  # fmt: skip


@triton.jit(do_not_specialize=["number", "total"])
def colors_kernel(
    means, sh0, shn, ids, cameras, offsets, colors, places, number, total, MANY: tl.constexpr, COUNT: tl.constexpr,
    OTHERS: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """colors [V,3] of the Gaussians `ids` [V], number V, of total N, as the cameras [V] see them; places [C,N]: where
    each of them stands in `ids`, if WANTED.

    MANY: there are several cameras. COUNT: coefficients in use. OTHERS: those of a Gaussian in shn.
    """
    place = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    channel = tl.arange(0, 4)[None, :]
    mask = place < number
    row = tl.load(ids + place, mask=mask, other=0)
    camera = row * 0
    if MANY:
        camera = tl.load(cameras + place, mask=mask, other=0)
    mask_rgb = mask & (channel < 3)
    color = tl.load(sh0 + 3 * row + channel, mask=mask_rgb, other=0.0) * _C0 + 0.5
    if COUNT > 1:
        x, y, z, _ = _direction(means, offsets + 3 * camera, row, mask)
        values = _values(x, y, z)
        for k in tl.static_range(COUNT - 1):
            color += values[k] * tl.load(shn + 3 * (OTHERS * row + k) + channel, mask=mask_rgb, other=0.0)
    tl.store(colors + 3 * place + channel, tl.maximum(color, 0.0), mask=mask_rgb)
    if WANTED:
        tl.store(places + camera * total + row, place.to(tl.int32), mask=mask)


@triton.jit(do_not_specialize=["number", "num_cameras"])
def colors_gradient_kernel(
    means, sh0, shn, offsets, places, v_colors, v_means, v_sh0, v_shn, number, num_cameras, MANY: tl.constexpr,
    COUNT: tl.constexpr, OTHERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of all N means [N,3], sh0 [N,3] and shn [N,OTHERS,3], number N, from those of the colours [V,3]."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
    channel = tl.arange(0, 4)[None, :]
    mask = row < number
    mask_rgb = mask & (channel < 3)
    zero, zeros = tl.zeros((BLOCK, 1), tl.float32), tl.zeros((BLOCK, 4), tl.float32)
    sum_x, sum_y, sum_z, sum_0 = zero, zero, zero, zeros
    sums = (
        zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros
    )  # fmt: skip
    for camera in range(num_cameras if MANY else 1):
        place = tl.load(places + camera * number + row, mask=mask, other=-1).to(tl.int64)
        seen = place >= 0
        seen_rgb = seen & (channel < 3)
        color = tl.load(sh0 + 3 * row + channel, mask=seen_rgb, other=0.0) * _C0 + 0.5
        v = tl.load(v_colors + 3 * place + channel, mask=seen_rgb, other=0.0)
        if COUNT > 1:
            x, y, z, inverse = _direction(means, offsets + 3 * (row * 0 + camera), row, seen)
            values, xs, ys, zs = _values(x, y, z), _by_x(x, y, z), _by_y(x, y, z), _by_z(x, y, z)
            by_x, by_y, by_z = zeros, zeros, zeros
            for k in tl.static_range(COUNT - 1):
                coefficient = tl.load(shn + 3 * (OTHERS * row + k) + channel, mask=seen_rgb, other=0.0)
                color += values[k] * coefficient
                by_x += xs[k] * coefficient
                by_y += ys[k] * coefficient
                by_z += zs[k] * coefficient
            v = tl.where(color >= 0.0, v, 0.0)
            sums = _add_products(sums, values, v)
            v_x = tl.sum(by_x * v, 1, keep_dims=True)
            v_y = tl.sum(by_y * v, 1, keep_dims=True)
            v_z = tl.sum(by_z * v, 1, keep_dims=True)
            along = x * v_x + y * v_y + z * v_z  # a longer direction is the same direction
            sum_x += (v_x - along * x) * inverse
            sum_y += (v_y - along * y) * inverse
            sum_z += (v_z - along * z) * inverse
        else:
            v = tl.where(color >= 0.0, v, 0.0)
        sum_0 += v
    if COUNT > 1:
        for k in tl.static_range(COUNT - 1):
            tl.store(v_shn + 3 * (OTHERS * row + k) + channel, sums[k], mask=mask_rgb)
        for k in tl.static_range(COUNT - 1, OTHERS):  # of degrees not in use yet
            tl.store(v_shn + 3 * (OTHERS * row + k) + channel, zeros, mask=mask_rgb)
        tl.store(v_means + 3 * row, sum_x, mask=mask)
        tl.store(v_means + 3 * row + 1, sum_y, mask=mask)
        tl.store(v_means + 3 * row + 2, sum_z, mask=mask)
    tl.store(v_sh0 + 3 * row + channel, sum_0 * _C0, mask=mask_rgb)


class TritonColors(torch.autograd.Function):
    """(means [N,3], sh0 [N,1,3], shn [N,K-1,3], int64 ids [V], int64 cameras [V], offsets [C,3], degree) -> RGB [V,3],
    clamped below at 0.

    All float32 but the ids and cameras; no camera has an id twice. A mean plus a camera's offset is the direction from
    the camera. At degree 0 means and shn are not read, and their gradients are None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        sh0: Tensor,
        shn: Tensor,
        ids: Tensor,
        cameras: Tensor,
        offsets: Tensor,
        degree: int,
    ) -> Tensor:
        means, sh0, shn, offsets = (t.contiguous() for t in (means, sh0, shn, offsets))
        wanted, num_cameras = any(ctx.needs_input_grad), len(offsets)
        colors = means.new_empty(len(ids), 3)
        places = ids.new_full((num_cameras, len(means) if wanted else 0), -1, dtype=torch.int32)
        fixed = {"MANY": num_cameras > 1, "COUNT": (degree + 1) ** 2, "OTHERS": shn.shape[1], "BLOCK": BLOCK}
        colors_kernel[(triton.cdiv(len(ids), BLOCK),)](
            means, sh0, shn, ids.contiguous(), cameras.contiguous(), offsets, colors, places, len(ids), len(means),
            WANTED=wanted, **fixed,
        )  # fmt: skip
        ctx.save_for_backward(means, sh0, shn, offsets, places)
        ctx.fixed = fixed
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        means, sh0, shn, offsets, places = ctx.saved_tensors
        v_means, v_sh0, v_shn = (torch.empty_like(t) for t in (means, sh0, shn))
        colors_gradient_kernel[(triton.cdiv(len(means), BLOCK),)](
            means, sh0, shn, offsets, places, v.contiguous(), v_means, v_sh0, v_shn, len(means), len(offsets),
            **ctx.fixed,
        )  # fmt: skip
        if ctx.fixed["COUNT"] == 1:
            return None, v_sh0, None, None, None, None, None
        return v_means, v_sh0, v_shn, None, None, None, None


def try_out(device: torch.device) -> None:
    """Run both kernels on one Gaussian with all degrees in use."""
    means, sh0, shn = (torch.ones(1, k, 3, device=device, requires_grad=True) for k in (1, 1, 15))
    ids, offsets = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, 3, device=device)
    TritonColors.apply(means.view(1, 3), sh0, shn, ids, ids, offsets, 3).sum().backward()
