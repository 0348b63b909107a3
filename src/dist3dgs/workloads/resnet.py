"""ResNet-50 (He et al. 2016) on TinyImageNet's layout of folders, or on generated pictures of the same shape.

    torchrun --nproc-per-node=2 -m dist3dgs.workloads.resnet --data tiny-imagenet-200 --epochs 3

`--width 64 --image-px 64 --classes 200` is ResNet-50 on TinyImageNet; smaller ones run on a processor.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from .training import Ranks, parser, train

#: Bottlenecks of the four stages.
STAGES = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; (N, C, H, W) to (N, 4 width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] to class scores (N, classes)."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        channels = width
        for stage, num_blocks in enumerate(STAGES):
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                layers.append(Bottleneck(channels, width << stage, stride))
                channels = 4 * (width << stage)
        self.layers = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


class Generated(Dataset[tuple[Tensor, Tensor]]):
    """Noise whose colour tells the class, the same on every rank: (3, px, px) float32 and a label."""

    def __init__(self, count: int, classes: int, px: int, seed: int) -> None:
        self.count, self.classes, self.px, self.seed = count, classes, px, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
        label = i % self.classes
        colour = torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(label))
        return 0.5 * colour + 0.5 * torch.rand(3, self.px, self.px, generator=g), torch.tensor(label)


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """`folder`/CLASS/**/*.JPEG, reduced to px x px: (3, px, px) float32 in [0, 1] and the class's number."""

    def __init__(self, folder: Path, classes: list[str], px: int) -> None:
        self.px = px
        self.files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in (".jpeg", ".jpg", ".png")
        ]
        if not self.files:
            raise SystemExit(f"error: {folder}: no pictures in folders of classes, as TinyImageNet has them")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        path, label = self.files[i]
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB").resize((self.px, self.px)), np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255, torch.tensor(label)


def datasets(
    args: argparse.Namespace,
) -> tuple[Dataset[tuple[Tensor, Tensor]], Dataset[tuple[Tensor, Tensor]], int]:
    """Return training and validation data and the number of classes."""
    if not args.data:
        held_out = Generated(max(1, args.samples // 8), args.classes, args.image_px, args.seed + 1)
        return Generated(args.samples, args.classes, args.image_px, args.seed), held_out, args.classes
    folder = Path(args.data)
    if not (folder / "train").is_dir():
        raise SystemExit(
            f"error: {folder}: no folder `train`; expected train/CLASS/ and val/CLASS/ with pictures"
        )
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    made = [Pictures(folder / part, classes, args.image_px) for part in ("train", "val")]
    return made[0], made[1], len(classes)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--image-px", type=int, default=64)
    p.add_argument("--classes", type=int, default=200, help="of generated data")
    p.add_argument("--width", type=int, default=64, help="channels of the first stage; 64: ResNet-50")
    args = p.parse_args()
    ranks = Ranks.join()
    torch.manual_seed(args.seed)
    training, validation, classes = datasets(args)
    ranks.say(f"data: {args.data or 'generated'}")
    train(
        ranks, ResNet50(classes, args.width), training, validation, args,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4), "img/s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
