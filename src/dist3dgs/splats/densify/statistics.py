"""What densification looks at: how hard the loss pulls every Gaussian across the screen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..camera import Camera
from ..render import Projection


@dataclass
class Statistics:
    """Sums since the last densification, per Gaussian."""

    grad_sum: Tensor
    """float32 [N]: sum over views of the norm of the screen-space gradient, normalised device units."""
    count: Tensor
    """float32 [N]: views that saw it."""

    @classmethod
    def zeros(cls, num_gaussians: int, device: torch.device) -> "Statistics":
        return cls(torch.zeros(num_gaussians, device=device), torch.zeros(num_gaussians, device=device))

    @torch.no_grad()
    def add(self, projection: Projection, camera: Camera, loss_weight: float, absgrad: bool) -> None:
        """Add one view after its backward pass.

        loss_weight: weight of this view's loss in the step's; divided out, so that the threshold means the same
        for any batch size. Pixel gradients times half the image size are gradients in normalised device units,
        as the thresholds of the papers are.
        """
        means2d = projection.means2d
        grad = means2d.absgrad if absgrad else means2d.grad  # type: ignore[attr-defined]
        if grad is None:  # no pixel depends on any Gaussian
            return
        x = grad[:, 0] * (camera.width / 2 / loss_weight)
        y = grad[:, 1] * (camera.height / 2 / loss_weight)
        ids = projection.ids
        # ids are unique within a projection, so indexed addition is a plain, deterministic gather-add-scatter.
        self.grad_sum[ids] += torch.sqrt(x * x + y * y).to(self.grad_sum.dtype)
        self.count[ids] += 1
