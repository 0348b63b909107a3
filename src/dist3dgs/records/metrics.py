"""Measure a run from the ranks' own totals."""

from collections import defaultdict
from typing import Any

from ..config.models import validate
from ..config.workloads import WorkloadSpec
from ..runs.attempts import Attempt
from ..runs.metrics import added
from ..runs.record import (
    METRICS,
    Collective,
    FigureOfMerit,
    Metrics,
    QualityPoint,
    RankMetrics,
    StepTime,
    ViewQuality,
)
from ..workloads.figures_of_merit import Found
from .evidence import RunEvidence

#: Seconds by phase.
Phases = dict[str, float]

#: Measured from outside, whatever a program says of itself.
_OURS = {"total_s", "peak_rss_gib", "peak_host_gib", "lost_s", "lost_gpu_hours", "loader_workers"}
#: Parts of a rank's time in steps.
_SHARES = ("compute_s", "comm_s", "exposed_comm_s")


def measure(run: RunEvidence) -> tuple[Metrics, dict[str, str]]:
    """Return the run's metrics, and a reason for each null."""
    timing = {e["rank"]: e for e in run.of_kind("timing")}
    slowest = max(timing.values(), key=lambda e: e["train_s"], default=None)
    evals = [e for e in run.events_of_attempts if e["event"] == "eval"]
    final = evals[-1] if evals else {}
    by_attempt = [_booked(run, attempt) for attempt in run.attempts]
    values: dict[str, Any] = {
        "total_s": _total_s(run),
        "phases_s": _phases(by_attempt),
        "curve": [_curve_point(e) for e in evals],
        "views": [_view(v) for v in final.get("views", [])],
        "ranks": _ranks(run, timing, by_attempt),
        "psnr": final.get("psnr"),
        "ssim": final.get("ssim"),
        "lpips": final.get("lpips"),
        "seam_psnr": final.get("seam_psnr"),
        "num_gaussians": final.get("num_gaussians"),
        "peak_host_gib": run.summary.peak_pss_gib,
    }
    if slowest:
        values |= _speed(run, slowest)
    values |= {m.name: m.over_events(run.of_kind(m.event)) for m in METRICS.values() if m.event is not None}
    values["added"], why_not_added = _added(run)
    reasons = _reasons(run, values, slowest)
    if run.workload is not None:
        told, reasons = _workload(run, run.workload)
        values |= told
        values["phases_s"] = _in_epochs(values["phases_s"], by_attempt, values.get("train_s"))
    metrics, wrong = Metrics.known(values)
    return metrics, reasons | why_not_added | wrong


def _workload(run: RunEvidence, found: Found) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a workload's figures of merit say, and what they do not: a figure may be a metric of ours by name."""
    criteria = run.spec["criteria"]
    figures = criteria["figures_of_merit"]
    values: dict[str, Any] = {
        "figures_of_merit": {
            name: FigureOfMerit(value=value, unit=figures[name].get("unit", ""), count=found.counts[name])
            for name, value in found.values.items()
        }
    }
    values |= {name: value for name, value in found.values.items() if name in METRICS.keys() - _OURS}
    values["loader_workers"] = run.summary.loader_workers
    reasons = dict(found.missing)
    if run.summary.loader_workers_reason is not None:
        reasons["loader_workers"] = run.summary.loader_workers_reason
    if values.get("images_per_s") is None and values.get("epoch_s") and criteria.get("work_per_epoch"):
        values["images_per_s"] = criteria["work_per_epoch"] / values["epoch_s"]
        reasons["images_per_s"] = f"{criteria['unit_of_work']}s per second, of work_per_epoch and epoch_s"
    elif values.get("images_per_s") is None and (more := _rate(run, found)):
        values["images_per_s"], reasons["images_per_s"] = more
    elif values.get("images_per_s") is None:
        reasons["images_per_s"] = (
            "the workload has no figure of merit `images_per_s`, nor `epoch_s` with work_per_epoch"
        )
    elif criteria["unit_of_work"] != "image":
        reasons["images_per_s"] = f"{criteria['unit_of_work']}s per second"
    told, why = _totals(values, figures)
    values |= told
    reasons |= why
    if values.get("compute_s") is not None and values.get("comm_s"):
        values["compute_to_comm"] = values["compute_s"] / values["comm_s"]
    for name in ("train_s", "step_s", "comm_s", "compute_to_comm"):
        if values.get(name) is None:
            reasons.setdefault(name, "a program of others; it has no figure of merit of this name")
    return values, reasons


def _totals(values: dict[str, Any], figures: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return totals of a run from its figures per epoch or step, and how they were made."""
    told: dict[str, Any] = {}
    epochs, epoch_s, rate = (values.get(name) for name in ("epochs", "epoch_s", "images_per_s"))
    count = {"epoch": epochs, "step": values.get("steps")}
    for name in _SHARES:
        times = count.get(figures.get(name, {}).get("per", "run"))
        if values.get(name) is not None and times:
            told[name] = values[name] * times
    if not epochs or not epoch_s:
        return told, {}
    reasons = {}
    if values.get("train_s") is None:
        told["train_s"], reasons["train_s"] = epochs * epoch_s, "epochs x epoch_s"
    if values.get("images") is None and rate:
        told["images"] = round(rate * epoch_s * epochs)
        reasons["images"] = "images_per_s x epoch_s x epochs"
    return told, reasons


def _in_epochs(phases: Phases, by_attempt: list[dict[int, Phases]], train_s: float | None) -> Phases:
    """Take out of `step` what the last attempt of a program spent outside its training: start, data, validation."""
    last = (
        max((booked.get("step", 0.0) for booked in by_attempt[-1].values()), default=0.0)
        if by_attempt
        else 0.0
    )
    if train_s is None or last <= train_s:
        return phases
    return phases | {"step": phases["step"] - (last - train_s)}


def _rate(run: RunEvidence, found: Found) -> tuple[float, str] | None:
    """Return the rate of a workload that prints seconds per step, or the seconds of a run of known size; its source."""
    spec = validate(WorkloadSpec, run.spec, "spec")
    if seconds := found.values.get("iteration_s"):
        return spec.global_batch / seconds, "global batch / iteration_s"
    if spec.train.images is not None and (seconds := found.values.get("train_s")):
        return spec.num_steps * spec.global_batch / seconds, "images that it was asked for / train_s"
    return None


def _added(run: RunEvidence) -> tuple[dict[str, float], dict[str, str]]:
    """Measure what other distributions add; a function of theirs that fails gives a reason, not an error."""
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, m in added().items():
        try:
            value = m.measure(run) if m.measure else m.over_events(run.of_kind(m.event)) if m.event else None
            problem = None if value is None else m.problem(value)
        except Exception as e:
            value, problem = None, f"could not be measured: {type(e).__name__}: {e}"
        if problem is not None:
            reasons[name] = problem[:200]
        elif value is not None:
            values[name] = value
        elif m.derive is None:
            reasons[name] = "not in the evidence of this run"
    return values, reasons


def _speed(run: RunEvidence, slowest: dict[str, Any]) -> dict[str, Any]:
    images_per_step = slowest["images"] / max(1, run.last_step)
    mean_s = slowest["step_s"]["mean"] if slowest["step_s"] else None
    shares = _shares(run, slowest)
    compute_s, comm_s = shares["compute_s"], shares["comm_s"]
    return {
        **shares,
        "train_s": slowest["train_s"],
        "step_parts_s": slowest["parts_s"],
        "steps": run.last_step,
        "timed_steps": slowest["steps"],
        "images": slowest["images"],
        "step_s": StepTime(**slowest["step_s"]) if slowest["step_s"] else None,
        "steps_per_s": 1 / mean_s if mean_s else None,
        "images_per_s": images_per_step / mean_s if mean_s else None,
        "compute_to_comm": compute_s / comm_s if comm_s and compute_s is not None else None,
        "collectives": _collectives(run, slowest["rank"]),
    }


def _shares(run: RunEvidence, timing: dict[str, Any]) -> dict[str, float | None]:
    """Split one rank's seconds in steps into computing, collectives, and collectives not hidden by computing."""
    parts_s = sum(timing["parts_s"].values())
    comm = [e for e in run.of_kind("comm") if e["rank"] == timing["rank"] and e.get("phase") == "step"]
    known = bool(comm) and all(e["s"] is not None for e in comm)
    if not parts_s or (_num_ranks(run) > 1 and not known):
        return dict.fromkeys(_SHARES)
    if not comm:
        return {**dict.fromkeys(_SHARES), "compute_s": parts_s}
    exposed_s = sum(e["exposed_s"] for e in comm)
    return {
        "compute_s": parts_s - exposed_s,
        "comm_s": sum(e["s"] for e in comm),
        "exposed_comm_s": exposed_s,
    }


def _reasons(run: RunEvidence, values: dict[str, Any], slowest: dict[str, Any] | None) -> dict[str, str]:
    """Explain each null, and what a number leaves out."""
    reasons: dict[str, str] = {}
    if slowest is None:
        for name in ("train_s", "steps", "step_s", "images_per_s", "peak_rss_gib"):
            reasons[name] = "the run did not reach its end, where ranks write their totals"
    if values["lpips"] is None:
        reasons["lpips"] = "its weights are not on disk (dist3dgs fetch-weights) or `train.lpips` is false"
    if values["psnr"] is None:
        reasons["psnr"] = "no evaluation was reached"
    for name in (*_SHARES, "compute_to_comm"):
        if values.get(name) is None:
            reasons[name] = _why_no_share(name, run, slowest)
        elif slowest and slowest["steps"] < run.last_step:
            reasons[name] = (
                f"of the {slowest['steps']} steps since the last resume, not of all {run.last_step}"
            )
    if values["peak_gpu_gib"] is None:
        cpu = all(e.get("device") == "cpu" for e in run.of_kind("start"))
        reasons["peak_gpu_gib"] = "trained on the CPU" if cpu else "the ranks did not report it"
    return reasons


def _why_no_share(name: str, run: RunEvidence, slowest: dict[str, Any] | None) -> str:
    """Explain why seconds in steps are not split into computing and collectives."""
    if name != "compute_s" and _num_ranks(run) == 1:
        return "one rank: nothing to communicate"
    if slowest is None:
        return "no totals were written"
    if not slowest["parts_s"]:
        return "no step was timed in parts: too few steps (on a GPU the 6th and every 50th are)"
    return "the evidence does not say in which phase a collective was"


def _num_ranks(run: RunEvidence) -> int:
    return len({e["rank"] for e in run.of_kind("start")})


def _collectives(run: RunEvidence, rank: int) -> list[Collective]:
    """List one rank's totals, with the bytes of all ranks."""
    events = run.of_kind("comm")
    sent: dict[tuple[str | None, str], int] = defaultdict(int)
    for e in events:
        sent[e.get("phase"), e["op"]] += e["bytes"]
    fields = ("op", "phase", "calls", "bytes", "s", "exposed_s")
    return [
        Collective(**{k: e.get(k) for k in fields}, bytes_all_ranks=sent[e.get("phase"), e["op"]])
        for e in events
        if e["rank"] == rank
    ]


def _ranks(
    run: RunEvidence, timing: dict[int, dict[str, Any]], by_attempt: list[dict[int, Phases]]
) -> list[RankMetrics]:
    digests = [e["digests"] for e in run.of_kind("digest")]
    memory = {e["rank"]: e for e in run.of_kind("memory")}
    blocks = block_numbers(run)
    ranks = []
    for e in sorted(run.of_kind("start"), key=lambda e: e["rank"]):
        r = e["rank"]
        mine = timing.get(r)
        ranks.append(
            RankMetrics(
                rank=r,
                host=e.get("host"),
                device=e.get("device"),
                phases_s=_sum([booked[r] for booked in by_attempt if r in booked]),
                step_parts_s=mine["parts_s"] if mine else {},
                **(_shares(run, mine) if mine else {}),
                peak_rss_gib=memory.get(r, {}).get("peak_rss_gib"),
                peak_gpu_gib=memory.get(r, {}).get("peak_gpu_gib"),
                parameter_digest=digests[-1][r] if digests and r < len(digests[-1]) else None,
                **{f"block_{k}": numbers[r] for k, numbers in blocks.items() if r < len(numbers)},
            )
        )
    return ranks


def block_numbers(run: RunEvidence) -> dict[str, list[int]]:
    """Return `gaussians` and `views` of each block, as the run's last events say."""
    found: dict[str, list[int]] = {}
    for e in run.events_of_attempts:
        if e["event"] == "blocks":
            found |= {k: e[k] for k in ("gaussians", "views") if k in e}
    return found


def _phases(by_attempt: list[dict[int, Phases]]) -> Phases:
    """Add up the slowest rank's seconds of each phase over all attempts, as the total adds up theirs."""
    slowest = []
    for booked in by_attempt:
        names = dict.fromkeys(name for phases in booked.values() for name in phases)
        slowest.append({name: max(phases.get(name, 0.0) for phases in booked.values()) for name in names})
    return _sum(slowest)


def _sum(parts: list[Phases]) -> Phases:
    names = dict.fromkeys(name for phases in parts for name in phases)
    return {name: sum(phases.get(name, 0.0) for phases in parts) for name in names}


def _booked(run: RunEvidence, attempt: Attempt) -> dict[int, Phases]:
    """Return each rank's seconds by phase in one attempt: as it wrote them at its end, else from its events.

    `startup` is from the launcher's start; the ranks' own clocks begin when torch is loaded. A phase that was open
    when the attempt ended lasted to that end.
    """
    start, end = _times(run, attempt)
    walks: dict[int, _Walk] = {}
    written: dict[int, Phases] = {}
    for e in attempt.events():
        rank, t = e.get("rank"), e.get("t")
        if not isinstance(rank, int) or not isinstance(t, int | float):
            continue
        walk = walks.setdefault(rank, _Walk(start))
        if e["event"] in ("enter", "leave"):
            walk.take(e, t)
        elif e["event"] == "timing":
            written[rank] = e["phases_s"]
    booked = {}
    for rank, walk in walks.items():
        if rank not in written and end is not None:
            walk.close(end)
        phases = written.get(rank, walk.phases_s)
        startup = {"startup": walk.phases_s["startup"]} if "startup" in walk.phases_s else {}
        booked[rank] = {**startup, **{k: v for k, v in phases.items() if k != "startup"}}
    return booked


class _Walk:
    """Adds up one rank's time in its phases along its events; what nested phases take is theirs."""

    def __init__(self, start: float | None) -> None:
        self.phases_s: Phases = {}
        self._open = ["startup"]
        self._since = start

    def take(self, event: dict[str, Any], t: float) -> None:
        self.close(t)
        phase = str(event.get("phase"))
        if event["event"] == "leave":
            self._open = self._open[:-1]
        elif self._open != ["startup"] or phase != "startup":  # the launcher's start began it
            self._open.append(phase)

    def close(self, t: float) -> None:
        """Book the time up to `t` under the innermost open phase."""
        if self._open and self._since is not None and t > self._since:
            name = self._open[-1]
            self.phases_s[name] = self.phases_s.get(name, 0.0) + t - self._since
        self._since = t


def _total_s(run: RunEvidence) -> float | None:
    """Add up the attempts from start to end; waiting between them is not training and not counted."""
    times = [_times(run, attempt) for attempt in run.attempts]
    return sum(end - start for start, end in times if start and end) or None


def _times(run: RunEvidence, attempt: Attempt) -> tuple[float | None, float | None]:
    """Return start and end of an attempt in Unix seconds; if its launcher was killed, the end is the last event."""
    summary = run.summary if attempt == run.last else attempt.summary()
    last = [e["t"] for e in attempt.events() if isinstance(e.get("t"), int | float)][-1:]
    return summary.started_at, summary.finished_at or next(iter(last), None)


def _curve_point(e: dict[str, Any]) -> QualityPoint:
    names = ("step", "elapsed_s", "psnr", "ssim", "lpips", "num_gaussians")
    return QualityPoint(**{k: e.get(k) for k in names})


def _view(v: dict[str, Any]) -> ViewQuality:
    return ViewQuality(name=v["name"], psnr=v["psnr"], ssim=v.get("ssim"), lpips=v.get("lpips"))
