"""Unpacking: nothing leaves its folder, no links, bombs are refused, all or nothing."""

import io
import os
import stat
import struct
import tarfile
import zipfile

import pytest

from dist3dgs.errors import UserError
from dist3dgs.scenes.download import archive as module
from dist3dgs.scenes.download.archive import extract_scene

GOOD = {"garden/images/a.jpg": b"aaa", "garden/sparse/0/cameras.bin": b"ccc", "room/images/b.jpg": b"bbb"}


def make_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as z:
        for name, content in members.items():
            z.writestr(name, content)
    return path


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as t:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return path


MAKERS = {"zip": make_zip, "tar.gz": make_tar, "tar": lambda p, m: make_tar(p, m, "w")}


@pytest.fixture(params=MAKERS)
def make(request, tmp_path):
    return lambda members: MAKERS[request.param](tmp_path / f"scenes.{request.param}", members)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive, tmp_path, match, folder="garden"):
    target = tmp_path / "data" / "garden"
    with pytest.raises(UserError, match=match) as error:
        extract_scene(archive, folder, target)
    assert str(archive) in str(error.value)
    assert not target.exists()
    assert tree(tmp_path).keys() == {archive.name}, "something was left behind"


def test_one_scene_of_an_archive(make, tmp_path):
    extract_scene(make(GOOD), "garden", tmp_path / "data" / "x")
    assert tree(tmp_path / "data" / "x") == {"images/a.jpg": b"aaa", "sparse/0/cameras.bin": b"ccc"}


def test_a_wrapper_folder_is_tolerated(make, tmp_path):
    extract_scene(make({f"360_v2/{k}": v for k, v in GOOD.items()}), "garden", tmp_path / "x")
    assert tree(tmp_path / "x").keys() == {"images/a.jpg", "sparse/0/cameras.bin"}


def test_nested_folder_and_whole_archive(make, tmp_path):
    archive = make({"db/playroom/images/a.jpg": b"a", "tandt/train/images/b.jpg": b"b"})
    extract_scene(archive, "tandt/train", tmp_path / "x")
    assert tree(tmp_path / "x") == {"images/b.jpg": b"b"}
    extract_scene(archive, "", tmp_path / "y")
    assert tree(tmp_path / "y").keys() == {"db/playroom/images/a.jpg", "tandt/train/images/b.jpg"}


def test_no_such_folder(make, tmp_path):
    refused(make(GOOD), tmp_path, "no folder 'flowers' in it. It holds: garden/images", folder="flowers")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        "garden/../../evil.txt",
        "/etc/evil.txt",
        "garden/..\\..\\evil.txt",
        "C:/evil.txt",
        "garden/..",
    ],
)
def test_members_that_would_leave_their_folder(make, tmp_path, name):
    refused(make(GOOD | {name: b"evil"}), tmp_path, "would leave its folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    path = make_tar(tmp_path / "a.tar", GOOD, "w")
    with tarfile.open(path, "a") as t:
        info = tarfile.TarInfo("garden/link")
        info.type, info.linkname = kind, "/etc/passwd"
        t.addfile(info)
    refused(path, tmp_path, "link or a device")


def test_links_in_a_zip(tmp_path):
    path = make_zip(tmp_path / "a.zip", GOOD)
    with zipfile.ZipFile(path, "a") as z:
        info = zipfile.ZipInfo("garden/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, "/etc/passwd")
    refused(path, tmp_path, "link or a device")


def test_bombs(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RATIO_FROM_BYTES", 2**20)
    archive = make(GOOD | {"garden/zeros": b"\0" * 2**22})
    if archive.suffix == ".tar":  # not compressed: it is as large as it says
        extract_scene(archive, "garden", tmp_path / "x")
        return
    if archive.suffix == ".zip":
        archive = make_zip(archive, GOOD | {"garden/zeros": b"\0" * 2**22}, compression=zipfile.ZIP_DEFLATED)
    refused(archive, tmp_path, "grow")


def test_too_much_in_all(make, tmp_path, monkeypatch):
    archive = make(GOOD)
    monkeypatch.setattr(module, "MAX_BYTES", 5)
    refused(archive, tmp_path, "would unpack to")
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    refused(archive, tmp_path, "more than 2 files")


def test_a_zip_that_lies_about_sizes(tmp_path):
    """The directory says 3 bytes; the stream has more."""
    path = make_zip(tmp_path / "a.zip", {"garden/a": b"x" * 1000}, compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 3)
    path.write_bytes(data)
    refused(path, tmp_path, "damaged|longer than it says")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.75])
def test_cut_archives(make, tmp_path, share):
    archive = make({"garden/a": os.urandom(20_000), "garden/b": os.urandom(20_000)})
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    refused(archive, tmp_path, "damaged|ends early|no folder")


def test_flipped_byte_in_a_zip(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"garden/a": os.urandom(5000)})
    data = bytearray(path.read_bytes())
    data[2500] ^= 1
    path.write_bytes(data)
    refused(path, tmp_path, "damaged")


def test_an_earlier_interrupted_unpacking_is_replaced(make, tmp_path):
    (tmp_path / ".x.extracting").mkdir()
    (tmp_path / ".x.extracting" / "half").write_bytes(b"h")
    extract_scene(make(GOOD), "garden", tmp_path / "x")
    assert tree(tmp_path / "x").keys() == {"images/a.jpg", "sparse/0/cameras.bin"}
    assert not (tmp_path / ".x.extracting").exists()
