"""Reject input that no renderer can draw, with a message; shared by all renderers."""

import math

import torch
from torch import Tensor

from dist3dgs.errors import UserError
from dist3dgs.splats.render.api import COLOR_MAX, MAX_SIDE_PX, Colors, RenderSettings


def check_size(width: int, height: int) -> None:
    """Raise UserError unless both sides are whole numbers in 1..32768."""
    for name, side in (("width", width), ("height", height)):
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_SIDE_PX:
            raise UserError(f"image {name} is {side!r} px: expected a whole number from 1 to {MAX_SIDE_PX}")


def check_camera(viewmat: Tensor, K: Tensor) -> tuple[float, float, float, float]:
    """Check one camera, viewmat [4,4] and K [3,3] of any float dtype, and return (fx, fy, cx, cy) in px."""
    if tuple(viewmat.shape) != (4, 4) or tuple(K.shape) != (3, 3):
        raise UserError(
            f"camera: viewmat {list(viewmat.shape)} and K {list(K.shape)}, expected [4, 4] and [3, 3]"
        )
    view, k = viewmat.detach().tolist(), K.detach().tolist()
    if not all(math.isfinite(v) for row in view + k for v in row):
        raise UserError(f"camera with a value that is not finite: viewmat {view}, K {k}")
    if k[0][0] <= 0 or k[1][1] <= 0 or k[0][1] != 0 or k[1][0] != 0 or k[2] != [0, 0, 1]:
        raise UserError(
            f"camera matrix K is {k}: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0 px"
        )
    if view[3] != [0, 0, 0, 1] or not _is_rotation([row[:3] for row in view[:3]]):
        raise UserError(
            f"viewmat is {view}: expected a rigid world-to-camera matrix (rotation, translation, 0 0 0 1)"
        )
    return k[0][0], k[1][1], k[0][2], k[1][2]


def _is_rotation(r: list[list[float]], tolerance: float = 1e-3) -> bool:
    for i in range(3):
        for j in range(3):
            dot = sum(r[i][k] * r[j][k] for k in range(3))
            if abs(dot - (i == j)) > tolerance:
                return False
    det = sum(
        r[0][i] * (r[1][(i + 1) % 3] * r[2][(i + 2) % 3] - r[1][(i + 2) % 3] * r[2][(i + 1) % 3])
        for i in range(3)
    )
    return det > 0


def check_gaussians(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Colors, sh_degree: int | None
) -> None:
    """Check shapes, dtypes and devices of the arguments of `Renderer.project`: means [N,3], ... (values:
    `nonfinite_error`).
    """
    n = means.shape[0] if means.ndim else -1
    wanted = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,)}
    given = {"means": means, "quats": quats, "scales": scales, "opacities": opacities}
    parts = colors if isinstance(colors, tuple) else (colors,)
    given |= {f"colors[{i}]" if len(parts) > 1 else "colors": part for i, part in enumerate(parts)}
    for name, shape in wanted.items():
        if tuple(given[name].shape) != shape:
            raise UserError(
                f"{name} has shape {list(given[name].shape)}: expected {list(shape)} for {n} Gaussians"
            )
    for name, tensor in given.items():
        if tensor.dtype != means.dtype or tensor.device != means.device:
            raise UserError(
                f"{name} is {tensor.dtype} on {tensor.device}, means {means.dtype} on {means.device}: expected the same"
            )
    if means.dtype not in (torch.float32, torch.float64):
        raise UserError(f"Gaussians are {means.dtype}: expected torch.float32 or torch.float64")
    _check_colors(parts, n, sh_degree)


def _check_colors(parts: tuple[Tensor, ...], n: int, sh_degree: int | None) -> None:
    shapes = [list(part.shape) for part in parts]
    if sh_degree is None:
        if shapes != [[n, 3]]:
            raise UserError(f"colors {shapes}: expected RGB [{n}, 3] when sh_degree is None")
        return
    if isinstance(sh_degree, bool) or sh_degree not in (0, 1, 2, 3):
        raise UserError(f"sh_degree is {sh_degree!r}: expected 0, 1, 2, 3, or None for RGB colours")
    good = all(part.ndim == 3 and part.shape[0] == n and part.shape[2] == 3 for part in parts)
    good = good and (len(parts) == 1 or (len(parts) == 2 and parts[0].shape[1] == 1))
    if not good or sum(part.shape[1] for part in parts) < (sh_degree + 1) ** 2:
        raise UserError(
            f"colors {shapes}: expected spherical harmonics [{n}, K, 3] or ([{n}, 1, 3], [{n}, K-1, 3]) "
            f"with K >= {(sh_degree + 1) ** 2} for degree {sh_degree}"
        )


def check_settings(settings: RenderSettings) -> None:
    """Raise UserError for clipping planes or a blur that are out of range."""
    near, far, eps2d = settings.near, settings.far, settings.eps2d
    if not (math.isfinite(near) and 0 < near < far):
        raise UserError(f"near is {near} and far is {far}: expected 0 < near < far")
    if not (math.isfinite(eps2d) and eps2d >= 0):
        raise UserError(f"eps2d is {eps2d} px^2: expected a finite number >= 0")


def check_background(background: Tensor | None) -> None:
    """Check a background colour, [3] float or None. On a GPU only its shape: reading values would wait for the whole
    queue.
    """
    if background is not None and (
        tuple(background.shape) != (3,)
        or (not background.is_cuda and not all(math.isfinite(v) for v in background.detach().tolist()))
    ):
        raise UserError(f"background {background}: expected three finite RGB values")


def nonfinite_error(count: int, first: int, total: int) -> UserError:
    """Return the error for Gaussians with NaN or infinite parameters."""
    return UserError(
        f"{count} of {total} Gaussians have NaN or infinite parameters (the first is number {first}): the training "
        "diverged or its checkpoint is damaged; lower the learning rates, or start from an earlier checkpoint"
    )


def bad_colors_error(count: int, total: int) -> UserError:
    """Return the error for visible Gaussians whose colour is NaN, infinite or beyond `COLOR_MAX`."""
    return UserError(
        f"{count} of {total} visible Gaussians have NaN or infinite colours, or some above {COLOR_MAX:g}: the "
        "training diverged or its checkpoint is damaged; lower the learning rates, or start from an earlier checkpoint"
    )
