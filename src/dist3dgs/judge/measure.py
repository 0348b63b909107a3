"""What was measured, from the ranks' own totals."""

from typing import Any

from ..events import read_events
from ..record import Collective, Metrics, QualityPoint, RankMetrics, StepTime, ViewQuality
from .case import Case

#: Collectives that are no part of a training step.
_OUTSIDE_STEPS = (
    "broadcast",
    "all_gather",
    "barrier",
    "all_reduce(stop)",
    "all_reduce(loss)",
    "all_reduce(statistics)",
    "all_to_all(distribute)",
    "all_to_all(gather)",
    "all_to_all(rebalance)",
    "all_gather(shards)",
)


def measure(case: Case) -> tuple[Metrics, dict[str, str]]:
    """The run's metrics, and for each null its reason."""
    timing = {e["rank"]: e for e in case.of_kind("timing")}
    slowest = max(timing.values(), key=lambda e: e["train_s"], default=None)
    evals = [e for e in case.diary if e["event"] == "eval"]
    final = evals[-1] if evals else {}
    comm = _collectives(case)
    values: dict[str, Any] = {
        "total_s": _total_s(case),
        "phases_s": _phases(case, timing),
        "collectives": comm,
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
        values |= _speed(case, slowest, comm)
    memory = case.of_kind("memory")
    values["peak_rss_gib"] = max((e["peak_rss_gib"] for e in memory if e.get("peak_rss_gib")), default=None)
    values["peak_gpu_gib"] = max((e["peak_gpu_gib"] for e in memory if e.get("peak_gpu_gib")), default=None)
    return Metrics(**values), _reasons(case, values, slowest is not None)


def _speed(case: Case, slowest: dict[str, Any], comm: list[Collective]) -> dict[str, Any]:
    steps, train_s = slowest["steps"], slowest["train_s"]
    step_comm = [c for c in comm if c.op not in _OUTSIDE_STEPS]
    comm_s = sum(c.s for c in step_comm)
    exposed_s = sum(c.exposed_s or 0.0 for c in step_comm)
    measured_s = sum(slowest["parts_s"].values())
    images_per_step = slowest["images"] / max(1, case.last_step)
    mean_s = slowest["step_s"]["mean"] if slowest["step_s"] else None
    return {
        "train_s": train_s,
        "step_parts_s": slowest["parts_s"],
        "steps": case.last_step,
        "images": slowest["images"],
        "step_s": StepTime(**slowest["step_s"]) if slowest["step_s"] else None,
        "steps_per_s": 1 / mean_s if mean_s else None,
        "images_per_s": images_per_step / mean_s if mean_s else None,
        "compute_s": measured_s - exposed_s,
        "comm_s": comm_s if step_comm and steps else None,
        "exposed_comm_s": exposed_s if step_comm and steps else None,
        "compute_to_comm": (measured_s - exposed_s) / comm_s if comm_s > 0 else None,
    }


def _reasons(case: Case, values: dict[str, Any], timed: bool) -> dict[str, str]:
    """Why a null is null."""
    reasons: dict[str, str] = {}
    if not timed:
        for name in ("train_s", "steps", "step_s", "images_per_s", "peak_rss_gib"):
            reasons[name] = "the run did not reach its end, where ranks write their totals"
    if values["lpips"] is None:
        reasons["lpips"] = "its weights are not on disk (dist3dgs fetch-weights) or `train.lpips` is false"
    if values["psnr"] is None:
        reasons["psnr"] = "no evaluation was reached"
    if values.get("comm_s") is None:
        one = case.world_size == 1
        reasons["comm_s"] = "one rank: nothing to communicate" if one else "no totals were written"
    if values["peak_gpu_gib"] is None:
        cpu = all(e.get("device") == "cpu" for e in case.of_kind("start"))
        reasons["peak_gpu_gib"] = "trained on the CPU" if cpu else "the ranks did not report it"
    return reasons


def _collectives(case: Case) -> list[Collective]:
    by_op: dict[str, dict[str, Any]] = {}
    for e in case.of_kind("comm"):
        if e["op"] not in by_op or e["s"] > by_op[e["op"]]["s"]:
            by_op[e["op"]] = e
    return [
        Collective(op=op, calls=e["calls"], bytes=e["bytes"], s=e["s"], exposed_s=e["exposed_s"])
        for op, e in sorted(by_op.items())
    ]


def _ranks(case: Case, timing: dict[int, dict[str, Any]]) -> list[RankMetrics]:
    digests = [e["digests"] for e in case.of_kind("digest")]
    memory = {e["rank"]: e for e in case.of_kind("memory")}
    ranks = []
    for e in sorted(case.of_kind("start"), key=lambda e: e["rank"]):
        r = e["rank"]
        mine = [c for c in case.of_kind("comm") if c["rank"] == r and c["op"] not in _OUTSIDE_STEPS]
        parts = timing.get(r, {}).get("parts_s", {})
        exposed_s = sum(c["exposed_s"] for c in mine)
        ranks.append(
            RankMetrics(
                rank=r,
                host=e.get("host"),
                device=e.get("device"),
                phases_s=timing.get(r, {}).get("phases_s", {}),
                step_parts_s=parts,
                compute_s=sum(parts.values()) - exposed_s if parts else None,
                comm_s=sum(c["s"] for c in mine) if mine else None,
                exposed_comm_s=exposed_s if mine else None,
                peak_rss_gib=memory.get(r, {}).get("peak_rss_gib"),
                peak_gpu_gib=memory.get(r, {}).get("peak_gpu_gib"),
                parameter_digest=digests[-1][r] if digests and r < len(digests[-1]) else None,
            )
        )
    return ranks


def _phases(case: Case, timing: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Slowest rank's seconds per phase; of a run that did not end, what rank 0 had booked by then.

    `startup` is from the launcher's start to the ranks having joined.
    """
    if timing:
        names = {p for e in timing.values() for p in e["phases_s"]}
        phases = {p: max(e["phases_s"].get(p, 0.0) for e in timing.values()) for p in names}
    else:
        phases = {}
        for e in case.events:
            if e["event"] == "leave" and e["rank"] == 0:
                phases[e["phase"]] = phases.get(e["phase"], 0.0) + e["s"]
    started = case.launch.get("started_at")
    joined = [e["t"] for e in case.of_kind("leave") if e["phase"] == "startup"]
    if started and joined:
        phases["startup"] = max(joined) - started
    return phases


def _total_s(case: Case) -> float | None:
    """From first start to last end; waiting between attempts is not training and not counted."""
    total = 0.0
    for attempt in case.story:
        launch = case.launch if attempt == case.last else attempt.launch()
        ends = [launch.get("finished_at")] if launch.get("finished_at") else []
        ends = ends or [e["t"] for e in read_events(attempt.events_path)][-1:]
        if launch.get("started_at") and ends:
            total += ends[0] - launch["started_at"]
    return total or None


def _last_step(case: Case) -> int:
    return max((e["step"] for e in case.events if isinstance(e.get("step"), int)), default=0)


def _curve_point(e: dict[str, Any]) -> QualityPoint:
    names = ("step", "elapsed_s", "psnr", "ssim", "lpips", "num_gaussians")
    return QualityPoint(**{k: e.get(k) for k in names})


def _view(v: dict[str, Any]) -> ViewQuality:
    return ViewQuality(name=v["name"], psnr=v["psnr"], ssim=v.get("ssim"), lpips=v.get("lpips"))
