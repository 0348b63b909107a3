"""Commands of the texts that need no cluster, in a study that has what the texts name: tests/texts.py lists them."""

import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from ..plain import plain_bin
from ..texts import PLACES, Command, How, commands
from ..unit.tiny import write_tiny
from .test_graph import ENVIRONMENT, REPOSITORY, snakemake

#: A training of seconds that leaves checkpoints of steps 4 and 8.
TRAIN = {
    "steps": 80,
    "global_batch": 8,
    "checkpoint_every": 32,
    "eval_every": 80,
    "lpips": False,
    "tensorboard": False,
}


def shell(folder: Path, command: str, exits: tuple[int, ...] = (0,)) -> str:
    """Run a line in `folder` as a person's shell would, with this environment's programs; its output."""
    environment = ENVIRONMENT | {"PATH": f"{plain_bin()}:{ENVIRONMENT['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode in exits, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def make_study(folder: Path) -> Path:
    """Our workflow, with the photographs and scenes that the texts speak of."""
    shutil.copy(REPOSITORY / "Snakefile", folder)
    for name in ("workflow", "config", "docs", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for photographs in ("photographs/fox", "photographs/courtyard"):
        (folder / photographs).mkdir(parents=True)
        (folder / photographs / "1.jpg").touch()
    scenes = yaml.safe_load((folder / "config/scenes.yaml").read_text())
    scenes["scene_library"]["courtyard"] = {"images": "photographs/courtyard"}
    (folder / "config/scenes.yaml").write_text(yaml.safe_dump(scenes))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study as shipped, nothing made yet."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of small trainings with a run of garden on 4 ranks, a record of builtin, and logs of jobs."""
    folder = make_study(tmp_path_factory.mktemp("trained"))
    config = yaml.safe_load((folder / "config/config.yaml").read_text())
    config["train"] |= TRAIN
    config["hardware"]["device"] = "cpu"
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config))
    for job in ("job", "slurm-123"):
        shutil.copy(REPOSITORY / "tests/unit/fixtures/diagnose/gpu_oom-torch26.log", folder / f"{job}.out")
        (folder / f"{job}.err").write_text("srun: error: gpu01: task 0: Exited with exit code 1\n")
    point = PLACES["POINT"]
    shutil.copytree(REPOSITORY / "results/reference" / point, folder / "results" / point)
    (folder / "data/garden").mkdir(parents=True)
    write_tiny(folder / "data/garden/scene.safetensors")
    point = "garden/sharded/n1g4/r0"
    launch = f'dist3dgs launch --spec "$(dist3dgs spec {point})" --scene data/garden/scene.safetensors'
    shell(folder, f"{launch} --out results/{point}")
    return folder


@pytest.mark.parametrize("command", commands(How.DRY_RUN), ids=lambda c: c.text)
def test_snakemake_takes_it(study: Path, command: Command) -> None:
    _, *argv = shlex.split(command.filled())
    snakemake(study, "-n", "--quiet", "rules", *argv)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(How.RUN), ids=lambda c: c.text)
def test_it_runs(trained: Path, command: Command) -> None:
    assert command.way is not None
    shell(trained, command.filled(), command.way.exits)


@cache
def options(program: str) -> set[str]:
    """Options that the program's --help names."""
    return set(re.findall(r"--[a-z][a-z-]*", shell(REPOSITORY, f"{program} --help")))


@pytest.mark.parametrize("command", commands(How.OPTIONS), ids=lambda c: c.text)
def test_its_help_names_its_options(command: Command) -> None:
    words = command.filled().split()
    program = " ".join(words[: 3 if words[1] == "-m" else 2])
    asked = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", command.text))
    assert asked <= options(program), f"{command.places}: {program} has no {asked - options(program)}"
