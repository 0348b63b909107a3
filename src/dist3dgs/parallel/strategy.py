"""What a parallel strategy decides: who holds which Gaussians, and what travels in a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from ..splats.render import Image, Projection, Renderer, RenderSettings
from .collectives import Communicator

#: Tensors by name, all with one row per Gaussian: parameters, Adam's moments, statistics.
Rows = dict[str, Tensor]


@dataclass
class View:
    """What a rank gets back for one of its cameras."""

    image: Image
    camera: Camera


@dataclass
class Rendered:
    """One step's forward pass on one rank."""

    views: list[View]
    """The cameras this rank was given, rendered."""
    projections: list[tuple[Projection, Camera]]
    """Of the Gaussians this rank holds, into every camera that saw them: after the backward pass their means2d.grad is
    what densification looks at."""
    anchor: Tensor
    """0-dim zero to add to the rank's loss: through it every rank takes part in the backward pass and its exchanges,
    even one whose pictures depend on no Gaussian."""


class Parallel(ABC):
    """One strategy on one rank. The training loop calls these in the order they stand here."""

    #: Whether every rank holds every Gaussian. If so, each counts only its own views in its statistics, and all must
    #: draw the same random numbers.
    replicates: bool

    def __init__(self, comm: Communicator, renderer: Renderer, settings: RenderSettings) -> None:
        self.comm, self.renderer, self.settings = comm, renderer, settings

    @property
    @abstractmethod
    def shards(self) -> list[int]:
        """Rows per rank as they are now; a checkpoint keeps them, for the same number of ranks to take up again."""

    @property
    def stream(self) -> int:
        """Which stream of random numbers decides about this rank's Gaussians."""
        return 0 if self.replicates else self.comm.rank

    @abstractmethod
    def distribute(self, load: Callable[[], Rows], shards: Sequence[int] = ()) -> Rows:
        """This rank's rows of what `load` reads whole: the initial Gaussians, or a checkpoint's. Collective.

        shards: rows per rank when it was saved, () if it never was; of use where the number of ranks is the same.
        """

    @abstractmethod
    def render(
        self,
        gaussians: Gaussians,
        cameras: Sequence[Sequence[Camera]],
        *,
        sh_degree: int,
        background: Tensor | None,
        track: bool,
    ) -> Rendered:
        """Render this rank's part of a global batch. Collective.

        cameras: one list per rank; all ranks pass the same lists. track: keep screen-space gradients.
        """

    @abstractmethod
    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        """After backward: make every `.grad` that of the global loss (the sum over all ranks' losses). Collective.

        Yields parameters by name as they become ready, so that the optimiser works while others still travel.
        """

    @abstractmethod
    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        """Densification statistics over all views of all ranks, for the Gaussians this rank holds. Collective."""

    @abstractmethod
    def share(self, gaussians: Gaussians) -> float:
        """Weight of this rank's sum over its Gaussians in a mean over all Gaussians, summed over ranks."""

    @abstractmethod
    def global_topk(self, pull: Tensor, wanted: Tensor, count: int) -> Tensor:
        """bool [N]: the `count` most strongly pulled of all ranks' Gaussians that are `wanted`. Collective.

        pull: [N] float, wanted: [N] bool, of the Gaussians this rank holds. Equals in rank and index order.
        """

    @abstractmethod
    def limit(self, gaussians: Gaussians, max_gaussians: int) -> int:
        """How many Gaussians this rank may hold, for the whole model to have at most `max_gaussians`."""

    @abstractmethod
    def rebalance(self, rows: Rows) -> Rows | None:
        """After the number of Gaussians changed: this rank's new rows if some moved between ranks, else None.

        Collective, and to be called after every such change.
        """

    @property
    def total_gaussians(self) -> int:
        """Number of Gaussians of the whole model."""
        return self.shards[0] if self.replicates else sum(self.shards)

    @abstractmethod
    def whole(self, rows: Rows) -> Rows | None:
        """The whole model's rows on rank 0 (None elsewhere) from what each rank holds. Collective."""

    @abstractmethod
    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        """Parameter digest per rank. Collective. Raises if replicas that must be equal are not.

        What only one rank holds has nothing to be compared with in between: shards compare their rows whenever these
        travel, in `distribute`, `rebalance` and `whole`.
        """

    def reset_error_feedback(self) -> None:  # noqa: B027 (most strategies remember nothing)
        """Drop what is remembered from step to step but not saved in a checkpoint (called when one is made)."""

    def project(
        self, inputs: dict[str, Tensor | tuple[Tensor, Tensor]], camera: Camera, sh_degree: int, track: bool
    ) -> Projection:
        projection = self.renderer.project(
            **inputs,  # type: ignore[arg-type]
            viewmat=camera.viewmat,
            K=camera.K,
            width=camera.width,
            height=camera.height,
            settings=replace(self.settings, sh_degree=sh_degree),
        )
        if track and projection.means2d.requires_grad:
            projection.means2d.retain_grad()
        return projection

    def rasterize(
        self, projection: Projection, camera: Camera, background: Tensor | None, track: bool
    ) -> View:
        settings = replace(self.settings, absgrad=track and self.settings.absgrad)
        size = (camera.width, camera.height)
        return View(self.renderer.rasterize(projection, *size, settings, background=background), camera)


def largest(values: Tensor, wanted: Tensor, count: int) -> Tensor:
    """bool [N]: the `count` largest of the `wanted` ones, equal ones in index order, on any device."""
    if int(wanted.sum()) <= count:
        return wanted
    order = torch.argsort(values.masked_fill(~wanted, -torch.inf), descending=True, stable=True)
    return torch.zeros_like(wanted).index_fill_(0, order[:count], True)


def travelling(gaussians: Gaussians, sh_degree: int) -> Iterator[tuple[str, int | None]]:
    """Parameters that have a gradient at this degree, and for `shN` how many of its coefficients: (name, number).

    The bands above the degree in use have none, up to 76 % of all bytes. A gradient that is missing because no
    view of this rank saw a Gaussian is made zero: the optimiser moves on by its momentum all the same.
    """
    active = (sh_degree + 1) ** 2 - 1
    for name, parameter in gaussians.items():
        if name == "shN" and active == 0:
            parameter.grad = None
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        yield name, active if name == "shN" else None
