"""Measure images per second on 2 ranks against 1, side by side, and bytes per step against the formulae.

    python -m dist3dgs.bench.distributed --gaussians 50000 --size 540x360 --out distributed.json

Both ranks are processes of one run with one thread each. Blocks of steps alternate between one rank (the other waits
in a barrier) and two ranks with each strategy, all with the same global batch, so that whatever else happens on the
machine hits all alike; the speed-up is the median over rounds of ratios within a round. `cpu_speedup` is the same
ratio of processor seconds of the busiest rank: what two free cores would give if ranks never waited for each other.
`ceilings` are what the machine itself allows: both ranks train at the same time, each alone and on all the images,
sharing nothing but memory bandwidth, caches and clock rate (`free`), or waiting for each other after every image
(`in step`), as ranks must which have different views and one model.
"""

import argparse
import json
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..config.matrix import load_study
from ..config.models import Densification, Hardware, RunSpec, Strategy, TrainSettings
from ..errors import UserError
from ..files import write_json
from ..parallel.collectives import Communicator
from ..parallel.registry import make_parallel
from ..runs.events import EventWriter
from ..scenes.pack import PackedScene
from ..splats.render import get_renderer, set_threads
from ..train.loop import Trainer
from ..train.timing import Clock
from .cloud import write_cloud
from .machine import describe_machine

WORLD = 2
ALONE, FREE, IN_STEP = "one rank", "free", "in step"
#: Names from config/strategies.yaml; their own training settings do not count here.
STRATEGIES = ("replicated", "touched", "sharded", "local", "bf16", "powersgd")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.bench.distributed", description=__doc__)
    parser.add_argument("--scene", type=Path, help="packed scene (default: a cloud of --gaussians)")
    parser.add_argument("--gaussians", type=int, default=50_000)
    parser.add_argument("--size", default="540x360", help="pixels of the cloud's photographs")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="of the config's, by comma")
    parser.add_argument("--config", type=Path, default=Path("config"), help="folder of strategies.yaml")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--block", type=int, default=6, help="steps per block")
    parser.add_argument("--sh-degree", type=int, default=3)
    parser.add_argument(
        "--init-opacity", type=float, default=0.1, help="the more opaque, the fewer Gaussians a view touches"
    )
    parser.add_argument("--out", type=Path, help="JSON file (default: print)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scene = args.scene
        if scene is None:
            width, height = map(int, args.size.split("x"))
            scene = write_cloud(
                Path(folder, "cloud.safetensors"),
                num_points=args.gaussians,
                num_views=24,
                width=width,
                height=height,
            )
        try:
            library = load_study(args.config)
            chosen = {name: library.strategy(name) for name in args.strategies.split(",")}
        except UserError as e:
            parser.error(str(e))
        settings = {"sh_degree": args.sh_degree, "init_opacity": args.init_opacity}
        job = (str(scene), chosen, args.rounds, args.block, settings, folder)
        mp.start_processes(_rank, (job,), nprocs=WORLD, start_method="spawn")
        result = json.loads(Path(folder, "result.json").read_text())
    result["command"] = "python -m dist3dgs.bench.distributed " + " ".join(
        f"--{k.replace('_', '-')} {v}" for k, v in vars(args).items() if v is not None and k != "out"
    )
    if args.out:
        write_json(args.out, result)
    print(json.dumps(result, indent=1))


def _rank(rank: int, job: tuple[str, dict[str, Strategy], int, int, dict[str, Any], str]) -> None:
    scene_path, chosen, rounds, block, settings, folder = job
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("BENCH_PORT", "29591")}
    set_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300))
    scene = PackedScene.open(Path(scene_path))
    runs = {ALONE: _trainer(scene, Communicator(), Strategy(), settings, Path(folder, f"one{rank}"))}
    for name, strategy in chosen.items():
        comm = Communicator(rank, WORLD)
        runs[name] = _trainer(scene, comm, strategy, settings, Path(folder, f"{name}{rank}"))
    one_image = _trainer(scene, Communicator(), Strategy(), settings, Path(folder, f"image{rank}"), batch=1)
    runs |= {FREE: runs[ALONE], IN_STEP: one_image}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        # Who comes after another in whose turn a rank had nothing to do would always begin with cold caches.
        first = number % len(runs)
        for name, run in [*runs.items()][first:] + [*runs.items()][:first]:
            dist.barrier()
            started, cpu_started = time.perf_counter(), time.process_time()
            # The same views in every round and by every strategy: some are dearer than others.
            for step in range(number * block, (number + 1) * block):
                if name == IN_STEP:
                    run.one_step(WORLD * step + rank + 1)
                    dist.barrier()
                elif name != ALONE or rank == 0:
                    run.one_step(step + 1)
            used = torch.tensor(time.process_time() - cpu_started, dtype=torch.float64)
            dist.all_reduce(used, op=dist.ReduceOp.MAX)
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / block)
                cpu[name].append(float(used) / block)
    if rank == 0:
        write_json(Path(folder, "result.json"), _result(runs, seconds, cpu, scene, settings))
    dist.destroy_process_group()


def _trainer(
    scene: PackedScene,
    comm: Communicator,
    strategy: Strategy,
    settings: dict[str, Any],
    out: Path,
    batch: int = WORLD,
) -> Trainer:
    train = TrainSettings(
        steps=1_000_000, keep="steps", global_batch=batch, sh_every=1, lpips=False, **settings,
        tensorboard=False, densify=Densification(start_step=10**6, stop_step=10**6),
    )  # fmt: skip
    spec = RunSpec(
        scene="cloud", strategy="bench", layout=f"n1g{comm.world_size}", repeat=0, seed=1, parallel=strategy,
        train=train, hardware=Hardware(device="cpu"),
    )  # fmt: skip
    device = torch.device("cpu")
    events = EventWriter(out / "events.jsonl", comm.rank)
    parallel = make_parallel(spec, comm, get_renderer("cpu"), device)
    trainer = Trainer(spec, scene, out, parallel, device, events, Clock(events, device))
    trainer.start()
    comm.meters.clear()
    return trainer


def _result(
    runs: dict[str, Trainer],
    seconds: dict[str, list[float]],
    cpu: dict[str, list[float]],
    scene: PackedScene,
    settings: dict[str, Any],
) -> dict[str, Any]:
    one = np.asarray(seconds[ALONE])
    out: dict[str, Any] = {
        "gaussians": runs[ALONE].model.gaussians.num_gaussians,
        "size": [int(v) for v in scene.sizes[0]],
        **settings,
        "global_batch": WORLD,
        "machine": describe_machine(),
        "ceilings": {
            FREE: float(np.median(WORLD * one / np.asarray(seconds[FREE]))),
            IN_STEP: float(np.median(one / np.asarray(seconds[IN_STEP]))),
        },
        "strategies": {},
    }
    for name, run in runs.items():
        if name in (FREE, IN_STEP):
            continue
        each = np.asarray(seconds[name])
        steps = len(run.clock.step_s)
        out["strategies"][name] = {
            "step_s": float(np.median(each)),
            "images_per_s": float(WORLD / np.median(each)),
            "speedup": float(np.median(one / each)),
            "cpu_s_per_step": float(np.median(cpu[name])),
            "cpu_speedup": float(np.median(np.asarray(cpu[ALONE]) / np.asarray(cpu[name]))),
            "speedup_p10_p90": [float(v) for v in np.percentile(one / each, [10, 90])],
            "parts_ms": {k: 1e3 * v / steps for k, v in run.clock.parts_s.items()},
            "collectives": {
                op: {
                    "bytes_per_step": m.bytes / steps,
                    "ms_per_step": 1e3 * m.s / steps,
                    "exposed_ms": 1e3 * m.exposed_s / steps,
                }
                for (phase, op), m in run.comm.meters.items()
                if phase == "step"
            },
        }
    return out


if __name__ == "__main__":
    main()
