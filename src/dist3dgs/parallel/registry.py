"""The strategy of a run by its settings."""

import torch

from ..config.models import RunSpec
from ..splats.render import Renderer
from .collectives import Communicator
from .replicated import Replicated
from .sharded import Sharded
from .strategy import Parallel, RenderOptions

KINDS: dict[str, type[Replicated] | type[Sharded]] = {"replicated": Replicated, "sharded": Sharded}


def make_parallel(spec: RunSpec, comm: Communicator, renderer: Renderer, device: torch.device) -> Parallel:
    return KINDS[spec.parallel.kind](comm, renderer, RenderOptions.of(spec.train), spec.parallel, device)
