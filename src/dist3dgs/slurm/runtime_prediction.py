"""Predict how long a run takes from the records of others: seconds on GPUs of speed 1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.matrix import AnySpec
from ..config.naming import Layout
from ..errors import UserError
from ..runs.record import RunRecord, load_record


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds on the fastest GPUs, and where the number comes from."""

    seconds: float
    source: str


def read_records(results: Path) -> list[RunRecord]:
    """Runs that went well; what cannot be read is not for here to complain about."""
    found = []
    for path in sorted(Path(results).glob("*/*/*/r*/record.json")):
        try:
            found.append(load_record(path))
        except UserError:
            continue
    return [record for record in found if record.status == "ok"]


def predict(
    specs: Sequence[AnySpec], records: Sequence[RunRecord], speeds: Mapping[str, float], default_s: float
) -> Prediction:
    """The longest of `specs` of one layout, each from the record most like it; `default_s` where there is none.

    What a rank takes for an image of its own is carried over from the nearest layout: true as far as training scales.
    """
    found = [p for spec in specs if (p := _from_records(spec, records, speeds)) is not None]
    return max(
        found, key=lambda p: p.seconds, default=Prediction(seconds=default_s, source="site.runtime_min")
    )


def _from_records(
    spec: AnySpec, records: Sequence[RunRecord], speeds: Mapping[str, float]
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
