"""Blocks trained apart: cells, views, one owner per Gaussian, idle blocks, seams, resume, bytes, bad settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dist3dgs.config.models import RunSpec
from dist3dgs.errors import UserError
from dist3dgs.parallel.blocks import Blocks, enlarge, inside, median_cuts, near_cuts
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.registry import make_parallel
from dist3dgs.runs.events import read_events
from dist3dgs.splats.gaussians import NAMES, Gaussians
from dist3dgs.splats.render import get_renderer
from dist3dgs.train import checkpoint
from tests.unit.helpers import tiny
from tests.unit.helpers.operations import Operations
from tests.unit.helpers.ranks import bytes_sent, run_ranks, train
from tests.unit.parallel.test_equivalence import batch, some_gaussians


def some_points(count: int = 301) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([3.0, 1.0, 2.0])


@pytest.mark.parametrize("num_cells", [1, 2, 3, 4, 7])
def test_every_point_of_space_is_in_exactly_one_cell_and_cells_hold_equal_shares(num_cells):
    points = some_points()
    cells = median_cuts(points, num_cells)
    far = torch.cat([points * 100, points, cells[torch.isfinite(cells).all(2)].reshape(-1, 3)])
    owners = torch.stack([inside(far, cell) for cell in cells]).sum(0)
    assert cells.shape == (num_cells, 2, 3) and (owners == 1).all()
    sizes = [int(inside(points, cell).sum()) for cell in cells]
    assert sum(sizes) == 301 and max(sizes) - min(sizes) <= 2, sizes


def test_cells_are_cut_across_the_longest_axis_and_enlarged_at_their_cuts_alone():
    points = some_points()
    cells = median_cuts(points, 2)
    assert torch.isfinite(cells).sum() == 2 and cells[0, 1, 0] == cells[1, 0, 0]
    larger = enlarge(cells, points, 0.2)
    assert (torch.isinf(larger) == torch.isinf(cells)).all()
    assert larger[0, 1, 0] > cells[0, 1, 0] and larger[1, 0, 0] < cells[1, 0, 0]
    both = inside(points, larger[0]) & inside(points, larger[1])
    near = near_cuts(points, cells, larger)
    assert 0 < near.sum() < both.sum() and both[near].all()
    assert torch.equal(enlarge(cells, points, 0.0), cells)
    assert not near_cuts(points, cells, cells).any()


def test_points_that_cannot_be_cut_are_refused():
    same = torch.ones(50, 3)
    for points, cells in ((same, 2), (some_points(3), 4), (some_points(0), 2)):
        with pytest.raises(UserError, match=f"cannot be cut into {cells}"):
            median_cuts(points, cells)
    same[:7, 1] = 2.0  # most at one place: the cut moves to the next
    assert [int(inside(same, cell).sum()) for cell in median_cuts(same, 2)] == [43, 7]


def run_at(layout: str, strategy: dict[str, Any] | None = None, **settings: Any) -> RunSpec:
    defaults = {
        "keep": "steps", "steps": 40, "global_batch": 2, "eval_every": 30, "checkpoint_every": 10, "digest_every": 20,
        "keep_checkpoints": 9, "densify": {"start_step": 3, "every": 6, "stop_step": 36, "max_gaussians": 400,
                                           "grad_threshold": 1e-3, "scale_threshold": 0.07, "reset_every": 1000},
    }  # fmt: skip
    kind = {"kind": "blocks", "coarse_share": 0.3, "finish_share": 0.2, "view_threshold": 0.01}
    return tiny.spec(layout, strategy=kind if strategy is None else strategy, **defaults | settings)


def events_of(out: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_events(out / "events.jsonl") if e["event"] == kind]


def at(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}.safetensors"


def test_one_block_is_the_whole_scene_to_the_bit(tiny_scene, tmp_path):
    digests = []
    for kind, strategy in (("blocks", None), ("replicated", {"kind": "replicated"})):
        run = run_at("n1g1", strategy, steps=20, densify={"stop_step": 18})
        digests.append(run_ranks(1, train, run, tiny_scene, tmp_path / kind)[0]["digest"])
    assert digests[0] == digests[1]
    assert [e["phase"] for e in events_of(tmp_path / "blocks", "blocks")] == ["blocks", "merged"]


@pytest.mark.slow
def test_blocks_merge_seams_resume_and_bytes(tiny_scene, tmp_path):
    """Two ranks through all three phases, and again from a checkpoint of each."""
    run, whole = run_at("n1g2"), tmp_path / "whole"
    ranks = run_ranks(2, train, run, tiny_scene, whole)
    digests = [r["digest"] for r in ranks]
    assert (run.block_steps.start, run.block_steps.stop) == (13, 33)
    cut, merged = events_of(whole, "blocks")
    assert (cut["step"], cut["phase"], merged["step"], merged["phase"]) == (12, "blocks", 32, "merged")
    assert max(cut["gaussians"]) - min(cut["gaussians"]) <= 1
    assert all(t > g for t, g in zip(cut["trained"], cut["gaussians"], strict=True)) and min(cut["views"]) > 0
    grown = events_of(whole, "densify")
    assert grown[-1]["num_gaussians"] > 200 and sum(merged["gaussians"]) <= 400

    # Every Gaussian is in exactly one block: what a block gives to the whole model lies in its cell.
    found = checkpoint.read(at(whole, 20))
    parts = found.rows["means"].split(found.header.shards)
    for part, cell in zip(parts, found.state["cells"], strict=True):
        assert len(part) and inside(part, cell).all()
    sizes = found.state["rows"].tolist()
    assert len(found.state["margin/means"]) == sum(sizes) - sum(found.header.shards) > 0
    # The evaluation within the block phase is of the model as a merge would make it then.
    assert events_of(whole, "eval")[0]["step"] == 30 and "seam_psnr" not in events_of(whole, "eval")[0]
    last = events_of(whole, "eval")[-1]
    assert last["num_gaussians"] == sum(checkpoint.read(at(whole, 40)).header.shards)
    assert 5 < last["seam_psnr"] < 60 and 0 < last["seam_share"] < 1

    for step in (20, 40):  # while blocks train, merged
        cut_at = tmp_path / f"from-{step}"
        again = run_ranks(2, train, run, tiny_scene, cut_at, at(whole, step))
        assert [r["digest"] for r in again] == digests, step
        assert not events_of(cut_at, "warning")
    # Elsewhere: one process goes on with the merged model, another number of blocks is cut anew and that is said.
    one = tmp_path / "one"
    run_ranks(1, train, run_at("n1g1", {"kind": "replicated"}), tiny_scene, one, at(whole, 20))
    assert events_of(one, "eval")[-1]["psnr"] == pytest.approx(last["psnr"], abs=2.0)
    with_one = tmp_path / "one block"
    run_ranks(1, train, run_at("n1g1"), tiny_scene, with_one, at(whole, 20))
    assert "blocks are cut anew" in events_of(with_one, "warning")[0]["message"]
    assert [e["step"] for e in events_of(with_one, "blocks")] == [20, 32]


def test_bytes_are_those_of_the_formula(tiny_scene, tmp_path):
    """2 (p-1)/p x 4 F N per rank and step of the coarse phase alone, F = 14 at degree 0."""
    p, n = 2, 200
    run = run_at(
        "n1g2", {"kind": "blocks", "coarse_share": 0.5, "gradient_rows": "all"}, steps=20, sh_every=1000,
        digest_every=1000, checkpoint_every=1000, eval_every=1000, densify={"kind": "none"},
    )  # fmt: skip
    ranks = run_ranks(p, train, run, tiny_scene, tmp_path)
    assert bytes_sent(ranks, "step") == pytest.approx(p * 10 * 2 * (p - 1) / p * 4 * 14 * n, rel=0.05)


@pytest.mark.slow
def test_no_rank_trains_more_than_it_has_room_for(tiny_scene, tmp_path):
    """200 Gaussians to start from, 400 at most: 210 in the coarse phase, then as many on each of two ranks."""
    run = run_at(
        "n1g2",
        densify={"start_step": 3, "every": 4, "stop_step": 36, "max_gaussians": 400, "grad_threshold": 1e-6},
    )
    room = {"hardware": run.hardware.model_copy(update={"max_gaussians_per_rank": 210})}
    ranks = run_ranks(2, train, run.model_copy(update=room), tiny_scene, tmp_path)
    cut, merged = events_of(tmp_path, "blocks")
    assert sum(cut["gaussians"]) == 210 and max(cut["trained"]) <= 210
    assert 210 < sum(merged["gaussians"]) <= sum(ranks[0]["shards"]) <= 400 and max(ranks[0]["shards"]) <= 210
    parallel = make_parallel(run, Communicator(0, 2), get_renderer("cpu"), torch.device("cpu"))
    assert parallel.rows_needed(400, 200) == 200 and parallel.rows_needed(500, 200) == 250


def cut_step(comm: Communicator, threshold: float, away: bool = False) -> dict[str, Any]:
    """A block's gradients right after the cut, on this rank; with `away` no view sees anything."""
    run = tiny.spec(
        f"n1g{comm.world_size}", global_batch=12, strategy={"kind": "blocks", "view_threshold": threshold}
    )
    parallel = make_parallel(run, comm, get_renderer("cpu"), torch.device("cpu"))
    assert isinstance(parallel, Blocks)
    rows = parallel.distribute(lambda: some_gaussians(torch.float64))
    views = [camera for part in batch(torch.float64, 1) for camera in part]
    if away:
        for camera in views:
            camera.viewmat[:3, 3] += torch.tensor([0.0, 0.0, -1000.0])
    rows, facts = parallel.advance("blocks", rows, views, 1000)
    gaussians = Gaussians(rows)
    mine = [[] for _ in range(comm.world_size)]
    mine[comm.rank] = [views[i] for i in parallel.views or []]
    rendered = parallel.render(gaussians, mine, sh_degree=2, background=None, track=True)
    loss = rendered.anchor
    for view in rendered.views:
        loss = loss + view.image.colors.square().sum()
    loss.backward()
    with Operations() as counted:
        ready = list(parallel.reduce_gradients(gaussians, 2))
    inside_cell = parallel.may_grow(gaussians, torch.ones(len(rows["means"]), dtype=torch.bool))
    return {
        "views": parallel.views, "idle": parallel.idle, "ready": ready, "means": rows["means"],
        "grad": gaussians["sh0"].grad, "facts": facts, "grow": int(inside_cell.sum()),
        "image": [view.image.colors.detach() for view in rendered.views], "waits": counted.waits.total(),
    }  # fmt: skip


@pytest.mark.parametrize("world_size", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_a_block_is_rendered_with_the_rest_and_learns_its_own_part(world_size):
    """Images are those of the whole model; gradients those of the whole model's loss, for this block's Gaussians."""
    alone = cut_step(Communicator(), 0.0)
    ranks = run_ranks(world_size, cut_step, 0.0)
    assert alone["views"] == list(range(12)) and alone["facts"]["trained"] == [203]
    for rank in ranks:
        assert not rank["waits"], "a step would wait for the GPU to ask for its block's views"
        assert rank["ready"] == list(NAMES) and rank["grow"] == len(rank["means"]) < 203
        assert len(rank["views"]) == 12
        for image, want in zip(rank["image"], alone["image"], strict=True):
            assert torch.allclose(image, want, atol=1e-12)
        where = [int((alone["means"] == m).all(1).nonzero()) for m in rank["means"]]
        # A rank's images are the batch, one of so many parts of the ranks' images.
        assert torch.allclose(rank["grad"], world_size * alone["grad"][where], rtol=1e-8, atol=1e-10)


def test_a_block_that_no_view_sees_stays_as_it_is():
    for rank in run_ranks(2, cut_step, 0.05, True):
        assert rank["views"] == [] and rank["idle"] and rank["ready"] == [] and not rank["image"]
        assert rank["facts"]["views"] == [0, 0]


def test_idle_blocks_are_not_densified_reset_or_pruned(tiny_scene, tmp_path):
    """No view reaches the threshold: after the coarse training nothing changes, which is said."""
    run = run_at(
        "n1g1", {"kind": "blocks", "coarse_share": 0.2, "view_threshold": 0.999}, steps=20, checkpoint_every=4,
        densify={"start_step": 1, "every": 5, "stop_step": 19, "reset_every": 6, "prune_opacity": 0.1},
    )  # fmt: skip
    run_ranks(1, train, run, tiny_scene, tmp_path)
    coarse, last = (checkpoint.read(at(tmp_path, step)).rows for step in (4, 20))
    assert all(torch.equal(coarse[name], last[name]) for name in NAMES)
    assert len(events_of(tmp_path, "densify")) == 3
    (said,) = events_of(tmp_path, "warning")
    assert (
        "no training view sees enough of block 0" in said["message"]
        and "200 Gaussians stay" in said["message"]
    )


def an_empty_block(comm: Communicator) -> dict[str, Any]:
    """A step of rank 1's block after all its Gaussians were pruned, and the merged model's size."""
    run = tiny.spec("n1g2", strategy={"kind": "blocks", "view_threshold": 0.0}, global_batch=12)
    parallel = make_parallel(run, comm, get_renderer("cpu"), torch.device("cpu"))
    views = [camera for part in batch(torch.float32, 1) for camera in part]
    rows, _ = parallel.advance(
        "blocks", parallel.distribute(lambda: some_gaussians(torch.float32)), views, 1000
    )
    rows = {k: t[: 0 if comm.rank else None] for k, t in rows.items()}
    gaussians = Gaussians(rows)
    cameras = [[], [views[0]]] if comm.rank else [[views[0]], []]
    rendered = parallel.render(gaussians, cameras, sh_degree=1, background=None, track=True)
    sum((view.image.colors.sum() for view in rendered.views), rendered.anchor).backward()
    assert list(parallel.reduce_gradients(gaussians, 1)) == list(NAMES)
    rows, facts = parallel.advance("merged", dict(gaussians), [], 1000)
    with torch.no_grad():
        shown = parallel.render(
            Gaussians(rows), [[views[0]], [views[1]]], sh_degree=1, background=None, track=False
        )
    return {"facts": facts, "seen": float(shown.views[0].image.colors.sum())}


def test_a_block_that_has_become_empty_renders_the_rest_and_merges():
    ranks = run_ranks(2, an_empty_block)
    assert ranks[0]["facts"]["gaussians"][1] == 0 < ranks[0]["facts"]["gaussians"][0]
    assert all(rank["seen"] > 0 for rank in ranks)


def test_bad_settings_and_scenes_are_refused(tiny_scene, tmp_path):
    with pytest.raises(
        ValidationError, match=r"coarse_share = 0\.6 and finish_share = 0\.5 leave none of the 40 steps"
    ):
        run_at("n1g2", {"kind": "blocks", "coarse_share": 0.6, "finish_share": 0.5})
    with pytest.raises(ValidationError, match=r"needs train\.densify\.kind: default or none"):
        run_at("n1g2", densify={"kind": "mcmc"})
    with pytest.raises(ValidationError, match="blocks strategy needs init: broadcast"):
        run_at("n1g2", {"kind": "blocks", "compression": "bf16"})
    blocks = make_parallel(run_at("n1g2"), Communicator(0, 2), get_renderer("cpu"), torch.device("cpu"))
    blocks.check_scene(2, 2)
    for points, views, told in ((1, 9, "1 points"), (9, 1, "1 training views")):
        with pytest.raises(UserError, match=f"2 blocks, one per rank, are more than the scene's {told}"):
            blocks.check_scene(points, views)
