"""The strategy of a run by its settings."""

import torch

from ..spec import RunSpec
from ..splats.render import Renderer
from .base import Parallel, RenderOptions
from .comm import Communicator
from .replicated import Replicated
from .sharded import Sharded

KINDS: dict[str, type[Replicated] | type[Sharded]] = {"replicated": Replicated, "sharded": Sharded}


def make_parallel(spec: RunSpec, comm: Communicator, renderer: Renderer, device: torch.device) -> Parallel:
    return KINDS[spec.parallel.kind](comm, renderer, RenderOptions.of(spec.train), spec.parallel, device)
