"""Reference renderer in plain torch: any float dtype, any device, slow and simple, differentiated by autograd."""

import torch
from torch import Tensor

from dist3dgs.splats.render import checks
from dist3dgs.splats.render.api import (
    ALPHA_MAX,
    ALPHA_MIN,
    COLOR_MAX,
    DEFAULTS,
    MAX_RADIUS_PX,
    QUATERNION_MIN,
    TRANSMITTANCE_MIN,
    Colors,
    Image,
    Projection,
    Renderer,
    RenderSettings,
)

TILE_PX = 16


class ReferenceRenderer(Renderer):
    """See `dist3dgs.splats.render.api.Renderer`."""

    name = "reference"

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
        checks.check_size(width, height)
        checks.check_settings(settings)
        checks.check_gaussians(means, quats, scales, opacities, colors, settings.sh_degree)
        fx, fy, cx, cy = checks.check_camera(viewmat, K)
        parts = colors if isinstance(colors, tuple) else (colors,)
        _check_finite(means, quats, scales, opacities, *parts)
        viewmat = viewmat.to(means)

        rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
        cam = means @ rotation.T + translation
        x, y, z = cam.unbind(-1)
        in_range = (z >= settings.near) & (z <= settings.far)
        z = torch.where(in_range, z, torch.ones_like(z))  # no division by 0 where nothing is drawn

        jacobian = _jacobian(x, y, z, (fx, fy, cx, cy), width, height)
        half = jacobian @ rotation @ (rotation_matrices(quats) * scales[:, None, :])
        cov = half @ half.transpose(-1, -2)
        eps2d = settings.eps2d
        xx, xy, yy = cov[:, 0, 0] + eps2d, cov[:, 0, 1], cov[:, 1, 1] + eps2d
        # |U x V|^2 + eps (|U|^2 + |V|^2) + eps^2: the determinant without cancellation
        det_sharp = torch.linalg.cross(half[:, 0], half[:, 1]).square().sum(-1)
        det = det_sharp + eps2d * (cov[:, 0, 0] + cov[:, 1, 1]) + eps2d**2
        means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
        representable = torch.isfinite(det) & (det > 0) & torch.isfinite(means2d).all(-1)
        det = torch.where(representable, det, torch.ones_like(det))
        conics = torch.stack([yy / det, -xy / det, xx / det], -1)

        if settings.antialiased:
            ratio = det_sharp / det
            positive = ratio > 0  # the square root has no derivative at 0
            opacities = opacities * torch.where(positive, torch.where(positive, ratio, 1.0).sqrt(), 0.0)
        radii = _radii(xx, yy, opacities)
        u, v = means2d.detach().unbind(-1)
        ids = torch.nonzero(
            in_range & representable & torch.isfinite(conics).all(-1)
            & (opacities >= ALPHA_MIN) & (radii > 0).any(-1)
            & (u + radii[:, 0] > 0) & (u - radii[:, 0] < width)
            & (v + radii[:, 1] > 0) & (v - radii[:, 1] < height)
        )[:, 0]  # fmt: skip
        sh_degree = settings.sh_degree
        if sh_degree is None:
            rgb = parts[0][ids]
        else:
            position = -rotation.T @ translation
            read = parts if sh_degree > 0 else parts[:1]
            rgb = _evaluate_sh(sh_degree, means[ids] - position, torch.cat([part[ids] for part in read], 1))
        bad = ~(rgb.detach().abs() <= COLOR_MAX).all(-1)
        if bool(bad.any()):
            raise checks.bad_colors_error(int(bad.sum()), len(ids))
        return Projection(
            ids=ids, means2d=means2d[ids], conics=conics[ids], depths=cam[ids, 2], radii=radii[ids].int(),
            colors=rgb, opacities=opacities[ids],
        )  # fmt: skip

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
        means2d, colors = projection.means2d, projection.colors
        background = means2d.new_zeros(3) if background is None else background.to(means2d)
        if settings.render_depth:
            colors = torch.cat([colors, projection.depths[:, None]], 1)
            background = torch.cat([background, background.new_zeros(1)])
        order = torch.argsort(projection.depths.detach(), stable=True)
        low, high = _tile_ranges(means2d.detach(), projection.radii)
        recorder = (
            _AbsGrad(means2d)
            if settings.absgrad and torch.is_grad_enabled() and means2d.requires_grad
            else None
        )
        rows = []
        for top in range(0, height, TILE_PX):
            row = order[(low[order, 1] <= top // TILE_PX) & (high[order, 1] > top // TILE_PX)]
            tiles = []
            for left in range(0, width, TILE_PX):
                ids = row[(low[row, 0] <= left // TILE_PX) & (high[row, 0] > left // TILE_PX)]
                centres = means2d[ids]
                size = (min(TILE_PX, height - top), min(TILE_PX, width - left))
                delta = centres[None] - _pixels(left, top, size, means2d)[:, None]
                if recorder is not None:
                    recorder.watch(delta, ids)
                tile = _blend(
                    delta, projection.conics[ids], projection.opacities[ids], colors[ids], background
                )
                tiles.append(tile.reshape(*size, -1))
            rows.append(torch.cat(tiles, 1))
        out = torch.cat(rows)
        return Image(
            colors=out[..., :3],
            alphas=1 - out[..., -1],
            depths=out[..., 3] if settings.render_depth else None,
        )


def rotation_matrices(quats: Tensor) -> Tensor:
    """Convert quaternions [N,4], wxyz of any length and float dtype, to [N,3,3]; those shorter than 1e-12 give the
    identity.
    """
    length = quats.norm(dim=-1, keepdim=True)
    none = quats.new_tensor([1.0, 0.0, 0.0, 0.0]).expand_as(quats)
    degenerate = length < QUATERNION_MIN
    quats = torch.where(degenerate, none, quats)
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        -1,
    ).reshape(-1, 3, 3)  # fmt: skip


def sh_basis(degree: int, directions: Tensor) -> Tensor:
    """Evaluate the real spherical harmonics at unit directions [V,3]: [V,(degree+1)^2] of the same float dtype.

    Order and signs are those of 3DGS. Formulas: Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2(2), 2013.
    """
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.2820947917738781)]
    if degree >= 1:
        basis += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        basis += [
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.9461746957575601 * z * z - 0.3153915652525201,
            -1.092548430592079 * x * z,
            0.5462742152960395 * (x * x - y * y),
        ]
    if degree >= 3:
        inner = -2.285228997322329 * z * z + 0.4570457994644658
        basis += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            1.445305721320277 * z * 2 * x * y,
            inner * y,
            z * (1.865881662950577 * z * z - 1.119528997770346),
            inner * x,
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(basis, -1)


def _evaluate_sh(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    length = directions.norm(dim=-1, keepdim=True)
    basis = sh_basis(degree, directions / torch.where(length > 0, length, torch.ones_like(length)))
    rgb = torch.einsum("vk,vkc->vc", basis, coefficients[:, : basis.shape[1]])
    return (rgb + 0.5).clamp_min(0.0)


def _check_finite(*tensors: Tensor) -> None:
    bad = torch.zeros(len(tensors[0]), dtype=torch.bool, device=tensors[0].device)
    for tensor in tensors:
        bad |= (
            ~torch.isfinite(tensor.detach()).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
        )
    if bool(bad.any()):
        raise checks.nonfinite_error(int(bad.sum()), int(bad.nonzero()[0, 0]), len(bad))


def _jacobian(
    x: Tensor, y: Tensor, z: Tensor, intrinsics: tuple[float, float, float, float], width: int, height: int
) -> Tensor:
    """Derivative [N, 2, 3] of the place on the image (px) by the place before the camera (x, y, z: [N])."""
    fx, fy, cx, cy = intrinsics
    # gsplat clamps the point at which the Jacobian is taken 15 % outside the image
    limit_x = (-(cx / fx + 0.15 * width / fx), (width - cx) / fx + 0.15 * width / fx)
    limit_y = (-(cy / fy + 0.15 * height / fy), (height - cy) / fy + 0.15 * height / fy)
    tx, ty = z * (x / z).clamp(*limit_x), z * (y / z).clamp(*limit_y)
    zero = torch.zeros_like(z)
    row0 = torch.stack([fx / z, zero, -fx * tx / z**2], -1)
    row1 = torch.stack([zero, fy / z, -fy * ty / z**2], -1)
    return torch.stack([row0, row1], -2)


@torch.no_grad()
def _radii(xx: Tensor, yy: Tensor, opacities: Tensor) -> Tensor:
    # Half widths of the ellipse alpha = 1/255 (StopThePop, Radl et al. 2024, appendix B.2)
    extent = (2 * (opacities / ALPHA_MIN).clamp_min(1.0).log()).sqrt().clamp_max(3.33)
    radii = (extent[:, None] * torch.stack([xx, yy], -1).sqrt()).ceil()
    return radii.nan_to_num(0.0, posinf=MAX_RADIUS_PX).clamp_max(MAX_RADIUS_PX)


def _tile_ranges(means2d: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    far_outside = 2.0 * MAX_RADIUS_PX  # keeps the conversion to integers defined
    low = ((means2d - radii) / TILE_PX).floor().clamp(-far_outside, far_outside).long()
    high = ((means2d + radii) / TILE_PX).ceil().clamp(-far_outside, far_outside).long()
    return low, high


def _pixels(left: int, top: int, size: tuple[int, int], like: Tensor) -> Tensor:
    ys = torch.arange(top, top + size[0], device=like.device)
    xs = torch.arange(left, left + size[1], device=like.device)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    return grid.reshape(-1, 2).to(like.dtype) + 0.5


def _blend(delta: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, background: Tensor) -> Tensor:
    """delta [P,M,2] from P pixels to M Gaussians in depth order -> [P, channels + 1], the last the transmittance."""
    dx, dy = delta.unbind(-1)
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))
    with (
        torch.no_grad()
    ):  # the product only falls, so the first Gaussian that would pass the limit ends the pixel
        alive = torch.cumprod(1 - alpha, 1) > TRANSMITTANCE_MIN
    alpha = torch.where(alive, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([alpha.new_ones(len(alpha), 1), after], 1)
    last = before[:, -1:]
    return torch.cat([(alpha * before[:, :-1]) @ colors + last * background, last], 1)


class _AbsGrad:
    """Sums |dL/dmeans2d| over pixels into `means2d.absgrad` while the backward pass runs."""

    def __init__(self, means2d: Tensor) -> None:
        means2d.absgrad = torch.zeros_like(means2d)  # type: ignore[attr-defined]
        self.sum: Tensor = means2d.absgrad  # type: ignore[attr-defined]

    def watch(self, delta: Tensor, ids: Tensor) -> None:
        def add(grad: Tensor) -> None:
            self.sum.index_add_(0, ids, grad.abs().sum(0))

        delta.register_hook(add)
