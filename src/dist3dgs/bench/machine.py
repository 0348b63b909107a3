"""Describe the machine of a measurement without its name or paths."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, versions, commit, date and load of this machine."""
    import llvmlite
    import torch

    return {
        "cpu": _cpu(), "cores": os.cpu_count(), "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(), "torch": torch.__version__, "llvmlite": llvmlite.__version__,
        "commit": _commit(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def _cpu() -> str:
    from llvmlite import binding as llvm

    vectors = ""
    try:
        flags = Path("/proc/cpuinfo").read_text()
        vectors = ", AVX-512" if " avx512f " in flags else ", AVX2" if " avx2 " in flags else ""
    except OSError:
        pass
    return f"{os.cpu_count()}-core {llvm.get_host_cpu_name()}{vectors}"


def _commit() -> str:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
