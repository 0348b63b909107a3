"""Pose errors: zero for a similarity, right for a known disturbance."""

import json

import numpy as np
import pytest

from dist3dgs.errors import UserError
from dist3dgs.scenes.builtin.scene import camera_path
from dist3dgs.scenes.pose_error import fit_similarity, pose_error, read_truth


@pytest.fixture
def truth():
    return {f"images/{i:03d}.jpg": pose for i, pose in enumerate(camera_path(12, 0))}


def rotation(axis, degrees):
    axis = np.array(axis) / np.linalg.norm(axis)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def moved(poses, scale=0.37, axis=(1, 2, 3), degrees=77.0, shift=(4, -5, 6)):
    turn = rotation(axis, degrees)
    result = {}
    for name, pose in poses.items():
        new = np.eye(4)
        new[:3, :3] = turn @ pose[:3, :3]
        new[:3, 3] = scale * turn @ pose[:3, 3] + shift
        result[name] = new
    return result


def test_a_similarity_is_no_error(truth):
    error = pose_error(moved(truth), truth)
    assert error.num_images == 12
    assert max(error.rotation_max_deg, error.position_max_percent) < 1e-6


def test_a_mirrored_path_is_not_explained_away(truth):
    """The fit may turn and scale, not mirror."""
    mirrored = {k: np.diag([-1.0, 1, 1, 1]) @ v @ np.diag([-1.0, 1, 1, 1]) for k, v in truth.items()}
    assert pose_error(mirrored, truth).position_max_percent > 5


def test_known_disturbances(truth):
    ours = moved(truth)
    name = "images/005.jpg"
    ours[name] = ours[name].copy()
    ours[name][:3, :3] = ours[name][:3, :3] @ rotation((0, 1, 0), 2.5)
    error = pose_error(ours, truth)
    assert error.rotation_max_deg == pytest.approx(2.5, abs=1e-6)
    assert error.rotation_median_deg < 1e-6
    rng = np.random.default_rng(0)
    centres = np.array([p[:3, 3] for p in truth.values()])
    diameter = np.linalg.norm(centres[:, None] - centres[None], axis=-1).max()
    noisy = {
        k: v + np.pad(rng.normal(0, 0.01 * diameter, (3, 1)), ((0, 1), (3, 0))) for k, v in truth.items()
    }
    # The length of a 3D Gaussian with a deviation of 1 % has a median of 1.54 %; the fit takes a little away.
    assert 0.8 < pose_error(noisy, truth).position_median_percent < 2.2


def test_fit_similarity_finds_what_was_applied():
    rng = np.random.default_rng(1)
    points, turn = rng.normal(size=(20, 3)), rotation((3, 1, 2), 140)
    scale, rot, shift = fit_similarity(points, 2.5 * points @ turn.T + [1, 2, 3])
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(rot, turn, atol=1e-12)
    np.testing.assert_allclose(shift, [1, 2, 3], atol=1e-12)


def test_photographs_are_matched_by_file_name_where_folders_differ(truth):
    ours = {name.removeprefix("images/"): pose for name, pose in truth.items()}
    assert pose_error(ours, truth).num_images == 12
    assert pose_error({"other.jpg": np.eye(4)}, truth) is None


def test_truth_is_read_with_opengl_axes(tmp_path, truth):
    frames = [
        {"file_path": f"./{k}", "transform_matrix": (v @ np.diag([1.0, -1, -1, 1])).tolist()}
        for k, v in truth.items()
    ]
    (tmp_path / "t.json").write_text(json.dumps({"frames": frames}))
    read = read_truth(tmp_path / "t.json")
    assert set(read) == set(truth)
    np.testing.assert_allclose(read["images/003.jpg"], truth["images/003.jpg"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"frames": [{}]}', '{"frames": [{"file_path": "a", "transform_matrix": [[1]]}]}',
             '{"frames": [{"file_path": "a", "transform_matrix": [["x"]]}]}'],
)  # fmt: skip
def test_a_damaged_truth_is_named(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match=r"t\.json: no true poses"):
        read_truth(tmp_path / "t.json")
