"""Fetch what evaluation needs from the internet, once, where there is internet: LPIPS weights.

The AlexNet of torchvision and the linear layers of LPIPS (Zhang et al. 2018, version 0.1) become one safetensors
file. Jobs only ever read that file; where it is missing, LPIPS is null with that reason.
"""

from pathlib import Path

from ...errors import UserError
from ...files import replacing, sha256
from .fetch import fetch_file

#: The first eight digits of its SHA-256 are in torchvision's file name.
ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
LINEAR = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth"
#: Positions of the five convolutions in torchvision's `features`.
CONVOLUTIONS = (0, 3, 6, 8, 10)


def fetch_lpips(out: Path, lock: Path, alexnet: str = ALEXNET, linear: str = LINEAR) -> None:
    """Download both files beside `out` (resumed, sums kept in `lock`), convert them, write `out`."""
    folder = out.parent / "downloads"
    paths = [fetch_file(url, folder, lock) for url in (alexnet, linear)]
    if alexnet == ALEXNET and not sha256(paths[0]).startswith("7be5be79"):
        raise UserError(f"{paths[0]}: not the file torchvision published; delete it and run this again")
    convert(paths[0], paths[1], out)


def convert(alexnet: Path, linear: Path, out: Path) -> None:
    """Write the weights that `splats.lpips` reads. Raises `UserError` if the files are not what they should be."""
    import torch
    from safetensors.torch import save_file

    try:
        net = torch.load(alexnet, map_location="cpu", weights_only=True)
        lin = torch.load(linear, map_location="cpu", weights_only=True)
        tensors = {}
        for i, position in enumerate(CONVOLUTIONS):
            for part in ("weight", "bias"):
                tensors[f"conv{i}.{part}"] = net[f"features.{position}.{part}"].float().contiguous()
            tensors[f"lin{i}.weight"] = lin[f"lin{i}.model.1.weight"].float().contiguous()
    except Exception as e:  # torch.load raises many kinds
        raise UserError(
            f"{alexnet}, {linear}: not the weights of AlexNet and LPIPS ({e}); delete them, try again"
        ) from None
    with replacing(out) as temporary:
        save_file(tensors, temporary)
