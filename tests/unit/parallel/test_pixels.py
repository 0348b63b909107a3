"""Images cut into strips that the ranks share: borders, the times that move them, batches smaller than the ranks."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.parallel import pixels
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.pixels import MOVE_ABOVE, TILE_PX, divide_again, strip_rows
from dist3dgs.parallel.sharded import Sharded
from dist3dgs.parallel.strategy import Rendered
from dist3dgs.splats.loss import HALO_PX
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import make_trainer, run_ranks

PIXELS = {"kind": "sharded", "split": "pixels"}


@given(st.lists(st.floats(0, 1), max_size=7), st.integers(1, 400))
def test_strips_are_rows_of_tiles_that_cover_the_image(borders, height):
    rows = strip_rows([0.0, *sorted(borders), 1.0], height)
    assert rows[0][0] == 0 and rows[-1][1] == height
    assert all(a[1] == b[0] for a, b in itertools.pairwise(rows))
    assert all(first <= last and (last % TILE_PX == 0 or last == height) for first, last in rows)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8))
def test_borders_move_until_all_ranks_take_the_same_time(density):
    """Work is spread over the image as `density`, one number per equal part."""
    ranks = len(density)
    whole = [0.0, *itertools.accumulate(density)]

    def work_above(edge: float) -> float:
        part = min(int(edge * ranks), ranks - 1)
        return whole[part] + (edge * ranks - part) * density[part]

    edges = [r / ranks for r in range(ranks + 1)]
    for _ in range(50):
        seconds = [work_above(b) - work_above(a) for a, b in itertools.pairwise(edges)]
        moved = divide_again(edges, seconds)
        if moved is None:
            break
        assert all(a < b for a, b in itertools.pairwise(moved)) and (moved[0], moved[-1]) == (0.0, 1.0)
        edges = moved
    assert max(seconds) <= MOVE_ABOVE * sum(seconds) / ranks


def test_a_rank_without_work_keeps_a_strip_and_equal_times_move_nothing():
    edges = divide_again([0.0, 0.5, 1.0], [0.0, 1.0])
    assert edges is not None and 0.5 < edges[1] < 1.0
    assert divide_again([0.0, 0.3, 1.0], [1.0, 1.05]) is None


class Clock:
    """Time stands still but for what rank 1 does: it needs three seconds for each look at the clock."""

    def __init__(self, rank: int) -> None:
        self.now, self.rank = 0.0, rank

    def perf_counter(self) -> float:
        self.now += 3.0 if self.rank else 1.0
        return self.now


def one_image_per_step(comm: Communicator, strategy: dict[str, Any], scene: Path, out: Path) -> list[float]:
    """Losses of 12 steps of one image on this number of ranks, summed over ranks, and where the first border is."""
    run = tiny.spec(
        f"n1g{comm.world_size}", strategy=strategy, steps=12, global_batch=1, log_every=1, densify={"kind": "none"}
    )  # fmt: skip
    trainer = make_trainer(comm, run, scene, out)
    trainer.start()
    losses, borders = [], 0.0
    for step in range(1, 13):
        with mock.patch.object(pixels, "time", Clock(comm.rank)):
            trainer.one_step(step)
        total = trainer.loss.clone()
        comm.all_reduce(total)
        losses.append(float(total))
    parallel = trainer.parallel
    assert isinstance(parallel, Sharded)
    if parallel.strips is not None:
        sent = sum(m.bytes for (_, op), m in comm.meters.items() if op == "all_to_all(strip borders)")
        borders = sent / (12 * HALO_PX * tiny.WIDTH * 3 * 4)
    return [*losses, *([parallel.strips.edges[1], borders] if parallel.strips else [])]


@pytest.mark.slow
def test_a_batch_smaller_than_the_ranks_trains_as_one_process_and_borders_move(tiny_scene, tmp_path):
    (one,) = run_ranks(1, one_image_per_step, {"kind": "sharded"}, tiny_scene, tmp_path / "one")
    two = run_ranks(2, one_image_per_step, PIXELS, tiny_scene, tmp_path / "two")
    assert two[0] == two[1], "all ranks agree"
    *losses, border, borders_sent = two[0]
    assert losses == pytest.approx(one, rel=1e-4)
    assert border == pytest.approx(2 / 3), "rank 1 took three times as long: half of its strip goes to rank 0"
    assert borders_sent == 1.0, "the rows next to one border in every step"


def one_step(comm: Communicator, strategy: dict[str, Any], scene: Path, out: Path) -> dict[str, Any]:
    """Bytes of this rank in a step of one image, and where Gaussians are in it before the step, px."""
    run = tiny.spec(f"n1g{comm.world_size}", strategy=strategy, global_batch=1, densify={"kind": "none"})
    trainer = make_trainer(comm, run, scene, out)
    trainer.start()
    rendered = []

    def kept(*args: Any, **options: Any) -> Rendered:
        rendered.append(Sharded.render(*args, **options))
        return rendered[0]

    with mock.patch.object(trainer.parallel, "render", partial(kept, trainer.parallel)):
        trainer.one_step(1)
    ((projection, _),) = rendered[0].projections
    ops = ("projection", "strip borders")
    sent = {op: sum(m.bytes for (_, name), m in comm.meters.items() if op in name) for op in ops}
    return sent | {"y": projection.means2d[:, 1].detach(), "radius": projection.radii[:, 1]}


def test_bytes_are_those_of_the_formula(tiny_scene, tmp_path):
    """(p-1)/p d v N 88 per view, d strips in which a Gaussian is seen, and 120 per pixel of width and border."""
    p = tiny.HEIGHT // TILE_PX
    (one,) = run_ranks(1, one_step, {"kind": "sharded"}, tiny_scene, tmp_path / "one")
    strips = [(r * TILE_PX, (r + 1) * TILE_PX) for r in range(p)]
    top, bottom = one["y"] - one["radius"], one["y"] + one["radius"]
    pieces = sum(int(((bottom > first) & (top < last)).sum()) for first, last in strips)
    assert p == 3 and 1.1 < pieces / len(top) < p, "d"
    ranks = run_ranks(p, one_step, PIXELS, tiny_scene, tmp_path / "three")
    sent = {op: sum(rank[op] for rank in ranks) for op in ("projection", "strip borders")}
    assert sent["projection"] == pytest.approx((p - 1) / p * pieces * 88, rel=0.05)
    assert sent["strip borders"] == 2 * (p - 1) * 120 * tiny.WIDTH


def test_only_pixels_share_a_batch_smaller_than_the_ranks():
    with pytest.raises(ValueError, match="split: pixels"):
        tiny.spec("n1g2", strategy={"kind": "sharded"}, global_batch=1)
    assert tiny.spec("n1g4", strategy=PIXELS, global_batch=3).num_steps == 20
    with pytest.raises(ValueError, match="split: pixels is a setting of kind: sharded"):
        tiny.spec("n1g2", strategy={"kind": "replicated", "split": "pixels"})
