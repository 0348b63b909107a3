"""The verdict on a run of our own, as its record has it, for `dist3dgs diagnose`."""

from pathlib import Path

from ..diagnosis.rules import all_rules
from ..diagnosis.verdict import Diagnosis
from ..runs.attempts import ATTEMPTS, Attempt
from ..runs.record import Failure, Status, load_record
from .build import judge, verdict
from .evidence import RunEvidence


def verdict_of_run(path: Path) -> Diagnosis:
    """The judge's verdict on the run, or the one attempt, whose launch.json or record.json this is.

    Raises `UserError` if it cannot be read.
    """
    if path.name == "record.json":
        record = load_record(path)
        return _diagnosis(record.status, record.failure)
    if path.parent.parent.name == ATTEMPTS:
        attempt = Attempt(path.parent)
        launch = attempt.launch()
        return _diagnosis(*verdict(RunEvidence(launch, launch["spec"], [attempt])))
    record = judge(path)
    return _diagnosis(record.status, record.failure)


def _diagnosis(status: Status, failure: Failure | None) -> Diagnosis:
    if failure is None:
        return Diagnosis(status=status)
    why = next((r.why for r in all_rules() if r.cause == failure.cause), None)
    return Diagnosis(status=status, explanation=why, **failure.model_dump())
