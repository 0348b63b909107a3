"""Adam over the six parameters, which keeps its moments while Gaussians come and go."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..splats.densify.change import Change
from ..splats.gaussians import NAMES, Gaussians
from .schedules import AdamRule

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimiser:
    """One fused `torch.optim.Adam` per parameter, so that each is updated as soon as its gradient is there."""

    def __init__(self, gaussians: Gaussians, rule: AdamRule) -> None:
        self.gaussians, self.rule = gaussians, rule
        self._adam = {
            name: torch.optim.Adam([p], lr=0.0, betas=rule.betas, eps=rule.eps, fused=True)
            for name, p in gaussians.items()
        }

    def step(self, rates: Mapping[str, float], ready: Iterable[str]) -> None:
        """Update the parameters that `ready` names, in its order, and drop all gradients. rates: by name."""
        for name in ready:
            self._adam[name].param_groups[0]["lr"] = rates[name]
            self._adam[name].step()
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
        steps = self.steps()
        self.__init__(Gaussians(change.parameters), self.rule)  # type: ignore[misc]
        self.load(moments, steps)
        return self.gaussians

    def moments(self) -> dict[str, Tensor]:
        """`{parameter}.exp_avg` and `.exp_avg_sq`, shaped as the parameter, of those that were ever updated."""
        return {f"{name}.{k}": state[k] for name, state in self._states().items() for k in MOMENTS}

    def steps(self) -> dict[str, float]:
        """Updates so far, by parameter: `shN` starts later than the others."""
        return {name: float(state["step"]) for name, state in self._states().items()}

    def load(self, moments: Mapping[str, Tensor], steps: Mapping[str, float]) -> None:
        """Take over what `moments` and `steps` gave."""
        for name, count in steps.items():
            p = self.gaussians[name]
            state = {k: moments[f"{name}.{k}"].contiguous() for k in MOMENTS}
            self._adam[name].state[p] = {"step": torch.tensor(count, device=p.device), **state}

    def _states(self) -> dict[str, dict[str, Tensor]]:
        found = {name: self._adam[name].state.get(self.gaussians[name]) for name in NAMES}
        return {name: state for name, state in found.items() if state}
