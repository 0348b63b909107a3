"""Summarise a job in numbers from its files. Unknown numbers are null, with the reason."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..logs.step_series import StepSeries
from ..runs.record import Evidence, Model, StepTime
from . import hardware_usage, run_timeline
from .hardware_usage import GpuUse, HostUse
from .run_timeline import EpochTime, Rate
from .scan import FileInfo, Scan, scan


class ReadFile(Model):
    """One of the files."""

    path: str
    format: str
    bytes: int
    lines: int
    note: str | None = None


class LogSummary(Model):
    """One job."""

    files: list[ReadFile]
    trainer: str | None = None
    job_id: str | None = None
    job_name: str | None = None
    nodes: list[str] = Field(default_factory=list)
    devices_asked: int | None = None
    devices_used: int | None = None
    started_at: float | None = Field(
        None, description="seconds; local time of the log read as UTC, for differences only"
    )
    total_s: float | None = None
    iterations: int | None = Field(None, description="training steps done")
    iterations_asked: int | None = None
    epochs: int | None = None
    epoch_s: EpochTime | None = Field(None, description="null unless the times of all epochs are shown")
    phases_s: dict[str, float] = Field(
        default_factory=dict, description="environment, caching, stepping, evaluation, other"
    )
    step_s: StepTime | None = Field(
        None, description="of the whole run; null if less than 90 % of its steps are shown"
    )
    step_s_shown: StepTime | None = Field(
        None, description="of the steps in steps_shown, where those are not the run"
    )
    steps_shown: tuple[int, int] | None = Field(
        None, description="first and last step that step_s_shown is of"
    )
    step_s_kind: Literal["per step", "moving average", "between lines", "per epoch"] | None = Field(
        None, description="between lines: from the times of day on them"
    )
    step_s_sampled: bool = Field(
        False, description="true: of a log over 8 MiB the percentiles are those of a sample of its steps"
    )
    throughput: list[Rate] = Field(default_factory=list)
    num_gaussians: int | None = None
    quality: dict[str, float] = Field(
        {}, description="last psnr, ssim, lpips, loss, accuracy ... that is shown"
    )
    gpus: list[GpuUse] = Field(default_factory=list)
    gpu_peak_gib: float | None = Field(
        None, description="as the trainer or nvidia-smi says, largest of all GPUs"
    )
    hosts: list[HostUse] = Field(default_factory=list)
    host_peak_gib: float | None = None
    finished: Evidence | None = Field(None, description="the trainer's own statement that it finished")
    ended: Evidence | None = Field(
        None, description="a weaker sign of a normal end: the wrapper's, or a clean teardown"
    )
    reasons: dict[str, str] = Field(default_factory=dict, description="field -> why it is null")


def read_logs(paths: Sequence[Path | str]) -> LogSummary:
    """Sum up one job from all its files. Raises `UserError` if nothing can be read."""
    return summarise(scan(paths))


def summarise(scan: Scan) -> LogSummary:
    """Summarise facts and statistics of one pass."""
    f = scan.facts
    series = run_timeline.main_series(scan)
    iterations, asked = run_timeline.iterations(scan, series)
    pace = run_timeline.pace(scan, series)
    phases, total = run_timeline.phases(scan, series)
    gpus = hardware_usage.gpus(scan)
    fields: dict[str, Any] = {
        "files": [_file(x) for x in scan.files],
        "trainer": f.get("trainer") or ("dist3dgs" if scan.events and scan.events.num_events else None),
        "job_id": f.get("job_id") or scan.job_id,
        "job_name": f.get("job_name"),
        "nodes": hardware_usage.nodes(scan),
        "devices_asked": hardware_usage.devices_asked(scan),
        "devices_used": hardware_usage.devices_used(scan),
        "started_at": scan.events.started_at if scan.events else min(scan.first_time.values(), default=None),
        "total_s": total,
        "iterations": iterations,
        "iterations_asked": asked,
        "epochs": run_timeline.epochs(scan),
        "epoch_s": run_timeline.epoch_time(scan),
        "phases_s": phases,
        "step_s": None if pace.shown else pace.step_s,
        "step_s_shown": pace.step_s if pace.shown else None,
        "steps_shown": pace.shown,
        "step_s_kind": pace.kind,
        "step_s_sampled": pace.series is not None and pace.series.sampled,
        "throughput": run_timeline.rates(scan, pace),
        "num_gaussians": (scan.events.num_gaussians if scan.events else None) or f.get("num_gaussians"),
        "quality": _quality(scan),
        "gpus": gpus,
        "gpu_peak_gib": hardware_usage.gpu_peak(scan, gpus),
        "hosts": hardware_usage.hosts(scan),
        "host_peak_gib": hardware_usage.host_peak(scan),
        "finished": run_timeline.finished(scan, series),
        "ended": run_timeline.ended(scan),
    }  # fmt: skip
    return LogSummary(**fields, reasons=_reasons(fields, scan, series))


def _quality(scan: Scan) -> dict[str, float]:
    found = {
        k: scan.facts.get(k)
        for k in ("psnr", "ssim", "lpips", "loss", "val_loss", "accuracy", "train_accuracy")
    }
    if (triple := scan.facts.get("quality_json")) is not None:
        found |= dict(zip(("psnr", "ssim", "lpips"), triple, strict=True))
    if scan.events is not None:
        found["loss"] = scan.events.loss
        for key in ("psnr", "ssim", "lpips"):
            values = [e[key] for e in scan.events.evals if isinstance(e.get(key), int | float)]
            found[key] = float(values[-1]) if values else None
    return {k: float(v) for k, v in found.items() if v is not None and abs(v) < 1e18}  # no NaN either


def _file(info: FileInfo) -> ReadFile:
    return ReadFile(path=info.path, format=info.format, bytes=info.bytes, lines=info.lines, note=info.note)


REASONS = {
    "job_id": "no Slurm environment, header or message names it",
    "nodes": "no line names the nodes",
    "devices_asked": "no line says how many GPUs were allocated",
    "devices_used": "the trainer does not say how many devices or ranks it uses",
    "total_s": "fewer than two times of day and no stated duration",
    "iterations": "no known trainer's progress lines",
    "step_s": "the progress lines show no times",
    "throughput": "no throughput and no step times shown",
    "quality": "no PSNR, accuracy or loss shown",
    "num_gaussians": "no line states it",
    "gpu_peak_gib": "neither the trainer nor nvidia-smi was logged",
    "gpus": "no nvidia-smi log was given",
    "host_peak_gib": "no sacct, psrecord or resource log was given",
    "phases_s": "no phase of the run is marked with a time",
    "finished": "no line of the trainer says that it finished",
}


def _reasons(fields: dict[str, Any], scan: Scan, series: StepSeries | None) -> dict[str, str]:
    reasons = {
        key: why
        for key, why in REASONS.items()
        if fields[key] is None or fields[key] == [] or fields[key] == {}
    }
    if fields["iterations"] is None and fields["epochs"] is not None:
        reasons["iterations"] = "the log counts epochs, not steps"
        series = series or next((s for s in scan.series.values() if s.format.epochs), None)
    if series is not None and series.timed and not series.covers_run:
        what = "epochs" if series.format.epochs else "steps"
        why = f"only {what} {series.range_shown[0]}-{series.range_shown[1]} are shown"
        for key in ("step_s", "throughput"):
            if key in reasons and (key == "throughput" or fields["step_s_shown"] is not None):
                reasons[key] = why
        if "stepping" not in fields["phases_s"]:
            reasons["stepping"] = why
    if fields["total_s"] is None and (stepping := fields["phases_s"].get("stepping")):
        reasons["total_s"] = (
            f"no stated duration, no times of day over the whole job; its steps took {stepping:.4g} s"
        )
    return reasons
