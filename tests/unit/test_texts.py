"""Commands in README, docs, config and profiles: each is exercised somewhere, and is one that a shell and make take."""

import re
import subprocess
from fnmatch import fnmatch

import pytest

from tests.texts import REPOSITORY, WAYS, How, commands

WHAT_TO_DO = """
Add a row to WAYS in tests/texts.py whose pattern matches the whole command, with the most real of these that can be:
{ways}
A name in capitals that stands for the reader's own needs an entry in PLACES there (in tests/slurm/test_texts.py for
what only a cluster has); a file that the command reads is made by the fixture `study` of the test that runs it.
If it is not a command, word the text so that no code span begins with a program's name."""


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, capture_output=True, text=True)


def targets() -> list[str]:
    return [line.split()[0] for line in make("help").stdout.splitlines()]


def test_every_command_is_exercised() -> None:
    missing = [f"  {c.places[0]}: {c.text}" for c in commands() if c.way is None]
    ways = "\n".join(f"  How.{how.name}: {how.value}" for how in How)
    assert not missing, "\n".join(["nothing exercises", *missing, WHAT_TO_DO.format(ways=ways)])


def test_commands_are_found_wherever_they_stand() -> None:
    found = {c.text: c for c in commands()}
    for text, place in {
        "make demo": "README.md",  # an untagged block, with a comment behind it
        "tmux new -s study": "docs/slurm.md",  # a block of a shell
        "dist3dgs status --configfile config/mipnerf360.yaml": "config/README.md",  # a span over two lines
        "snakemake --profile profiles/local --configfile config/journey.yaml -- all": "config/journey.yaml",
        "sinfo -o %G": "profiles/slurm/site.yaml",  # a span in a comment
    }.items():
        assert any(p.startswith(f"{place}:") for p in found[text].places), text
    assert {how for how in How if not commands(how)} == set()


def test_what_is_not_run_says_why() -> None:
    assert [w.pattern for w in WAYS if w.how in (How.OPTIONS, How.SHELL) and not w.reason] == []


@pytest.mark.parametrize("command", commands(), ids=lambda c: c.text)
def test_a_shell_can_parse_it(command) -> None:
    done = subprocess.run(["bash", "-n"], input=command.filled(), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{command.places}: {done.stderr}"


@pytest.mark.parametrize("command", commands(How.MAKE), ids=lambda c: c.text)
def test_make_has_the_target(command) -> None:
    _, target, *variables = command.filled().split()
    matching = [name for name in targets() if fnmatch(name, target)]
    assert matching, f"{command.places}: `make help` lists no target {target}"
    for name in matching:
        done = make("-n", name, *variables)
        assert done.returncode == 0 and done.stdout, f"{command.places}: {done.stderr}"


def test_the_packages_for_the_test_cluster_are_those_of_continuous_integration() -> None:
    (command,) = (c.text for c in commands(How.SHELL) if c.text.startswith("apt-get install"))
    assert set(command.split()[3:]) <= set((REPOSITORY / ".ci/run").read_text().split())


def test_the_map_of_contributing_names_files_that_exist() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    named = re.findall(r"^\| [^|]+ \| `(src/[^`]+)` \|$", text, re.M)
    assert len(named) >= 20
    assert [path for path in named if not (REPOSITORY / path).is_file()] == []
