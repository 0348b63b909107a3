"""Reading Slurm's output: no Slurm needed."""

import pytest

from dist3dgs.slurm.client import blocks, parse_gpus, rows


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:4(S:0-1),nvme:1", {"h100": 4}),
        ("gpu:2", {"": 2}),
        ("gpu", {"": 1}),
        ("gres:gpu:4", {"": 4}),
        ("gres/gpu:a100=8", {"a100": 8}),
        ("gres/gpu:4", {"": 4}),
        ("gpu:h100:4(IDX:0,2-3)", {"h100": 4}),
        ("gpu:a100:2,gpu:l40s:4", {"a100": 2, "l40s": 4}),
        ("(null)", {}),
        ("craynetwork:1", {}),
    ],
)
def test_gpus(gres, gpus):
    assert parse_gpus(gres) == gpus


def test_values_with_spaces_stay_whole():
    (block,) = blocks(
        "JobId=7 JobName=a b Reason=Nodes required (DOWN, DRAINED) StdOut=/tmp/a study/7.log N=(null)"
    )
    assert block["JobName"] == "a b" and block["StdOut"] == "/tmp/a study/7.log"
    assert block["Reason"] == "Nodes required (DOWN, DRAINED)"


def test_the_last_field_keeps_its_separators():
    assert rows("1|RUNNING|a|b\n\nshort\n", 3) == [["1", "RUNNING", "a|b"]]
