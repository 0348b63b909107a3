"""Predict the run time of a layout that was not run, from the records of its scene: for time limits and partitions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config.models import RunSpec
from ..errors import UserError
from ..runs.record import RunRecord
from .calibration import calibrate
from .compare import machine_with
from .model import Interval, predictor
from .study import USUAL_SIZE_PX
from .workload import workload_of

#: Part of every time limit: what starting, reading and writing may take on a busy file system.
LIMIT_BASE_MIN = 10


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """Seconds from launch to end on the devices of `record`."""

    total_s: Interval
    record: RunRecord
    """One of those that it is from."""
    source: str


def limit_min(most_s: float, margin: float, longest_min: int) -> int:
    """Return a job's time limit in minutes: `margin` times the upper end of the predicted seconds, and a base."""
    return min(LIMIT_BASE_MIN + math.ceil(margin * most_s / 60), longest_min)


def predict_run_time(
    spec: RunSpec, records: Sequence[RunRecord], config: Path = Path("config")
) -> RunTime | None:
    """Predict with rates fitted to the scene's records of any layout, all on the device that most of them ran on.

    Returns:
        None where the records have no curve, or there is no model of the strategy or file of the machine.
    """
    of_scene = [r for r in records if r.run.scene == spec.scene and r.environment.devices]
    kinds = [r.environment.devices[0] for r in of_scene]
    if not kinds:
        return None
    device = max(kinds, key=kinds.count)
    used = [r for r in of_scene if r.environment.devices[0] == device]
    machine = machine_with(device, config)
    if machine is None:
        return None
    made = calibrate(used, machine, USUAL_SIZE_PX, predictor(machine))
    if made is None:
        return None
    workload = workload_of(spec.train, spec.parallel, spec.started, USUAL_SIZE_PX)
    known = [r.metrics.num_gaussians for r in used if r.metrics.num_gaussians]
    if known:  # the settings only say how many there may be
        workload = replace(workload, gaussians=min(workload.gaussians, float(max(known))))
    try:
        total_s = made.forecast(workload, spec.started).total_s
    except UserError:  # a strategy without a model
        return None
    source = f"model fitted to {made.source.removesuffix(' of this study')} of {spec.scene}"
    return RunTime(total_s=total_s, record=used[0], source=source)
