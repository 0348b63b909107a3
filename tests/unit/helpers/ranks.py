"""Run a function on several ranks (gloo, one process each) without the launcher, for tests of collectives."""

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dist3dgs.config.models import RunSpec
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.digests import parameter_digest
from dist3dgs.parallel.registry import make_parallel
from dist3dgs.runs.events import EventWriter
from dist3dgs.scenes.pack import PackedScene
from dist3dgs.splats.render import get_renderer, set_threads
from dist3dgs.train.loop import Trainer
from dist3dgs.train.model import Model
from dist3dgs.train.timing import Clock


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(comm, *args)` on every rank; what the ranks returned, in rank order (tensors and plain data)."""
    if world_size == 1:
        return [function(Communicator(), *args)]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank, (world_size, _free_port(), folder, function, args), nprocs=world_size, start_method="fork"
        )
        return [torch.load(Path(folder, f"{r}.pt"), weights_only=True) for r in range(world_size)]


def left_by_a_killed_rank(function: Callable[..., Any], *args: Any, patience_s: float = 30) -> int | None:
    """Call `function(comm, *args)` on two ranks, of which rank 1 kills itself; rank 0's exit status, None: it hangs."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = mp.start_processes(
            _rank, (2, _free_port(), folder, function, args), nprocs=2, join=False, start_method="fork"
        ).processes
        ranks[1].join()
        ranks[0].join(patience_s)
        status = ranks[0].exitcode
        ranks[0].kill()
    assert ranks[1].exitcode == -signal.SIGKILL
    return status


def make_trainer(
    comm: Communicator, spec: RunSpec, scene: Path, out: Path, resume_from: Path | None = None
) -> Trainer:
    """This rank's trainer, without launcher."""
    device = torch.device("cpu")
    set_threads(1)
    events = EventWriter(out / "events.jsonl", comm.rank)
    parallel = make_parallel(spec, comm, get_renderer("cpu"), device)
    packed, clock = PackedScene.open(scene), Clock(events, device)
    return Trainer(spec, packed, out, parallel, device, events, clock, resume_from)


def train(
    comm: Communicator, spec: RunSpec, scene: Path, out: Path, resume_from: Path | None = None
) -> dict[str, Any]:
    """A whole training on this rank, without launcher: digest of its Gaussians, collectives, steps."""
    trainer = make_trainer(comm, spec, scene, out, resume_from)
    with mock.patch.object(Model, "alter", autospec=True, side_effect=Model.alter) as alter:
        assert trainer.run()
    return {
        "digest": parameter_digest(trainer.model.gaussians),
        "shards": trainer.parallel.shards,
        "resets": alter.call_count,
        "comm": [
            {"phase": phase, "op": op, "calls": m.calls, "bytes": m.bytes, "s": m.s}
            for (phase, op), m in comm.meters.items()
        ],
        **trainer.summary(),
    }


def bytes_sent(ranks: list[dict[str, Any]], phase: str, op: str = "") -> int:
    """Of all ranks that `train` answered for together, in collectives whose name has `op` in it."""
    return sum(c["bytes"] for r in ranks for c in r["comm"] if c["phase"] == phase and op in c["op"])


def _rank(
    rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    torch.save(function(Communicator(rank, world_size), *args), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
