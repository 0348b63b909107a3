"""Numbers that travel between host and device without a wait."""

from types import SimpleNamespace

import pytest
import torch

from dist3dgs.splats.host_copy import HostCopy, on_device
from dist3dgs.train.rng import background
from tests.unit.helpers import tiny

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")


def test_what_goes_to_a_gpu_goes_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From other memory each step's background and stop request would wait for all work queued on the GPU."""
    spec, pinned = tiny.spec(background="random"), []
    color = background(spec, 7, CPU)

    def pin_memory(tensor: torch.Tensor) -> SimpleNamespace:
        pinned.append(tensor)
        return SimpleNamespace(to=lambda device, non_blocking=False: (device, non_blocking))

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    assert on_device([1.0, 0.25], GPU) == (GPU, True) and pinned[0].tolist() == [1.0, 0.25]
    assert background(spec, 7, GPU) == (GPU, True) and torch.equal(pinned[1], color)
    assert background(spec, 8, CPU).tolist() != color.tolist() and len(pinned) == 2


def test_numbers_are_those_at_the_time_of_the_copy() -> None:
    tensor = torch.tensor([1.5, 2.0])
    copy = HostCopy(tensor)
    tensor.zero_()
    assert copy.read() == [1.5, 2.0] and HostCopy(torch.tensor(3)).read() == [3.0]
