"""Adam over the six parameters, with moments that follow their Gaussians."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from ..splats.densify.change import Change
from ..splats.gaussians import Gaussians
from .schedules import AdamRule

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class _State:
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    """float32, 0-dim: updates so far."""


class Optimizer:
    """Adam (Kingma and Ba 2015), each parameter updated as soon as its gradient is ready.

    Calls the functional form of `torch.optim.Adam(fused=True)`: the first step of the class imports PyTorch's compiler,
    seconds of every rank's start (decision 0012).
    """

    def __init__(self, gaussians: Gaussians, rule: AdamRule) -> None:
        self.gaussians, self.rule = gaussians, rule
        self._states: dict[str, _State] = {}

    @torch.no_grad()
    def step(self, rates: Mapping[str, float], ready: Iterable[str]) -> None:
        """Update the parameters that `ready` yields, in its order, and drop all gradients.

        rates: learning rate by parameter.
        """
        for name in ready:
            p, grad = self.gaussians[name], self.gaussians[name].grad
            assert grad is not None
            if name not in self._states:
                step = torch.zeros((), device=p.device)
                self._states[name] = _State(torch.zeros_like(p), torch.zeros_like(p), step)
            state = self._states[name]
            adam(
                [p], [grad], [state.exp_avg], [state.exp_avg_sq], [], [state.step], fused=True, lr=rates[name],
                beta1=self.rule.betas[0], beta2=self.rule.betas[1], weight_decay=0.0, eps=self.rule.eps,
                amsgrad=False, maximize=False,
            )  # fmt: skip
        self.gaussians.zero_grad()

    def apply(self, change: Change) -> Gaussians:
        """Switch to the changed set of Gaussians: moments follow their rows, new rows start at zero."""
        kept, fresh = change.origin.clamp_min(0), change.origin < 0
        moments = {}
        for key, value in self.moments().items():
            moved = value[kept]
            moved[fresh] = 0
            if key.partition(".")[0] in change.reset_moments:
                moved.zero_()
            moments[key] = moved
        self.gaussians = Gaussians(change.parameters)
        self.load(moments, self.steps())
        return self.gaussians

    def moments(self) -> dict[str, Tensor]:
        """Return `{parameter}.exp_avg` and `.exp_avg_sq`, float32 [N, ...] as the parameter, of those ever updated."""
        return {f"{name}.{k}": getattr(state, k) for name, state in self._states.items() for k in MOMENTS}

    def steps(self) -> dict[str, float]:
        """Return the number of updates by parameter: `shN` starts later than the others."""
        return {name: float(state.step) for name, state in self._states.items()}

    def load(self, moments: Mapping[str, Tensor], steps: Mapping[str, float]) -> None:
        """Restore what `moments` (float32 [N, ...] by name) and `steps` returned."""
        device = self.gaussians.device
        for name in steps:
            first, second = (moments[f"{name}.{k}"].contiguous() for k in MOMENTS)
            self._states[name] = _State(first, second, torch.tensor(steps[name], device=device))
