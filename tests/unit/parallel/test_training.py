"""Whole trainings on several ranks: replicas stay equal, shards stay even, bytes are those of the formulae."""

import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from dist3dgs.config.models import RunSpec
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.runs.events import read_events
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import bytes_sent, left_by_a_killed_rank, make_trainer, run_ranks, train

pytestmark = pytest.mark.slow


def events_of(out, kind):
    return [e for e in read_events(out / "events.jsonl") if e["event"] == kind]


@pytest.mark.parametrize(
    ("kind", "world_size"), [("default", 2), ("default", 4), ("mcmc", 2), ("mcmc", 4), ("budget", 2)]
)
def test_replicas_stay_equal_to_the_bit(kind, world_size, tiny_scene, tmp_path):
    """Through clone, split, prune, reset; relocation, growth and noise; a budget and selective Adam; over 300 steps."""
    run = tiny.spec(
        f"n1g{world_size}", steps=300, keep="steps", digest_every=10, checkpoint_every=1000, eval_every=1000,
        optimizer="selective" if kind == "budget" else "adam",
        log_every=100, sh_every=60,
        densify={
            "kind": kind, "start_step": 20, "every": 40, "stop_step": 290, "reset_every": 110, "max_gaussians": 500,
            "scale_threshold": 0.07,
        },
    )  # fmt: skip
    ranks = run_ranks(world_size, train, run, tiny_scene, tmp_path)
    assert len({r["digest"] for r in ranks}) == 1
    assert all(r["resets"] == (2 if kind == "default" else 0) for r in ranks), "of opacities"
    compared = events_of(tmp_path, "digest")
    assert len(compared) >= 30 and all(len(set(e["digests"])) == 1 for e in compared)
    changed = events_of(tmp_path, "densify")
    what = {
        "default": ("cloned", "split", "pruned"), "mcmc": ("relocated", "added"), "budget": ("split", "pruned")
    }[kind]  # fmt: skip
    assert sum(any(e[k] for k in what) for e in changed) >= 3
    assert all(sum(e[k] for e in changed) > 0 for k in what)


@pytest.mark.parametrize(
    ("kind", "strategy", "most"),
    [
        ("none", "replicated", 150),
        *(
            (kind, strategy, 230)
            for kind in ("default", "mcmc", "budget")
            for strategy in ("replicated", "sharded")
        ),
        *(("default", "replicated", 150), ("mcmc", "sharded", 150)),
    ],
)
def test_max_gaussians_is_a_maximum_from_the_first_step(kind, strategy, most, tiny_scene, tmp_path):
    """The scene's 200 points are thinned to 150, with a warning; growth stops at 230."""
    run = tiny.spec(
        "n1g2", strategy={"kind": strategy}, steps=80, keep="steps", log_every=1, eval_every=40, checkpoint_every=40,
        densify={
            "kind": kind, "start_step": 0, "every": 5, "stop_step": 75, "reset_every": 1000, "max_gaussians": most,
            "grad_threshold": 1e-6,
        },
    )  # fmt: skip
    train_two = run_ranks(2, train, run, tiny_scene, tmp_path)
    sizes = [e["num_gaussians"] for e in read_events(tmp_path / "events.jsonl") if "num_gaussians" in e]
    assert len(sizes) > 80 and max(sizes) <= most
    assert sum(train_two[0]["shards"]) <= most
    thinned = events_of(tmp_path, "thin")
    if most < 200:
        (event,) = thinned
        assert (event["num_points"], event["num_gaussians"]) == (200, 150)
        assert any("200 points" in e["message"] for e in events_of(tmp_path, "warning"))
    else:
        assert not thinned
        assert max(sizes) == most, "it grew up to there"


def test_thinning_is_that_of_the_seed_on_any_number_of_ranks(tiny_scene, tmp_path):
    digests = {}
    for name, world_size, seed in (("one", 1, 1), ("two", 2, 1), ("other", 1, 2)):
        run = tiny.spec(
            f"n1g{world_size}", steps=1, keep="steps", densify={"kind": "none", "max_gaussians": 50}
        )
        run = run.model_copy(update={"seed": seed})
        run_ranks(world_size, train, run, tiny_scene, tmp_path / name)
        digests[name] = events_of(tmp_path / name, "digest")[0]["digests"][0]  # before the first step
    assert digests["one"] == digests["two"] != digests["other"]


def test_compressed_replicas_stay_equal_and_learn(tiny_scene, tmp_path):
    """Through densifications, which drop what PowerSGD carries from step to step; at a known cost in quality."""
    psnr = {}
    for compression in ("none", "bf16", "powersgd"):
        run = tiny.spec(
            "n1g3", strategy={"compression": compression}, steps=240, keep="steps", digest_every=10,
            checkpoint_every=1000, eval_every=1000, log_every=100, sh_every=20,
            densify={
                "start_step": 20, "every": 20, "stop_step": 180, "reset_every": 100, "max_gaussians": 500,
                "scale_threshold": 0.07,
            },
        )  # fmt: skip
        out = tmp_path / compression
        ranks = run_ranks(3, train, run, tiny_scene, out)
        assert len({r["digest"] for r in ranks}) == 1
        compared = events_of(out, "digest")
        assert len(compared) >= 24 and all(len(set(e["digests"])) == 1 for e in compared)
        changed = [e for e in events_of(out, "densify") if e["cloned"] + e["split"] + e["pruned"]]
        assert len(changed) >= 3
        assert compression == "none" or any(
            compression in c["op"] or "low-rank" in c["op"] for c in ranks[0]["comm"]
        )
        psnr[compression] = events_of(out, "eval")[-1]["psnr"]
    assert psnr["none"] > 15
    assert psnr["bf16"] > psnr["none"] - 1 and psnr["powersgd"] > psnr["none"] - 1.5, psnr


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_quality_does_not_depend_on_the_number_of_ranks(kind, tiny_scene, tmp_path):
    """The same global batch and images, without densification: rounding alone remains."""
    psnr = {}
    for world_size in (1, 2, 4):
        run = tiny.spec(
            f"n1g{world_size}", strategy={"kind": kind}, steps=240, global_batch=4, densify={"kind": "none"},
            eval_every=1000, checkpoint_every=1000,
        )  # fmt: skip
        out = tmp_path / str(world_size)
        run_ranks(world_size, train, run, tiny_scene, out)
        psnr[world_size] = events_of(out, "eval")[-1]["psnr"]
    assert psnr[1] > 15
    assert psnr[2] == pytest.approx(psnr[1], abs=0.15)
    assert psnr[4] == pytest.approx(psnr[1], abs=0.15)


@pytest.mark.parametrize("rule", ["default", "mcmc"])
def test_densification_does_not_depend_on_the_number_of_ranks(rule, tiny_scene, tmp_path):
    """Replicas on 1, 2 and 4 ranks end with the same bits, over the network and through shared memory; shards grow
    alike, up to the same limit.
    """
    densify = {
        "kind": rule, "start_step": 20, "every": 20, "stop_step": 100, "reset_every": 1000,
        "max_gaussians": 400 if rule == "default" else 230,
        "scale_threshold": 0.07, "grad_threshold": 1e-3, "prune_opacity": 0.001,
    }  # fmt: skip
    digests, grown, psnr = {}, {}, {}
    zero1 = {"kind": "replicated", "optimizer_state": "split", "shared_memory": False}
    for kind, world_size in [("replicated", 1), ("zero1", 2), ("replicated", 4), ("sharded", 2)]:
        run = tiny.spec(
            f"n1g{world_size}", strategy=zero1 if kind == "zero1" else {"kind": kind}, steps=120, global_batch=4,
            keep="steps", eval_every=1000, checkpoint_every=1000, densify=densify,
        )  # fmt: skip
        out = tmp_path / f"{kind}{world_size}"
        digests[kind, world_size] = run_ranks(world_size, train, run, tiny_scene, out)[0]["digest"]
        grown[kind, world_size] = [e["num_gaussians"] for e in events_of(out, "densify")]
        psnr[kind, world_size] = events_of(out, "eval")[-1]["psnr"]
    one = "replicated", 1
    assert len(grown[one]) >= 3 and grown[one][-1] == densify["max_gaussians"] > grown[one][0]
    assert digests[one] == digests["zero1", 2] == digests["replicated", 4]
    assert grown["sharded", 2] == pytest.approx(grown[one], rel=0.02)
    assert psnr["sharded", 2] == pytest.approx(psnr[one], abs=0.1)


def killed_in_step_5(comm: Communicator, run: RunSpec, scene: Path, out: Path) -> None:
    trainer = make_trainer(comm, run, scene, out)
    one_step = trainer.one_step

    def dying(step: int) -> None:
        if comm.rank == 1 and step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        one_step(step)

    with mock.patch.object(trainer, "one_step", dying):
        trainer.run()


@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "replicated"},
        {"kind": "replicated", "gradient_rows": "touched"},
        {"kind": "sharded"},
        {"kind": "sharded", "split": "pixels"},
        {"kind": "hybrid", "shard": 1},
        {"kind": "hybrid", "shard": 2},
        {"kind": "local", "sync_every": 4},
        {"kind": "blocks", "coarse_share": 0.5},
        {"kind": "blocks", "coarse_share": 0.1, "view_threshold": 0.01},
    ],
    ids=["replicated", "touched", "sharded", "pixels", "hybrid-1", "hybrid-2", "local", "coarse", "blocks"],
)
def test_a_rank_ends_by_itself_when_another_is_killed(strategy, tiny_scene, tmp_path):
    """Before the process group's timeout of a minute; the launcher does the rest (test_launch_survival.py)."""
    run = tiny.spec("n1g2", strategy=strategy, steps=40, keep="steps", global_batch=2)
    assert left_by_a_killed_rank(killed_in_step_5, run, tiny_scene, tmp_path) == 1


def test_shards_are_evened_out_after_densification(tiny_scene, tmp_path):
    run = tiny.spec(
        "n1g3", strategy={"kind": "sharded", "rebalance_above": 1.0}, steps=180, eval_every=1000, checkpoint_every=1000,
        densify={"start_step": 15, "every": 15, "stop_step": 150, "max_gaussians": 600},
    )  # fmt: skip
    ranks = run_ranks(3, train, run, tiny_scene, tmp_path)
    changed = events_of(tmp_path, "densify")
    assert len(changed) >= 3
    assert all(max(e["shards"]) - min(e["shards"]) <= 1 for e in changed)
    assert bytes_sent(ranks, "densify", "all_to_all(rebalance)") > 0, "nothing ever moved"


@pytest.mark.parametrize("compression", ["none", "bf16", "powersgd"])
def test_bytes_of_replicas_are_those_of_the_formula(compression, tiny_scene, tmp_path):
    """2 (p-1)/p x 236 N for whole gradients; half of it as bfloat16."""
    p, steps = 2, 40
    run = tiny.spec(
        "n1g2", strategy={"compression": compression}, steps=steps * p, sh_every=1, densify={"kind": "none"},
        eval_every=1000, checkpoint_every=1000,
    )  # fmt: skip
    ranks = run_ranks(p, train, run, tiny_scene, tmp_path)
    n = 200
    assert len({r["digest"] for r in ranks}) == 1, "compressed or not, replicas stay equal"
    # SH degree 0, 1 and 2 come first, two images each.
    floats = [14, *(14 + 3 * ((d + 1) ** 2 - 1) for d in (1, 2)), *[59] * (steps - 3)]
    if compression == "powersgd":
        floats = [14, 14 + 2 + 2 * 9 / n] + [14 + 2 + 2 * 24 / n] + [14 + 2 + 2 * 45 / n] * (steps - 3)
    want = sum(2 * (p - 1) / p * f * n * (2 if compression == "bf16" else 4) for f in floats)
    for r in ranks:
        assert bytes_sent([r], "step") == pytest.approx(want, rel=0.05)


def test_bytes_of_shards_are_those_of_the_formula(tiny_scene, tmp_path):
    """(p-1)/p x what is visible x (48 forward + 40 backward), summed over ranks and cameras."""
    p, steps = 2, 30
    run = tiny.spec(
        "n1g2", strategy={"kind": "sharded"}, steps=steps * p, densify={"kind": "none"}, eval_every=1000,
        checkpoint_every=1000,
    )  # fmt: skip
    ranks = run_ranks(p, train, run, tiny_scene, tmp_path)
    n, visible = 200, 1.0  # the ring's cameras see the whole cloud, but for blobs at its rim
    travelling = visible * n * (p - 1) / p  # rows per camera
    assert bytes_sent(ranks, "step") == pytest.approx(steps * p * travelling * (48 + 40), rel=0.05)
    assert bytes_sent(ranks, "evaluate") == pytest.approx(3 * travelling * 48, rel=0.05), (
        "three held-out views"
    )


def test_what_travels_outside_steps_is_no_part_of_them(tiny_scene, tmp_path):
    """Shards that meet their limit: candidates are gathered to densify, projections travel to evaluate."""
    run = tiny.spec(
        "n1g2", strategy={"kind": "sharded", "rebalance_above": 1.0}, steps=80,
        densify={"start_step": 10, "every": 10, "stop_step": 60, "max_gaussians": 250},
    )  # fmt: skip
    ranks = run_ranks(2, train, run, tiny_scene, tmp_path)
    for rank in ranks:
        booked = {(c["phase"], c["op"]) for c in rank["comm"]}
        assert {op for phase, op in booked if phase == "step"} == {
            "all_gather(counts)", "all_to_all(projections)", "all_to_all(projection gradients)",
        }  # fmt: skip
        assert {
            ("densify", "all_gather(candidates)"), ("densify", "all_gather(shards)"),
            ("evaluate", "all_to_all(projections)"), ("between steps", "all_reduce(stop)"),
            ("between steps", "all_reduce(loss)"), ("checkpoint", "all_to_all(gather)"),
            ("init", "all_to_all(distribute)"), ("export", "all_to_all(gather)"),
        } <= booked  # fmt: skip
        assert sum(c["s"] for c in rank["comm"] if c["phase"] == "step") <= rank["train_s"]
