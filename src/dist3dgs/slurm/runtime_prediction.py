"""Predict how long a run takes from the records of others: seconds on GPUs of speed 1.

A record of the same layout says it as it was. Of another layout the model of `predict` does, fitted to the scene's
records; where it cannot (no curve, a strategy or a machine that it does not know) the nearest layout is scaled ideally.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.matrix import AnySpec
from ..config.models import RunSpec
from ..config.naming import Layout
from ..config.workloads import WorkloadSpec
from ..errors import UserError
from ..predict.run_time import limit_min, predict_run_time
from ..runs.record import RunRecord, load_record
from .site import Site


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds on the fastest GPUs, and where the number comes from."""

    seconds: float
    source: str
    most_s: float | None = None
    """Upper bound of the model's interval; None where no model was used."""


def read_records(results: Path, scene: str | None = None) -> list[RunRecord]:
    """Return runs that went well, of one scene if it is named; files that cannot be read are left out."""
    found = []
    folder = Path(results) if scene is None else Path(results, scene)
    for path in sorted(folder.glob(("*/" if scene is None else "") + "*/*/r*/record.json")):
        try:
            found.append(load_record(path))
        except UserError:
            continue
    return [record for record in found if record.status == "ok"]


def predict(
    specs: Sequence[AnySpec], records: Sequence[RunRecord], speeds: Mapping[str, float], default_s: float
) -> Prediction:
    """Return the longest of `specs` of one layout, each from the record most like it; `default_s` where there is none.

    Args:
        speeds: of GPU types relative to the fastest.
        default_s: where there is no record of the scene.
    """
    found = [p for spec in specs if (p := _of(spec, records, speeds)) is not None]
    return max(
        found, key=lambda p: p.seconds, default=Prediction(seconds=default_s, source="site.runtime_min")
    )


def time_limit_min(spec: AnySpec, records: Sequence[RunRecord], site: Site) -> tuple[int, str] | None:
    """Return the time limit of a first attempt in minutes, and where it is from; None where no record predicts it.

    A run that takes longer is resumed from its checkpoint by the next attempt, whose limit is longer; a shorter limit
    lets Slurm start the job in gaps (backfill).
    """
    predicted = _of(spec, records, site.gpu_speed) if site.runtime_margin else None
    if predicted is None:
        return None
    most_s = max(predicted.most_s or 0.0, predicted.seconds) / site.gpu_speed.get(site.gpu_type or "", 1.0)
    return limit_min(most_s, site.runtime_margin, site.max_runtime_min), predicted.source


def _of(spec: AnySpec, records: Sequence[RunRecord], speeds: Mapping[str, float]) -> Prediction | None:
    same = (spec.scene, spec.strategy, spec.layout)
    if isinstance(spec, WorkloadSpec):
        return _from_same(same, records)
    if any((r.run.scene, r.run.strategy, r.run.layout) == same for r in records):
        return _from_records(spec, records, speeds)
    if (found := predict_run_time(spec, records)) is None:
        return _from_records(spec, records, speeds)
    speed = _speed(found.record, speeds)
    return Prediction(
        seconds=found.total_s.value * speed, most_s=found.total_s.high * speed, source=found.source
    )


def _from_same(same: tuple[str, str, str], records: Sequence[RunRecord]) -> Prediction | None:
    """Return the longest time of a workload at this layout: nothing is known of what its steps cost elsewhere."""
    times = [
        r.metrics.total_s
        for r in records
        if (r.run.scene, r.run.strategy, r.run.layout) == same and r.metrics.total_s
    ]
    return Prediction(seconds=max(times), source=f"from {'/'.join(same)}") if times else None


def _from_records(
    spec: RunSpec, records: Sequence[RunRecord], speeds: Mapping[str, float]
) -> Prediction | None:
    layout = Layout.parse(spec.layout)

    def distance(record: RunRecord) -> tuple[float, int]:
        there = Layout.parse(record.run.layout)
        return abs(math.log2(there.world_size / layout.world_size)), abs(there.nodes - layout.nodes)

    alike = [
        record
        for record in records
        if (record.run.scene, record.run.strategy) == (spec.scene, spec.strategy)
        and record.metrics.train_s
        and record.metrics.images
    ]
    if not alike:
        return None
    nearest = min(alike, key=distance)
    m, ranks = nearest.metrics, Layout.parse(nearest.run.layout).world_size
    train_s, images = m.train_s or 0.0, m.images or 1
    per_image_s = train_s * ranks / images  # of a rank's own
    seconds = (
        (m.total_s or train_s)
        - train_s
        + per_image_s * spec.num_steps * spec.global_batch / layout.world_size
    )
    name = nearest.run
    return Prediction(
        seconds=seconds * _speed(nearest, speeds),
        source=f"from {name.scene}/{name.strategy}/{name.layout}/r{name.repeat}",
    )


def _speed(record: RunRecord, speeds: Mapping[str, float]) -> float:
    """Relative speed of the GPUs that a record was made on: types are recognised in the devices' names."""
    device = "".join(record.environment.devices[:1]).lower().replace(" ", "").replace("-", "")
    known = [
        speed for kind, speed in speeds.items() if kind.lower().replace("-", "").replace("_", "") in device
    ]
    return known[0] if known else 1.0
