"""The one renderer interface: what goes in, what comes out, and which inputs are refused.

Conventions are gsplat's (https://docs.gsplat.studio): cameras look along +z with y down (OpenCV), the centre of
the top left pixel is at (0.5, 0.5), a Gaussian contributes to a pixel where its alpha is at least 1/255, alpha is
clamped at 0.999, and a pixel stops before its transmittance would reach 1e-4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from dist3dgs.errors import UserError

ALPHA_MIN = 1.0 / 255.0  # a Gaussian weaker than one 8-bit level does not touch the pixel
ALPHA_MAX = 0.999  # keeps 1 - alpha away from 0 in the backward pass
TRANSMITTANCE_MIN = 1e-4  # a pixel that would become darker than this is finished
QUATERNION_MIN = 1e-12  # shorter quaternions mean no rotation
COLOR_MAX = 1e18  # gradients through a brighter picture overflow float32
MAX_SIDE_PX = 1 << 15  # largest image side: keeps pixel and tile numbers in 32 bits
MAX_RADIUS_PX = 1 << 30  # radii are int32; a Gaussian wider than this has this radius

Colors = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """Settings of a rendering, the same for all cameras and all renderers.

    `project` reads `sh_degree`, `near`, `far`, `eps2d` and `antialiased`; `rasterize` reads `absgrad` and
    `render_depth`. The defaults are gsplat's.
    """

    sh_degree: int | None = None
    """Degree of the spherical harmonics in use, 0..3; None where `colors` are RGB."""
    near: float = 0.01
    """Gaussians with a smaller camera z are not seen, scene units, > 0."""
    far: float = 1e10
    """Gaussians with a larger camera z are not seen, scene units."""
    eps2d: float = 0.3
    """Added to the diagonal of the projected covariance, px^2; larger values blur more and alias less."""
    antialiased: bool = False
    """Multiply opacities by sqrt(det(cov) / det(cov + eps2d I)): small Gaussians become fainter instead of larger
    (Mip-Splatting, Yu et al. 2024)."""
    absgrad: bool = False
    """Leave |dL/dmeans2d| summed over pixels in `projection.means2d.absgrad` (AbsGS, Ye et al. 2024)."""
    render_depth: bool = False
    """Also render depths."""


DEFAULTS = RenderSettings()


@dataclass(kw_only=True)
class Projection:
    """The Gaussians that one camera sees, in the order of their ids (V of them, "packed").

    Autograd flows through the float tensors. A Projection may be put together from several (concatenate each
    field): the rasteriser uses no ids, and orders by depth, ties by position.
    """

    ids: Tensor
    """int64 [V], index into the Gaussians given to `project`."""
    means2d: Tensor
    """[V,2] px. Call `.retain_grad()` for screen-space gradients; after a backward pass through
    `rasterize(..., absgrad=True)` it has an attribute `.absgrad` [V,2], the sum over pixels of |dL/dmeans2d|."""
    conics: Tensor
    """[V,3] upper triangle (xx, xy, yy) of the inverse of the projected covariance, px^-2."""
    depths: Tensor
    """[V] camera z, scene units."""
    radii: Tensor
    """int32 [V,2] half sides of the rectangle outside which alpha < 1/255, px, rounded up."""
    colors: Tensor
    """[V,3] RGB: spherical harmonics evaluated, plus 0.5, clamped below at 0; or the colours as given."""
    opacities: Tensor
    """[V] in 0..1, times the compensation when antialiased."""

    def split(self, numbers: Sequence[int]) -> list["Projection"]:
        """Cut it into parts of so many Gaussians each, V together."""
        parts = {name: t.split(list(numbers)) for name, t in self._tensors()}
        return [Projection(**{name: part[i] for name, part in parts.items()}) for i in range(len(numbers))]

    def take(self, rows: Tensor) -> "Projection":
        """Return the Gaussians of these rows, int64 [W]; differentiable."""
        return Projection(**{name: t.index_select(0, rows) for name, t in self._tensors()})

    @staticmethod
    def join(parts: Sequence["Projection"]) -> "Projection":
        """Put one after the other."""
        names = [field.name for field in fields(Projection)]
        return Projection(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(Projection):
            yield field.name, getattr(self, field.name)


@dataclass(kw_only=True)
class Image:
    """One rendered camera."""

    colors: Tensor
    """[H,W,3] RGB over the background."""
    alphas: Tensor
    """[H,W] in 0..1: 1 - remaining transmittance."""
    depths: Tensor | None
    """[H,W] alpha-weighted sum of camera z (divide by `alphas` for the expected depth), or None if not asked for."""


@dataclass(kw_only=True)
class RenderOutput:
    """C rendered cameras and what densification needs of each."""

    colors: Tensor
    """[C,H,W,3]"""
    alphas: Tensor
    """[C,H,W,1]"""
    depths: Tensor | None
    """[C,H,W,1] or None"""
    projections: list[Projection]
    """One per camera."""


class Renderer(Protocol):
    """Two phases, so that a sharded strategy can exchange projected Gaussians between them."""

    name: str
    #: True if `project_views` is one call, cheaper than one of `project` per camera.
    several_views: bool = False

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
        """Project Gaussians into one pinhole camera (EWA splatting, Zwicker et al. 2001) and evaluate their colours.

        Args:
            means: [N,3] centres, world.
            quats: [N,4] rotations, wxyz, any length; shorter than 1e-12 means no rotation (with zero gradient).
            scales: [N,3] standard deviations along the rotated axes, world units (not their logarithms).
            opacities: [N] in 0..1 (not logits).
            colors: [N,3] RGB when `settings.sh_degree` is None. Else spherical harmonics coefficients [N,K,3] with
                K >= (sh_degree+1)^2, or the pair (sh0 [N,1,3], shN [N,K-1,3]), which spares a copy of both per step.
                Coefficients beyond `sh_degree` are not read; their gradient is zero, and that of `shN` at degree 0
                is None, so that it is neither sent nor applied.
            viewmat: [4,4] world to camera, rigid, OpenCV axes.
            K: [3,3] intrinsics, px: fx, fy > 0, no skew.
            width, height: image size, px, 1..32768.
            settings: degree of the harmonics, depth range, blur.

        Returns:
            The visible Gaussians. Not visible are those outside the frustum, fainter than 1/255, or whose
            projection is not representable in the dtype (a scale of 1e9 in float32, say).

        Raises:
            UserError: wrong shape, dtype or device; NaN or infinite parameters; an invalid camera.
        """
        ...

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
        """Project Gaussians into C cameras of one size; with `several_views` the host waits for the device once, not C
        times.

        Args:
            means, quats, scales, opacities, colors: as in `project`. With `several_views` their gradients are sums over
                the cameras in no fixed order.
            viewmats: C of [4,4], as in `project`.
            Ks: C of [3,3].
            width, height: of all images, px.
            settings: as in `project`.

        Returns:
            What the cameras see, one camera after the other, by id; and how many Gaussians each sees, int64 [C], on the
            device unless the host knows them: `Projection.split` cuts it once it does.

        Raises:
            UserError: as in `project`.
        """
        gaussians = means, quats, scales, opacities, colors
        parts = [
            self.project(*gaussians, viewmat, K, width, height, settings)
            for viewmat, K in zip(viewmats, Ks, strict=True)
        ]
        return Projection.join(parts), torch.tensor([len(part.ids) for part in parts], device=means.device)

    def rasterize(
        self,
        projection: Projection,
        width: int,
        height: int,
        settings: RenderSettings = DEFAULTS,
        *,
        background: Tensor | None = None,
    ) -> Image:
        """Blend projected Gaussians front to back (Kerbl et al. 2023, eq. 3).

        Args:
            projection: Gaussians seen by this camera, in any order.
            width, height: image size, px.
            settings: absolute gradients, depths.
            background: [3] float RGB shown through what is transparent; black if None.
        """
        ...


def render(
    renderer: Renderer,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Colors,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    settings: RenderSettings = DEFAULTS,
    *,
    backgrounds: Tensor | None = None,
) -> RenderOutput:
    """Render C cameras, one after the other.

    Args:
        renderer: as `get_renderer` makes it.
        means, quats, scales, opacities, colors: as in `Renderer.project`, float32 or float64.
        viewmats: [C,4,4] world to camera.
        Ks: [C,3,3] intrinsics, px.
        width, height: size of every image, px.
        settings: as in `Renderer`.
        backgrounds: [C,3] RGB; black if None.
    """
    if viewmats.ndim != 3 or Ks.ndim != 3 or len(viewmats) != len(Ks) or len(Ks) == 0:
        raise UserError(
            f"viewmats {list(viewmats.shape)} and Ks {list(Ks.shape)}: expected [C,4,4] and [C,3,3] with C >= 1 cameras"
        )
    if backgrounds is not None and tuple(backgrounds.shape) != (len(Ks), 3):
        raise UserError(
            f"backgrounds {list(backgrounds.shape)}: expected one RGB colour per camera, [{len(Ks)}, 3]"
        )
    projections, images = [], []
    for c in range(len(Ks)):
        projection = renderer.project(
            means, quats, scales, opacities, colors, viewmats[c], Ks[c], width, height, settings
        )
        background = None if backgrounds is None else backgrounds[c]
        image = renderer.rasterize(projection, width, height, settings, background=background)
        projections.append(projection)
        images.append(image)
    depths = [image.depths[..., None] for image in images if image.depths is not None]
    return RenderOutput(
        colors=torch.stack([image.colors for image in images]),
        alphas=torch.stack([image.alphas for image in images])[..., None],
        depths=torch.stack(depths) if depths else None,
        projections=projections,
    )
