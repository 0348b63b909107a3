"""Four workers allocated, one used: refused by nobody only where the strategy asks for it, and never called ok."""

from pathlib import Path

import pytest

from dist3dgs.analysis import rank_hours
from dist3dgs.launch.world_check import check_world
from dist3dgs.slurm.allocation import Allocation, Node
from tests.unit.helpers import tiny


def test_gpus_that_are_paid_for_and_not_seen_are_no_reason_to_train_on_the_cpu(monkeypatch):
    monkeypatch.setattr("dist3dgs.launch.world_check.visible_gpus", lambda: [])
    given = Allocation(job_id=7, nodes=(Node(name="a", address="127.0.0.1"),), gpus_per_node=4)
    auto, cpu = tiny.spec("n1g4"), tiny.spec("n1g4")
    auto = auto.model_copy(update={"hardware": auto.hardware.model_copy(update={"device": "auto"})})
    message = check_world(auto, given).message
    assert "has 4 GPU(s) per node and none is visible" in message and "nvidia-smi" in message
    assert check_world(cpu, given).message == ""
    assert check_world(auto, None).message == ""


def test_the_guard_says_which_workers_idle() -> None:
    assert check_world(tiny.spec("n1g4"), None).warning == ""
    world = check_world(tiny.spec("n1g4", strategy={"ranks": "one"}), None)
    assert world.message == "" and "4 workers are allocated" in world.warning
    assert world.layers["ranks started"] == 1


def test_the_one_rank_does_what_a_single_worker_would() -> None:
    one, unused = tiny.spec("n1g1"), tiny.spec("n1g4", strategy={"ranks": "one"})
    assert (unused.global_batch, unused.num_steps) == (one.global_batch, one.num_steps)


@pytest.mark.slow
def test_a_run_on_one_of_four_workers_finishes_degraded_and_costs_all_four(tmp_path: Path) -> None:
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    record = tiny.launch(tiny.spec("n1g4", strategy={"ranks": "one"}), scene, tmp_path / "out")
    assert record.status == "degraded" and record.failure is not None
    assert record.failure.cause == "allocation_mismatch"
    first = record.failure.evidence[0]
    written = (tmp_path / "out" / first.file).read_text().splitlines()
    assert first.line is not None and written[first.line - 1] == first.text
    assert len(record.metrics.ranks) == 1 and record.metrics.images == 60
    assert record.metrics.total_s is not None
    assert rank_hours(record) == pytest.approx(4 * record.metrics.total_s / 3600)
