"""Docstrings open in the imperative or with a noun, not with a question word."""

import ast
from pathlib import Path

QUESTIONS = ("What", "Whether", "Which", "How", "As", "Who", "Where", "When", "If", "Of")


def openings(file: Path) -> list[tuple[int, str]]:
    """Return (line, first line) of every docstring of a file, those of fields included."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in node.body:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))) if text.strip():
                    found.append((statement.lineno, text.strip().splitlines()[0]))
    return found


def test_docstrings_do_not_open_with_a_question_word(repository: Path) -> None:
    every = [(f, *o) for f in (repository / "src").rglob("*.py") for o in openings(f)]
    bad = [f"{f}:{line}: {text}" for f, line, text in every if text.split()[0] in QUESTIONS]
    assert len(every) > 1000 and not bad, "\n".join(bad)
