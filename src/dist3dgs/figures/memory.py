"""Peak memory over ranks."""

from typing import Any

from . import lines
from .study import Study

TITLE = "Memory"
CAPTION = (
    "Peak memory in GiB. Per rank, GPU: the largest amount allocated on any rank's GPU. Per rank, host: the "
    "largest resident set of any rank (pages shared between ranks count in each). Per node, host: the peak "
    "proportional set size of the whole process tree (shared pages count once), page cache apart. Median "
    "over repeats; whiskers: smallest and largest. Kinds that no run measured are left out."
)
EMPTY = "no run has measured its memory yet"
COLUMNS = (*lines.COLUMNS, "scene", "kind")
Row = lines.Row

KINDS = {"peak_gpu_gib": "Per rank, GPU", "peak_rss_gib": "Per rank, host", "peak_host_gib": "Per node, host"}


def data(study: Study) -> list[Row]:
    rows: list[Row] = []
    kinds = [k for k in KINDS if any(r.get(k) is not None for r in study.runs)] or ["peak_rss_gib"]
    for kind in kinds:
        marks = lines.point_marks(study, kind) + lines.trouble_marks(study, kind)
        rows += [
            m | {"panel": f"{m['panel']}: {KINDS[kind]}", "scene": m["panel"], "kind": kind} for m in marks
        ]
    return rows


def plot(rows: list[Row]) -> Any:
    """Return a row per scene, a column per kind; a column has one scale, so that scenes compare."""
    kinds = [k for k in KINDS if any(r["kind"] == k for r in rows)]
    cells = [
        lines.Cell(scene if kind == kinds[0] else "", _pick(rows, scene=scene, kind=kind))
        for scene in sorted({r["scene"] for r in rows})
        for kind in kinds
    ]
    limits = {kind: _pick(rows, kind=kind) for kind in kinds}

    def behind(ax: Any, cell: lines.Cell, _: Any) -> None:
        lines.from_zero(ax, limits[cell.rows[0]["kind"]] if cell.rows else [])

    return lines.figure(cells, "peak memory [GiB]", behind, headings=[KINDS[k] for k in kinds])


def _pick(rows: list[Row], **wanted: str) -> list[Row]:
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]
