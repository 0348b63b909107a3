"""The hooks of pre-commit are the checks of `make check`, and stop a commit that they refuse."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml


def test_hooks_run_what_make_check_runs(repository: Path) -> None:
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)

    def check(command: str) -> str:
        words = command.removeprefix(".venv/bin/").split()
        return " ".join(words[:2]) if words[0] in ("ruff", "snakemake") else words[0]

    lines = (repository / "scripts/check.sh").read_text().splitlines()
    checks = {check(line) for line in lines if line and not line.startswith(("#", "set "))}
    assert {check(hook["entry"]) for hook in hooks} == checks


def test_a_commit_is_stopped_and_its_file_formatted(repository: Path, tmp_path: Path) -> None:
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "mine.py").write_text("x = {  'a':1 }\n")

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PRE_COMMIT_HOME": str(tmp_path / "cache")}
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=environment)

    call("git", "init", "-q", ".")
    call("git", "add", "mine.py", ".pre-commit-config.yaml")
    hook = (f"{sys.prefix}/bin/pre-commit", "run", "ruff-format", "--files", "mine.py")
    done = call(*hook)
    assert done.returncode == 1 and "files were modified" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "mine.py").read_text() == 'x = {"a": 1}\n'
    done = call(*hook)
    assert done.returncode == 0, done.stdout
