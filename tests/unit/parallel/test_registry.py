"""A strategy from another package: an entry point, without a change of this one's source."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from dist3dgs.config.models import STRATEGIES, Strategy

SOURCE = """
from dist3dgs.parallel.replicated import Replicated

class Scattered(Replicated):
    pass
"""
USE = """
import torch
from dist3dgs.config.models import Strategy
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.registry import make_parallel
from dist3dgs.splats.render import get_renderer
from tests.unit.helpers import tiny
spec = tiny.spec(strategy={"kind": "scattered"})
print(type(make_parallel(spec, Communicator(), get_renderer("cpu"), torch.device("cpu"))).__name__)
"""


@pytest.mark.slow
def test_an_entry_point_adds_a_strategy(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "scattered.py").write_text(SOURCE)
    (tmp_path / "scattered-1.0.dist-info").mkdir()
    (tmp_path / "scattered-1.0.dist-info" / "METADATA").write_text("Name: scattered\nVersion: 1.0\n")
    (tmp_path / "scattered-1.0.dist-info" / "entry_points.txt").write_text(
        "[dist3dgs.strategies]\nscattered = scattered:Scattered\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"}
    done = subprocess.run(
        [sys.executable, "-c", USE], env=environment, capture_output=True, text=True, cwd=repository
    )
    assert done.stdout.split() == ["Scattered"], done.stderr


def test_an_unknown_strategy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        Strategy(kind="scattered")
    assert all(kind in str(caught.value) for kind in STRATEGIES)
