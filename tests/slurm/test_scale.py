"""A study of many points: throttled, none lost, none doubled. The full size is `python scripts/slurm/scale.py`."""

import re

import pytest
from scale import run


@pytest.mark.slurm
@pytest.mark.slow
def test_points_are_throttled_and_neither_lost_nor_doubled(plain_cluster, tmp_path):
    """On the cluster without accounts and sacct, whose states come from squeue alone."""
    folder = tmp_path / "many points"
    folder.mkdir()
    result = run(plain_cluster, folder, points=8, jobs=4)
    assert (result.records, result.lost, result.doubled) == (8, 0, 0)
    assert len(result.jobs_per_point) == 8
    assert re.search(r"\b[1-4] (queued|running)", result.status) and " waiting" in result.status
    assert 0 < result.most_queued <= 4
    assert result.log.index("localrule record:") < result.log.rindex("has been submitted"), (
        "records wait for the rest"
    )
