"""What a parallel strategy decides: who holds which Gaussians, and what travels in a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..spec import TrainSettings
from ..splats.camera import Camera
from ..splats.densify.statistics import Statistics
from ..splats.gaussians import Gaussians
from ..splats.render import Image, Projection, Renderer
from .comm import Communicator


@dataclass(frozen=True)
class RenderOptions:
    """The renderer settings that stay the same over a run."""

    near: float
    far: float
    antialiased: bool
    absgrad: bool

    @classmethod
    def of(cls, settings: TrainSettings) -> "RenderOptions":
        return cls(settings.near, settings.far, settings.antialiased, settings.densify.absgrad)


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


class Parallel(ABC):
    """One strategy on one rank. The training loop calls these in the order they stand here."""

    def __init__(self, comm: Communicator, renderer: Renderer, options: RenderOptions) -> None:
        self.comm, self.renderer, self.options = comm, renderer, options

    @abstractmethod
    def distribute(self, load: Callable[[], dict[str, Tensor]]) -> Gaussians:
        """Make this rank's Gaussians; `load` reads the initial ones (or a checkpoint's) whole."""

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
        """Render this rank's part of a global batch.

        cameras: one list per rank; all ranks pass the same lists. track: keep screen-space gradients.
        """

    @abstractmethod
    def reduce_gradients(self, gaussians: Gaussians, sh_degree: int) -> None:
        """After backward: make every `.grad` that of the global loss (the sum over all ranks' losses)."""

    @abstractmethod
    def reduce_statistics(self, statistics: Statistics) -> Statistics:
        """Densification statistics over all views of all ranks, for the Gaussians this rank holds."""

    @abstractmethod
    def share(self, gaussians: Gaussians) -> float:
        """Weight of this rank's sum over its Gaussians in a mean over all Gaussians, summed over ranks."""

    @abstractmethod
    def total_gaussians(self, gaussians: Gaussians) -> int:
        """Number of Gaussians of the whole model. Collective."""

    @abstractmethod
    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The whole model's tensors on rank 0 (None elsewhere) from what each rank holds. Collective."""

    @abstractmethod
    def receive(self, tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
        """What this rank holds of the whole model's `tensors`, which rank 0 has and the others know by `names`.

        The inverse of `whole`; 0-dim tensors go to every rank as they are. Collective.
        """

    @abstractmethod
    def compare_digests(self, gaussians: Gaussians) -> list[str]:
        """Parameter digest per rank. Collective. Raises if replicas that must be equal are not."""
