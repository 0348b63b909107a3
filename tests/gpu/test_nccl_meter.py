"""Seconds of NCCL's collectives: neither the host's return from starting and waiting, nor other work meanwhile."""

import time

import pytest
import torch
import torch.distributed as dist

from dist3dgs.parallel.collectives import Communicator
from tests.unit.helpers import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, there is none here"),
]


class OneOfMany(Communicator):
    """A single rank that really calls NCCL: its exchange with itself is a copy on NCCL's own stream."""

    alone = False


@pytest.fixture
def comm(tmp_path):
    store = f"file://{tmp_path}/store"
    dist.init_process_group(
        "nccl", init_method=store, rank=0, world_size=1, device_id=torch.device("cuda", 0)
    )
    yield OneOfMany()
    dist.destroy_process_group()


def test_seconds_are_the_devices_not_the_hosts(comm):
    """2 GiB to ourselves, while the device multiplies matrices for longer."""
    message, matrix = torch.ones(2**29, device="cuda"), torch.randn(8192, 8192, device="cuda")
    for name in ("warm-up", "waited for", "hidden"):
        torch.cuda.synchronize()
        started = time.perf_counter()
        out, handle = comm.start_exchange(message, [len(message)], [len(message)], name)
        if name == "hidden":
            for _ in range(20):
                matrix = torch.nn.functional.normalize(matrix @ matrix)
        handle.wait()
        torch.cuda.synchronize()
        wall = time.perf_counter() - started
        assert torch.equal(out[::1000], message[::1000])
        meter = comm.meters["startup", name]
        assert 0 < meter.s <= wall and meter.exposed_s <= meter.s + 1e-3
        assert 4 * 2**30 / meter.s < 2e13, "more bytes per second than any memory moves: the host was timed"
    waited, hidden = comm.meters["startup", "waited for"], comm.meters["startup", "hidden"]
    assert waited.exposed_s > 0.5 * waited.s and hidden.exposed_s < 0.5 * hidden.s


def test_steps_that_are_not_sampled_are_counted_but_not_timed(comm):
    comm.stage = lambda: ("step", False)
    comm.all_reduce(torch.ones(1000, device="cuda"), name="op")
    meter = comm.meters["step", "op"]
    assert meter.calls == 1 and meter.seconds(1.0) == {"s": None, "exposed_s": None}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_shares_of_a_training(kind, tmp_path):
    """60 steps: parts and collectives are those of two sampled ones, scaled to all."""
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    run = tiny.spec("n1g2", strategy={"kind": kind}, keep="steps")
    run = run.model_copy(update={"hardware": run.hardware.model_copy(update={"device": "cuda"})})
    m = tiny.launch(run, scene, tmp_path / "run").metrics
    assert m.compute_s and m.comm_s and m.train_s
    assert 0 < m.exposed_comm_s <= m.train_s and 0 < m.compute_s <= m.train_s and m.compute_to_comm < 1e3
