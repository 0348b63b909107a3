"""Groups that shard inside and replicate across: whole trainings, checkpoints, bytes, bad settings."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dist3dgs.config.models import RunSpec, Strategy
from dist3dgs.runs.events import read_events
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import bytes_sent, run_ranks, train


def run_at(layout: str, strategy: dict[str, Any], **settings: Any) -> RunSpec:
    defaults = {
        "keep": "steps", "steps": 60, "global_batch": 4, "eval_every": 60, "checkpoint_every": 30, "digest_every": 5,
        "densify": {"start_step": 5, "every": 10, "stop_step": 55, "max_gaussians": 400, "grad_threshold": 1e-3,
                    "scale_threshold": 0.07},
    }  # fmt: skip
    return tiny.spec(layout, strategy=strategy, **defaults | settings)


def events_of(out: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_events(out / "events.jsonl") if e["event"] == kind]


@pytest.mark.slow
def test_groups_stay_equal_and_resume_exactly_and_elsewhere(tiny_scene, tmp_path):
    hybrid = run_at("n2g2", {"kind": "hybrid", "rebalance_above": 1.0})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ranks = run_ranks(4, train, hybrid, tiny_scene, whole)
    digests = [r["digest"] for r in ranks]
    assert digests[:2] == digests[2:] and digests[0] != digests[1]
    assert all(e["digests"][:2] == e["digests"][2:] for e in events_of(whole, "digest"))
    grown = events_of(whole, "densify")
    assert grown[-1]["num_gaussians"] > 200 and len(grown[-1]["shards"]) == 2
    assert grown[0]["num_gaussians"] - 200 == sum(
        grown[0][k] * by for k, by in (("cloned", 1), ("split", 1), ("pruned", -1))
    )

    middle = whole / "checkpoints" / "step-00000030.safetensors"
    again = run_ranks(4, train, hybrid, tiny_scene, cut, middle)
    assert [r["digest"] for r in again] == digests
    psnr = events_of(whole, "eval")[-1]["psnr"]
    for layout, world, strategy in (("n1g2", 2, {"kind": "replicated"}), ("n1g1", 1, {"kind": "hybrid"})):
        out = tmp_path / layout
        run_ranks(world, train, run_at(layout, strategy), tiny_scene, out, middle)
        assert events_of(out, "resume")[0]["step"] == 30
        last = events_of(out, "eval")[-1]
        assert last["psnr"] == pytest.approx(psnr, abs=0.1)
        assert last["num_gaussians"] == pytest.approx(grown[-1]["num_gaussians"], rel=0.02)


@pytest.mark.slow
def test_bytes_are_those_of_the_formula(tiny_scene, tmp_path):
    """Inside a group of g ranks (g-1)/g v N 88 per view; across r groups 2 (r-1)/r x 236 N / g per rank."""
    g, r, n, steps = 2, 2, 200, 12
    run = run_at(
        "n2g2", {"kind": "hybrid", "gradient_rows": "all"}, steps=steps, sh_every=1, densify={"kind": "none"}
    )
    ranks = run_ranks(4, train, run, tiny_scene, tmp_path)
    floats = [14, *(14 + 3 * ((d + 1) ** 2 - 1) for d in (1, 2)), *[59] * (steps - 3)]
    inside = steps * 4 * (g - 1) / g * n * 88
    across = sum(4 * 2 * (r - 1) / r * 4 * f * n / g for f in floats)
    assert bytes_sent(ranks, "step", "projection") == pytest.approx(inside, rel=0.05)
    assert bytes_sent(ranks, "step", "gradients)") - bytes_sent(
        ranks, "step", "projection gradients"
    ) == pytest.approx(across, rel=0.05)


def test_groups_that_do_not_divide_the_ranks_are_refused():
    with pytest.raises(ValidationError, match=r"parallel\.shard = 3 does not divide the 4 ranks of n1g4"):
        run_at("n1g4", {"kind": "hybrid", "shard": 3})
    assert run_at("n2g4", {"kind": "hybrid"}, global_batch=8).shard == 4
    assert run_at("n2g4", {"kind": "hybrid", "shard": 8}, global_batch=8).shard == 8
    with pytest.raises(ValidationError, match="shard: 2 is a setting of kind: hybrid"):
        Strategy(kind="sharded", shard=2)
