"""A change of the set of Gaussians as data: decided first, then applied to parameters and optimizer state."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..gaussians import Gaussians


@dataclass
class Change:
    """New parameter tensors, and for each new row the old row whose optimizer state it keeps."""

    parameters: dict[str, Tensor]
    """Tensors by name (`gaussians.NAMES`), M rows each."""
    origin: Tensor
    """int64 [M]: old row whose Adam moments go on, or -1 for fresh (zero) moments."""
    lineage: Tensor
    """int64 [M]: names of the rows (densify/lineage.py)."""
    counts: dict[str, int] = field(default_factory=dict)
    """For the log: cloned, split, pruned, relocated, added."""
    reset_moments: tuple[str, ...] = ()
    """Parameters whose moments are zeroed in every row."""

    @classmethod
    def none(cls, gaussians: Gaussians, lineage: Tensor) -> "Change":
        """Make the change that leaves everything as it is. lineage: int64 [N], names of the Gaussians."""
        rows = torch.arange(gaussians.num_gaussians, device=gaussians.device)
        return cls(dict(gaussians), rows, lineage, {"cloned": 0, "split": 0, "pruned": 0})
