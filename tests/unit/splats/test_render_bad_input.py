"""Invalid input gives a clear error or a defined picture; never a crash, a hang or silent NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dist3dgs.errors import UserError
from dist3dgs.splats.cpu import rasterize
from dist3dgs.splats.render import Projection, RenderSettings, get_renderer, render, set_threads

EYE = torch.eye(4)
K = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
RENDERERS = pytest.mark.parametrize("name", ["cpu", "reference"])


def gaussians(n: int = 3) -> list[Tensor]:
    """n Gaussians in front of the camera: means, quats, scales, opacities, RGB."""
    g = torch.Generator().manual_seed(n)
    means = torch.rand(n, 3, generator=g) - 0.5
    means[:, 2] += 2
    return [means, torch.randn(n, 4, generator=g), torch.full((n, 3), 0.1), torch.full((n,), 0.5),
            torch.rand(n, 3, generator=g)]  # fmt: skip


def draw(
    name: str, inputs: list[Tensor], viewmat: Tensor = EYE, K: Tensor = K, size: tuple = (16, 12), **options
):
    """Project, rasterize, go back; return the image and the gradients."""
    renderer = get_renderer(name)
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    settings = RenderSettings(**options, absgrad=True, render_depth=True)
    p = renderer.project(*leaves, viewmat, K, *size, settings)
    image = renderer.rasterize(p, *size, settings)
    assert image.depths is not None
    (image.colors.sum() + image.alphas.sum() + image.depths.sum()).backward()
    return image, [t.grad for t in leaves], p


def assert_defined(image, gradients) -> None:
    assert torch.isfinite(image.colors).all() and torch.isfinite(image.alphas).all()
    assert torch.isfinite(image.depths).all()
    assert image.alphas.min() >= 0 and image.alphas.max() <= 1
    assert all(g is None or torch.isfinite(g).all() for g in gradients)


@RENDERERS
@pytest.mark.parametrize("which", range(5), ids=["means", "quats", "scales", "opacities", "colors"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(name: str, which: int, value: float) -> None:
    inputs = gaussians(40)
    inputs[which].view(40, -1)[17, -1] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        draw(name, inputs)


@RENDERERS
@pytest.mark.parametrize("size", [(0, 4), (4, -1), (40000, 4), (4.0, 4), (True, 4)])
def test_sizes(name: str, size: tuple) -> None:
    with pytest.raises(UserError, match="expected a whole number"):
        draw(name, gaussians(), size=size)


@RENDERERS
@pytest.mark.parametrize("bad", [
    [[0.0, 0, 8], [0, 20, 6], [0, 0, 1]], [[20.0, 0, 8], [0, -1, 6], [0, 0, 1]], [[20.0, 1, 8], [0, 20, 6], [0, 0, 1]],
    [[20.0, 0, 8], [0, 20, 6], [0, 0, 0]], [[math.nan, 0, 8], [0, 20, 6], [0, 0, 1]], [[20.0, 0], [0, 20]],
])  # fmt: skip
def test_intrinsics(name: str, bad: list) -> None:
    with pytest.raises(UserError, match=r"expected|not finite"):
        draw(name, gaussians(), K=torch.tensor(bad))


@RENDERERS
@pytest.mark.parametrize("bad", [torch.zeros(4, 4), torch.diag(torch.tensor([1.0, 1, -1, 1])), 2 * EYE, EYE[:3],
                                 torch.full((4, 4), math.nan)], ids=range(5))  # fmt: skip
def test_poses(name: str, bad: Tensor) -> None:
    with pytest.raises(UserError, match=r"expected|not finite"):
        draw(name, gaussians(), viewmat=bad)


@RENDERERS
def test_shapes_types_and_settings(name: str) -> None:
    means, quats, scales, opacities, colors = gaussians()
    wrong = [
        ([means[:2], quats, scales, opacities, colors], {}),
        ([means, quats[:, :3], scales, opacities, colors], {}),
        ([means, quats.double(), scales, opacities, colors], {}),
        ([t.half() for t in gaussians()], {}),
        ([means, quats, scales, opacities, colors], {"sh_degree": 0}),
        ([means, quats, scales, opacities, torch.zeros(3, 4, 3)], {"sh_degree": 2}),
        ([means, quats, scales, opacities, torch.zeros(3, 25, 3)], {"sh_degree": 4}),
        ([means, quats, scales, opacities, colors], {"near": -1.0}),
        ([means, quats, scales, opacities, colors], {"far": 0.001}),
        ([means, quats, scales, opacities, colors], {"eps2d": math.nan}),
    ]
    for inputs, options in wrong:
        with pytest.raises(UserError, match="expected"):
            draw(name, inputs, **options)
    with pytest.raises(UserError, match="background"):
        renderer = get_renderer(name)
        p = renderer.project(*gaussians(), EYE, K, 4, 4)
        renderer.rasterize(p, 4, 4, background=torch.tensor([0.0, math.nan, 0]))
    with pytest.raises(UserError, match="expected"):
        render(get_renderer(name), *gaussians(), EYE, K, 4, 4)


def test_names_and_threads() -> None:
    with pytest.raises(UserError, match="expected one of"):
        get_renderer("vulkan")
    for bad in (0, -1, 1.5, True):
        with pytest.raises(UserError, match="threads"):
            set_threads(bad)  # type: ignore[arg-type]


@RENDERERS
@pytest.mark.parametrize("case", ["none", "behind", "beside", "transparent", "1x1", "no rotation", "flat"])
def test_defined_results(name: str, case: str) -> None:
    inputs, size = gaussians(50), (16, 12)
    if case == "none":
        inputs = [t[:0] for t in inputs]
    elif case == "behind":
        inputs[0][:, 2] *= -1
    elif case == "beside":
        inputs[0][:, 0] += 100
    elif case == "transparent":
        inputs[3][:] = 0
    elif case == "1x1":
        size = (1, 1)
    elif case == "no rotation":
        inputs[1][:] = 0
    elif case == "flat":
        inputs[2][:] = 0
    image, gradients, p = draw(name, inputs, size=size)
    assert_defined(image, gradients)
    assert image.colors.shape == (size[1], size[0], 3)
    assert (len(p.ids) == 0) == (case in ("none", "behind", "beside", "transparent"))
    if len(p.ids) == 0:
        assert image.alphas.abs().max() == 0 and all(g is None or g.abs().sum() == 0 for g in gradients)


def test_scale_of_1e9_is_not_drawn_in_single_precision() -> None:
    inputs = gaussians(4)
    inputs[2][1] = 1e9
    image, gradients, p = draw("cpu", inputs)
    assert_defined(image, gradients)
    assert p.ids.tolist() == [0, 2, 3]
    image, gradients, p = draw("cpu", [t.double() for t in inputs], EYE.double(), K.double())
    assert_defined(image, gradients)
    assert p.ids.tolist() == [0, 1, 2, 3] and p.radii[1].min() == 1 << 30


@pytest.mark.slow
def test_ten_million_gaussians_on_one_pixel() -> None:
    n = 10_000_000
    with torch.no_grad():
        p = Projection(
            ids=torch.arange(n), means2d=torch.full((n, 2), 3.5), conics=torch.tensor([[1.0, 0, 1]]).expand(n, 3),
            depths=torch.rand(n) + 1, radii=torch.ones(1, 2, dtype=torch.int32).expand(n, 2),
            colors=torch.ones(1, 3).expand(n, 3), opacities=torch.full((n,), 0.01),
        )  # fmt: skip
        image = get_renderer("cpu").rasterize(p, 8, 8)
    assert image.alphas[3, 3].item() == pytest.approx(1 - 1e-4, abs=2e-6)  # stops at the limit
    assert image.colors[3, 3, 0].item() == pytest.approx(image.alphas[3, 3].item(), abs=1e-5)


def test_more_tiles_than_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterize, "MAX_PAIRS", 10)
    with pytest.raises(UserError, match="too large"):
        draw("cpu", gaussians(20), size=(64, 64))


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-38, 1e9, -1e9, 3e38, 1 / 255, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.slow
def test_any_numbers_at_all(data: st.DataObject) -> None:
    """Either a UserError, or a picture and gradients without NaN."""
    n = data.draw(st.integers(0, 40))
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    inputs = gaussians(n)
    for _ in range(data.draw(st.integers(0, 6)) if n else 0):
        tensor = data.draw(st.sampled_from(inputs)).view(n, -1)
        row, column = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, tensor.shape[1] - 1))
        tensor[row, column] = data.draw(numbers)
    focal = data.draw(st.sampled_from([1e-3, 1.0, 20.0, 1e5, 3e38]))
    K = torch.tensor([[focal, 0, data.draw(numbers)], [0, focal, 6], [0, 0, 1]])
    try:
        image, gradients, _ = draw(
            "cpu", inputs, K=K, size=size, eps2d=data.draw(st.sampled_from([0.0, 0.3, 1e6])),
            antialiased=data.draw(st.booleans()), near=data.draw(st.sampled_from([1e-30, 0.01, 1.0])),
        )  # fmt: skip
    except UserError:
        return
    assert image.colors.shape == (size[1], size[0], 3)
    assert not torch.isnan(image.colors).any() and not torch.isnan(image.alphas).any()
    assert not any(torch.isnan(g).any() for g in gradients if g is not None)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_projection_at_all(data: st.DataObject) -> None:
    """The rasteriser takes projections from other ranks as they come: no crash whatever the numbers."""
    n = data.draw(st.integers(1, 30))
    g = torch.Generator().manual_seed(n)
    fields = {
        "means2d": torch.rand(n, 2, generator=g) * 20, "conics": torch.tensor([[0.1, 0.02, 0.2]]).repeat(n, 1),
        "depths": torch.rand(n, generator=g), "colors": torch.rand(n, 3, generator=g),
        "opacities": torch.rand(n, generator=g),
    }  # fmt: skip
    radii = torch.full((n, 2), 9, dtype=torch.int32)
    for _ in range(data.draw(st.integers(0, 5))):
        tensor = fields[data.draw(st.sampled_from(sorted(fields)))].view(n, -1)
        tensor[data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, tensor.shape[1] - 1))] = data.draw(
            numbers
        )
        radii[data.draw(st.integers(0, n - 1)), 0] = data.draw(st.integers(-(2**31), 2**31 - 1))
    leaves = {name: t.requires_grad_() for name, t in fields.items()}
    p = Projection(ids=torch.arange(n), radii=radii, **leaves)
    image = get_renderer("cpu").rasterize(p, data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50)))
    image.colors.sum().backward()
