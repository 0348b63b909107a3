"""LPIPS (Zhang et al. 2018), AlexNet version 0.1, where its weights are on disk.

Weights come from one safetensors file that `dist3dgs fetch-weights` makes on a machine with internet access: the
convolutions of torchvision's AlexNet (`conv{i}.weight`, `conv{i}.bias`, i = 0..4) and the five linear layers of
LPIPS (`lin{i}.weight`, [1,C,1,1]). A training job never downloads anything.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

#: Input normalisation of the LPIPS authors (their ScalingLayer), for images in -1..1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: (stride, padding) of AlexNet's five convolutions; a 3x3 stride-2 max pooling stands before the second and third.
CONVOLUTIONS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))


def weights_path() -> Path | None:
    """Return the weights file: $DIST3DGS_LPIPS, set by the launcher to `{data}/weights/lpips-alex.safetensors`."""
    path = os.environ.get("DIST3DGS_LPIPS")
    return Path(path) if path and Path(path).is_file() else None


def load_lpips(device: torch.device) -> Callable[[Tensor, Tensor], float] | None:
    """Return the metric as a function of two [H,W,3] float images in 0..1, or None where there are no weights."""
    path = weights_path()
    if path is None:
        return None
    weights = load_file(str(path), device=str(device))
    return lambda a, b: float(lpips(weights, a, b))


@torch.no_grad()
def lpips(weights: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Compute the learned perceptual distance, float32 0-dim, of two [H,W,3] float images in 0..1; 0 for equal ones.

    weights: float32, by the names in the module's docstring.
    """
    total = torch.zeros((), device=a.device)
    for i, (x, y) in enumerate(zip(_features(weights, a), _features(weights, b), strict=True)):
        difference = (_unit(x) - _unit(y)).square()
        total += conv2d(difference, weights[f"lin{i}.weight"]).mean()
    return total


def _features(weights: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    x = image.movedim(-1, 0)[None].float() * 2 - 1
    x = (x - torch.tensor(SHIFT, device=x.device)[:, None, None]) / torch.tensor(SCALE, device=x.device)[
        :, None, None
    ]
    out = []
    for i, (stride, padding) in enumerate(CONVOLUTIONS):
        if i in (1, 2):
            x = max_pool2d(x, 3, 2)
        x = relu(conv2d(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride, padding))
        out.append(x)
    return out


def _unit(x: Tensor) -> Tensor:
    """Normalise every pixel's feature vector to length 1."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
