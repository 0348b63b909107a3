"""Projection of Gaussians as an autograd function over the compiled kernels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist3dgs.splats.cpu.jit.threads import run
from dist3dgs.splats.cpu.kernels.geometry import CHUNK
from dist3dgs.splats.cpu.kernels.library import kernels
from dist3dgs.splats.cpu.kernels.project import POSE_SUMS, kernel_name
from dist3dgs.splats.render import checks
from dist3dgs.splats.render.api import RenderSettings

RGB = -1  # in place of a degree


@dataclass(frozen=True)
class View:
    """Camera and settings of a projection, other than tensors."""

    intrinsics: tuple[float, float, float, float]
    """fx, fy, cx, cy, px"""
    width: int
    height: int
    settings: RenderSettings

    @property
    def degree(self) -> int:
        return RGB if self.settings.sh_degree is None else self.settings.sh_degree

    def numbers(self, viewmat: Tensor, centre: Tensor) -> list[float]:
        """Return the kernel's numbers in the order of `geometry.CAMERA_FIELDS`.

        viewmat: [4,4] float, world to camera. centre: [3] float, the camera in the world.
        """
        fx, fy, cx, cy = self.intrinsics
        view, w, h = viewmat.tolist(), float(self.width), float(self.height)
        # gsplat takes the Jacobian at most 15 % outside the image
        limits = [-(cx + 0.15 * w) / fx, (1.15 * w - cx) / fx, -(cy + 0.15 * h) / fy, (1.15 * h - cy) / fy]
        rotation = [view[i][j] for i in range(3) for j in range(3)]
        translation = [view[i][3] for i in range(3)]
        s = self.settings
        clip = [w, h, s.near, min(s.far, 3e38), s.eps2d]
        return [
            *rotation, *translation, fx, fy, cx, cy, *limits, *clip, *centre.tolist(), float(s.antialiased)
        ]  # fmt: skip


class Project(torch.autograd.Function):
    """(means, quats, scales, opacities, sh0 or RGB, shN or None, viewmat, camera centre, View) ->
    (ids, means2d, conics, depths, radii, colors, opacities)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *gaussians, sh0, shn, viewmat, centre, view = inputs
        means = gaussians[0]
        n, get = len(means), kernels(means.dtype)
        numbers = torch.tensor(view.numbers(viewmat, centre), dtype=means.dtype)
        num_chunks = -(-n // CHUNK)
        packed_ids = torch.empty(n + 16, dtype=torch.int32)
        report = torch.zeros(num_chunks, 3, dtype=torch.int64)
        run(get("cull"), *gaussians, numbers, n, packed_ids, report, num_tasks=num_chunks)
        if int(report[:, 1].sum()):
            raise checks.nonfinite_error(int(report[:, 1].sum()), int(report[:, 2].min()), n)
        offsets = torch.zeros(num_chunks + 1, dtype=torch.int64)
        torch.cumsum(report[:, 0], 0, out=offsets[1:])
        v = int(offsets[-1])

        ids = torch.empty(v, dtype=torch.int64)
        means2d, conics, colors = means.new_empty(v, 2), means.new_empty(v, 3), means.new_empty(v, 3)
        depths, opacities = means.new_empty(v), means.new_empty(v)
        radii = torch.empty(v, 2, dtype=torch.int32)
        bad = torch.zeros(num_chunks, dtype=torch.int64)
        ctx.shared = (num_chunks, *gaussians, *_harmonics(sh0, shn), numbers, offsets)
        run(
            get(kernel_name("project", view.degree)), *ctx.shared, packed_ids, ids, means2d, conics, depths, radii,
            colors, opacities, bad,
            num_tasks=num_chunks,
        )  # fmt: skip
        if int(bad.sum()):
            raise checks.bad_colors_error(int(bad.sum()), v)
        ctx.save_for_backward(*gaussians, sh0, shn, ids, colors)
        ctx.view = view
        ctx.mark_non_differentiable(ids, radii)
        ctx.set_materialize_grads(False)
        return ids, means2d, conics, depths, radii, colors, opacities

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        means, quats, scales, opacities, sh0, shn, ids, colors = ctx.saved_tensors
        _, v_means2d, v_conics, v_depths, _, v_colors, v_opacities = grads
        n, num_chunks, degree = len(means), ctx.shared[0], ctx.view.degree
        none = means.new_zeros(4)
        incoming: list[Any] = []
        for grad in (v_means2d, v_conics, v_depths, v_colors, v_opacities):
            incoming += _rows(grad, none)
        outgoing = [torch.empty_like(t) for t in (means, quats, scales, opacities)]
        v_sh0 = torch.empty_like(sh0)
        # At degree 0 the other coefficients have no gradient at all
        v_shn = torch.empty_like(shn) if shn is not None and degree > 0 else None
        pose_wanted = ctx.needs_input_grad[6] or ctx.needs_input_grad[7]
        pose = means.new_zeros(num_chunks if pose_wanted else 0, POSE_SUMS)
        joined = shn is None and degree > 0
        second = v_sh0.data_ptr() + 3 * v_sh0.element_size() if joined else (0 if v_shn is None else v_shn)
        width0 = v_sh0[0].numel() if n else 0
        widthn = 0 if v_shn is None else v_shn[0].numel() if n else 0
        run(
            kernels(means.dtype)(kernel_name("project_backward", degree)), *ctx.shared, n, ids, colors, *incoming,
            *outgoing, v_sh0, width0, second, width0 if joined else widthn, int(not joined), pose, int(pose_wanted),
            num_tasks=num_chunks,
        )  # fmt: skip
        v_viewmat = v_centre = None
        if pose_wanted:
            sums = pose.sum(0)
            v_viewmat = means.new_zeros(4, 4)
            v_viewmat[:3, :3], v_viewmat[:3, 3], v_centre = sums[:9].reshape(3, 3), sums[9:12], sums[12:15]
        return *outgoing, v_sh0, v_shn, v_viewmat, v_centre, None


def _harmonics(sh0: Tensor, shn: Tensor | None) -> tuple[Any, ...]:
    """Return address and row length of the first coefficient, and of the rest."""
    width0 = sh0[0].numel() if len(sh0) else 0
    if shn is None:
        return sh0, width0, sh0.data_ptr() + 3 * sh0.element_size(), width0
    return sh0, width0, shn, shn[0].numel() if len(shn) else 0


def _rows(grad: Tensor | None, none: Tensor) -> tuple[Tensor, int]:
    """Return a gradient and its row stride; a missing one becomes one row of zeros with stride 0."""
    if grad is None:
        return none, 0
    if grad.ndim == 2 and grad.stride(1) != 1:
        grad = grad.contiguous()
    return grad, grad.stride(0)
