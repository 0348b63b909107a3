"""The rates follow from the published points, the page is what the command writes, and the goals are judged by it."""

import pytest
import yaml

from dist3dgs.config.load import load_yaml
from dist3dgs.predict.model import FITTED, predictor
from dist3dgs.predict.validation import (
    PAGE,
    PUBLISHED,
    errors_of,
    fitted_text,
    mean_gaussians,
    page_text,
    points,
    validate_published,
)


@pytest.fixture(scope="module")
def validation(repository):
    return validate_published(repository / "config", repository)


def test_the_files_are_those_that_the_command_writes(validation, repository):
    """To the digits that they show: solvers differ in the last ones between machines."""
    written, made = load_yaml(FITTED), yaml.safe_load(fitted_text(validation))
    for name, rates in made["rates"].items():
        assert written["rates"][name] == pytest.approx(rates, rel=2e-3, abs=1e-9)
    assert written["errors"] == pytest.approx(made["errors"], abs=2e-3)
    page = (repository / PAGE).read_text()
    assert page.splitlines()[:8] == page_text(validation).splitlines()[:8]
    assert len(page.splitlines()) == len(page_text(validation).splitlines())


def test_most_points_are_held_out_and_the_median_goal_is_reached(validation):
    held = validation.held_out()
    assert len(held) > sum(c.fitted for c in validation.times)
    median, most, _ = errors_of(held)
    assert median <= 0.10 and most <= 0.20
    assert sum(abs(c.error) > 0.2 for c in held) <= 2
    memory = [c for c in validation.memories if not c.fitted]
    assert errors_of(memory)[0] <= 0.05 and errors_of(memory)[2] <= 0.15


def test_all_reduces_on_one_and_several_nodes_follow_the_formulae(validation):
    held = [c for c in validation.collectives if not c.fitted]
    assert errors_of(held)[0] <= 0.15
    nodes = [c for c in held if c.ranks == 32]
    assert len(nodes) == 6 and errors_of(nodes)[2] <= 0.25


def test_two_and_four_ranks_are_predicted_from_one(validation):
    own = {c.name: c for c in validation.own}
    assert not own["demo, replicated, 2 ranks"].fitted and abs(own["demo, replicated, 2 ranks"].error) < 0.1
    assert {c.ranks for c in validation.own} == {1, 2, 4} and errors_of(validation.own)[2] < 0.2
    assert len(validation.speedups) == 10 and errors_of(validation.speedups)[2] < 0.15


def test_published_rows_name_their_source(repository):
    published = load_yaml(PUBLISHED)
    rows = [*published["tables"], *published["means"], *published["memory_means"], *published["all_reduce"]]
    assert {row["source"] for row in rows} <= set(published["sources"])
    assert all(s["where"] for s in published["sources"].values())


def test_points_are_read_with_their_units(repository):
    found = {(p.name, p.scene): p for p in points(load_yaml(PUBLISHED), repository / "config")}
    garden = found["Grendel 4 GPUs batch 4", "garden"]
    assert garden.step_s == pytest.approx(6.48 * 60 / 7500)
    assert garden.machine.link_gb_s.value == 25 and garden.layout.world_size == 4
    assert found["gsplat 8 GPUs, garden", "garden"].step_s == pytest.approx(9.8e-3)


def test_the_mean_number_of_gaussians_is_between_the_early_and_the_final_one():
    assert mean_gaussians(4.0, 4.0, 30_000) == pytest.approx(4 * (30 - 3.5) / 30)
    assert 3.0 < mean_gaussians(3.62, 6.26, 30_000) < 6.26
    assert mean_gaussians(3.62, 6.26, 7000) == pytest.approx(1.81)


def test_shipped_rates_are_used(repository):
    from dist3dgs.predict.machine import load_machine

    gpu = predictor(load_machine("a100-40-nvlink", repository / "config"))
    cpu = predictor(load_machine("cpu", repository / "config"))
    assert gpu.rates.exchange_s > 0 and cpu.rates.pixel_flop < gpu.rates.pixel_flop
