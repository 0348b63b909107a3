"""Arguments passed to gsplat's extension match the signatures of the compiled library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs.launch import gsplat_build
from tests.unit.helpers import gsplat_standin

pytestmark = pytest.mark.slow

#: pybind11 writes them into the docstrings. Loading needs no GPU.
SIGNATURES = """
import importlib, json, sys
from dist3dgs.launch import gsplat_build
gsplat_build.load()
compiled = importlib.import_module(gsplat_build.COMPILED)
print(json.dumps({name: getattr(compiled, name).__doc__.splitlines()[0] for name in sys.argv[1:]}))
"""

CALLS = """
import json, re, sys
import torch
from tests.unit.helpers import gsplat_standin, operations
from tests.unit.helpers.clouds import random_cloud, run

number, tensor = (int, float), torch.Tensor
KINDS = {
    "torch.Tensor": tensor, "torch.Tensor | None": (tensor, type(None)), "Optional[torch.Tensor]": (tensor, type(None)),
    "typing.SupportsInt": int, "int": int, "typing.SupportsFloat": number, "float": number, "bool": bool,
    "gsplat_cuda.CameraModelType": str,  # the stand-in's
}
signatures, called = json.loads(sys.argv[1]), set()
gsplat_standin.install()
extension = sys.modules[gsplat_standin.COMPILED]

def checked(name, function):
    kinds = re.findall(r"arg\\d+: ([^,)]+)", signatures[name])
    def call(*given):
        called.add(name)
        assert len(given) == len(kinds), (name, len(given), kinds)
        for place, (value, kind) in enumerate(zip(given, kinds)):
            assert isinstance(value, KINDS[kind]), (name, place, kind, type(value))
        return function(*given)
    return call

for name in signatures:
    setattr(extension, name, checked(name, getattr(extension, name)))
for options in ({}, {"antialiased": True}, {"depth": True}, {"degree": 0}, {"absgrad": False}):
    run(random_cloud(60, 0, 50, 35), "cuda", torch.float32, **options)
for case in ("sharded, 4 views", "selective"):
    with operations.cuda_trainer(case) as trainer:
        trainer.one_step(1)
assert called == set(signatures), set(signatures) - called
"""


def python(code: str, repository: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_calls_fit_the_compiled_signatures(repository: Path) -> None:
    """Number and kind of all arguments: what the stand-in takes, the compiled extension takes."""
    if not gsplat_build.is_ready():
        pytest.skip("gsplat's extension is not built here: python -m dist3dgs.launch.gsplat_build")
    names = [function.__name__ for function in gsplat_standin.FUNCTIONS]
    signatures = json.loads(python(SIGNATURES, repository, *names).splitlines()[-1])
    python(CALLS, repository, json.dumps(signatures))
