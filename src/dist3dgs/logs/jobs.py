"""Group files by job: by the job id in a file's name or content, or as the counterpart of one (`.out` and `.err`)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .lines import clean, looks_binary
from .readers import sacct

HEAD_BYTES = 1 << 16
#: slurm-%j.out, %x_%j.err, %x-%A_%a.log. In other names only a long number counts as a job id.
IN_NAME = re.compile(
    r"(?:^slurm-(\d{1,12}(?:_\d{1,6})?)|(?:^|[-_.])([1-9]\d{3,11}(?:_\d{1,6})?)(?=\.(?:out|err)$)|"
    r"[-_.]([1-9]\d{4,11}(?:_\d{1,6})?)(?=\.(?:log|txt|csv)$))"
)
DATE = re.compile(r"20\d\d[01]\d[0-3]\d(?:_\d{1,6})?")
#: A job's own id in its output. (`Submitted batch job` is about another one.)
IN_TEXT = re.compile(
    r"\bSLURM_JOB_?ID[=:]\s*(\d{1,12})\b|^\s*Job ?ID\s*[:=]\s*(\d{1,12}(?:_\d+)?)\b|"
    r"\*\*\* (?:JOB|STEP) (\d{1,12})(?:\.\w+)? ON |^JobId=(\d+)|^Subject: Job (\d{1,12}):",
    re.M,
)
#: Names of the two files of one Slurm job.
_PAIRS = ((".out", ".err"), (".err", ".out"), ("_out.", "_err."), ("_err.", "_out."))


class Job(list[Path]):
    """The files of one job. Of a table of many jobs `scan` reads only the rows of this one."""

    def __init__(self, paths: Iterable[Path] = (), job_id: str | None = None) -> None:
        super().__init__(paths)
        self.job_id = job_id


def id_in_name(path: Path) -> str | None:
    """Return the job id in a file's name, if any; a date is none."""
    m = IN_NAME.search(path.name)
    found = next((g for g in m.groups() if g), None) if m else None
    return None if found is None or DATE.fullmatch(found) else found


def by_job(paths: Sequence[Path | str]) -> list[Job]:
    """Group files by job, in the order in which the jobs first appear.

    A file without an id belongs to the job whose counterpart it is (`a.out`, `a.err`), or to the only one there is.
    If no file has an id, all belong to one job. Unreadable files are reported by `scan`, not here.
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
    """List the jobs of a `sacct` table; [] if the file is none."""
    return sacct.jobs(path) if sacct.sniff(_head(path)[:4096]) else []


def counterpart(path: Path) -> Path | None:
    """Return `job.err` for `job.out` and vice versa, existing or not; None for other names."""
    for a, b in _PAIRS:
        if a in path.name:
            return path.with_name(b.join(path.name.rsplit(a, 1)))
    return None


def missing_counterparts(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the counterparts that are not among `paths`."""
    given = set(paths)
    for path in paths:
        other = counterpart(path)
        if other is not None and other not in given:
            yield other
