"""Workloads in the config: entries, templates, their points, and what is wrong with them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist3dgs.config.matrix import Study, load_spec, load_study, run_digest, spec_json
from dist3dgs.config.naming import Point
from dist3dgs.config.workloads import VARIABLES, Workload, WorkloadSpec, expand
from dist3dgs.errors import UserError

ENTRY: dict[str, Any] = {
    "application": "prog --n {ranks} --out {out}",
    "variables": {"size": 1},
    "variants": {"small": {}, "large": {"size": 9}},
    "figures_of_merit": {"loss": {"regex": r"loss (\S+)"}},
}


def study(repository: Path, entry: dict[str, Any], **config: Any) -> Study:
    raw: dict[str, Any] = {}
    for name in ("config.yaml", "scenes.yaml", "strategies.yaml"):
        raw |= yaml.safe_load((repository / "config" / name).read_text())
    return Study.from_config(raw | {"workload_library": {"mine": entry}, "workloads": ["mine"]} | config)


def test_points_are_workload_variant_layout_repeat(repository: Path) -> None:
    made = study(repository, ENTRY, scenes=[], layouts=["n1g1", "n2g2"])
    names = [str(p) for p in made.points()]
    assert names == [f"mine/{v}/{x}/r0" for v in ("small", "large") for x in ("n1g1", "n2g2")]
    spec = made.spec(Point.named("mine/large/n2g2/r3"))
    assert isinstance(spec, WorkloadSpec) and spec.train.variables == {"size": 9} and spec.seed == 45
    assert load_spec(spec_json(spec)) == spec


def test_beside_scenes_the_matrix_has_both(repository: Path) -> None:
    names = {str(p) for p in study(repository, ENTRY, layouts=["n1g1"]).points()}
    assert names == {"builtin/replicated/n1g1/r0", "mine/small/n1g1/r0", "mine/large/n1g1/r0"}


def test_what_the_output_is_read_for_decides_no_result(repository: Path) -> None:
    point = Point.named("mine/small/n1g1")
    other = ENTRY | {"figures_of_merit": {"loss": {"regex": r"LOSS (\S+)"}}}
    here, there = (study(repository, e).spec(point) for e in (ENTRY, other))
    assert here != there and run_digest(spec_json(here)) == run_digest(spec_json(there))
    longer = study(repository, ENTRY | {"steps": 5}).spec(point)
    assert run_digest(spec_json(here)) != run_digest(spec_json(longer))


def test_the_digest_of_a_training_is_what_it_was(repository: Path) -> None:
    """A workload in the config changes no other run."""
    point = Point.named("builtin/replicated/n1g2")
    alone = load_study(repository / "config").spec(point)
    assert spec_json(study(repository, ENTRY).spec(point)) == spec_json(alone)


def test_every_shipped_entry_can_be_asked_for_and_the_first_shows_every_setting(repository: Path) -> None:
    made = load_study(repository / "config")
    for name, workload in made.workloads.items():
        for variant in workload.variants:
            assert made.spec(Point.named(f"{name}/{variant}/n2g2")).num_steps >= 1
    shown = yaml.safe_load((repository / "config/workloads.yaml").read_text())["workload_library"]["resnet50"]
    assert set(shown) == set(Workload.model_fields)
    figure = set(shown["figures_of_merit"]["images_per_s"])
    assert figure == set(json.loads((repository / "workflow/schemas/workload.schema.json").read_text())
                         ["$defs"]["FigureOfMerit"]["properties"])  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"application": "prog {rnaks}"}, r"\{rnaks\}; known: .*ranks"),
        ({"application": "prog {ranks!r}"}, "no variable"),
        ({"application": "prog {ranks.real}"}, "no variable"),
        ({"application": "prog {"}, "twice"),
        ({"application": "prog 'a"}, "split"),
        ({"application": []}, "application"),
        ({"application": "prog {data}"}, "no setting `data`"),
        ({"application": "prog {test_every}"}, r"\{test_every\}"),
        ({"scene": "builtin", "data": "x"}, "`scene` or `data`"),
        ({"images": 9, "steps": 2}, "`images` or `steps`"),
        ({"scene": "bultin"}, "did you mean 'builtin'"),
        ({"setup": {"command": "make {out}"}}, r"setup\.command\.1.*\{out\}"),
        ({"setup": {"comand": "make"}}, "did you mean `command`"),
        ({"evaluation": "prog {otu}"}, r"evaluation\.1.*\{otu\}"),
        (
            {"figures_of_merit": {"loss": {"json_file": "x", "json_path": "a", "over_ranks": "sum"}}},
            r"\{rank\}",
        ),
        ({"figures_of_merit": {"loss": {"json_file": "{x}", "json_path": "a"}}}, r"no variable but \{rank\}"),
        (
            {"figures_of_merit": {"loss": {"json_file": "x", "json_path": "a", "file": "y"}}},
            "needs a `regex`",
        ),
        ({"environment": {"A": "{b}"}}, r"environment\.A.*\{b\}"),
        ({"variables": {"size": 1, "ranks": 2}}, "may not set ranks"),
        ({"variants": {"small": {"sise": 2}}}, "'small' sets sise"),
        ({"variants": {"a b": {}}}, "variant name 'a b'"),
        ({"batch_per_rank": 1, "global_batch": 2}, "not both"),
        ({"global_batch": 3, "variants": {"x": {}}}, "global_batch = 3.*2 ranks"),
        ({"launch": "shell"}, "launch.*'rank' or 'node'"),
        ({"figures_of_merit": {}}, "figures_of_merit"),
        ({"figures_of_merit": {"loss": {"regex": "loss"}}}, "group"),
        ({"figures_of_merit": {"loss": {"regex": "(loss"}}}, "regular expression"),
        ({"figures_of_merit": {"loss": {}}}, "`regex`, or `json_file`"),
        ({"figures_of_merit": {"loss": {"json_file": "../x", "json_path": "a"}}}, "below"),
        ({"figures_of_merit": {"loss": {"regx": "(a)"}}}, "did you mean `regex`"),
        ({"success": {"lines": ["("]}}, "regular expression"),
        ({"aplication": "x"}, "did you mean `application`"),
        ({"application": "prog --output-dir /scratch/mine"}, r"--output-dir /scratch/mine.*\{out\}"),
        ({"application": "prog --results=run.json"}, "same for every point"),
        ({"application": "prog trainer.save_dir={size}/a"}, "same for every point"),
        ({"loader_gib": "{sise}"}, r"loader_gib`: unknown variable \{sise\}"),
        ({"process_gib": "much"}, "'much' is no number"),
        ({"process_gib": -1}, "-1 is no size"),
        ({"resume": "--resume {checkpoint}"}, "needs `checkpoint`"),
        ({"checkpoint": "/x/*.pt"}, "below"),
        ({"application": "prog {checkpoint}"}, r"unknown variable \{checkpoint\}"),
    ],
)
def test_each_mistake_is_named(repository: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"(?s){words}"):
        study(repository, ENTRY | change)


def test_a_scene_gives_the_exported_folder_and_the_split(repository: Path) -> None:
    entry = ENTRY | {
        "application": "p {data} {test_every} {images} {steps}",
        "scene": "builtin",
        "images": 100,
    }
    made = study(repository, entry | {"batch_per_rank": 3}, data="elsewhere")
    spec = made.spec(Point.named("mine/small/n1g2"))
    assert isinstance(spec, WorkloadSpec) and spec.train.data == "elsewhere/builtin/colmap"
    assert spec.train.test_every == made.scene("builtin").test_every and spec.num_steps == 16
    assert load_spec(spec_json(spec)) == spec


def test_new_settings_that_are_not_set_change_no_earlier_digest(repository: Path) -> None:
    train = json.loads(spec_json(study(repository, ENTRY).spec(Point.named("mine/small/n1g1"))))["train"]
    assert not {"scene", "test_every", "images", "evaluation", "setup"} & set(train)


@pytest.mark.parametrize(
    "words",
    ["--out {out}", "--result_dir={out}/a", "--output-format x/y", "--checkpoint a/b.pt", "-o --log a/b"],
)
def test_what_names_no_shared_output_is_taken(repository: Path, words: str) -> None:
    assert study(repository, ENTRY | {"application": f"prog {words}"}).workloads["mine"]


def test_a_name_of_a_scene_is_refused(repository: Path) -> None:
    with pytest.raises(UserError, match="'builtin' is a scene too"):
        study(repository, ENTRY, workload_library={"builtin": ENTRY}, workloads=["builtin"])


def test_unknown_workloads_and_variants_are_answered_with_the_known(repository: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'mine'"):
        study(repository, ENTRY, workloads=["mien"])
    with pytest.raises(UserError, match=r"'larg'.*'large'"):
        study(repository, ENTRY).spec(Point.named("mine/larg/n1g1"))
    with pytest.raises(UserError, match="scenes"):
        study(repository, ENTRY, scenes=[], workloads=[])


@pytest.mark.parametrize("value", ["$(touch x)", "a b; rm -rf /", "{ranks}", "'", "\n"])
def test_a_value_stays_one_word(value: str) -> None:
    assert expand("--x={size}{{}}", {"size": value}) == f"--x={value}{{}}"


def test_the_example_of_the_manual_is_right(repository: Path) -> None:
    """Ten lines that a new user copies."""
    text = (repository / "config/README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (block,) = [b for b in blocks if b.startswith("# config/workloads.yaml")]
    assert len(block.strip().splitlines()) <= 11
    made = study(repository, yaml.safe_load(block)["workload_library"]["mine"])
    spec = made.spec(Point.named("mine/default/n1g2"))
    assert spec.global_batch == 64 and "{python}" in spec.train.application
    assert all(f"`{{{name}}}`" in text for name in VARIABLES)
    assert all(
        f"`{name}`" in text for name in ("launch: node", "environment", "success", "over_ranks", "inputs")
    )
