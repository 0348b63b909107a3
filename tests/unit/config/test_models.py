"""Config files, models and schemas say the same; wrong settings are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dist3dgs.cli.study import models, write_schemas
from dist3dgs.config.load import Layers
from dist3dgs.config.matrix import Study, load_spec, load_study, spec_json
from dist3dgs.config.models import Config, Scene, Strategy, TrainSettings, validate
from dist3dgs.config.naming import Point
from dist3dgs.errors import UserError


def raw_config(repository: Path) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for name in ("config.yaml", "scenes.yaml", "strategies.yaml"):
        raw |= yaml.safe_load((repository / "config" / name).read_text())
    return raw


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """Field names, nested where a field is a model."""
    out = {}
    for name, field in model.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        out[name] = fields(field.annotation) if nested else None  # type: ignore[arg-type]
    return out


def keys(value: Any) -> Any:
    return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None


def test_config_yaml_shows_every_setting(repository: Path) -> None:
    shown = keys(yaml.safe_load((repository / "config/config.yaml").read_text()))
    assert shown == fields(Config)


def test_strategies_show_every_setting(repository: Path) -> None:
    library = yaml.safe_load((repository / "config/strategies.yaml").read_text())["strategy_library"]
    assert set(library["replicated"]) == set(fields(Strategy))


def test_schemas_are_what_the_models_say(repository: Path, tmp_path: Path) -> None:
    for path in write_schemas(tmp_path):
        committed = json.loads((repository / "workflow/schemas" / path.name).read_text())
        assert committed == json.loads(path.read_text()), f"run: dist3dgs schemas ({path.name})"
    assert len(models()) == len(list((repository / "workflow/schemas").glob("*.schema.json")))


def test_every_setting_has_bounds_or_a_choice_and_most_a_description() -> None:
    with pytest.raises(UserError, match="steps"):
        validate(TrainSettings, {"steps": 0}, "x")
    with pytest.raises(UserError, match="ssim_weight"):
        validate(TrainSettings, {"ssim_weight": 1.5}, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layouts": ["n0g4"]}, "n0g4"),
        ({"scenes": ["../etc"]}, r"'\.\./etc'"),
        ({"scenes": ["buildin"]}, "did you mean 'builtin'"),
        ({"scenes": []}, "scenes"),
        ({"strategies": ["a b"]}, "'a b'"),
        ({"trian": {}}, "did you mean `train`"),
        ({"train": {"stepz": 3}}, "train.stepz.*did you mean `steps`"),
        ({"train": {"lr": {"maens": 3}}}, "train.lr.maens.*did you mean `means`"),
        ({"train": {"steps": "many"}}, "train.steps.*'many'"),
        ({"train": {"lr": {"means": float("nan")}}}, "train.lr.means"),
        ({"train": {"global_batch": 3}}, "global_batch = 3.*2 ranks"),
        ({"repeats": -1}, "repeats"),
        ({"exclude": [{"layout": "n1g1", "reason": "a"}, {"layout": "n1g2", "reason": "b"}]}, "no point"),
        ({"scene_library": {"a/b": {"images": "x"}}}, "a/b"),
        ({"scene_library": {"mine": {}}}, "exactly one source"),
        ({"scene_library": {"mine": {"images": "x", "builtin": {}}}}, "exactly one source"),
        ({"scene_library": {"mine": {"colmap": "x"}}}, "colmap needs"),
        ({"strategy_library": {"replicated": {"kind": "magic"}}}, "kind.*'magic'"),
        ({"strategy_library": {"replicated": {"train": {"nope": 1}}}}, "nope"),
    ],
)
def test_each_mistake_is_named_with_file_and_setting(
    repository: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as e:
        Study.from_config(raw_config(repository) | change)
    assert "config" in str(e.value) or "layout" in str(e.value) or "name" in str(e.value)


def test_a_point_outside_the_matrix_has_a_spec(repository: Path) -> None:
    study = load_study(repository / "config")
    spec = study.spec(Point.parse("builtin", "replicated", "n8g4"))
    assert spec.global_batch == 32 and spec.num_steps == -(-spec.train.steps // 32)
    assert load_spec(spec_json(spec)) == spec


def test_strategy_settings_reach_only_their_points(repository: Path) -> None:
    raw = raw_config(repository)
    before = Study.from_config(raw)
    raw["strategy_library"]["mcmc"]["train"] = {"densify": {"kind": "mcmc", "noise_lr": 1.0}}
    after = Study.from_config(raw)
    for name, same in (("replicated", True), ("mcmc", False)):
        point = Point.parse("builtin", name, "n1g1")
        assert (spec_json(before.spec(point)) == spec_json(after.spec(point))) is same
        assert after.spec(point).train.densify.every == before.spec(point).train.densify.every


def test_exclusions_have_reasons(repository: Path) -> None:
    raw = raw_config(repository) | {"exclude": [{"layout": "n1g2", "reason": "one core"}]}
    study = Study.from_config(raw)
    assert study.excluded(Point.parse("builtin", "replicated", "n1g2")) == "one core"
    assert [str(p.layout) for p in study.points()] == ["n1g1"]


def test_repeats_differ_in_seed_alone(repository: Path) -> None:
    study = Study.from_config(raw_config(repository) | {"repeats": 2})
    a, b = (study.spec(Point.parse("builtin", "replicated", "n1g1", r)) for r in ("r0", "r1"))
    assert b.seed == a.seed + 1
    assert a.model_copy(update={"seed": b.seed, "repeat": 1}) == b


def test_a_scene_says_its_source() -> None:
    assert validate(Scene, {"images": "photos"}, "x").images == "photos"


def test_a_study_that_a_layer_narrows_keeps_its_exclusions(repository: Path) -> None:
    """`--config layouts=[n1g1]` narrows one so: what is excluded beyond it is no typing error."""
    raw = raw_config(repository)
    whole = (
        "study.yaml",
        {"layouts": ["n1g1", "n2g2"], "exclude": [{"layout": "n2g2", "reason": "one node"}]},
    )
    layers = Layers((("config.yaml", raw), whole, ("--config", {"layouts": ["n1g1"]})))
    study = Study.from_config(layers.merged(), layers)
    assert {str(p.layout) for p in study.points()} == {"n1g1"}
    bad = Layers((*layers.layers, ("more.yaml", {"exclude": [{"layout": "n3g3", "reason": "a typo"}]})))
    with pytest.raises(UserError, match="no point"):
        Study.from_config(bad.merged(), bad)
