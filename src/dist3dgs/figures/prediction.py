"""Predicted over measured step time, against the number of ranks."""

import statistics
from typing import Any

from ..config.naming import Layout
from ..predict.compare import GOOD_ERROR, ComparedRun, compare_runs
from . import lines, style
from .page import Entry
from .ranks import Ranks
from .study import Study

TITLE = "Predicted over measured"
CAPTION = (
    "Seconds of a step as predicted from the records of the scene's smallest layout alone, over those measured, mean "
    "of the run; 1 is exact, above 1 the run was faster than predicted. The shaded band is ±10 %. A mark is the median "
    "over repeats, whiskers their smallest and largest. The smallest layout itself, to which the rates are fitted, is "
    "not shown. Predictions take each run's own number of Gaussians, and the links of the machine's file in "
    "config/machines."
)
EMPTY = "no run on a larger layout than the smallest that the model could predict"
COLUMNS = (*lines.COLUMNS, "measured_step_s", "predicted_step_s", "interval_low_s", "interval_high_s")
Row = lines.Row

_BAND = {"facecolor": style.GREEN, "alpha": 0.18, "edgecolor": "none"}


def data(study: Study) -> list[Row]:
    groups: dict[tuple[str, str, str], list[ComparedRun]] = {}
    for c in compare_runs(study.records):
        if not c.fitted:
            groups.setdefault((c.record.run.scene, c.record.run.strategy, c.record.run.layout), []).append(c)
    rows = []
    for (scene, strategy, layout), found in groups.items():
        where = Layout.parse(layout)
        point = {"strategy": strategy, "layout": layout, "ranks": where.world_size, "nodes": where.nodes}
        ratios = [c.ratio for c in found]
        measured, predicted = (
            statistics.median(getattr(c, k) for c in found) for k in ("measured_s", "predicted_s")
        )
        middle = statistics.median(ratios)
        rows.append(
            lines.mark(point, scene, "ok", middle, min(ratios), max(ratios), len(found))
            | {
                "measured_step_s": measured,
                "predicted_step_s": predicted,
                "interval_low_s": predicted / (1 + found[0].width),
                "interval_high_s": predicted * (1 + found[0].width),
            }
        )
    return rows


def plot(rows: list[Row]) -> Any:
    return lines.figure(
        lines.by_scene(rows), "predicted / measured", _behind, key=[Entry("within 10 %", _BAND)]
    )


def _behind(ax: Any, cell: lines.Cell, _: Ranks) -> None:
    lines.from_zero(ax, [*cell.rows, {"value": 1 + GOOD_ERROR, "low": None, "high": None}])
    ax.axhspan(1 - GOOD_ERROR, 1 + GOOD_ERROR, zorder=0.5, gid="band", **_BAND)
    ax.axhline(1.0, zorder=1, gid="ideal", **lines.IDEAL)
