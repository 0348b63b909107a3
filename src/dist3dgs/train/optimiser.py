"""Adam over the six parameters, which keeps its moments while Gaussians come and go."""

import torch
from torch import Tensor

from ..splats.densify.change import Change
from ..splats.gaussians import NAMES, Gaussians
from .schedules import AdamRule


class Optimiser:
    """One fused `torch.optim.Adam` with a group per parameter."""

    def __init__(self, gaussians: Gaussians, rule: AdamRule) -> None:
        self.gaussians, self.rule = gaussians, rule
        self._adam = self._make(gaussians)

    def _make(self, gaussians: Gaussians) -> torch.optim.Adam:
        groups = [{"params": [gaussians[name]], "lr": 0.0, "name": name} for name in NAMES]
        return torch.optim.Adam(groups, betas=self.rule.betas, eps=self.rule.eps, fused=True)

    def step(self, rates: dict[str, float]) -> None:
        """Update all parameters that have a gradient and drop the gradients. rates: learning rate by name."""
        for group in self._adam.param_groups:
            group["lr"] = rates[group["name"]]
        self._adam.step()
        self.gaussians.zero_grad()

    def apply(self, change: Change) -> Gaussians:
        """Make the changed set of Gaussians current: moments follow their rows, fresh rows start at zero."""
        old = self.state()
        self.gaussians = Gaussians(change.parameters)
        kept, fresh = change.origin.clamp_min(0), change.origin < 0
        state = {}
        for key, value in old.items():
            name, _, what = key.rpartition(".")
            if what == "step":
                state[key] = value
                continue
            moved = value[kept]
            moved[fresh] = 0
            if name in change.reset_moments:
                moved.zero_()
            state[key] = moved
        self._adam = self._make(self.gaussians)
        self.load(state)
        return self.gaussians

    def state(self) -> dict[str, Tensor]:
        """`{parameter}.exp_avg` and `.exp_avg_sq` (shaped as the parameter), `.step` (0-dim), where there are any."""
        out = {}
        for name in NAMES:
            state = self._adam.state.get(self.gaussians[name])
            if state:
                out.update({f"{name}.{k}": state[k] for k in ("exp_avg", "exp_avg_sq", "step")})
        return out

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name in NAMES:
            if f"{name}.step" in state:
                self._adam.state[self.gaussians[name]] = {
                    k: state[f"{name}.{k}"].clone() for k in ("step", "exp_avg", "exp_avg_sq")
                }
