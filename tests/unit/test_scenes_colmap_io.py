"""COLMAP models: read right, and everything wrong with a file is one clear error, quickly and in little memory."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist3dgs.errors import UserError
from dist3dgs.scenes.cameras import MODELS, NUM_PARAMS, Camera, installed_models
from dist3dgs.scenes.colmap_io import read_model
from dist3dgs.scenes.colmap_model import reprojection_errors

from .colmap_files import ring_model, write_bin, write_txt

HUGE = "9" * 30
WRITERS = {"bin": write_bin, "txt": write_txt}


@pytest.fixture
def folder(tmp_path):
    return write_bin(ring_model(), tmp_path / "sparse")


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


def patch(path, at, new):
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def refused(folder, file, match=None):
    """The error, after checking that it names the file, comes at once and takes no memory worth speaking of."""
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(UserError, match=match) as info:
        read_model(folder)
    assert time.perf_counter() - start < 2
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    assert file in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_reads_what_was_written(tmp_path, kind):
    fake = ring_model()
    model = read_model(WRITERS[kind](fake, tmp_path / "m"))
    assert model.cameras == fake.cameras
    assert {i: x.name for i, x in model.images.items()} == {i: x[3] for i, x in fake.images.items()}
    assert list(model.point_ids) == sorted(fake.points)
    np.testing.assert_allclose(model.points, [fake.points[i][0] for i in model.point_ids], rtol=1e-12)
    assert model.colors[5].tolist() == [5, 20, 30]
    assert reprojection_errors(model).max() < 1e-6
    assert len(reprojection_errors(model)) == 6 * 60  # keypoints without a point do not count


@pytest.mark.parametrize("suffix", ["bin", "txt"])
def test_reads_pycolmaps_own_files_with_rigs_and_frames(tmp_path, suffix):
    """The oracle: a model that pycolmap makes and writes, with rigs and frames files beside the classic three."""
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_points3D = 50
    theirs = pycolmap.synthesize_dataset(options)
    (theirs.write_binary if suffix == "bin" else theirs.write_text)(str(tmp_path))
    assert (tmp_path / f"frames.{suffix}").is_file()
    ours = read_model(tmp_path)
    assert set(ours.images) == set(theirs.reg_image_ids()) and len(ours.images) > 3
    for i, image in ours.images.items():
        np.testing.assert_allclose(image.cam_from_world, theirs.image(i).cam_from_world().matrix(), atol=1e-9)
        assert image.name == theirs.image(i).name
    for i, camera in ours.cameras.items():
        assert camera.model == theirs.camera(i).model.name
        np.testing.assert_allclose(camera.params, theirs.camera(i).params)
    for i, point in zip(ours.point_ids, ours.points, strict=True):
        np.testing.assert_allclose(point, theirs.point3D(int(i)).xyz)
    assert reprojection_errors(ours).mean() == pytest.approx(
        theirs.compute_mean_reprojection_error(), abs=1e-6
    )


def lens(model, num_params, seed=1):
    """Parameters of a mild lens of any model that has a formula here."""
    rng = np.random.default_rng(seed)
    probe = Camera(model, 640, 480, (0.0, 1.0, 2.0, 3.0))
    head = (500.0, 320.0, 240.0) if probe.centre_px == (1.0, 2.0) else (500.0, 510.0, 320.0, 240.0)
    return (*head, *rng.uniform(0.005, 0.04, num_params - len(head)))


@pytest.mark.parametrize("model", NUM_PARAMS)
def test_camera_models_project_as_colmap_does(model):
    pycolmap = pytest.importorskip("pycolmap")
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(-0.5, 0.5, (40, 2)), np.ones(40)]) * rng.uniform(1, 4, (40, 1))
    points[0, :2] = 0  # on the axis
    params = lens(model, NUM_PARAMS[model])
    ours = Camera(model, 640, 480, params)
    theirs = pycolmap.Camera(model=model, width=640, height=480, params=params)
    np.testing.assert_allclose(ours.matrix(), theirs.calibration_matrix())
    np.testing.assert_allclose(ours.project(points), theirs.img_from_cam(points), atol=1e-9)


def test_the_table_of_camera_models_is_the_installed_colmaps():
    """Every model of COLMAP has a formula here, or is named; a new COLMAP with a new one is told apart from damage."""
    known = installed_models()
    assert known and MODELS.items() <= known.items()
    assert {name for name, _ in known.values()} - set(NUM_PARAMS) == {"EQUIRECTANGULAR"}


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_every_installed_camera_model_is_read_by_name(tmp_path, kind):
    for number, (name, num_params) in installed_models().items():
        fake = ring_model(num_images=3, num_points=4)
        fake.cameras[3] = camera = Camera(
            name, 640, 480, lens(name, num_params) if name in NUM_PARAMS else (640.0, 480.0)
        )
        folder = tmp_path / name
        if kind == "txt":
            write_txt(fake, folder)
        else:
            fake.cameras[3] = Camera("PINHOLE", 640, 480, camera.params)
            write_bin(fake, folder)
            patch(folder / "cameras.bin", 12, struct.pack("<i", number))
        read = read_model(folder).cameras[3]
        assert (read.model, read.params) == (name, camera.params)
        assert read.is_supported == (name != "EQUIRECTANGULAR")


def test_rigs_and_frames_are_never_looked_at(folder):
    """A cut frames.bin makes COLMAP's reader loop for ever."""
    (folder / "frames.bin").write_bytes(b"\x05\0\0\0\0\0\0\0\1")
    (folder / "rigs.bin").write_bytes(b"")
    assert len(read_model(folder).images) == 6


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_truncation_is_refused(folder, file):
    whole = (folder / file).read_bytes()
    for size in {0, 1, 7, 8, 9, len(whole) // 3, len(whole) // 2, len(whole) - 1} | set(range(8, 120)):
        if size < len(whole):
            (folder / file).write_bytes(whole[:size])
            with pytest.raises(UserError, match=file):
                read_model(folder)


def test_images_cut_inside_a_name(folder):
    data = (folder / "images.bin").read_bytes()
    cut(folder / "images.bin", data.index(b"photo_") + 3)
    refused(folder, "images.bin")


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("count", [2**62, 2**64 - 1, 10**6])
def test_hostile_counts_allocate_nothing(folder, file, count):
    patch(folder / file, 0, struct.pack("<Q", count))
    refused(folder, file, "ends early")


def test_hostile_inner_counts(folder):
    data = (folder / "images.bin").read_bytes()
    patch(folder / "images.bin", data.index(b".png\0") + 5, struct.pack("<Q", 2**61))
    refused(folder, "images.bin", "ends early")
    write_bin(ring_model(), folder)
    patch(folder / "points3D.bin", 8 + 8 + 24 + 3 + 8, struct.pack("<Q", 2**60))
    refused(folder, "points3D.bin", "track")


def test_name_without_end(folder):
    data = (folder / "images.bin").read_bytes()
    at = data.index(b"photo_")
    (folder / "images.bin").write_bytes(data[:at] + b"a" * 5000 + data[at:])
    refused(folder, "images.bin", "does not end")


def test_bytes_after_the_end(folder):
    for file in ("cameras.bin", "images.bin", "points3D.bin"):
        original = (folder / file).read_bytes()
        (folder / file).write_bytes(original + b"\0")
        refused(folder, file, "too many")
        (folder / file).write_bytes(original)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("change", "file", "match"),
    [
        (lambda m: m.points.update({10: ((np.nan, 0.0, 0.0), (1, 2, 3), 0.1, [])}), "points3D", "not finite"),
        (lambda m: m.images.update({1: (*m.images[1][:2], 99, *m.images[1][3:])}), "images", "camera 99"),
        (lambda m: m.images.update({1: (np.zeros(4), *m.images[1][1:])}), "images", "no valid pose"),
        (lambda m: m.images.update({1: (np.full(4, np.nan), *m.images[1][1:])}), "images", "no valid pose"),
        (
            lambda m: m.images.update({1: (*m.images[1][:3], "../../etc/passwd", m.images[1][4])}),
            "images",
            "plain path",
        ),
        (
            lambda m: m.images.update({1: (*m.images[1][:3], "/etc/passwd", m.images[1][4])}),
            "images",
            "plain path",
        ),
        (
            lambda m: m.images.update({1: (*m.images[1][:3], "a\\..\\..\\b.png", m.images[1][4])}),
            "images",
            "plain path",
        ),
        (
            lambda m: m.images.update({1: (*m.images[1][:3], "a\x1bb.png", m.images[1][4])}),
            "images",
            "control character",
        ),
        (
            lambda m: m.images.update({1: (*m.images[1][:3], m.images[2][3], m.images[1][4])}),
            "images",
            "twice",
        ),
        (lambda m: m.images.clear(), "images", "holds no image|track names"),
        (
            lambda m: m.cameras.update({3: Camera("PINHOLE", 96, 64, (np.nan, 80.0, 48.0, 32.0))}),
            "cameras",
            "finite",
        ),
        (
            lambda m: m.cameras.update({3: Camera("PINHOLE", 96, 64, (-80.0, 80.0, 48.0, 32.0))}),
            "cameras",
            "positive",
        ),
        (
            lambda m: m.cameras.update({3: Camera("PINHOLE", 0, 64, (80.0, 80.0, 48.0, 32.0))}),
            "cameras",
            "0 x 64",
        ),
        (
            lambda m: m.cameras.update({3: Camera("PINHOLE", 2**40, 9, (80.0, 80.0, 8.0, 2.0))}),
            "cameras",
            "px",
        ),
        (
            lambda m: m.cameras.update({3: Camera("PINHOLE", 96, 64, (80.0, 80.0, 4e5, 32.0))}),
            "cameras",
            "principal",
        ),
    ],
)
def test_wrong_content_is_refused(tmp_path, kind, change, file, match):
    fake = ring_model()
    change(fake)
    refused(WRITERS[kind](fake, tmp_path / "m"), f"{file}.{kind}", match)


def dropped(model, file, *words):
    """The note on a file: what was dropped from it, and nothing else."""
    assert list(model.notes) == [file]
    assert all(word in model.notes[file] for word in words), model.notes
    return model


@pytest.mark.parametrize("kind", WRITERS)
def test_what_training_does_not_use_is_dropped_with_a_note(tmp_path, kind):
    write, points = WRITERS[kind], ring_model().points
    fake = ring_model()
    for point in list(points)[::3]:  # thinned out, images.txt left alone
        del fake.points[point]
    model = dropped(
        read_model(write(fake, tmp_path / "a")), f"images.{kind}", "20 keypoints", "5 more images"
    )
    assert len(model.points) == 40 and len(reprojection_errors(model)) == 6 * 40
    assert reprojection_errors(model).max() < 1e-6

    fake = ring_model()
    for image in (2, 5):  # blurred photographs were removed
        del fake.images[image]
    model = dropped(read_model(write(fake, tmp_path / "b")), f"points3D.{kind}", "2 images", "first: 2")
    assert sorted(model.images) == [1, 3, 4, 6] and len(model.points) == 60

    fake = ring_model()
    fake.images[1][4].append((np.inf, 1.0, -1))
    model = dropped(read_model(write(fake, tmp_path / "c")), f"images.{kind}", "1 keypoints", "not finite")
    assert len(model.images[1].observations) == 61

    assert not read_model(write(ring_model(), tmp_path / "d")).notes


def test_points_of_another_model_are_noted(tmp_path):
    fake = ring_model()
    ids = list(fake.points)
    fake.points = dict(zip(ids, [fake.points[i] for i in ids[1:] + ids[:1]], strict=True))
    assert "different reconstructions" in read_model(write_bin(fake, tmp_path)).notes["cameras.bin"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("points3D.txt", "\n10 ", f"\n{HUGE} "),
        ("points3D.txt", "0.5", f"1e{HUGE}"),
        ("images.txt", " 10 ", f" {HUGE} "),
        ("cameras.txt", "PINHOLE 96", f"PINHOLE {HUGE}"),
        ("cameras.txt", "80.0", f"1e{HUGE}"),
    ],
)
def test_numbers_too_large_are_refused(tmp_path, file, old, new):
    folder = write_txt(ring_model(), tmp_path / "m")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    if old == "0.5":  # the error of a point: nobody uses it
        assert len(read_model(folder).points) == 60
    else:
        refused(folder, file)


def test_a_track_of_an_impossible_image_is_dropped(tmp_path):
    folder = write_txt(ring_model(), tmp_path / "m")
    with (folder / "points3D.txt").open("a") as f:
        f.write(f"9999 0 0 0 1 2 3 0.5 {HUGE} 0\n")
    dropped(read_model(folder), "points3D.txt", "1 images")


def test_text_of_other_systems(tmp_path):
    """A byte-order mark, line ends of Windows, ids of no point as unsigned numbers, names with every kind of space."""
    names = ["Screenshot 9.41.00\u202fAM.jpg", "a\u00a0b.jpg", "Ende\u3000.jpg"]
    fake = ring_model()
    for i, name in enumerate(names, 1):
        fake.images[i] = (*fake.images[i][:3], name, fake.images[i][4])
    folder = write_txt(fake, tmp_path / "m")
    for file in ("cameras.txt", "images.txt", "points3D.txt"):
        text = (folder / file).read_text().replace(" -1\n", f" {2**64 - 1}\n").replace("\n", "\r\n")
        (folder / file).write_text("\ufeff" + text, newline="")
    model = read_model(folder)
    assert [model.images[i].name for i in (1, 2, 3)] == names and not model.notes
    assert len(reprojection_errors(model)) == 6 * 60


def test_unknown_camera_model(folder):
    patch(folder / "cameras.bin", 12, struct.pack("<i", 99))
    refused(folder, "cameras.bin", "model number 99.*image_undistorter")


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("cameras.txt", "1 PINHOLE 96\n", "no camera"),
        ("cameras.txt", "3 PINHOLE 96 64 80 80 48\n", "3 parameters"),
        ("cameras.txt", "3 WARP 96 64 80\n", "WARP"),
        ("images.txt", "1 1 0 0 0\n\n", "image number 1"),
        ("images.txt", "1 1 0 0 0 0 0 0 3 a.png\n1 2\n", "image number 1"),
        ("images.txt", "1 1 0 0 0 0 0 0 3 a.png\n1 2 nan\n", "image number 1"),
        ("points3D.txt", "10 1 2 3 300 0 0 0.5\n", "no point"),
        ("points3D.txt", "10 1 2\n", "no point"),
        ("points3D.txt", "10 1 2 3 4 5 6 0.5 1\n", "no point"),
        ("points3D.txt", "99999999999999999999999 1 2 3 4 5 6 0.5\n", "no point"),
    ],
)
def test_wrong_text(tmp_path, file, text, match):
    folder = write_txt(ring_model(), tmp_path / "m")
    (folder / file).write_text(text)
    refused(folder, file, match)


def test_text_that_is_not_text(tmp_path):
    folder = write_txt(ring_model(), tmp_path / "m")
    (folder / "images.txt").write_bytes(b"\xff\xfe\x00\x01")
    refused(folder, "images.txt", "UTF-8")


def test_text_image_without_points_and_name_with_spaces(tmp_path):
    folder = write_txt(ring_model(), tmp_path / "m")
    with (folder / "images.txt").open("a") as f:
        f.write("50 1 0 0 0 0 0 0 3 my photo 1.png\n\n")
    model = read_model(folder)
    assert model.images[50].name == "my photo 1.png" and len(model.images[50].observations) == 0


def test_no_model(tmp_path):
    with pytest.raises(UserError, match="no COLMAP model"):
        read_model(tmp_path)
    folder = write_bin(ring_model(), tmp_path / "m")
    (folder / "cameras.bin").unlink()
    with pytest.raises(UserError, match="no COLMAP model"):
        read_model(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gives_anything_but_a_model_or_a_clear_error(tmp_path, data):
    """Bytes changed, cut out or put in anywhere, in binary and in text."""
    kind = data.draw(st.sampled_from(list(WRITERS)))
    folder = WRITERS[kind](ring_model(num_images=3, num_points=4), tmp_path / f"fuzz-{kind}")
    path = folder / f"{data.draw(st.sampled_from(['cameras', 'images', 'points3D']))}.{kind}"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    gone = data.draw(st.integers(0, 16))
    digits = st.text("0123456789-+.enaif \n", max_size=40).map(str.encode)
    new = data.draw(st.binary(max_size=16) if kind == "bin" else st.binary(max_size=16) | digits)
    path.write_bytes(whole[:at] + new + whole[at + gone :])
    try:
        model = read_model(folder)
    except UserError as error:
        assert folder.name in str(error)
    else:
        assert np.isfinite(model.points).all() and model.images
