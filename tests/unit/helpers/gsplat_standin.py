"""gsplat's compiled extension in torch on CPU tensors, so that its own Python runs where there is no GPU.

`install()` puts this module where gsplat looks for a compiled extension. The functions have the names and arguments of
gsplat 1.5.3's `Ops.h` and refuse what its bindings and kernels refuse: a wrong number of arguments, tensors that are
not contiguous or of another dtype. Values follow its kernels' conventions; gradients come from autograd. What a GPU
adds (float32 rounding in another order, its speed, its memory) is not stood in for.
"""

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dist3dgs.launch.gsplat_build import COMPILED

ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN, EXTEND = 1 / 255, 0.999, 1e-4, 3.33
#: Names of functions in the order in which they were called.
calls: list[str] = []
_inside = 0


@contextlib.contextmanager
def extension_call(name: str) -> Iterator[None]:
    global _inside
    calls.append(name)
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1


def is_inside() -> bool:
    """Return True while a function of the extension runs."""
    return _inside > 0


def _require(dtype: torch.dtype | None, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise RuntimeError(f"{name} must be a contiguous tensor")
        if tensor is not None and dtype is not None and tensor.dtype != dtype:
            raise RuntimeError(f"expected scalar type {dtype} but found {tensor.dtype}: {name}")


def _projected(
    means: Tensor, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor, *size: Any
) -> tuple[Tensor, ...]:
    """means2d [C,N,2], depths [C,N], conics [C,N,3], compensations [C,N]."""
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    covars, _ = _quat_scale_to_covar_preci(quats, scales, True, False)
    return tuple(_fully_fused_projection(means, covars, viewmats, Ks, *size, calc_compensations=True)[1:])


def projection_ewa_3dgs_packed_fwd(
    means, covars, quats, scales, opacities, viewmats, Ks, image_width, image_height, eps2d, near_plane, far_plane,
    radius_clip, calc_compensations, camera_model,
):  # fmt: skip
    _require(
        means.dtype, means=means, quats=quats, scales=scales, opacities=opacities, viewmats=viewmats, Ks=Ks
    )
    assert covars is None and camera_model == "PINHOLE" and means.ndim == 2 and viewmats.ndim == 3
    assert len(means), "the launch divides by the number of Gaussians"
    with torch.no_grad():
        size = (image_width, image_height, eps2d, near_plane, far_plane)
        means2d, depths, conics, compensations = _projected(means, quats, scales, viewmats, Ks, *size)
        determinant = conics[..., 0] * conics[..., 2] - conics[..., 1] ** 2
        variances = torch.stack([conics[..., 2], conics[..., 0]], -1) / determinant[..., None]
        seen = (depths >= near_plane) & (depths <= far_plane)
        extend = torch.full_like(depths, EXTEND)
        if opacities is not None:
            opacity = opacities * compensations if calc_compensations else opacities.expand_as(depths)
            seen &= opacity >= ALPHA_MIN
            extend = extend.minimum((2 * (opacity / ALPHA_MIN).log()).clamp_min(0).sqrt())
        radii = (extend[..., None] * variances.sqrt()).ceil()
        sides = means2d.new_tensor([image_width, image_height])
        seen &= (radii > radius_clip).any(-1)
        seen &= ((means2d + radii > 0) & (means2d - radii < sides)).all(-1)
        cameras, ids = seen.nonzero(as_tuple=True)
        counts = seen.sum(1).cumsum(0).int()
        return (
            torch.cat([counts.new_zeros(1), counts]), torch.zeros_like(ids), cameras, ids, radii[seen].int(),
            means2d[seen], depths[seen], conics[seen], compensations[seen] if calc_compensations else None,
        )  # fmt: skip


def projection_ewa_3dgs_packed_bwd(
    means, covars, quats, scales, viewmats, Ks, image_width, image_height, eps2d, camera_model, batch_ids, camera_ids,
    gaussian_ids, conics, compensations, v_means2d, v_depths, v_conics, v_compensations, viewmats_requires_grad,
    sparse_grad,
):  # fmt: skip
    _require(torch.int64, batch_ids=batch_ids, camera_ids=camera_ids, gaussian_ids=gaussian_ids)
    _require(means.dtype, v_means2d=v_means2d, v_depths=v_depths, v_conics=v_conics, conics=conics)
    assert covars is None and camera_model == "PINHOLE" and not sparse_grad
    totals = [torch.zeros_like(t) for t in (means, quats, scales, viewmats)]
    for camera in range(len(viewmats)):
        mine = camera_ids == camera
        ids = gaussian_ids[mine]
        with torch.enable_grad():
            inputs = [t.detach()[ids].requires_grad_() for t in (means, quats, scales)]
            view = viewmats.detach()[camera : camera + 1].clone().requires_grad_()
            size = (image_width, image_height, eps2d, 0.0, 1e30)
            outputs = list(_projected(*inputs, view, Ks[camera : camera + 1], *size))
            given = [v_means2d[mine], v_depths[mine], v_conics[mine]]
            given += [] if v_compensations is None else [v_compensations[mine]]
            gradients = torch.autograd.grad([o[0] for o in outputs[: len(given)]], [*inputs, view], given)
        for total, gradient in zip(totals[:3], gradients[:3], strict=True):
            total.index_add_(0, ids, gradient)
        totals[3][camera] = gradients[3][0]
    return totals[0], None, totals[1], totals[2], totals[3] if viewmats_requires_grad else None


def intersect_tile(
    means2d, radii, depths, image_ids, gaussian_ids, I, tile_size, tile_width, tile_height, sort, segmented  # noqa: E741
):  # fmt: skip
    _require(means2d.dtype, means2d=means2d, depths=depths)
    _require(torch.int32, radii=radii)
    _require(torch.int64, image_ids=image_ids, gaussian_ids=gaussian_ids)
    assert means2d.ndim == 2 and sort and not segmented
    centre, reach = means2d / tile_size, radii.to(means2d.dtype) / tile_size
    last = torch.tensor([tile_width, tile_height])
    low = (centre - reach).floor().clamp_min(0).long().minimum(last)
    high = (centre + reach).ceil().clamp_min(0).long().minimum(last)
    sides = high - low
    counts = sides.prod(1)
    who = torch.arange(len(counts)).repeat_interleave(counts)
    number = torch.arange(len(who)) - (counts.cumsum(0) - counts)[who]
    column, row = number % sides[who, 0] + low[who, 0], number // sides[who, 0] + low[who, 1]
    tiles = image_ids[who] << _tile_bits(tile_width, tile_height) | (row * tile_width + column)
    keys = tiles << 32 | (depths.float().view(torch.int32).long() & 0xFFFFFFFF)[who]
    order = torch.argsort(keys, stable=True)
    return counts.int(), keys[order], who[order].int()


def intersect_offset(isect_ids, I, tile_width, tile_height):  # noqa: E741
    _require(torch.int64, isect_ids=isect_ids)
    bits, size = _tile_bits(tile_width, tile_height), tile_width * tile_height
    tiles = isect_ids >> 32
    flat = (tiles >> bits) * size + (tiles & ((1 << bits) - 1))
    counts = torch.bincount(flat, minlength=I * size)
    return (counts.cumsum(0) - counts).int().reshape(I, tile_height, tile_width)


def _tile_bits(width: int, height: int) -> int:
    return (width * height).bit_length()


def _blend(
    means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, at: Tensor
) -> tuple[Tensor, ...]:
    """Blend n Gaussians, nearest first, at P pixels: means2d [P,n,2], at [P,2] -> [P,channels], [P]."""
    dx, dy = (means2d - at[:, None]).unbind(-1)
    power = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacities * torch.exp(-power)).clamp_max(ALPHA_MAX)
    alpha = torch.where((power >= 0) & (alpha >= ALPHA_MIN), alpha, 0.0)
    with torch.no_grad():
        alive = torch.cumprod(1 - alpha, 1) > TRANSMITTANCE_MIN
    alpha = torch.where(alive, alpha, 0.0)
    left = torch.cat([alpha.new_ones(len(alpha), 1), torch.cumprod(1 - alpha, 1)], 1)
    return (alpha * left[:, :-1]) @ colors, 1 - left[:, -1]


def _tiles(
    width: int, height: int, size: int, offsets: Tensor, flatten_ids: Tensor
) -> Iterator[tuple[Any, ...]]:
    """Of every tile its rows, its columns, its pixels' centres [P,2] and its Gaussians."""
    ends = [*offsets.flatten().tolist(), len(flatten_ids)]
    columns = offsets.shape[-1]
    for t in range(offsets.numel()):
        rows = slice(t // columns * size, min(height, t // columns * size + size))
        cols = slice(t % columns * size, min(width, t % columns * size + size))
        y, x = torch.meshgrid(
            torch.arange(rows.start, rows.stop), torch.arange(cols.start, cols.stop), indexing="ij"
        )
        yield (
            rows,
            cols,
            torch.stack([x, y], -1).reshape(-1, 2) + 0.5,
            flatten_ids[ends[t] : ends[t + 1]].long(),
        )


def _check_raster(means2d, conics, colors, opacities, backgrounds, masks, tile_offsets, flatten_ids) -> None:
    _require(means2d.dtype, means2d=means2d, conics=conics, colors=colors, opacities=opacities)
    _require(torch.int32, tile_offsets=tile_offsets, flatten_ids=flatten_ids)
    assert backgrounds is None and masks is None and tile_offsets.shape[0] == 1
    assert colors.shape[-1] in (1, 2, 3, 4, 5, 8)


def rasterize_to_pixels_3dgs_fwd(
    means2d, conics, colors, opacities, backgrounds, masks, image_width, image_height, tile_size, tile_offsets,
    flatten_ids,
):  # fmt: skip
    _check_raster(means2d, conics, colors, opacities, backgrounds, masks, tile_offsets, flatten_ids)
    image = means2d.new_zeros(1, image_height, image_width, colors.shape[-1])
    alphas = means2d.new_zeros(1, image_height, image_width, 1)
    with torch.no_grad():
        for rows, cols, at, ids in _tiles(image_width, image_height, tile_size, tile_offsets, flatten_ids):
            color, alpha = _blend(
                means2d[ids][None], conics[ids], opacities[ids], colors[ids], at.to(means2d)
            )
            image[0, rows, cols] = color.reshape(image[0, rows, cols].shape)
            alphas[0, rows, cols, 0] = alpha.reshape(alphas[0, rows, cols, 0].shape)
    return image, alphas, torch.zeros(1, image_height, image_width, dtype=torch.int32)


def rasterize_to_pixels_3dgs_bwd(
    means2d, conics, colors, opacities, backgrounds, masks, image_width, image_height, tile_size, tile_offsets,
    flatten_ids, render_alphas, last_ids, v_render_colors, v_render_alphas, absgrad,
):  # fmt: skip
    _check_raster(means2d, conics, colors, opacities, backgrounds, masks, tile_offsets, flatten_ids)
    _require(torch.int32, last_ids=last_ids)
    # gsplat's Python hands on `render_alphas.float()`, which is exact in float32, the one type its kernels know.
    v_render_alphas = v_render_alphas.to(means2d.dtype)
    _require(means2d.dtype, v_render_colors=v_render_colors, v_render_alphas=v_render_alphas)
    totals = [torch.zeros_like(t) for t in (means2d, conics, colors, opacities)]
    absolute = torch.zeros_like(means2d)
    for rows, cols, at, ids in _tiles(image_width, image_height, tile_size, tile_offsets, flatten_ids):
        if not len(ids):
            continue
        with torch.enable_grad():
            # of every pixel by itself, for the sum of absolute values
            centres = means2d.detach()[ids].expand(len(at), -1, -1).clone().requires_grad_()
            inputs = [t.detach()[ids].requires_grad_() for t in (conics, opacities, colors)]
            outputs = _blend(centres, *inputs, at.to(means2d))
            given = [v_render_colors[0, rows, cols].flatten(0, 1), v_render_alphas[0, rows, cols].flatten()]
            by_pixel, *gradients = torch.autograd.grad(outputs, [centres, *inputs], given)
        totals[0].index_add_(0, ids, by_pixel.sum(0))
        absolute.index_add_(0, ids, by_pixel.abs().sum(0))
        for total, gradient in zip((totals[1], totals[3], totals[2]), gradients, strict=True):
            total.index_add_(0, ids, gradient)
    return absolute if absgrad else None, *totals


def spherical_harmonics_fwd(degrees_to_use, dirs, coeffs, masks):
    from gsplat.cuda._torch_impl import _spherical_harmonics

    _require(dirs.dtype, dirs=dirs, coeffs=coeffs)
    with torch.no_grad():
        return _spherical_harmonics(degrees_to_use, dirs, coeffs)


def spherical_harmonics_bwd(K, degrees_to_use, dirs, coeffs, masks, v_colors, compute_v_dirs):
    from gsplat.cuda._torch_impl import _spherical_harmonics

    _require(dirs.dtype, dirs=dirs, coeffs=coeffs, v_colors=v_colors)
    assert coeffs.shape[-2] == K
    with torch.enable_grad():
        inputs = [t.detach().clone().requires_grad_() for t in (coeffs, dirs)]
        out = _spherical_harmonics(degrees_to_use, inputs[1], inputs[0])
        v_coeffs, v_dirs = torch.autograd.grad(out, inputs, v_colors, allow_unused=True)
    v_dirs = torch.zeros_like(dirs) if v_dirs is None else v_dirs
    return v_coeffs, v_dirs if compute_v_dirs else None


def adam(param, param_grad, exp_avg, exp_avg_sq, valid, lr, b1, b2, eps):
    _require(param.dtype, param=param, param_grad=param_grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    _require(torch.bool, valid=valid)
    assert len(valid) == len(param)
    assert len(param), "the launch divides by the number of rows"
    first = b1 * exp_avg[valid] + (1 - b1) * param_grad[valid]
    second = b2 * exp_avg_sq[valid] + (1 - b2) * param_grad[valid] ** 2
    param[valid] += -lr * first / (second.sqrt() + eps)
    exp_avg[valid], exp_avg_sq[valid] = first, second


FUNCTIONS = (
    projection_ewa_3dgs_packed_fwd, projection_ewa_3dgs_packed_bwd, intersect_tile, intersect_offset,
    rasterize_to_pixels_3dgs_fwd, rasterize_to_pixels_3dgs_bwd, spherical_harmonics_fwd, spherical_harmonics_bwd,
    adam,
)  # fmt: skip


def _counted(function: Any) -> Any:
    def call(*args: Any) -> Any:
        with extension_call(function.__name__):
            return function(*args)

    return call


def install() -> None:
    """Stand in for the extension in this process, and let the `cuda` renderer draw CPU tensors of any float dtype."""
    from dist3dgs.splats.render import cuda

    extension = SimpleNamespace(
        **{function.__name__: _counted(function) for function in FUNCTIONS},
        CameraModelType=SimpleNamespace(PINHOLE="PINHOLE"), PINHOLE="PINHOLE", __file__=__file__,
    )  # fmt: skip
    sys.modules[COMPILED] = extension  # type: ignore[assignment]
    cuda.check_device = lambda tensor: None  # type: ignore[assignment]


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """`install`, undone at the end. gsplat's Python remembers the first extension that it saw: this one."""
    from dist3dgs.splats.render import cuda

    check = cuda.check_device
    install()
    try:
        yield
    finally:
        cuda.check_device = check  # type: ignore[assignment]
