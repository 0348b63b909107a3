"""Predicted beside measured: what the smallest layout's records say of every other record of its scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..analysis.points import conditions
from ..config.naming import Layout
from ..errors import UserError
from ..runs.metrics import Metric
from ..runs.record import RunRecord
from .calibration import calibrate, predicted_train_s
from .machine import Machine, load_machine, machine_names
from .model import predictor
from .study import USUAL_SIZE_PX

#: Columns of runs.csv and points.csv beside what was measured.
PREDICTED: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            name="predicted_step_s",
            label="step, predicted",
            unit="s",
            description="mean step of the run as predicted from the records of the scene's smallest layout",
        ),
        Metric(name="predicted_step_low_s", label="step, predicted at least", unit="s"),
        Metric(name="predicted_step_high_s", label="step, predicted at most", unit="s"),
        Metric(
            name="predicted_over_measured",
            label="predicted over measured",
            description="of the mean step; of the smallest layout itself it is how well the rates fit",
        ),
    )
}
#: A prediction within this share of the measurement is a good one.
GOOD_ERROR = 0.10


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run's mean step, measured and predicted."""

    record: RunRecord
    measured_s: float
    predicted_s: float
    width: float
    """Relative half-width of the prediction's interval."""
    fitted: bool
    """The prediction was fitted to this layout."""

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.measured_s


def predicted_metrics(records: Sequence[RunRecord]) -> list[dict[str, float]]:
    """Return the metrics of `PREDICTED` of each record, in order; empty where the model cannot predict it."""
    compared = {id(c.record): c for c in compare_runs(records)}
    return [
        {
            "predicted_step_s": c.predicted_s,
            "predicted_step_low_s": c.predicted_s / (1 + c.width),
            "predicted_step_high_s": c.predicted_s * (1 + c.width),
            "predicted_over_measured": c.ratio,
        }
        if (c := compared.get(id(record))) is not None
        else {}
        for record in records
    ]


def machine_with(accelerator: str, config: Path) -> Machine | None:
    """Find the one machine file of an accelerator by the name that PyTorch gives it; None of none or several."""
    try:
        every = [load_machine(name, config) for name in machine_names(config)]
    except UserError:
        return None
    found = [m for m in every if m.accelerator.lower() == accelerator.lower()]
    return found[0] if len(found) == 1 else None


def compare_runs(records: Sequence[RunRecord], config: Path = Path("config")) -> list[ComparedRun]:
    """Predict every run from the smallest layout of its scene, hardware, code and data.

    Steps are compared with the run's own numbers of Gaussians, so the error is the model's, not that of guessing how
    many there will be. Runs without a curve, of strategies without a model, and on a machine that no file of
    `config/machines` describes are left out.
    """
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        if record.status == "ok" and record.metrics.train_s and record.environment.devices:
            hardware, code, data, _ = conditions(record)
            groups.setdefault((record.run.scene, hardware, code, data), []).append(record)
    devices = {group[0].environment.devices[0] for group in groups.values()}
    machines = {device: machine_with(device, config) for device in devices}
    found = []
    for group in groups.values():
        machine = machines[group[0].environment.devices[0]]
        least = min(r.world_size for r in group)
        base = [r for r in group if r.world_size == least]
        # The size of the photographs is the same in a scene: only its product with a fitted rate counts.
        made = calibrate(base, machine, USUAL_SIZE_PX, predictor(machine)) if machine is not None else None
        if made is None:
            continue
        for record in group:
            try:
                predicted = predicted_train_s(made, record, USUAL_SIZE_PX)
            except UserError:  # a strategy without a model
                continue
            steps, train_s = record.metrics.steps, record.metrics.train_s
            if predicted and steps and train_s:
                found.append(
                    ComparedRun(
                        record=record,
                        measured_s=train_s / steps,
                        predicted_s=predicted / steps,
                        width=made.error_one if record.world_size == 1 else made.error_several,
                        fitted=record.world_size == least,
                    )
                )
    return sorted(
        found, key=lambda c: (c.record.run.scene, c.record.run.strategy, Layout.parse(c.record.run.layout))
    )
