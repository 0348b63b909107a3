"""From the config files to the list of runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError
from .names import Layout, Point, check_name
from .spec import Config, RunSpec, Scene, Strategy, TrainSettings, validate


@dataclass(frozen=True)
class Study:
    """A validated config: what can be asked for and what is asked for by default."""

    config: Config
    scenes: dict[str, Scene]
    strategies: dict[str, Strategy]
    #: Validated specs by strategy and layout: the points of a big study differ in scene, repeat and seed alone.
    _specs: dict[tuple[str, Layout], RunSpec] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_config(cls, raw: Mapping[str, Any]) -> "Study":
        """`raw`: the merged content of config.yaml, scenes.yaml (scene_library) and strategies.yaml (strategy_library).

        Raises `UserError` naming file and setting for anything that is not right.
        """
        raw = dict(raw)
        scenes = _library(raw.pop("scene_library", None), Scene, "scene", "config/scenes.yaml")
        strategies = _library(
            raw.pop("strategy_library", None), Strategy, "strategy", "config/strategies.yaml"
        )
        config = validate(Config, raw, "config/config.yaml")
        study = cls(config, scenes, strategies)
        for name in config.scenes:
            study.scene(name)
        for name in config.strategies:
            study.strategy(name)
        for layout in config.layouts:
            Layout.parse(layout)
        for exclusion in config.exclude:
            if exclusion.layout is not None:
                Layout.parse(exclusion.layout)
        study.specs()
        return study

    def scene(self, name: str) -> Scene:
        return _find(self.scenes, check_name(name, "scene"), "scene", "config/scenes.yaml")

    def strategy(self, name: str) -> Strategy:
        return _find(self.strategies, check_name(name, "strategy"), "strategy", "config/strategies.yaml")

    def spec(self, point: Point) -> RunSpec:
        """The run of any point whose scene and strategy are known, in the matrix or not."""
        self.scene(point.scene)
        key = (point.strategy, point.layout)
        if key not in self._specs:
            self._specs[key] = self._validated(point)
        own = {"scene": point.scene, "repeat": point.repeat, "seed": self.config.seed + point.repeat}
        return self._specs[key].model_copy(update=own)

    def _validated(self, point: Point) -> RunSpec:
        strategy = self.strategy(point.strategy)
        merged = _merge(self.config.train.model_dump(), strategy.train)
        train = validate(TrainSettings, merged, f"config/strategies.yaml: {point.strategy}.train")
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

    def excluded(self, point: Point) -> str | None:
        """Why the config leaves this point out, or None."""
        for e in self.config.exclude:
            wanted = ((e.scene, point.scene), (e.strategy, point.strategy), (e.layout, str(point.layout)))
            if all(pattern in (None, value) for pattern, value in wanted):
                return e.reason
        return None

    def points(self) -> list[Point]:
        """The matrix scenes x strategies x layouts x repeats, less the exclusions, in a stable order."""
        c = self.config
        every = (
            Point(scene, strategy, Layout.parse(layout), repeat)
            for scene in dict.fromkeys(c.scenes)
            for strategy in dict.fromkeys(c.strategies)
            for layout in dict.fromkeys(c.layouts)
            for repeat in range(c.repeats)
        )
        points = [p for p in every if self.excluded(p) is None]
        if not points:
            raise UserError("config/config.yaml: `exclude` leaves no point to run; remove an exclusion")
        return points

    def specs(self) -> list[RunSpec]:
        return [self.spec(p) for p in self.points()]


def spec_json(spec: RunSpec) -> str:
    """One line, keys sorted: the same spec gives the same text, which Snakemake compares between runs."""
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def load_spec(text: str) -> RunSpec:
    """Read the `--spec` of `dist3dgs launch`."""
    try:
        return validate(RunSpec, json.loads(text), "--spec")
    except ValueError as e:
        raise UserError(f"--spec: not JSON ({e}); copy it whole from the Snakemake log") from None


def _library(raw: object, model: type[Any], what: str, where: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or not raw:
        raise UserError(
            f"{where}: expected a mapping `{what}_library: name -> settings` with at least one {what}"
        )
    return {check_name(name, what): validate(model, v or {}, f"{where}: {name}") for name, v in raw.items()}


def _find(library: Mapping[str, Any], name: str, what: str, where: str) -> Any:
    import difflib

    if name not in library:
        close = difflib.get_close_matches(name, library, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(library))}."
        raise UserError(f"{what} {name!r} is not in {where}; {hint} Add it there or fix the name.")
    return library[name]


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
