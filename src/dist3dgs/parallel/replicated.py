"""Data parallelism: all ranks hold all Gaussians, each renders its views, gradients are summed over ranks."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import NAMES, Gaussians
from .collectives import Communicator
from .digests import ReplicasDiffer, gather_digests, parameter_digest
from .gradients import GradientSum
from .row_parts import RowParts
from .shared_memory import shared_memory
from .strategy import Parallel, Rendered, Rows, Setup, active_coefficients, largest

#: Names of Adam's moments among the rows of a model begin with this.
MOMENTS_PREFIX = "adam/"


class Replicated(Parallel):
    replicates = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.init = setup.strategy.init
        self.strategy = setup.strategy
        self.gradients = GradientSum(setup.comm, setup.strategy)
        self._num_gaussians = 0

    def _part_rows(self) -> None:
        """Sum gradients in parts, and update parts of the parameters, where the settings say so. Collective."""
        s = self.strategy
        exact = s.compression == "none" and s.gradient_rows != "touched"
        if s.kind != "replicated" or self.comm.alone or not exact:
            return
        memory = shared_memory(self.comm, self.device, s.shared_memory)
        shared = memory is not None and memory.reserve(1)
        if not shared and s.optimizer_state != "split":
            return
        parts = RowParts(self.comm, memory if shared else None)
        self.parts = None if s.optimizer_state == "whole" else parts
        self.gradients = GradientSum(self.comm, s, parts, whole=self.parts is None)

    @property
    def shards(self) -> list[int]:
        return [self._num_gaussians]

    def distribute(self, load: Callable[[], Rows], shards: Sequence[int] = ()) -> Rows:
        self._part_rows()
        start = load_independently if self.init == "independent" else broadcast
        rows = start(self.comm, load, self.device)
        self._num_gaussians = n = len(rows["means"])
        if self.parts is None:
            return rows
        own = self.parts.own(n)
        return {k: t[own].clone() if k.startswith(MOMENTS_PREFIX) else t for k, t in rows.items()}

    def render(
        self,
        gaussians: Gaussians,
        cameras: Sequence[Sequence[Camera]],
        *,
        sh_degree: int,
        background: Tensor | None,
        track: bool,
    ) -> Rendered:
        own = cameras[self.comm.rank]
        projections = self.by_camera(*self.project_every(gaussians, own, sh_degree, track), track)
        pairs = list(zip(projections, own, strict=True))
        views = [self.rasterize(projection, camera, background, track) for projection, camera in pairs]
        return Rendered(views, pairs, gaussians["means"][:0].sum())

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        yield from self.gradients.reduce(gaussians, sh_degree)

    def share_updates(self, gaussians: Gaussians, sh_degree: int) -> None:
        if self.parts is None:
            return
        active = active_coefficients(sh_degree)
        shared = [t[:, :active] if name == "shN" else t for name, t in gaussians.items()]
        self.parts.all_gather([t.detach() for t in shared if t.numel()], "all_gather(parameters)")

    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        return sum_statistics(self.comm, statistics)

    def global_topk(self, pull: Tensor, wanted: Tensor, count: int) -> Tensor:
        return largest(pull, wanted, count)

    def limit(self, gaussians: Gaussians, max_gaussians: int) -> int:
        return max_gaussians

    def rebalance(self, rows: Rows) -> Rows | None:
        self._num_gaussians = len(rows["means"])
        self.gradients.reset_error_feedback()
        return None

    def whole(self, rows: Rows) -> Rows | None:
        whole, n = {}, self._num_gaussians
        for name, t in rows.items():
            if self.parts is not None and name.startswith(MOMENTS_PREFIX):
                t = self.parts.whole(t, n, "all_gather(moments)")
            if self.comm.rank == 0:
                whole[name] = t
        return whole if self.comm.rank == 0 else None

    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        digests = gather_digests(self.comm, parameter_digest(gaussians), self.device)
        if len(set(digests)) != 1:
            raise ReplicasDiffer(digests)
        return digests

    def reset_error_feedback(self) -> None:
        self.gradients.reset_error_feedback()


def sum_statistics(comm: Communicator, statistics: Statistics) -> Statistics:
    """Sum statistics, int64 [N] each, over ranks that hold the same Gaussians. Collective."""
    both = torch.stack([statistics.grad_sum, statistics.count])
    comm.all_reduce(both, name="all_reduce(statistics)")
    return Statistics(both[0], both[1])


def broadcast(
    comm: Communicator, load: Callable[[], dict[str, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """Load on rank 0 and broadcast contiguous tensors of the same shapes, dtypes and bits to all ranks. Collective.

    Args:
        comm: the ranks.
        load: reads the whole model's tensors by name, [N, ...] each, of any dtype; called on rank 0 alone.
        device: of the result.
    """
    tensors = {k: t.to(device).contiguous() for k, t in load().items()} if comm.rank == 0 else {}
    if comm.alone:
        return tensors
    shapes = comm.gather_objects({k: (tuple(t.shape), t.dtype) for k, t in tensors.items()})[0]
    for name, (shape, dtype) in shapes.items():
        if comm.rank != 0:
            tensors[name] = torch.empty(shape, dtype=dtype, device=device)
        comm.broadcast(tensors[name])
    return tensors


def load_independently(
    comm: Communicator, load: Callable[[], dict[str, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """Load on every rank, column-major on the odd ones, and let PyTorch's DDP compare them: the historic crash.

    DistributedDataParallel compares every rank's parameter sizes and strides with rank 0's when it is built. A rank
    that reads a transposed array of the same values fails it: `params[1] ... appears not to match strides of the same
    param in process 0`. The memory format causes this, not the order of the points.

    Args:
        comm: the ranks.
        load: reads the whole model's float32 tensors by name, [N, ...] each.
        device: of the result.

    Raises:
        RuntimeError: from DDP, on two ranks or more.
    """
    tensors = {k: t.to(device) for k, t in load().items()}
    if comm.rank % 2:
        # What a reader gives that stacks three columns and transposes: the same values, with strides (1, N).
        tensors["scales"] = tensors["scales"].t().contiguous().t()
    if not comm.alone:
        module = torch.nn.Module()
        for name in NAMES:
            module.register_parameter(name, torch.nn.Parameter(tensors[name]))
        DistributedDataParallel(module)
    return tensors
