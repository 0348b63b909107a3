"""All ranks hold all Gaussians; each renders its own views; gradients are summed over ranks."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from ..splats.render import Renderer
from . import initial
from .base import Parallel, Rendered, RenderOptions, View
from .comm import Communicator
from .digest import ReplicasDiffer, gather_digests, parameter_digest


class Replicated(Parallel):
    def __init__(
        self,
        comm: Communicator,
        renderer: Renderer,
        options: RenderOptions,
        *,
        device: torch.device,
        init: str = "broadcast",
    ) -> None:
        super().__init__(comm, renderer, options)
        self.device, self.init = device, init

    def distribute(self, load: Callable[[], dict[str, Tensor]]) -> Gaussians:
        start = initial.independent if self.init == "independent" else initial.broadcast
        return Gaussians(start(self.comm, load, self.device))

    def render(
        self,
        gaussians: Gaussians,
        cameras: Sequence[Sequence[Camera]],
        *,
        sh_degree: int,
        background: Tensor | None,
        track: bool,
    ) -> Rendered:
        out = Rendered([], [])
        inputs = gaussians.activated()
        for camera in cameras[self.comm.rank]:
            projection = self.renderer.project(
                **inputs,  # type: ignore[arg-type]
                viewmat=camera.viewmat,
                K=camera.K,
                width=camera.width,
                height=camera.height,
                sh_degree=sh_degree,
                near=self.options.near,
                far=self.options.far,
                antialiased=self.options.antialiased,
            )
            if track:
                projection.means2d.retain_grad()
            image = self.renderer.rasterize(
                projection,
                camera.width,
                camera.height,
                background=background,
                absgrad=track and self.options.absgrad,
            )
            out.views.append(View(image, camera))
            out.projections.append((projection, camera))
        return out

    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> None:
        if self.comm.alone:
            return
        # Higher SH bands have no gradient yet: up to 76 % of all bytes that need not travel.
        active = (sh_degree + 1) ** 2 - 1
        pending = []
        for name, parameter in gaussians.items():
            if name == "shN" and active == 0:
                continue
            if parameter.grad is None:  # this rank's views saw nothing; another's may have
                parameter.grad = torch.zeros_like(parameter)
            grad = parameter.grad
            sent = grad[:, :active].contiguous() if name == "shN" else grad
            pending.append((self.comm.start_all_reduce(sent), grad, sent))
        for handle, grad, sent in pending:
            handle.wait()
            if sent.data_ptr() != grad.data_ptr() or sent.shape != grad.shape:
                grad[:, :active] = sent

    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        if not self.comm.alone:
            both = torch.stack([statistics.grad_sum, statistics.count])
            self.comm.all_reduce(both, dist.ReduceOp.SUM, name="all_reduce(statistics)")
            statistics.grad_sum, statistics.count = both[0], both[1]
        return statistics

    def share(self, gaussians: Gaussians) -> float:
        return 1.0 / (self.comm.world_size * gaussians.num_gaussians)

    def total_gaussians(self, gaussians: Gaussians) -> int:
        return gaussians.num_gaussians

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return tensors if self.comm.rank == 0 else None

    def receive(self, tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
        return initial.broadcast(self.comm, lambda: {k: tensors[k] for k in names}, self.device)

    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        digests = gather_digests(self.comm, parameter_digest(gaussians), self.device)
        if len(set(digests)) != 1:
            raise ReplicasDiffer(digests)
        return digests
