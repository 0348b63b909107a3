import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.config.naming import (
    LAYOUT_PATTERN,
    NAME_PATTERN,
    Layout,
    Point,
    check_name,
    how_to_make,
    is_target,
    point_folder,
)
from dist3dgs.errors import UserError


@pytest.mark.parametrize("text", ["n1g1", "n2g4", "n8g8", "n100g16"])
def test_layout_round_trip(text: str) -> None:
    assert str(Layout.parse(text)) == text


def test_world_size() -> None:
    assert Layout.parse("n2g4").world_size == 8


@pytest.mark.parametrize(
    "text", ["n0g4", "n1g0", "1x4", "n01g1", "n1g1 ", "n1g1\n", "N1G1", "", None, 4, "n-1g1"]
)
def test_bad_layouts_are_refused_with_an_example(text: object) -> None:
    with pytest.raises(UserError, match="n1g4"):
        Layout.parse(text)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        "a/b",
        "/a",
        "a b",
        "a;b",
        "$(id)",
        "`id`",
        "-rf",
        "a\n",
        ".a",
        "a.",
        "a" * 65,
        "ä",
        None,
    ],
)
def test_names_that_could_leave_a_path_or_enter_a_shell_are_refused(name: object) -> None:
    with pytest.raises(UserError, match="scene name"):
        check_name(name, "scene")


@given(st.text(max_size=70))
def test_an_accepted_name_is_one_safe_path_component(name: str) -> None:
    try:
        check_name(name, "scene")
    except UserError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name) and ".." not in name and name[0] not in ".-"


def test_a_point_knows_its_folder() -> None:
    assert str(Point.parse("garden", "ddp", "n8g4", "r2").path) == "garden/ddp/n8g4/r2"
    with pytest.raises(UserError, match="r0"):
        Point.parse("garden", "ddp", "n8g4", "x")


def test_the_patterns_for_snakemake_agree_with_the_parsers() -> None:
    assert re.fullmatch(LAYOUT_PATTERN, "n2g4") and not re.fullmatch(LAYOUT_PATTERN, "n0g4")
    assert re.fullmatch(NAME_PATTERN, "a.b-c_d") and not re.fullmatch(NAME_PATTERN, "a..b")


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("results/mine/replicated/n1g2/r0/record.json", True),
        ("/data/study/mine/replicated/n1g2/r0/launch.json", True),
        ("data/mine/scene.safetensors", True),
        ("record.json", False),
        ("mine/replicated/n1g2/r0/record.json", False),
        ("results/mine/replicated/n0g2/r0/record.json", False),
        ("results/mine/replicated/n1g2/record.json", False),
        ("scene.safetensors", False),
        ("", False),
    ],
)
def test_only_what_the_workflow_makes_is_called_a_target(path: str, is_one: bool) -> None:
    assert is_target(Path(path)) is is_one
    assert how_to_make(Path(path)) == (
        f"; make it with: snakemake --profile profiles/local {path}" if is_one else ""
    )


def test_parts_of_a_point_have_a_folder_below_it() -> None:
    part = Point.parse("garden", "blocks-jobs", "n1g1", "r1", "block-2")
    assert str(part) == "garden/blocks-jobs/n1g1/r1/parts/block-2" and Point.named(str(part)) == part
    assert point_folder(part.folder(Path("results"))) == Path("results/garden/blocks-jobs/n1g1/r1")
    assert is_target(Path("results", part.path, "launch.json"))
    assert not is_target(Path("results", part.path, "record.json"))
    with pytest.raises(UserError, match="part 'merge': expected coarse, block-0"):
        Point.parse("garden", "blocks-jobs", "n1g1", "r1", "merge")
