"""Lines on the terminal, from Snakemake's records and from folders of attempts."""

import io
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase

from dist3dgs.config.naming import Point
from dist3dgs.console import FOLLOWED, logged
from dist3dgs.runs.record import Metrics, Run, RunRecord, save_record
from dist3dgs.slurm.queue import Job, Queue
from dist3dgs.status import follow
from dist3dgs.status.follow import FollowedRun, FollowedStudy, Terminal
from dist3dgs.status.interrupt import Interrupts
from snakemake_logger_plugin_dist3dgs import LogHandler
from tests.unit.helpers.evidence import spec, step, write_attempt

POINTS = [Point.parse("tiny", "replicated", "n1g1"), Point.parse("tiny", "replicated", "n1g2")]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLLOWED, "")


class TestPlugin(TestLogHandlerBase):
    """Snakemake's own tests of a logger plugin."""

    __test__ = True

    def get_log_handler_cls(self) -> Any:
        return LogHandler

    def get_log_handler_settings(self) -> Any:
        return None


class Screen:
    """A terminal without a terminal: records in, lines out."""

    def __init__(self, results: Path, **options: Any) -> None:
        self.stream = io.StringIO()
        self.terminal = Terminal(self.stream, **options)
        self.study = FollowedStudy(results, POINTS, lambda p: 100)

    def send(self, event: LogEvent | None, text: str = "", level: int = logging.INFO, **fields: Any) -> None:
        record = logging.LogRecord("snakemake", level, "", 1, text, (), None)
        vars(record).update(fields, event=event)
        self.terminal.handle(record)

    def begin(self) -> None:
        run = FollowedRun(self.study, POINTS, set(POINTS), began=time.time() - 1)
        self.send(LogEvent.RUN_INFO, "Job stats:")
        self.send(None, "2 points: 2 waiting", **{follow.RUN: run})

    def job(self, number: int, rule: str, point: Point | None = None, **resources: Any) -> None:
        names = zip(
            ("scene", "strategy", "layout", "repeat"), point.path.parts if point else (), strict=False
        )
        self.send(
            LogEvent.JOB_INFO, jobid=number, rule_name=rule, wildcards=dict(names), log=[], local=True,
            resources=resources,
        )  # fmt: skip

    def done(self, number: int) -> None:
        self.send(LogEvent.JOB_FINISHED, job_id=number)

    def lines(self, close: bool = True) -> list[str]:
        if close:
            self.terminal.close()
        return [line.split("] ", 1)[-1] for line in self.stream.getvalue().splitlines()]


def ok(results: Path, point: Point) -> None:
    run = Run(scene="tiny", strategy="replicated", layout=str(point.layout), repeat=0, seed=1)
    record = RunRecord(run=run, status="ok", metrics=Metrics(psnr=25.0, total_s=70))
    save_record(record, point.folder(results) / "record.json")


def test_a_point_is_told_when_its_record_is_made_with_the_totals(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.begin()
    screen.job(1, "train", POINTS[0])
    screen.job(2, "record", POINTS[0])
    ok(tmp_path, POINTS[0])
    screen.done(2)
    screen.done(2)
    assert screen.lines() == [
        "2 points: 2 waiting",
        f"{POINTS[0]}: ok, PSNR 25.00 dB, 1 min 10 s [1/2 done: 1 ok]",
    ]


def test_a_new_submission_says_why_and_with_what(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.begin()
    screen.job(1, "train", POINTS[0], mem_mb=1041, runtime=10)
    now = time.time()
    ended = {"cause": "host_oom", "note": "", "at": now}
    facts = {"slurm": {"job_id": 5}, "started_at": now, "status": "running"}
    write_attempt(POINTS[0].folder(tmp_path), spec("n1g1"), [], ended=ended, **facts)
    screen.send(
        LogEvent.JOB_ERROR, level=logging.ERROR, jobid=1, rule_name="train", log=[], rule_msg="status 75"
    )
    screen.job(1, "train", POINTS[0], mem_mb=1562, runtime=10)
    write_attempt(POINTS[0].folder(tmp_path), spec("n1g1"), [step(10, now)], **facts)
    screen.done(1)
    assert screen.lines()[1:] == [
        f"{POINTS[0]}: out of memory, again with 1562 MB",
        f"{POINTS[0]}: running, attempt 1, step 10/100, 10.0 steps/s, 9 s left",
    ]


def test_ctrl_c_is_answered_each_time_and_stopped_jobs_are_no_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "TICK_S", 0.01)
    screen, presses = Screen(tmp_path), Interrupts()
    monkeypatch.setattr(follow, "INTERRUPTS", presses)
    screen.begin()
    screen.job(1, "train", POINTS[0])
    screen.job(2, "ingest")
    for presses.count, said in ((1, follow.STOPPING), (2, follow.STILL_STOPPING)):
        end = time.monotonic() + 10
        while screen.lines(close=False)[-1] != said and time.monotonic() < end:
            time.sleep(0.01)
        assert screen.lines(close=False)[-1] == said
    for number, rule in ((1, "train"), (2, "ingest")):
        screen.send(LogEvent.JOB_ERROR, level=logging.ERROR, jobid=number, rule_name=rule, log=[])
        screen.send(LogEvent.ERROR, "died with SIGINT", logging.ERROR, exception="RuleException")
    assert screen.lines()[2:] == [follow.STOPPING, follow.STILL_STOPPING]


def test_sigterm_is_said_once_and_is_no_failed_job(tmp_path: Path) -> None:
    """Snakemake then waits for the jobs that run, which may take hours, and ends with an error."""
    screen = Screen(tmp_path)
    screen.begin()
    screen.job(1, "train", POINTS[0])
    for _ in range(3):
        screen.send(None, f"{follow.ENDS_LATER} (scheduler).")
    text = f"WorkflowError:\n{follow.INCOMPLETE}"
    screen.send(LogEvent.ERROR, text, logging.ERROR, exception="WorkflowError")
    assert screen.lines()[1:] == [follow.ENDING]


def test_ctrl_c_before_a_point_was_begun_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, presses = Screen(tmp_path), Interrupts()
    monkeypatch.setattr(follow, "INTERRUPTS", presses)
    screen.send(None, "Building DAG of jobs...")
    presses.count = 1
    assert screen.lines() == [follow.STOPPED]


def test_only_the_first_ctrl_c_unwinds() -> None:
    program = """
import os, signal
from dist3dgs.status.interrupt import INTERRUPTS
signal.signal(signal.SIGINT, signal.default_int_handler)
INTERRUPTS.install()
try:
    os.kill(os.getpid(), signal.SIGINT)
except SystemExit as e:
    os.kill(os.getpid(), signal.SIGINT)
    print(e.code, INTERRUPTS.count)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "130 2\n", done.stderr


class OneJob(Queue):
    """A queue with one job of the first point."""

    def of_point_and_parts(self, point: Point) -> list[Job]:
        waiting = Job(
            id=5, state="PENDING", reason="BeginTime", name="", comment="", workdir="", partition="gpu", nodes="",
            num_nodes=1, time_used="0:00", time_limit="10:00", start="N/A",
        )  # fmt: skip
        return [waiting] if point == POINTS[0] else []


@pytest.mark.slow
def test_a_job_that_slurm_put_back_into_its_queue_says_why_it_waits(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.study.queue, screen.study.poll_s = OneJob(), 0.0
    screen.begin()
    screen.job(1, "train", POINTS[0])
    facts = {"slurm": {"job_id": 5}, "started_at": time.time() - 60, "status": "running"}
    write_attempt(POINTS[0].folder(tmp_path), spec("n1g1"), [step(10, time.time())], **facts)
    line = f"{POINTS[0]}: queued, Slurm job 5, BeginTime; again after: preemption or a lost node"
    end = time.monotonic() + 30
    while line not in screen.lines(close=False) and time.monotonic() < end:
        time.sleep(0.1)
    assert screen.lines()[1:] == [line]


def test_a_failed_rule_is_one_line_with_the_last_words_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "ingest.log"
    log.write_text("ingest: 3 of 24 photographs\nerror: scene mine: no poses; take more photographs\nbye\n")
    screen = Screen(tmp_path)
    screen.begin()
    screen.job(3, "ingest")
    failed = {"jobid": 3, "rule_name": "ingest", "log": [str(log)], "rule_msg": None}
    screen.send(LogEvent.JOB_ERROR, "Error in rule", logging.ERROR, **failed)
    screen.send(
        LogEvent.ERROR,
        "At least one job did not complete successfully.",
        logging.ERROR,
        exception="WorkflowError",
    )
    assert screen.lines()[1:] == [
        "ingest: started",
        f"ingest failed: scene mine: no poses; take more photographs; log: {log}",
    ]


def test_a_failure_that_the_executor_has_told_is_not_told_twice(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.begin()
    screen.job(3, "ingest")
    screen.send(None, "dist3dgs: ingest failed: no poses (log: logs/ingest.log)", logging.WARNING)
    failed = {"jobid": 3, "rule_name": "ingest", "log": [], "rule_msg": None}
    screen.send(LogEvent.JOB_ERROR, "Error in rule", logging.ERROR, **failed)
    assert screen.lines()[2:] == ["dist3dgs: ingest failed: no poses (log: logs/ingest.log)"]


def test_a_training_job_that_leaves_no_word_is_told_at_the_end(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.begin()
    screen.job(1, "train", POINTS[0])
    failed = {"jobid": 1, "rule_name": "train", "log": ["logs/none.log"], "rule_msg": "sbatch is not there"}
    screen.send(LogEvent.JOB_ERROR, "Error in rule", logging.ERROR, **failed)
    screen.send(None, "the end", **{follow.END: True})
    assert "failed: sbatch is not there; no log was left" in screen.lines()[1]


def test_errors_and_warnings_reach_the_person_and_snakemakes_chatter_does_not(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.send(None, "Building DAG of jobs...")
    screen.begin()
    screen.send(None, "Select jobs to execute...")
    screen.send(LogEvent.PROGRESS, done=1, total=2)
    screen.send(None, "the disk is slow", logging.WARNING)
    screen.send(LogEvent.ERROR, "MissingInputException: x", logging.ERROR, exception="MissingInputException")
    assert screen.lines()[1:] == ["the disk is slow", "MissingInputException: x"]


def test_where_nothing_is_run_snakemakes_words_are_shown_with_the_summary(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.send(None, "None", **{follow.STUDY: screen.study})
    screen.send(None, "Building DAG of jobs...")
    screen.send(None, "Nothing to be done (all requested files are present and up to date).")
    ok(tmp_path, POINTS[0])
    ok(tmp_path, POINTS[1])
    assert screen.lines()[1:] == ["2 points: 2 ok"] and "Nothing to be done" in screen.lines()[0]
    other = Screen(tmp_path)
    other.send(None, "Unlocked working directory.")
    assert other.lines() == ["Unlocked working directory."]


@pytest.mark.parametrize("quiet, lines", [("progress", 3), ("rules", 1), ("all", 1)])
def test_quiet_leaves_the_points_that_are_done(tmp_path: Path, quiet: str, lines: int) -> None:
    screen = Screen(tmp_path, quiet=frozenset({quiet}))
    screen.begin()
    screen.job(3, "ingest")
    screen.done(3)
    screen.job(2, "record", POINTS[0])
    ok(tmp_path, POINTS[0])
    screen.done(2)
    assert len(screen.lines()) == lines and "ok, PSNR" in screen.lines()[-1]


@pytest.mark.parametrize("wish", ["dryrun", "verbose", "printshellcmds"])
def test_snakemakes_own_output_where_it_is_asked_for(wish: str) -> None:
    settings = {
        "dryrun": False, "verbose": False, "debug_dag": False, "printshellcmds": False, "stdout": False,
        "quiet": None, "show_failed_logs": False, "nocolor": False,
    }  # fmt: skip
    assert LogHandler(SimpleNamespace(**settings), None).writes_to_stream  # type: ignore[arg-type]
    assert not LogHandler(SimpleNamespace(**settings | {wish: True}), None).writes_to_stream  # type: ignore[arg-type]


def test_jobs_of_a_followed_run_print_to_their_logs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for followed, shown in (("", "words\n"), ("1", "")):
        monkeypatch.setenv(FOLLOWED, followed)
        with logged(tmp_path / "job.log"):
            print("words")
        assert capsys.readouterr().out == shown
        assert (tmp_path / "job.log").read_text() == "words\n"


def test_a_misspelt_target_is_answered_with_the_nearest(tmp_path, monkeypatch, capsys):
    """The plugin prints it in place of Snakemake's words, and ends where the command line itself is wrong."""
    study = FollowedStudy(tmp_path, POINTS, lambda p: 100, files=["figures/speedup.svg"])
    for name, nearest in (("al", "all"), ("figures/speedupp.svg", "figures/speedup.svg")):
        hint = study.target_hint(f"No rule to produce {name} (if you use input functions make sure that")
        assert hint and f"no such target: {name}; did you mean {nearest}?" in hint
    assert study.target_hint("another error") is None
    monkeypatch.setattr("sys.argv", ["snakemake", "--config", "results=x", "all"])
    with pytest.raises(SystemExit):
        LogHandler(MockOutputSettings(), None)
    assert "error: --config all: expected NAME=VALUE" in capsys.readouterr().err
