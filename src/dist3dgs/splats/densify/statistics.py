"""Densification statistics: screen-space gradient of every Gaussian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..camera import Camera
from ..render import Projection

#: Gradients are summed as whole multiples of this (fixed point): the sum is then the same in whatever order steps,
#: views and ranks are added, so that neither a checkpoint nor the number of ranks changes a decision by a rounding.
#: 1.5e-11 is seven orders of magnitude below the usual threshold (2e-4).
QUANTUM = 2.0**-36
#: Largest norm that is added, in normalised device units: 2^40 quanta, so that 2^23 of them fit in an int64.
_MAX_NORM = 2.0**4


@dataclass
class Statistics:
    """Sums since the last densification, per Gaussian."""

    grad_sum: Tensor
    """int64 [N]: sum over views of the norm of the screen-space gradient, normalised device units / QUANTUM."""
    count: Tensor
    """int64 [N]: views that saw it."""

    @classmethod
    def zeros(cls, num_gaussians: int, device: torch.device) -> "Statistics":
        def empty() -> Tensor:
            return torch.zeros(num_gaussians, dtype=torch.int64, device=device)

        return cls(empty(), empty())

    def mean_gradient(self) -> Tensor:
        """Return the mean over the views that saw each Gaussian, float32 [N], normalised device units; 0 if none."""
        return (self.grad_sum.double() * QUANTUM / self.count.clamp_min(1)).float()

    @torch.no_grad()
    def add(self, projection: Projection, camera: Camera, loss_weight: float, absgrad: bool) -> None:
        """Add one view after its backward pass.

        loss_weight: weight of this view's loss in the step's; divided out, so that the threshold means the same
        for any batch size. Pixel gradients times half the image size are gradients in normalised device units,
        as the thresholds of the papers are.
        """
        means2d = projection.means2d
        grad = getattr(means2d, "absgrad", None) if absgrad else means2d.grad
        if grad is None:  # no pixel depends on any Gaussian
            return
        # The quantum is a power of two: in its multiples every float32 keeps its digits.
        x = grad[:, 0] * (camera.width / 2 / loss_weight / QUANTUM)
        y = grad[:, 1] * (camera.height / 2 / loss_weight / QUANTUM)
        norm = torch.hypot(x, y).nan_to_num_(0.0).clamp_max_(_MAX_NORM / QUANTUM).round_()
        ids = projection.ids
        # Whole numbers: the same sum in any order. (`tensor[ids] += ...` gathers and scatters: six times slower.)
        self.grad_sum.index_add_(0, ids, norm.long())
        self.count.index_add_(0, ids, torch.ones_like(ids))
