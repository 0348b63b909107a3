"""A packed scene as a COLMAP folder: read by pycolmap, and ingested again, it is the same scene."""

import csv
import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from dist3dgs.scenes.export import export_colmap
from dist3dgs.scenes.ingest import IngestSettings, IngestSource, ingest
from dist3dgs.scenes.normalize import apply_to_viewmats, normalisation_of
from dist3dgs.scenes.pack import PackedScene, scene_extent, write_packed

SIZES = [(20, 10)] * 5 + [(14, 18)] * 4
EVERY = 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedScene, Path]:
    """A scene of two cameras, turned every way, and its COLMAP folder."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    num = len(SIZES)
    viewmats = np.tile(np.eye(4), (num, 1, 1))
    rotations = np.linalg.qr(rng.normal(size=(num, 3, 3)))[0]
    viewmats[:, :3, :3] = rotations * np.linalg.det(rotations)[:, None, None]
    viewmats[:, :3, 3] = rng.normal(size=(num, 3))
    normalisation = normalisation_of(viewmats)
    viewmats = apply_to_viewmats(normalisation, viewmats)
    is_test = np.arange(num) % EVERY == 0
    Ks = np.array([[[30.5, 0, w / 2 + 0.25], [0, 31.0, h / 2], [0, 0, 1]] for w, h in SIZES])
    pack = folder / "scene.safetensors"
    write_packed(
        pack, name="odd", view_names=[f"IMG_{i}.x.JPG" for i in range(num)], is_test=is_test,
        sizes=np.array(SIZES, np.int32), viewmats=viewmats, Ks=Ks, extent=scene_extent(viewmats[~is_test]),
        images=[rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in SIZES], normalisation=normalisation,
        points=rng.normal(size=(50, 3)).astype(np.float32), colors=rng.integers(0, 256, (50, 3), np.uint8),
    )  # fmt: skip
    (folder / "colmap/images").mkdir(parents=True)
    (folder / "colmap/images/99999.png").write_bytes(b"of an earlier export")
    export_colmap(pack, folder / "colmap/export.json")
    return PackedScene.open(pack), folder / "colmap"


def test_pycolmap_reads_the_same_poses_intrinsics_and_points(exported: tuple[PackedScene, Path]) -> None:
    scene, folder = exported
    model = pycolmap.Reconstruction(str(folder / "sparse/0"))
    assert len(model.cameras) == 2 and len(model.reg_image_ids()) == scene.num_views
    for i in range(scene.num_views):
        image = model.images[i + 1]
        np.testing.assert_allclose(image.cam_from_world().matrix(), scene.viewmats[i, :3], atol=1e-12)
        np.testing.assert_array_equal(image.camera.calibration_matrix(), scene.Ks[i])
        assert [image.camera.width, image.camera.height] == scene.sizes[i].tolist()
    points = [model.points3D[i] for i in sorted(model.points3D)]
    np.testing.assert_array_equal(np.array([p.xyz for p in points], np.float32), scene.points)
    np.testing.assert_array_equal([p.color for p in points], scene.colors)


def test_ingested_again_it_is_the_same_scene(exported: tuple[PackedScene, Path], tmp_path: Path) -> None:
    scene, folder = exported
    ingest(IngestSource(name="odd", kind="colmap", path=folder), tmp_path, IngestSettings(test_every=EVERY))
    again = PackedScene.open(tmp_path / "scene.safetensors")
    np.testing.assert_allclose(again.viewmats, scene.viewmats, atol=1e-12)
    for name in ("Ks", "sizes", "points", "colors", "is_test"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scene, name))
    assert again.extent == pytest.approx(scene.extent)
    for i in range(scene.num_views):
        np.testing.assert_array_equal(again.image(i), scene.image(i))


def test_every_trainer_holds_out_the_same_views(exported: tuple[PackedScene, Path]) -> None:
    scene, folder = exported
    files = sorted(p.name for p in (folder / "images").iterdir())
    held_out = [files[i] for i in scene.test_ids]
    # gsplat: every nth of the sorted names; Grendel: of those cut at the first dot; nerfstudio: its lists.
    assert files[::EVERY] == held_out
    assert sorted(files, key=lambda name: name.split(".")[0])[::EVERY] == held_out
    assert len({name.split(".")[0] for name in files}) == scene.num_views
    lists = {k: (folder / f"{k}_list.txt").read_text().split() for k in ("train", "val", "test")}
    assert lists["test"] == lists["val"] == held_out and sorted(held_out + lists["train"]) == files
    with (folder / "views.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["photograph"] for row in rows] == scene.view_names
    assert [row["file"] for row in rows if row["split"] == "test"] == held_out
    facts = json.loads((folder / "export.json").read_text())
    assert facts["digest"] == scene.digest and facts["num_test"] == len(held_out)
