"""Measure exchanges between ranks on this machine's processor: numbers for a machine file of `dist3dgs predict`.

    python -m dist3dgs.bench.exchange --ranks 2,4 --mib 0,2,8,32

Every rank computes for some milliseconds, then all exchange; the same work on one rank alone is taken off, as often as
ranks take turns on a core. `shared` is a sum in parts through shared memory (parallel/row_parts.py), `gloo` an
all-reduce of the process group, both of so many MiB; with 0 MiB ranks only meet. Medians over all rounds; rounds of
different exchanges alternate. What ranks wait because the machine does not run all of them at one speed is in it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..files import write_json
from ..parallel.collectives import Communicator
from ..parallel.row_parts import RowParts
from ..parallel.shared_memory import SharedMemory
from ..splats.render import set_threads
from .machine import describe_machine

_WIDTH = 59


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.bench.exchange", description=__doc__)
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks, by comma")
    parser.add_argument("--mib", default="0,2,8,32", help="sizes of what is summed, by comma")
    parser.add_argument("--work-ms", type=float, default=20.0, help="computing before each exchange, about")
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    sizes = [float(s) for s in args.mib.split(",")]
    found: dict[str, Any] = {"machine": describe_machine(), "ms": {}}
    for ranks in map(int, args.ranks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            job = (ranks, sizes, args.work_ms, args.rounds, folder)
            mp.start_processes(_rank, (job,), nprocs=ranks, start_method="spawn")
            found["ms"][f"{ranks} ranks"] = json.loads(Path(folder, "result.json").read_text())
    print(json.dumps(found, indent=1))


def _rank(rank: int, job: tuple[int, list[float], float, int, str]) -> None:
    ranks, sizes, work_ms, rounds, folder = job
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("BENCH_PORT", "29592")}
    set_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
    comm = Communicator(rank, ranks)
    parts = RowParts(comm, SharedMemory(comm))
    factors = torch.rand(96, 96), torch.rand(96, 96)
    repeats = _repeats(factors, work_ms, comm)

    def work() -> None:
        for _ in range(repeats):
            torch.mm(*factors)

    def add(t: torch.Tensor) -> None:
        parts.reduce_scatter([t])
        parts.all_gather([t])

    kinds: dict[str, Callable[[], object]] = {}
    for mib in sizes:
        t = torch.zeros(max(1, round(mib * 2**20 / 4 / _WIDTH)), _WIDTH)
        if mib == 0:
            kinds["meeting"] = comm.meet
            continue
        kinds[f"shared, {mib:g} MiB"] = partial(add, t)
        kinds[f"gloo, {mib:g} MiB"] = partial(dist.all_reduce, t)
    took: dict[str, list[float]] = {name: [] for name in ("alone", *kinds)}
    for number in range(rounds + 2):
        started = time.perf_counter()
        if rank == 0:
            work()
        if number >= 2:  # the first rounds warm up
            took["alone"].append(time.perf_counter() - started)
        dist.barrier()
        for name, exchange in kinds.items():
            # Two in a row, of which the second counts: it begins when the ranks leave the first, as in a training.
            for _again in range(2):
                started = time.perf_counter()
                work()
                exchange()
            if number >= 2:
                took[name].append(time.perf_counter() - started)
    if rank == 0:
        alone = statistics.median(took.pop("alone"))
        turns = max(1.0, ranks / (os.cpu_count() or 1))
        result = {name: round(1e3 * (statistics.median(s) - turns * alone), 2) for name, s in took.items()}
        write_json(Path(folder, "result.json"), {"work": round(1e3 * alone, 2), **result})
    dist.destroy_process_group()


def _repeats(factors: tuple[torch.Tensor, torch.Tensor], work_ms: float, comm: Communicator) -> int:
    """Agree on how many products take about so long on one rank alone. Collective."""
    count, seconds = 1000, 0.0
    if comm.rank == 0:
        for _ in range(5):  # the first ones warm up
            started = time.process_time()
            for _ in range(count):
                torch.mm(*factors)
            seconds = time.process_time() - started
    dist.barrier()
    return int(comm.gather_objects(round(count * work_ms / 1e3 / max(seconds, 1e-6)))[0])


if __name__ == "__main__":
    main()
