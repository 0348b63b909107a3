"""Synthetic run records for tests of the analysis side. Never committed as results."""

import math
from pathlib import Path
from typing import Any

from dist3dgs.config.naming import Layout
from dist3dgs.runs.record import (
    Collective,
    Environment,
    Evidence,
    Failure,
    Metrics,
    Provenance,
    QualityPoint,
    RankMetrics,
    Run,
    RunRecord,
    StepTime,
    ViewQuality,
    save_record,
)


def usl_rate(ranks: int, rate_one: float = 4.0, sigma: float = 0.05, kappa: float = 0.01) -> float:
    return rate_one * ranks / (1 + sigma * (ranks - 1) + kappa * ranks * (ranks - 1))


def make_workload(
    workload: str,
    variant: str,
    layout: str = "n1g1",
    *,
    images_per_s: float,
    accuracy: float | None = None,
    unit: str = "sample",
    total_s: float = 20.0,
) -> RunRecord:
    """A record of a program of others with a batch per rank, 4 epochs, and a validation accuracy."""
    ranks = Layout.parse(layout).world_size
    train_s = 1024 / images_per_s
    settings = {
        "train": {"application": [workload], "variables": {"size": variant}, "batch_per_rank": 32},
        "criteria": {"unit_of_work": unit, "figures_of_merit": {}},
    }
    record = make_record(
        workload, variant, layout, images_per_s=images_per_s, settings=settings, images=1024, steps=None, step_s=None,
        steps_per_s=None, curve=[], views=[], ssim=None, num_gaussians=None, accuracy=accuracy, epochs=4,
        epoch_s=train_s / 4, train_s=train_s, total_s=total_s, phases_s={"startup": 3.0, "step": train_s},
        compute_s=0.9 * train_s, comm_s=None if ranks == 1 else 0.2 * train_s, collectives=[],
    )  # fmt: skip
    return record.model_copy(update={"metrics": record.metrics.model_copy(update={"psnr": None})})


def make_record(
    scene: str = "builtin",
    strategy: str = "replicated",
    layout: str = "n1g1",
    repeat: int = 0,
    *,
    status: str = "ok",
    cause: str = "killed",
    images_per_s: float | None = None,
    batch_per_rank: int | None = 1,
    global_batch: int | None = None,
    images: int | None = 2000,
    psnr: float = 27.4,
    gpu: bool = False,
    evidence: str = "torch.distributed.elastic: Signal 9 (SIGKILL) received by PID 4242",
    remedy: str | None = "look for the sender of SIGKILL: dmesg | grep -i oom",
    settings: dict[str, Any] | None = None,
    started_at: float = 1_760_000_000.0,
    **metrics: Any,
) -> RunRecord:
    """A record whose numbers hang together: throughput follows a USL curve, quality a saturating one."""
    ranks = Layout.parse(layout).world_size
    batch = global_batch or (batch_per_rank or 1) * ranks
    rate = images_per_s if images_per_s is not None else usl_rate(ranks) * (1 + 0.01 * math.sin(7.0 * repeat))
    steps = (images or 2000) // batch
    step_s = batch / rate
    stepping = steps * step_s
    comm = 0.0 if ranks == 1 else 0.08 * stepping * math.log2(ranks)
    phases = {
        "startup": 2.5 + 0.3 * ranks,
        "load": 0.4,
        "init": 0.8,
        "step": stepping,
        "densify": 0.02 * stepping,
    }
    phases |= {"evaluate": 6.0, "checkpoint": 0.5, "export": 0.3}
    share = 1.0 if status in ("ok", "degraded") else 0.35
    curve = []
    for i in range(1, 6):
        part = i / 5
        if part > share:
            break
        q = psnr - 9.0 * math.exp(-5 * part)
        curve.append(
            QualityPoint(
                step=int(steps * part), elapsed_s=1.02 * stepping * part, psnr=q, ssim=0.9, num_gaussians=9000
            )
        )
    final = curve[-1].psnr if curve else None
    measured: dict[str, Any] = {
        "total_s": sum(phases.values()) * share + 1.2,
        "train_s": 1.02 * stepping * share,
        "phases_s": {k: v * (share if k == "step" else 1) for k, v in phases.items()}
        if share == 1
        else {k: phases[k] * (share if k == "step" else 1) for k in ("startup", "load", "init", "step")},
        "steps": int(steps * share),
        "images": None if images is None else int(steps * share) * batch,
        "step_s": StepTime(median=step_s, mean=1.03 * step_s, p5=0.8 * step_s, p95=1.4 * step_s),
        "steps_per_s": rate / batch,
        "images_per_s": rate,
        "comm_s": comm * share,
        "exposed_comm_s": 0.7 * comm * share,
        "compute_to_comm": None if ranks == 1 else (stepping - 0.7 * comm) / comm,
        "collectives": [] if ranks == 1 else [Collective(op="all_reduce", calls=steps, bytes=10**9, s=comm)],
        "peak_rss_gib": 1.1 + 0.02 * repeat,
        "peak_host_gib": 1.0 * ranks + 0.2,
        "peak_gpu_gib": 5.2 if gpu else None,
        "num_gaussians": 9400,
        "psnr": final if share == 1 else None,
        "ssim": 0.91 if share == 1 else None,
        "lpips": None,
        "curve": curve,
        "views": [
            ViewQuality(name=f"view_{i:03d}.jpg", psnr=psnr + 0.3 * (i - 1), ssim=0.9) for i in range(3)
        ],
        "ranks": [
            RankMetrics(rank=r, host="node01", device="cpu", parameter_digest="ab12") for r in range(ranks)
        ],
    }
    measured |= metrics
    failure = None
    if status in ("failed", "degraded", "unknown"):
        failure = Failure(
            cause=cause,  # type: ignore[arg-type]
            phase="step",
            step=measured["steps"],
            rank=min(1, ranks - 1),
            node="node01",
            evidence=[Evidence(file="train.log", line=42, text=evidence)] if evidence else [],
            remedy=remedy,
        )
    return RunRecord(
        run=Run(
            scene=scene,
            strategy=strategy,
            layout=layout,
            repeat=repeat,
            seed=42 + repeat,
            settings=settings
            if settings is not None
            else {
                "train": {
                    "steps": images,
                    "batch_per_rank": batch_per_rank or 1,
                    "global_batch": global_batch,
                }
            },
        ),
        status=status,  # type: ignore[arg-type]
        failure=failure,
        metrics=Metrics(**measured),
        reasons={"lpips": "weights not on disk"},
        environment=Environment(
            hosts=["node01"],
            devices=["NVIDIA H200" if gpu else "cpu"] * ranks,
            cpu="Intel Xeon (Cascade Lake)",
            cores=2,
            python="3.11.9",
            versions={"torch": "2.13.0", "numpy": "2.4.0"},
        ),
        provenance=Provenance(
            git_sha="0123456789abcdef0123456789abcdef01234567",
            git_dirty=False,
            code_digest="c0de" * 16,
            scene_digest="5ce0" * 16,
            argv=["dist3dgs", "launch"],
            started_at=started_at,
            finished_at=started_at + 100,
        ),
    )


def write_records(folder: Path, records: list[RunRecord]) -> list[Path]:
    """Save under `folder/{scene}/{strategy}/{layout}/r{repeat}/record.json`."""
    paths = []
    for r in records:
        path = folder / r.run.scene / r.run.strategy / r.run.layout / f"r{r.run.repeat}" / "record.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_record(r, path)
        paths.append(path)
    return paths
