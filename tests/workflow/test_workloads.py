"""A program of others in the graph: by the config, by its file, and what a change makes again."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist3dgs.cli import main
from tests.workflow.test_graph import job_table, snakemake

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys
if os.path.exists("broken"):
    raise ValueError("broken")
ranks = int(sys.argv[1])
print("started at", sys.argv[2])
for epoch in range(3):
    print(f"epoch {epoch}: {8 / ranks + (epoch == 0):.2f} s")
print("done")
"""
ENTRY: dict[str, Any] = {
    "application": "{python} program.py {ranks} {out}",
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
    (folder / "mine.yaml").write_text(yaml.safe_dump(config | {"workload_library": {"mine": entry}}))


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
    (folder / "terminal.txt").write_text(snakemake(folder, *FLAGS, "--", "all"))
    return folder


def test_its_points_are_in_the_tables_and_the_report(study: Path) -> None:
    with (study / "results/tables/points.csv").open(newline="") as f:
        rows = {row["layout"]: row for row in csv.DictReader(f)}
    assert rows["n1g1"]["scene"] == "mine" and rows["n1g2"]["n_ok"] == "1"
    assert float(rows["n1g1"]["images_per_s"]) == 2.0 and float(rows["n1g2"]["images_per_s"]) == 4.0
    assert float(rows["n1g2"]["speedup"]) == 2.0 and rows["n1g2"]["scaling"] == "throughput"
    assert "mine" in (study / "results/report/report.html").read_text()
    assert "2 points: 2 ok" in (study / "terminal.txt").read_text()


def test_what_a_change_makes_again(study: Path) -> None:
    assert not {"train", "record", "ingest"} & set(planned(study))
    write_config(study, figures_of_merit={"epoch_s": {"regex": r"epoch 2: ([\d.]+)", "unit": "s"}})
    table = planned(study)
    assert table["record"] == 2 and "train" not in table
    write_config(study, variables={"size": 2})
    assert planned(study)["train"] == 2
    write_config(study)
    (study / "program.py").write_text(PROGRAM + "\n")
    assert planned(study)["train"] == 2
    (study / "program.py").write_text(PROGRAM)


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
