"""Learning-rate and batch rules, valid for any batch size.

With B images in a step the learning rate is multiplied by sqrt(B) and Adam's betas become beta ** B: B small steps'
worth of decay happens in one. Both from Zhao et al., "On Scaling Up 3D Gaussian Splatting Training" (Grendel, 2024),
section 4.2. The betas stay in (0, 1) for every B; the linear rule 1 - B (1 - beta) turns negative from B = 11 on.
Epsilon is divided by sqrt(B), as the mean gradient over B images has that much less noise (Malladi et al. 2022).
"""

import math
from dataclasses import dataclass

from ..config.models import LearningRates, RunSpec

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-15


@dataclass(frozen=True)
class AdamRule:
    """Adam's settings for a global batch of `batch` images."""

    batch: int
    selective: bool = False
    """Leave Gaussians that no view of the step drew as they are, moments included; else they go on by momentum."""

    @property
    def lr_factor(self) -> float:
        return math.sqrt(self.batch)

    @property
    def betas(self) -> tuple[float, float]:
        return (ADAM_BETAS[0] ** self.batch, ADAM_BETAS[1] ** self.batch)

    @property
    def eps(self) -> float:
        return ADAM_EPS / math.sqrt(self.batch)


def learning_rates(lr: LearningRates, extent: float, rule: AdamRule, progress: float) -> dict[str, float]:
    """Return the rate by parameter at `progress` in 0..1 of the run; that of the means decays exponentially.

    extent: scene radius in world units.
    """
    decayed = math.exp((1 - progress) * math.log(lr.means) + progress * math.log(lr.means_final))
    rates = {
        "means": decayed * extent,
        "scales": lr.scales,
        "quats": lr.quats,
        "opacities": lr.opacities,
        "sh0": lr.sh0,
        "shN": lr.shN,
    }
    return {name: rate * rule.lr_factor for name, rate in rates.items()}


@dataclass(frozen=True)
class Schedule:
    """Settings counted for a batch of one, translated into this run's optimizer steps.

    With `keep: images` every count is divided by the global batch, so that densification, SH degree and
    evaluation come after the same number of images whatever the number of ranks.
    """

    spec: RunSpec

    @property
    def num_steps(self) -> int:
        return self.spec.num_steps

    def steps(self, count: int) -> int:
        """Convert a count of one-image steps to this run's steps, at least 1."""
        divide = self.spec.global_batch if self.spec.train.keep == "images" else 1
        return max(1, round(count / divide))

    def every(self, count: int, step: int) -> bool:
        """Return True if something due every `count` one-image steps is due after 1-based step `step`."""
        return step % self.steps(count) == 0

    def sh_degree(self, step: int) -> int:
        """Return the degree of the spherical harmonics in use at 1-based step `step`."""
        return min(self.spec.train.sh_degree, (step - 1) // self.steps(self.spec.train.sh_every))

    def phase(self, step: int) -> str:
        """Return the phase that a strategy of blocks is in at 1-based step `step`; that of others is empty.

        After the last step it is `merged`. A job that trains one block, or merges them, is in one phase alone.
        """
        if self.spec.parallel.kind != "blocks":
            return ""
        if self.spec.parts and not self.spec.part:
            return "merged"
        if self.spec.block is not None:
            return "blocks"
        alone = self.spec.block_steps
        return "coarse" if step < alone.start else "blocks" if step in alone else "merged"

    def densifies(self, step: int) -> bool:
        d = self.spec.train.densify
        inside = self.steps(d.start_step) < step <= min(self.steps(d.stop_step), self.num_steps - 1)
        return d.kind != "none" and inside and self.every(d.every, step)

    def densification(self, step: int) -> tuple[int, int]:
        """Return the number of densifications up to 1-based step `step`, and of the whole run."""
        d = self.spec.train.densify
        every, before = self.steps(d.every), self.steps(d.start_step) // self.steps(d.every)
        last = min(self.steps(d.stop_step), self.num_steps - 1)
        return min(step, last) // every - before, last // every - before

    def tracks(self, step: int) -> bool:
        """Return True if screen-space gradients are needed at this step."""
        d = self.spec.train.densify
        return d.kind == "default" and step <= self.steps(d.stop_step)

    def resets_opacity(self, step: int) -> bool:
        d = self.spec.train.densify
        return d.kind == "default" and step < self.steps(d.stop_step) and self.every(d.reset_every, step)
