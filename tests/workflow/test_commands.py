"""Every Snakemake command that a text of ours tells a person to type is one that Snakemake takes."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from .test_graph import REPOSITORY, snakemake

TEXTS = (
    *("README.md", "CONTRIBUTING.md", "config/*.md", "config/*.yaml", "docs/**/*.md", "docs/**/*.yaml"),
    *("profiles/*/*.yaml", "Snakefile", "workflow/rules/*.smk", "results/reference/*.md"),
)
#: What texts write in place of names.
PLACES = {"SCENE": "builtin", "POINT": "builtin/replicated/n1g2/r0"}


def commands() -> list[str]:
    """Lines or code spans that begin with the command and name a target, less the comments behind them, each once."""
    found = set()
    for pattern in TEXTS:
        for path in REPOSITORY.glob(pattern):
            for m in re.finditer(r"(?:^[ #]*|`|: +)(snakemake -[^`\n]*)", path.read_text(), re.M):
                command = re.split(r" {2,}| #|\)", m[1])[0].strip().rstrip(",.")
                found.add(re.sub("|".join(PLACES), lambda place: PLACES[place[0]], command))
    return sorted(c for c in found if "--lint" not in c and c != "snakemake -F")


@pytest.fixture(scope="module")
def study(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our workflow, with the photographs and scenes that the texts speak of."""
    folder = tmp_path_factory.mktemp("commands")
    for name in ("Snakefile", "workflow", "profiles", "docs"):
        (folder / name).symlink_to(repository / name)
    (folder / "config").mkdir()
    for path in (repository / "config").glob("*.yaml"):
        (folder / "config" / path.name).write_text(path.read_text())
    for photographs in ("photographs/fox", "photographs/courtyard"):
        (folder / photographs).mkdir(parents=True)
        (folder / photographs / "1.jpg").touch()
    scenes = yaml.safe_load((repository / "config/scenes.yaml").read_text())
    scenes["scene_library"]["courtyard"] = {"images": "photographs/courtyard"}
    (folder / "config/scenes.yaml").write_text(yaml.safe_dump(scenes))
    return folder


def test_there_are_commands() -> None:
    found = commands()
    assert len(found) > 10
    assert "snakemake --profile profiles/local --configfile config/journey.yaml -- all" in found


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_texts_is_taken(study: Path, command: str) -> None:
    _, *argv = shlex.split(command)
    snakemake(study, "-n", "--quiet", "rules", *argv)
