"""The loss in Triton kernels, where Triton is installed: in its interpreter on the CPU, and compiled without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist3dgs.splats import loss

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of PyTorch alone")

AGREES = """
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

COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dist3dgs.splats import loss_triton as kernels

size = {"height": "i32", "length": "i32"}
images = {"image": "*fp32", "target": "*u8", "weights": "*fp32"}
factors = {"l1_factor": "fp32", "ssim_factor": "fp32"}
for kernel, arguments, fixed in (
    (kernels.blur_down_kernel, images | {"out": "*fp32"} | size, {}),
    (kernels.compare_kernel, images | dict.fromkeys(("blurred", "maps", "totals"), "*fp32") | size, {"WANTED": True}),
    (kernels.blur_maps_down_kernel, dict.fromkeys(("maps", "weights", "out"), "*fp32") | size, {}),
    (kernels.gradient_kernel, images | dict.fromkeys(("blurred", "gradient"), "*fp32") | size | factors, {}),
):
    fixed |= {"ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS}
    source = ASTSource(fn=kernel, signature=arguments | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def python(code: str, repository: Path, folder: Path, **environ: str) -> None:
    env = os.environ | {"TRITON_CACHE_DIR": str(folder)} | environ
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_value_and_gradient_in_the_interpreter(repository: Path, tmp_path: Path) -> None:
    python(AGREES, repository, tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_all_kernels_compile_for_an_h100(repository: Path, tmp_path: Path) -> None:
    python(COMPILES, repository, tmp_path)


def test_without_a_driver_the_loss_runs_in_plain_torch() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    loss.triton_loss.cache_clear()
    with pytest.warns(UserWarning, match="plain torch"):
        assert loss.triton_loss(torch.device("cuda")) is None
    loss.triton_loss.cache_clear()
