"""All ranks hold all Gaussians; each renders its own views; gradients are summed over ranks."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..config.models import Strategy
from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from ..splats.render import Renderer
from . import initial
from .collectives import Communicator
from .compression import make_exchange
from .digests import ReplicasDiffer, gather_digests, parameter_digest
from .strategy import Parallel, Rendered, RenderOptions, Rows, largest, travelling

#: Gradients are put together up to this size: six small all-reduces take twice as long as one (gloo), and a copy of
#: large ones would cost memory. PyTorch's DistributedDataParallel has the same default.
BUCKET_BYTES = 25 * 2**20


class Replicated(Parallel):
    replicates = True

    def __init__(
        self,
        comm: Communicator,
        renderer: Renderer,
        options: RenderOptions,
        strategy: Strategy,
        device: torch.device,
    ) -> None:
        super().__init__(comm, renderer, options)
        self.device, self.init = device, strategy.init
        self.exchange = make_exchange(strategy, comm)
        self._num_gaussians = 0

    @property
    def shards(self) -> list[int]:
        return [self._num_gaussians]

    def distribute(self, load: Callable[[], Rows], shards: Sequence[int] = ()) -> Rows:
        start = initial.independent if self.init == "independent" else initial.broadcast
        rows = start(self.comm, load, self.device)
        self._num_gaussians = len(rows["means"])
        return rows

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
        out = Rendered([], [], gaussians["means"][:0].sum())
        for inputs, camera in zip(gaussians.activated_per_view(len(own)), own, strict=True):
            projection = self.project(inputs, camera, sh_degree, track)
            out.views.append(self.rasterize(projection, camera, background, track))
            out.projections.append((projection, camera))
        return out

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        targets: dict[str, Tensor] = {}
        for name, active in travelling(gaussians, sh_degree):
            grad = gaussians[name].grad
            assert grad is not None
            targets[name] = grad if active is None else grad[:, :active]
        if self.comm.alone:
            yield from targets
            return
        # All start at once, the largest last: while `shN` travels the optimiser works on the others.
        pending = [(bucket, self._start(bucket, targets)) for bucket in self._buckets(targets)]
        for bucket, finish in pending:
            summed = finish()
            for name, part in zip(bucket, _split(summed, [targets[n].shape for n in bucket]), strict=True):
                if part.data_ptr() != targets[name].data_ptr():
                    targets[name].copy_(part)
                yield name

    def _buckets(self, targets: dict[str, Tensor]) -> list[list[str]]:
        """Which parameters travel together: small ones up to `BUCKET_BYTES`, in the given order."""
        buckets: list[list[str]] = []
        room = 0
        for name, target in targets.items():
            if self.exchange.by_itself(target):
                buckets.append([name])
                room = 0
            elif target.nbytes <= room:
                buckets[-1].append(name)
                room -= target.nbytes
            else:
                buckets.append([name])
                room = BUCKET_BYTES - target.nbytes
        return buckets

    def _start(self, bucket: list[str], targets: dict[str, Tensor]) -> Callable[[], Tensor]:
        if len(bucket) == 1:
            return self.exchange.start(bucket[0], targets[bucket[0]].contiguous())
        return self.exchange.start(
            "+".join(bucket), torch.cat([targets[name].reshape(-1) for name in bucket])
        )

    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        both = torch.stack([statistics.grad_sum, statistics.count])
        self.comm.all_reduce(both, name="all_reduce(statistics)")
        return Statistics(both[0], both[1])

    def share(self, gaussians: Gaussians) -> float:
        return 1.0 / (self.comm.world_size * gaussians.num_gaussians)

    def strongest(self, pull: Tensor, wanted: Tensor, count: int) -> Tensor:
        return largest(pull, wanted, count)

    def limit(self, gaussians: Gaussians, max_gaussians: int) -> int:
        return max_gaussians

    def rebalance(self, rows: Rows) -> Rows | None:
        self._num_gaussians = len(rows["means"])
        self.exchange.forget()
        return None

    def whole(self, rows: Rows) -> Rows | None:
        return rows if self.comm.rank == 0 else None

    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        digests = gather_digests(self.comm, parameter_digest(gaussians), self.device)
        if len(set(digests)) != 1:
            raise ReplicasDiffer(digests)
        return digests

    def forget(self) -> None:
        self.exchange.forget()


def _split(summed: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """The parameters' parts of what travelled."""
    if len(shapes) == 1:
        return [summed.reshape(shapes[0])]
    parts = summed.split([shape.numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
