"""Export a packed scene as the COLMAP folder that other trainers read: gsplat, nerfstudio, Grendel.

    images/00000.png ...        the packed pixels, undistorted and resized, lossless
    sparse/0/*.bin              pinhole cameras, poses and coloured points, in the normalised world
    train_list.txt, test_list.txt, val_list.txt     the split, which nerfstudio reads
    views.csv                   file, photograph and split of each view
    export.json                 digest of the packed scene and what is in the folder; written last

Files are numbered in the order of the photographs' names. gsplat and Grendel hold out every nth file by name
(`--test_every`, `--llffhold`): with the scene's own `test_every` those are the packed scene's held-out views.
"""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from ..files import replacing, write_json
from .pack import PackedScene

#: zlib level: PNGs of photographs hardly shrink above it, and take several times as long.
_PNG_LEVEL = 1


def export_colmap(pack: Path, export_json: Path) -> None:
    """Write a packed scene as a COLMAP folder, the one of `export_json`; that file is written last.

    Raises `UserError` if `pack` is no packed scene.
    """
    scene = PackedScene.open(pack)
    folder = Path(export_json).parent
    export_json.unlink(missing_ok=True)
    for name in ("images", "sparse"):  # of an earlier export, which may have had more views
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    names = [f"{i:05d}.png" for i in range(scene.num_views)]
    for i, name in enumerate(names):
        Image.fromarray(scene.image(i)).save(folder / "images" / name, compress_level=_PNG_LEVEL)
    model = folder / "sparse" / "0"
    model.mkdir()
    _reconstruction(scene, names).write_binary(str(model))
    split = np.where(scene.is_test, "test", "train")
    # nerfstudio evaluates on `val` while it trains and on `test` afterwards: the same views.
    for list_name, part in (("train", "train"), ("test", "test"), ("val", "test")):
        lines = [name for name, of in zip(names, split, strict=True) if of == part]
        with replacing(folder / f"{list_name}_list.txt") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "photograph", "split"])
    rows.writerows(zip(names, scene.view_names, split, strict=True))
    with replacing(folder / "views.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    facts = {
        "scene": scene.name,
        "digest": scene.digest,
        "num_views": scene.num_views,
        "num_test": len(scene.test_ids),
        "num_points": len(scene.points),
    }
    write_json(export_json, facts)


def _reconstruction(scene: PackedScene, names: list[str]) -> pycolmap.Reconstruction:
    """Return the scene's model; views of one size and intrinsics share a camera, as gsplat batches need."""
    made = pycolmap.Reconstruction()
    cameras: dict[bytes, int] = {}
    for i, name in enumerate(names):
        K, (width, height) = scene.Ks[i], scene.sizes[i]
        key = K.tobytes() + scene.sizes[i].tobytes()
        if key not in cameras:
            cameras[key] = len(cameras) + 1
            camera = pycolmap.Camera(
                camera_id=cameras[key],
                model=pycolmap.CameraModelId.PINHOLE,
                width=int(width),
                height=int(height),
                params=[K[0, 0], K[1, 1], K[0, 2], K[1, 2]],
            )
            made.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, camera_id=cameras[key], image_id=i + 1)
        made.add_image_with_trivial_frame(image, pycolmap.Rigid3d(scene.viewmats[i, :3]))
    for xyz, color in zip(scene.points.astype(np.float64), scene.colors, strict=True):
        made.add_point3D(xyz, pycolmap.Track(), color)
    return made
