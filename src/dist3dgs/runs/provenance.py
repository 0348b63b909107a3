"""Digests of the code and the data that results are made from.

Snakemake compares them between runs as parameters of its rules. Unlike file times they stay the same when a file is
touched, copied or checked out again.
"""

import ast
import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ..files import sha256, write_json

PACKAGE = Path(__file__).parents[1]
#: Code that decides the outcome of a training; the analysis side may change without making runs stale.
TRAINING_CODE = ("splats", "parallel", "train", "scenes/pack.py", "config/models.py")
#: Code that turns the evidence of a run into its record.
JUDGING_CODE = ("records", "diagnosis", "logs", "runs/record.py", "runs/metrics.py")


def code_digest(parts: Iterable[str] = TRAINING_CODE) -> str:
    """Return the SHA-256 of paths and contents of files and folders of the package, by default the training code."""
    files: list[Path] = []
    for part in parts:
        root = PACKAGE / part
        files += sorted(root.rglob("*.py")) if root.is_dir() else [root]
    return _digest_of(files)


def imported_code_digest(*modules: str) -> str:
    """Return the SHA-256 of modules of the package and everything they import from it, with the data files beside them.

    Args:
        modules: relative to the package, e.g. "figures.speedup".
    """
    files: set[Path] = set()
    found = set[tuple[str, ...]]()
    left = [tuple(module.split(".")) for module in modules]
    while left:
        module = left.pop()
        if module in found:
            continue
        found.add(module)
        path = _file_of(module)
        if path is None:
            continue
        files.add(path)
        if path.name == "__init__.py":
            files |= {p for p in path.parent.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")}
        left += [*_imports(path, path.read_bytes()), *(module[:i] for i in range(1, len(module)))]
    return _digest_of(sorted(files))


def scene_digest(pack: Path) -> str | None:
    """Read the digest of a packed scene's content from its header; None where it is missing or unreadable."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(pack, framework="np") as f:
            return (f.metadata() or {}).get("digest")
    except (SafetensorError, OSError):
        return None


def content_digest(files: Iterable[Path], cache: Path) -> str:
    """Return the SHA-256 of paths and contents of files. Only what has changed since the last time is read.

    Args:
        cache: JSON file with the sizes, times and digests of the last time; written only where its folder exists.
    """
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    now: dict[str, list[Any]] = {}
    for path in sorted(map(Path, files)):
        stat = path.stat()
        entry = known.get(str(path))
        if not (
            isinstance(entry, list) and entry[:2] == [stat.st_size, stat.st_mtime_ns] and len(entry) == 3
        ):
            entry = [stat.st_size, stat.st_mtime_ns, sha256(path)]
        now[str(path)] = entry
    if now != known and cache.parent.is_dir():
        with contextlib.suppress(OSError):  # another user's folder: everything is read again next time
            write_json(cache, now)
    return hashlib.sha256(json.dumps([(path, entry[2]) for path, entry in now.items()]).encode()).hexdigest()


def git_state() -> dict[str, Any]:
    """Return `git_sha` and `git_dirty` of the checkout the package runs from; nulls where it is none."""
    state: dict[str, Any] = {"git_sha": None, "git_dirty": None}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        state["git_sha"] = _git("rev-parse", "HEAD").strip()
        state["git_dirty"] = bool(_git("status", "--porcelain", "--untracked-files=no").strip())
    return state


def _git(*argv: str) -> str:
    command = ["git", "-C", str(PACKAGE), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout


def _digest_of(files: Iterable[Path]) -> str:
    h = hashlib.sha256()
    for path in files:
        h.update(str(path.relative_to(PACKAGE)).encode())
        h.update(path.read_bytes())
    return h.hexdigest()


def _file_of(module: tuple[str, ...]) -> Path | None:
    """Find the source of a module given relative to the package; None for names that are no module."""
    path = PACKAGE.joinpath(*module)
    options = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((p for p in options if p.is_file()), None)


@cache
def _imports(path: Path, source: bytes) -> tuple[tuple[str, ...], ...]:
    """List candidates for the modules of the package that a file imports, also within functions."""
    here = path.relative_to(PACKAGE).parent.parts
    found: list[tuple[str, ...]] = []
    for node in _statements(ast.parse(source).body):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
            found += [name[1:] for name in names if name[0] == PACKAGE.name and len(name) > 1]
        elif isinstance(node, ast.ImportFrom):
            base: tuple[str, ...] = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = (*here[: len(here) - node.level + 1], *base)
            elif base[:1] == (PACKAGE.name,):
                base = base[1:]
            else:
                continue
            found += [base] if base else []
            found += [(*base, alias.name) for alias in node.names]
    return tuple(found)


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield statements at any depth, without their expressions: an import is never one."""
    for node in body:
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, name, ()))
