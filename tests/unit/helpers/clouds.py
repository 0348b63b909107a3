"""Clouds of Gaussians with cameras for the renderer's tests, and how two renderers are compared."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dist3dgs.splats.render import Renderer, RenderSettings, get_renderer

GRADIENTS = (
    "means",
    "quats",
    "scales",
    "opacities",
    "sh0",
    "shn",
    "viewmat",
    "background",
    "means2d",
    "absgrad",
)


@dataclass(kw_only=True)
class Cloud:
    """Gaussians, one camera, and random weights by which the image becomes a number. All float64."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh0: Tensor
    shn: Tensor
    viewmat: Tensor
    K: Tensor
    width: int
    height: int
    background: Tensor = field(default_factory=lambda: torch.tensor([0.3, 0.1, 0.7], dtype=torch.float64))


def random_cloud(n: int = 3000, seed: int = 0, width: int = 90, height: int = 70) -> Cloud:
    """All sizes and opacities, some behind the camera, some beside the image; sides that are no multiple of 16."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    means = normal(n, 3)
    means[:, 2] = means[:, 2].abs() * 1.5 - 1
    c, s = math.cos(0.2), math.sin(0.2)
    viewmat = [[c, 0, s, 0.1], [0, 1, 0, -0.1], [-s, 0, c, 3], [0, 0, 0, 1]]
    return Cloud(
        means=means, quats=normal(n, 4), scales=torch.exp(normal(n, 3) * 0.7 - 3.2),
        opacities=torch.sigmoid(normal(n) * 2), sh0=normal(n, 1, 3) * 0.5, shn=normal(n, 15, 3) * 0.2,
        viewmat=torch.tensor(viewmat, dtype=torch.float64),
        K=torch.tensor([[0.9 * width, 0, 0.51 * width], [0, 0.91 * width, 0.47 * height], [0, 0, 1]]).double(),
        width=width, height=height,
    )  # fmt: skip


def around_points(points: np.ndarray, colors: np.ndarray, viewmat: np.ndarray, K: np.ndarray, size: tuple[int, int],
                  seed: int = 0) -> Cloud:  # fmt: skip
    """Flat Gaussians of a few px on surface points [N,3] with colours [N,3] in 0..1, as training makes them."""
    g, n = torch.Generator().manual_seed(seed), len(points)
    means, view = torch.from_numpy(points).double(), torch.from_numpy(viewmat).double()
    depth = (means @ view[2, :3] + view[2, 3]).clamp_min(0.1)
    scales = (
        torch.exp(torch.randn(n, 3, generator=g, dtype=torch.float64) * 0.5) * depth[:, None] * 1.5 / K[0, 0]
    )
    scales[:, 2] *= 0.2
    return Cloud(
        means=means, quats=torch.randn(n, 4, generator=g, dtype=torch.float64), scales=scales,
        opacities=torch.sigmoid(torch.randn(n, generator=g, dtype=torch.float64) * 1.5),
        sh0=((torch.from_numpy(colors).double() - 0.5) / 0.2820947917738781)[:, None],
        shn=torch.randn(n, 15, 3, generator=g, dtype=torch.float64) * 0.05,
        viewmat=view, K=torch.from_numpy(K).double(), width=size[0], height=size[1],
    )  # fmt: skip


@dataclass
class Result:
    """What one renderer made of a cloud."""

    ids: Tensor
    radii: Tensor
    colors: Tensor
    alphas: Tensor
    depths: Tensor | None
    gradients: dict[str, Tensor | None]


def run(
    cloud: Cloud, renderer: str | Renderer, dtype: torch.dtype, *, degree: int = 3, antialiased: bool = False,
    depth: bool = False, absgrad: bool = True, joined: bool = False, seed: int = 7, device: str = "cpu",
    ignore: Tensor | None = None,
) -> Result:  # fmt: skip
    """Render, weight the image randomly, go back. Pixels to `ignore` [H,W] become 0 and have no gradient."""
    r = get_renderer(renderer) if isinstance(renderer, str) else renderer

    def leaf(t: Tensor) -> Tensor:
        return t.to(device, dtype).detach().clone().requires_grad_()

    names = ("means", "quats", "scales", "opacities", "sh0", "shn", "viewmat", "background")
    x = {name: leaf(getattr(cloud, name)) for name in names}
    colors = torch.cat([x["sh0"], x["shn"]], 1) if joined else (x["sh0"], x["shn"])
    settings = RenderSettings(sh_degree=degree, antialiased=antialiased, absgrad=absgrad, render_depth=depth)
    p = r.project(
        x["means"], x["quats"], x["scales"], x["opacities"], colors, x["viewmat"], cloud.K.to(device, dtype),
        cloud.width, cloud.height, settings,
    )  # fmt: skip
    if p.means2d.requires_grad:
        p.means2d.retain_grad()
    image = r.rasterize(p, cloud.width, cloud.height, settings, background=x["background"])
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(5, cloud.height, cloud.width, generator=g, dtype=torch.float64).to(device, dtype)
    if ignore is not None:
        keep = ~ignore.to(device)
        weights = weights * keep
        for part in (image.colors, image.alphas, image.depths):
            if part is not None:
                part.data *= keep[..., None] if part.ndim == 3 else keep
    loss = (image.colors * weights[:3].movedim(0, -1)).sum() + (image.alphas * weights[3]).sum()
    if image.depths is not None:
        loss = loss + (image.depths * weights[4]).sum() * 0.1
    loss.backward()
    gradients: dict[str, Tensor | None] = {name: x[name].grad for name in names}
    gradients |= {"means2d": p.means2d.grad, "absgrad": getattr(p.means2d, "absgrad", None)}
    depths = None if image.depths is None else image.depths.detach()
    return Result(p.ids, p.radii, image.colors.detach(), image.alphas.detach(), depths, gradients)


@torch.no_grad()
def edge_pixels(cloud: Cloud, antialiased: bool = False, tolerance: float = 1e-4) -> Tensor:
    """bool [H,W]: pixels where some Gaussian's alpha is within a relative `tolerance` of 1/255, or some transmittance
    of 1e-4. There, rounding decides what is drawn."""
    reference = get_renderer("reference")
    p = reference.project(
        cloud.means, cloud.quats, cloud.scales, cloud.opacities, (cloud.sh0, cloud.shn), cloud.viewmat, cloud.K,
        cloud.width, cloud.height, RenderSettings(sh_degree=0, antialiased=antialiased),
    )  # fmt: skip
    order = torch.argsort(p.depths, stable=True)
    means2d, conics, opacities = p.means2d[order], p.conics[order], p.opacities[order]
    rows = []
    for y in range(cloud.height):
        near = (means2d[:, 1] - y - 0.5).abs() <= p.radii[order, 1] + 1
        x = torch.arange(cloud.width, dtype=torch.float64) + 0.5
        dx, dy = means2d[near, 0] - x[:, None], means2d[near, 1] - y - 0.5
        a, b, c = conics[near].unbind(-1)
        alpha = opacities[near] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        edge = ((alpha * 255 - 1).abs() < tolerance).any(1)
        left = torch.cumprod(1 - torch.where(alpha >= 1 / 255, alpha.clamp_max(0.999), 0.0), 1)
        rows.append(edge | ((left * 1e4 - 1).abs() < tolerance * 10).any(1))
    return torch.stack(rows)


def relative(a: Tensor, b: Tensor) -> float:
    """L2 distance of b from a, relative to a."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))


def assert_close(truth: Result, result: Result, color: float, gradient: float) -> None:
    """Compare everything that both have."""
    assert torch.equal(truth.ids.cpu(), result.ids.cpu())
    assert relative(truth.colors, result.colors) <= color
    assert relative(truth.alphas, result.alphas) <= color
    if truth.depths is not None:
        assert result.depths is not None and relative(truth.depths, result.depths) <= color
    for name in GRADIENTS:
        a, b = truth.gradients[name], result.gradients[name]
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert relative(a, b) <= gradient, f"{name}: {relative(a, b):.2e}"
