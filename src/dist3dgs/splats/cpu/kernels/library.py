"""All kernels of the CPU renderer, compiled or from the cache, by name."""

import functools
from collections.abc import Callable
from pathlib import Path

import llvmlite.ir as ir
import torch

from dist3dgs.splats.cpu.jit.build import load_kernels
from dist3dgs.splats.cpu.jit.ir import F32, F64
from dist3dgs.splats.cpu.kernels import blend, project, tiles
from dist3dgs.splats.render import api


def write_all(module: ir.Module, real: ir.Type) -> None:
    """Add every kernel to a module."""
    for degree in project.DEGREES:
        project.write_project(module, real, degree)
        project.write_project_backward(module, real, degree)
    for write in (
        project.write_cull, tiles.write_place, tiles.write_pack, tiles.write_count, tiles.write_rows,
        tiles.write_bin, blend.write_gather, blend.write_settle,
    ):  # fmt: skip
        write(module, real)
    for num_channels in (3, 4):
        blend.write_blend(module, real, num_channels)
        for absgrad in (False, True):
            blend.write_blend_backward(module, real, num_channels, absgrad)


@functools.cache
def kernels(dtype: torch.dtype) -> Callable[[str], int]:
    """Kernel name -> address, for float32 or float64."""
    sources = [*Path(__file__).parent.glob("*.py"), Path(api.__file__)]
    return load_kernels("render", write_all, F32 if dtype == torch.float32 else F64, sources)
