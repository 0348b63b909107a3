"""Config files on top of each other, and which of them a mistake is found in."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.cli import main
from dist3dgs.config.load import Layers, command_line_problems, load_yaml, merge
from dist3dgs.config.matrix import load_study
from dist3dgs.config.models import Scene
from dist3dgs.errors import UserError

TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES))
def test_files_are_merged_as_snakemake_merges_them(base: dict[str, Any], changes: dict[str, Any]) -> None:
    import copy

    from snakemake.utils import update_config

    expected = copy.deepcopy(base)
    update_config(expected, changes)
    assert merge(base, changes) == expected


def test_a_file_on_top_is_seen_by_the_verbs(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(repository / "config")]
    overlay = tmp_path / "more.yaml"
    overlay.write_text(
        "train: {steps: 77}\nlayouts: [n1g1, n1g3]\nexclude: [{layout: n1g3, reason: 'too wide'}]\n"
    )
    assert main(["points", *config, "--configfile", str(overlay)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "builtin/replicated/n1g1/r0\t77 steps\tglobal batch 1",
        "builtin/replicated/n1g3/r0\texcluded: too wide",
    ]
    assert main(["spec", "builtin/replicated/n1g1", *config, "--configfile", str(overlay)]) == 0
    assert '"steps":77' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repeats: 1\nseed: 2\nrepeats: 3\n", "line 1 and again in line 3"),
        ("train:\n  lr: {means: 1, means: 2}\n", "`means` stands in line 2"),
        ("", r"expected a mapping of settings .* found nothing \(the file is empty\)"),
        ("- a\n", "found a list"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"x\.yaml.*{message}"):
        load_yaml(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("seed: 1\nlayouts: [n1g1\nrepeats: 2\n", 3),
        ("train:\n\tsteps: 3\n", 2),
        ("a: 1\nb: 'open\n", 3),
        ("a: 1\n\nb: *nobody\n", 3),
        ("a: 1\nb: \x01\n", 2),
        ("a: 1\nb: caf\xe9\n", 2),
        ("a: 1\nb: 2026-13-45\n", 2),
        ("a: 1\nb: !!timestamp soon\n", 2),
        ("a: 1\n? [b, c]\n: 2\n", 2),
        ("a: 1\na: 2\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
    ],
)
def test_a_mistake_in_yaml_is_told_in_one_line_with_file_and_line(
    tmp_path: Path, content: str, line: int
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"x\.yaml, line {line}\b.*not valid YAML") as caught:
        load_yaml(path)
    assert len(str(caught.value).splitlines()) == 1


def test_mistakes_that_have_no_line_are_told_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a\n  b: *a\n")
    with pytest.raises(UserError, match=r"x\.yaml.*[Cc]ircular"):
        load_yaml(path)
    path = tmp_path / "x.json"
    path.write_text('{"a": 1,\n"b" 2}')
    with pytest.raises(UserError, match=r"x\.json, line 2, column 5"):
        load_yaml(path)


def test_merge_keys_of_yaml_are_no_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert load_yaml(path)["b"] == {"x": 3, "y": 2}


def test_the_last_file_that_has_a_setting_is_named() -> None:
    layers = Layers((("one", {"train": {"steps": 1}}), ("two", {"train": {"lr": {}}, "exclude": [{"a": 1}]})))
    assert layers.where("train", "steps") == "one"
    assert (
        layers.where("train", "lr", "means")
        == layers.where("train")
        == layers.where("exclude", 0, "a")
        == "two"
    )
    assert layers.where("nowhere") == "one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layouts": "n1g1"},
            r"more.yaml: setting `layouts`: must be a list, e.g. \[a, b\] \(it is 'n1g1'\)",
        ),
        ({"scene_library": {"mine": "photos"}}, "more.yaml: mine: must be a mapping of settings"),
        ({"scene_library": {"mine": {"images": ""}}}, "more.yaml: mine: setting `images`: must not be empty"),
        ({"scene_library": {"mine": {"download": "nope/x"}}}, "more.yaml: mine: download 'nope/x'"),
        (
            {"strategy_library": {"sharded": {"train": {"stps": 3}}}},
            "more.yaml: sharded.train.*did you mean `steps`",
        ),
        ({"results": ""}, "`results`"),
        ({"results": "/"}, "`results`"),
        ({"data": "a\nb"}, "`data`"),
        ({"results": "{x}"}, "`results`"),
        ({"train": {"near": 100, "far": 1}}, "more.yaml: setting `train`: near 100 is not before far 1"),
        ({"train": {"densify": {"start_step": 5000}}}, "start_step 5000 is after stop_step 1200"),
        (
            {"exclude": [{"strategy": "replicate", "reason": "x"}]},
            "strategy 'replicate'; did you mean 'replicated'",
        ),
        ({"exclude": [{"layout": "n1g8", "reason": "x"}]}, r"more.yaml: exclude\[0\].*'n1g8'.*n1g"),
        ({"exclude": [{"scene": "nope", "reason": "x"}]}, "known: builtin"),
        ({"baseline": "n1g2"}, "more.yaml: baseline 'n1g2': expected strategy/layout, e.g. replicated/n1g1"),
        ({"baseline": "replicate/n1g2"}, "no strategy 'replicate'; did you mean 'replicated'"),
        ({"baseline": "replicated/n1g8"}, "no layout 'n1g8'"),
    ],
)
def test_a_mistake_names_the_file_on_top(
    repository: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    overlay = tmp_path / "more.yaml"
    overlay.write_text(yaml.safe_dump(change))
    with pytest.raises(UserError, match=message):
        load_study(repository / "config", [overlay])


def test_licences_are_those_of_the_scenes_and_of_published_ones(repository: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "more.yaml"
    overlay.write_text("scenes: [builtin, truck, mine]\nscene_library: {mine: {images: x}}\n")
    licences = load_study(repository / "config", [overlay]).licences()
    assert (
        licences["builtin"] == "Apache-2.0" and "CC BY-NC-SA" in licences["truck"] and "mine" not in licences
    )


def test_only_what_decides_the_packed_scene_reaches_ingest(repository: Path, tmp_path: Path) -> None:
    def asked(text: str) -> str:
        overlay = tmp_path / "more.yaml"
        overlay.write_text(f"scene_library: {{builtin: {{{text}}}}}")
        return load_study(repository / "config", [overlay]).scene("builtin").ingest_json()

    same = asked("test_every: 8")
    assert asked("licence: mine, sfm: {timeout_s: 60, memory_gib: 2, num_threads: 1}") == same
    assert asked("sfm: {num_features: 99}") != same and asked("test_every: 4") != same


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ({"colmap": "/m", "images": "/p"}, {"colmap": "/m", "images": "/p"}),
        ({"images": "/p"}, {"images": "/p"}),
        ({"builtin": {"seed": 3}, "licence": "mine"}, {"builtin": {"seed": 3}, "licence": "mine"}),
        ({"test_every": 4}, {"download": "mipnerf360/room", "max_width_px": 1557, "test_every": 4}),
        ({"download": "tandt/train"}, {"download": "tandt/train", "max_width_px": 1557}),
        ({"download": None, "images": "/p"}, {"images": "/p"}),
    ],
)
def test_a_scene_given_another_source_is_defined_anew(
    repository: Path, tmp_path: Path, definition: dict[str, Any], expected: dict[str, Any]
) -> None:
    """`room` is also the name of a scene of the library, which is downloaded."""
    overlay = tmp_path / "more.yaml"
    overlay.write_text(yaml.safe_dump({"scene_library": {"room": definition}}))
    assert load_study(repository / "config", [overlay]).scene("room") == Scene(**expected)


def test_a_file_on_top_of_the_new_definition_changes_that_one(repository: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("scene_library: {room: {colmap: /m, images: /p, test_every: 5}}")
    two.write_text("scene_library: {room: {images: /q}}")
    scene = load_study(repository / "config", [one, two]).scene("room")
    assert scene == Scene(colmap="/m", images="/q", test_every=5)


def test_a_definition_that_cannot_be_right_names_both_files(repository: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "more.yaml"
    overlay.write_text("scene_library: {room: {colmap: /m}}")
    with pytest.raises(UserError, match=r"more\.yaml.*scenes\.yaml.*room.*`images`"):
        load_study(repository / "config", [overlay])
    overlay.write_text("scene_library: {room: {download: tandt/train, builtin: {}}}")
    with pytest.raises(UserError, match="builtin and download"):
        load_study(repository / "config", [overlay])


def test_home_folders_are_found_wherever_a_path_stands(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dist3dgs.slurm.site import read_site

    monkeypatch.setenv("HOME", str(tmp_path))
    overlay = tmp_path / "more.yaml"
    overlay.write_text(
        "{results: ~/r, data: ~/d, scene_library: {a: {colmap: ~/m, images: ~/p, truth: ~/t.json},"
        " b: {download: '~/x.zip#in'}}}"
    )
    study = load_study(repository / "config", [overlay])
    scene = study.scene("a")
    assert (scene.colmap, scene.images, scene.truth) == tuple(f"{tmp_path}/{x}" for x in ("m", "p", "t.json"))
    assert study.scene("b").download == f"{tmp_path}/x.zip#in"
    assert (study.config.results, study.config.data) == (f"{tmp_path}/r", f"{tmp_path}/d")
    site = read_site({"image": "~/x.sif", "binds": ["~/data:/data"]})
    assert (site.image, site.binds) == (f"{tmp_path}/x.sif", [f"{tmp_path}/data:/data"])
    for text in ("results: ~nobody-of-that-name/r", "scene_library: {a: {images: ~nobody-of-that-name/p}}"):
        overlay.write_text(text)
        with pytest.raises(UserError, match=r"more\.yaml.*~nobody-of-that-name"):
            load_study(repository / "config", [overlay])


def test_command_line_problems_of_a_command_line_are_found(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("seed: 1\n")
    bad.write_text("seed: [1\n")
    (problem,) = command_line_problems(
        ["snakemake", "--configfile", str(good), str(bad), "--cores", "2", "--", "all"]
    )
    assert "bad.yaml, line" in problem
    assert len(command_line_problems(["snakemake", f"--configfiles={bad}"])) == 1
    (problem,) = command_line_problems(["snakemake", "--configfile", str(good), "all"])
    assert "all: no such file" in problem and "-- all" in problem
    (problem,) = command_line_problems(["snakemake", "--configfile", str(tmp_path)])
    assert "directory; expected a file" in problem
    (problem,) = command_line_problems(["snakemake", "--config", "results=x", "train.steps=5", "--", "y"])
    assert "train.steps=5: expected NAME=VALUE" in problem
    assert command_line_problems(["snakemake", "--cores", str(bad)]) == []
