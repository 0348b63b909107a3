"""Which of many files belong to one job: by the job id in a file's name or content, or the other half of a pair."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .lines import clean, looks_binary
from .readers import sacct

HEAD_BYTES = 1 << 16
#: slurm-%j.out, %x_%j.err, %x-%A_%a.log; of a name that is not Slurm's usual one only a long number counts.
IN_NAME = re.compile(
    r"(?:^slurm-(\d{1,12}(?:_\d{1,6})?)|(?:^|[-_.])([1-9]\d{3,11}(?:_\d{1,6})?)(?=\.(?:out|err)$)|"
    r"[-_.]([1-9]\d{4,11}(?:_\d{1,6})?)(?=\.(?:log|txt|csv)$))"
)
DATE = re.compile(r"20\d\d[01]\d[0-3]\d(?:_\d{1,6})?")
#: What a job prints of itself. (`Submitted batch job` is said by another one.)
IN_TEXT = re.compile(
    r"\bSLURM_JOB_?ID[=:]\s*(\d{1,12})\b|^\s*Job ?ID\s*[:=]\s*(\d{1,12}(?:_\d+)?)\b|"
    r"\*\*\* (?:JOB|STEP) (\d{1,12})(?:\.\w+)? ON |^JobId=(\d+)|^Subject: Job (\d{1,12}):",
    re.M,
)


class Job(list[Path]):
    """The files of one job. `scan` reads of a table of many jobs the rows of this one alone."""

    def __init__(self, paths: Iterable[Path] = (), job_id: str | None = None) -> None:
        super().__init__(paths)
        self.job_id = job_id


def id_in_name(path: Path) -> str | None:
    """The job id that a file's name has; a date is none."""
    m = IN_NAME.search(path.name)
    found = next((g for g in m.groups() if g), None) if m else None
    return None if found is None or DATE.fullmatch(found) else found


def by_job(paths: Sequence[Path | str]) -> list[Job]:
    """The files, job by job, in the order in which the jobs first appear.

    A file without an id belongs to the job whose other half it is (`a.out`, `a.err`), or to the only one there is.
    Files of which none has an id are of one job. Nothing is refused here: what cannot be read is for `scan` to say.
    """
    files = list(dict.fromkeys(Path(p) for p in paths))
    if not files:
        return []
    tables = {f: names for f in files if (names := _jobs_of_table(f))}
    ids = {f: _id(f) for f in files if f not in tables}
    known = dict.fromkeys(i for i in ids.values() if i is not None)
    stems = {f.with_suffix(""): i for f, i in ids.items() if i is not None}
    if not known:  # a table stands alone or beside files that name no job
        known = dict.fromkeys(job for names in tables.values() for job in names)
    if len(known) < 2:
        return [Job(files, next(iter(known), None))]
    found = {job: Job(job_id=job) for job in known}
    rest: list[Path] = []
    for f in files:
        owners = [j for j in tables.get(f, ()) if j in found]
        owner = ids.get(f) or stems.get(f.with_suffix(""))
        if owner is not None:
            owners.append(owner)
        if not owners and not f.is_file():
            owners = [next(iter(found))]
        for job in owners:
            found[job].append(f)
        if not owners and f not in tables:
            rest.append(f)
    groups = [job for job in found.values() if job]
    return [*groups, Job(rest)] if rest else groups


def _id(path: Path) -> str | None:
    text = _head(path)
    named = id_in_name(path)
    m = IN_TEXT.search(text)
    stated = next((g for g in m.groups() if g), None) if m else None
    # `123_4.out` prints SLURM_JOB_ID of its array task, which is another number.
    return named or stated


def _head(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as f:
            head = f.read(HEAD_BYTES)
    except OSError:
        return ""
    if looks_binary(head[:4096]):
        return ""
    return "\n".join(clean(raw) for raw in head.replace(b"\r", b"\n").split(b"\n"))


def _jobs_of_table(path: Path) -> list[str]:
    """The jobs of a `sacct` table; none if the file is no such table."""
    return sacct.jobs(path) if sacct.sniff(_head(path)[:4096]) else []
