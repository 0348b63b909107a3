"""Measure the held-out quality of a checkpoint in one process, whatever ranks and strategy made it."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..config.matrix import load_train_spec
from ..config.models import Strategy
from ..errors import UserError
from ..parallel.collectives import Communicator
from ..parallel.registry import make_parallel
from ..runs.resume import read_metadata
from ..scenes.pack import PackedScene
from ..splats.gaussians import NAMES, Gaussians
from ..splats.lpips import load_lpips
from ..splats.render import get_renderer, set_threads
from . import checkpoint
from .data import SceneCameras
from .evaluate import evaluate
from .rng import background
from .schedules import Schedule


def evaluate_checkpoint(path: Path, scene_path: Path, seams_of: Path | None = None) -> dict[str, Any]:
    """Measure `psnr`, `ssim`, `lpips` over all held-out `views`; also return `step`, `num_gaussians` and `device`.

    On a GPU if PyTorch sees one. Of blocks that were trained apart, or with `seams_of`, the checkpoint of such a run,
    also `seam_psnr` and `seam_share`, along that run's cuts. Raises `UserError` if the checkpoint is damaged or of
    another scene.
    """
    try:
        metadata, found = read_metadata(path), checkpoint.read(path)
        settings, spec = json.loads(metadata["settings"]), load_train_spec(metadata["spec"])
    except (ValueError, KeyError) as e:
        raise UserError(f"{path}: not a checkpoint of this version of dist3dgs: {e}") from None
    scene = PackedScene.open(scene_path)
    if settings.get("scene digest") != scene.digest:
        raise UserError(
            f"{scene_path}: another scene than the checkpoint's, which is {spec.scene} with digest "
            f"{settings.get('scene digest')}; give --scene the packed scene that it was trained on"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_threads(len(os.sched_getaffinity(0)))
    seams = found.state if seams_of is None else checkpoint.read(seams_of).state
    strategy = Strategy(kind="blocks") if seams else Strategy()
    alone = spec.model_copy(update={"parallel": strategy})
    parallel = make_parallel(alone, Communicator(), get_renderer("auto", device), device)
    parallel.begin("merged", seams)
    quality = evaluate(
        parallel,
        Gaussians({name: found.rows[name].to(device) for name in NAMES}, requires_grad=False),
        SceneCameras(scene, device),
        scene.test_ids,
        sh_degree=Schedule(spec).sh_degree(found.header.step),
        background=background(spec, 0, device),
        lpips=load_lpips(device),
        renders=None,
        along_seams=True,
    )
    assert quality is not None
    facts = {"step": found.header.step, "num_gaussians": len(found.rows["means"]), "device": device.type}
    return facts | quality


def run_evaluate(path: Path, scene_path: Path, as_json: bool) -> None:
    """Print the held-out quality of a checkpoint, as the command `evaluate` does."""
    result = evaluate_checkpoint(path, scene_path)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    known = [(k, result[k]) for k in ("psnr", "ssim", "lpips") if result[k] is not None]
    print(
        f"{path}: step {result['step']}, {result['num_gaussians']} Gaussians; held-out means over "
        f"{len(result['views'])} views on the {result['device'].upper()}:",
        ", ".join(f"{k.upper()} {v:.4f}{' dB' if k == 'psnr' else ''}" for k, v in known),
    )
