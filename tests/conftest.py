"""Shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and logs that tests may use and the project does not need.

    $DIST3DGS_SHARED, or `shared` beside the checkout if it is ours: any project may have a neighbour of that name.
    """
    folder = Path(os.environ.get("DIST3DGS_SHARED", REPOSITORY.parent / "shared"))
    marks = ("failure-logs/index.json", "scenes/README.md")
    if not any((folder / mark).is_file() for mark in marks):
        pytest.skip(f"no shared test data at {folder}: neither {' nor '.join(marks)} (set DIST3DGS_SHARED)")
    return folder
