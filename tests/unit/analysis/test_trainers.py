"""Ours and trainers of others on one scene, side by side, with what differs named."""

from pathlib import Path
from typing import Any

from dist3dgs.analysis.tables import read_table, tabulate
from dist3dgs.config.matrix import load_study
from dist3dgs.config.naming import Point
from dist3dgs.runs.record import RunRecord
from tests.unit.helpers.records import make_record, write_records


def record(repository: Path, point: str, **metrics: Any) -> RunRecord:
    """A record of a point of the shipped config."""
    spec = load_study(repository / "config").spec(Point.named(point))
    made = make_record(spec.scene, spec.strategy, spec.layout, **metrics)
    settings = spec.model_dump(mode="json")
    return made.model_copy(update={"run": made.run.model_copy(update={"settings": settings})})


def test_quality_beside_time_with_differences(repository: Path, tmp_path: Path) -> None:
    records = [
        record(repository, "builtin/replicated/n1g2", psnr=30.0),
        record(repository, "gsplat/default/n1g2", psnr=29.5),
        record(repository, "resnet50/default/n1g2"),
    ]
    tabulate(write_records(tmp_path, records), tmp_path / "runs.csv", tmp_path / "points.csv")
    ours, theirs = read_table(tmp_path / "trainers.csv")
    assert (ours["trainer"], ours["differences"]) == ("dist3dgs replicated", None)
    assert (theirs["trainer"], theirs["scene"]) == ("gsplat", "builtin")
    assert 29.3 < theirs["psnr"] < 29.6 < ours["psnr"] < 30.1
    assert ours["images"] != theirs["images"] == 30000, "the shipped configs differ, which the table says"
    assert f"images seen: 30000, ours {ours['images']:.0f}" in theirs["differences"]
    assert "normalised again" in theirs["differences"] and theirs["differs"] == "a"
    text = (tmp_path / "trainers.md").read_text()
    assert "(a) world normalised again" in text and text.count("| gsplat") == 1
    assert r"\toprule" in (tmp_path / "trainers.tex").read_text()


def test_without_ours_the_table_says_so(repository: Path, tmp_path: Path) -> None:
    paths = write_records(tmp_path, [record(repository, "grendel/default/n1g1")])
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    (row,) = read_table(tmp_path / "trainers.csv")
    assert "no run of ours on this scene" in row["differences"]


def test_our_runs_alone_make_no_table(repository: Path, tmp_path: Path) -> None:
    paths = write_records(tmp_path, [record(repository, "builtin/replicated/n1g1")])
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    assert read_table(tmp_path / "trainers.csv") == []
