"""All ranks hold all Gaussians; each renders its own views; gradients are summed over ranks."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..spec import Strategy
from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from ..splats.render import Renderer
from . import initial
from .base import Parallel, Rendered, RenderOptions, Rows, travelling
from .comm import Communicator
from .compress import make_exchange
from .digest import ReplicasDiffer, gather_digests, parameter_digest


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
        inputs = gaussians.activated()
        out = Rendered([], [], gaussians["means"][:0].sum())
        for camera in cameras[self.comm.rank]:
            projection = self.project(inputs, camera, sh_degree, track)
            out.views.append(self.rasterize(projection, camera, background, track))
            out.projections.append((projection, camera))
        return out

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        pending = []
        # All start at once, the largest last: while `shN` travels the optimiser works on the others.
        for name, active in travelling(gaussians, sh_degree):
            grad = gaussians[name].grad
            assert grad is not None
            target = grad if active is None else grad[:, :active]
            finish = None if self.comm.alone else self.exchange.start(name, target.contiguous())
            pending.append((name, target, finish))
        for name, target, finish in pending:
            if finish is not None:
                summed = finish()
                if summed.data_ptr() != target.data_ptr():
                    target.copy_(summed)
            yield name

    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        both = torch.stack([statistics.grad_sum, statistics.count])
        self.comm.all_reduce(both, name="all_reduce(statistics)")
        return Statistics(both[0], both[1])

    def share(self, gaussians: Gaussians) -> float:
        return 1.0 / (self.comm.world_size * gaussians.num_gaussians)

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
