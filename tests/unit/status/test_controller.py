"""`dist3dgs status` reports a study whose Snakemake is gone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist3dgs.config.matrix import Study, load_study
from dist3dgs.config.naming import Point
from dist3dgs.status import controller, follow
from dist3dgs.status.controller import FILE, SILENT_S, Controller, missing_controller
from dist3dgs.status.follow import FollowedStudy
from dist3dgs.status.table import show

ARGV = ["/x/.venv/bin/snakemake", "--profile", "profiles/local", "--", "all"]
COMMAND = "snakemake --profile profiles/local -- all"
RUN = f"""
import sys, time
from pathlib import Path
from dist3dgs.status.controller import Controller
Controller(Path(sys.argv[1]), {ARGV}).begin()
print("begun", flush=True)
time.sleep(600)
"""


def test_a_killed_snakemake_is_told_with_the_command_that_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert missing_controller(tmp_path) is None
        process.kill()
    said = missing_controller(tmp_path)
    unlock = COMMAND.replace("snakemake", "snakemake --unlock", 1)
    assert said == f"Snakemake (process {process.pid}) is gone; to go on: {unlock} && {COMMAND}"


def test_one_of_another_host_is_told_by_its_silence(tmp_path: Path) -> None:
    Controller(tmp_path, ARGV).begin()
    path = tmp_path / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "login2"}))
    assert missing_controller(tmp_path) is None
    os.utime(path, (time.time() - SILENT_S - 1,) * 2)
    said = missing_controller(tmp_path)
    assert said is not None and "on login2) has given no sign of life for 41 s" in said and COMMAND in said
    assert SILENT_S + 10 < 60, "a look every 10 s notices it within a minute"


def test_a_snakemake_at_work_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "BEAT_S", 0.01)
    at_work = Controller(tmp_path, ARGV)
    at_work.begin()
    os.utime(tmp_path / FILE, (0, 0))
    end = time.monotonic() + 10
    while missing_controller(tmp_path) is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert missing_controller(tmp_path) is None
    at_work.end(is_done=True)
    assert not (tmp_path / FILE).exists()


def test_a_run_that_leaves_points_says_so_and_one_that_trains_nothing_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ARGV)
    points = [Point.parse("tiny", "replicated", "n1g1")]
    study = FollowedStudy(tmp_path, points, lambda p: 100)
    follow.begin(study, points, needed=[])
    assert not (tmp_path / FILE).exists()
    follow.begin(study, points, needed=points)
    assert missing_controller(tmp_path) is None
    follow.end(study)
    assert (missing_controller(tmp_path) or "").endswith(f"ago; to go on: {COMMAND}")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"host": 1}', '{"host": "a", "pid": null, "arguments": []}']
)
def test_a_broken_file_says_nothing(tmp_path: Path, text: str) -> None:
    assert missing_controller(tmp_path) is None
    (tmp_path / FILE).write_text(text)
    assert missing_controller(tmp_path) is None


def test_status_says_it_while_points_are_left(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study(repository / "config")
    config = study.config.model_copy(update={"results": str(tmp_path)})
    study = Study(config, study.scenes, study.strategies)
    ended = Controller(tmp_path, ARGV)
    ended.begin()
    show(study)
    assert "Snakemake" not in capsys.readouterr().out
    ended.end(is_done=False)
    show(study)
    assert f"to go on: {COMMAND}\n" in capsys.readouterr().out
