"""The furnished room of the benchmarks: closed, and seen from inside with nothing in the camera's way."""

from pathlib import Path

import numpy as np

from dist3dgs.scenes.builtin.raycast import RaycastCamera, nearest
from dist3dgs.scenes.normalize import apply_to_points, camera_centres
from dist3dgs.scenes.pack import PackedScene
from tests.unit.helpers import room


def test_the_sky_is_seen_through_the_window_alone() -> None:
    scene = room.build_room(0)
    camera = RaycastCamera(width_px=24, height_px=16, focal_px=0.7 * 24, k1=0.0)
    v, u = np.mgrid[:16, :24] + 0.5
    rays = camera.directions(u.ravel(), v.ravel())
    distances = []
    for pose in room.walk(150, 0)[::5]:
        eye, turned = pose[:3, 3], rays @ pose[:3, :3].T
        t, which = nearest(scene.things, tuple(eye.astype(np.float32)), tuple(turned.T.astype(np.float32)))
        assert t.min() > 0.15, "a camera touches something"
        sky = turned[which < 0]
        _, y, z = (eye + sky * ((room.LENGTH_M / 2 - eye[0]) / sky[:, :1])).T
        assert (sky[:, 0] > 0).all() and (abs(y) < 1.2).all() and (z > 0.9).all() and (z < 2.2).all()
        distances.append(t)
    distance_m = np.concatenate(distances)
    assert 0 < np.isinf(distance_m).mean() < 0.05
    assert np.quantile(distance_m, 0.05) < 1.5 and 4 < np.quantile(distance_m, 0.95) < 6


def test_points_lie_on_surfaces_all_around(tmp_path: Path) -> None:
    path = room.write_room(tmp_path / "room.safetensors", num_views=16, width=24, height=16, every=4)
    packed = PackedScene.open(path)
    assert packed.is_test.sum() == 2 and len(camera_centres(packed.viewmats)) == 16
    points = apply_to_points(np.linalg.inv(packed.normalisation), packed.points)
    half = np.array([room.LENGTH_M, room.WIDTH_M, room.HEIGHT_M]) / 2
    beyond = np.abs(points - (0, 0, half[2])) - half
    street = points[:, 0] > 10
    assert 0 < street.mean() < 0.1 and beyond[~street].max() < 2 * room.WALL_M
    for axis, side in ((0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (2, 1)):
        to_wall = half[axis] - side * (points - (0, 0, half[2]))[:, axis]
        assert (np.abs(to_wall) < 0.01).any(), (axis, side)
