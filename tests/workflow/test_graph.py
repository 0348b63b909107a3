"""The graph itself: what would run, for every config we ship, and what a change makes run again. Nothing is trained."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plain import plain_bin

TARGETS = {"photographs": 1, "ingest": 1, "train": 2, "record": 2, "tabulate": 1, "write_report": 1}


REPOSITORY = Path(__file__).parents[2]
#: Rules call `dist3dgs`: that of the environment the tests run in.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def snakemake(workdir: Path, *argv: str, check: bool = True) -> str:
    command = [str(plain_bin() / "python"), "-m", "snakemake", *argv]
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
    demo = snakemake(
        study, "--profile", "profiles/local", "--configfile", "config/demo.yaml", "-n", "--", "all"
    )
    assert job_table(demo)["train"] == 3, "both strategies on two ranks, one of them on one"


def test_the_cluster_example(study: Path) -> None:
    text = snakemake(study, "--configfile", "config/mipnerf360.yaml", "-n", "all")
    assert job_table(text)["train"] == 9 * 4


def test_one_point_is_one_training(study: Path) -> None:
    table = job_table(snakemake(study, "-n", "results/builtin/mcmc/n2g3/r7/record.json"))
    assert table == {"photographs": 1, "ingest": 1, "train": 1, "record": 1, "total": 4}


def test_block_jobs_go_on_from_the_coarse_training_and_are_merged(study: Path) -> None:
    """The Snakemake within a job runs its own rule alone, whatever it thinks of the coarse training's result."""
    point = "results/builtin/blocks-jobs/n1g1/r0"
    for name in ("data/builtin/scene.safetensors", f"{point}/parts/coarse/launch.json"):
        (study / name).parent.mkdir(parents=True)
        (study / name).write_text("{}")
    allowed = ["--allowed-rules", "train_block", "train", "record"]
    table = job_table(snakemake(study, "-n", *allowed, "--", f"{point}/record.json"))
    assert table == {"train_block": 4, "train": 1, "record": 1, "total": 6}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("results/builtin/nope/n1g1/r0/record.json", "strategy 'nope'"),
        ("results/builtim/replicated/n1g1/r0/record.json", "did you mean 'builtin'"),
        (
            "results/builtin/replicated/n0g1/r0/record.json",
            "layout 'n0g1': expected n<nodes>g<workers per node>",
        ),
        ("results/builtin/replicated/n1g1/0/record.json", "repeat '0': expected r0, r1"),
        ("results/builtin/replicated/r0/n1g1/launch.json", "repeat 'n1g1'"),
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
        ("repeats=many", "--config: setting `repeats`: must be a whole number"),
        ("results=a{b}", "setting `results`"),
        ("scene_library={mine: {images: /does/not/exist}} scenes=[mine]", "no such folder"),
    ],
)
def test_a_wrong_config_stops_before_anything_runs(study: Path, config: str, message: str) -> None:
    text = snakemake(
        study, "-n", "all", "--config", *config.split(" scenes=")[:1], *scenes_part(config), check=False
    )
    assert message in text
    assert "Traceback" not in text
    assert not (study / "results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "repeats: 1\nrepeats: 2",
            "mine.yaml, line 2, column 1: not valid YAML: `repeats` stands in line 1 and again in line 2",
        ),
        ("train: {stps: 3}", "mine.yaml: unknown setting `train.stps`; did you mean `steps`?"),
        ("strategy_library: {mcmc: {train: {stps: 3}}}", "mine.yaml: mcmc.train: unknown setting `stps`"),
        ("scene_library: {garden: {test_every: 1}}", "mine.yaml: garden: setting `test_every`"),
    ],
)
def test_a_mistake_in_a_file_on_top_is_found_in_that_file(study: Path, text: str, message: str) -> None:
    (study / "mine.yaml").write_text(text)
    assert message in snakemake(study, "-n", "--configfile", "mine.yaml", "--", "all", check=False)


def test_photographs_of_any_name_are_listed_once(study: Path) -> None:
    """The rule's inputs and source.json list the same files: odd names, linked folders, loops, litter."""
    folder = study / "my photos"
    (study / "store").mkdir()
    folder.mkdir()
    names = ["a.jpg", "{x}.jpg", "9.41\u202fAM.jpg", "$(touch x).jpg", "'\".jpg", "store/b.jpg"]
    (folder / "store").symlink_to("../store")
    (study / "store/up").symlink_to("..")
    for name in [*names, ".DS_Store", "line\nbreak.jpg", os.fsdecode(b"caf\xe9.jpg")]:
        (folder / name).write_bytes(b"x")
    (study / "mine.yaml").write_text("scene_library: {mine: {images: my photos}}")
    command = ("--configfile", "mine.yaml", "--", "data/mine/source.json")
    text = snakemake(study, "--profile", "profiles/local", *command)
    files = json.loads((study / "data/mine/source.json").read_text())["files"]
    assert {f["path"] for f in files} == {f"my photos/{name}" for name in names}
    assert "Nothing to be done" in snakemake(study, "--profile", "profiles/local", *command)
    assert "Traceback" not in text and not (study / "x").exists()


@pytest.mark.parametrize(
    ("name", "definition", "path"),
    [
        ("mine", "images: '{}'", "~/no such"),
        ("room", "colmap: '{}', images: .", "$HOME/no"),
        ("mine", "images: '{}', colmap: .", "clip.mp4"),
    ],
)
def test_a_folder_that_is_not_there_names_the_file_that_has_it(
    study: Path, name: str, definition: str, path: str
) -> None:
    (study / "clip.mp4").write_bytes(b"x")
    (study / "mine.yaml").write_text(f"scene_library: {{{name}: {{{definition.format(path)}}}}}")
    text = snakemake(study, "-n", "--configfile", "mine.yaml", "--", f"data/{name}/source.json", check=False)
    (line,) = [x for x in text.splitlines() if x.startswith("error: ")]
    place, _, rest = line.removeprefix("error: ").partition(f": {name}: `")
    assert place == "mine.yaml", line
    key, _, rest = rest.partition(":` ")
    assert key == ("colmap" if name == "room" else "images")
    assert rest.startswith(str(Path(path).expanduser())), "what it was taken for"
    assert ("ffmpeg" if path == "clip.mp4" else "no such folder. Relative paths start") in rest


def test_a_mistake_in_yaml_is_found_before_snakemake_stumbles_over_it(study: Path) -> None:
    (study / "config").unlink()  # a link to the repository's
    shutil.copytree(REPOSITORY / "config", study / "config")
    (study / "config/scenes.yaml").write_text("scene_library:\n  mine: {builtin: {}\n")
    text = snakemake(study, "-n", "--", "all", check=False)
    assert "config/scenes.yaml, line 3" in text and "Traceback" not in text


def test_a_study_in_the_shell_is_the_one_of_the_workflow(study: Path) -> None:
    files = ["config/journey.yaml", "docs/benchmarks/fox.yaml"]
    (study / "docs").symlink_to(REPOSITORY / "docs")
    (study / "photographs/fox").mkdir(parents=True)
    table = job_table(
        snakemake(study, "-n", "--configfile", *files, "--config", "exclude=[]", "--", "train_all")
    )
    overlay = [option for name in files for option in ("--configfile", name)]
    command = [sys.executable, "-m", "dist3dgs.cli", "points", *overlay]
    (study / "more.yaml").write_text("exclude: []")
    done = subprocess.run(
        [*command, "--configfile", "more.yaml"], cwd=study, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == table["train"] == 4


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


@pytest.mark.parametrize("name", ["results", "data"])
def test_a_folder_below_a_file_is_one_error(study: Path, name: str) -> None:
    flags = ["--profile", "profiles/local", "--config", f"{name}=Snakefile/x"]
    text = snakemake(study, *flags, "--", "all", check=False)
    assert f"`{name}: Snakefile/x`: " in text and f"is a file; give a folder: --config {name}=FOLDER" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", ["results", "data"])
def test_a_folder_that_cannot_be_written_is_found_before_the_first_job(study: Path, name: str) -> None:
    """In /proc not even root may."""
    flags = ["--profile", "profiles/local", "--config", f"{name}=/proc/nowhere"]
    text = snakemake(study, *flags, "--", "all", check=False)
    assert f"`{name}: /proc/nowhere` cannot be written" in text and "started" not in text
    assert not any((study / ".snakemake/locks").glob("*"))


@pytest.mark.parametrize("options", [["-n"], []])
def test_an_overlay_that_is_no_yaml_is_named_with_its_line(study: Path, options: list[str]) -> None:
    (study / "bad.yaml").write_text("scenes: [tiny\nlayouts: [n1g1]\n")
    text = snakemake(
        study, "--profile", "profiles/local", "--configfile", "bad.yaml", *options, "--", "all", check=False
    )
    assert "error: bad.yaml, line 2, column 8: not valid YAML" in text
