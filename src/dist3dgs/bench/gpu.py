"""Check the CUDA path on a machine with an NVIDIA GPU, and measure where its time goes.

    make gpu-check FOX=folder/of/photographs
    python -m dist3dgs.bench.gpu --scene data/fox/scene.safetensors --steps 500 --out docs/benchmarks/gpu-check.json

CPU and CUDA renderers draw the same Gaussians (forward and all gradients), then a training of 500 steps runs on the
scene given, else on the packed fox, else on a cloud made here, as the JSON states (`is_fox`). The result is one JSON
object; the exit status is 1 if the renderers disagree, and 2 if there is no GPU or something is missing.
"""

import argparse
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.models import Hardware, RunSpec, SfmSettings, Strategy, TrainSettings
from ..errors import UserError
from ..files import write_json
from ..launch import gsplat_build
from ..parallel.collectives import Communicator
from ..parallel.registry import make_parallel
from ..runs.events import EventWriter, read_events
from ..scenes.pack import PackedScene
from ..splats.gaussians import NAMES, Gaussians, initial_gaussians
from ..splats.loss import l1_ssim_loss
from ..splats.precision import full_precision
from ..splats.render import Renderer, RenderSettings, get_renderer
from ..train.loop import Trainer
from ..train.timing import Clock
from .cloud import intrinsics, ring_of_cameras, write_cloud
from .machine import describe_machine

#: Largest relative L2 difference between the renderers, both float32: colours; gradients (where a pair sits on the
#: 1/255 cut the renderers may decide differently).
TOLERANCE = {"image": 1e-4, "gradient": 1e-3}
FOX = Path("data/fox/scene.safetensors")
PHOTOGRAPHS = {".jpg", ".jpeg", ".png"}
#: (SH degree, antialiased, absolute gradients)
CASES = [
    (0, False, False), (3, False, False), (0, True, False), (3, True, False), (3, False, True)
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.bench.gpu", description=__doc__)
    parser.add_argument(
        "--scene",
        type=Path,
        help=f"packed scene, or fox's photographs to be ingested (default: {FOX} if there)",
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--gaussians", type=int, default=20_000, help="for the comparison of the renderers")
    parser.add_argument("--out", type=Path, help="JSON file (default: print)")
    args = parser.parse_args()
    try:
        if not torch.cuda.is_available():
            raise UserError("PyTorch sees no NVIDIA GPU here; nothing was checked (see nvidia-smi)")
        return check(args)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def check(args: argparse.Namespace) -> int:
    """Run the whole check; return the exit status."""
    full_precision()
    scene = packed(args.scene)
    gsplat_build.prepare()
    result: dict[str, Any] = {"machine": describe_machine() | describe_gpu()}
    result["agreement"] = {name_of(*case): compare_renderers(args.gaussians, *case) for case in CASES}
    result["agreement"]["no Gaussians"] = compare_renderers(0, 3, False, False)
    result["agrees"] = all(
        error <= TOLERANCE["image" if what == "image" else "gradient"]
        for case in result["agreement"].values()
        for what, error in case.items()
    )
    result["training"] = train(scene, args.steps)
    if not result["training"]["is_fox"]:
        print("WARNING: trained on a scene that is not fox (FOX=folder of its photographs)", file=sys.stderr)
    if args.out:
        write_json(args.out, result)
    print(json.dumps(result, indent=1))
    return 0 if result["agrees"] else 1


def name_of(sh_degree: int, antialiased: bool, absgrad: bool) -> str:
    return f"sh{sh_degree}{'-antialiased' if antialiased else ''}{'-absgrad' if absgrad else ''}"


def packed(given: Path | None) -> Path | None:
    """The packed scene to train on: as given, made from the photographs given, or fox where it is; None: a cloud."""
    if given is None:
        return FOX if FOX.is_file() else None
    if given.is_file():
        return given
    photographs = given / "images" if (given / "images").is_dir() else given
    if not photographs.is_dir() or not any(p.suffix.lower() in PHOTOGRAPHS for p in photographs.iterdir()):
        raise UserError(
            f"{given}: neither a packed scene nor a folder of photographs (or with images/ in it); give one of them: "
            "make gpu-check FOX=PATH"
        )
    if find_spec("pycolmap") is None:
        raise UserError(
            f"{given}: photographs need structure from motion, and pycolmap is not installed for {sys.executable}: "
            f"pip install pycolmap, or pack the scene elsewhere (snakemake {FOX}) and give that: make gpu-check "
            f"FOX={FOX}"
        )
    from ..scenes.ingest import IngestSettings, IngestSource, ingest

    # as docs/benchmarks/fox.yaml
    settings = IngestSettings(max_width_px=270, sfm=SfmSettings(num_features=2000))
    ingest(IngestSource(name="fox", kind="images", path=photographs), FOX.parent, settings)
    return FOX


def describe_gpu() -> dict[str, Any]:
    from importlib.metadata import version

    p = torch.cuda.get_device_properties(0)
    return {
        "gpu": p.name,
        "gpu_memory_gib": p.total_memory / 2**30,
        "cuda": torch.version.cuda,
        "gsplat": version("gsplat"),
    }


def compare_renderers(
    num_gaussians: int, sh_degree: int, antialiased: bool, absgrad: bool
) -> dict[str, float]:
    """Return the relative L2 difference of image and gradients, CUDA against CPU, the worst of three views."""
    worst: dict[str, float] = {}
    case = (num_gaussians, sh_degree, antialiased, absgrad)
    for view in range(3):
        cpu = draw(get_renderer("cpu"), torch.device("cpu"), *case, view)
        cuda = draw(get_renderer("cuda"), torch.device("cuda"), *case, view)
        for name, want in cpu.items():
            error = float((cuda[name].cpu() - want).double().norm() / want.double().norm().clamp_min(1e-12))
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def draw(
    renderer: Renderer,
    device: torch.device,
    num_gaussians: int,
    sh_degree: int,
    antialiased: bool,
    absgrad: bool,
    view: int,
) -> dict[str, Tensor]:
    """Return one view's image and gradients of a loss against a fixed random photograph."""
    g = torch.Generator().manual_seed(3)
    width, height = 317, 211  # no multiples of a tile
    points, colors = (
        torch.randn(num_gaussians, 3, generator=g) * 0.5,
        torch.rand(num_gaussians, 3, generator=g),
    )
    values = initial_gaussians(points, colors, init_opacity=0.5, init_scale=1.0)
    values["quats"] = torch.randn(num_gaussians, 4, generator=g)
    values["scales"] = values["scales"] + 0.4 * torch.randn(num_gaussians, 3, generator=g)
    values["shN"] = 0.1 * torch.randn(num_gaussians, 15, 3, generator=g)
    photo = torch.randint(0, 255, (height, width, 3), generator=g, dtype=torch.uint8).to(device)
    gaussians = Gaussians({k: values[k].to(device) for k in NAMES})
    viewmat = torch.from_numpy(ring_of_cameras(8)[view]).float().to(device)
    K = torch.from_numpy(intrinsics(1, width, height)[0]).float().to(device)
    settings = RenderSettings(sh_degree=sh_degree, antialiased=antialiased, absgrad=absgrad)
    projection = renderer.project(
        **gaussians.activated(),  # type: ignore[arg-type]
        viewmat=viewmat,
        K=K,
        width=width,
        height=height,
        settings=settings,
    )
    image = renderer.rasterize(projection, width, height, settings).colors
    l1_ssim_loss(image, photo).backward()
    gradients = {f"d {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in gaussians.items()}
    if absgrad:
        whole = torch.zeros(num_gaussians, 2, device=device)
        whole[projection.ids] = projection.means2d.absgrad  # type: ignore[attr-defined]
        gradients["d means2d, absolute"] = whole
    return {"image": image.detach(), **gradients}


def train(scene_path: Path | None, steps: int) -> dict[str, Any]:
    """A training on the GPU: speed, where a step's time goes, peak memory, held-out PSNR. None: on a cloud."""
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory() as folder:
        scene = PackedScene.open(
            scene_path
            or write_cloud(
                Path(folder, "cloud.safetensors"), num_points=20_000, num_views=24, width=540, height=360
            )
        )
        densify = {"start_step": 100, "every": 50, "stop_step": max(101, steps * 3 // 4)}
        spec = RunSpec(
            scene="check", strategy="check", layout="n1g1", repeat=0, seed=1, parallel=Strategy(),
            train=TrainSettings(
                steps=steps, eval_every=steps, sh_every=max(1, steps // 4), lpips=False, tensorboard=False,
                densify=densify,
            ),
            hardware=Hardware(device="cuda"),
        )  # fmt: skip
        torch.cuda.reset_peak_memory_stats()
        events = EventWriter(Path(folder, "events.jsonl"), 0)
        parallel = make_parallel(spec, Communicator(), get_renderer("cuda"), device)
        trainer = Trainer(spec, scene, Path(folder), parallel, device, events, Clock(events, device))
        trainer.run()
        summary = trainer.summary()
        quality = [e for e in read_events(events.path) if e["event"] == "eval"][-1]
        return {
            "scene": scene.name,
            "scene_digest": scene.digest,
            "is_fox": scene.name == "fox",
            "views": scene.num_views,
            "steps": steps,
            "psnr": quality["psnr"],
            "gaussians": quality["num_gaussians"],
            "step_s": summary["step_s"],
            "parts_s": summary["parts_s"],
            "phases_s": summary["phases_s"],
            "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30,
        }


if __name__ == "__main__":
    sys.exit(main())
