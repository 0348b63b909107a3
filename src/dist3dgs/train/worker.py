"""One rank of a training run. Started by `dist3dgs launch`, or by hand:

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2 -m dist3dgs.train.worker \\
        --spec "$(dist3dgs spec builtin/replicated/n1g2/r0)" --scene data/builtin/scene.safetensors --out /tmp/run
"""

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from .. import __version__
from ..config.matrix import load_train_spec, spec_json
from ..config.models import RunSpec
from ..config.naming import Layout
from ..errors import UserError
from ..launch.world_check import Layers, layers_of, refusal
from ..parallel.collectives import Communicator
from ..parallel.registry import make_parallel
from ..parallel.rendezvous import (
    Member,
    RendezvousTimeoutError,
    WorldMismatch,
    check_members,
    device_identity,
    verify_world,
)
from ..runs.attempts import text_digest
from ..runs.events import EventWriter, events_path
from ..scenes.pack import PackedScene
from ..slurm.allocation import node_name, step
from ..splats.precision import full_precision
from ..splats.render import get_renderer, set_threads
from .fault_handling import (
    Stacks,
    die_with_parent,
    dump_flight_recorder,
    error_type,
    exit_now,
    waits_for_others,
)
from .loop import Trainer
from .timing import Clock

EXIT_STOPPED = 143  # 128 + SIGTERM: stopped on request, a checkpoint was left
#: Delay before a rank exits on a timed-out collective, s: the launcher asks the others for their stacks meanwhile.
LINGER_S = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.train.worker", description=__doc__)
    parser.add_argument("--spec", required=True, help="run spec as JSON (dist3dgs spec POINT)")
    parser.add_argument("--scene", required=True, type=Path, help="packed scene (scene.safetensors)")
    parser.add_argument("--out", required=True, type=Path, help="folder for events, checkpoints and results")
    parser.add_argument("--resume-from", type=Path, help="checkpoint to start from where OUT has none")
    parser.add_argument("--events", type=Path, help="folder of the event files (default: OUT)")
    args = parser.parse_args()
    die_with_parent()
    faulthandler.enable()
    events = EventWriter(events_path(args.events or args.out, node_name()), int(os.environ.get("RANK", "0")))
    run = Rank(events)
    try:
        return run.train(load_train_spec(args.spec), args.scene, args.out, args.resume_from)
    except Exception as e:
        run.report_error(e)
        exit_now(2 if isinstance(e, UserError) else 1)
        raise


class Rank:
    """This process's part in the run."""

    def __init__(self, events: EventWriter) -> None:
        self.events = events
        self.clock: Clock | None = None
        self.trainer: Trainer | None = None

    def train(self, spec: RunSpec, scene_path: Path, out: Path, resume_from: Path | None = None) -> int:
        """Join the other ranks and train; return the exit status."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        events = self.events
        stacks = Stacks(events.path.parent, rank, spec.hardware.timeout_s)
        layers = torchrun_layers(spec)
        check_started(spec, world, layers)
        device = pick_device(spec.hardware.device, layers)
        full_precision()
        set_threads(num_threads(spec))
        self.clock = clock = Clock(events, device, stacks.progress)
        events("start", **facts(world, device))
        with clock.enter("startup"):
            comm = join(spec, member(spec, device, rank), world, layers)
        if world > 1:
            on_gpu = device.type == "cuda"  # gloo's waits end with an exception
            waits = (lambda: waits_for_others(device)) if on_gpu else (lambda: False)
            stacks.report_hang(waits, self._report_hang, self._dump)
        with clock.enter("load"):
            scene = PackedScene.open(scene_path)
            events("scene", digest=scene.digest, num_views=scene.num_views)
        parallel = make_parallel(spec, comm, get_renderer("auto", device), device)
        self.trainer = trainer = Trainer(spec, scene, out, parallel, device, events, clock, resume_from)
        # After all imports: some, such as pycolmap's glog, replace signal handlers.
        signal.signal(signal.SIGTERM, self._request_stop)
        finished = trainer.run()
        report(trainer, events)
        if finished:
            events("end", status="ok", step=trainer.step)
        stacks.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        return 0 if finished else EXIT_STOPPED

    def report_error(self, e: Exception) -> None:
        """Write an event and a line to the log, even if the disk is full."""
        kind = error_type(e)
        text = "".join(traceback.format_exception(e))
        with contextlib.suppress(OSError):
            self.events(
                "error", type=kind, message=str(e)[:4000], traceback=text[-8000:],
                phase=self.clock.phase if self.clock else "startup",
                step=self.trainer.step if self.trainer else None,
            )  # fmt: skip
        with contextlib.suppress(OSError):
            print(
                f"error: {e}" if isinstance(e, UserError) else f"{kind}\n{text}", file=sys.stderr, flush=True
            )
        if kind == "CollectiveTimeout":
            self._dump()
            time.sleep(LINGER_S)

    def _report_hang(self, silent_s: float) -> None:
        """Report an NCCL hang like gloo's exception; called from a thread while the main one waits."""
        message = (
            f"waited {silent_s:.0f} s for other ranks in one collective or more; NCCL will abort this process"
        )
        self.events(
            "error", type="CollectiveTimeout", message=message, traceback="",
            phase=self.clock.phase if self.clock else "startup",
            step=self.trainer.step if self.trainer else None,
        )  # fmt: skip

    def _dump(self) -> None:
        """Leave this rank's last collectives in the attempt's folder."""
        step = self.trainer.step if self.trainer else None
        dump_flight_recorder(self.events.path.parent, int(os.environ.get("RANK", "0")), step)

    def _request_stop(self, number: int, frame: object) -> None:
        assert self.trainer is not None
        self.trainer.stop_requested = "SIGTERM"
        self.events("signal", signal="SIGTERM")


def facts(world: int, device: torch.device) -> dict[str, object]:
    """Return the fields of the `start` event."""
    return {
        "world_size": world,
        "host": node_name(),
        "pid": os.getpid(),
        "device": str(device) if device.type == "cpu" else device_identity(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "visible_devices": visible_devices(device),
        "threads": torch.get_num_threads(),
        "renderer": "cuda" if device.type == "cuda" else "cpu",
        "versions": {
            "dist3dgs": __version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
    }


def torchrun_layers(spec: RunSpec) -> Layers:
    """Return the launcher's table, with what torchrun and srun passed to this process."""
    layers, here = layers_of(spec), step()
    world, local = os.environ.get("WORLD_SIZE"), os.environ.get("LOCAL_WORLD_SIZE")
    on_node = f", {local} on this node" if local else ""
    layers["torchrun"] = f"{world} rank(s){on_node}" if world else "not used (no WORLD_SIZE)"
    if here.tasks > 1:
        layers["srun step"] = f"{here.tasks} tasks, this is task {here.task}"
    return layers


def check_started(spec: RunSpec, world: int, layers: Layers) -> None:
    """Raise `WorldMismatch` unless torchrun or srun started as many ranks as the layout has, joined in one world."""
    layout, here = spec.started, step()
    per_node = f"--nproc-per-node={layout.workers_per_node}"
    nodes = f"--nnodes={layout.nodes} " if layout.nodes > 1 else ""
    if here.tasks > 1 and "WORLD_SIZE" not in os.environ:
        problem = (
            f"srun started {here.tasks} tasks that know nothing of each other (WORLD_SIZE is not set): as many "
            "independent runs would write one folder; start torchrun once per node: srun --ntasks-per-node=1 "
            f"torchrun {nodes}{per_node} ..., or dist3dgs launch, which does that (--ntasks=1)"
        )
        raise WorldMismatch(refusal(problem, layers))
    if world != layout.world_size:
        problem = (
            f"layout {layout} needs {layout.world_size} ranks but {world} were started; run: torchrun "
            f"{nodes}{per_node}"
        )
        raise WorldMismatch(refusal(problem, layers))


def member(spec: RunSpec, device: torch.device, rank: int) -> Member:
    return Member(
        rank=rank,
        host=node_name(),
        device=device_identity(device),
        visible_devices=visible_devices(device),
        spec_digest=text_digest(spec_json(spec)),
        torch=torch.__version__,
    )


def visible_devices(device: torch.device) -> int:
    return torch.cuda.device_count() if device.type == "cuda" else 0


def pick_device(wanted: str, layers: Layers) -> torch.device:
    """Choose this rank's device. Raises `UserError` if CUDA is required but missing, or has no GPU for this rank."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("hardware.device is cuda but PyTorch sees no GPU; check nvidia-smi, or set it to cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        problem = (
            f"local rank {local} has no GPU: {torch.cuda.device_count()} visible; ask for a layout "
            "with as many workers per node as GPUs"
        )
        raise WorldMismatch(refusal(problem, layers))
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def num_threads(spec: RunSpec) -> int:
    """Return the CPU threads of this rank: as set, else its share of the cores this process may use."""
    cores = len(os.sched_getaffinity(0))
    return spec.hardware.threads_per_rank or max(1, cores // spec.started.workers_per_node)


def join(spec: RunSpec, me: Member, world: int, layers: Layers) -> Communicator:
    """Join the other ranks, check them against the layout, and form the process group (none for one rank).

    Raises:
        WorldMismatch: the ranks are not those of the layout.
        RendezvousTimeoutError: ranks are missing after `hardware.join_timeout_s`.
    """

    def check(members: Sequence[Member]) -> None:
        check_members(members, spec.started, allocated=Layout.parse(spec.layout), layers=layers)

    if world == 1:
        check([me])
        return Communicator()
    join_s, timeout = spec.hardware.join_timeout_s, timedelta(seconds=spec.hardware.timeout_s)
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=join_s)))
    except dist.DistError as e:
        raise RendezvousTimeoutError(
            f"rank {me.rank} found no store to join within {join_s:g} s (hardware.join_timeout_s): {e}"
        ) from None
    verify_world(store, me, world, join_s, check)
    store.set_timeout(timeout)
    backend = spec.hardware.backend
    if backend == "auto":
        backend = "gloo" if me.device == "cpu" else "nccl"
    # With NCCL small Python values still go over gloo.
    backends = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend
    dist.init_process_group(
        backends, store=dist.PrefixStore("group", store), rank=me.rank, world_size=world, timeout=timeout
    )
    return Communicator(me.rank, world, timeout=timeout)


def report(trainer: Trainer, events: EventWriter) -> None:
    """Write this rank's totals."""
    events("timing", **trainer.summary())
    for (phase, op), m in sorted(trainer.comm.meters.items()):
        seconds = m.seconds(trainer.clock.scale if phase == "step" else m.calls / max(1, m.timed))
        events("comm", phase=phase, op=op, calls=m.calls, bytes=m.bytes, **seconds)
    device = trainer.device
    peak_gpu = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    events("memory", peak_rss_gib=peak_rss_gib(), peak_gpu_gib=peak_gpu)


def peak_rss_gib() -> float | None:
    """Return the largest resident set so far, GiB. From /proc: getrusage's maximum is inherited from the parent over
    fork.
    """
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    return None


if __name__ == "__main__":
    sys.exit(main())
