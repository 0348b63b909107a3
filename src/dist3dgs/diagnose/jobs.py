"""Which of several files belong to one job."""

from collections.abc import Sequence
from pathlib import Path

from .machines import job_id_in_name
from .scan import FileInfo, Scan


def by_job(paths: Sequence[Path]) -> list[list[Path]]:
    """Files by the job id in their names; those without one are the first job's."""
    groups: dict[str | None, list[Path]] = {}
    for path in paths:
        groups.setdefault(job_id_in_name(Scan(files=[FileInfo(str(path), "text")])), []).append(path)
    rest = groups.pop(None, [])
    found = list(groups.values())
    if not found:
        return [rest] if rest else []
    found[0] += rest
    return found
