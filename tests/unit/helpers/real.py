"""Small packed scenes with something to see in them: the built-in court, the fox of real photographs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist3dgs.scenes.builtin.raycast import Court, RaycastCamera, nearest
from dist3dgs.scenes.builtin.scene import camera_path
from dist3dgs.scenes.gather import IngestSettings, IngestSource
from dist3dgs.scenes.ingest import ingest
from dist3dgs.scenes.normalize import apply_to_points, apply_to_viewmats, normalisation_of
from dist3dgs.scenes.pack import scene_extent, write_packed
from dist3dgs.scenes.sfm import SfmSettings
from tests.unit.helpers.colmap_files import court


def write_court(path: Path, num_views: int = 24, width: int = 96, height: int = 64, every: int = 12) -> Path:
    """The built-in scene from its true cameras; its points are where the rays of every 12th pixel meet it."""
    camera = RaycastCamera(width_px=width, height_px=height, focal_px=0.82 * width, k1=0.0)
    return write_seen(path, "court", court(), camera, camera_path(num_views, 0), every)


def write_seen(
    path: Path, name: str, scene: Court, camera: RaycastCamera, poses: list[NDArray], every: int
) -> Path:
    """Pack photographs of a ray-cast scene, every 8th held out, with the points behind every so many pixels.

    poses: camera to world, float64 [4, 4].
    """
    images = [scene.render(camera, pose) for pose in poses]
    seen = [_behind(scene, camera, pose, image, every) for pose, image in zip(poses, images, strict=True)]
    viewmats = np.linalg.inv(np.stack(poses))
    normalisation = normalisation_of(viewmats)
    viewmats = apply_to_viewmats(normalisation, viewmats)
    num_views, width, height, focal = len(poses), camera.width_px, camera.height_px, camera.focal_px
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    write_packed(
        path, name=name, view_names=[f"{i:03}.jpg" for i in range(num_views)], images=images,
        is_test=np.arange(num_views) % 8 == 0, sizes=np.array([[width, height]] * num_views, np.int32),
        viewmats=viewmats, Ks=np.repeat(K[None], num_views, 0),
        points=apply_to_points(normalisation, np.concatenate([p for p, _ in seen])).astype(np.float32),
        colors=np.concatenate([c for _, c in seen]), extent=scene_extent(viewmats), normalisation=normalisation,
    )  # fmt: skip
    return path


def _behind(
    scene: Court, camera: RaycastCamera, pose: NDArray, image: NDArray, every: int
) -> tuple[NDArray, NDArray]:
    """Points [P, 3] and colours [P, 3] behind every so many pixels along both axes."""
    v, u = np.mgrid[every // 2 : camera.height_px : every, every // 2 : camera.width_px : every]
    rays = camera.directions(u.ravel() + 0.5, v.ravel() + 0.5) @ pose[:3, :3].T.astype(np.float32)
    eye = np.broadcast_to(pose[:3, 3].astype(np.float32), rays.shape)
    distance, which = nearest(scene.things, tuple(eye.T.copy()), tuple(rays.T.copy()))
    hit = which >= 0
    return eye[hit] + rays[hit] * distance[hit, None], image[v.ravel(), u.ravel()][hit]


def write_fox(folder: Path, shared: Path, num_photos: int = 12, width: int = 90) -> Path:
    """Neighbouring photographs of the fox, through structure from motion."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for path in sorted((shared / "scenes/fox/images").iterdir())[:num_photos]:
        (photos / path.name).symlink_to(path)
    source = IngestSource(name="fox", kind="images", path=photos)
    settings = IngestSettings(max_width_px=width, test_every=3, sfm=SfmSettings(num_features=1500))
    ingest(source, folder / "packed", settings)
    return folder / "packed" / "scene.safetensors"
