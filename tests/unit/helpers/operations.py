"""Operations of one training step on the CUDA path outside of gsplat's extension, and its waits for the host.

    python -m tests.unit.helpers.operations                                # a table of all cases
    TRITON_INTERPRET=1 python -m tests.unit.helpers.operations --triton    # with the Triton kernels

Each operation is at least one kernel launch on a GPU (fused Adam: one); views, which launch none, are left out.
"""

import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist3dgs.bench.cloud import write_cloud
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.registry import make_parallel
from dist3dgs.runs.events import EventWriter
from dist3dgs.scenes.pack import PackedScene
from dist3dgs.splats import loss
from dist3dgs.splats.host_copy import HostCopy
from dist3dgs.splats.render import cuda, get_renderer, set_threads
from dist3dgs.train import loop
from dist3dgs.train.timing import Clock
from tests.unit.helpers import gsplat_standin, tiny

#: Name -> settings of the strategy, of densification and of the training.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}, {}),
    "absgrad": ({}, {"absgrad": True}, {}),
    "mcmc": ({}, {"kind": "mcmc"}, {}),
    "sharded": ({"kind": "sharded"}, {}, {}),
    "4 views": ({}, {}, {"batch_per_rank": 4}),
    "sharded, 4 views": ({"kind": "sharded"}, {}, {"batch_per_rank": 4}),
    "selective": ({}, {"kind": "budget"}, {"optimizer": "selective"}),
}
#: The host waits for the device in these: their result, or its size, is needed to go on.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "bincount"}
#: No kernel: other views of the same memory, or memory alone.
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand",
    "lift_fresh", "new_empty", "new_empty_strided", "permute", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unsafe_split", "unsqueeze", "view",
}  # fmt: skip


class Kernel:
    """A Triton kernel that counts itself once where it is launched, and not what its interpreter does."""

    running = False

    def __init__(self, kernel: Any, name: str) -> None:
        self.kernel, self.name = kernel, name

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            if Operations.active is not None:
                Operations.active.launches[self.name] += 1
            Kernel.running = True
            try:
                self.kernel[grid](*args, **kwargs)
            finally:
                Kernel.running = False

        return launch


class Operations(TorchDispatchMode):
    """Counts what is dispatched while it is active, in all but the extension and Triton's interpreter."""

    active: "Operations | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not gsplat_standin.is_inside() and not Kernel.running:
            if name in WAITS:
                self.waits[name] += 1
            elif name not in VIEWS:
                self.launches[name] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def transfers(self) -> Iterator[None]:
        """Also count copies to the host, which between CPU tensors are not dispatched.

        A copy that was begun before the extension, which waits, was last called has arrived: reading it is no wait.
        """
        begun: WeakKeyDictionary[HostCopy, int] = WeakKeyDictionary()
        begin, read = HostCopy.__init__, HostCopy.read

        def note(copy: HostCopy, tensor: torch.Tensor) -> None:
            begin(copy, tensor)
            begun[copy] = len(gsplat_standin.calls)

        def arrived(copy: HostCopy) -> list[float]:
            if begun.get(copy, -1) == len(gsplat_standin.calls):
                self.waits["HostCopy.read"] += 1
            with gsplat_standin.extension_call("read"):
                return read(copy)

        def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                # Not in the thread that writes checkpoints: its tensors are on the host.
                inside = gsplat_standin.is_inside() or Kernel.running
                if not inside and threading.current_thread() is threading.main_thread():
                    self.waits[name] += 1
                return original(*args, **kwargs)

            return call

        with ExitStack() as stack:
            for name in ("cpu", "numpy", "tolist"):
                method = counted(name, getattr(torch.Tensor, name))
                stack.enter_context(mock.patch.object(torch.Tensor, name, method))
            stack.enter_context(mock.patch.object(Operations, "active", self))
            stack.enter_context(mock.patch.object(HostCopy, "__init__", note))
            stack.enter_context(mock.patch.object(HostCopy, "read", arrived))
            yield


@contextmanager
def _kernels(triton: bool) -> Iterator[None]:
    """Compute loss and colours as on a GPU with Triton, whose interpreter must be on, or without."""
    with ExitStack() as stack:
        if not triton:
            stack.enter_context(mock.patch.object(loop, "l1_ssim_loss", loss.TorchLoss.apply))
        else:
            from dist3dgs.splats import harmonics_triton, loss_triton

            for module in (harmonics_triton, loss_triton):
                for name in [name for name in vars(module) if name.endswith("_kernel")]:
                    kernel = Kernel(getattr(module, name), name)
                    stack.enter_context(mock.patch.object(module, name, kernel))
            stack.enter_context(mock.patch.object(loop, "l1_ssim_loss", loss_triton.TritonLoss.apply))
            stack.enter_context(mock.patch.object(cuda, "harmonics_kernels", lambda means: harmonics_triton))
        yield


@contextmanager
def cuda_trainer(case: str, triton: bool = False) -> Iterator[loop.Trainer]:
    """A trainer whose renderer is `cuda` over the stand-in, and whose loss is that of a GPU, on CPU tensors."""
    strategy, densify, train = CASES[case]
    gsplat_standin.install()
    set_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = write_cloud(Path(folder, "scene.safetensors"), num_points=60, num_views=4, width=32, height=24)
        spec = tiny.spec(
            strategy=strategy, steps=40, sh_every=1, log_every=20,
            densify={"start_step": 10_000, "stop_step": 20_000, "reset_every": 1_000, **densify},
            **train,
        )  # fmt: skip
        device, events = torch.device("cpu"), EventWriter(Path(folder, "events.jsonl"), 0)
        parallel = make_parallel(spec, Communicator(), get_renderer("cuda"), device)
        trainer = loop.Trainer(
            spec, PackedScene.open(path), Path(folder), parallel, device, events, Clock(events, device)
        )
        with _kernels(triton):
            trainer.start()
            # As on a GPU, after the first steps.
            trainer.defers, trainer.poll.slow, trainer.model.optimizer.by_mask = True, False, True
            yield trainer


def count(case: str, triton: bool = False) -> Operations:
    """Operations of the 5th step: all degrees of the harmonics are in use, moments exist, cameras are cached."""
    with cuda_trainer(case, triton) as trainer:
        for step in range(1, 5):
            trainer.one_step(step)
        with Operations() as operations, operations.transfers():
            trainer.one_step(5)
    return operations


def main() -> None:
    for case in CASES:
        operations = count(case, triton="--triton" in sys.argv)
        print(f"{case}: {operations.launches.total()} operations, {operations.waits.total()} waits")
        print("   ", ", ".join(f"{name} {n}" for name, n in operations.launches.most_common()))


if __name__ == "__main__":
    main()
