"""The training run's diary: one JSON object per line in `events.jsonl`.

Every rank appends to the same file; a line is written with one `write` call to a descriptor opened with
O_APPEND and so never interleaves with another rank's on a local or POSIX file system. A torn last line (the
process was killed while writing) is skipped by the reader.

Every event has `t` (Unix seconds), `rank` and `event`. The vocabulary:

==============  =====================================================================================
event           further fields
==============  =====================================================================================
start           world_size, host, pid, device, device_name, threads, versions {torch, gsplat, ...}, renderer
enter           phase: the rank goes into a phase (see `PHASES`)
leave           phase, s: it leaves it, after s seconds
resume          step, path: training goes on from a checkpoint
step            step, loss, num_gaussians, step_s (mean per step since the last such event), images, sh_degree
progress        phase, step, views: every few seconds, whatever the phase; views: of an evaluation, so far
densify         step, cloned, split, pruned, relocated, num_gaussians, shards, s
eval            step, elapsed_s (training seconds so far, evaluation not counted), psnr, ssim, lpips, views
digest          step, digests: one parameter digest per rank
comm            phase, op, bytes, s, exposed_s, calls: totals of one collective in one phase over the attempt, per rank
scene           digest, num_views: the packed scene in use
timing          phases_s, parts_s, step_s {median, mean, p5, p95}, steps, images, train_s: per rank, at the end
memory          peak_rss_gib, peak_gpu_gib (null on CPU): per rank, at the end
checkpoint      step, path, s
export          path, num_gaussians
warning         message
error           type, message, traceback, phase, step
signal          signal
end             status ("ok" or "stopped"), step
==============  =====================================================================================
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: In the order in which a run passes through them; `step` and those after it alternate.
PHASES = ("startup", "load", "init", "step", "densify", "evaluate", "checkpoint", "export")


class EventWriter:
    """Appends events of one rank; every line reaches the operating system at once."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.rank = Path(path), rank
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, event: str, **fields: Any) -> None:
        line = json.dumps({"t": round(time.time(), 4), "rank": self.rank, "event": event, **fields})
        os.write(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a file in order; torn or foreign lines are skipped, a missing file is an empty one."""
    if not Path(path).exists():
        return
    with Path(path).open("rb") as f:
        for line in f:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event
