"""Validated models of all settings: scenes, strategies, training, hardware.

Every field has a default that is visible in `config/`, a type, bounds and a description; a test holds the config
files, these models and the generated JSON schemas equal. Unknown keys are refused with the nearest known one.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import UserError
from .naming import COARSE, Layout, Point


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def expand_home(path: str) -> str:
    """Replace a leading ~ or ~user by the home folder, as a shell does."""
    if not path.startswith("~"):  # a URL has double slashes, which a path would lose
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ValueError(f"no home folder is known for {path.split('/')[0]}; give the whole path") from None


#: A path that a scene is read from, or the address of an archive.
InputPath = Annotated[str, Field(min_length=1), AfterValidator(expand_home)]


def _folder(path: str) -> str:
    """Return a path that may stand in targets of the workflow, where braces are wildcards."""
    if not path.strip() or not path.isprintable() or set(path) & set("{}") or PurePath(path) == PurePath("/"):
        raise ValueError("must be a folder's path, without braces and line breaks, and not /")
    return str(PurePath(path))


#: A folder that the workflow writes.
Folder = Annotated[str, AfterValidator(expand_home), AfterValidator(_folder)]


class SfmSettings(Settings):
    """Structure from motion with pycolmap, for photographs without a model."""

    num_features: int = Field(4096, ge=64, le=65536, description="SIFT features per photograph at most")
    matcher: Literal["exhaustive", "sequential"] = Field(
        "exhaustive",
        description="exhaustive: all pairs (up to a few hundred photographs); sequential: neighbours by name (video)",
    )
    sequential_overlap: int = Field(10, ge=1, description="sequential: neighbours on either side")
    camera_model: Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"] = Field(
        "SIMPLE_RADIAL", description="COLMAP camera fitted to the photographs"
    )
    reproducible: bool = Field(
        True, description="the mapper runs on one thread: the same poses to the last bit on every run"
    )
    num_threads: int = Field(
        0, ge=0, description="threads of extraction and matching, 0: all; same result for any"
    )
    max_image_px: int = Field(2000, ge=64, description="long edge for feature extraction")
    timeout_s: float = Field(4 * 3600.0, gt=0, description="limit on the child process")
    memory_gib: float = Field(16.0, gt=0, description="limit on the child process")


class BuiltinSource(Settings):
    """The procedural scene that the package renders itself."""

    num_images: int = Field(48, ge=3, le=1000)
    width_px: int = Field(540, ge=64, le=4096)
    height_px: int = Field(360, ge=64, le=4096)
    seed: int = Field(0, ge=0)


#: Settings of a scene that say where it comes from.
SOURCES = frozenset({"builtin", "images", "colmap", "download"})


class Scene(Settings):
    """One entry of `config/scenes.yaml`: exactly one of builtin, images, colmap, download says where from."""

    builtin: BuiltinSource | None = None
    images: InputPath | None = Field(
        None, description="folder of photographs, with `colmap` those of the model"
    )
    colmap: InputPath | None = Field(None, description="folder of an existing COLMAP model (binary or text)")
    download: InputPath | None = Field(
        None,
        description="published scene, e.g. mipnerf360/garden, or the address of an archive (#folder inside it)",
    )
    truth: InputPath | None = Field(
        None,
        description="known poses (transforms.json), only to state the pose error of structure from motion",
    )
    max_width_px: int | None = Field(None, ge=16, description="photographs are reduced to at most this width")
    downscale: int = Field(
        1, ge=1, le=64, description="photographs are divided by this; an images_N folder of the scene is used"
    )
    test_every: int = Field(8, ge=2, description="every n-th view by name is held out")
    sfm: SfmSettings = SfmSettings()
    licence: str | None = Field(None, description="licence of the photographs, shown in the report")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [k for k in ("builtin", "colmap", "download") if getattr(self, k) is not None]
        if (
            len(given) > 1
            or (not given and self.images is None)
            or (self.images and given not in ([], ["colmap"]))
        ):
            found = [k for k in sorted(SOURCES) if getattr(self, k) is not None]
            raise ValueError(
                "give exactly one source: builtin, images, colmap (with images) or download; "
                f"it has {' and '.join(found) or 'none'}"
            )
        if self.colmap is not None and self.images is None:
            raise ValueError("colmap needs `images`, the folder of the model's photographs")
        return self

    def ingest_json(self) -> str:
        """Return the settings that decide the packed scene as one line of JSON, without licence and resource limits."""
        limits = {"num_threads", "timeout_s", "memory_gib"}
        return self.model_dump_json(exclude={"licence": True, "sfm": limits})


class LearningRates(Settings):
    """Adam's learning rates for a batch of one image (Kerbl et al. 2023, reference implementation)."""

    means: float = Field(1.6e-4, gt=0, description="start value, times the scene's extent")
    means_final: float = Field(
        1.6e-6, gt=0, description="end value of the exponential decay, times the extent"
    )
    scales: float = Field(5e-3, gt=0)
    quats: float = Field(1e-3, gt=0)
    opacities: float = Field(5e-2, gt=0)
    sh0: float = Field(2.5e-3, gt=0)
    shN: float = Field(1.25e-4, gt=0)


class Densification(Settings):
    """Schedule and rule of densification. Steps count optimiser steps."""

    kind: Literal["default", "mcmc", "budget", "none"] = Field(
        "default",
        description="default: clone/split/prune (Kerbl et al. 2023); mcmc: relocation (Kheradmand et al. 2024); "
        "budget: grows to max_gaussians where several views have errors (Mallick et al. 2024, Ren et al. 2025)",
    )
    start_step: int = Field(500, ge=0)
    stop_step: int = Field(15_000, ge=0)
    every: int = Field(100, ge=1)
    grad_threshold: float = Field(
        2e-4, gt=0, description="mean screen gradient (normalised device units) to densify"
    )
    absgrad: bool = Field(
        False, description="use the sum of absolute gradients (Ye et al. 2024); threshold about 8e-4"
    )
    scale_threshold: float = Field(
        0.01, gt=0, description="larger than this share of the extent: split, else clone"
    )
    prune_opacity: float = Field(0.005, ge=0, lt=1)
    prune_scale: float = Field(
        0.1, gt=0, description="after the first reset, larger shares of the extent are pruned"
    )
    reset_every: int = Field(3000, ge=1, description="opacity reset interval in steps")
    max_gaussians: int = Field(
        5_000_000,
        ge=1,
        description="the whole model never has more; of more initial points a random part is taken",
    )
    score_views: int = Field(
        10, ge=1, description="budget: training views whose errors decide at each densification"
    )
    prune_share: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="budget: share of the Gaussians that goes at each densification, those that images need least",
    )
    noise_lr: float = Field(5e5, ge=0, description="mcmc: strength of the position noise")
    opacity_reg: float = Field(0.01, ge=0, description="mcmc: weight of the opacity penalty")
    scale_reg: float = Field(0.01, ge=0, description="mcmc: weight of the scale penalty")

    @model_validator(mode="after")
    def _starts_before_it_stops(self) -> Self:
        if self.kind != "none" and self.start_step > self.stop_step:
            raise ValueError(
                f"start_step {self.start_step} is after stop_step {self.stop_step}; without densification: kind: none"
            )
        return self


class TrainSettings(Settings):
    """One training run."""

    steps: int = Field(
        30_000, ge=1, le=10_000_000, description="optimiser steps for a global batch of one image"
    )
    keep: Literal["steps", "images"] = Field(
        "images",
        description="with a larger global batch keep the number of optimiser steps, or of images seen (fewer steps)",
    )
    batch_per_rank: int = Field(1, ge=1, le=1024, description="images per rank and step")
    global_batch: int | None = Field(
        None,
        ge=1,
        description="images per step over all ranks; overrides batch_per_rank; a multiple of the ranks",
    )
    sh_degree: int = Field(3, ge=0, le=3)
    sh_every: int = Field(1000, ge=1, description="steps between raises of the SH degree in use")
    ssim_weight: float = Field(0.2, ge=0, le=1, description="weight of D-SSIM in the loss")
    init_opacity: float = Field(0.1, gt=0, lt=1)
    init_scale: float = Field(1.0, gt=0, description="initial size in mean distances to the 3 nearest points")
    background: Literal["black", "white", "random"] = "black"
    antialiased: bool = False
    near: float = Field(0.01, gt=0)
    far: float = Field(1e10, gt=0)
    optimizer: Literal["adam", "selective"] = Field(
        "adam",
        description="adam: every Gaussian in every step; selective: those that a view of the step draws, the others "
        "keep their values and moments (not the same results)",
    )
    lr: LearningRates = LearningRates()
    densify: Densification = Densification()
    eval_every: int = Field(
        5000, ge=1, description="steps between evaluations; the last step is always evaluated"
    )
    eval_views: int | None = Field(
        None, ge=1, description="held-out views per intermediate evaluation; null: all"
    )
    lpips: bool = Field(True, description="evaluate LPIPS where its weights are on disk")
    checkpoint_every: int = Field(2000, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    digest_every: int = Field(
        500, ge=1, description="steps between comparisons of parameter digests across ranks"
    )
    log_every: int = Field(50, ge=1)
    tensorboard: bool = True

    @model_validator(mode="after")
    def _near_before_far(self) -> Self:
        if self.near >= self.far:
            raise ValueError(f"near {self.near:g} is not before far {self.far:g}")
        return self


#: Built-in kinds of strategy and their classes, which only training imports.
STRATEGIES = {
    "replicated": "dist3dgs.parallel.replicated:Replicated",
    "sharded": "dist3dgs.parallel.sharded:Sharded",
    "hybrid": "dist3dgs.parallel.hybrid:Hybrid",
    "local": "dist3dgs.parallel.local:Local",
    "blocks": "dist3dgs.parallel.blocks:Blocks",
}
#: Entry points of other packages that add kinds of strategy.
STRATEGY_GROUP = "dist3dgs.strategies"


def strategy_class(kind: str) -> str | None:
    """Return `module:class` of a kind of strategy, built in or from an entry point; None if there is no such kind."""
    if kind in STRATEGIES:
        return STRATEGIES[kind]
    return next((point.value for point in entry_points(group=STRATEGY_GROUP, name=kind)), None)


def _known_kind(kind: str) -> str:
    if strategy_class(kind) is None:
        outside = [point.name for point in entry_points(group=STRATEGY_GROUP)]
        raise ValueError(f"expected one of {', '.join([*STRATEGIES, *outside])}")
    return kind


class Strategy(Settings):
    """One entry of `config/strategies.yaml`."""

    kind: Annotated[str, AfterValidator(_known_kind)] = Field(
        "replicated",
        description="replicated: every rank holds all Gaussians; sharded: each owns a part, projections travel; "
        "hybrid: shards inside groups of ranks, replicas across groups; local: replicas that train apart and are "
        "averaged now and then; blocks: each trains a cell of space alone, between a coarse training and a merge",
    )
    init: Literal["broadcast", "independent"] = Field(
        "broadcast",
        description="broadcast: rank 0 reads and all receive; independent: each reads for itself (the historic crash)",
    )
    ranks: Literal["all", "one"] = Field(
        "all",
        description="all: one rank per worker of the layout; one: a single rank, the others idle (a historic mistake)",
    )
    compression: Literal["none", "bf16", "powersgd"] = Field(
        "none", description="replicated, hybrid: how gradients travel between replicas"
    )
    powersgd_rank: int = Field(2, ge=1, le=32, description="rank of the factors that powersgd sends")
    gradient_rows: Literal["auto", "touched", "all"] = Field(
        "auto",
        description="replicated, hybrid: gradients of the Gaussians that a view touched travel, or those of all; the "
        "sum has the same bits; auto: touched on CPUs where few are, else all",
    )
    optimizer_state: Literal["auto", "whole", "split"] = Field(
        "auto",
        description="replicated: every rank has Adam's moments of all Gaussians and updates all, or of its part and "
        "sends what it updated (ZeRO-1; same bits); auto: split where ranks share memory, else whole",
    )
    shared_memory: bool = Field(
        True,
        description="replicated, sharded, on CPUs: what ranks of one node exchange in a step travels through memory "
        "that they share, not through the network stack; the same bits",
    )
    shard: int | None = Field(
        None, ge=1, description="hybrid: ranks that hold the model together; null: those of a node"
    )
    placement: Literal["strided", "space"] = Field(
        "strided",
        description="sharded, hybrid: neighbours on different ranks, or near Gaussians on one rank and views on the "
        "rank that holds most of what they see",
    )
    split: Literal["images", "pixels"] = Field(
        "images",
        description="sharded: a step's images are dealt to the ranks, or each image is cut into strips that the ranks "
        "share, for batches smaller than the number of ranks and large images",
    )
    sync_every: int = Field(16, ge=1, description="local: optimizer steps from one average to the next")
    average: Literal["seen", "plain"] = Field(
        "seen",
        description="local: weights of the ranks, by how often each saw a Gaussian, or equal",
    )
    blocks: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="blocks: their number, each trained in a job of its own on one rank, after a job for the coarse "
        "training and before one that merges them; null: one per rank of a single job",
    )
    coarse_share: float = Field(
        0.2, gt=0, lt=1, description="blocks: share of the run's steps that train the whole scene first"
    )
    finish_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="blocks: share of the run's steps that train all blocks together after the merge",
    )
    margin: float = Field(
        0.2,
        ge=0,
        le=1,
        description="blocks: each cell is enlarged by this share of its extent for training (VastGaussian: 0.2, "
        "BlockGaussian: 0.05)",
    )
    view_threshold: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="blocks: a view trains the blocks that have more than this mean blending weight in it "
        "(CityGaussian: 0.05 of the SSIM)",
    )
    rebalance_above: float = Field(
        1.2, ge=1, description="sharded, hybrid: rows move when the largest shard is this many times the mean"
    )
    train: dict[str, Any] = Field({}, description="training settings that differ from config.yaml's `train`")

    @field_validator("blocks", mode="before")
    @classmethod
    def _several_blocks(cls, value: Any) -> Any:
        if value == 1 and not isinstance(value, bool):
            raise ValueError("one block is the whole scene: use kind: replicated, or 2 blocks or more")
        return value

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind in ("sharded", "local", "blocks") and (self.init, self.compression) != (
            "broadcast",
            "none",
        ):
            raise ValueError(f"a {self.kind} strategy needs init: broadcast and compression: none")
        if self.kind == "hybrid" and self.init != "broadcast":
            raise ValueError("a hybrid strategy needs init: broadcast")
        exact = self.compression == "none" and self.gradient_rows != "touched"
        if (
            self.optimizer_state == "split"
            and self.kind in STRATEGIES
            and not (self.kind == "replicated" and exact)
        ):
            raise ValueError(
                "optimizer_state: split needs kind: replicated, compression: none and gradient_rows: auto or all"
            )
        if self.split == "pixels" and self.kind in STRATEGIES and self.kind != "sharded":
            raise ValueError(f"split: pixels is a setting of kind: sharded, not of {self.kind}")
        if self.shard is not None and self.kind in STRATEGIES and self.kind != "hybrid":
            raise ValueError(f"shard: {self.shard} is a setting of kind: hybrid, not of {self.kind}")
        if self.blocks is not None and self.kind != "blocks":
            raise ValueError(f"blocks: {self.blocks} is a setting of kind: blocks, not of {self.kind}")
        return self


class Hardware(Settings):
    """Resources and limits of one rank."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads_per_rank: int = Field(
        1, ge=0, le=1024, description="CPU threads of a rank; 0: cores / ranks on the node"
    )
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    timeout_s: float = Field(600, gt=0, description="a collective that waits longer than this ends the run")
    join_timeout_s: float = Field(
        300, ge=1, description="a node or rank that has not joined the others after this ends the run"
    )
    max_restarts: int = Field(0, ge=0, le=100, description="restarts from the last checkpoint within one job")
    max_gaussians_per_rank: int | None = Field(
        None,
        ge=1,
        description="trainings: Gaussians that a rank has room for; a run whose model may grow beyond that is refused "
        "when it starts; null: no limit",
    )


class Exclusion(Settings):
    """Points that are not run, and why; null matches everything."""

    scene: str | None = None
    strategy: str | None = None
    layout: str | None = None
    reason: str


class Config(Settings):
    """`config/config.yaml` with the entries of scenes.yaml and strategies.yaml merged in."""

    results: Folder = "results"
    data: Folder = "data"
    seed: int = Field(42, ge=0, lt=2**31)
    scenes: list[str] = Field(description="may be empty where there are workloads")
    strategies: list[str] = Field(min_length=1)
    workloads: list[str] = []
    layouts: list[str] = Field(min_length=1)
    repeats: int = Field(1, ge=1, le=1000)
    only_existing: bool = Field(
        False, description="tabulate and draw the records that are there, train nothing"
    )
    fail_on: Literal["never", "failed"] = Field(
        "never",
        description="failed: a failed point is the exit status of `snakemake ... all`; never: it is a row",
    )
    baseline: str | None = Field(
        None,
        description="strategy/layout, e.g. replicated/n1g2, that every scene's points are compared with; null: the "
        "scene's run on one rank, or its smallest layout that succeeded",
    )
    exclude: list[Exclusion] = []
    train: TrainSettings = TrainSettings()
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        if not self.scenes and not self.workloads:
            raise ValueError("`scenes` and `workloads` are both empty; name at least one")
        return self


class PointSpec(Settings):
    """Name of a run: one repeat of a point, with its seed."""

    scene: str
    strategy: str
    layout: str
    repeat: int
    seed: int

    @property
    def point(self) -> Point:
        return Point(self.scene, self.strategy, Layout.parse(self.layout), self.repeat)


class RunSpec(PointSpec):
    """Everything one run depends on; its JSON form is the `--spec` of `dist3dgs launch`."""

    part: str = Field(
        "",
        description="with parallel.blocks: coarse or block-N, a job of its own; empty: the job that merges",
    )
    parallel: Strategy
    train: TrainSettings
    hardware: Hardware

    @property
    def point(self) -> Point:
        return Point(self.scene, self.strategy, Layout.parse(self.layout), self.repeat, self.part)

    @property
    def parts(self) -> list[str]:
        """Jobs of the point before the one that merges; [] where a single job does all."""
        blocks = self.parallel.blocks
        return [] if blocks is None else [COARSE, *(f"block-{i}" for i in range(blocks))]

    @property
    def needs(self) -> list[str]:
        """Parts of the point that must have ended before this job."""
        return self.parts if not self.part else [] if self.part == COARSE else [COARSE]

    @property
    def block(self) -> int | None:
        """Number of the block that this job trains alone; None for any other job."""
        return int(self.part.removeprefix("block-")) if self.part not in ("", COARSE) else None

    @property
    def num_blocks(self) -> int:
        """Parts into which a step's images are divided: the blocks, else the ranks."""
        return self.parallel.blocks or self.started.world_size

    @property
    def job_steps(self) -> range:
        """1-based steps of this job: all of the run's, unless blocks train in jobs of their own."""
        if not self.parts:
            return range(1, self.num_steps + 1)
        alone = self.block_steps
        if self.part == COARSE:
            return range(1, alone.start)
        return alone if self.part else range(alone.stop, self.num_steps + 1)

    @property
    def last_step(self) -> int:
        """Last 1-based step of this job, or of those before it if it has none."""
        return self.job_steps.stop - 1

    @property
    def started(self) -> Layout:
        """Return the number of ranks that are started: those of the layout, unless `ranks: one`."""
        return Layout.parse(self.layout) if self.parallel.ranks == "all" else Layout(1, 1)

    @property
    def global_batch(self) -> int:
        """Return the images per optimiser step over all ranks."""
        return self.train.global_batch or self.train.batch_per_rank * self.num_blocks

    @property
    def num_steps(self) -> int:
        """Return the optimiser steps of this run: `train.steps`, divided by the global batch with `keep: images`."""
        return -(-self.train.steps // self.global_batch) if self.train.keep == "images" else self.train.steps

    @property
    def shard(self) -> int:
        """Ranks that hold the model together in a hybrid strategy."""
        return self.parallel.shard or self.started.workers_per_node

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        world = self.started.world_size
        if self.parallel.kind == "hybrid" and world % self.shard:
            raise ValueError(
                f"parallel.shard = {self.shard} does not divide the {world} ranks of {self.started}; set a divisor of "
                f"{world}, or null for the {self.started.workers_per_node} of a node"
            )
        return self

    @model_validator(mode="after")
    def _averages_in_the_run(self) -> Self:
        if self.parallel.kind == "local" and self.parallel.sync_every > self.num_steps:
            raise ValueError(
                f"parallel.sync_every = {self.parallel.sync_every} is more than the {self.num_steps} optimizer steps "
                f"of the run at {self.started}: its ranks would never be averaged; set at most {self.num_steps}"
            )
        return self

    @property
    def block_steps(self) -> range:
        """1-based steps in which blocks train apart, after the coarse training and before the joint finish."""
        first = max(1, round(self.parallel.coarse_share * self.num_steps))
        return range(first + 1, self.num_steps - round(self.parallel.finish_share * self.num_steps) + 1)

    @model_validator(mode="after")
    def _blocks_train(self) -> Self:
        if self.part and self.part not in self.parts:
            known = ", ".join(self.parts) or "none, as parallel.blocks is null"
            raise ValueError(f"part {self.part!r} is no part of the run; it has {known}")
        if self.parallel.kind != "blocks":
            return self
        if self.parallel.blocks is not None and self.started.world_size > 1:
            raise ValueError(
                f"parallel.blocks = {self.parallel.blocks} trains each block in a job of one rank, and {self.layout} "
                f"has {self.started.world_size}; use the layout n1g1 (leave others out with `exclude`), or blocks: "
                "null, which trains one block per rank"
            )
        if not self.block_steps:
            p = self.parallel
            raise ValueError(
                f"parallel.coarse_share = {p.coarse_share:g} and finish_share = {p.finish_share:g} leave none of the "
                f"{self.num_steps} steps of the run for the blocks to train apart; set smaller ones"
            )
        why = {
            "mcmc": "mcmc's penalties make Gaussians fade that no view of a block sees",
            "budget": "budget's curve is of the whole model, which ranks that train apart do not know",
        }.get(self.train.densify.kind)
        if why:
            raise ValueError(f"kind: blocks needs train.densify.kind: default or none: {why}")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        world = self.num_blocks
        if self.global_batch % world and self.parallel.split == "images":
            among = "blocks of parallel.blocks" if self.parallel.blocks else f"ranks of {self.started}"
            raise ValueError(
                f"train.global_batch = {self.global_batch} is no multiple of the {world} {among}; a sharded strategy "
                "with split: pixels shares any batch"
            )
        return self


M = TypeVar("M", bound=BaseModel)


#: Kinds of pydantic's errors whose messages speak of Python.
_EXPECTED = {
    "list_type": "must be a list, e.g. [a, b]",
    "dict_type": "must be a mapping of settings (`name: value`)",
    "model_type": "must be a mapping of settings (`name: value`)",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


def validate(model: type[M], value: object, where: str | Callable[..., str]) -> M:
    """Build `model` from plain data, or raise `UserError` that names each faulty setting and where it stands.

    `where`: a file, or what gives the file of a setting from the keys that lead to it.
    """
    try:
        return model.model_validate(value)
    except ValidationError as e:
        places = [where if isinstance(where, str) else where(*error["loc"]) for error in e.errors()]
        lines = [
            f"{place}: {_describe(model, error)}" for place, error in zip(places, e.errors(), strict=True)
        ]
        raise UserError("\n".join(lines)) from None


def _describe(model: type[BaseModel], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting `{key}`{_nearest(model, error['loc'])}"
    if error["type"] == "missing":
        return f"setting `{key}` is missing"
    said = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    got = "" if isinstance(error["input"], dict | BaseModel) else f" (it is {_brief(error['input'])})"
    return (f"setting `{key}`: " if key else "") + _EXPECTED.get(error["type"], said) + got


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(model: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """'; did you mean `x`?' among the fields of the model that `loc` points into."""
    import difflib
    import typing

    current: Any = model
    for part in loc[:-1]:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is None:  # an index of a list, or a key of a mapping to models
            continue
        annotation = field.annotation
        candidates = [annotation, *typing.get_args(annotation)]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if current is None:
            return ""
    names = list(current.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(names)}"
