"""What was measured, from the ranks' own totals."""

from collections import defaultdict
from typing import Any

from ..record import Collective, Metrics, QualityPoint, RankMetrics, StepTime, ViewQuality
from .case import Case

#: What a rank's steps are split into.
_SHARES = ("compute_s", "comm_s", "exposed_comm_s")


def measure(case: Case) -> tuple[Metrics, dict[str, str]]:
    """The run's metrics, and for each null its reason."""
    timing = {e["rank"]: e for e in case.of_kind("timing")}
    slowest = max(timing.values(), key=lambda e: e["train_s"], default=None)
    evals = [e for e in case.diary if e["event"] == "eval"]
    final = evals[-1] if evals else {}
    values: dict[str, Any] = {
        "total_s": _total_s(case),
        "phases_s": _phases(case, timing),
        "curve": [_curve_point(e) for e in evals],
        "views": [_view(v) for v in final.get("views", [])],
        "ranks": _ranks(case, timing),
        "psnr": final.get("psnr"),
        "ssim": final.get("ssim"),
        "lpips": final.get("lpips"),
        "num_gaussians": final.get("num_gaussians"),
        "peak_host_gib": case.launch.get("peak_pss_gib"),
    }
    if slowest:
        values |= _speed(case, slowest)
    memory = case.of_kind("memory")
    values["peak_rss_gib"] = max((e["peak_rss_gib"] for e in memory if e.get("peak_rss_gib")), default=None)
    values["peak_gpu_gib"] = max((e["peak_gpu_gib"] for e in memory if e.get("peak_gpu_gib")), default=None)
    metrics, wrong = Metrics.known(values)
    return metrics, _reasons(case, values, slowest) | wrong


def _speed(case: Case, slowest: dict[str, Any]) -> dict[str, Any]:
    images_per_step = slowest["images"] / max(1, case.last_step)
    mean_s = slowest["step_s"]["mean"] if slowest["step_s"] else None
    shares = _shares(case, slowest)
    compute_s, comm_s = shares["compute_s"], shares["comm_s"]
    return {
        **shares,
        "train_s": slowest["train_s"],
        "step_parts_s": slowest["parts_s"],
        "steps": case.last_step,
        "timed_steps": slowest["steps"],
        "images": slowest["images"],
        "step_s": StepTime(**slowest["step_s"]) if slowest["step_s"] else None,
        "steps_per_s": 1 / mean_s if mean_s else None,
        "images_per_s": images_per_step / mean_s if mean_s else None,
        "compute_to_comm": compute_s / comm_s if comm_s and compute_s is not None else None,
        "collectives": _collectives(case, slowest["rank"]),
    }


def _shares(case: Case, timing: dict[str, Any]) -> dict[str, float | None]:
    """What one rank's seconds in steps were: computing, collectives, and those of them that computing did not hide."""
    parts_s = sum(timing["parts_s"].values())
    comm = [e for e in case.of_kind("comm") if e["rank"] == timing["rank"] and e.get("phase") == "step"]
    known = bool(comm) and all(e["s"] is not None for e in comm)
    if not parts_s or (_num_ranks(case) > 1 and not known):
        return dict.fromkeys(_SHARES)
    if not comm:
        return {**dict.fromkeys(_SHARES), "compute_s": parts_s}
    exposed_s = sum(e["exposed_s"] for e in comm)
    return {
        "compute_s": parts_s - exposed_s,
        "comm_s": sum(e["s"] for e in comm),
        "exposed_comm_s": exposed_s,
    }


def _reasons(case: Case, values: dict[str, Any], slowest: dict[str, Any] | None) -> dict[str, str]:
    """Why a null is null, and what a number leaves out."""
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
            reasons[name] = _why_no_share(name, case, slowest)
        elif slowest and slowest["steps"] < case.last_step:
            reasons[name] = (
                f"of the {slowest['steps']} steps since the last resume, not of all {case.last_step}"
            )
    if values["peak_gpu_gib"] is None:
        cpu = all(e.get("device") == "cpu" for e in case.of_kind("start"))
        reasons["peak_gpu_gib"] = "trained on the CPU" if cpu else "the ranks did not report it"
    return reasons


def _why_no_share(name: str, case: Case, slowest: dict[str, Any] | None) -> str:
    """Why seconds in steps are not told apart into computing and collectives."""
    if name != "compute_s" and _num_ranks(case) == 1:
        return "one rank: nothing to communicate"
    if slowest is None:
        return "no totals were written"
    if not slowest["parts_s"]:
        return "no step was timed in parts: too few steps (on a GPU the 6th and every 50th are)"
    return "the evidence does not say in which phase a collective was"


def _num_ranks(case: Case) -> int:
    return len({e["rank"] for e in case.of_kind("start")})


def _collectives(case: Case, rank: int) -> list[Collective]:
    """One rank's totals, and beside its bytes those of all ranks."""
    events = case.of_kind("comm")
    sent: dict[tuple[str | None, str], int] = defaultdict(int)
    for e in events:
        sent[e.get("phase"), e["op"]] += e["bytes"]
    fields = ("op", "phase", "calls", "bytes", "s", "exposed_s")
    return [
        Collective(**{k: e.get(k) for k in fields}, bytes_all_ranks=sent[e.get("phase"), e["op"]])
        for e in events
        if e["rank"] == rank
    ]


def _ranks(case: Case, timing: dict[int, dict[str, Any]]) -> list[RankMetrics]:
    digests = [e["digests"] for e in case.of_kind("digest")]
    memory = {e["rank"]: e for e in case.of_kind("memory")}
    startup_s = _startup_s(case)
    ranks = []
    for e in sorted(case.of_kind("start"), key=lambda e: e["rank"]):
        r = e["rank"]
        mine = timing.get(r)
        ranks.append(
            RankMetrics(
                rank=r,
                host=e.get("host"),
                device=e.get("device"),
                phases_s=_with_startup(mine["phases_s"] if mine else {}, startup_s.get(r)),
                step_parts_s=mine["parts_s"] if mine else {},
                **(_shares(case, mine) if mine else {}),
                peak_rss_gib=memory.get(r, {}).get("peak_rss_gib"),
                peak_gpu_gib=memory.get(r, {}).get("peak_gpu_gib"),
                parameter_digest=digests[-1][r] if digests and r < len(digests[-1]) else None,
            )
        )
    return ranks


def _phases(case: Case, timing: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Slowest rank's seconds per phase; of a run that did not end, what rank 0 had booked by then."""
    if timing:
        names = {p for e in timing.values() for p in e["phases_s"]}
        phases = {p: max(e["phases_s"].get(p, 0.0) for e in timing.values()) for p in names}
    else:
        phases = {}
        for e in case.events:
            if e["event"] == "leave" and e["rank"] == 0:
                phases[e["phase"]] = phases.get(e["phase"], 0.0) + e["s"]
    return _with_startup(phases, max(_startup_s(case).values(), default=None))


def _startup_s(case: Case) -> dict[int, float]:
    """By rank, from the launcher's start to having joined; the ranks' own clocks begin when torch is loaded."""
    started = case.launch.get("started_at")
    joined = {e["rank"]: e["t"] for e in case.of_kind("leave") if e["phase"] == "startup"}
    return {rank: t - started for rank, t in joined.items()} if started else {}


def _with_startup(phases: dict[str, float], startup_s: float | None) -> dict[str, float]:
    rest = {k: v for k, v in phases.items() if k != "startup"}
    return rest if startup_s is None else {"startup": startup_s, **rest}


def _total_s(case: Case) -> float | None:
    """From first start to last end; waiting between attempts is not training and not counted."""
    total = 0.0
    for attempt in case.story:
        launch = case.launch if attempt == case.last else attempt.launch()
        ends = [launch.get("finished_at")] if launch.get("finished_at") else []
        ends = ends or [e["t"] for e in attempt.events()][-1:]
        if launch.get("started_at") and ends:
            total += ends[0] - launch["started_at"]
    return total or None


def _curve_point(e: dict[str, Any]) -> QualityPoint:
    names = ("step", "elapsed_s", "psnr", "ssim", "lpips", "num_gaussians")
    return QualityPoint(**{k: e.get(k) for k in names})


def _view(v: dict[str, Any]) -> ViewQuality:
    return ViewQuality(name=v["name"], psnr=v["psnr"], ssim=v.get("ssim"), lpips=v.get("lpips"))
