"""The files of a scene, as all who list them see them: links, loops, odd names, litter."""

import os
import unicodedata
from pathlib import Path

import pytest

from dist3dgs.errors import UserError
from dist3dgs.scenes.listing import list_files, not_a_folder, scene_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    touch(root, "a.jpg", "left/1.jpg")
    return root


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_linked_folders_and_files_are_found(folder: Path, tmp_path: Path) -> None:
    touch(tmp_path / "store", "right/1.jpg", "right/deep/2.jpg", "b.jpg")
    (folder / "right").symlink_to("../store/right")
    (folder / "b.jpg").symlink_to("../store/b.jpg")
    (tmp_path / "linked").symlink_to(folder)
    for root in (folder, tmp_path / "linked"):
        listing = list_files(root)
        assert list(listing.files) == ["a.jpg", "b.jpg", "left/1.jpg", "right/1.jpg", "right/deep/2.jpg"]
        assert not listing.skipped and all(p == root / name for name, p in listing.files.items())


@pytest.mark.parametrize("target", [".", "..", "../..", "left", "/"])
def test_loops_end_and_are_named(folder: Path, target: str) -> None:
    (folder / "left/back").symlink_to(target if target == "/" else Path("..", target))
    (folder / "left/itself").symlink_to("itself")
    listing = list_files(folder)
    assert list(listing.files) == ["a.jpg", "left/1.jpg"]
    assert "loops are not followed" in listing.skipped["left/back"]
    assert "link" in listing.skipped["left/itself"]


def test_a_folder_reached_twice_counts_once_under_its_own_name(folder: Path) -> None:
    (folder / "again").symlink_to("left")
    listing = list_files(folder)
    assert list(listing.files) == ["a.jpg", "left/1.jpg"] and "left" in listing.skipped["again"]
    # but a COLMAP model may know it by the other
    assert listing.find("again/1.jpg") == ("again/1.jpg", folder / "again/1.jpg")


def test_what_cannot_be_used_is_named_and_costs_nothing_else(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe")
    touch(folder, "line\nbreak.jpg", "left/\x1b[31mred.jpg", "par\u2029a.jpg")
    latin = os.fsencode(folder) + b"/caf\xe9"
    odd = Path(os.fsdecode(latin))
    odd.mkdir()
    Path(odd, "1.jpg").write_bytes(b"x")
    listing = list_files(folder)
    assert list(listing.files) == ["a.jpg", "left/1.jpg"]
    assert listing.skipped == {
        "gone.jpg": "a broken link",
        "pipe": "neither a file nor a folder",
        **dict.fromkeys(
            ["line\\nbreak.jpg", "left/\\x1b[31mred.jpg", "par\\u2029a.jpg"],
            "its name has a line break or another control character; rename it",
        ),
        "caf\\udce9": "its name is not UTF-8; rename it (`convmv -f latin1 -t utf8 --notest FILE`)",
    }
    for text in listing.skipped:
        assert text.isprintable() and text.encode()


def test_valid_names_are_used_whatever_is_in_them(folder: Path) -> None:
    names = [
        "Screenshot 9.41.00\u202fAM.jpg", "a\u00a0b.jpg", "{x}.jpg", "$(rm -rf).jpg", "back\\slash.jpg", "-n.jpg",
        "👩‍🔬.jpg", "'quote\".jpg", " leading.jpg", "trailing .jpg", unicodedata.normalize("NFD", "é.jpg"),
    ]  # fmt: skip
    touch(folder, *names)
    listing = list_files(folder)
    assert {*listing.files} == {*names, "a.jpg", "left/1.jpg"} and not listing.skipped


def test_litter_is_ignored(folder: Path) -> None:
    touch(
        folder, "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX/._a.jpg", "@eaDir/a.jpg/x.jpg",
        ".thumbnails/a.jpg", "left/.nfs0001",
    )  # fmt: skip
    listing = list_files(folder)
    assert list(listing.files) == ["a.jpg", "left/1.jpg"] and not listing.skipped


def test_names_of_a_model_are_found_in_either_normal_form(folder: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Prūhonice/žába.jpg") for form in ("NFC", "NFD"))
    assert composed != decomposed
    touch(folder, decomposed, "ň.jpg")
    listing = list_files(folder)
    assert listing.find(composed) == (decomposed, folder / decomposed)
    assert listing.find(unicodedata.normalize("NFD", "ň.jpg")) == ("ň.jpg", folder / "ň.jpg")
    assert listing.find("left\\1.jpg") == ("left/1.jpg", folder / "left/1.jpg")
    assert listing.find("none.jpg") is None and listing.find("left") is None


def test_a_scene_is_its_photographs_smaller_copies_and_model(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/a.jpg", "images_2/a.jpg", "images_x/a.jpg", "sparse/0/cameras.bin", "sparse/0/.swp"
    )
    images, model = tmp_path / "images", tmp_path / "sparse"
    names = [p.relative_to(tmp_path).as_posix() for p in scene_files(images, model)]
    assert names == ["images/a.jpg", "images_2/a.jpg", "sparse/0/cameras.bin"]
    assert scene_files(images, None) == [images / "a.jpg"]
    assert len(scene_files(images, tmp_path)) == 4, "each file once"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: cannot be read"):
        list_files(tmp_path / "nothing")
    assert "no such folder" in not_a_folder(tmp_path / "nothing")
    touch(tmp_path, "my clip.MOV", "notes.txt")
    said = not_a_folder(tmp_path / "my clip.MOV")
    assert "ffmpeg -i" in said and f"`images: {tmp_path / 'my clip'}`" in said
    assert "a file" in not_a_folder(tmp_path / "notes.txt")
