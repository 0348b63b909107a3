"""Triton kernels where they run. Triton comes with PyTorch's CUDA builds, and needs a C compiler at first use."""

import functools
import importlib
import warnings
from typing import Any

import torch

#: Module of kernels -> what happens without it.
INSTEAD = {
    "harmonics_triton": "colours are computed by gsplat from gathered coefficients, in several times the launches",
    "loss_triton": "the loss runs in plain torch, several times slower",
}


@functools.cache
def load(name: str, device: torch.device) -> Any:
    """Return a module of `INSTEAD` once its kernels have run on a device; None, with a warning, where they do not."""
    try:
        module = importlib.import_module(f"dist3dgs.splats.{name}")
        module.try_out(device)
    except Exception as e:  # any error of the compiler
        warnings.warn(f"{INSTEAD[name]}: {type(e).__name__}: {e}", stacklevel=2)
        return None
    return module
