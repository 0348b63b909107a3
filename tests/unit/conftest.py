"""Shared by the unit tests."""

from pathlib import Path

import pytest
from hypothesis import settings


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed scene of 20 photographs, 64 x 48 px."""
    from .tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "scene.safetensors")


# Time limits per example mean nothing on a machine that others use as well.
settings.register_profile("dist3dgs", deadline=None)
settings.load_profile("dist3dgs")
