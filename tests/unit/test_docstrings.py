"""Docstrings of functions with tensors or arrays state shapes and dtypes."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

import dist3dgs

PACKAGES = ("splats", "parallel", "train", "scenes")
ARRAY = re.compile(r"Tensor|ndarray|NDArray")
SHAPE = re.compile(r"\[(\d|[A-Za-z_.]|sum\()[^\]`]*\]|0-dim")
DTYPE = re.compile(r"\b(u?int(8|16|32|64)|float(16|32|64)?|bool|bfloat16|dtypes?)\b")


#: Modules for GPUs: Triton comes with the CUDA builds of PyTorch alone.
WITH_TRITON = ("dist3dgs.splats.harmonics_triton", "dist3dgs.splats.loss_triton")


def modules(package: str) -> Iterator[ModuleType]:
    root = importlib.import_module(f"{dist3dgs.__name__}.{package}")
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        if found.name in WITH_TRITON and find_spec("triton") is None:
            continue
        yield importlib.import_module(found.name)


def public_functions(module: ModuleType) -> Iterator[tuple[str, Callable[..., object]]]:
    """Public functions and methods that the module defines; those of autograd are documented by their class."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isclass(value):
            if issubclass(value, torch.autograd.Function):
                continue
            for method in vars(value):
                member = inspect.getattr_static(value, method)
                member = member.fget if isinstance(member, property) else getattr(value, method)
                if not method.startswith("_") and inspect.isfunction(member):
                    yield f"{value.__qualname__}.{method}", member
        elif inspect.isfunction(value):
            yield name, value


def described(module: ModuleType, name: str) -> str:
    """Return the docstring, inherited where a method has none."""
    value: object = module
    for part in name.split("."):
        value = inspect.getattr_static(value, part) if inspect.isclass(value) else getattr(value, part)
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    return inspect.getdoc(value) or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_tensor_functions_state_shapes_and_dtypes(package: str) -> None:
    lacking = []
    for module in modules(package):
        for name, function in public_functions(module):
            if not ARRAY.search(str(inspect.signature(function))):
                continue
            text = described(module, name)
            missing = [what for what, sign in (("shape", SHAPE), ("dtype", DTYPE)) if not sign.search(text)]
            if missing:
                lacking.append(f"{module.__name__}.{name}: no {' and no '.join(missing)}")
    assert not lacking, "\n".join(lacking)
