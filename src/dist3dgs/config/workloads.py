"""Workloads: programs of others, measured on the layouts of the study; each is an entry of `config/workloads.yaml`.

In a point's path the workload takes the place of the scene and its variant that of the strategy:
`results/{workload}/{variant}/{layout}/{repeat}/`.
"""

import math
import re
import shlex
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .models import Hardware, InputPath, PointSpec, Settings
from .naming import Layout

#: Variables of every template. Those of a rank have the rank's or, with `launch: node`, the node's values.
VARIABLES = {
    "ranks": "ranks of the layout, all nodes together",
    "nodes": "nodes of the layout",
    "ranks_per_node": "ranks on each node",
    "node_rank": "number of this node, from 0",
    "rank": "number of this rank, from 0; with `launch: node` of the node's first rank",
    "local_rank": "number of this rank on its node, from 0",
    "master_addr": "address of the node of rank 0",
    "master_port": "a port on that node that is kept free for the program",
    "batch_per_rank": "units of work per rank and step",
    "global_batch": "units of work per step, all ranks together",
    "steps": "the setting `steps`, or `images` divided by the global batch",
    "images": "units of work of the whole run, all ranks together",
    "steps_scaler": "steps per unit of work: 1 / global batch",
    "data": "the setting `data`, or the COLMAP folder of `scene`",
    "test_every": "of `scene`: every so many views by name, from the first, are held out",
    "out": "folder for what the program writes, made for each point",
    "seed": "seed of the study plus the repeat",
    "loader_workers": "the setting `loader_workers`",
    "python": "the Python that runs the ranks",
}
Value = str | int | float


def _words(value: object) -> object:
    """Split a command line given as one text as a shell would; it never reaches one."""
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as e:
        raise ValueError(f"cannot be split into words: {e}") from None


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as e:
        raise ValueError(f"is no regular expression: {e}") from None
    return text


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not path:
        raise ValueError("must be a path below {out}, without ..")
    if "{" in path.replace("{rank}", ""):
        raise ValueError("knows no variable but {rank}")
    return path


_PLACE = r"[-_]?(?:dir|directory|path|folder|file)"
#: Options that usually say where a program writes. A checkpoint or a model without `dir` is as often what it reads.
_WRITES_TO = re.compile(
    rf"(?:--?)?(?:[\w.]+\.)?(?:o|(?:out|output|results?)(?:{_PLACE})?|(?:save|work|ckpts?|checkpoints?|run){_PLACE})",
    re.IGNORECASE,
)


def _fixed_output(words: Sequence[str]) -> str | None:
    """Find an option that names a place to write to which is the same for every point; None without any."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        value = value if equals else after
        is_option = _WRITES_TO.fullmatch(name) and (equals or name.startswith("-"))
        is_path = value and not value.startswith("-") and ("/" in value or "." in value)
        if is_option and is_path and "{out}" not in value:
            return f"{name} {value}"
    return None


Pattern = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_pattern)]
FileInOut = Annotated[str, AfterValidator(_inside)]


class FigureOfMerit(Settings):
    """A number that the program prints, or writes into a JSON file."""

    regex: Pattern | None = Field(None, description="its first group is the number, in a line of the output")
    file: FileInOut | None = Field(
        None, description="a text file below {out} that `regex` is applied to, instead of the output"
    )
    json_file: FileInOut | None = Field(
        None,
        description="a JSON file below {out}, instead of `regex`; in both names * matches anything, files are read in "
        "the order of their numbers, and {rank} is each rank's number",
    )
    json_path: str | None = Field(
        None, description="keys and indices that lead to the number, e.g. val.0.psnr"
    )
    unit: str = Field("", max_length=32, description="e.g. s, %, images/s")
    per: Literal["run", "epoch", "step"] = Field("run", description="what one number is of")
    statistic: Literal["last", "mean", "median", "min", "max"] = Field(
        "last", description="of the numbers of one rank"
    )
    skip: int = Field(0, ge=0, description="warm-up: so many numbers of each rank are left out")
    scale: float = Field(1.0, gt=0, description="the number is multiplied by it, e.g. 0.001 for ms to s")
    over_ranks: Literal["first", "sum", "mean", "max"] = Field(
        "first", description="of the ranks' numbers; first: rank 0 alone prints it"
    )
    required: bool = Field(True, description="without it the point has failed")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.regex is None) == (self.json_file is None) or (self.json_file is None) != (
            self.json_path is None
        ):
            raise ValueError("give `regex`, or `json_file` with `json_path`")
        if self.file is not None and self.regex is None:
            raise ValueError("`file` needs a `regex`")
        name = self.file or self.json_file
        if name is not None and self.over_ranks != "first" and "{rank}" not in name:
            raise ValueError(f"`over_ranks: {self.over_ranks}` needs {{rank}} in the file's name")
        if self.regex is not None and re.compile(self.regex).groups < 1:
            raise ValueError("the regex has no group: put the number in (parentheses)")
        return self


class Success(Settings):
    """Signs of success, all needed beside exit status 0: a wrapper may print `Complete` after a failure too."""

    lines: list[Pattern] = Field([], description="each is found in the output of rank 0")
    files: list[FileInOut] = Field([], description="each is there below {out}, and not empty")


class Criteria(Settings):
    """Figures of merit and criteria of success. A change judges finished runs again, without running them."""

    unit_of_work: Literal["image", "sample", "token"] = "image"
    work_per_epoch: int | None = Field(
        None, ge=1, description="units of work per epoch: the rate follows from `epoch_s`"
    )
    figures_of_merit: dict[str, FigureOfMerit] = Field({}, min_length=1)
    success: Success = Success()
    differences: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], description="from our trainer on the same scene, named beside the numbers"
    )


def _words_or_none(value: object) -> object:
    words = None if value is None else _words(value)
    if words == []:
        raise ValueError("is empty")
    return words


def _is_none(value: object) -> bool:
    return value is None


class Setup(Settings):
    """Preparation of a program, once, where the workflow runs: building it, fetching its data."""

    command: Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)] = Field(
        description="command line, as `application`; of the variables {python} and the workload's own"
    )
    creates: list[InputPath] = Field([], description="files or folders that are there afterwards")


class Footprint(Settings):
    """Host memory that the program needs, for `dist3dgs preflight`. It decides no result."""

    process_gib: float | str | None = Field(
        None, description="of a rank without its loaders, GiB; a number, or a template of `variables`"
    )
    loader_gib: float | str | None = Field(
        None, description="of one of its `loader_workers`, GiB; a number, or a template of `variables`"
    )

    def sizes(self, variables: Mapping[str, Value]) -> tuple[float | None, float | None]:
        """Return (of a rank, of a loader) in GiB, None where not stated. Raises `ValueError` for what is no size."""
        found: list[float | None] = []
        for name in Footprint.model_fields:
            text = getattr(self, name)
            if text is None:
                found.append(None)
                continue
            for used in template_variables(str(text), name):
                if used not in variables:
                    raise ValueError(
                        f"`{name}`: unknown variable {{{used}}}; known: {', '.join(variables) or 'none'}"
                    )
            value = expand(str(text), variables)
            try:
                size = float(value)
            except ValueError:
                raise ValueError(f"`{name}`: {value!r} is no number of GiB") from None
            if not 0 <= size < math.inf:
                raise ValueError(f"`{name}`: {size:g} is no size; expected GiB, 0 or more")
            found.append(size)
        return found[0], found[1]


class Application(Settings):
    """The program and everything that decides its result."""

    application: Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)] = Field(
        description="command line, a list of words or one line; {...} are variables"
    )
    setup: Setup | None = Field(None, exclude_if=_is_none, description="run once, before the first point")
    launch: Literal["rank", "node"] = Field(
        "rank",
        description="rank: torchrun starts it once per rank; node: once per node, for programs that start their own",
    )
    environment: dict[str, str] = Field({}, description="variables of the environment, of templates too")
    variables: dict[str, Value] = Field(
        {}, description="more variables of the templates; variants change them"
    )
    inputs: list[InputPath] = Field([], description="files and folders whose content decides the result")
    data: InputPath | None = Field(None, description="the folder {data}")
    # Left out of specs where they are not set: those of earlier workloads stay what they were.
    scene: str | None = Field(
        None,
        exclude_if=_is_none,
        description="a scene of the library: {data} is its packed scene as a COLMAP folder",
    )
    test_every: int | None = Field(
        None, ge=2, exclude_if=_is_none, description="{test_every}; that of `scene`"
    )
    steps: int = Field(1, ge=1)
    images: int | None = Field(
        None,
        ge=1,
        exclude_if=_is_none,
        description="units of work of the whole run, instead of `steps`: the same for every layout",
    )
    evaluation: Annotated[tuple[str, ...] | None, BeforeValidator(_words_or_none)] = Field(
        None,
        exclude_if=_is_none,
        description="command line that rank 0 runs after the program has succeeded; its output joins the program's",
    )
    batch_per_rank: int | None = Field(None, ge=1, description="the global batch grows with the ranks")
    global_batch: int | None = Field(None, ge=1, description="fixed: divided among the ranks")
    loader_workers: int = Field(0, ge=0, le=1024, description="processes that load data, of each rank")
    checkpoint: FileInOut | None = Field(
        None, description="pattern of the checkpoints below {out}, e.g. ckpts/*.pt; the newest counts"
    )
    resume: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="words that follow the command line where there is a {checkpoint}"
    )

    def setup_variables(self) -> dict[str, Value]:
        """Return the workload's own variables that its set-up has."""
        words = self.setup.command if self.setup else ()
        used = {name for word in words for name in template_variables(word)}
        return {name: value for name, value in self.variables.items() if name in used}

    def templates(self) -> Iterable[tuple[str, str]]:
        """Name and text of each template."""
        yield from ((f"application.{i}", word) for i, word in enumerate(self.application))
        yield from ((f"evaluation.{i}", word) for i, word in enumerate(self.evaluation or ()))
        yield from ((f"resume.{i}", word) for i, word in enumerate(self.resume))
        yield from ((f"environment.{name}", text) for name, text in self.environment.items())

    @model_validator(mode="after")
    def _known_variables(self) -> Self:
        if self.resume and self.checkpoint is None:
            raise ValueError("`resume` needs `checkpoint`, the pattern of the files to go on from")
        for where, text in self.templates():
            known = VARIABLES | self.variables
            if where.startswith("resume."):
                known = known | {"checkpoint": "path of the newest checkpoint"}
            for name in template_variables(text, where):
                if name not in known:
                    raise ValueError(
                        f"`{where}`: unknown variable {{{name}}}; known: {', '.join(sorted(known))}"
                    )
                if name == "data" and self.data is None and self.scene is None:
                    raise ValueError(f"`{where}` has {{data}}, and there is no setting `data` or `scene`")
                if name == "test_every" and self.test_every is None and self.scene is None:
                    raise ValueError(f"`{where}` has {{test_every}}, and there is no setting of that name")
        for i, word in enumerate(self.setup.command if self.setup else ()):
            for name in template_variables(word, f"setup.command.{i}"):
                if name not in {"python", *self.variables}:
                    raise ValueError(
                        f"`setup.command.{i}`: {{{name}}} is not known before a point; known: "
                        + ", ".join(sorted({"python", *self.variables}))
                    )
        if fixed := _fixed_output(self.application):
            raise ValueError(
                f"`application`: `{fixed}` is the same for every point, which would overwrite each other's output;"
                " put it below {out}, the folder of the point"
            )
        if taken := sorted((VARIABLES.keys() | {"checkpoint"}) & self.variables.keys()):
            raise ValueError(f"`variables` may not set {', '.join(taken)}: every template has it")
        if self.batch_per_rank and self.global_batch:
            raise ValueError("give `batch_per_rank` or `global_batch`, not both")
        return self


class Workload(Application, Criteria, Footprint):
    """One entry of `config/workloads.yaml`."""

    variants: dict[str, dict[str, Value]] = Field(
        {"default": {}}, min_length=1, description="name -> variables that differ"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for one, other in (("scene", "data"), ("scene", "test_every"), ("images", "steps")):
            if getattr(self, one) is not None and other in self.model_fields_set:
                raise ValueError(f"give `{one}` or `{other}`, not both")
        return self

    @model_validator(mode="after")
    def _variants_change_variables(self) -> Self:
        for name, changes in self.variants.items():
            if unknown := sorted(changes.keys() - self.variables.keys()):
                raise ValueError(
                    f"variant {name!r} sets {', '.join(unknown)}, which is not in `variables`"
                    f" ({', '.join(self.variables) or 'none'})"
                )
        return self

    def application_of(self, variant: str) -> Application:
        """Return what is run of a variant."""
        mine = {name: getattr(self, name) for name in Application.model_fields}
        return Application(**mine | {"variables": self.variables | self.variants[variant]})

    def sizes_of(self, variant: str) -> tuple[float | None, float | None]:
        """Return the host memory of a rank and of one of its loaders in GiB; None where it is not stated."""
        return self.sizes(self.variables | self.variants[variant])

    @property
    def criteria(self) -> Criteria:
        return Criteria(**{name: getattr(self, name) for name in Criteria.model_fields})


class WorkloadSpec(PointSpec):
    """Everything that one run of a workload depends on: for a workload what `RunSpec` is for a training of ours.

    `scene` is the workload and `strategy` its variant. `train` has the settings of the application, where records of
    trainings have theirs.
    """

    train: Application
    criteria: Criteria
    hardware: Hardware

    @property
    def started(self) -> Layout:
        """The layout: a workload uses all of it."""
        return Layout.parse(self.layout)

    @property
    def global_batch(self) -> int:
        """Units of work per step over all ranks; 1 where the workload does not say."""
        per_rank = self.train.batch_per_rank
        return self.train.global_batch or (per_rank or 1) * self.started.world_size

    @property
    def num_steps(self) -> int:
        """Steps of all ranks together: `images` in batches, a part of a batch left out."""
        images = self.train.images
        return self.train.steps if images is None else max(1, images // self.global_batch)

    @property
    def last_step(self) -> int:
        """Last step of the job: a workload is one job."""
        return self.num_steps

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        ranks = self.started.world_size
        if self.train.global_batch and self.train.global_batch % ranks:
            raise ValueError(f"global_batch = {self.train.global_batch} is no multiple of the {ranks} ranks")
        return self


def template_variables(text: str, where: str = "template") -> list[str]:
    """List the variables of a template. Raises `ValueError` for anything but {name}, {{ and }}."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as e:
        raise ValueError(f"`{where}`: {e}; a brace that is meant is written twice") from None
    found = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError(f"`{where}`: {{{name}}} is no variable; a brace that is meant is written twice")
        found.append(name)
    return found


def expand(text: str, values: Mapping[str, Any]) -> str:
    """Put values in the place of a template's variables: one word stays one word, whatever is in it."""
    parts = string.Formatter().parse(text)
    return "".join(before + ("" if name is None else str(values[name])) for before, name, _, _ in parts)
