"""Check whether this machine, or a node of the cluster, is ready for a study. Nothing is downloaded or changed.

Each check is one function from a `Setup` to its results, listed in `CHECKS`. PyTorch is asked in a process of its own.
"""

from ..errors import UserError
from ..slurm.client import SlurmError
from . import gpus, machine, software, storage
from .setup import Check, Result, Setup

#: In the order in which they are shown; PyTorch, which is imported meanwhile, is needed from `check_torch` on.
CHECKS: tuple[Check, ...] = (
    software.check_python,
    software.check_packages,
    software.check_torch,
    gpus.check_driver,
    gpus.check_architectures,
    gpus.check_compiler,
    machine.check_slurm,
    software.check_plugin,
    machine.check_network,
    machine.check_shared_memory,
    storage.check_disk,
    storage.check_scenes,
    storage.check_archives,
    storage.check_folders,
)


def verify(s: Setup) -> list[Result]:
    """Run all checks."""
    s.start()
    results = []
    for check in CHECKS:
        try:
            results += list(check(s))
        except (OSError, SlurmError, UserError) as e:  # one check's failure must not hide the others
            name = check.__name__.removeprefix("check_").replace("_", " ")
            results.append(Result(name, "fail", f"could not be checked: {e}", None))
    return results
