"""The CUDA renderer: gsplat's public functions behind the common interface.

Nothing of gsplat is imported before a CUDA tensor is rendered; its extension is then loaded, or built where it is
missing (`launch/gsplat_build.py`).
"""

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary

from dist3dgs.errors import UserError
from dist3dgs.launch import gsplat_build
from dist3dgs.splats import triton_kernels
from dist3dgs.splats.host_copy import HostCopy
from dist3dgs.splats.render import checks
from dist3dgs.splats.render.api import (
    DEFAULTS,
    QUATERNION_MIN,
    Colors,
    Image,
    Projection,
    Renderer,
    RenderSettings,
)

TILE_PX = 16
#: Gaussians are checked for NaN, and for quaternions too short to be a rotation, at the first projection and then every
#: so many; the result is read a projection later, when the GPU has it. In between, a NaN makes the loss NaN, which ends
#: the training too, and no quaternion becomes short: its gradient is perpendicular to it, so that each update makes it
#: longer.
FINITE_EVERY = 100


class CudaRenderer(Renderer):
    """See `dist3dgs.splats.render.api.Renderer`. Float32 on a CUDA device; also differentiable in `viewmat`.

    Nothing here waits for the GPU from view to view: a camera's values are checked when it is first seen or has been
    written to, Gaussians as `FINITE_EVERY` says, backgrounds by shape alone.
    """

    name = "cuda"
    several_views = True

    def __init__(self) -> None:
        self._projections, self._some_short = 0, True
        self._looking: HostCopy | None = None
        self._cameras: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def project(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Colors,
        viewmat: Tensor,
        K: Tensor,
        width: int,
        height: int,
        settings: RenderSettings = DEFAULTS,
    ) -> Projection:
        camera = [viewmat], [K], width, height
        return self.project_views(means, quats, scales, opacities, colors, *camera, settings)[0]

    def project_views(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Colors,
        viewmats: Sequence[Tensor],
        Ks: Sequence[Tensor],
        width: int,
        height: int,
        settings: RenderSettings = DEFAULTS,
    ) -> tuple[Projection, Tensor]:
        checks.check_size(width, height)
        checks.check_settings(settings)
        checks.check_gaussians(means, quats, scales, opacities, colors, settings.sh_degree)
        for viewmat, K in zip(viewmats, Ks, strict=True):
            self._check_camera(viewmat, K)
        check_device(means)
        if len(means) == 0:  # gsplat 1.5.3 divides by their number
            nothing = _nothing(means, scales, opacities, colors)
            return nothing, nothing.ids.new_zeros(len(viewmats))
        self._look(means, quats, scales, opacities)
        gsplat_build.load()
        wait_for_gpu(means)
        from gsplat import fully_fused_projection

        viewmat, K = (_stacked(matrices).to(means) for matrices in (viewmats, Ks))
        if self._some_short:
            quats = _with_no_rotation(quats)
        _, cameras, ids, radii, means2d, depths, conics, compensations = fully_fused_projection(
            means, None, quats, scales, viewmat, K, width, height, eps2d=settings.eps2d, packed=True,
            near_plane=settings.near, far_plane=settings.far, calc_compensations=settings.antialiased,
            opacities=opacities,
        )  # fmt: skip
        ids = ids.long()
        opacities = opacities.index_select(0, ids)
        if settings.antialiased:
            opacities = opacities * compensations
        colors = _colors(means, colors, ids, cameras, viewmat, settings.sh_degree)
        projection = Projection(
            ids=ids, means2d=means2d, conics=conics, depths=depths, radii=radii, colors=colors, opacities=opacities
        )  # fmt: skip
        if len(viewmats) == 1:  # without the launches of a search
            return projection, torch.tensor([len(ids)])
        ends = torch.arange(len(viewmats) + 1, device=means.device)
        return projection, torch.searchsorted(cameras, ends).diff()

    def _look(self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor) -> None:
        """Look at the values at the first projection, then every `FINITE_EVERY` and read a projection later."""
        looked, self._looking = self._looking, None
        if self._projections % FINITE_EVERY == 0:
            looking = HostCopy(_measures(means, quats, scales, opacities))
            looked, self._looking = (looking, None) if self._projections == 0 else (looked, looking)
        self._projections += 1
        if looked is not None:
            finite, shortest = looked.read()
            if not finite:
                _raise_if_nonfinite(means, quats, scales, opacities)
            self._some_short = not shortest >= QUATERNION_MIN

    def _check_camera(self, viewmat: Tensor, K: Tensor) -> None:
        """Call `checks.check_camera` once per camera: its values are on the GPU."""
        known, *versions = self._cameras.get(viewmat, (lambda: None,))
        # PyTorch counts the writes to a tensor (its notes on autograd, "In-place correctness checks") and has no public
        # name for the count. Comparing the values instead would wait for the GPU at every view.
        if known() is not K or versions != [viewmat._version, K._version]:
            checks.check_camera(viewmat, K)
            self._cameras[viewmat] = (weakref.ref(K), viewmat._version, K._version)

    def rasterize(
        self,
        projection: Projection,
        width: int,
        height: int,
        settings: RenderSettings = DEFAULTS,
        *,
        background: Tensor | None = None,
    ) -> Image:
        checks.check_size(width, height)
        checks.check_background(background)
        p = projection
        check_device(p.means2d)
        if len(p.ids) == 0:
            return _empty(p, width, height, background, settings)
        gsplat_build.load()
        wait_for_gpu(p.means2d)
        from gsplat import isect_offset_encode, isect_tiles, rasterize_to_pixels

        columns, rows = math.ceil(width / TILE_PX), math.ceil(height / TILE_PX)
        _, pairs, who = isect_tiles(
            p.means2d, p.radii, p.depths, TILE_PX, columns, rows, packed=True, n_images=1,
            image_ids=torch.zeros_like(p.ids), gaussian_ids=torch.arange(len(p.ids), device=p.ids.device),
        )  # fmt: skip
        offsets = isect_offset_encode(pairs, 1, columns, rows)
        channels = torch.cat([p.colors, p.depths[:, None]], 1) if settings.render_depth else p.colors
        image, alphas = rasterize_to_pixels(
            p.means2d, p.conics, channels, p.opacities, width, height, TILE_PX, offsets, who,
            packed=True, absgrad=settings.absgrad,
        )  # fmt: skip
        image, alphas = image.reshape(height, width, -1), alphas.reshape(height, width)
        colors = image[..., :3]
        if (
            background is not None
        ):  # composed here: gsplat 1.5.3 refuses backgrounds of packed Gaussians (issue 764)
            colors = colors + (1 - alphas)[..., None] * background.to(colors)
        return Image(colors=colors, alphas=alphas, depths=image[..., 3] if settings.render_depth else None)


def _nothing(means: Tensor, scales: Tensor, opacities: Tensor, colors: Colors) -> Projection:
    """Project no Gaussians, with a graph: a rank with an empty shard still takes part in the backward pass."""
    first = colors[0] if isinstance(colors, tuple) else colors
    return Projection(
        ids=torch.zeros(0, dtype=torch.int64, device=means.device), means2d=means[:, :2] * 1, conics=scales * 1,
        depths=means[:, 2], radii=torch.zeros(0, 2, dtype=torch.int32, device=means.device),
        colors=first.reshape(0, 3) * 1, opacities=opacities * 1,
    )  # fmt: skip


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    """Return [C,...]. One matrix is not copied."""
    return torch.stack(tuple(matrices)) if len(matrices) > 1 else matrices[0][None]


def _colors(
    means: Tensor, colors: Colors, ids: Tensor, cameras: Tensor, viewmats: Tensor, sh_degree: int | None
) -> Tensor:
    """Return colours [V,3] of the Gaussians ids [V] in the cameras [V], of C.

    Rows are taken with index_select: the backward pass of `tensor[ids]` sorts the ids.
    """
    parts = colors if isinstance(colors, tuple) else (colors,)
    if sh_degree is None:
        return parts[0].index_select(0, ids)
    # from the cameras' places to the world's origin
    offsets = (viewmats[:, None, :3, 3] @ viewmats[:, :3, :3])[:, 0]
    kernels = None if len(parts) == 1 or viewmats.requires_grad else harmonics_kernels(means)
    if kernels is not None:
        return kernels.TritonColors.apply(means, *parts, ids, cameras, offsets, sh_degree)
    from gsplat import spherical_harmonics

    # coefficients beyond the degree are left out before they are copied; at degree 0 shN takes no part at all
    count = (sh_degree + 1) ** 2
    if len(parts) == 1:
        coefficients = parts[0][:, :count].index_select(0, ids)
    elif sh_degree == 0:
        coefficients = parts[0].index_select(0, ids)
    else:
        coefficients = _Coefficients.apply(*parts, ids, count, len(viewmats) > 1)
    offset = offsets if len(viewmats) == 1 else offsets.index_select(0, cameras)
    directions = means.index_select(0, ids) + offset
    return (spherical_harmonics(sh_degree, directions, coefficients) + 0.5).clamp_min(0.0)


def harmonics_kernels(means: Tensor) -> Any:
    """Return `splats.harmonics_triton` if its kernels run where means [N,3] float are, else None."""
    return triton_kernels.load("harmonics_triton", means.device) if means.is_cuda else None


class _Coefficients(torch.autograd.Function):
    """(sh0 [N,1,3], shN [N,K-1,3], int64 ids [V], count, repeated) -> the first `count` coefficients of each id,
    [V,count,3].

    Both are read into one tensor and their gradients written from one, without a copy in between. The ids differ
    unless `repeated`.
    """

    @staticmethod
    def forward(ctx: Any, sh0: Tensor, shn: Tensor, ids: Tensor, count: int, repeated: bool) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shapes, ctx.repeated = (sh0.shape, shn.shape), repeated
        out = sh0.new_empty(len(ids), count, 3)
        torch.index_select(sh0, 0, ids, out=out[:, :1])
        torch.index_select(shn[:, : count - 1], 0, ids, out=out[:, 1:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (ids,) = ctx.saved_tensors
        first, others = (v.new_zeros(shape) for shape in ctx.shapes)
        for total, part in ((first, v[:, :1]), (others[:, : v.shape[1] - 1], v[:, 1:])):
            if ctx.repeated:
                total.index_add_(0, ids, part)
            else:
                total.index_copy_(0, ids, part)
        return first, others, None, None, None


def _empty(
    p: Projection, width: int, height: int, background: Tensor | None, settings: RenderSettings
) -> Image:
    nothing = (
        p.means2d.sum() + p.conics.sum() + p.colors.sum() + p.opacities.sum() + p.depths.sum()
    )  # 0, with a graph
    alphas = p.means2d.new_zeros(height, width) + nothing
    background = p.means2d.new_zeros(3) if background is None else background.to(p.means2d)
    colors = background.expand(height, width, 3) + nothing
    if settings.absgrad:
        p.means2d.absgrad = torch.zeros_like(p.means2d)  # type: ignore[attr-defined]
    return Image(colors=colors, alphas=alphas, depths=alphas.clone() if settings.render_depth else None)


@torch.no_grad()
def _measures(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor) -> Tensor:
    """Return [2]: 1 if the sum of all values is finite, else 0; the length of the shortest quaternion."""
    total = torch.stack([t.sum() for t in (means, quats, scales, opacities)]).sum()
    shortest = quats.norm(dim=-1).amin()
    return torch.stack([torch.isfinite(total).to(shortest), shortest])


@torch.no_grad()
def _raise_if_nonfinite(*tensors: Tensor) -> None:
    """Raise `UserError` if any value is not finite. A sum may overflow where no value does."""
    bad = torch.stack([~torch.isfinite(t).reshape(len(t), -1).all(1) for t in tensors]).any(0)
    if bool(bad.any()):
        raise checks.nonfinite_error(int(bad.sum()), int(bad.nonzero()[0, 0]), len(bad))


def _with_no_rotation(quats: Tensor) -> Tensor:
    """Replace quaternions [N,4] that are too short by that of no rotation: gsplat would divide by their length."""
    turned = quats.detach().norm(dim=-1, keepdim=True) >= QUATERNION_MIN
    no_rotation = torch.zeros_like(quats[:1])
    no_rotation[:, 0] = 1.0  # filled where it is: a copy from the host would wait for the GPU
    return torch.where(turned, quats, no_rotation)


def wait_for_gpu(tensor: Tensor) -> None:
    """Wait for the work queued on the GPU of a tensor [...] of any dtype, if there are several ranks.

    gsplat waits for it in the next call, and there it keeps Python's lock: in a collective that never ends, no thread
    of this process could report the hang. This wait releases the lock.
    """
    if tensor.is_cuda and dist.is_initialized() and dist.get_world_size() > 1:
        torch.cuda.current_stream(tensor.device).synchronize()


def check_device(tensor: Tensor) -> None:
    """Raise `UserError` unless a tensor [...] of Gaussians is float32 on a CUDA device."""
    if tensor.device.type != "cuda":
        raise UserError(
            f"Gaussians are on {tensor.device}: the renderer 'cuda' draws only those on a CUDA device"
        )
    if tensor.dtype != torch.float32:
        raise UserError(f"Gaussians are {tensor.dtype}: the renderer 'cuda' draws only torch.float32")
