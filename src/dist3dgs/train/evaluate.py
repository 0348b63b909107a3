"""Held-out quality: PSNR, SSIM and, if its weights are available, LPIPS.

Renders are clamped to 0..1 and compared with the 8-bit photographs without quantisation, as the reference
implementation does during training; means are over views.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from ..files import replacing
from ..parallel.strategy import Parallel
from ..splats.gaussians import Gaussians
from ..splats.loss import psnr, ssim
from .data import SceneCameras

#: Held-out renders stored beside their photographs for the report.
NUM_STORED_RENDERS = 3


@torch.no_grad()
def evaluate(
    parallel: Parallel,
    gaussians: Gaussians,
    cameras: SceneCameras,
    views: np.ndarray,
    *,
    sh_degree: int,
    background: Tensor | None,
    lpips: Callable[[Tensor, Tensor], float] | None,
    renders: Path | None,
    abandon: Callable[[int], bool] | None = None,
    along_seams: bool = False,
) -> dict[str, Any] | None:
    """Render the held-out views, one per rank at a time, and measure their quality. Collective.

    Args:
        parallel, gaussians: the strategy and this rank's Gaussians.
        cameras: of the scene.
        views: int64 [T], indices of the held-out views.
        sh_degree: 0..3.
        background: [3] float RGB; black if None.
        lpips: the metric, None if its weights are missing.
        renders: folder for the pictures of up to three views, or None.
        abandon: called before each round with the number of views done; if it returns True, on all ranks alike, the
            evaluation ends with None.
        along_seams: also measure the pixels along seams, where the strategy has any.

    Returns:
        Mean `psnr` (dB), `ssim` and `lpips`, and the same by view under `views`; on every rank. With `along_seams`
        where there are seams, `seam_psnr` (dB, of the mean square error over their pixels in all views) and
        `seam_share`, the share of pixels that are on one.
    """
    world, rank = parallel.comm.world_size, parallel.comm.rank
    stored = set(views[np.linspace(0, len(views) - 1, NUM_STORED_RENDERS).astype(int)].tolist())
    results, errors = [], torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(views), world):
        if abandon is not None and abandon(start):
            return None
        turn = views[start : start + world].tolist()
        batch = [[cameras.get(v, photo=r == rank)] for r, v in enumerate(turn)]
        batch += [[] for _ in range(world - len(turn))]
        rendered = parallel.render(gaussians, batch, sh_degree=sh_degree, background=background, track=False)
        seams = parallel.seams(gaussians, batch) if along_seams else []
        for i, view in enumerate(rendered.views):
            image = view.image.colors.clamp(0, 1)
            photo = view.camera.photo
            assert photo is not None
            target = photo.to(image.dtype) / 255
            results.append(
                {
                    "name": view.camera.name,
                    "psnr": float(psnr(image, target)),
                    "ssim": float(ssim(image, target)),
                    "lpips": lpips(image, target) if lpips else None,
                }
            )
            if seams:
                square, seam = (image - target).double().square().mean(-1), seams[i]
                errors += torch.stack(
                    [square[seam].sum().cpu(), seam.sum().cpu(), torch.tensor(seam.numel())]
                )
            if renders is not None and turn[rank] in stored:
                _save(renders, view.camera.name, "render", (image * 255).round().to(torch.uint8))
                _save(renders, view.camera.name, "photo", photo)
    rows = sorted(
        (r for part in parallel.comm.gather_objects(results) for r in part), key=lambda r: r["name"]
    )
    square, on_seam, pixels = (
        sum(part) for part in zip(*parallel.comm.gather_objects(errors.tolist()), strict=True)
    )
    along = (
        {"seam_psnr": -10 * math.log10(square / on_seam), "seam_share": on_seam / pixels}
        if on_seam and square
        else {}
    )
    return {
        **along,
        "psnr": float(np.mean([r["psnr"] for r in rows])),
        "ssim": float(np.mean([r["ssim"] for r in rows])),
        "lpips": float(np.mean([r["lpips"] for r in rows])) if lpips else None,
        "views": rows,
    }


def _save(folder: Path, view: str, what: str, pixels: Tensor) -> None:
    with replacing(folder / f"{view.replace('/', '_')}.{what}.png") as temporary:
        PillowImage.fromarray(pixels.cpu().numpy()).save(temporary, format="PNG")
