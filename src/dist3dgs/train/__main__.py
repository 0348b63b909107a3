"""One rank of a training run. Started by `dist3dgs launch`, or by hand:

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2 -m dist3dgs.train \\
        --spec "$(dist3dgs spec builtin/replicated/n1g2/r0)" --scene data/builtin/scene.safetensors --out /tmp/run
"""

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import __version__
from ..errors import UserError
from ..events import EventWriter
from ..matrix import load_spec
from ..names import Layout
from ..parallel.comm import Communicator
from ..parallel.make import make_parallel
from ..scenes.pack import PackedScene
from ..slurm.allocation import node_name
from ..spec import RunSpec
from ..splats.render import get_renderer, set_threads
from .clock import Clock
from .trainer import Trainer

EXIT_STOPPED = 143  # 128 + SIGTERM: stopped on request, a checkpoint was left


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.train", description=__doc__)
    parser.add_argument("--spec", required=True, help="run spec as JSON (dist3dgs spec POINT)")
    parser.add_argument("--scene", required=True, type=Path, help="packed scene (scene.safetensors)")
    parser.add_argument("--out", required=True, type=Path, help="folder for events, checkpoints and results")
    parser.add_argument("--events", type=Path, help="event file (default: OUT/events.jsonl)")
    args = parser.parse_args()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    rank = int(os.environ.get("RANK", "0"))
    events = EventWriter(args.events or args.out / "events.jsonl", rank)
    clock_holder: list[Any] = []
    try:
        return train(load_spec(args.spec), args.scene, args.out, events, clock_holder)
    except Exception as e:
        clock = clock_holder[0].clock if clock_holder and isinstance(clock_holder[0], Trainer) else None
        phase = clock.phase if clock else "startup"
        step = clock_holder[0].step if clock else None
        text = traceback.format_exc()
        events(
            "error",
            type=type(e).__name__,
            message=str(e)[:4000],
            traceback=text[-8000:],
            phase=phase,
            step=step,
        )
        print(f"error: {e}" if isinstance(e, UserError) else text, file=sys.stderr, flush=True)
        # Not sys.exit: destructors of a broken process group may wait for ranks that are gone.
        os._exit(2 if isinstance(e, UserError) else 1)


def train(spec: RunSpec, scene_path: Path, out: Path, events: EventWriter, holder: list[Any]) -> int:
    """Join the other ranks and train; the exit status."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    expected = Layout.parse(spec.layout).world_size
    if world != expected:
        raise UserError(
            f"layout {spec.layout} needs {expected} ranks but {world} were started; "
            f"run: torchrun --nproc-per-node={Layout.parse(spec.layout).workers_per_node}"
        )
    device = pick_device(spec.hardware.device)
    set_threads(num_threads(spec))
    clock = Clock(events, device)
    events(
        "start",
        world_size=world,
        host=node_name(),
        pid=os.getpid(),
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        renderer="cuda" if device.type == "cuda" else "cpu",
        versions={"dist3dgs": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    )
    with clock.enter("startup"):
        comm = join(spec, device, rank, world)
    with clock.enter("load"):
        scene = PackedScene.open(scene_path)
        events("scene", digest=scene.digest, num_views=scene.num_views)
    parallel = make_parallel(spec, comm, get_renderer("auto", device), device)
    trainer = Trainer(spec, scene, out, parallel, device, events, clock)
    holder.append(trainer)
    # After every import: pycolmap's glog, for one, replaces handlers it finds.
    signal.signal(signal.SIGTERM, lambda number, frame: _request_stop(trainer, events))
    finished = trainer.run()
    report(trainer, events)
    if finished:
        events("end", status="ok", step=trainer.step)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0 if finished else EXIT_STOPPED


def pick_device(wanted: str) -> torch.device:
    """This rank's device. Raises `UserError` where CUDA was asked for and is not there."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("hardware.device is cuda but PyTorch sees no GPU; check nvidia-smi, or set it to cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local} has no GPU of its own: {torch.cuda.device_count()} visible; ask for a layout "
            "with as many workers per node as GPUs"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def num_threads(spec: RunSpec) -> int:
    """CPU threads of this rank: as set, else the cores this process may use shared out among the node's ranks."""
    cores = len(os.sched_getaffinity(0))
    return spec.hardware.threads_per_rank or max(1, cores // Layout.parse(spec.layout).workers_per_node)


def join(spec: RunSpec, device: torch.device, rank: int, world: int) -> Communicator:
    """Form the process group (none for a single rank)."""
    if world > 1:
        backend = spec.hardware.backend
        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        options: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
        dist.init_process_group(backend, timeout=timedelta(seconds=spec.hardware.timeout_s), **options)
    return Communicator(rank, world)


def report(trainer: Trainer, events: EventWriter) -> None:
    """Write this rank's totals."""
    events("timing", **trainer.summary())
    for op, m in sorted(trainer.comm.meters.items()):
        events("comm", op=op, calls=m.calls, bytes=m.bytes, s=m.s, exposed_s=m.exposed_s)
    device = trainer.device
    peak_gpu = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    events("memory", peak_rss_gib=peak_rss_gib(), peak_gpu_gib=peak_gpu)


def peak_rss_gib() -> float | None:
    """Largest resident set so far. From /proc, as getrusage's maximum is inherited from the parent over fork."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    return None


def _request_stop(trainer: Trainer, events: EventWriter) -> None:
    trainer.stop_requested = "SIGTERM"
    events("signal", signal="SIGTERM")


if __name__ == "__main__":
    sys.exit(main())
