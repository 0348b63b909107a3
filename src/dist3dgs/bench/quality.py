"""Measure held-out quality of whole trainings by strategy, ranks and densification, at equal images seen.

    python -m dist3dgs.bench.quality --scene data/builtin/scene.safetensors --images 1500 --out quality.json
    python -m dist3dgs.bench.quality --layouts n1g2 --strategies replicated,bf16,powersgd
    python -m dist3dgs.bench.quality --layouts n1g1 --densify default,budget --max-gaussians 10000,20000

Each run goes through the launcher and leaves a record; PSNR, times and bytes are read from it. `train_s` is the time in
steps and densification, `densify_s` that in the latter alone, `step_s` the mean of all steps, `last_step_s` that since
the last but one log, when the model is as large as it gets. `cpu_s` is the processor time of the whole run, start and
evaluation included; other work on the machine changes it least. `--scene` defaults to a small cloud. The global batch
is the same for all (default 4), so what differs between numbers of ranks is rounding and, with densification, what
rounding decides.
"""

import argparse
import itertools
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config.matrix import spec_json
from ..config.models import Hardware, RunSpec, Strategy, TrainSettings, validate
from ..errors import UserError
from ..files import write_json
from ..launch.launcher import launch
from ..records.build import judge
from ..runs.attempts import attempts
from ..train.evaluate_checkpoint import evaluate_checkpoint
from .cloud import write_cloud
from .machine import describe_machine

STRATEGIES = {
    "replicated": Strategy(),
    "sharded": Strategy(kind="sharded"),
    "bf16": Strategy(compression="bf16"),
    "powersgd": Strategy(compression="powersgd"),
    "touched": Strategy(gradient_rows="touched"),
    "hybrid": Strategy(kind="hybrid"),
    "hybrid-2": Strategy(kind="hybrid", shard=2),
    "sharded-space": Strategy(kind="sharded", placement="space"),
    "local-plain": Strategy(kind="local", average="plain"),
    "blocks": Strategy(kind="blocks"),
    "blocks-finish": Strategy(kind="blocks", finish_share=0.1),
    **{f"local-{k}": Strategy(kind="local", sync_every=k) for k in (1, 4, 16, 64)},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dist3dgs.bench.quality", description=__doc__)
    parser.add_argument("--scene", type=Path, help="packed scene (default: a cloud of 2,000 Gaussians)")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--global-batch", type=int, default=4)
    parser.add_argument("--layouts", default="n1g1,n1g2,n1g4")
    parser.add_argument("--strategies", default="replicated,sharded")
    parser.add_argument("--densify", default="default", help="kinds: default,mcmc,budget,none")
    parser.add_argument("--max-gaussians", default="100000", help="numbers, each with each kind")
    parser.add_argument("--optimizer", default="adam", help="adam,selective")
    parser.add_argument("--seeds", default="42", help="of the runs")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON file (default: print)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scene = args.scene or write_cloud(
            Path(folder, "cloud.safetensors"), num_points=2000, num_views=40, width=192, height=128, every=4
        )
        lists = (args.densify, args.max_gaussians, args.optimizer, args.seeds, args.strategies, args.layouts)
        for case in itertools.product(*(text.split(",") for text in lists)):
            rows.append(one_run(args, scene, case, Path(folder, "-".join(case))))
            print(json.dumps(rows[-1]), flush=True)
    command = "python -m dist3dgs.bench.quality " + " ".join(
        f"--{k.replace('_', '-')} {v}" for k, v in vars(args).items() if v is not None and k != "out"
    )
    if args.out:
        write_json(args.out, {"command": command, "machine": describe_machine(), "runs": rows})


def one_run(
    args: argparse.Namespace, scene: Path, case: tuple[str, str, str, str, str, str], out: Path
) -> dict[str, Any]:
    kind, most, optimizer, seed, strategy, layout = case
    if strategy not in STRATEGIES:
        raise UserError(f"--strategies: {strategy!r}; known: {', '.join(STRATEGIES)}")
    n = args.images
    densify = {
        "kind": kind, "start_step": n // 5, "stop_step": n * 4 // 5, "every": max(1, n // 15), "max_gaussians": most
    }  # fmt: skip
    train = {
        "steps": n, "global_batch": args.global_batch, "eval_every": n, "checkpoint_every": n,
        "sh_every": max(1, n // 6), "lpips": False, "tensorboard": False, "optimizer": optimizer, "densify": densify,
    }  # fmt: skip
    spec = RunSpec(
        scene="quality", strategy=strategy, layout=layout, repeat=0, seed=int(seed), parallel=STRATEGIES[strategy],
        train=validate(TrainSettings, train, "the command line"), hardware=Hardware(device=args.device),
    )  # fmt: skip
    before_s = _children_cpu_s()
    launch(spec_json(spec), scene, out)
    cpu_s = _children_cpu_s() - before_s
    newest = max((out / "checkpoints").glob("*.safetensors"), default=None)
    unparted_run = out.with_name("-".join((*case[:-2], "replicated", layout)))
    unparted = max(unparted_run.glob("checkpoints/*.safetensors"), default=None)
    seams = {}
    if strategy.startswith("blocks") and newest and unparted:
        along = evaluate_checkpoint(unparted, scene, seams_of=newest)
        seams = {"seam_psnr_replicated": along.get("seam_psnr"), "seam_share": along.get("seam_share")}
    record = judge(out / "launch.json")
    if record.status != "ok":
        raise UserError(f"{strategy} {layout}: {record.failure}; see {out}")
    m, events = record.metrics, list(attempts(out)[-1].events())
    sent = sum(c.bytes for c in m.collectives if c.phase in ("step", "densify"))
    return {
        "densify": kind,
        "max_gaussians": int(most),
        "optimizer": optimizer,
        "seed": int(seed),
        "strategy": strategy,
        "layout": layout,
        "psnr": m.psnr,
        "ssim": m.ssim,
        "gaussians": m.num_gaussians,
        "steps": m.steps,
        "train_s": m.train_s,
        "densify_s": m.phases_s.get("densify"),
        "step_s": m.step_s and m.step_s.mean,
        "last_step_s": [e["step_s"] for e in events if e["event"] == "step"][-1],
        "cpu_s": cpu_s,
        "peak_rss_gib": m.peak_rss_gib,
        "seam_psnr": m.seam_psnr,
        **seams,
        "blocks": [(r.block_gaussians, r.block_views) for r in m.ranks if r.block_views is not None],
        "bytes_per_step": sent / m.timed_steps if m.timed_steps else None,
        **guards(events),
    }


def _children_cpu_s() -> float:
    """Return the processor time, s, of the processes that this one started and that have ended, and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


def guards(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Measure the cost of the safety checks.

    `start_s`: joining, comparing and broadcasting on the slowest rank until the first digest, which includes reading
    the scene's points. `digest_share`: later digests as a share of the time spent in steps.
    """
    start: dict[int, float] = defaultdict(float)
    digests_s = train_s = 0.0
    for e in events:
        if e["event"] == "leave" and e["phase"] in ("startup", "init"):
            start[e["rank"]] += e["s"]
        elif e["event"] == "digest" and e["step"]:
            digests_s += e["s"]
        elif e["event"] == "timing":
            train_s = max(train_s, e["train_s"])
    return {"start_s": max(start.values()), "digest_share": digests_s / train_s}


if __name__ == "__main__":
    main()
