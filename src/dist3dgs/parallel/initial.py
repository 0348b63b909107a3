"""How the ranks come to hold the same parameters: `broadcast` (right), `independent` (the historic crash).

PyTorch's DistributedDataParallel compares every rank's parameter sizes and strides with rank 0's when it is built.
Where each rank reads the points for itself, one of them may hold a transposed (column-major) array of the same
values: `params[1] ... appears not to match strides of the same param in process 0`. The ORDER of the points has
no part in it; the memory format does.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..splats.gaussians import NAMES
from .collectives import Communicator


def broadcast(
    comm: Communicator, load: Callable[[], dict[str, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """Rank 0 loads; everybody receives contiguous tensors of the same sizes and bits."""
    tensors = {k: t.to(device).contiguous() for k, t in load().items()} if comm.rank == 0 else {}
    if comm.alone:
        return tensors
    shapes = comm.gather_objects({k: (tuple(t.shape), t.dtype) for k, t in tensors.items()})[0]
    for name, (shape, dtype) in shapes.items():
        if comm.rank != 0:
            tensors[name] = torch.empty(shape, dtype=dtype, device=device)
        comm.broadcast(tensors[name])
    return tensors


def independent(
    comm: Communicator, load: Callable[[], dict[str, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """Every rank reads for itself, the odd ones a column-major file, and DDP verifies them.

    Raises RuntimeError from PyTorch's own verification on every world of two or more; there to reproduce the crash.
    """
    tensors = {k: t.to(device) for k, t in load().items()}
    if comm.rank % 2:
        # What a reader gives that stacks three columns and transposes: the same values, with strides (1, N).
        tensors["scales"] = tensors["scales"].t().contiguous().t()
    if not comm.alone:
        module = torch.nn.Module()
        for name in NAMES:
            module.register_parameter(name, torch.nn.Parameter(tensors[name]))
        DistributedDataParallel(module)
    return tensors
