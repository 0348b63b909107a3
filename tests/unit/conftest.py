"""Shared by the unit tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Test workers that share cores wait for each other's threads: at two threads each, small kernels take five times as
# long. Tests of threads set their number themselves. OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Shells have jobs in the background, and nohup its command, ignore these; tests send them, to children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed scene of 20 photographs, 64 x 48 px."""
    from tests.unit.helpers.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "scene.safetensors")


# Time limits per example mean nothing on a machine that others use as well.
# CI draws the same examples every time, so that it says what the change did; everybody else explores.
settings.register_profile("dist3dgs", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("dist3dgs")
