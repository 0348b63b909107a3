"""Names for Gaussians that outlive their place in the tensors, and random numbers that follow from the name.

Noise drawn by place is a trap: where a rounding decides that one Gaussian more is split, all that come after it get
other noise, and two runs that differ in the last bit end as far apart as two seeds. Drawn by name, a Gaussian's
noise is the same on any number of ranks, in any shard, whatever became of the others.

A name is 64 bits: a founder's follows from its place in canonical order, a child's from its parent's, the step and
which of the children it is. Mixing is SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators",
2014), normal numbers come from it by the Box-Muller transform.
"""

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def founders(num_gaussians: int, device: torch.device) -> Tensor:
    """int64 [N]: names of the initial Gaussians."""
    return _mix(torch.arange(num_gaussians, device=device))


def children(parents: Tensor, step: int, which: int) -> Tensor:
    """int64 [M]: names of the `which`-th children that Gaussians named `parents` [M] have at `step`."""
    return _mix(parents ^ _key(step, which).to(parents.device))


def normals(names: Tensor, count: int, seed: int, step: int) -> Tensor:
    """float64 [M, count]: standard normal numbers for the Gaussians named `names` [M]."""
    keys = torch.stack([_key(seed, step, i) for i in range(2 * count)]).to(names.device)
    bits = _mix(names[:, None] ^ keys)
    uniform = ((_shift(bits, 11).double() + 0.5) * 2.0**-53).reshape(len(names), count, 2)
    radius = torch.sqrt(-2 * torch.log(uniform[..., 0]))
    return radius * torch.cos(2 * math.pi * uniform[..., 1])


def _key(*numbers: int) -> Tensor:
    key = torch.zeros((), dtype=torch.int64)
    for number in numbers:
        key = _mix(key ^ number)
    return key


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output for state `x`, int64 with wrap-around."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
