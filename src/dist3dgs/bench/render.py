"""The CPU renderer against the plain torch reference, side by side: `python -m dist3dgs.bench.render`.

Writes docs/benchmarks/render.md and render.json (or the folder given). Every number is a median over interleaved runs
of the same scene in the same process with the same number of threads; the best run is given beside it, because other
work on the machine can only add time.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist3dgs.bench.machine import describe_machine
from dist3dgs.files import write_json, write_text
from dist3dgs.splats.loss import l1_ssim_loss
from dist3dgs.splats.render import Projection, Renderer, RenderSettings, get_renderer, set_threads

SIZES = ((10_000, 480, 270), (50_000, 480, 270), (112_000, 480, 270))
LARGE = (112_000, 960, 540)
MUST = {10_000: 100, 50_000: 120, 112_000: 120}


@dataclass
class BenchCloud:
    """Gaussians in front of one camera, all float32 and requiring gradients."""

    parameters: list[Tensor]
    K: Tensor
    width: int
    height: int

    def project(self, renderer: Renderer) -> Projection:
        means, quats, scales, opacities, sh0, shn = self.parameters
        return renderer.project(
            means,
            quats,
            scales,
            opacities,
            (sh0, shn),
            torch.eye(4),
            self.K,
            self.width,
            self.height,
            RenderSettings(sh_degree=3),
        )


def make_cloud(num_gaussians: int, width: int, height: int, seed: int = 0) -> BenchCloud:
    """Return Gaussians spread evenly over a view slightly wider than the image (95 % are visible), at depths 2 to 10.

    Sigma is log-normal (0.5) around 0.6 % of the depth along each axis, which is 2.6 px at 480 px width (the radius at
    which alpha falls to 1/255 is 10 px on average); opacities are sigmoid(1.5 normal); SH of degree 3.
    """
    g, n = torch.Generator().manual_seed(seed), num_gaussians
    u = torch.rand(3, n, generator=g)
    z = 2 + 8 * u[0]
    means = torch.stack([(u[1] - 0.5) * 1.2 * z, (u[2] - 0.5) * 0.68 * z, z], -1)
    scales = torch.exp(torch.randn(n, 3, generator=g) * 0.5) * z[:, None] * 0.006
    parameters = [
        means,
        torch.randn(n, 4, generator=g),
        scales,
        torch.sigmoid(torch.randn(n, generator=g) * 1.5),
        torch.randn(n, 1, 3, generator=g) * 0.5,
        torch.randn(n, 15, 3, generator=g) * 0.1,
    ]
    K = torch.tensor([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    return BenchCloud([p.requires_grad_() for p in parameters], K, width, height)


def step(renderer: Renderer, cloud: BenchCloud, gradient: Tensor) -> None:
    """Run forward and backward pass, projection included."""
    for p in cloud.parameters:
        p.grad = None
    image = renderer.rasterize(cloud.project(renderer), cloud.width, cloud.height)
    image.colors.backward(gradient)


def timed(work: Callable[[], None], runs: int, warm_up: int = 2) -> list[float]:
    """Return wall times in ms."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Return median, best and number of runs."""
    return {
        "median_ms": round(statistics.median(times), 2),
        "best_ms": round(min(times), 2),
        "runs": len(times),
    }


def against_reference(size: tuple[int, int, int], runs: int, reference_runs: int) -> dict[str, Any]:
    """Time one scene with both renderers, interleaved."""
    cloud = make_cloud(*size)
    gradient = torch.randn(size[2], size[1], 3, generator=torch.Generator().manual_seed(1))
    cpu, reference = get_renderer("cpu"), get_renderer("reference")
    ours, theirs = timed(lambda: step(cpu, cloud, gradient), 1), []
    for _ in range(reference_runs):
        theirs += timed(lambda: step(reference, cloud, gradient), 1, warm_up=0)
        ours += timed(lambda: step(cpu, cloud, gradient), -(-runs // reference_runs), warm_up=1)
    a, b = summary(ours[1:]), summary(theirs)
    return {
        "gaussians": size[0], "width": size[1], "height": size[2], "cpu": a, "reference": b,
        "ratio": round(b["median_ms"] / a["median_ms"], 1), "ratio_of_best": round(b["best_ms"] / a["best_ms"], 1),
        "must": MUST[size[0]],
    }  # fmt: skip


def scaling(threads: int, runs: int) -> dict[str, Any]:
    """1 thread against all, and the large image against the small, interleaved."""
    small, large = make_cloud(*SIZES[-1]), make_cloud(*LARGE)
    cpu, times = get_renderer("cpu"), {"one_thread": [], "small": [], "large": []}  # type: ignore[var-annotated]
    gradients = [torch.randn(c.height, c.width, 3) for c in (small, large)]
    for _ in range(runs):
        set_threads(1)
        times["one_thread"] += timed(lambda: step(cpu, small, gradients[0]), 1, warm_up=1)
        set_threads(threads)
        times["small"] += timed(lambda: step(cpu, small, gradients[0]), 1, warm_up=1)
        times["large"] += timed(lambda: step(cpu, large, gradients[1]), 1, warm_up=1)
    result: dict[str, Any] = {name: summary(t) for name, t in times.items()}
    for key in ("median_ms", "best_ms"):
        result[f"speedup_{key[:-3]}"] = round(result["one_thread"][key] / result["small"][key], 2)
        result[f"large_over_small_{key[:-3]}"] = round(result["large"][key] / result["small"][key], 2)
    return result


def training_step(runs: int) -> dict[str, Any]:
    """Time the parts of a training step at 60,000 Gaussians and 480x270."""
    cloud = make_cloud(60_000, 480, 270)
    cpu = get_renderer("cpu")
    leaves = [p.detach().clone() for p in cloud.parameters]
    leaves[2], leaves[3] = leaves[2].log(), leaves[3].logit()
    leaves = [p.requires_grad_() for p in leaves]
    optimizer = torch.optim.Adam([{"params": [p], "lr": 1e-9} for p in leaves], fused=True)
    target = (torch.rand(270, 480, 3) * 255).to(torch.uint8)
    parts: dict[str, list[float]] = {name: [] for name in ("activate", "render", "loss", "backward", "adam")}
    for i in range(runs + 2):
        marks = [time.perf_counter()]
        means, quats, log_scales, logits, sh0, shn = leaves
        scales, opacities = log_scales.exp(), logits.sigmoid()
        marks.append(time.perf_counter())
        p = cpu.project(
            means,
            quats,
            scales,
            opacities,
            (sh0, shn),
            torch.eye(4),
            cloud.K,
            480,
            270,
            RenderSettings(sh_degree=3),
        )
        image = cpu.rasterize(p, 480, 270)
        marks.append(time.perf_counter())
        loss = l1_ssim_loss(image.colors, target)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
        if i >= 2:
            for name, a, b in zip(parts, marks, marks[1:], strict=False):
                parts[name].append((b - a) * 1e3)
    return {name: summary(t) for name, t in parts.items()}


def markdown(result: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    m = result["machine"]
    lines = [
        "# Speed of the CPU renderer",
        "",
        f"`{result['command']}` on {m['cpu']}, {result['threads']} threads, torch {m['torch']}, "
        f"llvmlite {m['llvmlite']}, commit {m['commit']}, {m['date']}. "
        f"Load of the machine before the run: {m['load']} on {m['cores']} cores.",
        "",
        "Forward + backward with projection and spherical harmonics of degree 3. Median (best) of the runs, side by "
        "side with the plain torch reference in one process with the same threads. The scenes: "
        + " ".join((make_cloud.__doc__ or "").split()),
        "",
        "| Gaussians, size | cpu, ms | reference, ms | ratio of medians | of best runs | must |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["sizes"]:
        a, b = row["cpu"], row["reference"]
        lines.append(
            f"| {row['gaussians']:,}, {row['width']}x{row['height']} | {a['median_ms']} ({a['best_ms']}) "
            f"| {b['median_ms']} ({b['best_ms']}) | {row['ratio']}x | {row['ratio_of_best']}x | {row['must']}x |"
        )
    s = result["scaling"]
    lines += [
        "",
        f"* 960x540 against 480x270 at 112,000: {s['large_over_small_median']}x by medians, "
        f"{s['large_over_small_best']}x by best runs (must: at most 2.2x).",
        f"* {result['threads']} threads against 1 at 112,000, 480x270: {s['speedup_median']}x by medians, "
        f"{s['speedup_best']}x by best runs (must: at least 1.7x); one thread {s['one_thread']['median_ms']} ms.",
        "",
        "A training step at 60,000 Gaussians, 480x270 (ms, median (best)): "
        + ", ".join(f"{n} {t['median_ms']} ({t['best_ms']})" for n, t in result["training_step"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--runs", type=int, default=15, help="runs of the CPU renderer per scene")
    parser.add_argument("--reference-runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    if (
        "OMP_WAIT_POLICY" not in os.environ
    ):  # read when torch is loaded, hence a new process; see decision 0010
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, "-m", "dist3dgs.bench.render", *sys.argv[1:]])
    machine = describe_machine()
    set_threads(args.threads)
    print("step", flush=True)
    parts = training_step(args.runs)
    print("scaling", flush=True)
    scales = scaling(args.threads, args.runs)
    sizes = []
    for size in SIZES:
        print(f"{size[0]} Gaussians", flush=True)
        sizes.append(against_reference(size, args.runs, args.reference_runs))
    result = {
        "command": f"python -m dist3dgs.bench.render --threads {args.threads}",
        "wait_policy": os.environ["OMP_WAIT_POLICY"], "machine": machine,
        "threads": args.threads, "training_step": parts,
        "scaling": scales,
        "sizes": sizes,
    }  # fmt: skip
    write_json(args.out / "render.json", result)
    write_text(args.out / "render.md", markdown(result))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
