"""Learning-rate and Adam rules from 1 to 1,024 ranks, and the translation of counts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.config.models import Hardware, LearningRates, RunSpec, Strategy, TrainSettings
from dist3dgs.config.naming import Layout
from dist3dgs.train.rng import background
from dist3dgs.train.schedules import ADAM_BETAS, ADAM_EPS, AdamRule, Schedule, learning_rates

layouts = st.tuples(st.integers(1, 128), st.integers(1, 8)).map(lambda ng: f"n{ng[0]}g{ng[1]}")


def run(layout: str = "n1g1", **train) -> RunSpec:
    return RunSpec(
        scene="s", strategy="s", layout=layout, repeat=0, seed=0, parallel=Strategy(), train=TrainSettings(**train),
        hardware=Hardware(),
    )  # fmt: skip


@given(st.integers(1, 1024), st.integers(1, 16))
def test_betas_stay_real_and_rates_bounded(ranks, per_rank):
    rule = AdamRule(ranks * per_rank)
    for beta, single in zip(rule.betas, ADAM_BETAS, strict=True):
        assert isinstance(beta, float) and 0 <= beta <= single < 1
    assert 0 < rule.eps <= ADAM_EPS
    torch.optim.Adam(
        [torch.zeros(1, requires_grad=True)], betas=rule.betas, eps=rule.eps
    )  # it refuses what is not
    single = learning_rates(LearningRates(), 3.0, AdamRule(1), 0.3)
    many = learning_rates(LearningRates(), 3.0, rule, 0.3)
    for name in single:
        assert 0 < many[name] <= single[name] * math.sqrt(ranks * per_rank) * (1 + 1e-12)


def test_a_batch_of_one_is_the_papers_setting():
    rule = AdamRule(1)
    assert (rule.lr_factor, rule.betas, rule.eps) == (1.0, ADAM_BETAS, ADAM_EPS)
    start, end = (learning_rates(LearningRates(), 2.0, rule, p)["means"] for p in (0.0, 1.0))
    assert start == pytest.approx(1.6e-4 * 2) and end == pytest.approx(1.6e-6 * 2)


@given(layouts, st.integers(1, 4), st.integers(1, 30_000), st.sampled_from(["images", "steps"]))
def test_counts_are_kept_in_images_or_in_steps(layout, per_rank, steps, keep):
    spec = run(layout, steps=steps, batch_per_rank=per_rank, keep=keep)
    s, batch = Schedule(spec), Layout.parse(layout).world_size * per_rank
    assert spec.global_batch == batch
    assert s.num_steps == (-(-steps // batch) if keep == "images" else steps)
    assert all(s.sh_degree(k) in range(4) for k in (1, max(1, s.num_steps // 2), s.num_steps))
    assert not s.densifies(s.num_steps), "Gaussians that are never trained"


def test_everything_happens_after_the_same_number_of_images():
    settings = {
        "steps": 6000, "sh_every": 1000,
        "densify": {"start_step": 400, "every": 200, "stop_step": 4000, "reset_every": 2000},
    }  # fmt: skip
    one, four = Schedule(run("n1g1", **settings)), Schedule(run("n1g4", **settings))
    for what in ("densifies", "resets_opacity"):
        at_one = [k for k in range(1, 6001) if getattr(one, what)(k)]
        at_four = [4 * k for k in range(1, 1501) if getattr(four, what)(k)]
        assert at_one and at_one == at_four
    assert [one.sh_degree(k) for k in (1, 1000, 1001, 3001)] == [0, 0, 1, 3]
    assert [four.sh_degree(k) for k in (1, 250, 251, 751)] == [0, 0, 1, 3]


def test_the_global_batch_is_a_setting_of_its_own():
    assert run("n1g4", global_batch=8).global_batch == 8
    with pytest.raises(ValueError, match=r"multiple.*4 ranks"):
        run("n1g4", global_batch=6)


def test_a_random_background_is_copied_to_the_device_without_waiting(monkeypatch):
    spec = run(background="random")
    here = background(spec, 3, torch.device("cpu"))
    assert not torch.equal(here, background(spec, 4, torch.device("cpu")))
    pinned, copied = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, device, **options: copied.append(options) or t)
    assert torch.equal(background(spec, 3, torch.device("cuda")), here)
    assert len(pinned) == 1 and copied == [{"non_blocking": True}]
