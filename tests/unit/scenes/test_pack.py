"""The packed scene: exact, deterministic, mapped, whole or absent."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from dist3dgs.errors import UserError
from dist3dgs.scenes.normalize import (
    apply_to_points,
    apply_to_viewmats,
    camera_centres,
    normalisation_of,
)
from dist3dgs.scenes.pack import PackedScene, scene_extent, write_packed
from tests.unit.helpers.packs import content_digest

SIZES = [(20, 10), (20, 10), (14, 18)]


def scene_arrays(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    num = len(sizes)
    viewmats = np.tile(np.eye(4), (num, 1, 1))
    viewmats[:, :3, 3] = rng.normal(size=(num, 3))
    return {
        "name": "test",
        "view_names": [f"v{i}.png" for i in range(num)],
        "is_test": np.arange(num) % 8 == 0,
        "sizes": np.array(sizes, np.int32),
        "images": [rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in sizes],
        "viewmats": viewmats,
        "Ks": np.tile(np.diag([50.0, 50.0, 1.0]), (num, 1, 1)),
        "points": rng.normal(size=(7, 3)).astype(np.float32),
        "colors": rng.integers(0, 256, (7, 3), np.uint8),
        "extent": 1.2345678901234567,
        "normalisation": np.eye(4),
    }


def test_round_trip(tmp_path):
    arrays = scene_arrays()
    digest = write_packed(tmp_path / "s.safetensors", **arrays)
    scene = PackedScene.open(tmp_path / "s.safetensors")
    assert (scene.name, scene.digest, scene.num_views, scene.extent) == ("test", digest, 3, arrays["extent"])
    assert scene.view_names == arrays["view_names"]
    assert scene.train_ids.tolist() == [1, 2] and scene.test_ids.tolist() == [0]
    for i, image in enumerate(arrays["images"]):
        np.testing.assert_array_equal(scene.image(i), image)
    for key in ("viewmats", "Ks", "points", "colors", "normalisation", "sizes"):
        np.testing.assert_array_equal(getattr(scene, key), arrays[key])
        assert getattr(scene, key).dtype == arrays[key].dtype


def test_the_safetensors_library_reads_it(tmp_path):
    from safetensors import safe_open

    arrays = scene_arrays()
    write_packed(tmp_path / "s.safetensors", **arrays)
    with safe_open(tmp_path / "s.safetensors", "numpy") as f:
        assert f.metadata()["name"] == "test"
        np.testing.assert_array_equal(f.get_tensor("Ks"), arrays["Ks"])
        np.testing.assert_array_equal(f.get_tensor("points"), arrays["points"])
        pixels = np.concatenate([x.ravel() for x in arrays["images"]])
        np.testing.assert_array_equal(f.get_tensor("pixels"), pixels)


def test_same_content_same_bytes_and_any_change_another_digest(tmp_path):
    first = write_packed(tmp_path / "a", **scene_arrays())
    again = write_packed(tmp_path / "b", **scene_arrays())
    assert first == again == content_digest(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    digests = {first}
    for key, value in (("name", "other"), ("extent", 2.0), ("is_test", np.array([False, True, False]))):
        digests.add(write_packed(tmp_path / "c", **(scene_arrays() | {key: value})))
    images = scene_arrays()["images"]
    images[2][0, 0, 0] ^= 1
    digests.add(write_packed(tmp_path / "c", **(scene_arrays() | {"images": images})))
    assert len(digests) == 5


def test_an_altered_byte_is_found(tmp_path):
    path = tmp_path / "s"
    digest = write_packed(path, **scene_arrays())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert PackedScene.open(path).digest == digest != content_digest(path)


def test_opening_costs_no_copy_and_little_time(tmp_path):
    """200 MiB of pixels are mapped, and none of them read before they are used."""
    sizes = [(1024, 680)] * 100
    black = np.zeros((680, 1024, 3), np.uint8)
    arrays = scene_arrays([(4, 4)]) | {
        "sizes": np.array(sizes, np.int32),
        "images": (black for _ in sizes),
        "view_names": [f"{i:03d}" for i in range(100)],
        "is_test": np.arange(100) % 8 == 0,
        "viewmats": np.tile(np.eye(4), (100, 1, 1)),
        "Ks": np.tile(np.eye(3), (100, 1, 1)),
    }
    write_packed(tmp_path / "s", **arrays)
    tracemalloc.start()
    scene = PackedScene.open(tmp_path / "s")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    view = scene.image(57)
    assert not view.flags.owndata and not view.flags.writeable
    assert np.shares_memory(view, scene.image(57)), "no copy"


def test_opening_imports_neither_torch_nor_pycolmap():
    code = "import sys, dist3dgs.scenes.pack; print([m for m in ('torch', 'pycolmap', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "s"
    digest = write_packed(path, **scene_arrays())

    def broken():
        yield scene_arrays()["images"][0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_packed(path, **(scene_arrays() | {"images": broken()}))
    assert PackedScene.open(path).digest == digest
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_full_disk_leaves_no_half_file(tmp_path):
    """A real failing write: the process may write no file larger than 1,000 bytes."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path\n"
        "from tests.unit.scenes.test_pack import scene_arrays, write_packed\n"
        "write_packed(Path(sys.argv[1]) / 's', **scene_arrays())\n"
    )
    # -B: no compiled module is cut off either, which the next process would read.
    done = subprocess.run([sys.executable, "-B", "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_wrong_view_is_refused(tmp_path):
    images = scene_arrays()["images"]
    with pytest.raises(ValueError, match="expected"):
        write_packed(
            tmp_path / "s", **(scene_arrays() | {"images": [images[0].astype(np.float32), *images[1:]]})
        )
    with pytest.raises(ValueError, match="expected"):
        write_packed(tmp_path / "s", **(scene_arrays() | {"images": images[::-1]}))
    with pytest.raises(ValueError):
        write_packed(tmp_path / "s", **(scene_arrays() | {"images": images[:2]}))
    assert not (tmp_path / "s").exists()


def rewrite_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"abc"),
        lambda p: p.write_bytes(b"\xff" * 100),
        lambda p: p.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.write_bytes(p.read_bytes()[:300]),
        lambda p: rewrite_header(p, lambda h: h.pop("Ks")),
        lambda p: rewrite_header(p, lambda h: h.pop("__metadata__")),
        lambda p: rewrite_header(p, lambda h: h["__metadata__"].update(format="other")),
        lambda p: rewrite_header(p, lambda h: h["pixels"].update(data_offsets=[0, 2**60])),
        lambda p: rewrite_header(p, lambda h: h["pixels"].update(data_offsets=[-8, 8])),
        lambda p: rewrite_header(p, lambda h: h["Ks"].update(shape=[2, 3, 3])),
        lambda p: rewrite_header(p, lambda h: h["Ks"].update(shape=[3, 9])),
        lambda p: rewrite_header(p, lambda h: h["Ks"].update(dtype="F99")),
        lambda p: rewrite_header(p, lambda h: h["__metadata__"].update(view_names='["a"]')),
        lambda p: rewrite_header(p, lambda h: h["__metadata__"].update(view_names="}")),
        lambda p: p.unlink(),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "s"
    write_packed(path, **scene_arrays())
    damage(path)
    with pytest.raises(UserError, match=str(path)):
        PackedScene.open(path)


def test_extent_is_that_of_3dgs():
    """1.1 x the largest distance from the mean centre, on cameras whose centres are known."""
    centres = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 3.0, 0], [0, -3.0, 0]])
    viewmats = np.tile(np.eye(4), (4, 1, 1))
    viewmats[:, :3, :3] = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    viewmats[:, :3, 3] = -centres @ viewmats[0, :3, :3].T
    np.testing.assert_allclose(camera_centres(viewmats), centres)
    assert scene_extent(viewmats) == pytest.approx(3.3)


def random_cameras(rng, num=9):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    tilt = q * np.sign(np.linalg.det(q))
    viewmats = np.tile(np.eye(4), (num, 1, 1))
    for i in range(num):
        angle = 2 * np.pi * i / num
        turn = np.array([[-np.sin(angle), np.cos(angle), 0], [0, 0, -1], [-np.cos(angle), -np.sin(angle), 0]])
        centre = np.array([5 * np.cos(angle), 5 * np.sin(angle), 2.0])
        viewmats[i, :3, :3] = turn @ tilt.T
        viewmats[i, :3, 3] = -turn @ centre
    return viewmats


def test_normalisation_centres_turns_up_and_scales():
    rng = np.random.default_rng(0)
    viewmats = random_cameras(rng)
    similarity = normalisation_of(viewmats)
    moved = apply_to_viewmats(similarity, viewmats)
    centres = camera_centres(moved)
    np.testing.assert_allclose(centres.mean(0), 0, atol=1e-12)
    assert np.median(np.linalg.norm(centres, axis=1)) == pytest.approx(1)
    np.testing.assert_allclose(
        -moved[:, 1, :3], np.tile([0, 0, 1.0], (9, 1)), atol=1e-12
    )  # all cameras upright
    np.testing.assert_allclose(
        moved[:, :3, :3] @ moved[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (9, 1, 1)), atol=1e-12
    )
    # What a camera sees does not change: points go to the same directions.
    points = rng.normal(size=(20, 3))
    for before, after in zip(viewmats, moved, strict=True):
        a = points @ before[:3, :3].T + before[:3, 3]
        b = apply_to_points(similarity, points) @ after[:3, :3].T + after[:3, 3]
        np.testing.assert_allclose(
            a / np.linalg.norm(a, axis=1)[:, None], b / np.linalg.norm(b, axis=1)[:, None]
        )


@pytest.mark.parametrize("up", [(0, 0, 1.0), (0, 0, -1.0), (0, 1.0, 0)])
def test_normalisation_for_any_up(up):
    viewmats = np.tile(np.eye(4), (3, 1, 1))
    side = np.array([1.0, 0, 0])
    viewmats[:, :3, :3] = [side, -np.array(up), np.cross(side, -np.array(up))]
    viewmats[:, 0, 3] = [0, 1, 2]
    moved = apply_to_viewmats(normalisation_of(viewmats), viewmats)
    np.testing.assert_allclose(-moved[:, 1, :3], np.tile([0, 0, 1.0], (3, 1)), atol=1e-12)
    assert np.linalg.det(moved[0, :3, :3]) == pytest.approx(1)


def test_normalisation_of_cameras_in_one_place_stays_finite():
    viewmats = np.tile(np.eye(4), (3, 1, 1))
    assert np.isfinite(apply_to_viewmats(normalisation_of(viewmats), viewmats)).all()
