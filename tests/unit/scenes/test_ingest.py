"""Ingest of existing COLMAP models: everything but structure from motion, on real files."""

import json
import os
import socket
import subprocess
import tempfile
import unicodedata

import numpy as np
import pytest
from PIL import ExifTags, Image
from plyfile import PlyData

from dist3dgs.errors import UserError
from dist3dgs.files import sha256
from dist3dgs.scenes.colmap.cameras import ColmapCamera
from dist3dgs.scenes.ingest import IngestSettings, IngestSource, ingest
from dist3dgs.scenes.pack import PackedScene
from tests.unit.helpers.colmap_files import ring_model, write_bin, write_txt
from tests.unit.helpers.packs import content_digest

LENS = ColmapCamera("SIMPLE_RADIAL", 96, 64, (80.0, 48.0, 32.0, -0.05))


def photograph(path, width=96, height=64, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, len(path.name)])
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    pixels = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def scene(tmp_path):
    """12 photographs with a model in sparse/0, the way Mip-NeRF 360 is laid out."""
    folder = tmp_path / "court"
    model = ring_model(num_images=12)
    write_bin(model, folder / "sparse" / "0")
    for i, image in model.images.items():
        photograph(folder / "images" / image[3], seed=i)
    return folder


def run(folder, out=None, settings=None, **source):
    out = out or folder.parent / "out"
    source = IngestSource(name="court", kind="colmap", path=folder, **source)
    report = ingest(source, out, settings or IngestSettings(), say=lambda text: None)
    assert report == json.loads((out / "ingest.json").read_text())
    return report, PackedScene.open(out / "scene.safetensors")


def test_views_are_sorted_by_name_split_and_normalised(scene):
    report, packed = run(scene)
    assert packed.view_names == sorted(packed.view_names) and packed.num_views == 12
    assert packed.test_ids.tolist() == [0, 8] and report["num_test"] == 2
    for i, name in enumerate(packed.view_names):
        np.testing.assert_array_equal(packed.image(i), np.asarray(Image.open(scene / "images" / name)))
    centres = -np.einsum("cji,cj->ci", packed.viewmats[:, :3, :3], packed.viewmats[:, :3, 3])
    np.testing.assert_allclose(centres.mean(0), 0, atol=1e-9)
    train = centres[packed.train_ids]
    assert packed.extent == pytest.approx(1.1 * np.linalg.norm(train - train.mean(0), axis=1).max())


def test_what_was_packed_projects_where_the_model_says(scene):
    """The oracle over the whole chain: ids against names, normalisation, intrinsics."""
    _, packed = run(scene)
    fake = ring_model(num_images=12)
    by_name = {image[3]: image for image in fake.images.values()}
    for i, name in enumerate(packed.view_names):
        local = packed.points.astype(np.float64) @ packed.viewmats[i, :3, :3].T + packed.viewmats[i, :3, 3]
        pixels = local @ packed.Ks[i].T
        pixels = pixels[:, :2] / pixels[:, 2:]
        np.testing.assert_allclose(pixels, [o[:2] for o in by_name[name][4][:-1]], atol=1e-4)


def test_report_and_points(scene):
    report, packed = run(scene)
    assert report["num_images"] == {"registered": 12, "total": 12} and report["left_out"] == []
    assert report["num_points"] == 60 and report["reprojection_error_px"] < 1e-6
    assert report["digest"] == packed.digest == content_digest(scene.parent / "out/scene.safetensors")
    assert report["resolutions"] == [{"width_px": 96, "height_px": 64, "num_images": 12}]
    assert report["camera_models"][0]["model"] == "PINHOLE" and report["pose_error"] is None
    assert {"read_model", "undistort", "pack", "total"} <= set(report["timings_s"])
    assert {"numpy", "pillow", "python", "dist3dgs"} <= set(report["versions"])
    vertices = PlyData.read(scene.parent / "out/points.ply")["vertex"]
    np.testing.assert_array_equal(np.stack([vertices[k] for k in "xyz"], 1), packed.points)
    np.testing.assert_array_equal(vertices["green"], packed.colors[:, 1])


@pytest.mark.parametrize("form", ["text", "flat", "here", "rigs"])
def test_layouts_of_models(tmp_path, form):
    folder = tmp_path / "m"
    model = ring_model()
    place = {
        "text": folder / "sparse/0",
        "flat": folder / "sparse",
        "here": folder,
        "rigs": folder / "sparse/0",
    }[form]
    (write_txt if form == "text" else write_bin)(model, place)
    if form == "rigs":
        (place / "frames.bin").write_bytes(b"\x01")
        (place / "rigs.bin").write_bytes(b"\x01")
    for image in model.images.values():
        photograph(folder / "images" / image[3])
    assert run(folder)[1].num_views == 6


def test_same_input_same_bytes_whatever_the_ids(scene, tmp_path):
    digest = run(scene)[1].digest
    assert run(scene, tmp_path / "again")[1].digest == digest
    assert sha256(tmp_path / "again/scene.safetensors") == sha256(tmp_path / "out/scene.safetensors")
    write_bin(ring_model(num_images=12, first_image_id=100), scene / "sparse" / "0")
    assert run(scene, tmp_path / "ids")[1].digest == digest


def test_the_largest_sub_model_wins(tmp_path):
    folder = tmp_path / "m"
    write_bin(ring_model(num_images=4), folder / "sparse/0")
    write_bin(ring_model(num_images=9), folder / "sparse/1")
    write_bin(ring_model(num_images=5), folder / "sparse/10")
    for i in range(1, 10):
        photograph(folder / "images" / f"photo_{i:03d}.png")
    report, packed = run(folder)
    assert packed.num_views == 9 and report["sfm"]["num_models"] == 3


def test_photographs_that_cannot_be_used_are_named(scene):
    (scene / "images/photo_001.png").unlink()
    whole = (scene / "images/photo_002.png").read_bytes()
    (scene / "images/photo_002.png").write_bytes(whole[: len(whole) // 2])
    (scene / "images/photo_003.png").write_bytes(b"")
    photograph(scene / "images/photo_004.png", 64, 96)
    photograph(scene / "images/extra.png")
    report, packed = run(scene)
    reasons = {x["image"]: x["reason"] for x in report["left_out"]}
    assert "not in images/" in reasons["photo_001.png"]
    assert "truncated" in reasons["photo_002.png"] or "damaged" in reasons["photo_002.png"]
    assert "empty" in reasons["photo_003.png"]
    assert "does not have the shape of its camera" in reasons["photo_004.png"]
    assert "not in the COLMAP model" in reasons["extra.png"]
    assert report["num_images"] == {"registered": 8, "total": 13} and packed.num_views == 8


def test_too_few_are_left(scene):
    for i in range(1, 11):
        (scene / f"images/photo_{i:03d}.png").unlink()
    with pytest.raises(UserError, match="2 photographs") as error:
        run(scene)
    assert "photo_001.png" in str(error.value)


def test_exif_rotation_does_not_turn_photographs_of_a_model(scene):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = photograph(scene / "images/photo_001.png", exif=exif)
    _, packed = run(scene)
    np.testing.assert_array_equal(packed.image(0), pixels)


def test_max_width(scene):
    _, packed = run(scene, settings=IngestSettings(max_width_px=48))
    assert packed.sizes.tolist() == [[48, 32]] * 12
    full = np.asarray(Image.open(scene / "images/photo_001.png"), np.float64)
    np.testing.assert_allclose(packed.image(0), full.reshape(32, 2, 48, 2, 3).mean((1, 3)), atol=0.5001)
    np.testing.assert_allclose(packed.Ks[0], [[40, 0, 24], [0, 41, 16], [0, 0, 1]])
    assert run(scene, settings=IngestSettings(max_width_px=500))[1].sizes[0].tolist() == [96, 64]


def test_smaller_copies_are_used_and_not_shrunk_twice(scene):
    """images_2 as published: true sizes are rounded, intrinsics follow the true size."""
    for i in range(1, 13):
        photograph(scene / "images_2" / f"photo_{i:03d}.png", 47, 32, seed=50 + i)
    for settings in (IngestSettings(downscale=2), IngestSettings(max_width_px=47)):
        _, packed = run(scene, settings=settings)
        assert packed.sizes[0].tolist() == [47, 32]
        np.testing.assert_array_equal(
            packed.image(0), np.asarray(Image.open(scene / "images_2/photo_001.png"))
        )
        np.testing.assert_allclose(packed.Ks[0], [[80 * 47 / 96, 0, 23.5], [0, 41, 16], [0, 0, 1]])
    _, packed = run(scene, settings=IngestSettings(downscale=3))
    assert packed.sizes[0].tolist() == [32, 22]
    assert run(scene, settings=IngestSettings(max_width_px=80))[1].sizes[0].tolist() == [80, 53]


def test_distorted_models_are_undistorted(tmp_path):
    folder = tmp_path / "m"
    model = ring_model(camera=LENS)
    write_bin(model, folder / "sparse/0")
    for image in model.images.values():
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (96, 64), (250, 250, 250)).save(folder / "images" / image[3])
    report, packed = run(folder)
    assert packed.image(0).min() == 250, "no black border"
    assert report["camera_models"][0]["model"] == "SIMPLE_RADIAL" and report["reprojection_error_px"] < 1e-6
    assert packed.Ks[0, 0, 0] != 80


def test_a_model_that_cannot_be_undistorted(tmp_path):
    folder = tmp_path / "m"
    model = ring_model()
    model.cameras[3] = ColmapCamera("EQUIRECTANGULAR", 96, 64, (96.0, 64.0))
    write_txt(model, folder / "sparse/0")
    for image in model.images.values():
        photograph(folder / "images" / image[3])
    with pytest.raises(UserError, match=r"EQUIRECTANGULAR.*panorama"):
        run(folder)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("FOV", (80.0, 80.0, 48.0, 32.0, 0.4)),
        ("FISHEYE", (80.0, 80.0, 48.0, 32.0)),
        ("DIVISION", (80.0, 80.0, 48.0, 32.0, -0.05)),
        ("EUCM", (80.0, 80.0, 48.0, 32.0, 0.4, 1.1)),
        ("THIN_PRISM_FISHEYE", (80.0, 80.0, 48.0, 32.0, *[0.01] * 8)),
        ("RAD_TAN_THIN_PRISM_FISHEYE", (80.0, 80.0, 48.0, 32.0, *[0.01] * 6, *[0.005] * 6)),
    ],
)
def test_every_lens_gives_pinhole_views_without_borders(tmp_path, name, params):
    folder = tmp_path / "m"
    model = ring_model(camera=ColmapCamera(name, 96, 64, params))
    write_bin(model, folder / "sparse/0")
    (folder / "images").mkdir()
    for i, image in model.images.items():
        Image.new("RGB", (96, 64), (250, 250, 240 + i)).save(folder / "images" / image[3])
    report, packed = run(folder)
    assert packed.image(0).min() > 239 and report["reprojection_error_px"] < 1e-6
    assert report["camera_models"][0]["model"] == name


def test_a_model_without_points(tmp_path):
    folder = tmp_path / "m"
    model = ring_model(num_points=0)
    write_bin(model, folder / "sparse/0")
    for image in model.images.values():
        photograph(folder / "images" / image[3])
    with pytest.raises(UserError, match="no 3D points"):
        run(folder)


def test_nothing_there(tmp_path, scene):
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no COLMAP model"):
        run(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        run(scene, images=tmp_path / "elsewhere")
    with pytest.raises(UserError, match="scene name"):
        ingest(IngestSource(name="../x", kind="colmap", path=scene), tmp_path / "o", IngestSettings())


def test_a_damaged_model_stops_before_anything_is_written(scene, tmp_path):
    run(scene)
    before = sha256(tmp_path / "out/scene.safetensors"), sha256(tmp_path / "out/ingest.json")
    path = scene / "sparse/0/points3D.bin"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"points3D\.bin"):
        run(scene)
    assert before == (sha256(tmp_path / "out/scene.safetensors"), sha256(tmp_path / "out/ingest.json"))


@pytest.mark.parametrize(
    "wrong", [{"max_width_px": 0}, {"downscale": 0}, {"test_every": 1}, {"test_every": -8}]
)
def test_impossible_settings(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        IngestSettings(**wrong)


def test_truth_gives_a_pose_error_and_nothing_else(scene, tmp_path):
    digest = run(scene)[1].digest
    frames = []
    for image in ring_model(num_images=12).images.values():
        w, x, y, z = image[0]
        turn = np.array([
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ])  # fmt: skip
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn.T, -turn.T @ image[1]
        frames.append(
            {
                "file_path": f"images/{image[3]}",
                "transform_matrix": (pose @ np.diag([1.0, -1, -1, 1])).tolist(),
            }
        )
    (tmp_path / "truth.json").write_text(json.dumps({"frames": frames}))
    report, packed = run(scene, truth=tmp_path / "truth.json")
    assert report["pose_error"]["num_images"] == 12
    assert (
        report["pose_error"]["rotation_max_deg"] < 1e-4
        and report["pose_error"]["position_max_percent"] < 1e-6
    )
    assert packed.digest == digest


def notes(report):
    return {x["image"]: x["note"] for x in report["notes"]}


def test_what_a_model_has_too_much_is_noted(scene, capsys):
    model = ring_model(num_images=12)
    for image in (2, 5):
        del model.images[image]
    for point in list(model.points)[::4]:
        del model.points[point]
    write_bin(model, scene / "sparse/0")
    said = []
    source = IngestSource(name="court", kind="colmap", path=scene)
    report = ingest(source, scene.parent / "out", IngestSettings(), say=said.append)
    found = notes(report)
    (tracks,) = (v for k, v in found.items() if k.endswith("sparse/0/points3D.bin"))
    (keypoints,) = (v for k, v in found.items() if k.endswith("sparse/0/images.bin"))
    assert "2 images" in tracks and "15 keypoints" in keypoints and "9 more images" in keypoints
    assert any(tracks in line for line in said) and any(keypoints in line for line in said)
    assert report["num_images"] == {"registered": 10, "total": 12} and report["num_points"] == 45


def test_smaller_copies_of_another_type_fall_back_to_the_photographs(scene):
    """A script that made images_2 wrote JPEG where the model says PNG."""
    for i in range(1, 13):
        photograph(scene / "images_2" / f"photo_{i:03d}.jpg", 48, 32, seed=50 + i)
    report, packed = run(scene, settings=IngestSettings(downscale=2))
    assert packed.num_views == 12 and packed.sizes.tolist() == [[48, 32]] * 12
    assert "12 of 12" in notes(report)["images_2/"] and "images/" in notes(report)["images_2/"]
    full = np.asarray(Image.open(scene / "images/photo_001.png"), np.float64)
    np.testing.assert_allclose(packed.image(0), full.reshape(32, 2, 48, 2, 3).mean((1, 3)), atol=0.5001)


def test_a_folder_of_smaller_copies_that_was_not_finished(scene):
    """Five of twelve, the fifth cut, another of a wrong shape; images_4 is whole and too small."""
    for i in range(1, 13):
        photograph(scene / "images_4" / f"photo_{i:03d}.png", 24, 16)
    for i in range(1, 6):
        photograph(scene / "images_2" / f"photo_{i:03d}.png", 48, 32, seed=50 + i)
    cut = scene / "images_2/photo_005.png"
    cut.write_bytes(cut.read_bytes()[:200])
    photograph(scene / "images_2/photo_004.png", 32, 48)
    said = []
    source = IngestSource(name="court", kind="colmap", path=scene)
    ingest(source, scene.parent / "first", IngestSettings(max_width_px=48), say=said.append)
    assert all(
        any(name in line for line in said) for name in ("images_2/:", "photo_004.png", "photo_005.png")
    )
    report, packed = run(scene, settings=IngestSettings(max_width_px=48))
    assert packed.num_views == 12 and packed.sizes.tolist() == [[48, 32]] * 12 and not report["left_out"]
    np.testing.assert_array_equal(packed.image(0), np.asarray(Image.open(scene / "images_2/photo_001.png")))
    found = notes(report)
    assert "7 of 12" in found["images_2/"] and set(found) == {"images_2/", "photo_004.png", "photo_005.png"}
    assert "images_2/" in found["photo_005.png"] and "shape" in found["photo_004.png"]


def test_photographs_that_are_there_in_a_small_size_alone(scene):
    (scene / "images_2").mkdir()
    (scene / "images/photo_003.png").unlink()
    photograph(scene / "images_2/photo_003.png", 48, 32, seed=3)
    assert run(scene, settings=IngestSettings(downscale=2))[1].num_views == 12
    assert run(scene)[1].num_views == 11, "too small for what is wanted"


def test_accents_and_linked_folders_of_a_model(tmp_path):
    folder = tmp_path / "m"
    model = ring_model(prefix="vlevo/Prūhonice\u00a0")
    write_bin(model, folder / "sparse/0")
    for image in model.images.values():
        photograph(tmp_path / "store" / unicodedata.normalize("NFD", image[3].removeprefix("vlevo/")))
    (folder / "images").mkdir()
    (folder / "images/vlevo").symlink_to("../../store")
    (tmp_path / "store/up").symlink_to("..")
    report, packed = run(folder)
    assert packed.num_views == 6
    assert [x["image"] for x in report["left_out"]] == ["vlevo/up"]


def test_one_file_under_two_names_of_a_model_is_one_view(tmp_path):
    model = ring_model()
    composed = unicodedata.normalize("NFC", "é.png")
    for i, name in ((1, composed), (2, unicodedata.normalize("NFD", composed))):
        model.images[i] = (*model.images[i][:3], name, model.images[i][4])
    write_bin(model, tmp_path / "sparse/0")
    for image in list(model.images.values())[1:]:
        photograph(tmp_path / "images" / image[3])
    report, packed = run(tmp_path)
    assert packed.num_views == 5 and "same file" in report["left_out"][0]["reason"]


@pytest.mark.parametrize(("prefix", "below"), [("", "photos"), ("images/", "")])
def test_a_folder_a_level_too_high_or_too_low_is_named(tmp_path, prefix, below):
    model = ring_model(prefix=prefix)
    write_bin(model, tmp_path / "sparse/0")
    for image in model.images.values():
        photograph(tmp_path / "images" / below / image[3].removeprefix(prefix))
    right = tmp_path / "images" / below if below else tmp_path
    with pytest.raises(UserError, match=rf"6 photographs.*`images: {right}/?`"):
        run(tmp_path)


def test_what_a_killed_ingest_left_is_removed_by_the_next(scene, tmp_path, monkeypatch):
    """Folders of living processes, of other machines and of other programs stay."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    host, dead = socket.gethostname(), subprocess.Popen(["true"])
    dead.wait()
    names = (f"dist3dgs-ingest-{host}-{p}-x" for p in (dead.pid, os.getpid()))
    abandoned, alive = (temporary / name for name in names)
    elsewhere, other = temporary / f"dist3dgs-ingest-elsewhere-{dead.pid}-x", temporary / "other"
    for folder in (abandoned, alive, elsewhere, other):
        (folder / "database").mkdir(parents=True)
    source = IngestSource(name="court", kind="colmap", path=scene)
    ingest(source, tmp_path / "out", IngestSettings(), say=lambda text: None)
    assert sorted(temporary.iterdir()) == sorted([alive, elsewhere, other])
