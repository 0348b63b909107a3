"""A job in numbers, from whatever its files say. What they do not say is null, with the reason."""

import re
import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..record import Evidence, Model, StepTime
from .facts import Line
from .readers.nvidia_smi import GpuSamples
from .scan import FileInfo, Scan
from .steps import StepSeries
from .text import NO_TRAINING

MIB_PER_GIB = 1024.0


class ReadFile(Model):
    """One of the files."""

    path: str
    format: str
    bytes: int
    lines: int
    note: str | None = None


class GpuUse(Model):
    """One GPU over the job."""

    gpu: str
    name: str | None = None
    num_samples: int
    memory_peak_gib: float | None = None
    memory_average_gib: float | None = None
    memory_mode_gib: float | None = Field(None, description="the most frequent value, in bins of 64 MiB")
    utilisation_average_percent: float | None = None
    power_average_w: float | None = None


class Rate(Model):
    """Throughput as the log shows it."""

    unit: str
    mean: float
    last: float


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
    series = main_series(scan)
    iterations, asked = _iterations(scan, series)
    step_s, kind = _step_time(scan, series)
    phases, total = _phases(scan, series, iterations)
    gpus = [_gpu(key, g) for key, g in [*scan.gpus.items(), *_node_gpus(scan)]]
    fields: dict[str, Any] = {
        "files": [_file(x) for x in scan.files],
        "trainer": f.get("trainer") or ("dist3dgs" if scan.diary and scan.diary.num_events else None),
        "job_id": f.get("job_id") or _job_id_in_name(scan),
        "job_name": f.get("job_name"),
        "nodes": _nodes(scan),
        "devices_asked": devices_asked(scan),
        "devices_used": devices_used(scan),
        "started_at": scan.diary.started_at if scan.diary else min(scan.first_time.values(), default=None),
        "total_s": total,
        "iterations": iterations,
        "iterations_asked": asked,
        "epochs": next((s.last for s in scan.series.values() if s.format.epochs and s.last >= 0), None),
        "phases_s": phases,
        "step_s": step_s,
        "step_s_kind": kind,
        "throughput": _rates(scan, step_s, kind),
        "num_gaussians": (scan.diary.num_gaussians if scan.diary else None) or f.get("num_gaussians"),
        "quality": _quality(scan),
        "gpus": gpus,
        "gpu_peak_gib": _gpu_peak(scan, gpus),
        "host_peak_gib": _host_peak(scan),
        "finished": finished(scan, series),
        "ended": _ended(scan),
    }  # fmt: skip
    return LogSummary(**fields, reasons=_reasons(fields))


def main_series(scan: Scan) -> StepSeries | None:
    """The training's own progress display: the most telling format, then the one that ran longest."""
    able = [
        s
        for s in scan.series.values()
        if s.last >= 0 and not s.format.epochs and not NO_TRAINING.search(s.description)
    ]
    able = [s for s in able if s.format.name != "metrics.csv"]
    weak = ("tqdm", "key value", "trainer dict", "opensplat")
    return max(
        able,
        key=lambda s: (bool(s.seconds), s.format.name not in weak, s.elapsed_s or 0, s.count),
        default=None,
    )


def _job_id_in_name(scan: Scan) -> str | None:
    """Slurm's usual file names: slurm-%j.out, %x_%j.err, %x-%A_%a.log."""
    for f in scan.files:
        if m := re.search(r"(?:^|[-_.])(\d{4,12})(?:_\d{1,6})?\.(?:out|err|log|txt)$", Path(f.path).name):
            return m[1]
    return None


def _iterations(scan: Scan, series: StepSeries | None) -> tuple[int | None, int | None]:
    asked = scan.facts.get("iterations_asked")
    if scan.diary is not None and scan.diary.num_events:
        return max([scan.diary.last_step, *scan.diary.steps.values()]), asked
    if series is None or series.format.name == "trainer dict":
        return None, asked
    total = (
        asked
        or series.total
        or next((o.total for o in scan.series.values() if o.total == series.last + 1), None)
    )
    # Displays that count from 0 end at total - 1.
    done = total if total and series.last == total - 1 else series.num_steps
    return done, total


def _step_time(scan: Scan, series: StepSeries | None) -> tuple[StepTime | None, Any]:
    diary = scan.diary
    if diary is not None and diary.step_s:
        slowest = max(diary.step_s.values(), key=lambda s: s.get("mean", 0.0))
        if {"median", "mean", "p5", "p95"} <= slowest.keys():
            return StepTime(**slowest), "per step"
    if series is not None:
        step_s = series.step_time()
        if step_s is not None:
            return step_s, "moving average" if series.format.smoothed else "per step"
    for s in scan.series.values():
        if s.format.epochs and (step_s := s.step_time()) is not None:
            return step_s, "per epoch"
    return None, None


def _phases(
    scan: Scan, series: StepSeries | None, iterations: int | None
) -> tuple[dict[str, float], float | None]:
    diary, f = scan.diary, scan.facts
    if diary is not None and diary.phases_s:
        names = dict.fromkeys(name for phases in diary.phases_s.values() for name in phases)
        slowest = {n: max(p.get(n, 0.0) for p in diary.phases_s.values()) for n in names}
        span = (
            diary.last_t - diary.started_at
            if diary.last_t is not None and diary.started_at is not None
            else None
        )
        return slowest, span
    total = f.get("duration_s") or f.get("train_s")
    start = min(scan.first_time.values(), default=None)
    end = max(scan.last_time.values(), default=None)
    if total is None and start is not None and end is not None and end > start:
        total = end - start
    marks = [(x.value, x.line.time) for x in f.many.get("mark", []) if x.line.time is not None]
    phases: dict[str, float] = {}
    names = {"start": "environment", "caching_eval": "caching_eval", "caching_train": "caching"}
    begin = next((t for name, t in marks if name == "start"), start)
    order = [("start", begin), *[(n, t) for n, t in marks if n not in ("start", "end")]]
    for (name, t), (_, t_next) in pairwise(order):
        phase = names.get(str(name))
        if t is not None and t_next is not None and t_next >= t and phase is not None:
            phases[phase] = phases.get(phase, 0.0) + t_next - t
    stepping = f.get("stepping_s") or _stepping(series, iterations)
    if stepping is not None:
        phases["stepping"] = stepping
    if total is not None and not phases and iterations is None and marks:
        phases["environment"] = total  # it never came further
    if total is not None and phases and total >= sum(phases.values()):
        phases["other"] = total - sum(phases.values())
    return phases, total


def _stepping(series: StepSeries | None, iterations: int | None) -> float | None:
    if series is None or not iterations:
        return None
    if series.elapsed_s is not None and not series.restarts:
        return series.elapsed_s
    step_s = series.step_time()
    return step_s.mean * iterations if step_s is not None else None


def _rates(scan: Scan, step_s: StepTime | None, kind: str | None) -> list[Rate]:
    rates = [
        Rate(unit=s.format.rate_unit, mean=statistics.fmean(s.rates), last=s.rates[-1])
        for s in scan.series.values()
        if s.rates and s.format.rate_unit
    ]
    if step_s is not None and kind != "per epoch" and step_s.mean > 0:
        rates.append(Rate(unit="steps/s", mean=1 / step_s.mean, last=1 / step_s.mean))
    return rates


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


def _nodes(scan: Scan) -> list[str]:
    names = scan.facts.get("nodes")
    if names:
        return list(names)
    if scan.diary is not None and scan.diary.hosts:
        return list(dict.fromkeys(scan.diary.hosts.values()))
    return list(dict.fromkeys(scan.facts.all("worker_host")))


def devices_asked(scan: Scan) -> int | None:
    """GPUs of the allocation, as the job's environment, script or accounting says."""
    f = scan.facts
    if (total := f.get("gpus_asked")) is not None:
        return total
    per_node = f.get("gpus_per_node")
    if per_node is not None:
        nodes = f.get("num_nodes") or (len(f.get("nodes")) if f.get("nodes") else 1)
        return per_node * nodes
    return None


def devices_used(scan: Scan) -> int | None:
    """Devices that took part in the training, as the trainer says."""
    if scan.diary is not None and scan.diary.world_size:
        return scan.diary.world_size
    f = scan.facts
    stated = [x for x in (f.get("devices_used"), f.get("world_size")) if x]
    ranks = f.all("rank")
    if ranks and (not stated or max(ranks) + 1 > max(stated)):
        stated.append(max(ranks) + 1 if len(ranks) > 1 else 0)
    busy = [g for g in scan.gpus.values() if g.utilisation]
    if not any(stated) and len(busy) > 1:
        stated.append(sum(1 for g in busy if max(g.utilisation) > 5))
    return max(stated, default=0) or None


def finished(scan: Scan, series: StepSeries | None) -> Evidence | None:
    """The trainer's own word that it came to its end: its banner, our `end` event, a display at its total."""
    if scan.diary is not None and scan.diary.end is not None:
        event, line = scan.diary.end
        return _evidence(line) if event.get("status") == "ok" else None
    if scan.diary is not None and scan.diary.num_events:
        return None
    if (state := scan.facts.one.get("job_state")) and str(state.value).startswith("COMPLETED"):
        return _evidence(state.line)
    if (fact := scan.facts.one.get("finish")) is not None:
        return _evidence(fact.line)
    complete = [
        s
        for s in scan.series.values()
        if s.complete and not NO_TRAINING.search(s.description) and (s is series or s.format.epochs)
    ]
    last = next((p.last for p in scan.progress.values() if p.last), None)
    return _evidence(last) if complete and last is not None else None


def _ended(scan: Scan) -> Evidence | None:
    if (code := scan.facts.one.get("exit_code")) and code.value != 0:
        return None
    for key in ("wrapper_finish", "teardown"):
        if (fact := scan.facts.one.get(key)) is not None:
            return _evidence(fact.line)
    if (code := scan.facts.one.get("exit_code")) is not None:
        return _evidence(code.line)
    return None


def _evidence(line: Line) -> Evidence:
    return Evidence(file=line.file, line=line.number, text=line.text.strip()[:1000])


def _host_peak(scan: Scan) -> float | None:
    peaks = [
        scan.facts.get("host_peak_gib"),
        *(p.memory_peak_mib / MIB_PER_GIB for p in scan.processes if p.num_samples),
    ]
    peaks += [n.peak_pss_gib for n in scan.nodes]
    return max([p for p in peaks if p is not None], default=None)


def _gpu_peak(scan: Scan, gpus: list[GpuUse]) -> float | None:
    peaks = [scan.facts.get("gpu_peak_gib"), *(g.memory_peak_gib for g in gpus)]
    peaks += scan.diary.peak_gpu_gib.values() if scan.diary else []
    return max((p for p in peaks if p is not None), default=None)


def _node_gpus(scan: Scan) -> list[tuple[str, GpuSamples]]:
    return [(f"{n.node}:{key}", g) for n in scan.nodes for key, g in n.gpus.items()]


def _gpu(key: str, g: GpuSamples) -> GpuUse:
    memory, busy = g.memory_mib, g.utilisation
    bins: Counter[int] = Counter()
    for mib, count in memory.items():
        bins[round(mib / 64)] += count
    return GpuUse(
        gpu=key,
        name=g.name,
        num_samples=g.num_samples,
        memory_peak_gib=max(memory) / MIB_PER_GIB if memory else None,
        memory_average_gib=sum(m * n for m, n in memory.items()) / memory.total() / MIB_PER_GIB
        if memory
        else None,
        memory_mode_gib=bins.most_common(1)[0][0] * 64 / MIB_PER_GIB if bins else None,
        utilisation_average_percent=sum(u * n for u, n in busy.items()) / busy.total() if busy else None,
        power_average_w=g.power_sum / g.power_count if g.power_count else None,
    )


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
