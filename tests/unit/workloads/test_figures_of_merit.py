"""Numbers and signs of success in what a program has printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist3dgs.config.workloads import Criteria
from dist3dgs.workloads.figures_of_merit import Found, find

EPOCHS = ["Epoch 1 time 9.0 s\n", "Epoch 2 time 2.0 s\n", "Epoch 3 time 4.0 s\n", "Epoch 4 time 3.0 s\n"]


def read(folder: Path, figure: dict[str, Any], *outputs: str, limit_s: float = 60.0, **more: Any) -> Found:
    paths = [folder / f"output.rank{i}.log" for i in range(len(outputs))]
    for path, text in zip(paths, outputs, strict=True):
        path.write_text(text)
    return find(Criteria(figures_of_merit={"x": figure}, **more), paths, folder / "out", limit_s=limit_s)


@pytest.mark.parametrize(
    ("statistic", "skip", "value"),
    [
        ("last", 0, 3.0),
        ("mean", 1, 3.0),
        ("median", 0, 3.5),
        ("min", 0, 2.0),
        ("max", 0, 9.0),
        ("max", 1, 4.0),
    ],
)
def test_statistics_leave_the_warm_up_out(tmp_path: Path, statistic: str, skip: int, value: float) -> None:
    figure = {"regex": r"time ([\d.]+)", "statistic": statistic, "skip": skip}
    found = read(tmp_path, figure, "".join(EPOCHS))
    assert found.values == {"x": value} and found.counts == {"x": 4}


@pytest.mark.parametrize(
    ("over_ranks", "value"), [("first", 5.0), ("sum", 12.0), ("mean", 6.0), ("max", 7.0)]
)
def test_over_ranks(tmp_path: Path, over_ranks: str, value: float) -> None:
    figure = {"regex": r"n=(\d+)", "over_ranks": over_ranks}
    assert read(tmp_path, figure, "n=1\nn=5\n", "n=7\n").values == {"x": value}


def test_a_sum_needs_every_rank(tmp_path: Path) -> None:
    found = read(tmp_path, {"regex": r"n=(\d+)", "over_ranks": "sum"}, "n=1\n", "nothing\n")
    assert found.values == {} and "x" in found.missing


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no line"),
        ("time abc\n", "no line"),
        ("time nan\n", "nan"),
        ("time inf\n", "inf"),
        ("time 1\n", "warm-up"),
    ],
)
def test_what_is_not_there_is_missing_and_never_0(tmp_path: Path, text: str, why: str) -> None:
    skip = 1 if why == "warm-up" else 0
    found = read(tmp_path, {"regex": r"time ([\d.]+|nan|inf)", "skip": skip}, text)
    assert found.values == {} and why in found.missing["x"]


def test_progress_bars_and_thousands(tmp_path: Path) -> None:
    assert read(tmp_path, {"regex": r"at ([\d,.]+)"}, "at 1\rat 2\rat 1,234.5\n").values == {"x": 1234.5}


@pytest.mark.parametrize(
    ("content", "value", "why"),
    [
        ({"val": [{"psnr": 27.5}]}, 27.5, ""),
        ({"val": []}, None, "val.0.psnr"),
        ({"val": [{"psnr": "27"}]}, None, "no number"),
        (None, None, "no file"),
        ("{", None, "not JSON"),
    ],
)
def test_from_a_json_file(tmp_path: Path, content: Any, value: float | None, why: str) -> None:
    (tmp_path / "out").mkdir()
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "out/stats.json").write_text(text)
    found = read(tmp_path, {"json_file": "stats.json", "json_path": "val.0.psnr"}, "")
    assert found.values.get("x") == value and why in found.missing.get("x", "")


def test_a_regex_that_backtracks_without_end_is_stopped_and_takes_no_other_figure_away(
    tmp_path: Path,
) -> None:
    path = tmp_path / "output.rank0.log"
    path.write_text("a" * 60 + "\nb=7\n")
    figures = {"x": {"regex": "(a+)+b$"}, "y": {"regex": "b=(\\d)"}}
    criteria = Criteria.model_validate({"figures_of_merit": figures, "success": {"lines": ["(a+)+c"]}})
    found = find(criteria, [path], tmp_path, limit_s=0.2)
    assert "longer than 0.2 s" in found.missing["x"] and found.values == {"y": 7.0}
    assert "took longer" in found.unmet[0]


def test_signs_of_success_must_all_be_there(tmp_path: Path) -> None:
    success = {"lines": ["^Complete", "saved"], "files": ["model.pt", "log.txt"]}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/log.txt").write_text("x")
    (tmp_path / "out/model.pt").touch()
    found = read(tmp_path, {"regex": "(1)"}, "1\nComplete\n", success=success)
    assert [("saved" in u, "model.pt" in u) for u in found.unmet] == [(True, False), (False, True)]


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (999, 6999, 29999):
        path = tmp_path / f"out/stats/val_step{step}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"psnr": float(step)}))
        (tmp_path / f"out/log{step}.txt").write_text(f"time {step} ms\n")
    figure = {"json_file": "stats/val_step*.json", "json_path": "psnr"}
    found = read(tmp_path, figure, "")
    assert found.values == {"x": 29999.0} and found.counts == {"x": 3}
    assert read(tmp_path, {"file": "log*.txt", "regex": r"time (\d+) ms", "scale": 0.5}, "").values == {
        "x": 14999.5
    }
    assert "log0" in read(tmp_path, {"file": "log0.txt", "regex": "(a)"}, "").missing["x"]
    assert "no line of log" in read(tmp_path, {"file": "log*.txt", "regex": "(a)"}, "").missing["x"]
