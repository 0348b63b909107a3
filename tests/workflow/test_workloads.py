"""A program of others in the graph: by the config, by its file, and what a change makes again."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist3dgs.cli import main
from tests.plain import plain_bin
from tests.unit.helpers.tiny import write_tiny
from tests.workflow.test_graph import ENVIRONMENT, job_table, snakemake

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys
if os.path.exists("broken"):
    raise ValueError("broken")
ranks = int(sys.argv[1])
print("started at", sys.argv[2], "with", len(open(sys.argv[3] + "/views.csv").readlines()) - 1, "views")
for epoch in range(3):
    print(f"epoch {epoch}: {8 / ranks + (epoch == 0):.2f} s")
print("done")
"""
#: A new user's: it takes the flags of the manual's command line.
TRAIN = """
import argparse
parser = argparse.ArgumentParser()
for name in ("--epochs", "--batch", "--out"):
    parser.add_argument(name, required=True)
for epoch in range(int(parser.parse_args().epochs)):
    print("epoch time", 9.0 if epoch == 0 else 2.0)
print("done")
"""
ENTRY: dict[str, Any] = {
    "application": "{python} program.py {ranks} {out} {data}",
    "scene": "tiny",
    "setup": {"command": ["{python}", "-c", "open('ready', 'a').write('x')"], "creates": ["ready"]},
    "batch_per_rank": 4,
    "work_per_epoch": 16,
    "inputs": ["program.py"],
    "figures_of_merit": {"epoch_s": {"regex": r"epoch \d: ([\d.]+)", "unit": "s", "skip": 1}},
    "success": {"lines": ["^done"]},
}
FLAGS = ("--profile", "profiles/local", "--configfile", "mine.yaml")


def write_config(folder: Path, **changes: Any) -> None:
    entry = ENTRY | changes
    config = {"scenes": [], "workloads": ["mine"], "layouts": ["n1g1", "n1g2"], "hardware": {"device": "cpu"}}
    libraries = {"workload_library": {"mine": entry}, "scene_library": {"tiny": {"builtin": {}}}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config | libraries))


def pack(folder: Path, num_points: int) -> None:
    """A scene that was packed by hand: it stays as it is."""
    write_tiny(folder / "data/tiny/scene.safetensors", num_points)
    for name in ("source.json", "ingest.json"):
        (folder / "data/tiny" / name).write_text("{}")


def planned(folder: Path) -> dict[str, int]:
    return job_table(snakemake(folder, *FLAGS, "-n", "--", "all"))


@pytest.fixture(scope="module")
def study(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workloads") / "a study"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (folder / name).symlink_to(repository / name)
    (folder / "program.py").write_text(PROGRAM)
    write_config(folder)
    pack(folder, 400)
    (folder / "terminal.txt").write_text(snakemake(folder, *FLAGS, "--", "all"))
    return folder


def test_its_points_are_in_the_tables_and_the_report(study: Path) -> None:
    with (study / "results/tables/points.csv").open(newline="") as f:
        rows = {row["layout"]: row for row in csv.DictReader(f)}
    assert rows["n1g1"]["scene"] == "mine" and rows["n1g2"]["n_ok"] == "1"
    assert float(rows["n1g1"]["images_per_s"]) == 2.0 and float(rows["n1g2"]["images_per_s"]) == 4.0
    assert float(rows["n1g2"]["speedup"]) == 2.0 and rows["n1g2"]["scaling"] == "throughput"
    assert "mine" in (study / "results/report/report.html").read_text()
    assert (study / "ready").read_text() == "x", "set up once for all points"
    record = json.loads((study / "results/mine/default/n1g2/r0/record.json").read_text())
    exported = json.loads((study / "data/tiny/colmap/export.json").read_text())
    assert record["provenance"]["scene_digest"] == exported["digest"]
    output = next((study / "results/mine/default/n1g2/r0").glob("attempts/*/output.rank0.log")).read_text()
    assert f"with {exported['num_views']} views" in output
    assert "2 points: 2 ok" in (study / "terminal.txt").read_text()


def test_what_a_change_makes_again(study: Path) -> None:
    assert not {"train", "record", "ingest"} & set(planned(study))
    write_config(study, figures_of_merit={"epoch_s": {"regex": r"epoch 2: ([\d.]+)", "unit": "s"}})
    table = planned(study)
    assert table["record"] == 2 and "train" not in table
    write_config(study, variables={"size": 2})
    table = planned(study)
    assert table["train"] == 2 and "setup_workload" not in table
    write_config(study, setup={"command": "true"})
    table = planned(study)
    assert table["train"] == 2 and table["setup_workload"] == 1
    write_config(study)
    (study / "program.py").write_text(PROGRAM + "\n")
    assert planned(study)["train"] == 2
    (study / "program.py").write_text(PROGRAM)
    pack(study, 300)
    table = planned(study)
    assert table["export_scene"] == 1 and table["train"] == 2 and "ingest" not in table
    pack(study, 400)
    assert not {"train", "export_scene"} & set(planned(study))


def test_a_point_off_the_matrix_by_its_file_and_again_by_retry(
    study: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = "results/mine/default/n1g4/r1/record.json"
    (study / "broken").touch()
    snakemake(study, *FLAGS, "--", target)
    failure = json.loads((study / target).read_text())["failure"]
    assert failure["cause"] == "code_error" and "ValueError: broken" in failure["evidence"][0]["text"]
    (study / "broken").unlink()
    monkeypatch.chdir(study)
    assert main(["retry", "--configfile", "mine.yaml"]) == 0
    assert "mine/default/n1g4/r1: its record is ok" in capfd.readouterr().out
    record = json.loads((study / target).read_text())
    assert record["provenance"]["attempt"] == 1
    assert record["status"] == "ok" and record["metrics"]["epoch_s"] == 2.0
    assert record["run"]["seed"] == 43 and record["provenance"]["scene_digest"]


def test_the_ten_lines_of_the_manual(study: Path, repository: Path) -> None:
    """A new user copies the lines of config/README.md and asks for one point by its file."""
    blocks = re.findall(r"```yaml\n(.*?)```", (repository / "config/README.md").read_text(), re.DOTALL)
    (lines,) = [b for b in blocks if b.startswith("# config/workloads.yaml")]
    assert "/home/me/train.py" in lines
    (study / "train.py").write_text(TRAIN)
    settings = "results: results/manual\nhardware: {device: cpu}\n"
    (study / "manual.yaml").write_text(settings + lines.replace("/home/me/", ""))
    target = "results/manual/mine/default/n1g4/r1/record.json"
    snakemake(study, "--profile", "profiles/local", "--configfile", "manual.yaml", "--", target)
    record = json.loads((study / target).read_text())
    assert record["status"] == "ok" and record["metrics"]["epoch_s"] == 2.0
    assert record["metrics"]["images_per_s"] == 25000.0 and record["run"]["seed"] == 43


def test_ctrl_c_more_than_once_ends_in_a_summary(repository: Path, tmp_path: Path) -> None:
    """All of the terminal's foreground processes get it, as from a keyboard."""
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / "program.py").write_text("import time\nopen('running', 'w')\ntime.sleep(600)\n")
    write_config(tmp_path, application="{python} program.py", scene=None, setup=None)
    # A shell's background jobs ignore Ctrl-C, and so would what this test starts.
    heeding = ["env", "--default-signal=INT", str(plain_bin() / "python"), "-m", "snakemake"]
    out = tmp_path / "terminal.txt"
    with out.open("w") as f:
        process = subprocess.Popen(
            [*heeding, *FLAGS, "--", "train_all"], cwd=tmp_path, env=ENVIRONMENT, stdout=f,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    end = time.monotonic() + 120
    while not (tmp_path / "running").exists():
        assert time.monotonic() < end and process.poll() is None, out.read_text()
        time.sleep(0.1)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(120) != 0
    text = out.read_text()
    assert "Traceback" not in text and "Exception" not in text, text
    assert "2 points: 1 waiting, 1 stopped" in text or "2 points: 1 stopped, 1 waiting" in text, text
    assert text.strip().endswith("the same command goes on from here")
    states = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("attempts/*/launch.json")]
    assert states == ["stopped"]
    assert not list((tmp_path / ".snakemake/locks").glob("*")), "or the next run would be refused"
