"""Check the packages that `make gpu-check` needs in a Python other than ours; imports only the standard library.

python -m dist3dgs.bench.needs      # exit status 2, and the line that installs them, where packages are missing
"""

import importlib.util
import sys

#: module -> requirement, as in pyproject.toml. PyTorch is the one that cannot be guessed for a GPU.
NEEDS = {
    "gsplat": "gsplat>=1.5.3,<1.6",
    "llvmlite": "llvmlite>=0.50",
    "ninja": "ninja",
    "numpy": "numpy>=2.0",
    "PIL": "pillow>=11",
    "plyfile": "plyfile>=1.1",
    "pydantic": "pydantic>=2.10",
    "safetensors": "safetensors>=0.5",
    "scipy": "scipy>=1.13",
    "yaml": "pyyaml>=6",
}


def missing(needs: dict[str, str] = NEEDS) -> list[str]:
    """Return the requirements whose module this Python does not have."""
    return [requirement for module, requirement in needs.items() if importlib.util.find_spec(module) is None]


def main() -> int:
    absent = missing()
    if not absent:
        return 0
    words = " ".join(f"'{requirement}'" for requirement in absent)
    print(
        f"error: {sys.executable} sees a GPU but has not all that the check needs. Install it there with: "
        f"{sys.executable} -m pip install {words}\n"
        "or let an environment be made: make gpu-check OWN=1",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
