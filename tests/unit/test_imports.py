"""The analysis side starts fast and never imports torch; imports run one way."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "pycolmap", "llvmlite", "gsplat")
ANALYSIS = (
    "cli", "config", "diagnose", "errors", "events", "evidence", "figures", "files", "guard", "judge", "launch",
    "matrix", "monitor", "names", "record", "report", "reserve", "resume", "scaling", "slurm", "spec", "tabulate",
    "watch",
)  # fmt: skip
#: Rooms in the order in which they may import each other: a room imports only rooms before it.
TRAINING = ("scenes", "splats", "parallel", "train")


@pytest.mark.parametrize("module", ANALYSIS)
def test_the_analysis_side_never_imports_torch(module: str) -> None:
    code = f"import sys, dist3dgs.{module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_analysis_source_imports_torch_even_lazily(repository: Path) -> None:
    package = repository / "src/dist3dgs"
    for name in ANALYSIS:
        path = package / name
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            for node in ast.walk(ast.parse(file.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not [n for n in names if n.split(".")[0] in HEAVY], f"{file} imports {names}"


def test_training_rooms_import_only_rooms_before_them(repository: Path) -> None:
    for index, room in enumerate(TRAINING):
        later = TRAINING[index + 1 :]
        for file in (repository / "src/dist3dgs" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom):
                    words = (node.module or "").split(".")
                    assert not set(words) & set(later) or words[:1] == ["torch"], f"{file}: {node.module}"


def test_the_command_line_starts_in_under_a_second() -> None:
    best = 9.0
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dist3dgs.cli", "points"], check=True, capture_output=True)
        best = min(best, time.perf_counter() - started)
    assert best < 1.0
