"""A metric of another distribution: from the evidence to the record and the tables, found by its entry point alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs.analysis.tables import read_table, tabulate
from dist3dgs.runs.record import load_record
from tests.unit.helpers.evidence import healthy, spec, write_attempt

PLUGIN = """
from dist3dgs.runs.metrics import Metric

def culled(run):
    return max((e["culled"] for e in run.of_kind("culling")), default=None)

METRICS = [
    Metric(name="culled_percent", label="culled", unit="%", high=100, over_repeats="mean", measure=culled),
    Metric(name="swap_gib", label="swap", unit="GiB", event="memory", over_ranks="sum"),
    Metric(name="broken", label="broken", measure=lambda run: 1 / 0),
    Metric(name="steps_per_gaussian", label="steps per Gaussian", over_repeats=None,
           derive=lambda record: record.metrics.steps / record.metrics.num_gaussians),
]
"""
USE = """
import sys
from pathlib import Path
from dist3dgs.cli import main
folder = Path(sys.argv[1])
paths = []
for launch in sorted(folder.glob("*/*/*/r*/launch.json")):
    paths.append(launch.with_name("record.json"))
    assert main(["record", "--launch", str(launch), "--out", str(paths[-1])]) == 0
sys.exit(main(["tabulate", "--runs", str(folder / "runs.csv"), "--points", str(folder / "points.csv"),
               "--records", *map(str, paths)]))
"""


def with_plugin(folder: Path, source: str = PLUGIN) -> "subprocess.CompletedProcess[str]":
    """Judge and tabulate the runs below `folder` where a distribution `acme` is installed."""
    installed = folder / "installed"
    (installed / "acme-1.0.dist-info").mkdir(parents=True, exist_ok=True)
    (installed / "acme.py").write_text(source)
    (installed / "acme-1.0.dist-info/METADATA").write_text("Name: acme\nVersion: 1.0\n")
    (installed / "acme-1.0.dist-info/entry_points.txt").write_text("[dist3dgs.metrics]\nacme = acme\n")
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", USE, str(folder)], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two repeats whose ranks told of what they culled; the second told an impossible share."""
    for repeat, culled in enumerate((12.5, 250.0)):
        events = healthy()
        memory = [e for e in events if e["event"] == "memory"]
        for e, swap in zip(memory, (0.25, 0.5), strict=True):
            e["swap_gib"] = swap
        events.append({"t": 1097.5, "rank": 0, "event": "culling", "culled": culled})
        run = spec().model_copy(update={"repeat": repeat})
        point = tmp_path / f"tiny/replicated/n1g2/r{repeat}"
        point.mkdir(parents=True)
        write_attempt(point, run, events)
    return tmp_path


@pytest.mark.slow
def test_a_metric_is_added_from_outside(study: Path) -> None:
    done = with_plugin(study)
    assert done.returncode == 0, done.stderr
    first, second = (load_record(study / f"tiny/replicated/n1g2/r{i}/record.json") for i in (0, 1))
    assert first.metrics.added == {"culled_percent": 12.5, "swap_gib": 0.75}
    assert "above the upper bound 100" in second.reasons["culled_percent"]
    assert "ZeroDivisionError" in first.reasons["broken"]
    runs, (point,) = read_table(study / "runs.csv"), read_table(study / "points.csv")
    assert [r["culled_percent"] for r in runs] == [12.5, None] and runs[0]["broken"] is None
    assert runs[0]["steps_per_gaussian"] == pytest.approx(50 / 12)
    assert point["culled_percent"] == point["culled_percent_max"] == 12.5
    assert point["swap_gib"] == 0.75 and "steps_per_gaussian" not in point

    paths = sorted(study.glob("*/*/*/r*/record.json"))
    tabulate(paths, study / "runs.csv", study / "points.csv")
    assert read_table(study / "points.csv")[0]["swap_gib"] == 0.75, "also where acme is not installed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "said"),
    [("Metric(name='psnr', label='x')", "psnr"), ("Metric(name='scene', label='x')", "scene"), ("3", "3")],
)
def test_a_metric_without_a_name_of_its_own_is_refused(study: Path, entry: str, said: str) -> None:
    done = with_plugin(study, f"from dist3dgs.runs.metrics import Metric\nMETRICS = [{entry}]\n")
    assert done.returncode != 0 and said in done.stderr and "dist3dgs.metrics" in done.stderr
    assert "ZeroDivision" not in done.stderr
