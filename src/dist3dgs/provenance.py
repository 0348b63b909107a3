"""Which code made a number."""

import contextlib
import hashlib
import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
#: What decides the outcome of a training; the analysis side may change without making runs stale.
TRAINING_CODE = ("splats", "parallel", "train", "scenes/pack.py", "spec.py")


def code_digest() -> str:
    """SHA-256 over the paths and contents of the training code."""
    h = hashlib.sha256()
    for part in TRAINING_CODE:
        root = PACKAGE / part
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            h.update(str(path.relative_to(PACKAGE)).encode())
            h.update(path.read_bytes())
    return h.hexdigest()


def git_state() -> dict[str, Any]:
    """`git_sha` and `git_dirty` of the checkout the package runs from; nulls where it is none."""
    state: dict[str, Any] = {"git_sha": None, "git_dirty": None}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        state["git_sha"] = _git("rev-parse", "HEAD").strip()
        state["git_dirty"] = bool(_git("status", "--porcelain", "--untracked-files=no").strip())
    return state


def _git(*argv: str) -> str:
    command = ["git", "-C", str(PACKAGE), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
