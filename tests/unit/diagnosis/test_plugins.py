"""A cause, a rule and log readers of another distribution, found by its entry point alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import re
from dist3dgs.diagnosis.rules import Rule, Tier
from dist3dgs.logs.facts import FactPattern, Line
from dist3dgs.logs.log_data import Added
from dist3dgs.runs.causes import CauseOfFailure

CAUSES = [CauseOfFailure("licence", "No licence was left.", retries=5)]
RULES = [
    Rule(name="no-licence", cause="licence", tier=Tier.SPECIFIC, looks="`no licence left`", why="All are in use.",
         remedy="Wait.", patterns=(re.compile(r"no licence left"),))
]
FACTS = [FactPattern("trainer", re.compile(r"^Acme splat trainer"), lambda m: "acme")]
FORMAT = "acme-table"

def sniff(head):
    return head.startswith("#acme")

def add(path, index, log):
    log.facts.add("num_gaussians", int(path.read_text().split()[1]), Line(str(path), 1, ""))
    return Added("read by Acme's reader")
"""


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *argv], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder on the path with a module and the metadata of the distribution that it is of."""
    (tmp_path / "acme.py").write_text(PLUGIN)
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dist3dgs.logs]\nacme = acme\n")
    return tmp_path


def test_a_cause_and_its_rule_are_added_from_outside(installed: Path) -> None:
    log = installed / "job.out"
    log.write_text("Acme splat trainer 2\nRuntimeError: no licence left on server 3\n")
    done = run(installed, "-m", "dist3dgs.cli", "diagnose", "--json", str(log))
    verdict = json.loads(done.stdout)
    assert done.returncode == 1 and (verdict["cause"], verdict["remedy"]) == ("licence", "Wait.")


def test_readers_are_added_from_outside(installed: Path) -> None:
    (installed / "job.out").write_text("Acme splat trainer 2\nstarting\n")
    (installed / "table.acme").write_text("#acme 4711\n")
    done = run(
        installed,
        "-m",
        "dist3dgs.cli",
        "read",
        "--json",
        str(installed / "job.out"),
        str(installed / "table.acme"),
    )
    summary = json.loads(done.stdout)
    assert (summary["trainer"], summary["num_gaussians"]) == ("acme", 4711)
    assert summary["files"][1]["format"] == "acme-table" and "Acme" in summary["files"][1]["note"]


@pytest.mark.slow
def test_records_and_retries_know_the_cause(installed: Path) -> None:
    code = (
        "from dist3dgs.runs.record import Failure; from dist3dgs.slurm.retry import decide;"
        "from dist3dgs.runs.attempts import AttemptState; Failure(cause='licence');"
        "states = [AttemptState(number=i, status='failed', cause='licence') for i in range(6)];"
        "print(decide(states[:5]).action, decide(states).action)"
    )
    assert run(installed, "-c", code).stdout.split() == ["train", "close"]
    assert "no such cause" in run(installed / "elsewhere", "-c", code).stderr


@pytest.mark.slow
def test_a_plugin_that_does_not_import_is_named(installed: Path) -> None:
    (installed / "acme.py").write_text("import nothing_of_that_name\n")
    log = installed / "job.out"
    log.write_text("hello\n")
    done = run(installed, "-m", "dist3dgs.cli", "diagnose", str(log))
    assert done.returncode != 0 and "acme" in done.stderr and "Traceback" not in done.stderr
