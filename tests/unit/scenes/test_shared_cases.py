"""Inputs that real people brought, where they are at hand: what becomes of each."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist3dgs.errors import UserError
from dist3dgs.scenes.ingest import IngestSettings, IngestSource, ingest
from dist3dgs.scenes.photos import prepare_photos


def made(shared: Path, tmp_path: Path, number: str, *argv: str) -> Path:
    """A copy of a case with its input made, outside the shared folder."""
    found = sorted((shared / "cases").glob(f"{number}-*"))
    if not found:
        pytest.skip(f"{shared}/cases has no case {number}")
    shutil.copytree(shared / "cases/_base", tmp_path / "_base")
    folder = Path(shutil.copytree(found[0], tmp_path / found[0].name))
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)
    subprocess.run([sys.executable, str(folder / "make.py"), *argv], check=True, capture_output=True)
    return folder


def packed(colmap: Path, images: Path, out: Path, **settings: Any) -> dict[str, Any]:
    source = IngestSource(name="case", kind="colmap", path=colmap, images=images)
    ingest(source, out, IngestSettings(**settings), say=lambda text: None)
    report: dict[str, Any] = json.loads((out / "ingest.json").read_text())
    return report


def notes(report: dict[str, Any]) -> str:
    return "\n".join(f"{x['image']}: {x['note']}" for x in report["notes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "registered", "words"),
    [
        ("01", 12, "keypoints of '0001.jpg' name points that points3D.txt does not have"),
        ("02", 10, "tracks name 2 images"),
    ],
)
def test_models_that_were_edited_by_hand(
    shared: Path, tmp_path: Path, number: str, registered: int, words: str
) -> None:
    scene = made(shared, tmp_path, number) / "scene"
    report = packed(scene / "sparse/0", scene / "images", tmp_path / "out", max_width_px=64)
    assert report["num_images"]["registered"] == registered and words in notes(report)


@pytest.mark.slow
def test_new_camera_models(shared: Path, tmp_path: Path) -> None:
    folder = made(shared, tmp_path, "03")
    models = sorted(folder.glob("model-*"))
    assert len(models) == 10
    for model in models:
        name = model.name.split("-")[1]
        out = tmp_path / f"out-{model.name}"
        if name == "EQUIRECTANGULAR":
            with pytest.raises(UserError, match=r"EQUIRECTANGULAR.*panorama_sfm"):
                packed(model, folder / "scene/images", out)
        else:
            report = packed(model, folder / "scene/images", out, max_width_px=64)
            assert report["camera_models"][0]["model"] == name and report["num_images"]["registered"] == 12


def test_folders_of_photographs(shared: Path, tmp_path: Path) -> None:
    for number, name, num in (("05", "photos", 16), ("12", "images", 16)):
        folder = made(shared, tmp_path / number, number)
        result = prepare_photos(folder / name, tmp_path / f"copies-{number}")
        assert len(result.photos) == num and not result.left_out
    root = made(shared, tmp_path / "07", "07") / "dataset"
    with pytest.raises(UserError, match="root of a dataset"):
        prepare_photos(root, tmp_path / "copies-07")


@pytest.mark.slow
def test_smaller_copies(shared: Path, tmp_path: Path) -> None:
    folder = made(shared, tmp_path, "14")
    for scene, words in (("scene", "12 of 12"), ("scene-b", "7 of 12")):
        report = packed(
            folder / scene / "sparse/0", folder / scene / "images", tmp_path / f"out-{scene}", downscale=2
        )
        assert report["num_images"]["registered"] == 12 and words in notes(report)
        assert {(r["width_px"], r["height_px"]) for r in report["resolutions"]} == {(152, 270)}
