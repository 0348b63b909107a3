"""Fetching over real HTTP from a small server on this machine that breaks in every way it is told to."""

import hashlib
import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from dist3dgs.config.published_scenes import PUBLISHED, download_spec
from dist3dgs.errors import UserError
from dist3dgs.scenes.download import fetch as module
from dist3dgs.scenes.download.fetch import fetch_scene
from tests.unit.scenes.test_archive import make_zip


class Server(http.server.ThreadingHTTPServer):
    """content: bytes by path. script: what to do with the next requests ("cut N", a status, "norange", ...)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.script, self.log, self.etag = {}, [], [], '"one"'
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        order = self.server.script.pop(0) if self.server.script else ""
        wanted = self.headers.get("Range")
        self.server.log.append(wanted)
        data = self.server.content.get(self.path.lstrip("/"))
        if data is None or order.isdigit():
            self.send_error(int(order or 404))
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if order == "norange" or (wanted and self.headers.get("If-Range") != self.server.etag):
            start, wanted = 0, None
        if wanted and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            shown = start + 1 if order == "wrongrange" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if order.startswith("cut"):
            self.wfile.write(body[: int(order.split()[1])])
            self.wfile.flush()
            self.connection.close()
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(module, "TIMEOUT_S", 5.0)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "origin").mkdir()
    members = {
        "garden/images/a.jpg": os.urandom(100_000),
        "garden/sparse/0/cameras.bin": b"c",
        "room/x": b"y",
    }
    return make_zip(tmp_path / "origin" / "scenes.zip", members)


@pytest.fixture
def fetch(server, archive, tmp_path):
    server.content["scenes.zip"] = archive.read_bytes()

    def run(name="garden", folder="garden", **spec):
        spec = {"url": server.url("scenes.zip"), "folder": folder} | spec
        return fetch_scene(name, spec, tmp_path / "data", tmp_path / "lock.yaml", say=lambda text: None)

    return run


def check(folder, archive):
    assert (folder / "sparse/0/cameras.bin").read_bytes() == b"c"
    assert (folder / "images/a.jpg").stat().st_size == 100_000
    return True


def test_plain_download(fetch, server, archive, tmp_path):
    folder = fetch()
    assert folder == tmp_path / "data/garden/source" and check(folder, archive)
    lock = yaml.safe_load((tmp_path / "lock.yaml").read_text())
    sha = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert lock == {server.url("scenes.zip"): {"sha256": sha, "num_bytes": archive.stat().st_size}}
    assert not list((tmp_path / "data/archives").glob("*.part*"))
    assert fetch() == folder and len(server.log) == 1, "a scene that is there is not fetched again"
    assert (fetch("room", "room") / "x").read_bytes() == b"y"
    assert len(server.log) == 1, "an archive that is there is not fetched again"


def test_a_lost_connection_is_resumed(fetch, server, archive):
    server.script = ["cut 30000", "cut 30000", "503"]
    assert check(fetch(), archive)
    assert server.log == [None, "bytes=30000-", "bytes=60000-", "bytes=60000-"]


def test_an_interrupted_run_is_resumed_by_the_next(fetch, server, archive, monkeypatch):
    server.script = ["cut 5000"]
    monkeypatch.setattr(module, "NUM_TRIES", 1)
    with pytest.raises(UserError, match=r"resumes at 5000 bytes"):
        fetch()
    assert check(fetch(), archive) and server.log[1] == "bytes=5000-"


@pytest.mark.parametrize("order", ["norange", "wrongrange"])
def test_servers_that_cannot_resume(fetch, server, archive, order):
    server.script = ["cut 30000", order]
    assert check(fetch(), archive)


def test_without_a_validator_it_starts_over(fetch, server, archive):
    """No ETag and no date: the rest might belong to another file."""
    server.etag = 'W/"weak"'
    server.script = ["cut 30000"]
    assert check(fetch(), archive)
    assert server.log == [None, None]


def test_an_archive_that_changed_meanwhile_is_fetched_whole(fetch, server, archive, tmp_path, monkeypatch):
    old = server.content["scenes.zip"]
    server.script = ["cut 30000"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "NUM_TRIES", 1)
        with pytest.raises(UserError):
            fetch()
    other = make_zip(
        tmp_path / "origin/other.zip",
        {"garden/images/a.jpg": b"n" * 100_000, "garden/sparse/0/cameras.bin": b"c"},
    )
    server.content["scenes.zip"], server.etag = other.read_bytes(), '"two"'
    assert check(fetch(), archive)
    assert (tmp_path / "data/archives/scenes.zip").read_bytes() == other.read_bytes() != old


def test_a_finished_part_is_taken_over(fetch, server, archive, tmp_path):
    """Killed between the last byte and the rename: the server answers 416."""
    parts = tmp_path / "data/archives"
    parts.mkdir(parents=True)
    (parts / "scenes.zip.part").write_bytes(archive.read_bytes())
    (parts / "scenes.zip.part.json").write_text('{"validator": "\\"one\\""}')
    assert check(fetch(), archive)
    (parts / "scenes.zip").unlink()
    (parts / "scenes.zip.part").write_bytes(archive.read_bytes() + b"more than there is")
    (parts / "scenes.zip.part.json").write_text('{"validator": "\\"one\\""}')
    assert (fetch("room", "room") / "x").exists()


def test_final_answers_are_not_retried(fetch, server):
    server.script = ["404"]
    with pytest.raises(UserError, match="404"):
        fetch()
    assert len(server.log) == 1


def test_giving_up(fetch, server, monkeypatch):
    server.script = ["503"] * 20
    with pytest.raises(UserError, match=f"{module.NUM_TRIES} tries.*503"):
        fetch()
    assert len(server.log) == module.NUM_TRIES


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    spec = {"url": "http://127.0.0.1:9/scenes.zip", "folder": "x"}
    with pytest.raises(UserError, match="not fetched"):
        fetch_scene("x", spec, tmp_path / "data", tmp_path / "lock.yaml", say=lambda text: None)


def test_sums_are_enforced(fetch, server, archive, tmp_path):
    lock = tmp_path / "lock.yaml"
    url = server.url("scenes.zip")
    lock.write_text(yaml.safe_dump({url: {"sha256": "0" * 64, "num_bytes": archive.stat().st_size}}))
    with pytest.raises(UserError, match=r"SHA-256.*expected.*0000") as error:
        fetch()
    assert str(lock) in str(error.value)
    assert not (tmp_path / "data/archives/scenes.zip").exists() and not (tmp_path / "data/garden").exists()
    with pytest.raises(UserError, match="expected"):
        fetch(sha256="1" * 64)
    lock.write_text("")
    with pytest.raises(UserError, match=r"the server offers|bytes"):
        fetch(num_bytes=17)
    sha = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert check(fetch(sha256=sha, num_bytes=archive.stat().st_size), archive)


@pytest.mark.parametrize("text", ["[1, 2]", "a: b", "{", "\xff"])
def test_a_damaged_lock_file_is_named(fetch, tmp_path, text):
    (tmp_path / "lock.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"lock\.yaml"):
        fetch()


def test_the_disk_is_too_small(fetch, tmp_path, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr(module.shutil, "disk_usage", lambda p: namedtuple("Usage", "free")(10))
    with pytest.raises(UserError, match=r"GiB are\s+free"):
        fetch()


def test_two_scenes_of_one_archive_at_the_same_time(fetch, server, archive):
    with ThreadPoolExecutor(2) as pool:
        garden, room = pool.submit(fetch), pool.submit(fetch, "room", "room")
        assert check(garden.result(), archive) and (room.result() / "x").exists()
    assert len(server.log) == 1


@pytest.mark.parametrize("form", ["file://{}", "{}"])
def test_local_archives(archive, tmp_path, form):
    spec = download_spec(form.format(archive) + "#garden")
    folder = fetch_scene("garden", spec, tmp_path / "data", tmp_path / "lock.yaml", say=lambda text: None)
    assert check(folder, archive)
    assert not list((tmp_path / "data/archives").glob("*.zip")), "a local archive is not copied"
    lock = yaml.safe_load((tmp_path / "lock.yaml").read_text())
    archive.write_bytes(archive.read_bytes() + b"x")
    assert len(lock) == 1
    with pytest.raises(UserError, match="expected"):
        fetch_scene("again", spec, tmp_path / "data", tmp_path / "lock.yaml", say=lambda text: None)
    assert archive.exists(), "somebody else's file is never deleted"


def test_local_folders_are_used_where_they_are(tmp_path):
    (tmp_path / "sets/garden").mkdir(parents=True)
    spec = download_spec(f"{tmp_path}/sets#garden")
    assert fetch_scene("g", spec, tmp_path / "data", tmp_path / "lock.yaml") == tmp_path / "sets/garden"
    for folder in ("nothing", "../../etc"):
        with pytest.raises(UserError, match="no folder"):
            fetch_scene(
                "g", download_spec(f"{tmp_path}/sets#{folder}"), tmp_path / "data", tmp_path / "lock.yaml"
            )


@pytest.mark.parametrize("url", ["ftp://host/x.zip", "gopher://x", "file://host/x.zip", "/no/such/file.zip"])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(UserError, match="download"):
        fetch_scene("g", {"url": url}, tmp_path / "data", tmp_path / "lock.yaml")


def test_not_an_archive(server, tmp_path):
    server.content["page.zip"] = b"<html>please log in</html>"
    with pytest.raises(UserError, match=r"zip.*tar"):
        fetch_scene(
            "g",
            {"url": server.url("page.zip")},
            tmp_path / "data",
            tmp_path / "lock.yaml",
            say=lambda t: None,
        )


def test_hostile_file_names_stay_in_the_archives_folder(server, archive, tmp_path):
    for path in ("..%2f..%2fevil", ".hidden", "a" * 300, "%00"):
        server.content[path] = archive.read_bytes()
        spec = {"url": server.url(path), "folder": "garden"}
        fetch_scene("garden", spec, tmp_path / "data", tmp_path / "lock.yaml", say=lambda text: None)
        assert {p.parent for p in tmp_path.rglob("*.archive")} <= {tmp_path / "data/archives"}
        assert not (tmp_path / "evil").exists()


def test_all_published_scenes_are_listed():
    mip = {"bicycle", "bonsai", "counter", "flowers", "garden", "kitchen", "room", "stump", "treehill"}
    assert {k.split("/")[1] for k in PUBLISHED if k.startswith("mipnerf360/")} == mip
    assert {"tandt/train", "tandt/truck", "deepblending/playroom", "deepblending/drjohnson"} <= set(PUBLISHED)
    assert len(PUBLISHED) == 13
    for name in PUBLISHED:
        spec = download_spec(name)
        assert spec["url"].startswith("https://") and spec["folder"] and spec["terms"]


def test_unknown_scene_names_the_known():
    with pytest.raises(UserError, match="mipnerf360/garden"):
        download_spec("mipnerf360/gardn")
