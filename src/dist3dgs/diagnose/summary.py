"""A job in numbers, from whatever its files say. What they do not say is null, with the reason."""

from typing import Any, Literal

from pydantic import Field

from ..record import Evidence, Model, StepTime
from . import course, machines
from .course import Rate
from .machines import GpuUse
from .scan import FileInfo, Scan


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
    phases_s: dict[str, float] = Field(
        default_factory=dict, description="environment, caching, stepping, evaluation, other"
    )
    step_s: StepTime | None = None
    step_s_kind: Literal["per step", "moving average", "per epoch"] | None = None
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
    host_peak_gib: float | None = None
    finished: Evidence | None = Field(None, description="the trainer's own line that it came to its end")
    ended: Evidence | None = Field(
        None, description="a weaker sign of a normal end: the wrapper's, or a clean teardown"
    )
    reasons: dict[str, str] = Field(default_factory=dict, description="field -> why it is null")


def summarise(scan: Scan) -> LogSummary:
    """Facts and statistics of one pass as a summary."""
    f = scan.facts
    series = course.main_series(scan)
    iterations, asked = course.iterations(scan, series)
    step_s, kind = course.step_time(scan, series)
    phases, total = course.phases(scan, series, iterations)
    gpus = [machines.gpu(key, g) for key, g in [*scan.gpus.items(), *machines.node_gpus(scan)]]
    fields: dict[str, Any] = {
        "files": [_file(x) for x in scan.files],
        "trainer": f.get("trainer") or ("dist3dgs" if scan.diary and scan.diary.num_events else None),
        "job_id": f.get("job_id") or machines.job_id_in_name(scan),
        "job_name": f.get("job_name"),
        "nodes": machines.nodes(scan),
        "devices_asked": machines.devices_asked(scan),
        "devices_used": machines.devices_used(scan),
        "started_at": scan.diary.started_at if scan.diary else min(scan.first_time.values(), default=None),
        "total_s": total,
        "iterations": iterations,
        "iterations_asked": asked,
        "epochs": next((s.last for s in scan.series.values() if s.format.epochs and s.last >= 0), None),
        "phases_s": phases,
        "step_s": step_s,
        "step_s_kind": kind,
        "step_s_sampled": step_s is not None and series is not None and series.sampled and not scan.diary,
        "throughput": course.rates(scan, step_s, kind),
        "num_gaussians": (scan.diary.num_gaussians if scan.diary else None) or f.get("num_gaussians"),
        "quality": _quality(scan),
        "gpus": gpus,
        "gpu_peak_gib": machines.gpu_peak(scan, gpus),
        "host_peak_gib": machines.host_peak(scan),
        "finished": course.finished(scan, series),
        "ended": course.ended(scan),
    }  # fmt: skip
    return LogSummary(**fields, reasons=_reasons(fields))


def _quality(scan: Scan) -> dict[str, float]:
    found = {
        k: scan.facts.get(k)
        for k in ("psnr", "ssim", "lpips", "loss", "val_loss", "accuracy", "train_accuracy")
    }
    if (triple := scan.facts.get("quality_json")) is not None:
        found |= dict(zip(("psnr", "ssim", "lpips"), triple, strict=True))
    if scan.diary is not None:
        found["loss"] = scan.diary.loss
        for key in ("psnr", "ssim", "lpips"):
            values = [e[key] for e in scan.diary.evals if isinstance(e.get(key), int | float)]
            found[key] = float(values[-1]) if values else None
    return {k: float(v) for k, v in found.items() if v is not None}


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
    "finished": "the trainer's own line that it came to its end is not there",
}


def _reasons(fields: dict[str, Any]) -> dict[str, str]:
    return {
        key: why
        for key, why in REASONS.items()
        if fields[key] is None or fields[key] == [] or fields[key] == {}
    }
