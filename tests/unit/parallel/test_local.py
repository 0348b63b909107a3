"""Replicas that train apart: SGD equals replicas exactly, weights, replicas after averages, resume, bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dist3dgs.config.models import RunSpec
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.registry import make_parallel
from dist3dgs.runs.events import read_events
from dist3dgs.splats.gaussians import NAMES, Gaussians
from dist3dgs.splats.loss import l1_ssim_loss
from dist3dgs.splats.render import get_renderer
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import bytes_sent, run_ranks, train
from tests.unit.parallel.test_equivalence import batch, some_gaussians


def sgd(comm: Communicator, strategy: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters after three steps of plain gradient descent with the same 12 views, float64."""
    run = tiny.spec(f"n1g{comm.world_size}", strategy=strategy, global_batch=12)
    parallel = make_parallel(run, comm, get_renderer("cpu"), torch.device("cpu"))
    gaussians = Gaussians(parallel.distribute(lambda: some_gaussians(torch.float64)))
    for step in range(1, 4):
        rendered = parallel.render(
            gaussians, batch(torch.float64, comm.world_size), sh_degree=2, background=None, track=False
        )
        loss = rendered.anchor
        for view in rendered.views:
            assert view.camera.photo is not None
            loss = loss + l1_ssim_loss(view.image.colors, view.camera.photo, 0.2) / 12
        loss.backward()
        with torch.no_grad():
            for name in parallel.reduce_gradients(gaussians, 2):
                gaussians[name].sub_(0.5 * gaussians[name].grad)
        gaussians.zero_grad()
        if parallel.averages(step):
            parallel.synchronise(dict(gaussians))
    return {name: t.detach() for name, t in gaussians.items()}


@pytest.mark.parametrize("world_size", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_averages_of_sgd_after_every_step_are_steps_of_replicas(world_size):
    local = run_ranks(world_size, sgd, {"kind": "local", "sync_every": 1, "average": "plain"})
    want, start = run_ranks(1, sgd, {"kind": "replicated"})[0], some_gaussians(torch.float64)
    for name in NAMES:
        assert all(torch.equal(rank[name], local[0][name]) for rank in local)
        moved = (want[name] - start[name]).norm()
        assert moved > 0 and (local[0][name] - want[name]).norm() < 1e-10 * moved, name


def averaged(comm: Communicator, average: str) -> torch.Tensor:
    """Opacities of three Gaussians, 1 on rank 0 and 5 on rank 1: seen 3 and 1 times, by rank 1 alone, by neither."""
    run = tiny.spec("n1g2", strategy={"kind": "local", "average": average})
    parallel = make_parallel(run, comm, get_renderer("cpu"), torch.device("cpu"))
    gaussians = Gaussians({k: t[:3].float().clone() for k, t in some_gaussians(torch.float32).items()})
    with torch.no_grad():
        gaussians["opacities"].fill_(1.0 if comm.rank == 0 else 5.0)
    for step in range(3):
        for t in gaussians.values():
            t.grad = torch.zeros_like(t)
        assert gaussians["sh0"].grad is not None
        gaussians["sh0"].grad[0] = 1.0 if comm.rank == 0 or step == 0 else 0.0
        gaussians["sh0"].grad[1] = float(comm.rank)
        list(parallel.reduce_gradients(gaussians, 0))
    parallel.synchronise(dict(gaussians))
    return gaussians["opacities"].detach()


def test_who_sees_a_gaussian_more_often_weighs_more():
    for rank in run_ranks(2, averaged, "seen"):
        assert rank.tolist() == [2.0, 5.0, 3.0]
    assert run_ranks(2, averaged, "plain")[0].tolist() == [3.0] * 3


def run_at(layout: str, strategy: dict[str, Any], **settings: Any) -> RunSpec:
    defaults = {
        "keep": "steps", "steps": 60, "global_batch": 2, "eval_every": 60, "checkpoint_every": 30, "digest_every": 6,
        "densify": {"start_step": 5, "every": 10, "stop_step": 55, "max_gaussians": 400, "grad_threshold": 1e-3,
                    "scale_threshold": 0.07, "reset_every": 1000},
    }  # fmt: skip
    return tiny.spec(layout, strategy=strategy, **defaults | settings)


def events_of(out: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_events(out / "events.jsonl") if e["event"] == kind]


@pytest.mark.slow
def test_replicas_are_equal_at_every_average_and_resume_exactly(tiny_scene, tmp_path):
    local = run_at("n1g2", {"kind": "local", "sync_every": 4})
    ranks = run_ranks(2, train, local, tiny_scene, tmp_path / "whole")
    assert ranks[0]["digest"] == ranks[1]["digest"]
    compared = events_of(tmp_path / "whole", "digest")
    assert len(compared) > 9 and all(len(set(e["digests"])) == 1 for e in compared)
    assert events_of(tmp_path / "whole", "densify")[-1]["num_gaussians"] > 200
    middle = tmp_path / "whole" / "checkpoints" / "step-00000030.safetensors"
    again = run_ranks(2, train, local, tiny_scene, tmp_path / "cut", middle)
    assert again[0]["digest"] == ranks[0]["digest"]
    run_ranks(1, train, run_at("n1g1", {"kind": "replicated"}), tiny_scene, tmp_path / "one", middle)
    psnr = [events_of(tmp_path / out, "eval")[-1]["psnr"] for out in ("whole", "one")]
    assert psnr[0] == pytest.approx(psnr[1], abs=1.0) and psnr[0] > 14, psnr


def test_bytes_are_those_of_the_formula(tiny_scene, tmp_path):
    """2 (p-1)/p x 4 N x (3 x 59 + 1) per average: parameters, two moments, one weight."""
    p, n = 2, 200
    run = run_at(
        "n1g2", {"kind": "local", "sync_every": 5}, steps=20, sh_every=1, digest_every=1000,
        checkpoint_every=1000, eval_every=1000, densify={"kind": "none"},
    )  # fmt: skip
    ranks = run_ranks(p, train, run, tiny_scene, tmp_path)
    want = p * 4 * (2 * (p - 1) / p * 4 * n * (3 * 59 + 1))
    assert bytes_sent(ranks, "step") == pytest.approx(want, rel=0.05)


def test_a_run_shorter_than_the_interval_is_refused():
    with pytest.raises(ValidationError, match="sync_every = 64 is more than the 60 optimizer steps"):
        run_at("n1g2", {"kind": "local", "sync_every": 64})
