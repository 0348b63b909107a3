"""The graph itself: what would run, for every config we ship, and what a change makes run again. Nothing is trained."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {"photographs": 1, "ingest": 1, "train": 2, "record": 2, "tabulate": 1, "write_report": 1}


REPOSITORY = Path(__file__).parents[2]
#: Rules call `dist3dgs`: that of the environment the tests run in.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def snakemake(workdir: Path, *argv: str, check: bool = True) -> str:
    command = [sys.executable, "-m", "snakemake", *argv]
    done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, env=ENVIRONMENT)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def job_table(text: str) -> dict[str, int]:
    return {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)$", text, re.M)}


@pytest.fixture
def study(repository: Path, tmp_path: Path) -> Path:
    """A folder with a space in its name that has our workflow, as a clone elsewhere would."""
    folder = tmp_path / "a study"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (folder / name).symlink_to(repository / name)
    return folder


def test_the_demo_is_a_whole_study(study: Path) -> None:
    table = job_table(snakemake(study, "--profile", "profiles/local", "-n", "all"))
    assert table["figure"] >= 7
    assert {k: table[k] for k in TARGETS} == TARGETS


def test_the_cluster_example(study: Path) -> None:
    text = snakemake(study, "--configfile", "config/mipnerf360.yaml", "-n", "all")
    assert job_table(text)["train"] == 9 * 4


def test_one_point_is_one_training(study: Path) -> None:
    table = job_table(snakemake(study, "-n", "results/builtin/mcmc/n2g3/r7/record.json"))
    assert table == {"photographs": 1, "ingest": 1, "train": 1, "record": 1, "total": 4}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("results/builtin/nope/n1g1/r0/record.json", "strategy 'nope'"),
        ("results/builtim/replicated/n1g1/r0/record.json", "did you mean 'builtin'"),
        ("results/builtin/replicated/n0g1/r0/record.json", "MissingRule"),
        ("results/../../etc/replicated/n1g1/r0/record.json", "MissingRule"),
    ],
)
def test_a_wrong_target_is_answered_in_words(study: Path, target: str, message: str) -> None:
    text = snakemake(study, "-n", target, check=False)
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("layouts=['n0g4']", "layout 'n0g4'"),
        ("foo=1", "unknown setting `foo`"),
        ("scenes=['none']", "scene 'none' is not in config/scenes.yaml"),
        ("repeats=many", "setting `repeats`"),
        ("scene_library={mine: {images: /does/not/exist}} scenes=[mine]", "does not exist"),
    ],
)
def test_a_wrong_config_stops_before_anything_runs(study: Path, config: str, message: str) -> None:
    text = snakemake(
        study, "-n", "all", "--config", *config.split(" scenes=")[:1], *scenes_part(config), check=False
    )
    assert message in text
    assert "Traceback" not in text
    assert not (study / "results").exists()


def scenes_part(config: str) -> list[str]:
    return [f"scenes={config.split(' scenes=')[1]}"] if " scenes=" in config else []


def test_lint_is_clean(study: Path) -> None:
    assert "good condition" in snakemake(study, "--lint")


def test_the_shim_for_the_workflow_catalogue(study: Path) -> None:
    table = job_table(snakemake(study, "-n", "-s", "workflow/Snakefile", "train_all"))
    assert table["train"] == 2


def test_a_newcomer_draws_the_reference_records(study: Path, repository: Path) -> None:
    shutil.copytree(
        repository / "results/reference",
        study / "reference",
        ignore=shutil.ignore_patterns("figures", "tables"),
    )
    snakemake(
        study,
        "--profile",
        "profiles/cached",
        "--config",
        "only_existing=true",
        "results=reference",
        "--",
        "figures",
    )
    assert len(list((study / "reference/figures").glob("*.svg"))) >= 7
    assert "n1g2" in (study / "reference/tables/points.csv").read_text()
