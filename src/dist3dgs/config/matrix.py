"""Expand the config into the list of runs."""

import difflib
import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .load import FILES, OPTIONAL_FILES, Layers, merge
from .models import SOURCES, Config, Exclusion, RunSpec, Scene, Strategy, TrainSettings, validate
from .naming import Layout, Point, check_name
from .published_scenes import download_spec
from .workloads import Workload, WorkloadSpec

#: Settings that change no result of a run: what is logged, and time limits.
#: Snakemake trains nothing again for them, and attempts that differ in them belong to the same run.
FREE_SETTINGS = {
    "train": ("log_every", "tensorboard", "checkpoint_every", "keep_checkpoints"),
    "hardware": ("timeout_s", "join_timeout_s", "max_restarts"),
}
#: The same of a workload's application: how an attempt goes on from an earlier one.
FREE_OF_WORKLOADS = ("checkpoint", "resume")

AnySpec = RunSpec | WorkloadSpec


@dataclass(frozen=True)
class Study:
    """A validated config: the points that can be asked for, and those that are by default."""

    config: Config
    scenes: dict[str, Scene]
    strategies: dict[str, Strategy]
    workloads: dict[str, Workload] = field(default_factory=dict)
    #: Where its settings stand, for messages.
    layers: Layers = field(default_factory=Layers, repr=False, compare=False)
    #: Validated specs by strategy (of a workload: workload/variant) and layout, and their digests: the points of a big
    #: study differ in scene, repeat and seed alone.
    _specs: dict[tuple[str, Layout], AnySpec] = field(default_factory=dict, repr=False, compare=False)
    _digests: dict[tuple[str, Layout], str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_config(cls, raw: Mapping[str, Any], layers: Layers | None = None) -> "Study":
        """`raw`: the merged content of config.yaml, scenes.yaml (scene_library), strategies.yaml (strategy_library) and
        workloads.yaml (workload_library).
        `layers`: the files it was merged from.

        Raises `UserError` naming file and setting for anything that is not right.
        """
        raw = dict(raw)
        layers = layers or Layers()
        scene_library = _replaced(raw.pop("scene_library", None), layers)
        scenes = _library(scene_library, Scene, "scene", layers)
        strategies = _library(raw.pop("strategy_library", None), Strategy, "strategy", layers)
        library = raw.pop("workload_library", None)
        workloads = _library(library, Workload, "workload", layers) if library else {}
        config = validate(Config, raw, layers.where)
        study = cls(config, scenes, strategies, workloads, layers)
        for name in config.scenes:
            study.scene(name)
        for name in config.workloads:
            study.workload(name)
        for name, workload in workloads.items():
            study._check_workload(name, workload)
        for name in config.strategies:
            study.strategy(name)
        for layout in config.layouts:
            Layout.parse(layout)
        for name, scene in scenes.items():
            if scene.download is not None:
                study._check_download(name, scene.download)
        for name in strategies:
            study._train(name)
        for i, exclusion in enumerate(config.exclude):
            study._check_exclusion(i, exclusion)
        study._check_baseline()
        study.specs()
        return study

    def scene(self, name: str) -> Scene:
        return _find(self.scenes, check_name(name, "scene"), "scene", self.layers)

    def strategy(self, name: str) -> Strategy:
        return _find(self.strategies, check_name(name, "strategy"), "strategy", self.layers)

    def workload(self, name: str) -> Workload:
        return _find(self.workloads, check_name(name, "workload"), "workload", self.layers)

    def is_workload(self, point: Point) -> bool:
        """Return True for a point that runs a program of others."""
        return point.scene in self.workloads

    def spec(self, point: Point) -> AnySpec:
        """Return the run of any point of known names, in the matrix or not."""
        if not self.is_workload(point):
            self.scene(point.scene)
        key = self._spec_key(point)
        if key not in self._specs:
            made = self._validated_workload(point) if self.is_workload(point) else self._validated(point)
            self._specs[key] = made
        own: dict[str, Any] = {
            "scene": point.scene,
            "repeat": point.repeat,
            "seed": self.config.seed + point.repeat,
        }
        spec = self._specs[key]
        if point.part:
            parts = spec.parts if isinstance(spec, RunSpec) else []
            if point.part not in parts:
                known = ", ".join(parts) or "none: its strategy has no `blocks`"
                raise UserError(f"{point}: the point has no such part; it has {known}")
            own["part"] = point.part
        return spec.model_copy(update=own)

    def train_spec(self, point: Point) -> RunSpec:
        """Return the run of a point that trains Gaussians. Raises `UserError` for a workload."""
        spec = self.spec(point)
        if not isinstance(spec, RunSpec):
            raise UserError(f"{point} is a workload: nothing is known of what its steps cost")
        return spec

    def run_key(self, point: Point) -> str:
        """Return a short digest of every setting that decides the result of a point."""
        key = self._spec_key(point)
        if key not in self._digests:
            shared = self.spec(point).model_copy(update={"scene": "", "repeat": 0, "seed": self.config.seed})
            self._digests[key] = run_digest(spec_json(shared))
        return self._digests[key]

    def _spec_key(self, point: Point) -> tuple[str, Layout]:
        return (
            f"{point.scene}/{point.strategy}" if self.is_workload(point) else point.strategy
        ), point.layout

    def _validated_workload(self, point: Point) -> WorkloadSpec:
        workload = self.workload(point.scene)
        if point.strategy not in workload.variants:
            raise UserError(
                f"{self.layers.where('workload_library', point.scene)}: {point.scene} has no variant"
                f" {point.strategy!r}; {_nearest(point.strategy, workload.variants)}"
            )
        application = workload.application_of(point.strategy)
        if application.scene is not None:
            scene = self.scene(application.scene)
            folder = exported_folder(self.config.data, application.scene)
            application = application.model_copy(update={"data": folder, "test_every": scene.test_every})
        value = {
            "scene": point.scene,
            "strategy": point.strategy,
            "layout": str(point.layout),
            "repeat": point.repeat,
            "seed": self.config.seed + point.repeat,
            "train": application.model_dump(),
            "criteria": workload.criteria.model_dump(),
            "hardware": self.config.hardware.model_dump(),
        }
        where = self.layers.where("workload_library", point.scene)
        return validate(WorkloadSpec, value, f"{where}: point {point}")

    def _check_workload(self, name: str, workload: Workload) -> None:
        where = self.layers.where("workload_library", name)
        if name in self.scenes:
            raise UserError(
                f"{where}: {name!r} is a scene too; their points would share a folder: rename one"
            )
        for variant in workload.variants:
            try:
                check_name(variant, "variant")
                workload.application_of(variant)
                workload.sizes_of(variant)
            except (UserError, ValueError) as e:
                raise UserError(f"{where}: {name}.variants.{variant}: {e}") from None

    def _validated(self, point: Point) -> RunSpec:
        strategy, train = self.strategy(point.strategy), self._train(point.strategy)
        value = {
            "scene": point.scene,
            "strategy": point.strategy,
            "layout": str(point.layout),
            "repeat": point.repeat,
            "seed": self.config.seed + point.repeat,
            "parallel": strategy.model_copy(update={"train": {}}).model_dump(),
            "train": train.model_dump(),
            "hardware": self.config.hardware.model_dump(),
        }
        return validate(RunSpec, value, f"config: point {point}")

    def _train(self, strategy: str) -> TrainSettings:
        """Return the training settings of one strategy: the config's, overridden by its own."""

        def where(*loc: Any) -> str:
            keys = ("strategy_library", strategy, "train")
            return f"{self.layers.where(*keys, *loc)}: {strategy}.train"

        merged = merge(self.config.train.model_dump(), self.strategy(strategy).train)
        return validate(TrainSettings, merged, where)

    def _check_download(self, name: str, download: str) -> None:
        try:
            download_spec(download)
        except UserError as e:
            raise UserError(f"{self.layers.where('scene_library', name, 'download')}: {name}: {e}") from None

    def _check_exclusion(self, i: int, exclusion: Exclusion) -> None:
        """Refuse an exclusion that matches no point: it is a typing error, and what it should exclude would run.

        Where another layer narrows the study, e.g. `--config layouts=[n1g1]`, what it leaves out is no error.
        """
        c = self.config
        for what, name, names, keys in (
            ("scene", exclusion.scene, [*c.scenes, *c.workloads], ("scenes", "workloads")),
            ("strategy", exclusion.strategy, [*c.strategies, *self._variants()], ("strategies",)),
            ("layout", exclusion.layout, c.layouts, ("layouts",)),
        ):
            if name is not None and name not in names and not self._is_listed(name, keys):
                raise UserError(
                    f"{self.layers.where('exclude', i)}: exclude[{i}] leaves out no point: the study has no {what}"
                    f" {name!r}; {_nearest(name, names)} Fix the name or remove the exclusion."
                )

    def _is_listed(self, name: str, keys: Sequence[str]) -> bool:
        """Return True if a layer has this name in one of these lists, whatever the layers above it have there."""
        lists = [layer.get(key) for _, layer in self.layers.layers for key in keys]
        return any(isinstance(names, list | tuple) and name in names for names in lists)

    def _check_baseline(self) -> None:
        """Refuse a baseline that the study has no points of: everything would be compared with something else."""
        c = self.config
        if c.baseline is None:
            return
        named = f"{self.layers.where('baseline')}: baseline {c.baseline!r}"
        strategy, slash, layout = c.baseline.partition("/")
        if not slash or "/" in layout:
            raise UserError(f"{named}: expected strategy/layout, e.g. {c.strategies[0]}/{c.layouts[0]}")
        for what, name, names in (("strategy", strategy, c.strategies), ("layout", layout, c.layouts)):
            if name not in names:
                raise UserError(
                    f"{named}: the study has no {what} {name!r}; {_nearest(name, names)} Fix the name, or add it to "
                    "the study."
                )

    def excluded(self, point: Point) -> str | None:
        """Return why the config leaves this point out, or None."""
        for e in self.config.exclude:
            wanted = ((e.scene, point.scene), (e.strategy, point.strategy), (e.layout, str(point.layout)))
            if all(pattern in (None, value) for pattern, value in wanted):
                return e.reason
        return None

    def _every_point(self) -> Iterator[Point]:
        """Return (scenes x strategies, workloads x variants) x layouts x repeats, in a stable order."""
        c = self.config
        pairs = [(scene, strategy) for scene in c.scenes for strategy in c.strategies]
        pairs += [(name, variant) for name in c.workloads for variant in self.workload(name).variants]
        return (
            Point(scene, strategy, Layout.parse(layout), repeat)
            for scene, strategy in dict.fromkeys(pairs)
            for layout in dict.fromkeys(c.layouts)
            for repeat in range(c.repeats)
        )

    def _variants(self) -> list[str]:
        return [variant for name in self.config.workloads for variant in self.workload(name).variants]

    def points(self) -> list[Point]:
        """Return the points of the matrix less the exclusions."""
        points = [p for p in self._every_point() if self.excluded(p) is None]
        if not points:
            where = self.layers.where("exclude")
            raise UserError(f"{where}: `exclude` leaves no point to run; remove an exclusion")
        return points

    def exclusions(self) -> list[tuple[Point, str]]:
        """Return the points of the matrix that are left out, and why."""
        return [(p, reason) for p in self._every_point() if (reason := self.excluded(p)) is not None]

    def licences(self) -> dict[str, str]:
        """Return the licences of the study's scenes, as far as they are stated."""
        stated = {}
        for name in self.config.scenes:
            scene = self.scene(name)
            published = download_spec(scene.download).get("terms") if scene.download is not None else None
            if licence := scene.licence or published:
                stated[name] = licence
        return stated

    def specs(self) -> list[AnySpec]:
        return [self.spec(p) for p in self.points()]


def load_study(folder: Path, overlays: Sequence[Path] = ()) -> Study:
    """The study of a config folder with other files laid on top, as the Snakefile and its --configfile read it."""
    files = [Path(folder, name) for name in FILES]
    there = [path for path in files if path.name not in OPTIONAL_FILES or path.is_file()]
    layers = Layers.read([*there, *overlays])
    return Study.from_config(layers.merged(), layers)


def exported_folder(data: str, scene: str) -> str:
    """Return the COLMAP folder that a packed scene is exported to."""
    return f"{data}/{scene}/colmap"


def spec_json(spec: AnySpec) -> str:
    """Return one line with sorted keys: the same spec gives the same text, which Snakemake compares between runs."""
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def run_digest(spec_text: str) -> str:
    """Return a short digest of what decides the result of a run: its spec without free settings and `criteria`."""
    value = json.loads(spec_text)
    if value.pop("criteria", None) is not None:
        for name in FREE_OF_WORKLOADS:
            value.get("train", {}).pop(name, None)
    for part, names in FREE_SETTINGS.items():
        for name in names:
            value.get(part, {}).pop(name, None)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_spec(value: Any, where: str) -> AnySpec:
    """Validate the spec of a run: of a workload if it has criteria, else of a training of ours."""
    is_workload = isinstance(value, Mapping) and "criteria" in value
    return validate(WorkloadSpec, value, where) if is_workload else validate(RunSpec, value, where)


def load_spec(text: str) -> AnySpec:
    """Read the `--spec` of `dist3dgs launch`."""
    try:
        return read_spec(json.loads(text), "--spec")
    except ValueError as e:
        raise UserError(f"--spec: not JSON ({e}); copy it whole from the Snakemake log") from None


def load_train_spec(text: str) -> RunSpec:
    """Read the spec of a training of ours."""
    spec = load_spec(text)
    if not isinstance(spec, RunSpec):
        raise UserError(
            f"{spec.point} is a workload, which has no training of ours; run it with `dist3dgs launch`"
        )
    return spec


def _replaced(raw: object, layers: Layers) -> object:
    """The merged `scene_library`, where a scene that a later file gives another source is defined by that file alone.

    Merged setting by setting, as everything else is, the scene would have both sources.
    """
    if not isinstance(raw, Mapping):
        return raw
    library = dict(raw)
    for name in raw:
        definition: dict[str, Any] = {}
        replaced = False
        for _, part in layers.holders("scene_library", name):
            given = {key for key in SOURCES if part.get(key) is not None}
            if given <= SOURCES & definition.keys() or not SOURCES & definition.keys():
                definition = merge(definition, part)
            else:
                definition, replaced = dict(part), True
        if replaced:
            library[name] = definition
    return library


def _library(raw: object, model: type[Any], what: str, layers: Layers) -> dict[str, Any]:
    key = f"{what}_library"
    if not isinstance(raw, Mapping) or not raw:
        raise UserError(
            f"{layers.where(key)}: expected a mapping `{key}: name -> settings` with at least one {what}"
        )

    def where(name: Any, *loc: Any) -> str:
        place = layers.where(key, name, *loc)
        others = [holder for holder, _ in layers.holders(key, name) if holder != place]
        # A fault of the whole entry may come from the other files.
        return f"{place}{f' on top of {others[-1]}' if others and not loc else ''}: {name}"

    def entry(name: Any, value: Any) -> Any:
        return validate(model, {} if value is None else value, functools.partial(where, name))

    return {check_name(name, what): entry(name, value) for name, value in raw.items()}


def _find(library: Mapping[str, Any], name: str, what: str, layers: Layers) -> Any:
    if name not in library:
        raise UserError(
            f"{what} {name!r} is not in {layers.holding(f'{what}_library')}; {_nearest(name, library)}"
            " Add it there or fix the name."
        )
    return library[name]


def _nearest(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(names))}."
