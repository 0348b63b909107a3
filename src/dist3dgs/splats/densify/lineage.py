"""Names of Gaussians that do not depend on their row, and random numbers derived from the name.

Noise drawn by row diverges: where rounding splits one Gaussian more, all that come after it get other noise, and two
runs that differ in the last bit end as far apart as two seeds. Drawn by name, a Gaussian's noise is the same on any
number of ranks and in any shard.

A name is 64 bits: an initial Gaussian's is derived from its place in canonical order, a child's from its parent's
name, the step and the child's index. Mixing is SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number
Generators", 2014); normal numbers come from it by the Box-Muller transform.
"""

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def founders(num_gaussians: int, device: torch.device) -> Tensor:
    """Return the names of the initial Gaussians, int64 [N]."""
    return mix(torch.arange(num_gaussians, device=device))


def children(parents: Tensor, step: int, which: int) -> Tensor:
    """Return the names, int64 [M], of the `which`-th children that Gaussians named `parents` [M] have at `step`."""
    return mix(parents ^ key(step, which))


def normals(names: Tensor, count: int, seed: int, step: int) -> Tensor:
    """Draw standard normal numbers, float32 [M, count], for the Gaussians named `names`, int64 [M], on their device.

    Two from 64 bits. On a CPU each number takes tens of nanoseconds, ten times as long as torch.randn; that is a few
    per cent of a step at most.
    """
    states = [names ^ key(seed, step, i) for i in range((count + 1) // 2)]
    # The halves of each word, low and high, as float32 above 0 and at most 1.
    halves = mix(torch.stack(states, 1))[..., None].view(torch.uint32)
    uniform = halves.float().add_(0.5).mul_(2.0**-32)
    angle, radius = uniform[..., 0] * (2 * math.pi), uniform[..., 1].log().mul_(-2).sqrt_()
    both = torch.stack([torch.cos(angle), torch.sin(angle)], -1).mul_(radius[..., None])
    return both.flatten(1)[:, :count]


def key(*values: int | str) -> int:
    """Hash the values to a signed 64-bit number."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), signed=True)


def mix(x: Tensor) -> Tensor:
    """Return SplitMix64's output for the states `x`, int64 [...], with wrap-around."""
    x = x + _GOLDEN
    x.bitwise_xor_(_shift(x, 30)).mul_(_FIRST)
    x.bitwise_xor_(_shift(x, 27)).mul_(_SECOND)
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's keeps the sign."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)
