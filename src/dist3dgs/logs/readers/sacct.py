"""`sacct` (with `-P` or in columns), `scontrol show job` and `seff`: Slurm's own account of a job."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...units import GIB, expand_hosts, parse_bytes, parse_duration_s
from ..facts import MAX_NODES, FactPattern, Facts, Line, finite
from ..lines import Block, clean, read_blocks
from ..log_data import Added, LogData

MAX_ROWS = 100_000

_C = re.compile


#: scontrol show job and seff print key=value or key: value.
FACTS = (
    FactPattern("job_state", _C(r"\bJobState=(\w+)"), keep="last"),
    FactPattern("job_state", _C(r"^State: ([A-Z_]+)(?: \(exit code \d+\))?"), keep="last"),
    FactPattern("job_id", _C(r"^JobId=(\d+)")),
    FactPattern("duration_s", _C(r"\bRunTime=([\d:-]+)"), lambda m: finite(parse_duration_s(m[1])), "last"),
    FactPattern("duration_s", _C(r"^Job Wall-clock time: ([\d:-]+)"), lambda m: finite(parse_duration_s(m[1])), "last"),
    FactPattern("nodes", _C(r"^\s+NodeList=(?!\(null\))(\S+)"), lambda m: tuple(expand_hosts(m[1], MAX_NODES))),
    FactPattern("num_nodes", _C(r"\bNumNodes=(\d+)"), lambda m: int(m[1])),
    FactPattern("host_peak_gib", _C(r"^Memory Utilized: ([\d.]+ [KMGT]B)"), lambda m: parse_bytes(m[1]) / GIB, "max"),
)  # fmt: skip


FORMAT = "sacct"


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    words = set(re.split(r"[|,\s]+", first))
    return len(words & {"JobID", "JobIDRaw", "State", "ExitCode", "Elapsed", "JobName"}) >= 2


@dataclass
class _Table:
    """Cuts one table's lines into cells."""

    header: list[str] = field(default_factory=list)
    columns: list[tuple[int, int]] = field(default_factory=list)
    separator: str = ""

    def row(self, text: str) -> dict[str, str] | None:
        """Map columns to cells; None for the header and anything that is no row."""
        if not text.strip():
            return None
        if not self.header:
            self.separator = "|" if "|" in text else ("," if "," in text else "")
            self.header = [h.strip() for h in self._split(text)]
            return None
        if set(text) <= set("- "):
            self.columns = [m.span() for m in re.finditer(r"-+", text)]
            return None
        found = [text[a:b] for a, b in self.columns] if self.columns else self._split(text)
        return {h: c.strip() for h, c in zip(self.header, found, strict=False)}

    def _split(self, text: str) -> list[str]:
        return next(csv.reader([text], delimiter=self.separator)) if self.separator else text.split()


def _job(row: Mapping[str, str]) -> tuple[str, str]:
    """Return job and step of a row; `4410`, `4410_3`, `4410+1` are jobs."""
    job, _, step = (row.get("JobID") or row.get("JobIDRaw") or "").partition(".")
    return job, step


def _rows(path: Path) -> Iterator[tuple[Block, list[dict[str, str] | None]]]:
    table, num_rows = _Table(), 0
    for block in read_blocks(path):
        rows: list[dict[str, str] | None] = []
        for raw in block.lines:
            row = table.row(clean(raw)) if num_rows <= MAX_ROWS else {}
            num_rows += row is not None
            rows.append(row)
        yield block, rows


def jobs(path: Path) -> list[str]:
    """List the jobs that a table has rows of, in their order."""
    found: dict[str, None] = {}
    try:
        for _, rows in _rows(path):
            found |= dict.fromkeys(_job(row)[0] for row in rows if row)
    except OSError:
        return []
    return [job for job in found if job[:1].isdigit()]


def add(path: Path, index: int, log: LogData) -> Added:
    """Add the rows of the job that the log data is about; its lines are judged like text."""
    blocks, note = read(path, log.facts, log.job_id)
    return Added(note, blocks)


def read(path: Path, facts: Facts, job: str | None = None) -> tuple[Iterator[Block], str | None]:
    """Return the lines of one job in a `sacct` table for the rules, and a note about the file.

    While they are taken, its facts are: state, time, nodes and devices from the job's own row, the peak memory of
    any step. How steps ended explains a job that did not complete and says nothing of one that did: `1.extern` is
    always cancelled. Without `job` it is the first one.
    """
    last: dict[str, str] = {}  # job -> its last state; a job that was requeued has several
    for _, rows in _rows(path):
        last |= {_job(r)[0]: r.get("State", "") for r in rows if r and not _job(r)[1]}
    found = [name for name in last if name[:1].isdigit()]
    mine = _named(job, found)
    note = None
    if job is not None and found and mine not in found:
        note = f"no row of job {job}"
    elif len(found) > 1:
        note = f"{len(found)} jobs, read of {mine}"
    return _judged(path, facts, mine, last.get(mine or "", "").startswith("COMPLETED")), note


def _judged(path: Path, facts: Facts, job: str | None, well: bool) -> Iterator[Block]:
    for block, rows in _rows(path):
        kept = list(block.lines)
        for i, row in enumerate(rows):
            if row is None:
                continue
            name, step = _job(row)
            mine = job is None or name == job
            if mine and row:
                _row(row, Line(str(path), block.number(i), clean(block.lines[i])), facts)
            if not mine or (well and (step or not row.get("State", "").startswith("COMPLETED"))):
                kept[i] = b"\r" if kept[i].startswith(b"\r") else b""
        yield Block(block.first_line, b"\n".join(kept))


def _named(job: str | None, found: Sequence[str]) -> str | None:
    """Return the wanted job as the table writes it, or its first one."""
    if job is None:
        return next(iter(found), None)
    tasks = [name for name in found if re.split(r"[_+]", name)[0] == job]
    return job if job in found or not tasks else tasks[0]


def _row(row: dict[str, str], line: Line, facts: Facts) -> None:
    job, step = _job(row)
    if not step:
        if re.split(r"[_+]", job)[0].isdigit():
            facts.add("job_id", job, line, "last")
        for key, column in (("job_name", "JobName"), ("job_state", "State"), ("partition", "Partition")):
            if row.get(column):
                facts.add(key, row[column], line, "last")
        if row.get("NodeList") and not row["NodeList"].startswith("None"):
            facts.add("nodes", tuple(expand_hosts(row["NodeList"], MAX_NODES)), line)
        for column in ("AllocTRES", "ReqTRES"):
            if m := re.search(r"gres/gpu=(\d+)", row.get(column, "")):
                facts.add("gpus_asked", int(m[1]), line)
        for key, column, convert in (
            ("duration_s", "Elapsed", parse_duration_s),
            ("num_nodes", "NNodes", int),
        ):
            try:
                facts.add(key, finite(convert(row.get(column, ""))), line, "last")
            except ValueError:
                continue
    try:
        facts.add("host_peak_gib", finite(parse_bytes(row.get("MaxRSS", "")) / GIB), line, "max")
    except ValueError:
        return
