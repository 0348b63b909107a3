"""The CPU renderer behind the common interface."""

from torch import Tensor

from dist3dgs.errors import UserError
from dist3dgs.splats.cpu.project import Project, View
from dist3dgs.splats.cpu.rasterize import Rasterize
from dist3dgs.splats.render import checks
from dist3dgs.splats.render.api import DEFAULTS, Colors, Image, Projection, Renderer, RenderSettings


class CpuRenderer(Renderer):
    """See `dist3dgs.splats.render.api.Renderer`. Also differentiable in `viewmat`.

    The first use on a machine compiles the kernels (a few seconds); later ones take them from a cache folder
    (DIST3DGS_KERNEL_CACHE, else the user's cache).
    """

    name = "cpu"

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
        intrinsics = checks.check_camera(viewmat, K)
        _check_device(means)
        viewmat = viewmat.to(means)
        centre = -viewmat[:3, :3].T @ viewmat[:3, 3]
        view = View(intrinsics, width, height, settings)
        sh0, shn = colors if isinstance(colors, tuple) else (colors, None)
        inputs = [t.contiguous() for t in (means, quats, scales, opacities, sh0)]
        shn = shn.contiguous() if shn is not None else None
        ids, means2d, conics, depths, radii, rgb, opacity = Project.apply(*inputs, shn, viewmat, centre, view)
        return Projection(
            ids=ids, means2d=means2d, conics=conics, depths=depths, radii=radii, colors=rgb, opacities=opacity
        )

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
        _check_device(p.means2d)
        background = p.means2d.new_zeros(3) if background is None else background.to(p.means2d)
        image, transmittance = Rasterize.apply(
            p.means2d, p.conics, p.depths, p.colors, p.opacities, background, p.radii, width, height,
            settings.absgrad, settings.render_depth,
        )  # fmt: skip
        depths = image[..., 3] if settings.render_depth else None
        return Image(
            colors=image[..., :3] if settings.render_depth else image, alphas=1 - transmittance, depths=depths
        )


def _check_device(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise UserError(f"Gaussians are on {tensor.device}: the renderer 'cpu' draws only those on the CPU")
