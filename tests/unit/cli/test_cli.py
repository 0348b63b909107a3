import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist3dgs.cli import main


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    launch = tmp_path / "results/mine/replicated/n1g2/r0/launch.json"
    assert main(["record", "--launch", str(launch), "--out", str(tmp_path / "r.json")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and f"snakemake --profile profiles/local {launch}" in err
    assert "Traceback" not in err


def test_a_spec_can_be_printed_and_read_back(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    assert main(["spec", "builtin/replicated/n2g4", "--config", str(repository / "config")]) == 0
    spec = json.loads(capsys.readouterr().out)
    assert spec["layout"] == "n2g4"
    assert main(["spec", "builtin/replicated", "--config", str(repository / "config")]) == 2
    assert main(["spec", "builtin/replicated/n1g1/../..", "--config", str(repository / "config")]) == 2


def test_what_is_printed_goes_to_the_log_too(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "points.log"
    main(["--log", str(log), "points", "--config", str(repository / "config")])
    assert "builtin/replicated/n1g1/r0" in log.read_text()
    main(["--log", str(log), "points", "--config", str(tmp_path)])
    assert "no such file" in log.read_text()


def test_a_closed_pipe_is_no_error(repository: Path) -> None:
    command = f"{sys.executable} -m dist3dgs.cli points | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=repository)
    assert "Traceback" not in done.stderr


def test_broken_yaml_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("scenes: [a\nlayouts: ]")
    assert main(["points", "--config", str(tmp_path)]) == 2
    assert f"{tmp_path}/config.yaml, line 2, column 8: not valid YAML" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_a_mistake_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, Path("/proc/none/points.log"), Path(__file__) / "points.log"):
        assert main(["--log", str(path), "points"]) == 2
        assert f"error: --log {path}: cannot be written" in capsys.readouterr().err


def test_limits_of_structure_from_motion_come_beside_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "dist3dgs.scenes.sources.ingest_scene", lambda name, scene, *paths: seen.append(scene)
    )
    paths = ["--source", "s", "--pack", "p", "--facts", "f"]
    limits = ["--threads", "3", "--memory-mb", "2048", "--timeout-s", "9"]
    assert main(["ingest", "mine", "--scene", '{"images": "x"}', *paths, *limits]) == 0
    sfm = seen[0].sfm
    assert (sfm.num_threads, sfm.memory_gib, sfm.timeout_s) == (3, 2.0, 9.0)


def test_a_scene_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["photographs", "../x", "--scene", '{"builtin": {}}', "--out", str(tmp_path / "a/source.json")]
    assert main(argv) == 2 and "scene name '../x'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"colmap": null, "images": null, "truth": null}'])
def test_photographs_nobody_found_are_a_mistake_in_words(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine/source.json"
    source.parent.mkdir()
    source.write_text(text)
    paths = ["--pack", str(tmp_path / "scene.safetensors"), "--facts", str(tmp_path / "ingest.json")]
    assert main(["ingest", "mine", "--scene", '{"images": "x"}', "--source", str(source), *paths]) == 2
    assert f"make it again: snakemake --profile profiles/local {source}" in capsys.readouterr().err


def test_an_imported_record_is_replaced_only_by_its_own_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, empty = (tmp_path / f"{name}.log" for name in ("one", "other", "empty"))
    one.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n")
    other.write_text(
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2025-01-01T10:00:00 DUE TO TIME LIMIT ***\n"
    )
    empty.touch()

    def run(path: Path, *more: str) -> int:
        place = ["--scene", "s", "--layout", "n1g1", "--results", str(tmp_path / "results")]
        return main(["import", str(path), *place, *more])

    assert run(one) == run(one) == 0, "the same logs again"
    capsys.readouterr()
    assert run(other) == 2 and "is the record of other logs (one.log)" in (err := capsys.readouterr().err)
    assert "--repeat r1" in err and "--force" in err
    assert run(other, "--repeat", "r1") == run(other, "--force") == 0
    assert run(empty, "--repeat", "r2") == 2 and "nothing is written in it" in capsys.readouterr().err
    assert not (tmp_path / "results/s/imported/n1g1/r2").exists()


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGINT))],
)
def test_a_program_that_is_told_to_end_leaves_no_temporary_files(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Signals of scancel, a closed terminal and Ctrl-C, here while it waits for a pipe that nobody writes to."""
    temporary, pipe = tmp_path / "temporary", tmp_path / "pipe"
    temporary.mkdir()
    os.mkfifo(pipe)
    argv = [sys.executable, "-m", "dist3dgs.cli", "diagnose", str(pipe)]
    process = subprocess.Popen(argv, env=os.environ | {"TMPDIR": str(temporary)}, stderr=subprocess.DEVNULL)
    end, writer = time.monotonic() + 60, None
    while writer is None:
        assert time.monotonic() < end
        with contextlib.suppress(OSError):  # nobody reads yet
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    assert any(temporary.iterdir())
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    os.close(writer)
    assert not any(temporary.iterdir())


#: Verbs that scripts and profiles of earlier versions call.
KNOWN = (
    *("points", "spec", "status", "retry", "verify", "schemas", "photographs", "ingest", "fetch-weights"),
    *("launch", "evaluate", "record", "tabulate", "check", "figure", "report", "read", "diagnose", "import"),
    *("partitions", "preflight", "site"),
)


@pytest.mark.parametrize("verb", KNOWN)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: dist3dgs {verb} " in shown


def test_help_imports_nothing_but_the_command_line() -> None:
    code = """
import sys
from dist3dgs.cli import main
try:
    main(["--help"])
except SystemExit:
    print(*(m for m in ("pydantic", "yaml", "numpy", "pandas", "matplotlib", "psutil") if m in sys.modules),
          file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "partitions" in done.stdout and done.stderr.split() == []
