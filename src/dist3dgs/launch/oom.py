"""Count processes that the kernel killed for lack of memory, from the memory cgroup of this process.

The kernel kills a rank with SIGKILL, as a user may. Whatever limits its memory (Slurm, a container, systemd) does so by
a cgroup, in which the kernel counts its kills.
"""

import re
from pathlib import Path

PROC, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
#: Slurm's folder of a job; its steps, of which each node's ranks are one, are below it.
_JOB = re.compile(r"^(.*?/job_\d+)(?:/|$)")


def oom_kills(proc: Path = PROC, root: Path = ROOT) -> int | None:
    """Count the processes of this job (without one: of this cgroup) that the kernel has killed; None if unknown."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return None
    for controllers, path in ((line[1], line[2]) for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = root / "memory" if controllers else root
        job = _JOB.match(path)
        folder = folder / (job.group(1) if job else path).lstrip("/")
        # Version 2 counts what is below as well, version 1 does not.
        files = [folder / "memory.events"] if not controllers else list(folder.rglob("memory.oom_control"))
        counts = [count for file in files if (count := _count(file)) is not None]
        if counts:
            return sum(counts)
    return None


def _count(file: Path) -> int | None:
    try:
        match = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match.group(1)) if match else None


class OomWatch:
    """Compares the kernel's count of killed processes with the count when this was made."""

    def __init__(self, proc: Path = PROC, root: Path = ROOT) -> None:
        self._paths = proc, root
        self._before = oom_kills(proc, root)

    def note(self) -> str | None:
        """Describe the kills since then; None if there were none, or the count is unknown."""
        now = oom_kills(*self._paths)
        if now is None or self._before is None or now <= self._before:
            return None
        return f"the kernel killed {now - self._before} process(es) that had used up the memory of this job (oom_kill)"
