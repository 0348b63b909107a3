"""Interface of the parallel strategies: which rank holds which Gaussians, and what ranks exchange in a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config.models import Strategy
from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from ..splats.loss import Strip
from ..splats.render import Image, Projection, Renderer, RenderSettings
from .collectives import Communicator
from .row_parts import RowParts

#: Tensors by name, all with one row per Gaussian: parameters, Adam's moments, statistics.
Rows = dict[str, Tensor]


@dataclass
class View:
    """One of this rank's cameras, rendered."""

    image: Image
    camera: Camera
    strip: Strip | None = None
    """Rows of the camera's image that this rank rendered; `image.colors` has neighbours' rows as well. None: all."""

    def crop(self, photo: Tensor) -> Tensor:
        """Return the rows of the camera's photograph, uint8 [H, W, 3], that `image.colors` has."""
        return photo if self.strip is None else photo[self.strip.top :][: len(self.image.colors)]


@dataclass
class Rendered:
    """One step's forward pass on one rank."""

    views: list[View]
    """This rank's cameras, rendered; others than it was given where a strategy assigns them, without photograph."""
    projections: list[tuple[Projection, Camera]]
    """This rank's Gaussians, projected into every camera; after the backward pass densification reads means2d.grad."""
    anchor: Tensor
    """0-dim zero to add to the rank's loss: with it every rank takes part in the backward pass and its exchanges, even
    one whose images depend on no Gaussian."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Parts of which a strategy is made on one rank."""

    comm: Communicator
    renderer: Renderer
    settings: RenderSettings
    strategy: Strategy
    device: torch.device
    block: int | None = None
    """Number of the block that this job trains alone (`RunSpec.block`)."""
    max_rows: int | None = None
    """Most Gaussians that this rank has room for (`hardware.max_gaussians_per_rank`)."""


class Parallel(ABC):
    """One strategy on one rank. The training loop calls the methods in the order below."""

    #: True if every rank holds every Gaussian. Each then collects statistics of its own views only, and all ranks must
    #: draw the same random numbers.
    replicates: bool
    #: As `Schedule.phase` names it; empty for strategies that share out the work in one way from start to end.
    phase: str = ""
    #: The part of the rows that this rank's optimizer updates and has moments of; None: all that it holds. Outside it
    #: `reduce_gradients` may leave anything.
    parts: RowParts | None = None

    def __init__(self, setup: Setup) -> None:
        self.comm, self.renderer, self.settings = setup.comm, setup.renderer, setup.settings
        self.device, self.max_rows = setup.device, setup.max_rows

    @property
    @abstractmethod
    def shards(self) -> list[int]:
        """Current rows per rank; a checkpoint keeps them, for the same number of ranks to resume with."""

    @property
    def holders(self) -> int:
        """Number of ranks that hold the model together."""
        return 1 if self.replicates else self.comm.world_size

    def rows_needed(self, most: int, at_start: int) -> int:
        """Return the number of Gaussians that a rank must have room for.

        most: of the whole model. at_start: of the model that training starts from.
        """
        return -(-most // self.holders)

    @property
    def stream(self) -> int:
        """Number of the random stream that decides about this rank's Gaussians."""
        return 0 if self.replicates else self.comm.rank

    @property
    def keeps_statistics(self) -> bool:
        """True on one rank of those that hold the same Gaussians: it keeps reduced statistics, the others start from
        zero.
        """
        return not self.replicates or self.comm.rank == 0

    @property
    def views(self) -> list[int] | None:
        """The training views that this rank trains on, indices in the list of all; None: as they are dealt."""
        return None

    @property
    def idle(self) -> bool:
        """True if this rank's Gaussians stay as they are, because none of its views trains them."""
        return False

    def check_scene(self, num_points: int, num_views: int) -> None:  # noqa: B027 (most strategies take any)
        """Raise `UserError` if the scene has too few points or training views for this number of ranks."""

    def begin(self, phase: str, state: Rows) -> bool:
        """Take up the phase and the `state` of a checkpoint, before `distribute`. Collective.

        Args:
            phase: of the step that it was saved after.
            state: tensors [...] by name of any dtype, the checkpoint's, on rank 0; {} on the others and where another
                strategy saved it.

        Returns:
            False if the phase starts anew from the model, because the state is not one of as many ranks.
        """
        return True

    def advance(
        self, phase: str, rows: Rows, cameras: Iterable[Camera], max_gaussians: int
    ) -> tuple[Rows, dict[str, Any]]:
        """Go on to another phase. Collective.

        Args:
            phase: the next step's.
            rows: `Model.rows` of this rank, tensors [N, ...] by name of any dtype, with reduced statistics.
            cameras: of all training views, without photographs.
            max_gaussians: most Gaussians of the whole model.

        Returns:
            This rank's new rows, and fields of the event `blocks`.
        """
        return rows, {}

    def state(self, rows: Rows) -> Rows:
        """Return what a checkpoint must hold beside `whole`, which is called before, on rank 0. Collective.

        rows: `Model.rows` of this rank. Returns tensors [...] by name, of any dtype.
        """
        return {}

    def seams(self, gaussians: Gaussians, cameras: Sequence[Sequence[Camera]]) -> list[Tensor]:
        """Find the pixels along the seams between parts that were trained apart. Collective.

        Args:
            gaussians: those this rank holds, N of them.
            cameras: as in `render`.

        Returns:
            bool [H, W] for each of this rank's views, in the order of `render`; [] if there are no seams.
        """
        return []

    @abstractmethod
    def distribute(self, load: Callable[[], Rows], shards: Sequence[int] = ()) -> Rows:
        """Load the whole model and return this rank's rows of it. Collective.

        Args:
            load: returns the initial Gaussians or a checkpoint's rows: tensors [N, ...] by name, of any dtype.
            shards: rows per rank when it was saved, () if it never was; used if the number of ranks is the same.
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

        Args:
            gaussians: those this rank holds, N of them: means [N, 3], ..., float32 or float64.
            cameras: one list per rank; all ranks pass the same lists.
            sh_degree: 0..3.
            background: [3] RGB, of a float dtype; black if None.
            track: keep screen-space gradients.
        """

    @abstractmethod
    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> Iterator[str]:
        """Make every `.grad` that of the global loss, the sum over all ranks' losses, after the backward pass.
        Collective.

        Yields parameters by name as they become ready, so that the optimizer works while others still travel.
        """

    def share_updates(self, gaussians: Gaussians, sh_degree: int) -> None:  # noqa: B027 (most update all rows)
        """Send the parameters that this rank's optimizer updated to the others, after every step. Collective.

        gaussians: those this rank holds, N of them. sh_degree: 0..3, as in `reduce_gradients`.
        """

    def averages(self, step: int) -> bool:
        """Return True if `synchronise` is due after 1-based `step`: replicas of some strategies train independently."""
        return False

    def synchronise(self, rows: Rows) -> None:  # noqa: B027 (replicas of most strategies stay equal)
        """Make replicas equal again, in place. Collective; called before anything reads them as one model.

        rows: `Model.rows` of this rank, tensors [N, ...] by name, of any dtype.
        """

    @abstractmethod
    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        """Sum densification statistics over all views of all ranks, for the Gaussians this rank holds. Collective."""

    @abstractmethod
    def global_topk(self, pull: Tensor, wanted: Tensor, count: int) -> Tensor:
        """Choose the `count` candidates with the largest values among all ranks' Gaussians. Collective.

        Args:
            pull: [N] float, one value for each Gaussian this rank holds.
            wanted: bool [N], candidates.
            count: most Gaussians to choose, over all ranks.

        Returns:
            bool [N]: the chosen ones of this rank. Ties are broken by rank, then index.
        """

    def may_grow(self, gaussians: Gaussians, wanted: Tensor) -> Tensor:
        """Return those of the candidates that this rank may clone or split, bool [N].

        gaussians: those this rank holds, N of them. wanted: bool [N], candidates.
        """
        return wanted

    @abstractmethod
    def limit(self, gaussians: Gaussians, max_gaussians: int) -> int:
        """Return the largest number of Gaussians this rank may hold for the whole model to have at most
        `max_gaussians`.
        """

    @abstractmethod
    def rebalance(self, rows: Rows) -> Rows | None:
        """Move Gaussians between ranks if shards have become uneven. Collective; call it after every change of their
        number.

        rows: this rank's tensors [N, ...] by name, of any dtype. Returns its new rows, None if nothing moved.
        """

    @property
    def total_gaussians(self) -> int:
        """Number of Gaussians of the whole model."""
        return self.shards[0] if self.replicates else sum(self.shards)

    @property
    def penalised_gaussians(self) -> float:
        """Number of Gaussians that MCMC's penalties are means over."""
        return self.total_gaussians

    def sum_counts(self, counts: dict[str, int]) -> dict[str, int]:
        """Sum what densification counted over the ranks that hold different Gaussians. Collective."""
        if self.replicates:
            return counts
        every = self.comm.gather_objects(counts)
        return {k: sum(c[k] for c in every) for k in counts}

    @abstractmethod
    def whole(self, rows: Rows) -> Rows | None:
        """Gather the whole model's rows on rank 0, None elsewhere. Collective.

        rows: this rank's tensors [N, ...] by name, of any dtype.
        """

    @abstractmethod
    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        """Return the parameter digest of each rank. Collective. Raises `ReplicasDiffer` if replicas are not equal.

        Shards have no copy to compare with: their rows are compared whenever they travel, in `distribute`,
        `rebalance` and `whole`.
        """

    def reset_error_feedback(self) -> None:  # noqa: B027 (most strategies remember nothing)
        """Drop state carried from step to step that no checkpoint saves; called when a checkpoint is made."""

    def project(
        self, inputs: dict[str, Tensor | tuple[Tensor, Tensor]], camera: Camera, sh_degree: int, track: bool
    ) -> Projection:
        """Project this rank's Gaussians into one camera.

        Args:
            inputs: the renderer's, as `Gaussians.activated` makes them: means [N, 3], ..., float32 or float64.
            camera: any rank's.
            sh_degree: 0..3.
            track: keep the gradient of `means2d` in the backward pass.
        """
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

    def project_every(
        self, gaussians: Gaussians, cameras: Sequence[Camera], sh_degree: int, track: bool
    ) -> tuple[list[Projection] | Projection, Tensor]:
        """Project this rank's Gaussians into C cameras, in one call where the renderer can.

        Args:
            gaussians: those this rank holds, N of them.
            cameras: any rank's.
            sh_degree: 0..3.
            track: keep the gradients of `means2d` in the backward pass.

        Returns:
            The projections, one after the other in one if they were made in one call; and how many Gaussians each has,
            int64 [C], on the device in that case.
        """
        one_size = len({(c.width, c.height) for c in cameras}) == 1
        if self.renderer.several_views and one_size and len(cameras) > 1:
            return self.renderer.project_views(
                **gaussians.activated(),  # type: ignore[arg-type]
                viewmats=[camera.viewmat for camera in cameras],
                Ks=[camera.K for camera in cameras],
                width=cameras[0].width,
                height=cameras[0].height,
                settings=replace(self.settings, sh_degree=sh_degree),
            )
        projections = [
            self.project(inputs, camera, sh_degree, track)
            for inputs, camera in zip(gaussians.activated_per_view(len(cameras)), cameras, strict=True)
        ]
        return projections, torch.tensor([len(p.ids) for p in projections])

    def by_camera(
        self, seen: list[Projection] | Projection, numbers: list[int] | Tensor, track: bool
    ) -> list[Projection]:
        """Return one projection per camera of what `project_every` returned.

        Args:
            seen: the projections.
            numbers: how many Gaussians each has, int64 [C]; a list where the host knows them already.
            track: as there.
        """
        if isinstance(seen, list):
            return seen
        projections = seen.split(numbers if isinstance(numbers, list) else numbers.tolist())
        for projection in projections:
            if track and projection.means2d.requires_grad:
                projection.means2d.retain_grad()
        return projections

    def rasterize(
        self, projection: Projection, camera: Camera, background: Tensor | None, track: bool
    ) -> View:
        """Render one of this rank's cameras from the projection of all Gaussians.

        Args:
            projection: of the Gaussians of all ranks.
            camera: one of this rank's.
            background: [3] RGB, of a float dtype; black if None.
            track: keep absolute screen-space gradients, if the settings ask for them.
        """
        settings = replace(self.settings, absgrad=track and self.settings.absgrad)
        size = (camera.width, camera.height)
        return View(self.renderer.rasterize(projection, *size, settings, background=background), camera)


def largest(values: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Choose the `count` largest of the candidates, ties by index, on any device.

    values: [N] float. wanted: bool [N], candidates. Returns bool [N].
    """
    if int(wanted.sum()) <= count:
        return wanted
    order = torch.argsort(values.masked_fill(~wanted, -torch.inf), descending=True, stable=True)
    return torch.zeros_like(wanted).index_fill_(0, order[:count], True)


def travelling(gaussians: Gaussians, sh_degree: int) -> Iterator[tuple[str, int | None]]:
    """Yield the parameters that have a gradient at this degree, and for `shN` the number of coefficients: (name,
    number).

    The bands above the degree in use have none, up to 76 % of all bytes. A gradient that is missing because no view
    of this rank saw a Gaussian becomes zero: the optimizer continues by momentum.
    """
    active = active_coefficients(sh_degree)
    for name, parameter in gaussians.items():
        if name == "shN" and active == 0:
            parameter.grad = None
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        yield name, active if name == "shN" else None


def active_coefficients(sh_degree: int) -> int:
    """Return how many coefficients of `shN`, 0..15, are in use at this degree, 0..3."""
    return (sh_degree + 1) ** 2 - 1
