"""Adam over the six parameters, with moments that follow their Gaussians."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from ..parallel.row_parts import RowParts
from ..splats.densify.change import Change
from ..splats.gaussians import Gaussians
from .schedules import AdamRule

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class _State:
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    """float32, 0-dim: updates so far, on the device, as the fused kernel wants it."""
    updates: float
    """The same number on the host, which would wait for the device to read `step`."""


class Optimizer:
    """Adam (Kingma and Ba 2015), each parameter updated as soon as its gradient is ready.

    Calls the functional form of `torch.optim.Adam(fused=True)`: the first step of the class imports PyTorch's compiler,
    seconds of every rank's start (decision 0012).
    """

    def __init__(self, gaussians: Gaussians, rule: AdamRule, parts: RowParts | None = None) -> None:
        """parts: of the rows, to update and to have moments of this rank's alone; None for all rows."""
        self.gaussians, self.rule, self.parts = gaussians, rule, parts
        self._states: dict[str, _State] = {}
        #: Selective updates by gsplat's kernel and a mask; else by rows, whose number the host has to know.
        self.by_mask = gaussians.device.type == "cuda"

    @torch.no_grad()
    def step(self, rates: Mapping[str, float], ready: Iterable[str]) -> None:
        """Update the parameters that `ready` yields, in its order, and drop all gradients.

        With a selective rule, only Gaussians whose centres have a gradient: those that a view of the step drew. After a
        reduction these are the same on all ranks that hold the same Gaussians.

        rates: learning rate by parameter.
        """
        seen = rows = None
        own = slice(None) if self.parts is None else self.parts.own(self.gaussians.num_gaussians)
        if self.rule.selective:
            ready = list(ready)  # the centres' gradient decides about all the others
            seen = self.gaussians["means"].grad[own].any(1)  # type: ignore[index]
            rows = None if self.by_mask else seen.nonzero()[:, 0]
        for name in ready:
            p, grad = self.gaussians[name][own], self.gaussians[name].grad
            assert grad is not None
            grad = grad[own]
            if name not in self._states:
                step = torch.zeros((), device=p.device)
                self._states[name] = _State(torch.zeros_like(p), torch.zeros_like(p), step, 0.0)
            state = self._states[name]
            state.updates += 1
            if seen is None:
                self._adam(p, grad, state.exp_avg, state.exp_avg_sq, state.step, rates[name])
            elif rows is None:
                self._masked_adam(p, grad, state, seen, rates[name])
            else:
                self._gathered_adam(p, grad, state, rows, rates[name])
        self.gaussians.zero_grad()

    def _adam(
        self, p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, rate: float
    ) -> None:
        adam(
            [p], [grad], [exp_avg], [exp_avg_sq], [], [step], fused=True, lr=rate, beta1=self.rule.betas[0],
            beta2=self.rule.betas[1], weight_decay=0.0, eps=self.rule.eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    def _gathered_adam(self, p: Tensor, grad: Tensor, state: _State, rows: Tensor, rate: float) -> None:
        """Update the given rows, int64 [V], gathered and put back."""
        whole = (p, state.exp_avg, state.exp_avg_sq)
        parts = [t.index_select(0, rows) for t in whole]
        self._adam(parts[0], grad.index_select(0, rows), parts[1], parts[2], state.step, rate)
        for t, part in zip(whole, parts, strict=True):
            t.index_copy_(0, rows, part)

    def _masked_adam(self, p: Tensor, grad: Tensor, state: _State, seen: Tensor, rate: float) -> None:
        """Update the rows of a bool mask [N] with gsplat's kernel, which the host need not wait for.

        The kernel has no bias correction. In the rate and in epsilon it is the same update: with c = 1 - beta^t,
        rate m / c1 / (sqrt(v / c2) + eps) = (rate sqrt(c2) / c1) m / (sqrt(v) + eps sqrt(c2)).
        """
        from gsplat.cuda._wrapper import adam as kernel  # its class would correct nothing

        first, second = self.rule.betas
        state.step.add_(1)
        if len(p) == 0:  # an empty shard: the kernel's launch divides by the number of rows
            return
        c1, c2 = 1 - first**state.updates, 1 - second**state.updates
        kernel(
            p, grad.contiguous(), state.exp_avg, state.exp_avg_sq, seen, rate * math.sqrt(c2) / c1, first, second,
            self.rule.eps * math.sqrt(c2),
        )  # fmt: skip

    def apply(self, change: Change) -> Gaussians:
        """Switch to the changed set of Gaussians: moments follow their rows, new rows start at zero.

        Collective where ranks have parts of the moments: each parameter's are put together on every rank for a moment.
        """
        origin, before = change.origin, self.gaussians.num_gaussians
        if self.parts is not None:
            origin = origin[self.parts.own(len(origin))]
        kept, fresh = origin.clamp_min(0), origin < 0
        moments = {}
        for key, value in self.moments().items():
            if self.parts is not None:
                value = self.parts.whole(value, before, "all_gather(moments)")
            moved = value[kept]
            moved[fresh] = 0
            if key.partition(".")[0] in change.reset_moments:
                moved.zero_()
            moments[key] = moved
        self.gaussians = Gaussians(change.parameters)
        self.load(moments, self.steps())
        return self.gaussians

    def moments(self) -> dict[str, Tensor]:
        """Return `{parameter}.exp_avg` and `.exp_avg_sq`, float32 [rows of this rank, ...], of those ever updated."""
        return {f"{name}.{k}": getattr(state, k) for name, state in self._states.items() for k in MOMENTS}

    def steps(self) -> dict[str, float]:
        """Return the number of updates by parameter: `shN` starts later than the others."""
        return {name: state.updates for name, state in self._states.items()}

    def load(self, moments: Mapping[str, Tensor], steps: Mapping[str, float]) -> None:
        """Restore what `moments` (float32 [N, ...] by name) and `steps` returned."""
        device = self.gaussians.device
        for name in steps:
            first, second = (moments[f"{name}.{k}"].contiguous() for k in MOMENTS)
            step = torch.full((), steps[name], dtype=torch.float32, device=device)
            self._states[name] = _State(first, second, step, float(steps[name]))
