"""Random numbers of a run by place: functions of seed, step and purpose, so that a resume needs nothing stored."""

import numpy as np
import torch
from torch import Tensor

from ..config.models import RunSpec


def generator(seed: int, step: int, purpose: str, stream: int = 0) -> torch.Generator:
    """On the CPU. stream: ranks that decide about Gaussians of their own draw from streams of their own."""
    entropy = [seed, step, stream, *purpose.encode()]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)


def background(spec: RunSpec, step: int, device: torch.device) -> Tensor | None:
    """[3], what is behind everything at a step, None for black. Evaluations take that of step 0."""
    if spec.train.background == "random":
        return torch.rand(3, generator=generator(spec.seed, step, "background")).to(device)
    return torch.ones(3, device=device) if spec.train.background == "white" else None
