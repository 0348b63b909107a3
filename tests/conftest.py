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
    """The folder of real photographs and logs that tests may use and the project does not need."""
    folder = Path(os.environ.get("DIST3DGS_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of shared test data at {folder} (set DIST3DGS_SHARED)")
    return folder
