"""Check the packages that `make gpu-check` needs in a Python other than ours; imports only the standard library.

python -m dist3dgs.bench.needs      # exit status 2, and the line that installs them, where packages are missing; 3
                                    # where Python or its PyTorch is too old
"""

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version

#: What no wheel of ours replaces, as in pyproject.toml. Which PyTorch fits a GPU cannot be guessed.
PYTHON, PYTORCH = (3, 11), "torch>=2.11"
#: module -> requirement, as in pyproject.toml.
NEEDS = {
    "gsplat": "gsplat>=1.5.3,<1.6",
    "llvmlite": "llvmlite>=0.50",
    "numpy": "numpy>=2.0",
    "PIL": "pillow>=11",
    "plyfile": "plyfile>=1.1",
    "pydantic": "pydantic>=2.10",
    "safetensors": "safetensors>=0.5",
    "scipy": "scipy>=1.13",
    "yaml": "pyyaml>=6",
}
#: What gsplat imports, or runs, to compile its extension: not all of it is among the requirements that it declares.
NEEDS_OF_GSPLAT = {"jaxtyping": "jaxtyping", "ninja": "ninja", "packaging": "packaging", "rich": "rich>=12"}
#: Exit status where packages cannot help.
UNFIT = 3
_CLAUSE = re.compile(r"(>=|<)([\d.]+)")


def missing(needs: dict[str, str] | None = None) -> list[str]:
    """Return the requirements that this Python does not meet: the module is absent, or of another version."""
    wanted = NEEDS | NEEDS_OF_GSPLAT if needs is None else needs
    return [requirement for module, requirement in wanted.items() if not _is_met(module, requirement)]


def _is_met(module: str, requirement: str) -> bool:
    if importlib.util.find_spec(module) is None:
        return False
    name = re.split(r"[<>=]", requirement)[0]
    try:
        installed = _numbers(version(name))
    except PackageNotFoundError:  # a module that is on the path without having been installed
        return True
    bounds = [(operator, _numbers(text)) for operator, text in _CLAUSE.findall(requirement)]
    return all(installed >= bound if operator == ">=" else installed < bound for operator, bound in bounds)


def _numbers(text: str) -> tuple[int, ...]:
    """Convert `1.5.3+pt24` to (1, 5, 3)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def unfit() -> str | None:
    """Return why this Python cannot be used, whatever is installed beside; None if it can."""
    if sys.version_info < PYTHON:
        return (
            f"Python {sys.version_info[0]}.{sys.version_info[1]}, expected {PYTHON[0]}.{PYTHON[1]} or later"
        )
    if not _is_met("torch", PYTORCH):
        return f"without {PYTORCH}"
    return None


def main() -> int:
    if reason := unfit():
        print(
            f"error: {sys.executable} is {reason}. Give another one: make gpu-check PYTHON=PATH\n"
            "or let an environment be made: make gpu-check OWN=1",
            file=sys.stderr,
        )
        return UNFIT
    absent = missing()
    if not absent:
        return 0
    words = " ".join(f"'{requirement}'" for requirement in absent)
    print(
        f"error: {sys.executable} sees a GPU but does not have everything that the check needs. Install it there with: "
        f"{sys.executable} -m pip install {words}\n"
        "or let an environment be made: make gpu-check OWN=1",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
