"""A text classifier: transformer encoder on AG News (train.csv, test.csv), or on generated text of the same shape.

    torchrun --nproc-per-node=2 -m dist3dgs.workloads.transformer --size small --data ag_news --epochs 3

`small` has about 2 million parameters, `large` about 10 million.
"""

import argparse
import csv
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from .training import Ranks, parser, train

#: Name -> width, layers.
SIZES = {"small": (128, 4), "large": (320, 6)}
CLASSES = 4
VOCABULARY = 8192
#: Words of each class in generated text: few, as the words that tell a topic are frequent in real text.
TOPIC_WORDS = 64


class Classifier(nn.Module):
    """Words (N, length) int64 to class scores (N, 4)."""

    def __init__(self, width: int, num_layers: int, length: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        nn.init.normal_(self.words.weight, std=0.02)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.scores = nn.Linear(width, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.encoder(self.words(words) + self.places).mean(1))
        return scores


def generated(count: int, length: int, seed: int) -> TensorDataset:
    """Random words, of which every other one is from the class's own `TOPIC_WORDS`."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    words = torch.randint(0, VOCABULARY, (count, length), generator=g)
    words[:, ::2] = words[:, ::2] % TOPIC_WORDS + labels[:, None] * TOPIC_WORDS
    return TensorDataset(words, labels)


def read(path: Path, length: int, limit: int) -> TensorDataset:
    """Read rows of class (1 to 4), title and description; a word's number is a hash of it."""
    rows, labels = [], []
    try:
        with path.open(encoding="utf-8", newline="") as f:
            for row in csv.reader(f):
                if len(row) < 2 or row[0] not in ("1", "2", "3", "4"):
                    continue
                words = [
                    int.from_bytes(hashlib.blake2b(w.encode(), digest_size=4).digest()) % (VOCABULARY - 1) + 1
                    for w in " ".join(row[1:]).lower().split()[:length]
                ]
                rows.append(words + [0] * (length - len(words)))
                labels.append(int(row[0]) - 1)
                if len(rows) == limit:
                    break
    except OSError as e:
        raise SystemExit(
            f"error: {path}: {e.strerror}; expected AG News: class, title, description"
        ) from None
    if not rows:
        raise SystemExit(f"error: {path}: no rows of class (1 to 4), title, description, as AG News has them")
    return TensorDataset(torch.tensor(rows), torch.tensor(labels))


def datasets(args: argparse.Namespace) -> tuple[Dataset[tuple[Tensor, ...]], Dataset[tuple[Tensor, ...]]]:
    """Return training and validation data."""
    if not args.data:
        held_out = generated(max(CLASSES, args.samples // 8), args.length, args.seed + 1)
        return generated(args.samples, args.length, args.seed), held_out
    folder = Path(args.data)
    return read(folder / "train.csv", args.length, args.samples), read(
        folder / "test.csv", args.length, args.samples // 8
    )


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--size", choices=SIZES, default="small")
    p.add_argument("--length", type=int, default=64, help="words of a text")
    args = p.parse_args()
    ranks = Ranks.join()
    torch.manual_seed(args.seed)
    training, validation = datasets(args)
    ranks.say(f"data: {args.data or 'generated'}")
    train(
        ranks, Classifier(*SIZES[args.size], args.length), training, validation, args,
        lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3), "samples/s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
