"""A driving planner: image backbone, transformer and heads that rate a vocabulary of trajectories (as Hydra-MDP does).

    torchrun --nproc-per-node=2 -m dist3dgs.workloads.planner --size small --epochs 3 --workers 2 --loader-gib 0.1

`full` has 83 million parameters. Its data loaders are heavy: each process that loads data keeps `--loader-gib` of
decoded frames in memory, so that a node holds ranks x workers x that. `--data` has train/ and val/ and, for each
sample, NAME.jpg or .png and NAME.json: {"status": [8 numbers], "trajectory": [[x, y, heading], ... 8]}; without it
samples of the same shapes are generated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from .resnet import ResNet50
from .training import Ranks, parser, train

#: Name -> channels of the backbone's first stage, width, encoder layers, decoder layers, trajectories.
SIZES = {"small": (8, 64, 1, 1, 32), "full": (64, 768, 5, 2, 4096)}
#: Numbers of the vehicle's state, and poses (x, y, heading) of a trajectory.
STATUS, POSES = 8, 8
#: Imitation of the driver, and the rules that a trajectory keeps or breaks.
HEADS = ("imitation", "no_collision", "drivable_area", "progress", "comfort")


class Planner(nn.Module):
    """[pictures (N, 3, H, W) in [0, 1], status (N, 8)] to scores (N, heads, trajectories)."""

    def __init__(self, size: str) -> None:
        super().__init__()
        channels, width, encoder, decoder, count = SIZES[size]
        # Without pooling and classes.
        self.backbone = ResNet50(1, channels).layers[:-3]
        self.project = nn.Conv2d(32 * channels, width, 1)
        self.status = nn.Linear(STATUS, width)
        settings: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 8, 4 * width, **settings), encoder, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, 8, 4 * width, **settings), decoder
        )
        self.register_buffer("vocabulary", vocabulary(count))
        self.trajectory = _mlp(3 * POSES, width, width)
        self.heads = nn.ModuleList(_mlp(width, width, 1) for _ in HEADS)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        pictures, status = inputs
        features = self.project(self.backbone(pictures)).flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat([features, self.status(status)[:, None]], 1))
        queries = self.trajectory(self.vocabulary).expand(len(pictures), -1, -1)
        found = self.decoder(queries, tokens)
        return torch.stack([head(found).squeeze(-1) for head in self.heads], 1)


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def vocabulary(count: int) -> Tensor:
    """Return `count` trajectories (count, 24): poses of arcs of several speeds and curvatures, the same everywhere."""
    g = torch.Generator().manual_seed(0)
    speed = torch.rand(count, 1, generator=g) * 4
    curvature = (torch.rand(count, 1, generator=g) - 0.5) * 0.2
    distance = speed * torch.arange(1, POSES + 1)
    heading = distance * curvature
    poses = torch.stack([distance * torch.cos(heading / 2), distance * torch.sin(heading / 2), heading], -1)
    return poses.flatten(1)


def targets(trajectory: Tensor, known: Tensor) -> Tensor:
    """Rate each known trajectory against the driven one.

    Args:
        trajectory: driven (24,).
        known: the vocabulary (count, 24).

    Returns:
        (heads, count) float32: a distribution for the imitation, then 0 or 1 for each rule.
    """
    far = (known - trajectory).view(len(known), POSES, 3)[..., :2].norm(dim=-1)
    mean, last = far.mean(1), far[:, -1]
    rules = [mean < 4, far.amax(1) < 8, last < 6, known[:, 2::3].abs().amax(1) < 1.5]
    return torch.stack([torch.softmax(-mean, 0), *(rule.float() for rule in rules)])


def judge(scores: Tensor, wanted: Tensor) -> tuple[Tensor, int]:
    """Return the sum of the heads' losses, and how often the driver's trajectory is rated best.

    Args:
        scores, wanted: (N, heads, trajectories); `wanted` as of `targets`.
    """
    imitation = nn.functional.cross_entropy(scores[:, 0], wanted[:, 0])
    rules = nn.functional.binary_cross_entropy_with_logits(scores[:, 1:], wanted[:, 1:])
    return imitation + rules, int((scores[:, 0].argmax(1) == wanted[:, 0].argmax(1)).sum())


class Samples(Dataset[tuple[list[Tensor], Tensor]]):
    """Samples ([picture (3, px, px), status (8,)], targets (heads, trajectories)), all float32.

    Frames are decoded at `frame_px` and cut down to `px`. Each process keeps as many decoded frames as `loader_gib`
    holds, and decodes those before its first sample, as loaders do that read a whole drive at a time. Frames of
    generated data are repeated until the memory is full.
    """

    def __init__(self, args: argparse.Namespace, part: str, count: int, known: Tensor) -> None:
        self.px, self.frame_px, self.seed, self.known = args.image_px, args.frame_px, args.seed, known
        self.capacity = int(args.loader_gib * 2**30) // (3 * self.frame_px**2)
        self.files = _files(Path(args.data) / part) if args.data else []
        self.count = len(self.files) or count
        self.first = 0 if part == "train" else 10**6
        self.frames: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[list[Tensor], Tensor]:
        if self.frames is None:
            self.frames = self._decode_all()
        frame = self.frames[i] if i < min(len(self.frames), self.count) else self._decode(i)
        step = max(1, self.frame_px // self.px)
        pixels = torch.from_numpy(frame[::step, ::step][: self.px, : self.px].copy())
        status, trajectory = self._driven(i)
        return [pixels.permute(2, 0, 1).float() / 255, status], targets(trajectory, self.known)

    def _decode_all(self) -> "np.ndarray[Any, Any]":
        """Fill this process's memory: frames (capacity, px, px, 3) uint8."""
        frames = np.empty((self.capacity, self.frame_px, self.frame_px, 3), np.uint8)
        for i in range(self.capacity):
            # The pages of an array are resident once they are written.
            frames[i] = frames[i % self.count] if i >= self.count else self._decode(i)
        return frames

    def _decode(self, i: int) -> "np.ndarray[Any, Any]":
        """Return a frame (px, px, 3) uint8; of generated data noise in a colour that tells the trajectory."""
        if self.files:
            with Image.open(self.files[i]) as picture:
                return np.asarray(picture.convert("RGB").resize((self.frame_px, self.frame_px)))
        rng = np.random.default_rng((self.seed, self.first + i))
        noise = rng.integers(0, 128, (self.frame_px, self.frame_px, 3), np.uint8)
        colour = np.random.default_rng(self._choice(i)).integers(0, 128, 3, np.uint8)
        return noise + colour

    def _choice(self, i: int) -> int:
        return int(np.random.default_rng((self.seed, self.first + i, 1)).integers(len(self.known)))

    def _driven(self, i: int) -> tuple[Tensor, Tensor]:
        """Return status (8,) and driven trajectory (24,) of a sample."""
        if not self.files:
            trajectory = self.known[self._choice(i)]
            return trajectory[:STATUS] / 32, trajectory
        path = self.files[i].with_suffix(".json")
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            status, driven = (
                torch.tensor(told[name], dtype=torch.float32) for name in ("status", "trajectory")
            )
            return status.view(STATUS), driven.reshape(3 * POSES)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
            raise SystemExit(
                f"error: {path}: expected status, {STATUS} numbers, and trajectory, {POSES} of [x, y, heading] ({e})"
            ) from None


def _files(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"error: {folder}: no pictures; expected NAME.jpg or .png with NAME.json each")
    return found


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--size", choices=SIZES, default="full")
    p.add_argument("--image-px", type=int, default=256)
    p.add_argument("--frame-px", type=int, default=512, help="of the decoded frames that a loader keeps")
    p.add_argument(
        "--loader-gib", type=float, default=0.1, help="decoded frames of each process that loads data"
    )
    args = p.parse_args()
    ranks = Ranks.join()
    torch.manual_seed(args.seed)
    model = Planner(args.size)
    known = vocabulary(SIZES[args.size][-1])
    training, validation = (
        Samples(args, part, count, known)
        for part, count in (("train", args.samples), ("val", max(1, args.samples // 8)))
    )
    ranks.say(f"data: {args.data or 'generated'}")
    lr = 1e-3 if args.size == "small" else 1e-4
    train(
        ranks, model, training, validation, args,
        lambda m: torch.optim.AdamW(m.parameters(), lr=lr), "samples/s", judge,
    )  # fmt: skip


if __name__ == "__main__":
    main()
