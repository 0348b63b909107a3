"""Size of the graph of a big study. Its cost in seconds is `python scripts/slurm/graph.py`."""

import re

import pytest
from graph import of_study


@pytest.mark.slow
def test_ten_thousand_points_would_take_less_than_half_a_gigabyte(tmp_path):
    """The growth of the peak from 40 points to 840 tells that of 10,000, a minute of CPU."""
    for name in ("few", "many"):
        (tmp_path / name).mkdir()
    few, many = of_study(tmp_path / "few", 40), of_study(tmp_path / "many", 840)
    assert (few.jobs, many.jobs) == (81, 1681)
    per_point_mb = (many.peak_mb - few.peak_mb) / 800
    assert few.peak_mb + (10_000 - 40) * per_point_mb < 500
    # A record has one input, its evidence: each more is an object for each of ten thousand jobs.
    inputs = re.findall(r"rule record:\n    input: (.*)", (tmp_path / "few/dry-run.txt").read_text())
    assert len(inputs) == 40 and not any("," in line for line in inputs)
