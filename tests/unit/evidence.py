"""Makes the evidence of a run by hand: what the launcher and the ranks would have written."""

import json
from pathlib import Path
from typing import Any

from dist3dgs.evidence import new_attempt
from dist3dgs.spec import Hardware, RunSpec, Strategy, TrainSettings

Event = dict[str, Any]


def spec(layout: str = "n1g2", steps: int = 100, **changes: Any) -> RunSpec:
    return RunSpec(
        scene="tiny",
        strategy="replicated",
        layout=layout,
        repeat=0,
        seed=1,
        parallel=Strategy(),
        train=TrainSettings(steps=steps, **changes),
        hardware=Hardware(),
    )


def write_attempt(
    point: Path, run: RunSpec, events: list[Event], *, digest: str = "d", log: str = "", **launch: Any
) -> Path:
    """One attempt's folder, and the point's launch.json if the attempt finished; its path."""
    attempt = new_attempt(point)
    summary = {
        "spec_digest": digest,
        "spec": run.model_dump(mode="json"),
        "status": "ok",
        "started_at": 1000.0,
        "finished_at": 1100.0,
        "host": "node1",
        "returncode": 0,
        "argv": ["torchrun"],
        **launch,
    }
    attempt.launch_path.write_text(json.dumps(summary))
    (attempt.folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    attempt.log_path.write_text(log)
    (point / "launch.json").write_text(json.dumps(summary))
    return point / "launch.json"


def start(rank: int, t: float = 1003.0, **changes: Any) -> Event:
    return {
        "t": t,
        "rank": rank,
        "event": "start",
        "host": "node1",
        "device": "cpu",
        "device_name": "cpu",
    } | changes


def phase(kind: str, name: str, t: float, rank: int = 0, s: float = 1.0) -> Event:
    return {"t": t, "rank": rank, "event": kind, "phase": name} | ({"s": s} if kind == "leave" else {})


def step(number: int, t: float) -> Event:
    return {
        "t": t,
        "rank": 0,
        "event": "step",
        "step": number,
        "loss": 0.1,
        "num_gaussians": 10,
        "step_s": 0.1,
    }


def evaluation(number: int, psnr: float, t: float = 1090.0) -> Event:
    views = [{"name": "000.jpg", "psnr": psnr, "ssim": 0.9, "lpips": None}]
    return {
        "t": t, "rank": 0, "event": "eval", "step": number, "elapsed_s": number / 10, "num_gaussians": 12,
        "psnr": psnr, "ssim": 0.9, "lpips": None, "views": views,
    }  # fmt: skip


def timing(rank: int, train_s: float, steps: int = 50, images: int = 100) -> Event:
    mean = train_s / steps
    return {
        "t": 1095.0, "rank": rank, "event": "timing", "phases_s": {"step": train_s, "load": 0.1},
        "parts_s": {"render": 0.6 * train_s, "communicate": 0.2 * train_s, "backward": 0.2 * train_s},
        "step_s": {"median": mean, "mean": mean, "p5": mean, "p95": mean},
        "steps": steps, "images": images, "train_s": train_s,
    }  # fmt: skip


def comm(
    rank: int,
    op: str,
    s: float | None,
    exposed_s: float | None,
    phase: str | None = "step",
    num_bytes: int = 1000,
) -> Event:
    return {
        "t": 1096.0,
        "rank": rank,
        "event": "comm",
        **({"phase": phase} if phase else {}),
        "op": op,
        "calls": 50,
        "bytes": num_bytes,
        "s": s,
        "exposed_s": exposed_s,
    }


def healthy(last_step: int = 50) -> list[Event]:
    return [
        start(0), start(1), phase("leave", "startup", 1005.0), phase("leave", "startup", 1006.0, rank=1),
        phase("enter", "step", 1007.0), step(25, 1040.0), step(last_step, 1080.0), evaluation(last_step, 25.0),
        {"t": 1091.0, "rank": 0, "event": "digest", "step": last_step, "digests": ["aa", "aa"]},
        timing(0, 70.0), timing(1, 72.0), comm(0, "all_reduce", 5.0, 4.0), comm(1, "all_reduce", 7.0, 6.0),
        comm(0, "broadcast", 100.0, 100.0, "init"), comm(1, "broadcast", 99.0, 99.0, "init", 0),
        {"t": 1097.0, "rank": 0, "event": "memory", "peak_rss_gib": 1.5, "peak_gpu_gib": None},
        {"t": 1097.0, "rank": 1, "event": "memory", "peak_rss_gib": 1.7, "peak_gpu_gib": None},
        {"t": 1098.0, "rank": 0, "event": "end", "status": "ok", "step": last_step},
    ]  # fmt: skip
