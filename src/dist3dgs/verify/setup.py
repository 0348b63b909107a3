"""Subject of the checks: a study and a site on this machine, and what its GPUs, PyTorch and Slurm state."""

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..config.matrix import Study
from ..launch import commands
from ..slurm import client
from ..slurm.allocation import job_id
from ..slurm.site import Site

#: Importing PyTorch takes minutes from a busy parallel file system.
PROBE_TIMEOUT_S = 300.0

PROBE = """
import importlib.metadata, json, sys
import torch
facts = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda, "error": None}
facts["available"] = torch.cuda.is_available()
if facts["cuda"] and not facts["available"]:
    try:
        torch.cuda.init()
    except Exception as e:
        facts["error"] = str(e).splitlines()[0]
facts["architectures"] = torch.cuda.get_arch_list()
facts["nccl"] = torch.distributed.is_available() and torch.distributed.is_nccl_available()
facts["gloo"] = torch.distributed.is_available() and torch.distributed.is_gloo_available()
try:
    facts["dist3dgs"] = importlib.metadata.version("dist3dgs")
except importlib.metadata.PackageNotFoundError:
    facts["dist3dgs"] = None
print(json.dumps(facts))
"""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Result:
    """One line of the output. fix: the command or setting that changes a `warn` or `fail`."""

    check: str
    status: Status
    text: str
    fix: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; capability is None for drivers that do not tell."""

    name: str
    driver: str
    capability: tuple[int, int] | None


@dataclass
class Setup:
    """Subject of the checks: a study and a site, on this machine. study is None where its config is not valid."""

    study: Study | None = None
    site: Site = field(default_factory=Site)
    full: bool = False
    lock: Path = Path("requirements.lock")
    shm: Path = Path("/dev/shm")
    _probe: subprocess.Popen[str] | None = None

    def start(self) -> "Setup":
        """Begin to import PyTorch, so that the other checks run meanwhile."""
        software = commands.software_of(self.site)
        argv = [*commands.wrapped(software, uses_gpus=bool(self.gpus)), software.python, "-c", PROBE]
        with contextlib.suppress(OSError):
            self._probe = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        return self

    @cached_property
    def torch(self) -> dict[str, Any]:
        """Return facts about PyTorch; {"failed": reason} where it cannot be imported."""
        if self._probe is None:
            return {"failed": f"{commands.software_of(self.site).container_command} was not found"}
        try:
            out, err = self._probe.communicate(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._probe.kill()
            self._probe.communicate()
            return {"failed": f"importing it took more than {PROBE_TIMEOUT_S:.0f} s"}
        try:
            return dict(json.loads(out.splitlines()[-1]))
        except (IndexError, ValueError):
            lines = [line for line in err.splitlines() if line.strip()]
            return {"failed": lines[-1].strip() if lines else f"exit status {self._probe.returncode}"}

    @cached_property
    def gpus(self) -> list[Gpu]:
        """Return the GPUs of this machine; [] without a driver."""
        text = output("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
        if text is None:
            text = output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        rows = [
            [word.strip() for word in line.split(",")] for line in (text or "").splitlines() if "," in line
        ]
        return [Gpu(row[0], row[1], version_pair(row[2]) if len(row) > 2 else None) for row in rows]

    @property
    def device(self) -> str:
        return self.study.config.hardware.device if self.study else "auto"

    @property
    def elsewhere(self) -> bool:
        """Return True if GPUs are on other machines: Slurm is asked for them, and this is no job."""
        asks = self.site.gpu_request != "none" and self.device != "cpu"
        return asks and self.has_slurm and job_id() is None

    @property
    def has_slurm(self) -> bool:
        """Return True if Slurm is here and answers."""
        return client.available() and self.slurm_problem is None

    @cached_property
    def slurm_problem(self) -> str | None:
        """Return why Slurm does not answer; None where it does."""
        try:
            client.slurm("scontrol", "show", "config")
        except client.SlurmError as e:
            return e.text
        return None

    @property
    def computes_on_gpus(self) -> bool:
        """Return True if ranks on this machine would use its GPUs."""
        return self.device == "cuda" or (self.device == "auto" and bool(self.gpus))


Check = Callable[[Setup], Iterable[Result]]


def output(*argv: str) -> str | None:
    """Return the standard output of a program; None if it is missing, fails or hangs."""
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=20, check=True, errors="replace"
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def version_pair(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text.strip())
    return (int(found[1]), int(found[2])) if found else None
