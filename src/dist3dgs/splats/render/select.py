"""Choose a renderer by name or by device."""

import torch

from dist3dgs.errors import UserError
from dist3dgs.splats.render.api import Renderer

NAMES = ("auto", "cuda", "cpu", "reference")


def get_renderer(name: str = "auto", device: torch.device | str | None = None) -> Renderer:
    """Make a renderer: "cuda" (gsplat), "cpu" (compiled kernels), "reference" (plain torch), or "auto": by `device`.

    Only "cuda" loads gsplat's CUDA extension, and builds it on first use where it is missing.
    """
    if name not in NAMES:
        raise UserError(f"renderer {name!r}: expected one of {', '.join(NAMES)}")
    if name == "auto":
        device = torch.device(device) if device is not None else None
        if device is None:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        else:
            name = "cuda" if device.type == "cuda" else "cpu"
    # imported here, so that neither the CPU kernels nor gsplat are loaded before they are needed
    if name == "cuda":
        from dist3dgs.splats.render.cuda import CudaRenderer

        return CudaRenderer()
    if name == "cpu":
        from dist3dgs.splats.cpu.renderer import CpuRenderer

        return CpuRenderer()
    from dist3dgs.splats.render.reference import ReferenceRenderer

    return ReferenceRenderer()
