"""`sacct` (with `-P` or in columns), `scontrol show job` and `seff`: what Slurm itself says about a job."""

# ruff: noqa: E501 (a pattern is read best on one line)

import csv
import re
from pathlib import Path

from ..facts import FactPattern, Facts, Line, expand_nodes, number
from ..lines import clean, read_blocks

MAX_ROWS = 100_000
UNIT_GIB = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 1024.0, "": 2.0**-30}

_C = re.compile


def size_gib(text: str) -> float:
    """GiB of Slurm's `1234K`, `3.5G`, `123456` (bytes). Raises ValueError."""
    m = re.fullmatch(r"([\d.]+)([KMGT]?)[cn]?", text.strip())
    if not m:
        raise ValueError(text)
    return number(m[1]) * UNIT_GIB[m[2]]


def elapsed_s(text: str) -> float:
    """Seconds of Slurm's `[days-]hours:minutes:seconds`. Raises ValueError."""
    m = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):([\d.]+)", text.strip())
    if not m:
        raise ValueError(text)
    return int(m[1] or 0) * 86400 + int(m[2] or 0) * 3600 + int(m[3]) * 60 + float(m[4])


#: scontrol show job and seff print key=value or key: value.
FACTS = (
    FactPattern("job_state", _C(r"\bJobState=(\w+)"), keep="last"),
    FactPattern("job_state", _C(r"^State: ([A-Z_]+)(?: \(exit code \d+\))?"), keep="last"),
    FactPattern("job_id", _C(r"^JobId=(\d+)")),
    FactPattern("duration_s", _C(r"\bRunTime=([\d:-]+)"), lambda m: elapsed_s(m[1]), "last"),
    FactPattern("duration_s", _C(r"^Job Wall-clock time: ([\d:-]+)"), lambda m: elapsed_s(m[1]), "last"),
    FactPattern("nodes", _C(r"^\s+NodeList=(?!\(null\))(\S+)"), lambda m: tuple(expand_nodes(m[1]))),
    FactPattern("num_nodes", _C(r"\bNumNodes=(\d+)"), lambda m: int(m[1])),
    FactPattern("host_peak_gib", _C(r"^Memory Utilized: ([\d.]+) ([KMGT])B"), lambda m: number(m[1]) * UNIT_GIB[m[2]], "max"),
)  # fmt: skip


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    words = set(re.split(r"[|,\s]+", first))
    return len(words & {"JobID", "JobIDRaw", "State", "ExitCode", "Elapsed", "JobName"}) >= 2


def read(path: Path, facts: Facts) -> None:
    """Facts of a `sacct` table: state, elapsed time, nodes, TRES and the peak memory of any step."""
    header: list[str] = []
    columns: list[tuple[int, int]] = []
    separator = ""
    rows = 0
    for block in read_blocks(path):
        for i, raw in enumerate(block.lines):
            text = clean(raw)
            if not text.strip() or rows > MAX_ROWS:
                continue
            rows += 1
            if not header:
                separator = "|" if "|" in text else ("," if "," in text else "")
                header = next(csv.reader([text], delimiter=separator)) if separator else text.split()
                header = [h.strip() for h in header]
                continue
            if set(text) <= set("- "):
                columns = [m.span() for m in re.finditer(r"-+", text)]
                continue
            if separator:
                cells = next(csv.reader([text], delimiter=separator))
            else:
                cells = [text[a:b] for a, b in columns] if columns else text.split()
            row = {h: c.strip() for h, c in zip(header, cells, strict=False)}
            _row(row, Line(str(path), block.number(i), text), facts)


def _row(row: dict[str, str], line: Line, facts: Facts) -> None:
    job = row.get("JobID") or row.get("JobIDRaw") or ""
    if "." not in job:
        if job.split("_")[0].isdigit():
            facts.add("job_id", job, line, "last")
        for key, column in (("job_name", "JobName"), ("job_state", "State"), ("partition", "Partition")):
            if row.get(column):
                facts.add(key, row[column], line, "last")
        if row.get("NodeList") and not row["NodeList"].startswith("None"):
            facts.add("nodes", tuple(expand_nodes(row["NodeList"])), line)
        for column in ("AllocTRES", "ReqTRES"):
            if m := re.search(r"gres/gpu=(\d+)", row.get(column, "")):
                facts.add("gpus_asked", int(m[1]), line)
        for key, column, convert in (("duration_s", "Elapsed", elapsed_s), ("num_nodes", "NNodes", int)):
            try:
                facts.add(key, convert(row.get(column, "")), line, "last")
            except ValueError:
                continue
    try:
        facts.add("host_peak_gib", size_gib(row.get("MaxRSS", "")), line, "max")
    except ValueError:
        return
