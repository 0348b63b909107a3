"""Parts of the CUDA renderer that can be tested without a GPU."""

import ast
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dist3dgs.errors import UserError
from dist3dgs.splats.precision import full_precision
from dist3dgs.splats.render import RenderSettings, checks, cuda, get_renderer, render
from tests.unit.helpers import gsplat_standin


def leaves(n: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = [(n, 3), (n, 4), (n, 3), (n,)]
    return [torch.rand(*s, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("joined", [False, True])
def test_no_gaussians_are_projected_with_a_graph(joined: bool) -> None:
    """An empty shard: gsplat would divide by the number of Gaussians on the host, which kills the process."""
    means, _, scales, opacities = leaves(0)
    sh0, shn = torch.zeros(0, 1, 3, requires_grad=True), torch.zeros(0, 15, 3, requires_grad=True)
    colors = torch.cat([sh0, shn], 1) if joined else (sh0, shn)
    with gsplat_standin.installed():
        r, quats = cuda.CudaRenderer(), torch.zeros(0, 4)
        settings = RenderSettings(sh_degree=3, absgrad=True, render_depth=True)
        p = r.project(means, quats, scales, opacities, colors, torch.eye(4), torch.eye(3), 5, 4, settings)
    shapes = [tuple(t.shape) for t in (p.ids, p.means2d, p.conics, p.depths, p.radii, p.colors, p.opacities)]
    assert shapes == [(0,), (0, 2), (0, 3), (0,), (0, 2), (0, 3), (0,)]
    p.means2d.retain_grad()
    with gsplat_standin.installed():
        image = r.rasterize(p, 5, 4, settings, background=torch.ones(3))
    image.colors.sum().backward()
    assert p.means2d.absgrad.shape == (0, 2) and image.depths is not None
    assert image.colors.min() == 1 and means.grad is not None and sh0.grad is not None


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_the_other_renderers_draw_no_gaussians(name: str) -> None:
    means, quats, scales, opacities = leaves(0)
    sh = torch.zeros(0, 16, 3, requires_grad=True)
    view, K = torch.eye(4)[None], torch.tensor([[[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]])
    out = render(
        get_renderer(name), means, quats, scales, opacities, sh, view, K, 8, 8, RenderSettings(sh_degree=3),
        backgrounds=torch.ones(1, 3),
    )  # fmt: skip
    out.colors.sum().backward()
    assert out.colors.min() == 1 and out.alphas.max() == 0 and means.grad is not None


def project_nothing(r: cuda.CudaRenderer, viewmat: torch.Tensor, K: torch.Tensor) -> None:
    means, quats, scales, opacities = leaves(0)
    r.project(means, quats, scales, opacities, torch.zeros(0, 3), viewmat, K, 8, 8)


def test_a_camera_is_looked_at_once_and_again_when_it_was_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(checks, "check_camera", lambda viewmat, K: looked.append(1))
    r, view, K = cuda.CudaRenderer(), torch.eye(4), torch.eye(3)
    with gsplat_standin.installed():
        for _ in range(3):
            project_nothing(r, view, K)
        assert len(looked) == 1
        view[0, 3] = 1.0
        project_nothing(r, view, K)
        project_nothing(r, view, K.clone())
        project_nothing(r, torch.eye(4), K)
    assert len(looked) == 4


def test_a_bad_camera_is_refused_each_time() -> None:
    r = cuda.CudaRenderer()
    for _ in range(2):
        with pytest.raises(UserError, match="viewmat"):
            project_nothing(r, torch.zeros(4, 4), torch.eye(3))


@pytest.mark.parametrize(("world", "waits"), [(1, 0), (2, 1)])
def test_ranks_wait_for_each_other_outside_of_gsplat(monkeypatch, world, waits) -> None:
    """Inside of gsplat Python's lock is held: the thread that reports hangs could not run."""
    waited: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: waited.append("stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(cuda.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(cuda.dist, "get_world_size", lambda: world)
    cuda.wait_for_gpu(SimpleNamespace(is_cuda=True, device=torch.device("cuda")))
    assert len(waited) == waits


def test_float32_is_float32() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        full_precision()
        assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_the_gsplat_of_the_lock_takes_what_we_hand_it(repository: Path) -> None:
    """1.6.0 takes other arguments; the bound in pyproject.toml and this keep us from it."""
    found = find_spec("gsplat")
    assert found is not None and found.origin is not None
    source = ast.parse((Path(found.origin).parent / "cuda/_wrapper.py").read_text())
    takes = {f.name: [a.arg for a in f.args.args] for f in source.body if isinstance(f, ast.FunctionDef)}
    assert takes["spherical_harmonics"][:3] == ["degrees_to_use", "dirs", "coeffs"]
    ours = ast.parse((repository / "src/dist3dgs/splats/render/cuda.py").read_text())
    calls = [n for n in ast.walk(ours) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    used = {c.func.id: [k.arg for k in c.keywords] for c in calls if c.func.id in takes}
    assert len(used) == 5
    for name, keywords in used.items():
        assert set(keywords) <= set(takes[name]), name
    lock = (repository / "requirements.lock").read_text()
    assert "\ngsplat==1.5." in lock and '"gsplat>=1.5.3,<1.6"' in (repository / "pyproject.toml").read_text()
