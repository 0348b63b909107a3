"""The Triton kernels, where Triton is installed: in its interpreter on the CPU, and compiled without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist3dgs.splats import triton_kernels

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of PyTorch alone")

LOSS_AGREES = """
import torch
from dist3dgs.splats.loss import TorchLoss
from dist3dgs.splats.loss_triton import TritonLoss
from tests.unit.splats.test_loss import images

for size in ((1, 1), (2, 3), (9, 50)):  # fewer and more numbers than a program handles
    image, photo = images(*size, torch.float32)
    for target in (photo, photo.float() / 255):
        image.grad, exact = None, image.detach().double().requires_grad_()
        got = TritonLoss.apply(image, target, 0.2)
        truth = TorchLoss.apply(exact, photo.double() / 255, 0.2)
        (3 * got).backward()
        (3 * truth).backward()
        assert abs(got.item() - truth.item()) < 1e-6, size
        assert (image.grad - exact.grad).norm() < 2e-6 * exact.grad.norm(), size
        assert torch.equal(TritonLoss.apply(image.detach(), target, 0.2), got)
"""

COLORS_AGREE = """
import torch
from dist3dgs.splats.harmonics_triton import TritonColors
from dist3dgs.splats.render.reference import sh_basis

#: Gaussians, how many of them each camera sees, coefficients in shN: fewer and more than a program handles.
for n, seen, others in (
    (1, [1], 15), (5, [0], 15), (150, [100], 15), (70, [64], 8), (150, [100, 0, 150, 1], 15), (5, [0, 0], 15)
):
    for degree in range(4 if others == 15 else 3):
        g = torch.Generator().manual_seed(n + degree)
        values = [torch.randn(*s, generator=g) for s in ((n, 3), (n, 1, 3), (n, others, 3))]
        offsets = torch.randn(len(seen), 3, generator=g)
        ids = torch.cat([torch.randperm(n, generator=g)[:k].sort().values for k in seen])
        cameras = torch.arange(len(seen)).repeat_interleave(torch.tensor(seen))
        weights = torch.randn(len(ids), 3, generator=g)
        single = [t.clone().requires_grad_() for t in values]
        means, sh0, shn = exact = [t.double().requires_grad_() for t in values]
        got = TritonColors.apply(*single, ids, cameras, offsets, degree)
        directions = torch.nn.functional.normalize(means[ids] + offsets[cameras], dim=-1)
        coefficients = torch.cat([sh0, shn], 1)[ids, : (degree + 1) ** 2]
        truth = (torch.einsum("vk,vkc->vc", sh_basis(degree, directions), coefficients) + 0.5).clamp_min(0)
        assert (got - truth).norm() <= 1e-6 * truth.norm(), (n, degree)
        (got * weights).sum().backward()
        (truth * weights).sum().backward()
        for mine, true in zip(single, exact, strict=True):
            assert mine.grad is not None or degree == 0
            assert mine.grad is None or (mine.grad - true.grad).norm() <= 1e-6 * true.grad.norm(), (n, degree)
        assert torch.equal(TritonColors.apply(*values, ids, cameras, offsets, degree), got)
"""

FEW_LAUNCHES = """
from tests.unit.helpers import operations
for case, most in {"default": 60, "mcmc": 105, "sharded, 4 views": 146, "selective": 44}.items():
    counted = operations.count(case, triton=True)
    assert counted.launches.total() <= most, (case, counted.launches)
    allowed = {"tolist": 1} if "4 views" in case else {}
    assert counted.waits == allowed, "the host waits for the GPU in a step"
"""

COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dist3dgs.splats import harmonics_triton as colors
from dist3dgs.splats import loss_triton as loss

def floats(*names):
    return dict.fromkeys(names, "*fp32")

size = {"height": "i32", "length": "i32"}
images = {"image": "*fp32", "target": "*u8", "weights": "*fp32"}
factors = {"l1_factor": "fp32", "ssim_factor": "fp32"}
tile = {"ROWS": loss.ROWS, "COLUMNS": loss.COLUMNS}
model = floats("means", "sh0", "shn", "offsets") | {"places": "*i32", "number": "i32"}
seen = {"ids": "*i64", "cameras": "*i64", "total": "i32"}
gradients = floats("v_colors", "v_means", "v_sh0", "v_shn") | {"num_cameras": "i32"}
one, many = ({"MANY": several, "COUNT": 16, "OTHERS": 15, "BLOCK": colors.BLOCK} for several in (False, True))
for kernel, arguments, fixed in (
    (loss.blur_down_kernel, images | floats("out") | size, tile),
    (loss.compare_kernel, images | floats("blurred", "maps", "totals") | size, tile | {"WANTED": True}),
    (loss.blur_maps_down_kernel, floats("maps", "weights", "out") | size, tile),
    (loss.gradient_kernel, images | floats("blurred", "gradient") | size | factors, tile),
    (colors.colors_kernel, model | floats("colors") | seen, one | {"WANTED": True}),
    (colors.colors_kernel, model | floats("colors") | seen, many | {"WANTED": True}),
    (colors.colors_gradient_kernel, model | gradients, one),
    (colors.colors_gradient_kernel, model | gradients, many),
):
    source = ASTSource(fn=kernel, signature=arguments | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def python(code: str, repository: Path, folder: Path, **environ: str) -> None:
    env = os.environ | {"TRITON_CACHE_DIR": str(folder)} | environ
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=env, capture_output=True, text=True
    )
    # Triton 3.6 in its interpreter, in a loop to a number that is given at run time; NumPy 2.4 converts no such array.
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stderr:
        pytest.skip("Triton's interpreter is too old for this NumPy")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [LOSS_AGREES, COLORS_AGREE, FEW_LAUNCHES], ids=["loss", "colors", "launches"]
)
def test_in_the_interpreter(code: str, repository: Path, tmp_path: Path) -> None:
    """Values and gradients agree with float64; steps of a training have as few launches as is said."""
    python(code, repository, tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_all_kernels_compile_for_an_h100(repository: Path, tmp_path: Path) -> None:
    python(COMPILES, repository, tmp_path)


@pytest.mark.parametrize("name", triton_kernels.INSTEAD)
def test_without_a_driver_there_are_no_kernels(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    triton_kernels.load.cache_clear()
    with pytest.warns(UserWarning, match=triton_kernels.INSTEAD[name]):
        assert triton_kernels.load(name, torch.device("cuda")) is None
    triton_kernels.load.cache_clear()
