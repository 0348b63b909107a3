"""The table of metrics: name, label, unit, type, bounds, aggregation over repeats.

Three places hold entries, and the record's fields, their bounds, the columns of runs.csv and points.csv and the
scaling tables follow from them:

* fields of `runs/record.py: Metrics` that are declared with `metric`: recorded from a run's evidence;
* `analysis/measures.py: DERIVED`: computed from a record when it is tabulated;
* other distributions: `METRICS = [Metric(...)]` in a module that an entry point of the group `dist3dgs.metrics` names.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from ..errors import UserError
from . import plugins

GROUP = "dist3dgs.metrics"
Aggregation = Literal["median", "mean", "max", "min"]
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number per run.

    Args:
        name: column of the tables, with the unit at its end (`_s`, `_gib`).
        label: heading of tables, without the unit.
        unit: as tables print it; empty for pure numbers.
        integer: whole numbers only.
        low, high: bounds, None for none. A value beyond them is left out of the record, with a reason.
        over_repeats: statistic over a point's repeats, beside which points.csv has the extremes (`_min`, `_max`);
            None: runs.csv alone has the metric.
        description: definition.
        event, over_ranks: the value is the field `name` of the run's events of this kind, combined over ranks.
        measure: instead computes it from a run's evidence (`records/evidence.py: RunEvidence`).
        derive: instead computes it from the finished record (`runs/record.py: RunRecord`) whenever that is tabulated.
    """

    name: str
    label: str
    unit: str = ""
    integer: bool = False
    low: float | None = 0.0
    high: float | None = None
    over_repeats: Aggregation | None = "median"
    description: str = ""
    event: str | None = None
    over_ranks: Literal["max", "min", "sum", "mean"] = "max"
    measure: Callable[[Any], float | None] | None = None
    derive: Callable[[Any], float | None] | None = None

    def problem(self, value: float) -> str | None:
        """Say what is wrong with a value, or return None."""
        if not math.isfinite(value):
            return f"not a finite number: {value}"
        if self.low is not None and value < self.low:
            return f"{value:g} is below the lower bound {self.low:g}"
        if self.high is not None and value > self.high:
            return f"{value:g} is above the upper bound {self.high:g}"
        return None

    def over_events(self, events: Iterable[dict[str, Any]]) -> float | None:
        """Combine the field of this name over the events of all ranks; None where none has it."""
        values = [e[self.name] for e in events if e.get(self.name) is not None]
        if not values:
            return None
        combine: dict[str, Callable[[list[float]], float]] = {
            "max": max,
            "min": min,
            "sum": sum,
            "mean": statistics.fmean,
        }
        return combine[self.over_ranks](values)


def metric(
    label: str, unit: str = "", *, description: str | None = None, low: float | None = 0.0,
    high: float | None = None, over_repeats: Aggregation | None = "median", event: str | None = None,
    over_ranks: Literal["max", "min", "sum", "mean"] = "max",
) -> Any:  # fmt: skip
    """Declare a field of a model as a metric; arguments as of `Metric`. Null is allowed and the default."""
    facts = {"label": label, "unit": unit, "over_repeats": over_repeats, "event": event}
    if event is not None:
        facts["over_ranks"] = over_ranks
    extra: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
    return Field(None, ge=low, le=high, description=description, json_schema_extra=extra)


def declared(model: type[BaseModel]) -> dict[str, Metric]:
    """Return the metrics among a model's fields, in their order."""
    found = {}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or "label" not in extra:
            continue
        facts: dict[str, Any] = {"over_repeats": None} | extra
        bounds = {key: getattr(m, key) for m in field.metadata for key in ("ge", "le") if hasattr(m, key)}
        found[name] = Metric(
            name=name,
            integer=int in get_args(field.annotation),
            low=bounds.get("ge"),
            high=bounds.get("le"),
            description=field.description or "",
            **facts,
        )
    return found


@cache
def added() -> dict[str, Metric]:
    """Return the metrics of other distributions, by name.

    Raises `UserError` for a module that cannot be imported and for a name that cannot be a column or is taken twice.
    """
    found: dict[str, Metric] = {}
    for one in plugins.added("METRICS", GROUP):
        if not isinstance(one, Metric) or not _NAME.fullmatch(one.name) or one.name in found:
            raise UserError(
                f"entry points `{GROUP}`: {getattr(one, 'name', one)!r} is no metric of a name of its own; expected "
                "dist3dgs.runs.metrics.Metric with a name of a-z, 0-9 and _ that nothing else has"
            )
        found[one.name] = one
    return found
