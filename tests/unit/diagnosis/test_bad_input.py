"""No file, however broken, may crash, hang or speak to the terminal."""

# ruff: noqa: E501 (lines of logs are as long as they are)

import cProfile
import io
import json
import os
import tracemalloc
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dist3dgs.bench.readers import KINDS, write_log
from dist3dgs.cli.logs import run_diagnose, run_import, run_read
from dist3dgs.diagnosis import diagnose
from dist3dgs.diagnosis.scan import scan
from dist3dgs.diagnosis.summary import read_logs
from dist3dgs.errors import UserError
from dist3dgs.logs.lines import read_blocks
from tests.unit.helpers.bounded import ends_within

FOLDER = Path(__file__).parents[2] / "data" / "logs"
WHOLE = [p.read_bytes() for p in sorted(FOLDER.glob("*/*.log"))]
HEADS = [
    b'{"t": 1.0, "rank": 0, "event": "start", "world_size": 2}\n',
    b'{"t": 1.0, "rank": 0, "event": "step", "step": 1000000}\n',
    b"timestamp, index, utilization.gpu [%], memory.used [MiB]\n",
    b"# Elapsed time   CPU (%)     Real (MB)   Virtual (MB)\n",
    b"JobID|JobName|State|ExitCode|Elapsed|MaxRSS|NodeList|AllocTRES\n",
    b"epoch,epoch_time,train_loss,val_acc\n",
    b'{"rank": 0, "comm_lib_version": "", "pg_config": {"0": {"ranks": "[0, 1]"}}, "entries": [',
    b"\x80\x02}(X\x07\0\0\0versionX\x03\0\0\x002.1X\x09\0\0\0pg_config}X\x07\0\0\0entries]",
    b"t,node,cpu_percent,rss_gib,pss_gib,page_cache_gib,gpu_index,gpu_mem_gib,gpu_util_percent,gpu_power_w\n",
    b"",
]
BITS = st.sampled_from(
    [b"\x1b[2J", b"\x1b]0;x\x07", b"\r", b"\0", b"\xff\xfe", b"<script>alert(1)</script>", b"$(reboot)", b"1e999", b"nan", b"-1",
     b"999999999999999999999", b'"', b",", b"|", b"\n", b"{", b"[" * 200, b"step 1000000 loss 0.1\n", b"Epoch [1000000/1000000] ",
     b"50%|##| 1000000/1000000 [00:01<00:00, 9.9it/s]", b"Traceback (most recent call last):\n", b"SLURM_NODELIST=n[0-99999999999]\n"]
)  # fmt: skip
#: Calls of functions per line, about twice what was counted. Matching and parsing take one call and more each.
CALLS = {"nerfstudio console": 6, "nvidia-smi": 10, "our own events": 12, "metrics.csv": 24}


def check(path: Path) -> None:
    try:
        with ends_within(cpu_s=20):
            verdict = diagnose([path])
            summary = read_logs([path])
    except UserError as e:
        assert str(path) in str(e)
        return
    json.loads(verdict.model_dump_json())
    json.loads(summary.model_dump_json())
    text = io.StringIO()
    with redirect_stdout(text):
        run_read([path], False)
        run_diagnose([path], False)
        with suppress(UserError):  # an empty log is no record
            run_import([path], scene="x", layout="n1g2", results=path.parent / "results", force=True)
    assert path.name in text.getvalue()
    shown = (
        [e.text for e in verdict.evidence]
        + [verdict.node or ""]
        + summary.nodes
        + text.getvalue().split("\n")
    )
    # A tab stays: it moves no cursor.
    assert not any((ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160 for s in shown for c in s)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(HEADS),
    parts=st.lists(
        st.one_of(st.binary(max_size=60), BITS, st.text(max_size=40).map(str.encode)), max_size=25
    ),
)
def test_any_bytes(tmp_path: Path, head: bytes, parts: list[bytes]) -> None:
    path = tmp_path / "fuzz.log"
    path.write_bytes(head + b"".join(parts))
    check(path)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_real_logs_cut_and_spoiled(tmp_path: Path, data: st.DataObject) -> None:
    log = data.draw(st.sampled_from(WHOLE))
    start = data.draw(st.integers(0, len(log)))
    end = data.draw(st.integers(start, len(log)))
    at = data.draw(st.integers(start, end))
    path = tmp_path / "cut.log"
    path.write_bytes(log[start:at] + data.draw(BITS) + log[at:end])
    check(path)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(event={"host": "\x1b]0;x\x07\x1f", "device": "\x9b", "versions": {"\x07": "\x1f"}}, kind="start")
@given(event=st.dictionaries(st.sampled_from(["t", "rank", "step", "loss", "phase", "s", "step_s", "phases_s", "message", "type", "status", "host", "versions", "world_size", "traceback", "psnr"]),
                             st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3), max_leaves=5)),
       kind=st.sampled_from(["start", "enter", "leave", "step", "densify", "eval", "comm", "timing", "memory", "error", "signal", "end"]))  # fmt: skip
def test_any_event(tmp_path: Path, event: dict, kind: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"t": 1, "rank": 0, "event": "start"}\n' + json.dumps({**event, "event": kind}) + "\n")
    check(path)


def test_empty_binary_folder_missing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.out"
    empty.write_bytes(b"")
    verdict = diagnose([empty])
    assert (verdict.status, verdict.cause) == ("unknown", "unknown")
    binary = tmp_path / "model.pt"
    binary.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 50)
    with pytest.raises(UserError, match=r"model\.pt: not a text file"):
        diagnose([binary])
    with pytest.raises(UserError, match="is a folder"):
        diagnose([tmp_path])
    with pytest.raises(UserError, match="no such file"):
        diagnose([tmp_path / "nothing.log"])
    with pytest.raises(UserError, match="no log given"):
        diagnose([])
    assert run_diagnose([empty, binary], False) == 3


def test_ten_megabyte_lines(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_bytes(
        b"x" * 10_000_000
        + b"\n"
        + b"RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB\n"
        + b"y" * 10_000_000
    )
    with ends_within(cpu_s=60):
        verdict = diagnose([path])
    assert verdict.cause == "gpu_oom" and verdict.evidence[0].line == 2


@pytest.mark.slow
def test_a_million_steps_and_a_hole_of_nuls(tmp_path: Path) -> None:
    path = tmp_path / "steps.log"
    with path.open("wb") as f:
        f.write(b"".join(b"step %d loss 0.1 lr 0.1\n" % i for i in range(0, 200_000)))
        f.write(b"\0" * 300_000 + b"step 1000000 loss 0.1 lr 0.1\n")
    with ends_within(cpu_s=60):
        summary = read_logs([path])
    assert summary.iterations == 1_000_000
    gpu = tmp_path / "gpu.csv"
    gpu.write_text(
        "index, memory.used [MiB]\n" + "".join(f"{i}, 100 MiB\n" for i in range(0, 2_000_000, 997))
    )
    assert len(read_logs([gpu]).gpus) <= 1024


def test_lines_that_all_differ_stay_in_bounds(tmp_path: Path) -> None:
    """A dump of random text is no reason to look closely at each of its lines."""
    import random

    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    path = tmp_path / "dump.log"
    path.write_text(
        "".join("".join(rng.choices(letters, k=30)) + " warn\n" for _ in range(6_000))
        + "RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB\n"
    )
    with ends_within(cpu_s=60):
        assert diagnose([path]).cause == "gpu_oom"


def test_terminal_gets_no_escape_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil\x1b[31m.log"
    path.write_bytes(
        b"\x1b[2J\x1b]52;c;ZXZpbA==\x07RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB\x1b[0m\n"
    )
    run_diagnose([path], False)
    assert "\x1b" not in capsys.readouterr().out


def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.log")
    with pytest.raises(UserError, match="not a regular file"):
        diagnose([tmp_path / "job.log"])


@pytest.mark.slow
def test_a_million_of_our_own_steps_take_seconds(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    row = '{"t": %d.0, "rank": %d, "event": "step", "step": %d, "loss": 0.1, "num_gaussians": %d, "step_s": 0.1}\n'
    with path.open("w") as f:
        for i in range(0, 1_000_000, 2):
            f.write(row % (i, 0, i, 100 + i) + row % (i, 1, i, 100 + i))
        f.write('{"t": 1e6, "rank": 0, "event": "end", "status": "ok", "step": 999998}\n')
    with ends_within(cpu_s=60):
        summary = read_logs([path])
    assert (summary.iterations, summary.num_gaussians, summary.quality["loss"]) == (999_998, 1_000_098, 0.1)


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_bytes(b"x" * 40_000_000 + b" the end\n")
    tracemalloc.start()
    try:
        *_, last = read_blocks(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last.data.endswith(b" the end") and peak < 10_000_000


@pytest.mark.slow
def test_what_rules_found_does_not_hold_the_file(tmp_path: Path) -> None:
    path = tmp_path / "many.log"
    with path.open("wb") as f:
        for i in range(30):
            f.write(b"step %d loss 0.1 and so on and on\n" % i * 30_000)
            f.write(b"RuntimeError: CUDA out of memory. Tried to allocate %c.00 GiB\n" % (97 + i))
    tracemalloc.start()
    try:
        found = scan([path])
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(found.hits) > 20 and kept < path.stat().st_size / 3


@pytest.mark.slow
def test_errors_that_all_differ_are_kept_by_the_first_and_the_last(tmp_path: Path) -> None:
    path = tmp_path / "errors.log"
    letters = "abcdefghij"
    lines = ["".join(letters[int(c)] for c in f"{i:05d}") for i in range(12_000)]
    path.write_text("".join(f"RuntimeError: CUDA out of memory. Tried to allocate {x} GiB\n" for x in lines))
    hits = [h for h in scan([path]).hits if h.rule.name == "gpu-oom"]
    assert len(hits) < 300 and hits[0].line.number == 1
    assert max(h.line.number or 0 for h in hits) == 12_000


@pytest.mark.parametrize(("kib", "cause"), [(8, "gpu_oom"), (40, None)])
def test_training_that_goes_on_for_long_survived(tmp_path: Path, kib: int, cause: str | None) -> None:
    """Less than a dying process may still have in its buffer proves nothing; more does."""
    row = "step {:6d}/900000 (1.0%) | loss: 0.1000 | dt: 20.00ms\n"
    rows = [row.format(i) for i in range(kib * 1024 // len(row.format(0)) + 200)]
    error = "RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB\n"
    path = tmp_path / "a.log"
    path.write_text("".join([*rows[:200], error, *rows[200:]]))
    verdict = diagnose([path])
    assert verdict.cause == (cause or "unknown")
    assert bool([r for r in verdict.ruled_out if r.cause == "gpu_oom"]) == (cause is None)


@pytest.mark.parametrize("kind", CALLS)
def test_most_lines_take_few_calls(tmp_path: Path, kind: str) -> None:
    """Lines that tell nothing are told in blocks, and a table's rows without building each of them."""
    path, profile = tmp_path / "a.log", cProfile.Profile()
    write_log(path, KINDS[kind](), 600_000)
    lines = path.read_bytes().count(b"\n")
    scan([path])  # compiles the patterns
    with ends_within(cpu_s=60, what=kind):
        profile.runcall(scan, [path])
    assert sum(entry.callcount for entry in profile.getstats()) < CALLS[kind] * lines
