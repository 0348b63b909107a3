"""The CPU kernels against the float64 reference."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dist3dgs.splats.cpu.rasterize import split_rows
from dist3dgs.splats.render import Projection, RenderSettings, get_renderer, render, set_threads
from tests.unit.helpers.clouds import (
    Cloud,
    around_points,
    assert_close,
    edge_pixels,
    random_cloud,
    relative,
    run,
)

COLOR, GRADIENT = 1e-6, 1e-5


@pytest.fixture(autouse=True)
def _keep_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [
    {}, {"antialiased": True}, {"depth": True}, {"degree": 0}, {"degree": 1, "absgrad": False}, {"degree": 2},
    {"degree": 2, "joined": True}, {"joined": True, "antialiased": True, "depth": True, "absgrad": False},
], ids=str)  # fmt: skip
def test_random_scenes(options: dict) -> None:
    options = dict(options)
    for seed, size in ((0, (70, 50)), (2, (33, 67))):
        cloud = random_cloud(1000, seed, *size)
        options["ignore"] = edge_pixels(cloud, options.get("antialiased", False))
        truth = run(cloud, "reference", torch.float64, **options)
        assert_close(truth, run(cloud, "cpu", torch.float64, **options), 1e-12, 1e-11)
        assert_close(truth, run(cloud, "cpu", torch.float32, **options), COLOR, GRADIENT)


@pytest.mark.slow
def test_built_in_scene() -> None:
    from dist3dgs.scenes.builtin.raycast import nearest
    from dist3dgs.scenes.builtin.scene import build_court, camera_path

    poses = camera_path(12, 0)
    rng, court, points = np.random.default_rng(0), build_court(0), []
    for pose in poses[::3]:
        pixels = np.column_stack([rng.uniform(-0.6, 0.6, 1500), rng.uniform(-0.4, 0.4, 1500), np.ones(1500)])
        rays = (pixels @ pose[:3, :3].T).astype(np.float32)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        eye = np.broadcast_to(pose[:3, 3].astype(np.float32), rays.shape)
        distance, which = nearest(court.things, tuple(eye.T.copy()), tuple(rays.T.copy()))
        hit = which >= 0
        points.append(eye[hit] + rays[hit] * distance[hit, None])
    cloud_points = np.concatenate(points).astype(np.float64)
    K = np.array([[0.82 * 120, 0, 60], [0, 0.82 * 120, 40], [0, 0, 1]])
    cloud = around_points(cloud_points, rng.random(cloud_points.shape), np.linalg.inv(poses[1]), K, (120, 80))
    ignore = edge_pixels(cloud)
    truth = run(cloud, "reference", torch.float64, ignore=ignore)
    assert len(truth.ids) > 2000 and ignore.double().mean() < 0.05
    assert_close(truth, run(cloud, "cpu", torch.float32, ignore=ignore), COLOR, GRADIENT)


@pytest.mark.slow
def test_fox_cameras(shared: Path) -> None:
    """Real poses and colours: points behind the pixels of real photographs, seen from another camera."""
    from PIL import Image

    scene = json.loads((shared / "scenes/fox/transforms.json").read_text())
    frames = [f for f in scene["frames"] if (shared / "scenes/fox" / f["file_path"]).exists()]
    flip = np.diag([1.0, -1, -1, 1])  # OpenGL to OpenCV axes
    scale = 90 / scene["w"]
    K = (
        np.array([[scene["fl_x"], 0, scene["cx"]], [0, scene["fl_y"], scene["cy"]], [0, 0, 1 / scale]])
        * scale
    )
    rng, points, colors = np.random.default_rng(0), [], []
    for frame in frames[::10]:
        with Image.open(shared / "scenes/fox" / frame["file_path"]) as photo:
            pixels = np.asarray(photo.convert("RGB").resize((90, 160))) / 255
        u, v = rng.integers(0, 90, 1000), rng.integers(0, 160, 1000)
        depth = rng.uniform(2, 6, 1000)
        rays = np.column_stack([(u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1], np.ones(1000)])
        pose = np.array(frame["transform_matrix"]) @ flip
        points.append((rays * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3])
        colors.append(pixels[v, u])
    view = np.linalg.inv(np.array(frames[5]["transform_matrix"]) @ flip)
    cloud = around_points(np.concatenate(points), np.concatenate(colors), view, K, (90, 160))
    ignore = edge_pixels(cloud)
    truth = run(cloud, "reference", torch.float64, ignore=ignore)
    assert len(truth.ids) > 2000 and ignore.double().mean() < 0.05
    assert_close(truth, run(cloud, "cpu", torch.float32, ignore=ignore), COLOR, GRADIENT)


def degenerate(kind: str) -> Cloud:
    cloud = random_cloud(600, 3, 60, 50)
    if kind == "needles":
        cloud.scales = torch.tensor([1.0, 1e-3, 1e-3]).double() * (0.1 + cloud.opacities[:, None])
    elif kind == "discs":
        cloud.scales[:, 0] = 1e-9
    elif kind == "points":
        cloud.scales *= 1e-3
    elif kind == "huge":
        cloud.scales *= 300
    elif kind == "opaque":
        cloud.opacities[:] = 1.0
    elif kind == "faint":
        cloud.opacities[:] = 0.02
    elif kind == "one depth":
        cloud.means[:, 2] = 0
        cloud.viewmat = torch.eye(4).double()
        cloud.viewmat[2, 3] = 3
    elif kind == "same place":
        cloud.means[:] = cloud.means[0] * 0.1
    elif kind == "no rotation":
        cloud.quats[::2] = 0
    return cloud


@pytest.mark.parametrize(
    "kind",
    ["needles", "discs", "points", "huge", "opaque", "faint", "one depth", "same place", "no rotation"],
)
def test_degenerate_scenes(kind: str) -> None:
    cloud = degenerate(kind)
    truth = run(cloud, "reference", torch.float64)
    assert_close(truth, run(cloud, "cpu", torch.float64), 1e-11, 1e-8)
    result = run(cloud, "cpu", torch.float32)
    # float32 may put a pixel on the other side of a threshold, and here there are many on the edge
    assert relative(truth.colors, result.colors) < 2e-4
    for gradient in result.gradients.values():
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.slow
def test_gradcheck() -> None:
    """The float64 kernels against finite differences: the derivatives themselves, not another implementation."""
    cloud = random_cloud(6, 5, 14, 12)
    cloud.means[:, 2] = cloud.means[:, 2].abs() * 0.3
    cloud.scales = cloud.scales * 4
    cloud.opacities = cloud.opacities * 0.5 + 0.2
    cpu = get_renderer("cpu")
    weights = torch.randn(5, 12, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for antialiased in (False, True):
        settings = RenderSettings(sh_degree=3, antialiased=antialiased, render_depth=True)

        def number(means, quats, scales, opacities, sh0, shn, viewmat, background, settings=settings):
            p = cpu.project(means, quats, scales, opacities, (sh0, shn), viewmat, cloud.K, 14, 12, settings)
            image = cpu.rasterize(p, 14, 12, settings, background=background)
            return (
                (image.colors * weights[:3].movedim(0, -1)).sum()
                + (image.alphas * weights[3]).sum()
                + (image.depths * weights[4]).sum()
            )

        names = ("means", "quats", "scales", "opacities", "sh0", "shn", "background")
        leaves = [getattr(cloud, name).clone().requires_grad_() for name in names]
        # poses are checked against the reference: a finite step makes them no longer rigid
        arguments = [*leaves[:6], cloud.viewmat, leaves[6]]
        assert torch.autograd.gradcheck(number, arguments, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_same_bits_for_any_number_of_threads_and_every_run() -> None:
    cloud = random_cloud(20000, 4, 130, 100)
    results = []
    for threads in (1, 2, 3, 7, 2):
        set_threads(threads)
        results.append(run(cloud, "cpu", torch.float32, depth=True))
    for result in results[1:]:
        assert torch.equal(result.colors, results[0].colors) and torch.equal(result.alphas, results[0].alphas)
        for name, gradient in result.gradients.items():
            if name != "background":  # summed by torch
                assert gradient is not None and torch.equal(gradient, results[0].gradients[name]), name


def test_slots_in_parts_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from dist3dgs.splats.cpu import rasterize

    cloud = random_cloud(5000, 6)
    whole = run(cloud, "cpu", torch.float32)
    monkeypatch.setattr(rasterize, "SLOT_BYTES_PER_THREAD", 1)
    monkeypatch.setattr(rasterize, "SLOT_BYTES_PER_GAUSSIAN", 1)
    parts = run(cloud, "cpu", torch.float32)
    for name, gradient in whole.gradients.items():
        assert gradient is not None and torch.equal(gradient, parts.gradients[name]), name
    assert split_rows([5, 1, 1, 9, 0], 6) == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_a_projection_put_together_in_any_order() -> None:
    cloud = random_cloud(3000, 8)
    cpu = get_renderer("cpu")

    def project(ids: torch.Tensor) -> Projection:
        return cpu.project(
            cloud.means[ids].float(), cloud.quats[ids].float(), cloud.scales[ids].float(),
            cloud.opacities[ids].float(), (cloud.sh0[ids].float(), cloud.shn[ids].float()), cloud.viewmat,
            cloud.K, cloud.width, cloud.height, RenderSettings(sh_degree=3),
        )  # fmt: skip

    whole = cpu.rasterize(project(torch.arange(3000)), cloud.width, cloud.height)
    parts = [project(torch.arange(start, 3000, 3)) for start in (2, 0, 1)]
    fields = ("ids", "means2d", "conics", "depths", "radii", "colors", "opacities")
    together = Projection(**{name: torch.cat([getattr(p, name) for p in parts]) for name in fields})
    again = cpu.rasterize(together, cloud.width, cloud.height)
    assert torch.equal(whole.colors, again.colors)  # no two depths are equal, so the order is the same


def test_batches_of_cameras_and_rgb_colours() -> None:
    cloud = random_cloud(800, 9)
    rgb = torch.rand(800, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = torch.stack([cloud.viewmat, torch.eye(4).double()])
    backgrounds = torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    outputs = [
        render(get_renderer(name), cloud.means, cloud.quats, cloud.scales, cloud.opacities, rgb, views,
               torch.stack([cloud.K, cloud.K]), 40, 30, RenderSettings(render_depth=True), backgrounds=backgrounds)
        for name in ("reference", "cpu")
    ]  # fmt: skip
    truth, result = outputs
    assert result.colors.shape == (2, 30, 40, 3) and result.alphas.shape == (2, 30, 40, 1)
    assert result.depths is not None and result.depths.shape == (2, 30, 40, 1)
    assert torch.allclose(truth.colors, result.colors, atol=1e-12) and len(result.projections) == 2
    with torch.no_grad():
        assert not torch.equal(result.colors[0], result.colors[1])


def test_coefficients_beyond_the_degree_have_no_gradient() -> None:
    cloud = random_cloud(500, 10)
    gradient = run(cloud, "cpu", torch.float32, degree=1).gradients["shn"]
    assert gradient is not None and gradient[:, 3:].abs().max() == 0 and gradient[:, :3].abs().max() > 0
    assert run(cloud, "cpu", torch.float32, degree=0).gradients["shn"] is None


@pytest.mark.slow
def test_memory_per_gaussian() -> None:
    """At most 250 bytes per Gaussian beyond parameters and gradients, plus the image buffers."""
    code = """
import resource, sys, torch
sys.path.insert(0, sys.argv[1])
from dist3dgs.bench.render import make_cloud
from dist3dgs.splats.render import get_renderer, set_threads
set_threads(2)
def step(n):
    cloud = make_cloud(n, 480, 270)
    for t in cloud.parameters: t.grad = torch.zeros_like(t)
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    grads = torch.zeros(59 * n)  # what the backward pass hands over before it is added
    before = peak()
    del grads
    p = cloud.project(get_renderer("cpu"))
    image = get_renderer("cpu").rasterize(p, 480, 270)
    image.colors.backward(torch.ones_like(image.colors))
    return peak() - before
step(1000)
print(step(600_000) / 600_000)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 250 + 480 * 270 * 4 * 12 / 600_000


@pytest.mark.slow
def test_gsplat_stays_untouched() -> None:
    code = """
import sys, torch
from dist3dgs.splats.render import get_renderer
r = get_renderer("auto", "cpu")
p = r.project(torch.randn(9, 3), torch.randn(9, 4), torch.rand(9, 3), torch.rand(9), torch.rand(9, 3),
              torch.eye(4), torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]), 8, 8)
r.rasterize(p, 8, 8)
assert not [m for m in sys.modules if m.startswith("gsplat")], "gsplat was imported"
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_exactly_the_threads_of_torch() -> None:
    code = """
import os, sys, time, torch
from dist3dgs.splats.render import get_renderer, set_threads
set_threads(int(sys.argv[1]))
def count():  # those that stay: one that is just ending is in nobody's way
    counts = []
    for _ in range(20):
        counts.append(len(os.listdir("/proc/self/task")))
        time.sleep(0.01)
    return min(counts)
one = count()
torch.ones(1 << 22).sum()  # now torch's threads are there
g = torch.Generator().manual_seed(0)
before, r = count(), get_renderer("cpu")
x = [torch.randn(20000, 3, generator=g).requires_grad_() for _ in range(2)]
p = r.project(x[0], torch.randn(20000, 4, generator=g), x[1].exp() * 0.01, torch.rand(20000, generator=g),
              torch.rand(20000, 3, generator=g), torch.eye(4), torch.tensor([[99.0, 0, 64], [0, 99, 64], [0, 0, 1]]),
              128, 128)
r.rasterize(p, 128, 128).colors.sum().backward()
after = count()
names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
print(before - one, after - before, *names)
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted in /proc")
    for n in (1, 2):
        out = subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True, check=True)
        assert out.stdout.split()[:2] == [str(n - 1), "0"], (
            f"the renderer started threads of its own: {out.stdout}"
        )
