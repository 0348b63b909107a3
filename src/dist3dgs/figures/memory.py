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
COLUMNS = (*lines.COLUMNS, "scene", "kind")
Row = lines.Row

KINDS = {"peak_gpu_gib": "GPU, per rank", "peak_rss_gib": "host, per rank", "peak_host_gib": "host, per node"}


def data(study: Study) -> list[Row]:
    rows: list[Row] = []
    kinds = [k for k in KINDS if any(r.get(k) is not None for r in study.runs)] or ["peak_rss_gib"]
    for scene in study.scenes:
        for kind in kinds:
            panel = KINDS[kind] if len(study.scenes) == 1 else f"{scene}: {KINDS[kind]}"
            marks = lines.point_marks(study, kind) + lines.trouble_marks(study, kind)
            rows += [m | {"panel": panel, "scene": scene, "kind": kind} for m in marks if m["panel"] == scene]
    return rows


def plot(rows: list[Row]) -> Any:
    return lines.value_figure(rows, "peak memory [GiB]")
