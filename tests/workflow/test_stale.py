"""What is made again after a change, and what is not: content decides, not file times."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dist3dgs import figures
from dist3dgs.runs.events import read_events
from tests.unit.helpers.colmap_files import ColmapCamera, ring_model, write_bin
from tests.workflow.test_graph import ENVIRONMENT, REPOSITORY, job_table, snakemake

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 800, 600
POINT = "results/mine/replicated/n1g1/r0"
CONFIG: dict[str, Any] = {
    "scenes": ["mine"],
    "layouts": ["n1g1"],
    "train": {
        "steps": 12, "sh_every": 20, "eval_every": 20, "checkpoint_every": 6, "log_every": 3, "digest_every": 6,
        "lpips": False, "tensorboard": False, "densify": {"start_step": 4, "every": 4, "stop_step": 8},
    },
    "scene_library": {"mine": {"images": "photographs", "colmap": "model", "max_width_px": 64}},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one point that has run, from photographs of more than a megabyte each."""
    folder = tmp_path_factory.mktemp("stale") / "a study"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (folder / name).symlink_to(repository / name)
    camera = ColmapCamera("PINHOLE", WIDTH, HEIGHT, (700.0, 700.0, WIDTH / 2, HEIGHT / 2))
    model = ring_model(num_images=9, camera=camera)
    write_bin(model, folder / "model")
    for number, image in model.images.items():
        photograph(folder / "photographs" / image[3], seed=number)
    write_config(folder)
    run(folder, "all")
    assert json.loads((folder / POINT / "record.json").read_text())["status"] == "ok"
    return folder


@pytest.fixture
def study(made: Path) -> Iterator[Path]:
    """That study, put back as it was after the test."""
    away = made.parent / "as it was"
    shutil.copytree(made, away, symlinks=True)
    yield made
    shutil.rmtree(made)
    away.rename(made)


def photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert path.stat().st_size > 1_000_000, "Snakemake compares the content of smaller files by itself"


def write_config(folder: Path, **changes: Any) -> None:
    value = CONFIG | changes
    (folder / "mine.yaml").write_text(yaml.safe_dump(value | {"train": CONFIG["train"] | value["train"]}))


def run(folder: Path, *targets: str, profile: str = "profiles/local") -> str:
    return snakemake(folder, "--profile", profile, "--configfile", "mine.yaml", "--", *targets)


def planned(folder: Path, *flags: str, **environment: str) -> dict[str, int]:
    """The jobs that `all` would run, without itself."""
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "-n", *flags]
    command += ["--configfile", "mine.yaml", "--", "all"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    table = job_table(done.stdout)
    assert table or "Nothing to be done" in done.stdout + done.stderr
    return {rule: n for rule, n in table.items() if rule not in ("all", "total")}


def touch(folder: Path, *patterns: str) -> None:
    later = time.time() + 5
    for pattern in patterns:
        found = [path for path in folder.glob(pattern) if path.is_file()]
        assert found, pattern
        for path in found:
            os.utime(path, (later, later))


def test_file_times_make_nothing_again(study: Path) -> None:
    touch(study, "photographs/*", "model/*", "data/mine/*")
    pack = study / "data/mine/scene.safetensors"
    shutil.copy(pack, study / "copy")
    (study / "copy").replace(pack)
    assert planned(study) == {}


def test_file_times_make_nothing_again_where_snakemake_remembers_nothing(study: Path) -> None:
    """As in a copy of the folder without .snakemake."""
    shutil.rmtree(study / ".snakemake")
    touch(study, "photographs/*", "model/*", "data/mine/*")
    assert planned(study) == {}


def test_benchmarks_are_written_and_make_nothing_again(study: Path) -> None:
    """Snakemake takes a benchmark's time for its outputs' where it is the older one."""
    folder = study / "results/benchmarks"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.tsv")}
    assert names == {
        *("ingest/mine.tsv", "tabulate.tsv", "report.tsv"),
        *(f"figures/{name}.tsv" for name in figures.NAMES),
    }
    header, row = (folder / "ingest/mine.tsv").read_text().splitlines()[:2]
    assert float(dict(zip(header.split("\t"), row.split("\t"), strict=True))["s"]) > 0
    for path in folder.rglob("*.tsv"):
        os.utime(path, (1, 1))
    assert planned(study) == {}
    shutil.rmtree(folder)  # as in a study made before there were any
    assert planned(study) == {}


def test_settings_that_change_no_result_train_nothing_and_reach_the_launcher(study: Path) -> None:
    free = {"log_every": 5, "tensorboard": True, "checkpoint_every": 4, "keep_checkpoints": 1}
    write_config(study, train=free, hardware={"timeout_s": 500, "join_timeout_s": 200, "max_restarts": 1})
    assert planned(study) == {}
    assert planned(study, "--forcerun", "train")["train"] == 1
    flags = ["--profile", "profiles/local", "-n", "-p", "--forcerun", "train", "--configfile", "mine.yaml"]
    text = snakemake(study, *flags, "--", "all")
    assert '"log_every":5' in text and '"join_timeout_s":200' in text


def test_a_setting_that_changes_the_result_trains(study: Path) -> None:
    write_config(study, train={"steps": 14})
    assert planned(study)["train"] == 1 and "ingest" not in planned(study)


def test_other_photographs_are_ingested_and_trained_on(study: Path) -> None:
    """One of the same size and time."""
    path = next((study / "photographs").iterdir())
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    table = planned(study)
    assert {rule: table[rule] for rule in ("photographs", "ingest", "train", "record")} == {
        "photographs": 1, "ingest": 1, "train": 1, "record": 1,
    }  # fmt: skip


def test_another_packed_scene_is_trained_on(study: Path) -> None:
    """One that was put there by hand, with an old time."""
    pack = study / "data/mine/scene.safetensors"
    content = pack.read_bytes()
    digest = content[content.index(b'"digest":"') + 10 :][:64]
    pack.write_bytes(content.replace(digest, b"0" * 64, 1))
    os.utime(pack, (1, 1))
    table = planned(study)
    assert table["train"] == 1 and "ingest" not in table


def test_an_ingest_setting_ingests_and_trains_old_points_and_new_ones(study: Path) -> None:
    scenes = {"mine": CONFIG["scene_library"]["mine"] | {"max_width_px": 48}}
    write_config(study, scene_library=scenes, layouts=["n1g1", "n1g2"])
    table = planned(study)
    assert table["ingest"] == 1 and table["train"] == 2 and table["record"] == 2


def test_data_that_are_gone_are_not_missed(study: Path) -> None:
    shutil.rmtree(study / "data")
    assert planned(study) == {}


@pytest.mark.parametrize(
    ("path", "rules"),
    [
        (f"{POINT}/record.json", {"record", "tabulate", "figure", "write_report"}),
        ("results/tables/points.csv", {"tabulate", "figure", "write_report"}),
        ("results/figures/memory.pdf", {"figure", "write_report"}),
    ],
)
def test_what_was_deleted_is_made_again(study: Path, path: str, rules: set[str]) -> None:
    (study / path).unlink()
    assert set(planned(study)) == rules


def test_a_deleted_record_comes_from_the_evidence(study: Path) -> None:
    record = study / POINT / "record.json"
    before = json.loads(record.read_text())
    record.unlink()
    run(study, POINT + "/record.json")
    assert json.loads(record.read_text()) == before
    assert [p.name for p in (study / POINT / "attempts").iterdir()] == ["000"], "nothing was trained"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of our package, for PYTHONPATH."""
    shutil.copytree(
        REPOSITORY / "src/dist3dgs", tmp_path / "dist3dgs", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("figures/memory.py", {"figure": 1, "write_report": 1}),
        ("figures/style.py", {"figure": len(figures.NAMES), "write_report": 1}),
        ("report/style.css", {"write_report": 1}),
        (
            "diagnosis/own_run.py",
            {"record": 1, "tabulate": 1, "figure": len(figures.NAMES), "write_report": 1},
        ),
        ("train/loop.py", {"write_report": 1}),  # it marks the records that other code has trained
        ("status/table.py", {}),
    ],
)
def test_an_edit_of_code_makes_again_what_it_makes(
    study: Path, package: Path, file: str, rules: dict[str, int]
) -> None:
    path = package / "dist3dgs" / file
    path.write_text(path.read_text() + ("\n/* edited */\n" if path.suffix == ".css" else "\n# edited\n"))
    assert planned(study, PYTHONPATH=str(package)) == rules


def test_a_record_outside_the_matrix_that_changes_is_shown_again(study: Path) -> None:
    other = study / "results/mine/replicated/n1g1/r7/record.json"
    other.parent.mkdir()
    value = json.loads((study / POINT / "record.json").read_text())
    value["run"]["repeat"] = 7
    other.write_text(json.dumps(value))
    run(study, "all")
    assert planned(study) == {}
    value["metrics"]["psnr"] = 5.0
    other.write_text(json.dumps(value))
    assert planned(study) == {"tabulate": 1, "figure": len(figures.NAMES), "write_report": 1}


def test_records_alone_are_redrawn_in_another_clone(study: Path, tmp_path: Path) -> None:
    """By the cached profile, of which `--config` on the command line drops the `config:`."""
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copy(study / "mine.yaml", tmp_path)
    record = tmp_path / "other" / Path(POINT).relative_to("results") / "record.json"
    record.parent.mkdir(parents=True)
    shutil.copy(study / POINT / "record.json", record)
    flags = [
        "--profile",
        "profiles/cached",
        "--configfile",
        "mine.yaml",
        "--config",
        "results=other",
        "layouts=[n1g1,n1g2]",
    ]
    table = job_table(snakemake(tmp_path, *flags, "-n", "--", "all"))
    assert set(table) == {"all", "figure", "tabulate", "total", "write_report"}
    assert "drawn: other/figures" in snakemake(tmp_path, *flags, "--", "all")
    assert (tmp_path / "other/figures/speedup.svg").is_file() and not (tmp_path / "data").exists()
    assert "Nothing to be done" in snakemake(tmp_path, *flags, "--", "all")


# ---------------------------------------------------------------------------------------- dist3dgs retry


def retry(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dist3dgs.cli", "retry", "--configfile", "mine.yaml", *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)


def test_retry_has_nothing_to_do_where_nothing_failed(study: Path) -> None:
    done = retry(study)
    assert done.returncode == 0 and "no point of the study has failed" in done.stdout


def test_retry_trains_again_what_failed_with_what_was_changed(study: Path) -> None:
    impossible = {"replicated": {"train": {"lr": {"means": 1e30, "scales": 1e30}}}}
    write_config(study, strategy_library=impossible, layouts=["n1g1", "n1g2"])
    run(study, POINT + "/record.json")
    assert json.loads((study / POINT / "record.json").read_text())["status"] == "failed"
    write_config(study, layouts=["n1g1", "n1g2"], hardware={"timeout_s": 300})
    plan = retry(study, "--dry-run")
    assert plan.returncode == 0 and "mine/replicated/n1g1/r0: trained again" in plan.stdout
    assert "snakemake --profile profiles/local --configfile mine.yaml" in plan.stdout
    assert not (study / POINT / "attempts/002").exists()
    done = retry(study)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "its record is ok" in done.stdout
    assert json.loads((study / POINT / "record.json").read_text())["status"] == "ok"
    assert not (study / "results/mine/replicated/n1g2").exists(), "what never ran is not trained"


def test_retry_of_a_point_that_is_right_trains_it_from_the_start(study: Path) -> None:
    done = retry(study, "mine/replicated/n1g1/r0")
    assert done.returncode == 0, done.stdout + done.stderr
    events = read_events(study / POINT / "attempts/001")
    assert not [e for e in events if e["event"] == "resume"]


def test_retry_of_what_is_not_known_is_refused(study: Path) -> None:
    for point, message in (("mine/nope/n1g1", "strategy 'nope'"), ("mine", "expected scene/strategy/layout")):
        done = retry(study, point)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    done = retry(study, "mine/replicated/n1g1", "--profile", "profiles/nope")
    assert done.returncode == 2 and "profiles/nope" in done.stderr
