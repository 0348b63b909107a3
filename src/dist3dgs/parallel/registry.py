"""Make the strategy that a run's settings name.

A built-in strategy is a line in `config/models.py: STRATEGIES`, one of another package an entry point of the group
`dist3dgs.strategies`.
"""

import pkgutil

import torch

from ..config.models import RunSpec, strategy_class
from ..splats.render import Renderer, RenderSettings
from .collectives import Communicator
from .strategy import Parallel, Setup


def make_parallel(spec: RunSpec, comm: Communicator, renderer: Renderer, device: torch.device) -> Parallel:
    """Make the strategy `spec.parallel.kind` on this rank."""
    train = spec.train
    settings = RenderSettings(
        near=train.near, far=train.far, antialiased=train.antialiased, absgrad=train.densify.absgrad
    )
    path = strategy_class(spec.parallel.kind)
    assert path is not None  # the settings were checked
    strategy = spec.parallel.model_copy(update={"shard": spec.shard})
    room = spec.hardware.max_gaussians_per_rank
    made: Parallel = pkgutil.resolve_name(path)(
        Setup(
            comm=comm,
            renderer=renderer,
            settings=settings,
            strategy=strategy,
            device=device,
            block=spec.block,
            max_rows=room,
        )
    )
    return made
