"""gsplat's conventions on scenes small enough to work out by hand, for every renderer that runs here."""

import math

import pytest
import torch
from torch import Tensor

from dist3dgs.splats.render import Image, Projection, RenderSettings, get_renderer

DEFAULTS = RenderSettings()
CASES = [("reference", torch.float64), ("cpu", torch.float64), ("cpu", torch.float32)]
both = pytest.mark.parametrize(("name", "dtype"), CASES)


def draw(name: str, dtype: torch.dtype, size: tuple[int, int], *gaussians: dict, background: Tensor | None = None,
         settings: RenderSettings = DEFAULTS) -> Image:  # fmt: skip
    """Draw round 2D Gaussians {at, sigma, opacity, color, depth} directly."""
    n = len(gaussians)

    def column(key: str, default: object) -> Tensor:
        return torch.tensor([g.get(key, default) for g in gaussians], dtype=dtype).reshape(n, -1)

    inverse = 1 / column("sigma", 1.0)[:, 0] ** 2
    projection = Projection(
        ids=torch.arange(n), means2d=column("at", None), conics=torch.stack([inverse, 0 * inverse, inverse], -1),
        depths=column("depth", 1.0)[:, 0], radii=torch.full((n, 2), 50, dtype=torch.int32),
        colors=column("color", (1.0, 1.0, 1.0)), opacities=column("opacity", 0.5)[:, 0],
    )  # fmt: skip
    return get_renderer(name).rasterize(projection, *size, settings, background=background)


@both
def test_pixel_centres_lie_at_half(name: str, dtype: torch.dtype) -> None:
    image = draw(name, dtype, (3, 2), {"at": (1.5, 0.5), "opacity": 0.5})
    assert image.alphas[0, 1].item() == pytest.approx(0.5, rel=1e-6)
    assert image.alphas[0, 0].item() == pytest.approx(0.5 * math.exp(-0.5), rel=1e-6)
    assert image.alphas[1, 2].item() == pytest.approx(0.5 * math.exp(-1.0), rel=1e-6)


@both
def test_alpha_below_one_255th_is_nothing(name: str, dtype: torch.dtype) -> None:
    # alpha at distance d is opacity * exp(-d^2 / 2): the cut at opacity 0.5 lies between 3 and 4 px
    image = draw(name, dtype, (9, 1), {"at": (0.5, 0.5), "opacity": 0.5})
    assert image.alphas[0, 3].item() == pytest.approx(0.5 * math.exp(-4.5), rel=1e-5)
    assert image.alphas[0, 4:].abs().max().item() == 0
    just_over = draw(name, dtype, (1, 1), {"at": (0.5, 0.5), "opacity": 1.00001 / 255})
    just_under = draw(name, dtype, (1, 1), {"at": (0.5, 0.5), "opacity": 0.99999 / 255})
    assert just_over.alphas.item() == pytest.approx(1 / 255, rel=1e-4) and just_under.alphas.item() == 0


@both
def test_alpha_is_clamped_at_0_999(name: str, dtype: torch.dtype) -> None:
    image = draw(
        name, dtype, (1, 1), {"at": (0.5, 0.5), "opacity": 1.0}, background=torch.ones(3, dtype=dtype)
    )
    assert image.alphas.item() == pytest.approx(0.999, rel=1e-6)


@both
def test_a_pixel_stops_before_its_transmittance_reaches_1e_4(name: str, dtype: torch.dtype) -> None:
    # 0.02 * 0.02 = 4e-4 is left after two of alpha 0.98; the third would leave 8e-6 and must not be drawn, and
    # what comes behind it neither, even where it alone would be transparent enough
    layers = [
        {"at": (0.5, 0.5), "opacity": 0.98, "depth": float(i), "color": (float(i), 0.0, 0.0)}
        for i in (1, 2, 3)
    ]
    image = draw(name, dtype, (1, 1), *layers, {"at": (0.5, 0.5), "opacity": 0.1, "depth": 4.0})
    assert image.alphas.item() == pytest.approx(1 - 4e-4, rel=1e-6)
    assert image.colors[0, 0, 0].item() == pytest.approx(0.98 + 0.02 * 0.98 * 2, rel=1e-6)
    assert image.colors[0, 0, 1].item() == 0


@both
def test_depth_orders_and_ties_keep_the_given_order(name: str, dtype: torch.dtype) -> None:
    near = {"at": (0.5, 0.5), "opacity": 0.5, "depth": 1.0, "color": (1.0, 0.0, 0.0)}
    far = {"at": (0.5, 0.5), "opacity": 0.5, "depth": 2.0, "color": (0.0, 1.0, 0.0)}
    background = torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
    image = draw(
        name, dtype, (1, 1), far, near, background=background, settings=RenderSettings(render_depth=True)
    )
    assert image.colors[0, 0].tolist() == pytest.approx([0.5, 0.25, 0.25], rel=1e-6)
    assert image.depths is not None and image.depths.item() == pytest.approx(0.5 * 1 + 0.25 * 2, rel=1e-6)
    same = draw(name, dtype, (1, 1), {**far, "depth": 1.0}, near, background=background)
    assert same.colors[0, 0].tolist() == pytest.approx([0.25, 0.5, 0.25], rel=1e-6)


@both
def test_projection_of_one_gaussian_on_the_axis(name: str, dtype: torch.dtype) -> None:
    # at depth 2 with f = 20 px, a ball of sigma 0.1 has sigma 1 px on the image, plus 0.3 px^2 of blur
    p = get_renderer(name).project(
        torch.zeros(1, 3, dtype=dtype), torch.tensor([[2.0, 0, 0, 0]], dtype=dtype),
        torch.full((1, 3), 0.1, dtype=dtype), torch.tensor([0.8], dtype=dtype),
        torch.tensor([[0.2, 0.4, 0.6]], dtype=dtype),
        torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]], dtype=dtype),
        torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]], dtype=dtype), 16, 12,
        RenderSettings(antialiased=True),
    )  # fmt: skip
    assert p.means2d[0].tolist() == pytest.approx([8, 6], rel=1e-6)
    assert p.conics[0].tolist() == pytest.approx([1 / 1.3, 0, 1 / 1.3], rel=1e-5, abs=1e-7)
    assert p.depths.item() == 2 and p.colors[0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    opacity = 0.8 / 1.3  # times sqrt(1 / 1.3^2)
    assert p.opacities.item() == pytest.approx(opacity, rel=1e-5)
    radius = math.ceil(math.sqrt(2 * math.log(255 * opacity)) * math.sqrt(1.3))
    assert p.radii[0].tolist() == [radius, radius]


@both
def test_quaternions_are_wxyz_of_any_length(name: str, dtype: torch.dtype) -> None:
    # a quarter turn about the viewing axis swaps the long and the short side
    half = math.sqrt(0.5)

    def conic(quat: list[float]) -> list[float]:
        p = get_renderer(name).project(
            torch.tensor([[0.0, 0, 2]], dtype=dtype), torch.tensor([quat], dtype=dtype),
            torch.tensor([[0.3, 0.1, 0.1]], dtype=dtype), torch.tensor([0.8], dtype=dtype),
            torch.ones(1, 3, dtype=dtype), torch.eye(4, dtype=dtype),
            torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]], dtype=dtype), 16, 16,
        )  # fmt: skip
        return p.conics[0].tolist()

    wide, tall = conic([1, 0, 0, 0]), conic([5 * half, 0, 0, 5 * half])
    assert wide[0] == pytest.approx(1 / 9.3, rel=1e-5) and wide[2] == pytest.approx(1 / 1.3, rel=1e-5)
    assert tall == pytest.approx([wide[2], 0, wide[0]], rel=1e-4, abs=1e-6)


@both
def test_constant_harmonic_is_an_offset_from_grey_clamped_at_black(name: str, dtype: torch.dtype) -> None:
    n = 2
    p = get_renderer(name).project(
        torch.tensor([[0.0, 0, 2]] * n, dtype=dtype), torch.tensor([[1.0, 0, 0, 0]] * n, dtype=dtype),
        torch.full((n, 3), 0.1, dtype=dtype), torch.full((n,), 0.8, dtype=dtype),
        torch.tensor([[[1.0, 0, -1]], [[-9.0, 9, 0]]], dtype=dtype), torch.eye(4, dtype=dtype),
        torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]], dtype=dtype), 16, 16,
        RenderSettings(sh_degree=0),
    )  # fmt: skip
    c0 = 0.28209479
    assert p.colors[0].tolist() == pytest.approx([0.5 + c0, 0.5, 0.5 - c0], rel=1e-6)
    assert p.colors[1].tolist() == pytest.approx([0, 0.5 + 9 * c0, 0.5], rel=1e-6)
