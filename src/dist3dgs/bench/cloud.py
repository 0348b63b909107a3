"""Make a scene to measure with: a cloud of coloured Gaussians seen from a ring of cameras."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..scenes.pack import scene_extent, write_packed
from ..splats.gaussians import initial_gaussians
from ..splats.render import RenderSettings, get_renderer


def ring_of_cameras(num_views: int, radius: float = 3.0) -> NDArray[np.float64]:
    """Return world-to-camera matrices, float64 [V,4,4], looking at the origin from a circle a little above it."""
    out = []
    for i in range(num_views):
        angle = 2 * np.pi * i / num_views
        centre = np.array([radius * np.cos(angle), 0.5, radius * np.sin(angle)])
        z = -centre / np.linalg.norm(centre)
        x = np.cross([0.0, 1.0, 0.0], z)
        x /= np.linalg.norm(x)
        viewmat = np.eye(4)
        viewmat[:3, :3] = np.stack([x, np.cross(z, x), z])
        viewmat[:3, 3] = -viewmat[:3, :3] @ centre
        out.append(viewmat)
    return np.stack(out)


def intrinsics(num_views: int, width: int, height: int) -> NDArray[np.float64]:
    """Return intrinsics, float64 [V,3,3], px, with a field of view of about 56 degrees."""
    focal = 0.94 * width
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return np.repeat(K[None], num_views, 0)


def write_cloud(
    path: Path, *, num_points: int, num_views: int, width: int, height: int, every: int = 1, seed: int = 0
) -> Path:
    """Pack photographs of `num_points` blobs; every `every`-th blob's centre is a point of the scene."""
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(num_points, 3)) * 0.5).astype(np.float32)
    colors = rng.integers(0, 255, (num_points, 3)).astype(np.uint8)
    truth = initial_gaussians(
        torch.from_numpy(points), torch.from_numpy(colors).float() / 255, init_opacity=0.8, init_scale=1.2
    )
    viewmats, Ks = ring_of_cameras(num_views), intrinsics(num_views, width, height)
    renderer, photos = get_renderer("cpu"), []
    for viewmat, K in zip(viewmats, Ks, strict=True):
        projection = renderer.project(
            truth["means"], truth["quats"], truth["scales"].exp(), torch.sigmoid(truth["opacities"]),
            (truth["sh0"], truth["shN"]), torch.from_numpy(viewmat).float(), torch.from_numpy(K).float(),
            width, height, RenderSettings(sh_degree=0),
        )  # fmt: skip
        image = renderer.rasterize(projection, width, height).colors
        photos.append((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    write_packed(
        path, name="cloud", view_names=[f"{i:03}.jpg" for i in range(num_views)], images=photos,
        is_test=np.arange(num_views) % 8 == 0, sizes=np.array([[width, height]] * num_views, np.int32),
        viewmats=viewmats, Ks=Ks, points=points[::every], colors=colors[::every], extent=scene_extent(viewmats),
        normalisation=np.eye(4),
    )  # fmt: skip
    return path
