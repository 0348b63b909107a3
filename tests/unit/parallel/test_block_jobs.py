"""Blocks in jobs of their own: the bits of as many ranks, exact resume, what one job goes on from, bad settings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dist3dgs.config.models import RunSpec
from dist3dgs.errors import UserError
from dist3dgs.parallel.blocks import inside
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.registry import make_parallel
from dist3dgs.runs.resume import differences, identity
from dist3dgs.scenes.pack import PackedScene
from dist3dgs.splats.gaussians import NAMES
from dist3dgs.splats.render import get_renderer
from dist3dgs.train import checkpoint, part_results
from tests.unit.helpers.ranks import run_ranks, train
from tests.unit.parallel.test_blocks import at, events_of, run_at

KIND = {"kind": "blocks", "coarse_share": 0.3, "view_threshold": 0.01}


def jobs_at(blocks: int = 2, part: str = "", **settings: Any) -> RunSpec:
    run = run_at("n1g1", KIND | settings.pop("strategy", {}) | {"blocks": blocks}, **settings)
    return run.model_copy(update={"part": part})


def folder_of(out: Path, part: str) -> Path:
    return out / "parts" / part if part else out


def run_jobs(run: RunSpec, scene: Path, out: Path, parts: list[str] | None = None) -> None:
    for part in [*run.parts, ""] if parts is None else parts:
        folder = folder_of(out, part)
        folder.mkdir(parents=True, exist_ok=True)
        run_ranks(1, train, run.model_copy(update={"part": part}), scene, folder)


@pytest.mark.slow
def test_jobs_end_with_the_bits_of_as_many_ranks_and_resume_exactly(tiny_scene, tmp_path):
    run, one, out = jobs_at(), tmp_path / "one", tmp_path / "jobs"
    run_ranks(2, train, run_at("n1g2", KIND), tiny_scene, one)
    run_jobs(run, tiny_scene, out)
    want, found = checkpoint.read(at(one, 40)), checkpoint.read(at(out, 40))
    assert want.rows.keys() == found.rows.keys()
    assert all(torch.equal(found.rows[name], want.rows[name]) for name in want.rows)
    want_eval, found_eval = (events_of(folder, "eval")[-1] for folder in (one, out))
    assert all(found_eval[k] == want_eval[k] for k in ("step", "seam_share", "num_gaussians"))
    # Two ranks project half of the Gaussians each: on some processors pixels differ in their last bits.
    for name in ("psnr", "ssim", "seam_psnr"):
        assert found_eval[name] == pytest.approx(want_eval[name], abs=1e-5), name
    # Every Gaussian is in exactly one block, and no block was evaluated or exported by itself.
    cells, ended = found.state["cells"], [checkpoint.read(at(folder_of(out, p), 40)) for p in run.parts[1:]]
    assert all(inside(e.rows["means"], cell).all() for e, cell in zip(ended, cells, strict=True))
    assert sum(len(e.rows["means"]) for e in ended) == len(found.rows["means"])
    assert not events_of(folder_of(out, "block-0"), "eval")
    assert not (folder_of(out, "block-0") / "point_cloud.ply").exists() and (out / "point_cloud.ply").exists()
    # The slowest block's seconds go on where the coarse training's ended.
    coarse = checkpoint.read(at(folder_of(out, "coarse"), 12)).header.elapsed_s
    seconds = [e.header.elapsed_s for e in ended]
    assert min(seconds) > coarse > 0 and found.header.elapsed_s == max(seconds)

    # A block that was killed goes on from its own checkpoint, not from the coarse model, to the same bits.
    block = folder_of(out, "block-1")
    at(block, 40).unlink()
    run_jobs(run, tiny_scene, out, ["block-1"])
    assert events_of(block, "resume")[-1]["step"] == 30
    again = checkpoint.read(at(block, 40))
    assert all(torch.equal(t, again.rows[name]) for name, t in ended[1].rows.items())


def test_a_block_that_no_view_sees_stays_as_the_coarse_model_has_it(tiny_scene, tmp_path):
    run = jobs_at(steps=10, strategy={"view_threshold": 0.999}, checkpoint_every=4)
    run_jobs(run, tiny_scene, tmp_path)
    coarse = checkpoint.read(at(folder_of(tmp_path, "coarse"), 3)).rows
    merged = checkpoint.read(at(tmp_path, 10)).rows
    order = [rows["lineage"].argsort() for rows in (coarse, merged)]
    assert all(torch.equal(coarse[n][order[0]], merged[n][order[1]]) for n in NAMES)
    said = [e["message"] for e in events_of(folder_of(tmp_path, "coarse"), "warning")]
    assert len(said) == 2 and "no training view sees enough of block 1" in said[1]

    # What a block left is a piece of the model: nothing else goes on from it.
    block, whole = (identity(run.model_copy(update={"part": part}), "digest") for part in ("block-0", ""))
    assert differences(block, whole) == ["part is block-0 there and None here"]
    shutil.rmtree(folder_of(tmp_path, "block-1") / "checkpoints")
    with pytest.raises(UserError, match=r"parts/block-1/checkpoints/step-00000010.*has left no checkpoint"):
        part_results.read(run, PackedScene.open(tiny_scene).digest, tmp_path)


def test_steps_are_shared_out_among_the_jobs():
    run = jobs_at(3, steps=40, global_batch=None, keep="images", strategy={"finish_share": 0.2})
    assert (run.global_batch, run.num_steps, run.parts) == (
        3,
        14,
        ["coarse", "block-0", "block-1", "block-2"],
    )
    jobs = [run.model_copy(update={"part": part}) for part in [*run.parts[:2], ""]]
    assert [job.job_steps for job in jobs] == [range(1, 5), range(5, 12), range(12, 15)]
    assert [(job.needs, job.block) for job in jobs] == [([], None), (["coarse"], 0), (run.parts, None)]
    assert jobs_at().last_step == 40 and not jobs_at().job_steps  # nothing but the merge


@pytest.mark.parametrize(
    ("layout", "strategy", "settings", "told"),
    [
        ("n1g2", {"blocks": 2}, {}, r"blocks = 2 trains each block in a job of one rank, and n1g2 has 2"),
        ("n1g1", {"blocks": 1}, {}, "one block is the whole scene: use kind: replicated"),
        ("n1g1", {"blocks": 0}, {}, "greater than or equal to 2"),
        (
            "n1g1",
            {"blocks": 2, "kind": "sharded"},
            {},
            "blocks: 2 is a setting of kind: blocks, not of sharded",
        ),
        ("n1g1", {"blocks": 3}, {}, "global_batch = 2 is no multiple of the 3 blocks of parallel.blocks"),
        ("n1g1", {"blocks": 2}, {"densify": {"kind": "mcmc"}}, "needs train.densify.kind: default or none"),
    ],
)
def test_bad_settings_are_refused(layout, strategy, settings, told):
    with pytest.raises(ValidationError, match=told):
        run_at(layout, {"kind": "blocks"} | strategy, **settings)


def test_parts_that_the_run_does_not_have_and_too_many_blocks_are_refused():
    values = jobs_at().model_dump()
    with pytest.raises(
        ValidationError, match="part 'block-2' is no part of the run; it has coarse, block-0, block-1"
    ):
        RunSpec(**values | {"part": "block-2"})
    blocks = make_parallel(jobs_at(), Communicator(), get_renderer("cpu"), torch.device("cpu"))
    for points, views, told in ((1, 9, "1 points"), (9, 1, "1 training views")):
        with pytest.raises(
            UserError, match=f"2 blocks, `parallel.blocks` are more than the scene's {told}; set fewer"
        ):
            blocks.check_scene(points, views)
