"""The planner's samples and their weight in memory; its scores learn from them."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist3dgs.workloads.planner import SIZES, Planner, Samples, judge, vocabulary


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads on these few pixels wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def samples(known: torch.Tensor, **options: Any) -> Samples:
    values = {"data": "", "image_px": 32, "frame_px": 64, "loader_gib": 12.5 * 3 * 64**2 / 2**30, "seed": 0}
    return Samples(argparse.Namespace(**values | options), "train", 6, known)


def test_a_loader_keeps_as_many_frames_as_its_memory_holds_and_none_before_it_reads() -> None:
    known = vocabulary(SIZES["small"][-1])
    made = samples(known)
    assert made.frames is None, "the process that starts the loaders must not hold them too"
    (picture, status), wanted = made[3]
    assert made.frames is not None and made.frames.shape == (12, 64, 64, 3)
    assert np.array_equal(made.frames[3], made.frames[9]), "generated frames are repeated"
    assert (picture.shape, status.shape, wanted.shape) == ((3, 32, 32), (8,), (5, len(known)))
    assert picture.min() >= 0 and picture.max() <= 1
    beyond = samples(known, loader_gib=2.0 * 3 * 64**2 / 2**30)
    assert torch.equal(beyond[3][0][0], picture), "the same frame where the memory does not hold it"


def test_a_few_steps_lower_the_loss_of_a_batch() -> None:
    torch.manual_seed(0)
    made = samples(vocabulary(SIZES["small"][-1]))
    batch = [made[i] for i in range(4)]
    inputs = [torch.stack([inputs[k] for inputs, _ in batch]) for k in (0, 1)]
    wanted = torch.stack([w for _, w in batch])
    model = Planner("small")
    losses = []
    for _ in range(3):
        loss, _ = judge(model(inputs), wanted)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None, "DDP would wait for it"
                p -= 0.01 * p.grad
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_folder_of_samples(tmp_path: Path) -> None:
    known = vocabulary(8)
    (tmp_path / "train").mkdir()
    Image.new("RGB", (80, 60), (255, 0, 0)).save(tmp_path / "train/a.png")
    driven = {"status": [0.0] * 8, "trajectory": known[5].view(8, 3).tolist()}
    (tmp_path / "train/a.json").write_text(json.dumps(driven))
    made = samples(known, data=str(tmp_path))
    (picture, _), wanted = made[0]
    assert len(made) == 1 and picture[0].min() == 1 and picture[1].max() == 0
    assert wanted[0].argmax() == 5 and wanted[1:, 5].tolist() == [1.0] * 4
    (tmp_path / "train/a.json").write_text(json.dumps(driven | {"status": [1]}))
    with pytest.raises(SystemExit, match=r"a\.json: expected status, 8 numbers"):
        made[0]
    (tmp_path / "train/a.png").unlink()
    with pytest.raises(SystemExit, match="no pictures"):
        samples(known, data=str(tmp_path))
