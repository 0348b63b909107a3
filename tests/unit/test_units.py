"""One parser of sizes, durations and host lists: what Slurm, PyTorch and trainers print, and what is malformed."""

import math
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.units import (
    GIB,
    MIB,
    expand_hosts,
    format_bytes,
    format_duration,
    parse_bytes,
    parse_duration_s,
    parse_time_stamp,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10:30", 630),
        ("1:02:03", 3723),
        ("2-0", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
        ("00:12.345", 12.345),
        ("2 days, 0:00:01", 172801),
        ("1 day, 1:02:03", 90123),
        ("41", 41),
        ("4 m, 9 s", 249),
        ("81.297 ms", 0.081297),
        ("1 d, 19 h, 58 m, 12 s", 158292),
        ("22 s, 645.554 ms", 22.645554),
        ("3 minutes", 180),
        ("1h2m3s", 3723),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
        ("N/A", math.inf),
        ("", math.inf),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


def test_a_number_alone_counts_minutes_where_slurm_means_them() -> None:
    assert parse_duration_s("10", bare_s=60) == 600
    assert parse_duration_s("10:30", bare_s=60) == 630


@pytest.mark.parametrize(
    "text", ["soon", "1:2:3:4", "-5", "1 x", ":", "1::2", "1.2.3 s", "1-1.5:3", "5 monkeys", "9" * 5000]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("12000", 12000),
        ("12G", 12288),
        ("1.5T", 1572864),
        ("64000+", 64000),
        ("4Gn", 4096),
        ("2.00 MiB", 2),
        ("3.5 GB", 3584),
        ("1024 bytes", 2**-10),
        ("512K", 0.5),
        ("UNLIMITED", math.inf),
    ],
)
def test_sizes(text: str, mib: float) -> None:
    assert parse_bytes(text, bare=MIB) / MIB == mib


def test_a_number_alone_is_bytes() -> None:
    assert parse_bytes("4096") == 4096


@pytest.mark.parametrize("text", ["G", "1.2.3", "-4G", "1e3", "1,024", "12 parsecs", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(text)


def test_time_stamps_are_local() -> None:
    at = parse_time_stamp("2025-03-01T12:00:09")
    assert at is not None and time.localtime(at)[:6] == (2025, 3, 1, 12, 0, 9)
    assert parse_time_stamp("Unknown") is None and parse_time_stamp("2025-02-31T00:00:00") is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("gpu01", ["gpu01"]),
        ("gpu[01-03,7],cpu1", ["gpu01", "gpu02", "gpu03", "gpu7", "cpu1"]),
        ("a b,c", ["a", "b", "c"]),
        ("a[1-2]-ib", ["a1-ib", "a2-ib"]),
        ("n[8-10]", ["n8", "n9", "n10"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("rack[1-2]n[1-4]", [f"rack{i}n{j}" for i in (1, 2) for j in (1, 2, 3, 4)]),
        # No host lists: each part stands for itself.
        ("[rank0]:", ["[rank0]:"]),
        ("gpu[a-c]", ["gpu[a-c]"]),
        ("n[3-1]", ["n[3-1]"]),
        ("n[1,]", ["n[1,]"]),
        ("n[1-3", ["n[1-3"]),
        ("n]1[", ["n]1["]),
        ("n[1-[2-3]]", ["n[1-[2-3]]"]),
    ],
)
def test_host_lists(text: str, names: list[str]) -> None:
    assert expand_hosts(text) == names


@pytest.mark.parametrize(
    "text", ["n[0-999999999]", "a[0-99999]b[0-99999]c[0-99999]", "n[1-2]" * 40, "x," * 9999]
)
def test_no_host_list_grows_without_bound(text: str) -> None:
    assert len(expand_hosts(text, 4096)) <= 4096


@given(st.floats(60, 1e7))
def test_a_formatted_duration_reads_back_within_its_last_unit(seconds: float) -> None:
    text = format_duration(seconds)
    last_s = {"min": 60, "h": 3600, "d": 86400}[text.split()[-1]]
    assert abs(parse_duration_s(text) - seconds) <= last_s


@pytest.mark.parametrize(
    ("s", "text"), [(20, "20 s"), (600, "10 min"), (15000, "4 h 10 min"), (201600, "2 d 8 h")]
)
def test_durations_for_people(s: float, text: str) -> None:
    assert format_duration(s) == text


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_slurms_clock_reads_back(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}-{hours:02}:{minutes:02}:{seconds:02}"
    assert parse_duration_s(text, bare_s=60) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@given(st.floats(0.1 * GIB, 1e6 * GIB))
def test_a_formatted_size_reads_back_within_its_last_digit(num_bytes: float) -> None:
    assert abs(parse_bytes(format_bytes(num_bytes)) - num_bytes) <= 0.051 * GIB


HEADS = st.text("abcxyz-", min_size=1, max_size=5)
RANGES = st.tuples(st.integers(0, 300), st.integers(0, 9), st.integers(1, 4))


@given(st.lists(st.lists(st.tuples(HEADS, RANGES), min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_compressed_host_list_expands_to_its_names(parts: list) -> None:
    text, names = [], []
    for part in parts:
        text.append(
            "".join(f"{head}[{low:0{width}}-{low + more:0{width}}]" for head, (low, more, width) in part)
        )
        pools = [
            [f"{head}{n:0{width}}" for n in range(low, low + more + 1)] for head, (low, more, width) in part
        ]
        names += ["".join(one) for one in product(*pools)]
    assert expand_hosts(",".join(text)) == names


@given(st.text("n0123456789[]-, :.µs²dGB", max_size=40))
def test_any_text_has_a_defined_result(text: str) -> None:
    for parse in (parse_bytes, parse_duration_s):
        try:
            assert parse(text) >= 0
        except ValueError as e:
            assert "not a" in str(e)
    assert len(expand_hosts(text, 100)) <= 100
