"""Adam over the six parameters, which keeps its moments while Gaussians come and go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Adam (Kingma and Ba 2015), each parameter updated as soon as its gradient is there.

    Calls PyTorch's fused kernel itself: `torch.optim.Adam` would compute the same (a test holds them equal), but its
    first use imports PyTorch's compiler, more than a second of every rank's start.
    """

    def __init__(self, gaussians: Gaussians, rule: AdamRule) -> None:
        self.gaussians, self.rule = gaussians, rule
        self._states: dict[str, _State] = {}

    @torch.no_grad()
    def step(self, rates: Mapping[str, float], ready: Iterable[str]) -> None:
        """Update the parameters that `ready` names, in its order, and drop all gradients. rates: by name."""
        for name in ready:
            p, grad = self.gaussians[name], self.gaussians[name].grad
            assert grad is not None
            if name not in self._states:
                step = torch.zeros((), device=p.device)
                self._states[name] = _State(torch.zeros_like(p), torch.zeros_like(p), step)
            state = self._states[name]
            state.step += 1
            torch._fused_adam_(
                [p], [grad], [state.exp_avg], [state.exp_avg_sq], [], [state.step], lr=rates[name],
                beta1=self.rule.betas[0], beta2=self.rule.betas[1], weight_decay=0.0, eps=self.rule.eps,
                amsgrad=False, maximize=False,
            )  # fmt: skip
        self.gaussians.zero_grad()

    def apply(self, change: Change) -> Gaussians:
        """Make the changed set of Gaussians current: moments follow their rows, fresh rows start at zero."""
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
        """`{parameter}.exp_avg` and `.exp_avg_sq`, shaped as the parameter, of those that were ever updated."""
        return {f"{name}.{k}": getattr(state, k) for name, state in self._states.items() for k in MOMENTS}

    def steps(self) -> dict[str, float]:
        """Updates so far, by parameter: `shN` starts later than the others."""
        return {name: float(state.step) for name, state in self._states.items()}

    def load(self, moments: Mapping[str, Tensor], steps: Mapping[str, float]) -> None:
        """Take over what `moments` and `steps` gave."""
        device = self.gaussians.device
        for name in steps:
            first, second = (moments[f"{name}.{k}"].contiguous() for k in MOMENTS)
            self._states[name] = _State(first, second, torch.tensor(steps[name], device=device))
