"""The analysis side starts fast and never imports torch; imports run one way."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "pycolmap", "llvmlite", "gsplat")
#: Modules and packages in the order in which they may import each other: each imports only those before it.
ORDER = (
    *(
        "errors",
        "units",
        "files",
        "console",
        "monitoring",
        "config",
        "scenes",
        "runs",
        "workloads",
        "logs",
        "diagnosis",
        "records",
    ),
    *(
        "analysis",
        "predict",
        "figures",
        "report",
        "slurm",
        "launch",
        "status",
        "verify",
        "splats",
        "parallel",
        "train",
        "bench",
        "cli",
    ),
)
#: Packages that compute; all others start in no time.
COMPUTING = ("scenes", "splats", "parallel", "train", "bench")
ANALYSIS = tuple(name for name in ORDER if name not in COMPUTING)
#: Modules of the analysis side with one function that computes, called in a process of its own.
LAZILY = ("launch/gsplat_build.py",)
#: Programs of the shipped workloads, run as programs of others are.
APPLICATIONS = (
    "workloads/training.py",
    "workloads/resnet.py",
    "workloads/transformer.py",
    "workloads/planner.py",
)


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def test_the_analysis_side_never_imports_torch() -> None:
    """One process imports all of it in turn; the first module that brings a heavy one along is named."""
    code = (
        "import importlib, sys\n"
        f"for name in {ANALYSIS!r}:\n"
        "    importlib.import_module(f'dist3dgs.{name}')\n"
        f"    if found := [m for m in {HEAVY!r} if m in sys.modules]:\n"
        "        sys.exit(f'{name} imports {found}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_analysis_source_imports_torch_even_lazily(repository: Path) -> None:
    package = repository / "src/dist3dgs"
    for name in ANALYSIS:
        path = package / name
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            if str(file.relative_to(package)) in LAZILY + APPLICATIONS:
                continue
            for node in nodes(file):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not [n for n in names if n.split(".")[0] in HEAVY], f"{file} imports {names}"


def imported_packages(file: Path, package: Path) -> set[str]:
    """Packages that a file imports anywhere, also in functions."""
    here = [package.name, *file.relative_to(package).parent.parts]
    found = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            modules = [f"{module}.{a.name}" for a in node.names] if module == package.name else [module]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith(f"{package.name}.")}
    return found - {"__version__"}


def test_imports_run_one_way(repository: Path) -> None:
    package = repository / "src/dist3dgs"
    there = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()} - {
        "__init__"
    }
    assert there == set(ORDER), "every package has a place in the order"
    for place, name in enumerate(ORDER):
        path = package / name
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            later = imported_packages(file, package) - set(ORDER[: place + 1])
            assert not later, f"{file} imports {later}, which come after {name}"


def test_the_command_line_starts_with_little_beside_what_it_stands_on() -> None:
    """A fifth of a second on a laptop; told by calls of functions, five times those of two libraries' imports."""

    def calls(code: str) -> int:
        counting = (
            "import cProfile, sys\n"
            "profile = cProfile.Profile()\n"
            "try:\n"
            f"    profile.run({code!r})\n"
            "except SystemExit as e:\n"
            "    assert not e.code\n"
            "print(sum(entry.callcount for entry in profile.getstats()), file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", counting], check=True, capture_output=True, text=True)
        return int(done.stderr)

    points = "import sys; sys.argv[1:] = ['points']; from dist3dgs.cli import main; sys.exit(main())"
    assert calls(points) < 7 * calls("import pydantic, yaml")


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for file in package.rglob("*.py"):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def test_no_module_imports_itself_through_others(repository: Path) -> None:
    """Inside a package too; imports for type checkers alone count."""
    known = modules(repository / "src/dist3dgs")
    graph: dict[str, set[str]] = {}
    for name, file in known.items():
        here = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        for node in nodes(file):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join(
                    [*here[: len(here) - node.level + 1], *([node.module] if node.module else [])]
                )
                targets = {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
                graph.setdefault(name, set()).update(targets - {name})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        pytest.fail(f"a circle of imports: {' -> '.join(e.args[1])}")
