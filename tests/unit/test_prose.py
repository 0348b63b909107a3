"""Docstrings say what to expect in the imperative or with a noun, not as a question."""

import ast
from pathlib import Path

QUESTIONS = ("What", "Whether", "Which", "How", "As", "Who", "Where")


def openings(file: Path) -> list[tuple[int, str]]:
    """(line, first line) of every docstring of a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            found.append((getattr(node, "lineno", 1), text.splitlines()[0]))
    return found


def test_docstrings_do_not_open_with_a_question_word(repository: Path) -> None:
    all_of_them = [(f, *o) for f in (repository / "src").rglob("*.py") for o in openings(f)]
    bad = [f"{f}:{line}: {text}" for f, line, text in all_of_them if text.split()[0] in QUESTIONS]
    assert len(all_of_them) > 1000 and len(bad) < 0.01 * len(all_of_them), "\n".join(bad)
