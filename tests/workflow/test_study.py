"""The whole graph for real, at its smallest: SfM, two layouts, a failing strategy, tables, figures, report."""

import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist3dgs.runs.events import read_events
from tests.workflow.test_graph import job_table, snakemake

pytestmark = pytest.mark.slow

TRAIN = {
    "steps": 60, "sh_every": 20, "eval_every": 30, "checkpoint_every": 20, "log_every": 10, "digest_every": 30,
    "densify": {"start_step": 10, "every": 20, "stop_step": 50},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "scenes": ["small"],
    "strategies": ["replicated", "diverging"],
    "layouts": ["n1g1", "n1g2"],
    "exclude": [{"strategy": "diverging", "layout": "n1g2", "reason": "one failure is enough"}],
    "train": TRAIN,
    "scene_library": {
        "small": {"builtin": {"num_images": 24, "width_px": 360, "height_px": 240}, "max_width_px": 180}
    },
    "strategy_library": {"diverging": {"train": {"lr": {"means": 1e30, "scales": 1e30}}}},
}


@pytest.fixture(scope="module")
def study(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that has run once, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("study") / "a study"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (folder / name).symlink_to(repository / name)
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "terminal.txt").write_text(run(folder, "all"))
    return folder


def run(folder: Path, *argv: str, profile: str = "profiles/local") -> str:
    return snakemake(folder, "--profile", profile, "--configfile", "small.yaml", "--", *argv)


def record(folder: Path, point: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "results" / point / "record.json").read_text())
    return value


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_photographs_become_poses_without_a_leak(study: Path) -> None:
    facts = json.loads((study / "data/small/ingest.json").read_text())
    assert facts["num_images"]["registered"] >= 20
    assert facts["pose_error"]["rotation_max_deg"] < 1
    assert b"truth" not in (study / "data/small/scene.safetensors").read_bytes()[:100_000]


@pytest.mark.parametrize("layout", ["n1g1", "n1g2"])
def test_good_points_are_ok_with_equal_replicas(study: Path, layout: str) -> None:
    r = record(study, f"small/replicated/{layout}/r0")
    assert r["status"] == "ok"
    assert r["metrics"]["psnr"] > 10
    ranks = r["metrics"]["ranks"]
    assert len(ranks) == int(layout[-1]) and len({x["parameter_digest"] for x in ranks}) == 1
    folder = study / f"results/small/replicated/{layout}/r0"
    assert (folder / "point_cloud.ply").is_file() and list((folder / "tensorboard").iterdir())


def test_an_impossible_setting_is_a_failed_row_and_the_rest_completes(study: Path) -> None:
    r = record(study, "small/diverging/n1g1/r0")
    assert r["status"] == "failed"
    assert r["failure"]["phase"] == "step" and r["failure"]["evidence"] and r["failure"]["remedy"]
    assert "diverging" in (study / "results/tables/runs.csv").read_text()
    html = (study / "results/report/report.html").read_text()
    assert r["failure"]["cause"] in html
    assert "http://" not in html.replace("http://www.w3.org", ""), "self-contained"


def test_the_terminal_follows_the_points_and_sums_them_up(study: Path) -> None:
    text = (study / "terminal.txt").read_text()
    assert "3 points: 3 waiting; full log: .snakemake/log/" in text
    assert "ingest small: started" in text and "ingest small: done" in text
    assert re.search(r"small/replicated/n1g2/r0: running, step \d+/30", text)
    assert re.search(r"small/replicated/n1g2/r0: ok, PSNR [\d.]+ dB, .+ \[\d/3 done: ", text)
    assert re.search(r"small/diverging/n1g1/r0: failed, diverged .+ \[\d/3 done: ", text)
    end = text[text.rindex("3 points: ") :]
    assert end.startswith("3 points: 2 ok, 1 failed")
    assert "report: results/report/report.html" in end
    assert "dist3dgs diagnose results/small/diverging/n1g1/r0/record.json" in end
    assert not re.search(r'slurm_partition|mem_mb=|"train"|steps \(\d+%\) done|record.json: ok', text)


def test_a_failed_point_is_the_exit_status_where_that_is_asked_for(study: Path) -> None:
    """Also where nothing else is left to do, as long as the point has failed."""
    (study / "strict.yaml").write_text(yaml.safe_dump({"fail_on": "failed"}))
    strict = ["--profile", "profiles/local", "--configfile", "small.yaml", "strict.yaml", "--", "all"]
    for _ in range(2):
        with pytest.raises(AssertionError, match="1 of 3 points failed"):
            snakemake(study, *strict)
    (study / "good.yaml").write_text(yaml.safe_dump({"strategies": ["replicated"], "exclude": []}))
    snakemake(study, *strict[:5], "good.yaml", "--", "all")
    run(study, "all")


def test_a_second_run_does_nothing_and_says_how_the_study_ended(study: Path) -> None:
    text = run(study, "all")
    assert "Nothing to be done" in text and "3 points: 2 ok, 1 failed" in text


def test_a_killed_rank_is_a_failed_record(study: Path) -> None:
    """kill -9 one of two ranks while it trains."""
    killed = []

    def kill_one() -> None:
        attempt = study / "results/small/replicated/n1g2/r5/attempts/000"
        for _ in range(600):
            time.sleep(0.1)
            seen = list(read_events(attempt))
            if any(e["event"] == "step" for e in seen):
                os.kill(
                    next(e["pid"] for e in seen if e["event"] == "start" and e["rank"] == 1), signal.SIGKILL
                )
                killed.append(True)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    run(study, "results/small/replicated/n1g2/r5/record.json")
    killer.join()
    assert killed
    r = record(study, "small/replicated/n1g2/r5")
    assert r["status"] == "failed"
    assert r["failure"]["phase"] and r["failure"]["evidence"]
    assert r["failure"]["rank"] == 1


def test_one_strategy_changed_is_one_strategy_trained(study: Path) -> None:
    changed = CONFIG | {"strategy_library": {"diverging": {"train": {"lr": {"means": 1e20}}}}}
    (study / "changed.yaml").write_text(yaml.safe_dump(changed))
    text = snakemake(study, "--profile", "profiles/local", "--configfile", "changed.yaml", "-n", "--", "all")
    assert job_table(text)["train"] == 1 and "ingest" not in job_table(text)


def test_a_licence_and_the_limits_of_ingest_make_nothing_but_the_page_again(study: Path) -> None:
    scene = CONFIG["scene_library"]["small"] | {
        "licence": "CC0-1.0",
        "sfm": {"timeout_s": 600, "memory_gib": 8, "num_threads": 1},
    }
    (study / "licence.yaml").write_text(yaml.safe_dump({"scene_library": {"small": scene}}))
    flags = ["--profile", "profiles/local", "--configfile", "small.yaml", "licence.yaml", "-n"]
    table = job_table(snakemake(study, *flags, "--", "all"))
    assert "write_report" in table and not {"photographs", "ingest", "train", "record"} & set(table)


def test_the_page_says_how_to_make_it_again_and_what_was_left_out(study: Path) -> None:
    html = (study / "results/report/report.html").read_text()
    assert "snakemake --profile profiles/local --configfile small.yaml -- " in html
    assert "diverging n1g2: one failure is enough" in html


def test_cached_figures_need_neither_data_nor_the_code_that_trained(study: Path, tmp_path: Path) -> None:
    run(study, "figures")  # points asked for in between join the figures
    clone = tmp_path / "clone"
    shutil.copytree(
        study, clone, symlinks=True, ignore=shutil.ignore_patterns("data", "checkpoints", ".snakemake")
    )
    before = digests(clone / "results/figures")
    shutil.rmtree(clone / "results/figures")
    text = run(clone, "figures", profile="profiles/cached")
    assert "tables, figures and report: started" in text and text.count("drawn: results/figures") == 1
    assert not any(f"{word}: started" in text for word in ("ingest", "photographs", "running"))
    assert digests(clone / "results/figures") == before, "drawn again, bit by bit the same"


def test_snakemakes_own_report_builds_offline(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    snakemake(study, "--configfile", "small.yaml", "--report", str(out))
    assert out.stat().st_size > 100_000


def test_the_point_cloud_opens_elsewhere(study: Path) -> None:
    """With plyfile alone: the property list that public viewers look for."""
    from plyfile import PlyData

    ply = PlyData.read(str(study / "results/small/replicated/n1g1/r0/point_cloud.ply"))
    names = [p.name for p in ply["vertex"].properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def test_bad_photographs_stop_before_training(study: Path) -> None:
    empty = study / "empty"
    empty.mkdir()
    config = CONFIG | {"scenes": ["mine"], "strategies": ["replicated"], "exclude": []}
    config["scene_library"] = {"mine": {"images": str(empty)}}
    (study / "mine.yaml").write_text(yaml.safe_dump(config))
    text = snakemake(
        study, "--profile", "profiles/local", "--configfile", "mine.yaml", "--", "all", check=False
    )
    assert str(empty) in text and "Traceback" not in text
    assert not (study / "results/mine").exists()
