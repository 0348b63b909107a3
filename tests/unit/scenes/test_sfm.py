"""Structure from motion, for real: on a stretch of the built-in scene, and on input it must refuse."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist3dgs.config.models import SfmSettings
from dist3dgs.errors import UserError
from dist3dgs.files import sha256
from dist3dgs.scenes.builtin.scene import camera_path, photograph_camera, write_truth
from dist3dgs.scenes.ingest import IngestSettings, IngestSource, ingest
from dist3dgs.scenes.pack import PackedScene
from dist3dgs.scenes.sfm import Photo, run_sfm
from tests.unit.helpers.colmap_files import court as builtin_court

SFM = SfmSettings(num_features=800, num_threads=2)
WIDTH, HEIGHT, NUM = 300, 200, 10


@pytest.fixture(scope="module")
def court(tmp_path_factory):
    """10 neighbouring photographs of the built-in scene, with what people's folders also hold."""
    folder = tmp_path_factory.mktemp("court")
    (folder / "images").mkdir()
    camera, scene = photograph_camera(WIDTH, HEIGHT), builtin_court()
    poses = {f"images/p{i:02d}.jpg": pose for i, pose in enumerate(camera_path(48, 0)[:NUM])}
    for name, pose in poses.items():
        Image.fromarray(scene.render(camera, pose)).save(folder / name, quality=93)
    write_truth(folder / "truth.json", camera, poses)
    Image.open(folder / "images/p03.jpg").save(folder / "images/zz_grey.png")
    Image.open(folder / "images/zz_grey.png").convert("L").save(folder / "images/zz_grey.png")
    data = (folder / "images/p04.jpg").read_bytes()
    (folder / "images/zz_cut.jpg").write_bytes(data[: len(data) // 2])
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    Image.fromarray(noise.repeat(4, 0).repeat(4, 1)).save(folder / "images/zz_unrelated.jpg")
    (folder / "images/readme.txt").write_text("holiday")
    return folder


def run(court, out, sfm=SFM, **settings):
    source = IngestSource(name="court", kind="images", path=court / "images", truth=court / "truth.json")
    report = ingest(source, out, IngestSettings(sfm=sfm, **settings), say=lambda text: None)
    return report, PackedScene.open(out / "scene.safetensors")


@pytest.fixture(scope="module")
def ingested(court, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, *run(court, out)


@pytest.mark.slow
def test_poses_are_found_and_right(ingested):
    _, report, packed = ingested
    assert report["num_images"] == {"registered": 11, "total": 14}
    error = report["pose_error"]
    assert error["num_images"] == NUM
    assert error["rotation_max_deg"] < 0.5 and error["position_max_percent"] < 0.5
    assert report["num_points"] > 500 and report["reprojection_error_px"] < 0.6
    assert packed.view_names == sorted(packed.view_names) and packed.sizes.tolist() == [[WIDTH, HEIGHT]] * 11
    lens = report["camera_models"][0]
    assert lens["params"][0] == pytest.approx(photograph_camera(WIDTH, HEIGHT).focal_px, rel=0.02)
    assert lens["params"][3] == pytest.approx(-0.04, abs=0.02)


@pytest.mark.slow
def test_everything_left_out_is_named_with_its_reason(ingested):
    _, report, _ = ingested
    reasons = {x["image"]: x["reason"] for x in report["left_out"]}
    assert set(reasons) == {"zz_cut.jpg", "zz_unrelated.jpg", "readme.txt"}
    assert "truncated" in reasons["zz_cut.jpg"] and "not a picture" in reasons["readme.txt"]
    assert (
        "not registered" in reasons["zz_unrelated.jpg"] and "verified matches" in reasons["zz_unrelated.jpg"]
    )
    assert [x["image"] for x in report["notes"]] == ["zz_grey.png"]
    assert {"check", "extract", "match", "map", "undistort", "pack", "total"} <= set(report["timings_s"])
    assert {"pycolmap", "colmap"} <= set(report["versions"])


@pytest.mark.slow
def test_same_bytes_again_on_another_number_of_threads(court, ingested, tmp_path):
    """image_id follows names, not the order in which threads finish; see docs/decisions/0020."""
    out, _, _ = ingested
    run(court, tmp_path, SfmSettings(num_features=800, num_threads=1))
    assert sha256(tmp_path / "scene.safetensors") == sha256(out / "scene.safetensors")


def test_pycolmap_never_enters_our_process():
    """Importing it replaces the SIGTERM handler, and what hangs it would hang us.

    Structure from motion is a child process, and `dist3dgs export-scene` a process of its own.
    """
    code = (
        "import pkgutil, importlib, signal, sys, dist3dgs.scenes as s\n"
        "for m in pkgutil.iter_modules(s.__path__):\n"
        "    if m.name not in ('sfm_worker', 'export'): importlib.import_module('dist3dgs.scenes.' + m.name)\n"
        "print('pycolmap' in sys.modules, 'torch' in sys.modules, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


def photos_in(folder):
    result = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            result.append(Photo(name=path.name, width_px=image.width, height_px=image.height, camera="one"))
    return result


@pytest.fixture
def unrelated(tmp_path):
    folder = tmp_path / "unrelated"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for i in range(4):
        noise = rng.integers(0, 256, (40, 60, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (tmp_path / "work").mkdir()
    return folder


@pytest.mark.slow
def test_unrelated_photographs(unrelated, tmp_path):
    with pytest.raises(UserError, match=r"sfm_failed.*4 photographs") as error:
        run_sfm(unrelated, photos_in(unrelated), tmp_path / "work", SFM, say=print)
    assert "features per photograph" in str(error.value) and "overlapping" in str(error.value)


def test_plain_walls_have_no_features(tmp_path):
    folder, work = tmp_path / "grey", tmp_path / "work"
    folder.mkdir(), work.mkdir()
    for i in range(3):
        Image.new("RGB", (200, 150), (120, 120, 120 + i)).save(folder / f"{i}.png")
    with pytest.raises(UserError, match=r"sfm_failed.*3 photographs.*median 0"):
        run_sfm(folder, photos_in(folder), work, SFM, say=print)


def test_the_time_limit_holds(unrelated, tmp_path):
    with pytest.raises(UserError, match=r"sfm_failed.*0 s.*sfm\.timeout_s"):
        run_sfm(unrelated, photos_in(unrelated), tmp_path / "work", SfmSettings(timeout_s=0.3), say=print)


@pytest.mark.slow
def test_the_memory_limit_holds(unrelated, tmp_path):
    """A photograph far too large for the limit: the child ends with an error, and only the child."""
    for path in unrelated.glob("*.png"):
        with Image.open(path) as image:
            image.resize((3000, 2000)).save(path, compress_level=1)
    settings = SfmSettings(memory_gib=0.25, max_image_px=3000, num_threads=1)
    with pytest.raises(UserError, match=r"sfm_failed.*extract.*bad_alloc.*sfm\.memory_gib"):
        run_sfm(unrelated, photos_in(unrelated), tmp_path / "work", settings, say=print)


@pytest.mark.slow
def test_the_child_dies_with_its_parent(court, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.unit.scenes.test_sfm import run\n"
        "run(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code, court, tmp_path / "out"], env=environment)
    child = None
    deadline = time.monotonic() + 60
    while child is None and time.monotonic() < deadline:
        time.sleep(0.05)
        if list(
            tmp_path.glob("dist3dgs-ingest-*/sfm/stage")
        ):  # it runs, and has asked to die with its parent
            listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
            child = int(listed[0]) if listed else None
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert child is not None
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    assert not (tmp_path / "out/scene.safetensors").exists()


@pytest.mark.slow
def test_real_photographs_against_independent_poses(shared, tmp_path):
    """8 neighbouring photographs of a phone's walk around a fox; tolerance as measured on the whole walk."""
    folder = tmp_path / "fox"
    folder.mkdir()
    for path in sorted((shared / "scenes/fox/images").iterdir())[:8]:
        (folder / path.name).symlink_to(path)
    source = IngestSource(name="fox", kind="images", path=folder, truth=shared / "scenes/fox/transforms.json")
    settings = IngestSettings(max_width_px=270, sfm=SfmSettings(num_features=1500))
    report = ingest(source, tmp_path / "out", settings, say=print)
    assert report["num_images"] == {"registered": 8, "total": 8}
    assert (
        report["pose_error"]["rotation_median_deg"] < 1
        and report["pose_error"]["position_median_percent"] < 0.5
    )
    assert report["resolutions"] == [{"width_px": 270, "height_px": 480, "num_images": 8}]
