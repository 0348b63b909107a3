"""Reading Slurm's output: no Slurm needed."""

import math

import pytest

from dist3dgs.slurm.commands import (
    blocks,
    expand_hosts,
    format_time,
    parse_gpus,
    parse_mem_mb,
    parse_time_s,
    rows,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 600),
        ("10:30", 630),
        ("1:02:03", 3723),
        ("2-0", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
    ],
)
def test_times(text, seconds):
    assert parse_time_s(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "-5", "1d"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="not a Slurm time"):
        parse_time_s(text)


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


@pytest.mark.parametrize(
    ("text", "mb"), [("12000", 12000), ("12G", 12288), ("1.5T", 1572864), ("64000+", 64000)]
)
def test_memory(text, mb):
    assert parse_mem_mb(text) == mb


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu01", ["gpu01"]),
        ("gpu[01-03,7],cpu1", ["gpu01", "gpu02", "gpu03", "gpu7", "cpu1"]),
        ("rack[1-2]n[08-10]", ["rack1n08", "rack1n09", "rack1n10", "rack2n08", "rack2n09", "rack2n10"]),
        ("a[1-2]-ib", ["a1-ib", "a2-ib"]),
        ("", []),
    ],
)
def test_host_lists(text, names):
    assert expand_hosts(text) == names


def test_values_with_spaces_stay_whole():
    (block,) = blocks(
        "JobId=7 JobName=a b Reason=Nodes required (DOWN, DRAINED) StdOut=/tmp/a study/7.log N=(null)"
    )
    assert block["JobName"] == "a b" and block["StdOut"] == "/tmp/a study/7.log"
    assert block["Reason"] == "Nodes required (DOWN, DRAINED)"


def test_the_last_field_keeps_its_separators():
    assert rows("1|RUNNING|a|b\n\nshort\n", 3) == [["1", "RUNNING", "a|b"]]


@pytest.mark.parametrize(
    ("s", "text"), [(20, "20 s"), (600, "10 min"), (15000, "4 h 10 min"), (201600, "2 d 8 h")]
)
def test_times_for_people(s, text):
    assert format_time(s) == text
