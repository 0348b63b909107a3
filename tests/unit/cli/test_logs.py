"""What `dist3dgs diagnose` takes and prints: pipes, gzip, folders, halves, several jobs, runs of our own."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dist3dgs import cli
from dist3dgs.cli.logs import run_diagnose
from dist3dgs.config.models import Hardware, SfmSettings, TrainSettings
from dist3dgs.diagnosis import diagnose
from dist3dgs.diagnosis.input_files import open_inputs
from dist3dgs.diagnosis.rules import RULES
from dist3dgs.diagnosis.rules.remedies import REMEDIES
from dist3dgs.errors import UserError
from dist3dgs.records.build import judge, verdict_of_run
from dist3dgs.runs.record import save_record
from dist3dgs.slurm.site import Site
from tests.unit.helpers.evidence import healthy, phase, spec, start, step, write_attempt

GOOD = "step 1/2 loss: 0.2 lr: 0.1\nstep 2/2 loss: 0.1 lr: 0.1\n"
BAD = 'Traceback (most recent call last):\n  File "t.py", line 3, in f\n    d[k]\nKeyError: 1\n'


def out_of(capsys: pytest.CaptureFixture[str], *paths: Path | str) -> tuple[int, str]:
    capsys.readouterr()
    code = run_diagnose(paths, False, verdict_of_run=verdict_of_run)
    return code, capsys.readouterr().out


def test_a_missing_file_is_named_and_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.log"
    good.write_text(GOOD)
    assert out_of(capsys, good)[0] == 0
    code, text = out_of(capsys, tmp_path / "nosuch.log", good)
    assert code == 2 and text.startswith("ok\n") and "nosuch.log: " in text
    with pytest.raises(UserError, match=r"nosuch\.log"):
        run_diagnose([tmp_path / "nosuch.log"], False)
    good.write_text("")
    code, text = out_of(capsys, good)
    assert code == 3 and "good.log: the file is empty" in text and text.startswith("unknown\n")


def test_unknown_says_first_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "job_7.out"
    log.write_text("loading\n")
    code, text = out_of(capsys, log)
    assert code == 3 and text.startswith("unknown\n") and len(text.splitlines()) < 8
    assert "fix: Give also job_7.err." in text and "named here" not in text
    assert run_diagnose([log], False, verbose=True) == 3
    assert "gpu_oom: `CUDA out of memory" in capsys.readouterr().out
    run_diagnose([log], True)
    assert len(json.loads(capsys.readouterr().out)["looked_for"]) > 20


def test_the_other_half_is_read_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w_1.out").write_text("Training Complete!\n")
    (tmp_path / "w_1.err").write_text(BAD)
    code, text = out_of(capsys, tmp_path / "w_1.out")
    assert (
        code == 1
        and "failed: code_error" in text
        and "w_1.err is read too" in text.replace("w_1.err: is", "w_1.err is")
    )


def test_gzip_and_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "crash.err.gz"
    packed.write_bytes(gzip.compress(BAD.encode()))
    code, text = out_of(capsys, packed)
    assert code == 1 and f"{packed}:4: KeyError" in text
    packed.write_bytes(gzip.compress(BAD.encode() * 2000)[:-20])
    code, text = out_of(capsys, packed)
    assert code == 1 and "cannot be unpacked whole" in text, "what came before the cut is judged"

    class Stdin:
        buffer = io.BytesIO(BAD.encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    code, text = out_of(capsys, "-")
    assert code == 1 and "-:4: KeyError" in text

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(BAD))  # waits until somebody reads
    writer.start()
    code, text = out_of(capsys, pipe)
    writer.join()
    assert code == 1 and f"{pipe}:4: KeyError" in text


def test_a_pipe_without_a_writer_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist3dgs.diagnosis.input_files.PIPE_PATIENCE_S", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="nobody wrote to it"):
        run_diagnose([tmp_path / "pipe"], False)


def test_a_stream_has_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist3dgs.diagnosis.input_files.MAX_SPOOLED_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.log.gz"
    bomb.write_bytes(gzip.compress(b"x\n" * (8 << 20)))
    assert "are read" in out_of(capsys, bomb)[1]


def test_a_folder_is_its_text_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    with pytest.raises(UserError, match="no file is in it"):
        run_diagnose([folder], False)
    (folder / "rank0.log").write_text(GOOD[:27])
    (folder / "rank1.log").write_text(BAD)
    (folder / "model.pt").write_bytes(b"PK\x03\x04" + bytes(999))
    code, text = out_of(capsys, folder)
    assert code == 1 and "code_error" in text and "2 of its 3 files" in text


@pytest.mark.parametrize(
    "name", ["train.log", "job.o1234", "stdout", "worker-3.stderr", "notes.txt", "log.0.7"]
)
def test_logs_of_a_folder_have_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text(BAD)
    words = "RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB\n"
    for other in ("README.md", "LICENSE", "train.py", "settings.json", "table.csv", "CMakeLists.txt"):
        (tmp_path / other).write_text(words)
    (tmp_path / "job").write_text(f"#!/bin/bash\n{words}")
    code, text = out_of(capsys, tmp_path)
    assert code == 1 and "failed: code_error" in text and "1 of its 8 files is read" in text


def test_tables_and_dumps_of_a_folder_are_read_by_their_format(tmp_path: Path) -> None:
    (tmp_path / "gpu.csv").write_text("index, memory.used [MiB]\n0, 100 MiB\n")
    (tmp_path / "3.json").write_text('{"comm_lib_version": "", "pg_config": {}, "entries": []}')
    (tmp_path / "runs.csv").write_text("scene,strategy\nfox,sharded\n")
    with open_inputs([tmp_path]) as found:
        assert [p.name for p in found.logs] == ["3.json", "gpu.csv"]


def test_a_folder_without_runs_and_logs_says_what_was_expected(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected a results folder, a run's folder.*diagnose .*results/reference"
    ):
        run_diagnose([repository], False)
    (tmp_path / "thesis.tex").write_text(BAD)
    with pytest.raises(UserError, match=r"none of its 1 file is a log.*diagnose job\.out job\.err"):
        run_diagnose([tmp_path], False)


def test_a_results_folder_is_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So is what is below it: of a scene, of a strategy, of a layout."""
    results = tmp_path / "results"
    for layout in ("n1g1", "n1g2"):
        path = write_attempt(results / f"tiny/replicated/{layout}/r0", spec(layout), healthy())
        save_record(judge(path), path.with_name("record.json"))
    (results / "tables").mkdir()
    (results / "tables/runs.csv").write_text("scene,strategy\n")
    for folder, runs in ((results, 2), (results / "tiny", 2), (results / "tiny/replicated/n1g2", 1)):
        capsys.readouterr()
        run_diagnose([folder], True, verdict_of_run=verdict_of_run)
        verdicts = json.loads(capsys.readouterr().out)
        verdicts = verdicts if isinstance(verdicts, list) else [verdicts]
        assert len(verdicts) == runs and f"{folder}: {runs} run" in verdicts[0]["notes"][0]
        assert not any("is read too" in note for note in verdicts[0]["notes"])


def test_two_jobs_are_two_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a-47110.log").write_text(GOOD)
    (tmp_path / "b-47120.log").write_text(BAD)
    paths = [tmp_path / "a-47110.log", tmp_path / "b-47120.log"]
    code, text = out_of(capsys, *paths)
    assert code == 1 and re.findall(r"(?m)^(?:ok|failed.*)$", text) == ["ok", "failed: code_error"]
    run_diagnose(paths, True)
    assert [v["status"] for v in json.loads(capsys.readouterr().out)] == ["ok", "failed"]


def test_the_command_says_what_the_record_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the point, the attempt, its files, its record, and one file alone."""
    killed = [start(0), start(1), phase("enter", "step", 1007.0), step(25, 1040.0)]
    log = "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 42)\n"
    ended = {"cause": "time_limit", "note": "Slurm job 1: stopped 6 s before its time limit", "at": 1100.0}
    one = spec("n1g2", steps=50)
    cases: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "killed": (killed, {"log": log, "status": "failed", "returncode": 1}),
        "limit": (killed, {"status": "failed", "returncode": 1, "ended": ended}),
        "one": ([start(0, device="cuda:0"), start(1, device="cuda:0"), *healthy()[2:]], {}),
        "refused": (
            [],
            {"status": "refused", "refused": "4 workers asked for, 2 GPUs here", "returncode": None},
        ),
        "healthy": (healthy(), {}),
    }
    for name, (events, launch) in cases.items():
        point = tmp_path / name
        path = write_attempt(point, one, events, **launch)
        record = judge(path)
        save_record(record, point / "record.json")
        attempt = point / "attempts/000"
        for given in (
            [path],
            [point],
            [attempt],
            sorted(attempt.iterdir()),
            [attempt / "train.log"],
            [point / "record.json"],
        ):
            capsys.readouterr()
            run_diagnose(given, True, verdict_of_run=verdict_of_run)
            value = json.loads(capsys.readouterr().out)
            assert isinstance(value, dict), (name, given)
            failure = record.failure
            want = (
                record.status,
                failure and failure.cause,
                failure and failure.rank,
                failure and failure.remedy,
            )
            assert (value["status"], value["cause"], value["rank"], value["remedy"]) == want, (name, given)


def test_a_launch_summary_is_never_text(tmp_path: Path) -> None:
    """Its settings name what could go wrong; nothing of that has."""
    path = write_attempt(
        tmp_path, spec(), healthy(), world_warning="RuntimeError: 2 GPUs but your machine only has 1"
    )
    verdict = diagnose([path, tmp_path / "attempts/000/train.log", tmp_path / "attempts/000/events.jsonl"])
    assert not any("machine only has" in e.text for e in verdict.evidence)


@pytest.mark.slow
def test_evidence_prints_in_any_encoding(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(BAD.replace("KeyError: 1", "KeyError: '\N{SNOWMAN}'"), encoding="utf-8")
    for verb in ("diagnose", "read"):
        done = subprocess.run(
            [sys.executable, "-m", "dist3dgs.cli", verb, log],
            env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr
    assert cli.main(["diagnose", str(log)]) == 1


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["diagnose", "--help"])
    assert "0 the job went well, 1 it failed or is degraded" in " ".join(capsys.readouterr().out.split())


ROOTS: dict[str, type[BaseModel]] = {
    "train": TrainSettings, "hardware": Hardware, "sfm": SfmSettings, "site": Site,
}  # fmt: skip


@pytest.mark.parametrize("rule", sorted(REMEDIES["dist3dgs"]))
def test_settings_in_our_remedies_exist(rule: str) -> None:
    for name in re.findall(r"\b(?:train|hardware|sfm|site)\.[a-z_0-9.]*[a-z0-9]", REMEDIES["dist3dgs"][rule]):
        if name in ("train.log", "site.yaml"):
            continue
        root, *fields = name.split(".")
        model: Any = ROOTS[root]
        for field in fields:
            assert field in model.model_fields, name
            model = model.model_fields[field].annotation


def test_remedies_are_for_rules_and_generic_ones_name_no_setting_of_ours() -> None:
    names = {r.name for r in RULES}
    assert all(rule in names for rules in REMEDIES.values() for rule in rules)
    for rule in RULES:
        if rule.name != "settings":
            assert not re.search(
                r"\b(?:train|hardware|sfm|site)\.[a-z_]+|\bmem_mb\b|slurm_extra|init: broadcast|dist3dgs",
                rule.remedy,
            ), rule.name
