"""Check the CUDA path on a machine with an NVIDIA GPU, and measure where its time goes.

    make gpu-check FOX=folder/of/photographs
    python -m dist3dgs.bench.gpu --scene data/fox/scene.safetensors --steps 500 --out docs/benchmarks/gpu-check.json

The stages run one after the other, each in a process of its own with its own time limit: build (gsplat's extension),
agreement (CPU and CUDA renderers draw the same Gaussians, forward and all gradients), nccl (collectives of one rank on
one GPU; two ranks there are refused), training (on the scene given, else on the packed fox, else on a cloud made here,
as `is_fox` states), steps at several numbers of Gaussians with the kernels that take the time, and lpips where its
weights are. Where a checkout of gsplat and a COLMAP scene are given, simple_trainer (gsplat's own trainer) and ours
beside it, and the seconds of both to equal PSNR. The JSON is written after each; a second run repeats what did not end
well and keeps the rest, if the machine and the code are the same. The exit status is 1 if a stage failed or the
renderers disagree, and 2 if there is no GPU or something is missing.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..config.models import Hardware, RunSpec, SfmSettings, Strategy, TrainSettings
from ..errors import UserError
from ..files import write_json
from ..launch import gsplat_build
from ..parallel.collectives import Communicator
from ..parallel.registry import make_parallel
from ..runs.events import EventWriter, read_events
from ..runs.provenance import code_digest
from ..scenes.pack import PackedScene
from ..splats import triton_kernels
from ..splats.densify.lineage import founders
from ..splats.gaussians import NAMES, Gaussians, initial_gaussians
from ..splats.loss import l1_ssim_loss
from ..splats.lpips import load_lpips, weights_path
from ..splats.precision import full_precision
from ..splats.render import Renderer, RenderSettings, get_renderer
from ..train.loop import Trainer
from ..train.model import LINEAGE, Model
from ..train.timing import Clock
from . import simple_trainer
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


#: Pixels of the pictures that are compared, no multiples of a tile; a rehearsal on the CPU draws smaller ones.
DRAWN_SIZE, REHEARSED_SIZE = (317, 211), (45, 37)
#: Stage -> seconds after which it is stopped. Ten minutes on a machine are enough for each by itself.
STAGES = {
    "build": 590.0, "agreement": 300.0, "nccl": 180.0, "training": 590.0, "steps": 590.0, "lpips": 120.0,
    "simple_trainer": 590.0, "ours": 590.0,
}  # fmt: skip
#: Bytes that each Gaussian takes between steps: 59 parameters with gradient and two moments in float32, the name and
#: two sums for densification in int64.
STATE_BYTES = 59 * 4 * 4 + 3 * 8
WARM_UP_STEPS, TIMED_STEPS, PROFILED_STEPS = 5, 20, 3
NUM_KERNELS = 15


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.bench.gpu", description=__doc__)
    parser.add_argument(
        "--scene",
        type=Path,
        help=f"packed scene, or fox's photographs to be ingested (default: {FOX} if there)",
    )
    parser.add_argument("--steps", type=int, default=500, help="of the training")
    parser.add_argument("--gaussians", type=int, default=20_000, help="for the comparison of the renderers")
    parser.add_argument(
        "--numbers",
        type=int,
        nargs="+",
        default=[100_000, 1_000_000, 3_000_000],
        help="of Gaussians, for the steps",
    )
    parser.add_argument("--size", type=int, nargs=2, default=[1237, 822], help="px, of the steps' images")
    parser.add_argument("--repository", type=Path, help="checkout of gsplat, for its simple_trainer.py")
    parser.add_argument("--colmap", type=Path, help="COLMAP scene (images/, sparse/0) that both train on")
    parser.add_argument("--factor", type=int, default=1, help="its photographs are divided by this")
    parser.add_argument("--beside-steps", type=int, default=7000, help="of simple_trainer and of ours")
    parser.add_argument(
        "--densify", default="default", help="kind, of ours beside simple_trainer: default, budget"
    )
    parser.add_argument("--out", type=Path, help="JSON file (default: print)")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="only these")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, see --preload"
    )
    parser.add_argument(
        "--preload", help="module whose install() is called first; tests stand in for gsplat's extension"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    args = parser().parse_args()
    if args.preload:
        importlib.import_module(args.preload).install()
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise UserError("PyTorch sees no NVIDIA GPU here; nothing was checked (see nvidia-smi)")
        if args.here:
            full_precision()
            print(json.dumps(RUN[args.stage[0]](args)))
            return 0
        return check(args)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def check(args: argparse.Namespace) -> int:
    """Run the stages that are asked for and not done yet; return the exit status."""
    # As Ctrl-C does, it ends the stage too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args.scene = packed(args.scene)
    machine = describe_machine() | describe_gpu(args.device)
    result: dict[str, Any] = {"machine": machine, "code_digest": code_digest(), "stages": {}}
    if args.out and (kept := kept_stages(args.out, result)):
        result["stages"] = kept
    for name in args.stage:
        if result["stages"].get(name, {}).get("status") == "ok":
            print(f"{name}: done before", file=sys.stderr, flush=True)
            continue
        if reason := left_out(name, args):
            result["stages"][name] = stage = {"status": "left out", "error": reason, "s": 0.0}
            print(f"{name}: left out, {reason}", file=sys.stderr, flush=True)
        else:
            print(f"{name}: at most {STAGES[name]:.0f} s", file=sys.stderr, flush=True)
            result["stages"][name] = stage = run_stage(name, args)
            print(f"{name}: {stage['status']} after {stage['s']:.1f} s", file=sys.stderr, flush=True)
        both = [result["stages"].get(which, {}).get("result") for which in ("simple_trainer", "ours")]
        result["equal_psnr"] = simple_trainer.compare(*(r["curve"] for r in both)) if all(both) else None
        if args.out:
            write_json(args.out, result)
        if name == "build" and stage["status"] != "ok":
            print(f"error: {stage['error']}", file=sys.stderr)
            break
    triton = result["stages"].get("agreement", {}).get("result", {}).get("triton", {})
    if missing := [triton_kernels.INSTEAD[name] for name, runs in triton.items() if not runs]:
        print(f"WARNING: Triton's kernels do not run here: {'; '.join(missing)}", file=sys.stderr)
    training = result["stages"].get("training", {}).get("result")
    if training and not training["is_fox"]:
        print("WARNING: trained on a scene that is not fox (FOX=folder of its photographs)", file=sys.stderr)
    print(json.dumps(result, indent=1))
    stages = [result["stages"].get(name, {}) for name in args.stage]
    agrees = result["stages"].get("agreement", {}).get("result", {}).get("agrees", True)
    return 0 if agrees and all(stage.get("status") in ("ok", "left out") for stage in stages) else 1


def left_out(name: str, args: argparse.Namespace) -> str | None:
    """Return the reason why a stage cannot be run with what was given, None if it can."""
    if name == "lpips" and weights_path() is None:
        return "DIST3DGS_LPIPS names no weights (dist3dgs fetch-weights makes them)"
    if name in ("simple_trainer", "ours") and not (args.repository and args.colmap):
        return "give gsplat's repository and a COLMAP scene: make gpu-check GSPLAT=checkout COLMAP=scene"
    return None


def kept_stages(out: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Return stages of an earlier run on the same GPU with the same code and versions; {} if there are none."""
    try:
        before = json.loads(out.read_text(encoding="utf-8"))
        same = ("gpu", "torch", "gsplat", "cuda")
        if before["code_digest"] == now["code_digest"] and all(
            before["machine"].get(k) == now["machine"].get(k) for k in same
        ):
            return dict(before["stages"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def run_stage(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one stage in a process of its own: its `status` (ok, failed, timed out), seconds and `result` or `error`."""
    argv = [sys.executable, "-m", "dist3dgs.bench.gpu", "--here", "--stage", name, "--device", args.device]
    argv += ["--steps", str(args.steps), "--gaussians", str(args.gaussians), "--size", *map(str, args.size)]
    argv += ["--numbers", *map(str, args.numbers)]
    argv += ["--scene", str(args.scene)] if args.scene else []
    argv += ["--preload", args.preload] if args.preload else []
    argv += [
        "--factor",
        str(args.factor),
        "--beside-steps",
        str(args.beside_steps),
        "--densify",
        args.densify,
    ]
    argv += ["--repository", str(args.repository)] if args.repository else []
    argv += ["--colmap", str(args.colmap)] if args.colmap else []
    started = time.perf_counter()
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, error = process.communicate(timeout=STAGES[name])
    except subprocess.TimeoutExpired:
        status: dict[str, Any] = {"status": "timed out", "error": f"took more than {STAGES[name]:.0f} s"}
    else:
        try:
            status = (
                {"status": "ok", "result": json.loads(out.splitlines()[-1])} if not process.returncode else {}
            )
        except (IndexError, ValueError):
            status = {}
        status = status or {"status": "failed", "error": error.strip()[-4000:]}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {**status, "s": round(time.perf_counter() - started, 3)}


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Build gsplat's extension, or load the one that is there."""
    started = time.perf_counter()
    gsplat_build.load()
    return {"load_s": time.perf_counter() - started, "library": str(gsplat_build.library())}


def agreement(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the renderers; relative L2 differences by case, and whether all are small enough."""
    device = torch.device(args.device)
    size = DRAWN_SIZE if args.device == "cuda" else REHEARSED_SIZE
    cases: dict[str, Any] = {
        name_of(*case): compare_renderers(args.gaussians, *case, device, size) for case in CASES
    }
    cases["no Gaussians"] = compare_renderers(0, 3, False, False, device, size)
    # colours by gsplat, which they also are where Triton's kernels do not run
    cases["sh3-joined"] = compare_renderers(args.gaussians, 3, False, False, device, size, joined=True)
    cases["sh3-views"] = compare_renderers(args.gaussians, 3, False, True, device, size, together=True)
    agrees = all(
        error <= TOLERANCE["image" if what == "image" else "gradient"]
        for case in cases.values()
        for what, error in case.items()
    )
    runs = {name: triton_kernels.load(name, device) is not None for name in triton_kernels.INSTEAD}
    return {"agrees": agrees, "triton": runs, "cases": cases}


def nccl(args: argparse.Namespace) -> dict[str, Any]:
    """Exchange with ourselves over the backend of the device, then start two ranks on one GPU, which NCCL refuses."""
    device, backend = torch.device(args.device), "nccl" if args.device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        _collectives(0, 1, device, backend, folder)
        context = torch.multiprocessing.get_context("spawn")
        ranks = [context.Process(target=_collectives, args=(r, 2, device, backend, folder)) for r in range(2)]
        for rank in ranks:
            rank.start()
        end = time.monotonic() + 60
        for rank in ranks:
            rank.join(max(0.1, end - time.monotonic()))
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
    how = "accepted" if codes == [0, 0] else "hung" if None in codes else "refused"
    return {"backend": backend, "one rank": "ok", "two ranks on one device": how}


def _collectives(rank: int, world: int, device: torch.device, backend: str, folder: str) -> None:
    store = f"file://{folder}/store{world}"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=world)
    ones = torch.ones(1000, device=device)
    dist.all_reduce(ones)
    out = torch.empty_like(ones)
    dist.all_to_all_single(out, ones)
    assert float(out.sum()) == 1000 * world
    dist.destroy_process_group()


def training(args: argparse.Namespace) -> dict[str, Any]:
    return train(args.scene, args.steps, torch.device(args.device))


def steps(args: argparse.Namespace) -> dict[str, Any]:
    """Return time, memory and the kernels of a step at several numbers of Gaussians."""
    device = torch.device(args.device)
    width, height = args.size
    return {str(n): step_breakdown(n, width, height, device) for n in args.numbers}


def step_breakdown(num_gaussians: int, width: int, height: int, device: torch.device) -> dict[str, Any]:
    """Measure steps of one view with all degrees of the harmonics; densification apart.

    The Gaussians fill the cameras' view, with sizes as in `bench.render`: about 0.6 % of their distance.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cloud.safetensors")
        scene = PackedScene.open(write_cloud(path, num_points=2_000, num_views=4, width=width, height=height))
        settings = TrainSettings(steps=1000, sh_every=1, lpips=False, tensorboard=False)
        trainer = _trainer(scene, settings, Path(folder), device)
        trainer.start()
        g = torch.Generator().manual_seed(1)
        rows = {
            "means": torch.rand(num_gaussians, 3, generator=g) * 2 - 1,
            "scales": torch.randn(num_gaussians, 3, generator=g) * 0.5 - 4.0,
            "quats": torch.randn(num_gaussians, 4, generator=g),
            "opacities": torch.randn(num_gaussians, generator=g) * 1.5,
            "sh0": torch.randn(num_gaussians, 1, 3, generator=g) * 0.5,
            "shN": torch.randn(num_gaussians, 15, 3, generator=g) * 0.1,
        }
        rows = {name: tensor.to(device) for name, tensor in rows.items()}
        rows[LINEAGE] = founders(num_gaussians, device)
        trainer.model = Model(trainer.parallel, trainer.rule, rows, {})
        for step in range(1, WARM_UP_STEPS + 1):
            trainer.one_step(step)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        durations = []
        for step in range(WARM_UP_STEPS + 1, WARM_UP_STEPS + TIMED_STEPS + 1):
            started = time.perf_counter()
            trainer.one_step(step)
            if device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        with torch.profiler.profile() as profile:
            for step in range(1, PROFILED_STEPS + 1):
                trainer.one_step(WARM_UP_STEPS + TIMED_STEPS + step)
            if device.type == "cuda":
                torch.cuda.synchronize()
        times = {
            e.key: (e.self_device_time_total if device.type == "cuda" else e.self_cpu_time_total)
            / PROFILED_STEPS
            for e in profile.key_averages()
        }
        slowest = sorted(times, key=times.__getitem__, reverse=True)[:NUM_KERNELS]
        return {
            "step_s": sorted(durations)[len(durations) // 2],
            "peak_bytes": peak,
            "state_bytes": STATE_BYTES * num_gaussians,
            "kernels_us": {name: times[name] for name in slowest},
        }


def lpips_stage(args: argparse.Namespace) -> dict[str, Any]:
    """Measure LPIPS of two pictures on the device and on the CPU, and its seconds on the device."""
    g, device = torch.Generator().manual_seed(0), torch.device(args.device)
    width, height = (max(96, side) for side in args.size)  # AlexNet needs about as much
    photo = (
        torch.rand(height // 8 + 1, width // 8 + 1, 3, generator=g)
        .repeat_interleave(8, 0)
        .repeat_interleave(8, 1)
    )
    other = (photo + 0.1 * torch.randn(photo.shape, generator=g)).clamp(0, 1)
    on_cpu, on_device = load_lpips(torch.device("cpu")), load_lpips(device)
    assert on_cpu is not None and on_device is not None  # left out otherwise
    photo, other = photo[:height, :width].contiguous(), other[:height, :width].contiguous()
    want, pair = on_cpu(photo, other), (photo.to(device), other.to(device))
    got = on_device(*pair)
    started = time.perf_counter()
    on_device(*pair)
    return {"cpu": want, "device": got, "difference": abs(got - want), "s": time.perf_counter() - started}


def theirs_stage(args: argparse.Namespace) -> dict[str, Any]:
    """Train with gsplat's simple_trainer."""
    curve = simple_trainer.run_theirs(
        args.repository, args.colmap, args.factor, args.beside_steps, with_our_build=args.device == "cuda"
    )
    return {"steps": args.beside_steps, "curve": curve}


def ours_stage(args: argparse.Namespace) -> dict[str, Any]:
    """Train on the scene of `simple_trainer`, with as many steps and evaluations."""
    from ..scenes.ingest import IngestSettings, IngestSource, ingest

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        source = IngestSource(name="beside", kind="colmap", path=args.colmap)
        settings = IngestSettings(downscale=args.factor, test_every=simple_trainer.TEST_EVERY)
        ingest(source, Path(folder), settings)
        steps = args.beside_steps
        train = TrainSettings.model_validate({
            "steps": steps, "eval_every": simple_trainer.evaluations(steps)[0], "checkpoint_every": steps,
            "lpips": weights_path() is not None, "tensorboard": False, "densify": {"kind": args.densify},
        })  # fmt: skip
        scene = PackedScene.open(Path(folder, "scene.safetensors"))
        trainer = _trainer(scene, train, Path(folder), torch.device(args.device))
        trainer.run()
        events = [e for e in read_events(trainer.events.path) if e["event"] == "eval"]
    curve = [
        {"s": e["elapsed_s"], "gaussians": e["num_gaussians"]} | {k: e[k] for k in ("step", "psnr", "lpips")}
        for e in events
    ]
    return {"steps": steps, "densify": args.densify, "curve": curve}


#: Stage -> the function that runs it, in its own process; returns what JSON can hold.
RUN = {
    "build": build,
    "agreement": agreement,
    "nccl": nccl,
    "training": training,
    "steps": steps,
    "lpips": lpips_stage,
    "simple_trainer": theirs_stage,
    "ours": ours_stage,
}


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
            f"pip install pycolmap, or pack the scene elsewhere (snakemake --profile profiles/local --configfile "
            f"docs/benchmarks/fox.yaml -- {FOX}) and give that: make gpu-check FOX={FOX}"
        )
    from ..scenes.ingest import IngestSettings, IngestSource, ingest

    # as docs/benchmarks/fox.yaml
    settings = IngestSettings(max_width_px=270, sfm=SfmSettings(num_features=2000))
    ingest(IngestSource(name="fox", kind="images", path=photographs), FOX.parent, settings)
    return FOX


def describe_gpu(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"gpu": None, "cuda": None, "gsplat": version("gsplat")}
    p = torch.cuda.get_device_properties(0)
    return {
        "gpu": p.name,
        "gpu_memory_gib": p.total_memory / 2**30,
        "cuda": torch.version.cuda,
        "gsplat": version("gsplat"),
    }


def compare_renderers(
    num_gaussians: int,
    sh_degree: int,
    antialiased: bool,
    absgrad: bool,
    device: torch.device,
    size: tuple[int, int] = DRAWN_SIZE,
    joined: bool = False,
    together: bool = False,
) -> dict[str, float]:
    """Return the relative L2 difference of image and gradients, CUDA against CPU, the worst of three views, or of the
    three projected together.
    """
    worst: dict[str, float] = {}
    case = (num_gaussians, sh_degree, antialiased, absgrad)
    for views in [(0, 1, 2)] if together else [(0,), (1,), (2,)]:
        cpu = draw(get_renderer("cpu"), torch.device("cpu"), *case, views, size, joined)
        cuda = draw(get_renderer("cuda"), device, *case, views, size, joined)
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
    views: Sequence[int],
    size: tuple[int, int] = DRAWN_SIZE,
    joined: bool = False,
) -> dict[str, Tensor]:
    """Return the views' images and gradients of a loss against a fixed random photograph.

    views: numbers of cameras; several are projected together.
    joined: all coefficients of the harmonics are given as one tensor.
    """
    g = torch.Generator().manual_seed(3)
    width, height = size
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
    viewmats = [torch.from_numpy(ring_of_cameras(8)[view]).float().to(device) for view in views]
    K = torch.from_numpy(intrinsics(1, width, height)[0]).float().to(device)
    settings = RenderSettings(sh_degree=sh_degree, antialiased=antialiased, absgrad=absgrad)
    inputs: dict[str, Any] = gaussians.activated()
    if joined:
        inputs["colors"] = torch.cat([gaussians["sh0"], gaussians["shN"]], 1)
    size_and_settings: dict[str, Any] = {"width": width, "height": height, "settings": settings}
    if len(views) == 1:
        projections = [renderer.project(**inputs, viewmat=viewmats[0], K=K, **size_and_settings)]
    else:
        whole, numbers = renderer.project_views(
            **inputs, viewmats=viewmats, Ks=[K] * len(views), **size_and_settings
        )
        projections = whole.split(numbers.tolist())
    images = [renderer.rasterize(projection, width, height, settings).colors for projection in projections]
    torch.stack([l1_ssim_loss(image, photo) for image in images]).sum().backward()
    gradients = {f"d {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in gaussians.items()}
    if absgrad:
        total = torch.zeros(num_gaussians, 2, device=device)
        for projection in projections:
            total.index_add_(0, projection.ids, projection.means2d.absgrad)  # type: ignore[attr-defined]
        gradients["d means2d, absolute"] = total
    return {"image": torch.stack(images).detach(), **gradients}


def train(scene_path: Path | None, steps: int, device: torch.device) -> dict[str, Any]:
    """Train on the GPU: speed, where a step's time goes, peak memory, held-out quality. None: on a cloud.

    LPIPS is measured where DIST3DGS_LPIPS names its weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        scene = PackedScene.open(
            scene_path
            or write_cloud(
                Path(folder, "cloud.safetensors"), num_points=20_000, num_views=24, width=540, height=360
            )
        )
        densify = {"start_step": 100, "every": 50, "stop_step": max(101, steps * 3 // 4)}
        settings = TrainSettings(
            steps=steps, eval_every=steps, sh_every=max(1, steps // 4), lpips=weights_path() is not None,
            tensorboard=False,
            densify=densify,
        )  # fmt: skip
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer = _trainer(scene, settings, Path(folder), device)
        with contextlib.redirect_stdout(sys.stderr):
            trainer.run()
        summary = trainer.summary()
        quality = [e for e in read_events(trainer.events.path) if e["event"] == "eval"][-1]
        return {
            "scene": scene.name,
            "scene_digest": scene.digest,
            "is_fox": scene.name == "fox",
            "views": scene.num_views,
            "steps": steps,
            "psnr": quality["psnr"],
            "ssim": quality["ssim"],
            "lpips": quality["lpips"],
            "gaussians": quality["num_gaussians"],
            "step_s": summary["step_s"],
            "parts_s": summary["parts_s"],
            "phases_s": summary["phases_s"],
            "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        }


def _trainer(scene: PackedScene, settings: TrainSettings, folder: Path, device: torch.device) -> Trainer:
    spec = RunSpec(
        scene="check", strategy="check", layout="n1g1", repeat=0, seed=1, parallel=Strategy(), train=settings,
        hardware=Hardware(device=device.type),
    )  # fmt: skip
    events = EventWriter(folder / "events.jsonl", 0)
    parallel = make_parallel(spec, Communicator(), get_renderer("cuda"), device)
    return Trainer(spec, scene, folder, parallel, device, events, Clock(events, device))


if __name__ == "__main__":
    sys.exit(main())
