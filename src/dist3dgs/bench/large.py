"""Train a model that is too large for one rank on several, and measure the memory of each rank.

    python -m dist3dgs.bench.large --gaussians 5000000 --ranks 4 --budget 1500000

Every rank is a process of this machine (gloo). A whole run of a few steps: initial Gaussians from random points,
distribution, steps, evaluation, checkpoint and export. Photographs are noise: only memory is measured. The peak
resident memory of each part (start, steps, end) is compared with the predictor's memory model.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..config.models import Densification, Hardware, RunSpec, Strategy, TrainSettings
from ..config.naming import Layout
from ..errors import UserError
from ..files import write_json
from ..parallel.collectives import Communicator
from ..parallel.registry import make_parallel
from ..predict.collectives import FORWARD_BYTES
from ..predict.machine import load_machine
from ..predict.model import predictor
from ..predict.workload import workload_of
from ..runs.events import EventWriter
from ..scenes.pack import PackedScene, scene_extent, write_packed
from ..splats.render import get_renderer, set_threads
from ..train.loop import Trainer
from ..train.timing import Clock
from .cloud import intrinsics, ring_of_cameras
from .machine import describe_machine


class _Measured(Trainer):
    """A training that notes the peak memory of its parts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peaks_gib: dict[str, float] = {}
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def note(self, part: str) -> None:
        """Note peak memory and time since the last note, and begin anew."""
        self.peaks_gib[part] = _status_kib("VmHWM") / 2**20
        self.seconds[part] = time.perf_counter() - self.began
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
        self.began = time.perf_counter()

    def start(self) -> None:
        self.note("import")
        super().start()
        self.note("start")

    def one_step(self, step: int) -> None:
        super().one_step(step)
        if step == self.schedule.num_steps:
            self.note("steps")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.bench.large", description=__doc__)
    parser.add_argument("--gaussians", type=int, default=5_000_000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--budget", type=int, help="hardware.max_gaussians_per_rank")
    parser.add_argument("--strategy", default="sharded", help="kind")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", default="192x128", help="pixels of the photographs")
    parser.add_argument("--out", type=Path, help="JSON file (default: print)")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    train = TrainSettings(
        steps=args.steps, keep="steps", batch_per_rank=1, sh_every=1, lpips=False, tensorboard=False,
        densify=Densification(kind="none", max_gaussians=args.gaussians),
    )  # fmt: skip
    spec = RunSpec(
        scene="large", strategy=args.strategy, layout=f"n1g{args.ranks}", repeat=0, seed=1,
        parallel=Strategy(kind=args.strategy), train=train,
        hardware=Hardware(device="cpu", max_gaussians_per_rank=args.budget),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scene = _write_scene(Path(folder, "scene.safetensors"), args.gaussians, 4 * args.ranks, width, height)
        mp.start_processes(_rank, (spec, scene, Path(folder)), nprocs=args.ranks, start_method="spawn")
        ranks = [json.loads(Path(folder, f"{r}.json").read_text()) for r in range(args.ranks)]
    layout = Layout.parse(spec.layout)
    workload = workload_of(train, spec.parallel, layout, (width, height))
    if seen := [rank["visible"] for rank in ranks if "visible" in rank]:
        workload = replace(workload, visible=float(np.mean(seen)))
    predicted = predictor(load_machine("cpu")).memory_gb(workload, layout)
    result = {
        "gaussians": args.gaussians,
        "size_px": [width, height],
        "steps": args.steps,
        "strategy": args.strategy,
        "predicted_gib": [v * 1e9 / 2**30 for v in (predicted.value, predicted.low, predicted.high)],
        "ranks": ranks,
        "machine": describe_machine(),
    }
    if args.out:
        write_json(args.out, result)
    print(json.dumps(result, indent=1))


def _write_scene(path: Path, num_points: int, num_views: int, width: int, height: int) -> Path:
    rng = np.random.default_rng(0)
    viewmats = ring_of_cameras(num_views)
    write_packed(
        path, name="large", view_names=[f"{i:03}.jpg" for i in range(num_views)],
        images=[rng.integers(0, 255, (height, width, 3)).astype(np.uint8) for _ in range(num_views)],
        is_test=np.arange(num_views) % 8 == 0, sizes=np.array([[width, height]] * num_views, np.int32),
        viewmats=viewmats, Ks=intrinsics(num_views, width, height),
        points=(rng.normal(size=(num_points, 3)) * 0.5).astype(np.float32),
        colors=rng.integers(0, 255, (num_points, 3)).astype(np.uint8), extent=scene_extent(viewmats),
        normalisation=np.eye(4),
    )  # fmt: skip
    return path


def _rank(rank: int, spec: RunSpec, scene_path: Path, folder: Path) -> None:
    world = spec.started.world_size
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("BENCH_PORT", "29592")}
    set_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=600))
    device, out = torch.device("cpu"), folder / "run"
    events = EventWriter(out / f"events-{rank}.jsonl", rank)
    parallel = make_parallel(spec, Communicator(rank, world), get_renderer("cpu"), device)
    clock = Clock(events, device)
    trainer = _Measured(spec, PackedScene.open(scene_path), out, parallel, device, events, clock)
    found: dict[str, Any] = {}
    try:
        trainer.run()
        trainer.note("end")
        found = {
            "gaussians": parallel.shards[rank],
            "peaks_gib": trainer.peaks_gib,
            "seconds": trainer.seconds,
        }
        sent = parallel.comm.meters["step", "all_to_all(projections)"].bytes
        if world > 1 and sent:  # the share of this rank's Gaussians that a camera of another rank sees
            found["visible"] = sent / (FORWARD_BYTES * found["gaussians"] * (world - 1) * spec.num_steps)
        found["step_s"] = [round(s, 3) for s in clock.step_s]
    except UserError as e:
        found = {"refused": str(e)}
    write_json(folder / f"{rank}.json", found)
    dist.destroy_process_group()


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise UserError(f"/proc/self/status has no {field}: this measurement needs Linux")


if __name__ == "__main__":
    main()
