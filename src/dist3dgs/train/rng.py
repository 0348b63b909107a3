"""Random number generators derived from seed, step and purpose, so that a resume needs no stored state."""

import numpy as np
import torch
from torch import Tensor

from ..config.models import RunSpec
from ..splats.host_copy import on_device


def generator(seed: int, step: int, purpose: str, stream: int = 0) -> torch.Generator:
    """Make a generator on the CPU. stream: ranks that decide about different Gaussians draw from different streams."""
    entropy = [seed, step, stream, *purpose.encode()]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)


def background(spec: RunSpec, step: int, device: torch.device) -> Tensor | None:
    """Return the background of a step, float32 [3] RGB, None for black. Evaluations use that of step 0."""
    if spec.train.background == "random":
        color = torch.rand(3, generator=generator(spec.seed, step, "background"))
        return on_device(color.tolist(), device)
    return torch.ones(3, device=device) if spec.train.background == "white" else None
