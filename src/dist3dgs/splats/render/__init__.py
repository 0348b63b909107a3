"""Renderers: `cuda` (gsplat), `cpu` (our kernels) and `reference` (plain torch, the oracle), behind one interface."""

from dist3dgs.splats.cpu.jit.threads import set_threads
from dist3dgs.splats.render.api import Image, Projection, Renderer, RenderOutput, RenderSettings, render
from dist3dgs.splats.render.select import get_renderer

__all__ = [
    "Image",
    "Projection",
    "RenderOutput",
    "RenderSettings",
    "Renderer",
    "get_renderer",
    "render",
    "set_threads",
]
