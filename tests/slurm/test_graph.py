"""What the graph of a big study is made of. Its cost in seconds is `python scripts/slurm/graph.py`."""

import os
import re

import pytest
from cluster import Cluster
from graph import dry_run, of_study
from study import Study


@pytest.mark.slow
def test_ten_thousand_points_would_take_less_than_half_a_gigabyte(tmp_path):
    """The growth of the peak from 40 points to 840 tells that of 10,000, a minute of CPU."""
    for name in ("few", "many"):
        (tmp_path / name).mkdir()
    few, many = of_study(tmp_path / "few", 40), of_study(tmp_path / "many", 840)
    assert (few.jobs, many.jobs) == (81, 1681)
    per_point_mb = (many.peak_mb - few.peak_mb) / 800
    assert few.peak_mb + (10_000 - 40) * per_point_mb < 500
    # A record's inputs: its evidence, and one file that stands for all the code that judges.
    inputs = re.findall(r"rule record:\n    input: (.*)", (tmp_path / "few/dry-run.txt").read_text())
    assert len(inputs) == 40 and all(line.count(",") == 1 for line in inputs)


@pytest.mark.slow
def test_a_newer_judge_makes_records_again_and_trains_nothing(tmp_path):
    """Records older than the newest file of the judging code; then records newer than all of it."""
    study = Study(tmp_path, Cluster("none"), layouts=["n1g1"])
    for path in tmp_path.glob("data/tiny/*"):
        os.utime(path, (1000, 1000))
    for name in ("launch.json", "record.json"):
        path = study.point("n1g1") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (2000, 2000))

    def planned() -> set[str]:
        dry_run(tmp_path, "--profile", "profiles/slurm")
        return set(
            re.findall(r"^(?:local)?rule (\w+):", (tmp_path / "dry-run.txt").read_text(), re.MULTILINE)
        )

    assert planned() == {"record", "train_all"}
    (study.point("n1g1") / "record.json").write_text("{}")
    assert planned() == set()
