"""A program on one rank or node: its variables, its environment, its output, and that nothing of it is left."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dist3dgs.config.models import Hardware
from dist3dgs.config.workloads import Application, Criteria, WorkloadSpec
from dist3dgs.diagnosis import diagnose_attempt
from dist3dgs.errors import UserError
from dist3dgs.runs.attempts import Attempt
from dist3dgs.runs.events import read_events
from dist3dgs.workloads import process

CRITERIA = Criteria.model_validate({"figures_of_merit": {"x": {"regex": "(x)"}}})
#: The module with smaller bounds, as torchrun would start it.
SMALL = (
    "from dist3dgs.workloads import process as p\n"
    "p.HEAD_BYTES, p.TAIL_BYTES, p.GRACE_S = 10_000, 1_000, 0.5\np.main()\n"
)


def spec(application: list[str] | str, layout: str = "n1g1", **settings: Any) -> WorkloadSpec:
    app = Application.model_validate({"application": application} | settings)
    return WorkloadSpec(
        scene="mine", strategy="default", layout=layout, repeat=0, seed=7, train=app, criteria=CRITERIA,
        hardware=Hardware(device="cpu"),
    )  # fmt: skip


def start(folder: Path, run: WorkloadSpec, told: dict[str, Any] | None = None) -> "subprocess.Popen[str]":
    """told: more fields of the attempt's summary."""
    attempt = folder / "attempts/000"
    attempt.mkdir(parents=True, exist_ok=True)
    (attempt / "launch.json").write_text(json.dumps({"spec": run.model_dump(mode="json")} | (told or {})))
    argv = [sys.executable, "-c", SMALL, "--out", str(folder), "--events", str(attempt)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def output(folder: Path, rank: int = 0) -> str:
    return process.output_path(folder / "attempts/000", rank).read_text()


def events(folder: Path) -> list[dict[str, Any]]:
    return list(read_events(folder / "attempts/000"))


def test_variables_of_a_rank_and_of_a_node() -> None:
    torchrun = {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "head",
        process.PORT: "23456",
    }
    values = process.values_of(spec("p", "n2g2", batch_per_rank=4), Path("o"), torchrun)
    assert (values["rank"], values["local_rank"], values["node_rank"]) == (3, 1, 1)
    assert (values["ranks"], values["nodes"], values["ranks_per_node"]) == (4, 2, 2)
    assert (values["batch_per_rank"], values["global_batch"]) == (4, 16)
    assert (values["master_addr"], values["master_port"], values["seed"]) == ("head", "23456", 7)
    of_node = process.values_of(spec("p", "n2g2", launch="node", global_batch=8), Path("o"), torchrun)
    assert (of_node["rank"], of_node["batch_per_rank"]) == (2, 2)


def test_the_environment_of_a_program_that_starts_its_own_ranks() -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "1", "HOME": "/h"}
    run = spec("p", launch="node", environment={"NODE": "{node_rank}", "HOME": ""})
    made = process.environment_of(run, process.values_of(run, Path("o"), environ), environ)
    assert made == {"NODE": "0", "CUDA_VISIBLE_DEVICES": ""}
    by_rank = spec("p", environment={"RANK": "", "OMPI_COMM_WORLD_RANK": "{rank}"})
    made = process.environment_of(by_rank, process.values_of(by_rank, Path("o"), environ), environ)
    assert "RANK" not in made and made["OMPI_COMM_WORLD_RANK"] == "1" and made["WORLD_SIZE"] == "2"


def test_output_and_events(tmp_path: Path) -> None:
    code = "import os, sys; print('x', sys.argv[1:]); open(sys.argv[2] + '/made', 'w')"
    run = spec(["{python}", "-c", code, "{seed} $(echo a)", "{out}"])
    program = start(tmp_path, run)
    assert program.wait(30) == 0
    assert (
        output(tmp_path) == f"x ['7 $(echo a)', '{tmp_path}/output']\n"
        and (tmp_path / "output/made").exists()
    )
    kinds = [e["event"] for e in events(tmp_path)]
    assert kinds == ["start", "leave", "enter", "leave", "memory", "end"]


@pytest.mark.slow
def test_the_words_of_resume_and_events_of_checkpoints(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:]); open(sys.argv[1] + '/step-2.pt', 'w')"
    words = ["{python}", "-c", code, "{out}", "{loader_workers}"]
    run = spec(words, loader_workers=8, checkpoint="step-*.pt", resume="--resume {checkpoint} --strict")
    assert process.newest_checkpoint(run, tmp_path / "output") is None
    assert start(tmp_path, run, {"loader_workers": 4}).wait(30) == 0
    out = str(tmp_path / "output")
    assert output(tmp_path) == f"{[out, '4']}\n"
    (saved,) = [e for e in events(tmp_path) if e["event"] == "checkpoint"]
    newest = process.newest_checkpoint(run, tmp_path / "output")
    assert saved["path"] == str(newest) == f"{out}/step-2.pt"
    assert start(tmp_path, run, {"checkpoint": str(newest)}).wait(30) == 0
    assert output(tmp_path) == f"{[out, '8', '--resume', str(newest), '--strict']}\n"
    assert [e["path"] for e in events(tmp_path) if e["event"] == "resume"] == [str(newest)]


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    program = start(tmp_path, spec("no-such-program --x"))
    assert program.wait(30) == 127
    (error,) = [e for e in events(tmp_path) if e["event"] == "error"]
    assert "'no-such-program'" in error["message"] and "application" in error["message"]
    attempt = Attempt(tmp_path / "attempts/000")
    verdict = diagnose_attempt(attempt, attempt.summary().updated(status="failed", returncode=1))
    assert verdict.cause == "environment" and "'no-such-program'" in verdict.evidence[0].text


def test_of_much_output_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    code = "for i in range(20_000): print('line', i)"
    assert start(tmp_path, spec(["{python}", "-c", code])).wait(60) == 0
    text = output(tmp_path)
    assert text.startswith("line 0\n") and text.endswith("line 19999\n") and len(text) < 12_000
    assert "bytes left out" in text


@pytest.mark.slow
def test_a_child_that_is_left_behind_is_ended(tmp_path: Path) -> None:
    """One in a session of its own, with its parent gone, that holds the program's output open."""
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'],"
        " start_new_session=True); print('child', p.pid)"
    )
    assert start(tmp_path, spec(["{python}", "-c", code])).wait(60) == 0
    assert not psutil.pid_exists(int(output(tmp_path).split()[1]))


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"
    )
    program = start(tmp_path, spec(["{python}", "-c", code]))
    end = time.monotonic() + 30
    while not process.output_path(tmp_path / "attempts/000", 0).exists() or "deaf" not in output(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.05)
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 128 + signal.SIGKILL
    kinds = [e["event"] for e in events(tmp_path)]
    assert "signal" in kinds and "end" not in kinds


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_the_end_of_the_program_is_ours(tmp_path: Path, code: str, status: int) -> None:
    """Also a signal: torchrun then reports it, and the rank is told by its process id."""
    assert start(tmp_path, spec(["{python}", "-c", code])).wait(30) == status
    assert "end" not in [e["event"] for e in events(tmp_path)]


@pytest.mark.parametrize(
    ("code", "creates", "words"),
    [
        ("print('building'); open(sys.argv[1], 'w')", "{folder}/made", None),
        (
            "print('no compiler'); sys.exit(3)",
            "{folder}/made",
            "status 3: no compiler; its output is in a.log",
        ),
        ("print('done')", "{folder}/made", "has not made .*made"),
    ],
)
def test_a_setup_is_done_when_it_has_made_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, creates: str, words: str | None
) -> None:
    made = creates.format(folder=tmp_path)
    command = ["{python}", "-c", f"import sys; {code}", "{target}"]
    settings = {"application": "p", "variables": {"target": made, "other": 1}}
    app = Application.model_validate(settings | {"setup": {"command": command, "creates": [made]}})
    out = tmp_path / "setup.json"
    out.write_text("of an earlier time")
    if words is None:
        process.run_setup("mine", app, out, Path("a.log"))
        assert json.loads(out.read_text())["digest"] == process.setup_digest(app)
        other = app.model_copy(update={"variables": {"target": made, "other": 2}})
        assert process.setup_digest(other) == process.setup_digest(app), "not of what the command lacks"
        assert "building" in capsys.readouterr().out
    else:
        with pytest.raises(UserError, match=words):
            process.run_setup("mine", app, out, Path("a.log"))
        assert not out.exists()
