import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist3dgs.config.matrix import Study, load_study
from dist3dgs.config.models import Exclusion
from dist3dgs.config.naming import Point
from dist3dgs.errors import UserError
from dist3dgs.runs.record import Evidence, Failure, Metrics, Run, RunRecord, save_record
from dist3dgs.status.point_state import PointState
from dist3dgs.status.table import rows, show, summary
from tests.unit.helpers.evidence import spec, start, step, write_attempt


@pytest.fixture
def study(repository: Path, tmp_path: Path) -> Study:
    study = load_study(repository / "config")
    config = study.config.model_copy(update={"results": str(tmp_path), "layouts": ["n1g1", "n1g2", "n1g4"]})
    return Study(config, study.scenes, study.strategies)


def state(study: Study) -> dict[str, tuple[str, str]]:
    return {str(r.point.layout): (r.state, r.detail) for r in rows(study)}


def test_every_state_from_files_alone(study: Study, tmp_path: Path) -> None:
    assert {s for s, _ in state(study).values()} == {"waiting"}

    folder = tmp_path / "builtin/replicated/n1g1/r0"
    now = time.time()
    write_attempt(folder, spec("n1g1"), [start(0, now), step(50, now)], status="running", returncode=None)
    (folder / "launch.json").unlink()
    assert state(study)["n1g1"][0] == "running"
    assert "step 50/" in state(study)["n1g1"][1] and "10.0 steps/s" in state(study)["n1g1"][1]

    events = folder / "attempts/000/events.jsonl"
    events.write_text(json.dumps(step(50, now - 4000)) + "\n{torn")
    assert state(study)["n1g1"][0] == "silent"

    run = Run(scene="builtin", strategy="replicated", layout="n1g2", repeat=0, seed=1)
    ok = RunRecord(run=run, status="ok", metrics=Metrics(psnr=25.123, total_s=70))
    save_record(ok, tmp_path / "builtin/replicated/n1g2/r0/record.json")
    assert state(study)["n1g2"] == ("ok", "PSNR 25.12 dB, 1 min 10 s")

    failed = RunRecord(run=run, status="failed", failure=Failure(cause="host_oom", phase="step", step=7))
    save_record(failed, tmp_path / "builtin/replicated/n1g4/r0/record.json")
    path = tmp_path / "builtin/replicated/n1g4/r0/record.json"
    assert state(study)["n1g4"] == ("failed", "out of memory at step 7")
    command = {str(r.point.layout): r.command for r in rows(study)}
    assert command == {"n1g1": None, "n1g2": None, "n1g4": f"dist3dgs diagnose {path}"}


def test_the_table_prints_log_text_as_text(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(scene="builtin", strategy="replicated", layout="n1g1", repeat=0, seed=1)
    failed = Failure(cause="unknown", evidence=[Evidence(file="train.log", text="[bold]odd[/bold]")])
    record = RunRecord(run=run, status="failed", failure=failed)
    save_record(record, tmp_path / "builtin/replicated/n1g1/r0/record.json")
    show(study)
    assert "[bold]odd" in capsys.readouterr().out


def test_a_point_that_trains_again_is_running_whatever_its_old_record_says(
    study: Study, tmp_path: Path
) -> None:
    folder = tmp_path / "builtin/replicated/n1g1/r0"
    now = time.time()
    write_attempt(folder, spec("n1g1"), [start(0, now), step(50, now)], status="running", started_at=now + 60)
    run = Run(scene="builtin", strategy="replicated", layout="n1g1", repeat=0, seed=1)
    save_record(RunRecord(run=run, status="ok"), folder / "record.json")
    assert state(study)["n1g1"][0] == "running"


def test_broken_files_cost_their_own_row_only(study: Study, tmp_path: Path) -> None:
    for layout, text in (("n1g1", "{"), ("n1g2", "[]")):
        folder = tmp_path / "builtin/replicated" / layout / "r0"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(text)
    folder = tmp_path / "builtin/replicated/n1g4/r0"
    odd = [{"t": time.time(), "rank": 0, "event": "step", "step": "many"}]
    write_attempt(folder, spec("n1g4"), odd, status="running", returncode=None)
    assert [s for s, _ in state(study).values()] == ["unreadable", "unreadable", "running"]


def test_points_that_are_left_out_stand_at_the_end_with_the_reason(study: Study) -> None:
    exclude = [Exclusion(layout="n1g2", reason="no such machine")]
    config = study.config.model_copy(update={"exclude": exclude})
    found = state(Study(config, study.scenes, study.strategies))
    assert list(found.items())[-1] == ("n1g2", ("excluded", "no such machine"))
    assert list(found) == ["n1g1", "n1g4", "n1g2"]


def test_an_attempt_that_never_said_anything_is_not_starting_for_ever(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "builtin/replicated/n1g1/r0"
    now = time.time()
    write_attempt(folder, spec("n1g1"), [], status="running", returncode=None, started_at=now - 20)
    assert state(study)["n1g1"] == ("running", "starting")
    launch = folder / "attempts/000/launch.json"
    launch.write_text(json.dumps(json.loads(launch.read_text()) | {"started_at": now - 25 * 3600}))
    assert state(study)["n1g1"] == ("silent", "no sign of life for 25 h 00 min")
    launch.unlink()  # the launcher died before it wrote anything: the folder's age is left
    os.utime(folder / "attempts/000", (now - 7200, now - 7200))
    assert state(study)["n1g1"] == ("silent", "no sign of life for 2 h 00 min")


@pytest.mark.parametrize("seconds", [0, -1, 0.01, float("nan"), float("inf")])
def test_watching_without_a_pause_is_refused(study: Study, seconds: float) -> None:
    with pytest.raises(UserError, match="at least 1 second"):
        show(study, seconds)


def test_watching_looks_again_after_each_pause(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        run = Run(scene="builtin", strategy="replicated", layout="n1g1", repeat=0, seed=1)
        save_record(RunRecord(run=run, status="ok"), tmp_path / "builtin/replicated/n1g1/r0/record.json")
        if len(pauses) == 2:
            raise KeyboardInterrupt

    # Of this module alone: threads of other tests sleep too.
    monkeypatch.setattr("dist3dgs.status.table.time", SimpleNamespace(sleep=pause, time=time.time))
    with pytest.raises(KeyboardInterrupt):
        show(study, 5)
    assert pauses == [5, 5] and "1 ok" in capsys.readouterr().out


def test_points_off_the_matrix_are_listed_apart(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record of imported logs, an attempt asked for by its path; a folder of another shape is none."""
    run = Run(scene="builtin", strategy="imported", layout="n4g8", repeat=0, seed=1)
    save_record(RunRecord(run=run, status="ok"), tmp_path / "builtin/imported/n4g8/r0/record.json")
    now = time.time()
    started = {"status": "running", "returncode": None, "started_at": now}
    folder = tmp_path / "builtin/replicated/n1g1/r7"
    write_attempt(folder, spec("n1g1"), [start(0, now), step(50, now)], **started)
    (tmp_path / "builtin/replicated/not-a-layout/r0/attempts").mkdir(parents=True)
    others = [(str(r.point), r.state) for r in rows(study)][3:]
    assert others == [("builtin/imported/n4g8/r0", "ok"), ("builtin/replicated/n1g1/r7", "running")]
    show(study)
    inside, outside = capsys.readouterr().out.split("not in the study's matrix")
    assert "n4g8" in outside and "step 50/100" in outside and "3 waiting" in inside


def test_a_command_is_never_wrapped(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "builtin/replicated/n1g2/r0/record.json"
    run = Run(scene="builtin", strategy="replicated", layout="n1g2", repeat=0, seed=1)
    save_record(RunRecord(run=run, status="failed", failure=Failure(cause="killed")), path)
    show(study)
    assert f"dist3dgs diagnose {path}" in [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_the_summary_counts_names_causes_and_the_next_command(study: Study, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    for layout, failure in (("n1g1", None), ("n1g2", Failure(cause="host_oom", step=7)), ("n1g4", None)):
        run = Run(scene="builtin", strategy="replicated", layout=layout, repeat=0, seed=1)
        status = "failed" if failure else "ok"
        path = tmp_path / f"builtin/replicated/{layout}/r0/record.json"
        save_record(RunRecord(run=run, status=status, failure=failure), path)
    text = summary(list(rows(study)), report=report, elapsed_s=75)
    assert text.splitlines() == [
        "3 points: 2 ok, 1 failed, 1 min 15 s",
        "  builtin/replicated/n1g2/r0: failed, out of memory at step 7",
        f"why, and what to change: dist3dgs diagnose {tmp_path}/builtin/replicated/n1g2/r0/record.json",
    ]
    report.touch()
    assert "report: " in summary(list(rows(study)), report=report)
    os.utime(report, (1, 1))
    assert "report: " not in summary(list(rows(study)), report=report), "of other records"


def test_the_summary_of_many_failures_names_a_few_and_the_command_for_all() -> None:
    states = [
        PointState(
            point=Point.parse("a", "b", "n1g1", f"r{i}"), state="failed", detail="killed", record=Path("x")
        )
        for i in range(8)
    ]
    text = summary(states, status_command="dist3dgs status --configfile other.yaml")
    assert text.count("failed, killed") == 5 and "and 3 more" in text
    assert text.endswith("dist3dgs status --configfile other.yaml")


def test_the_summary_of_a_run_that_stopped_says_how_to_go_on() -> None:
    states = [PointState(point=Point.parse("a", "b", "n1g1"), state="waiting")]
    assert summary(states, elapsed_s=3).splitlines() == [
        "1 point: 1 waiting, 3 s",
        "the same command goes on from here",
    ]
