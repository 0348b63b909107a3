"""Follow a study on the real Slurm on the terminal: six points, one that fails, some that run out of memory."""

import re
import subprocess
import sys

import pytest
import yaml
from study import Study

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
#: Six points: the memory is enough for one rank, and for more after a failure.
OVERLAY = {
    "strategies": ["replicated", "sharded", "diverging"],
    "exclude": [
        {"strategy": "diverging", "layout": "n1g2", "reason": "one failure is enough"},
        {"strategy": "diverging", "layout": "n1g3", "reason": "one failure is enough"},
        {"strategy": "sharded", "layout": "n1g1", "reason": "nothing to shard"},
    ],
    "strategy_library": {"diverging": {"train": {"lr": {"means": 1e30, "scales": 1e30}}}},
}
POINTS = [
    *("replicated/n1g1", "replicated/n1g2", "replicated/n1g3"),
    *("sharded/n1g2", "sharded/n1g3", "diverging/n1g1"),
]


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("terminal") / "a study"
    folder.mkdir()
    tight = {"gpu_request": "none", "mem_gib_per_gpu": 0.05, "cpus_per_gpu": 8}
    study = Study(folder, cluster, layouts=["n1g1", "n1g2", "n1g3"], site=tight, train={"steps": 240})
    (folder / "six.yaml").write_text(yaml.safe_dump(OVERLAY))
    study.run("--configfile", "six.yaml", "--", "train_all", timeout=900)
    return study


def lines_of(study: Study, point: str) -> list[str]:
    return [line for line in study.terminal().splitlines() if f"tiny/{point}/r0: " in line]


@pytest.mark.parametrize("point", POINTS)
def test_every_point_is_followed_from_the_queue_to_its_end(study, point):
    lines = lines_of(study, point)
    assert re.search(r": (queued, Slurm job \d+|starting)", lines[0])
    verdict = "failed, diverged" if point.startswith("diverging") else "ok, PSNR"
    assert any(f"r0: {verdict}" in line and "/6 done: " in line for line in lines)


def test_a_queued_point_shows_slurms_reason(study):
    assert re.search(r"queued, Slurm job \d+, (Resources|Priority)", study.terminal())


def test_a_running_point_shows_its_step(study):
    assert re.search(r"running, (attempt \d+, )?step \d+/\d+", study.terminal())


def test_out_of_memory_is_submitted_again_in_words(study):
    again = re.search(r"tiny/\S+n1g3/r0: out of memory.*, again with (\d+) MB", study.terminal())
    assert again, study.terminal()
    assert "Error in rule" not in study.terminal() and "Error in rule train" in study.log()


def test_the_end_counts_the_points_and_names_the_next_command(study):
    end = study.terminal()[study.terminal().rindex("6 points: ") :]
    assert end.startswith("6 points: 5 ok, 1 failed")
    assert "tiny/diverging/n1g1/r0: failed, diverged" in end
    command = re.search(r"why, and what to change: dist3dgs (.+)", end)
    assert command and len(end.strip().splitlines()) <= 4
    record = study.folder / command.group(1).removeprefix("diagnose ")
    done = subprocess.run(
        [sys.executable, "-m", "dist3dgs.cli", "diagnose", str(record)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "diverged" in done.stdout


def test_nothing_of_snakemakes_own_lines_is_on_the_terminal(study):
    text = study.terminal()
    assert not re.search(r"slurm_partition|mem_mb=|\"train\"|steps \(\d+%\) done|Select jobs", text)
    assert "full log: .snakemake/log/" in text and "slurm_partition" in study.log()
