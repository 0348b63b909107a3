"""Whether a rank waits for others, told by its GPU."""

import pytest
import torch

from dist3dgs.train.fault_handling import waits_for_others

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_a_gpu_that_was_given_work_is_told_from_one_that_has_none_left():
    device = torch.device("cuda", 0)
    torch.cuda.synchronize(device)
    assert not waits_for_others(device)
    torch.cuda._sleep(4_000_000_000)  # cycles: two seconds or more
    assert waits_for_others(device)
    torch.cuda.synchronize(device)
    assert not waits_for_others(device)
