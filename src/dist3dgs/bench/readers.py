"""Measure the speed of reading logs against `grep -c` on the same file: python -m dist3dgs.bench.readers

Writes logs of the given size to a temporary folder, reads each in turn with `grep -c` and with the scan that both
`dist3dgs read` and `dist3dgs diagnose` use, and takes medians of wall time and CPU time. On a busy machine only CPU
time is meaningful.
"""

# ruff: noqa: E501 (lines of logs are as long as they are)

import argparse
import itertools
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..files import write_text

MB = 1_000_000
#: A file of many jobs has no single verdict.
FAILED = "failed-jobs.log"
TABLE = "table.log"


def nerfstudio_console() -> Iterator[bytes]:
    """A nerfstudio job: start, caching, and a table of ten rows redrawn with every row, over and over."""
    yield b"Start: Thu Dec 11 05:13:21 AM CST 2025\n    machine=MachineConfig(seed=42, num_devices=1, num_machines=1)\n"
    yield b"    max_num_iterations=30000,\n[05:14:06] Caching / undistorting train images   x.py:230\n"
    rows: list[bytes] = []
    step = 0
    while True:
        step += 10
        row = b"%d (%.2f%%)        %.3f ms            4 s, 64.870 ms       %.2f M" % (
            step, step / 1e5, 7 + step % 977 / 13, 12 + step % 89 / 7,
        )  # fmt: skip
        rows = [*rows[-9:], row.ljust(101) + b"\x1b[0m"]
        yield b"\r\x1b[14A\x1b[1K\rStep (%% Done)       Train Iter (time)    ETA (time)\x1b[0m\n%s\n%s\x1b[0m\n" % (
            b"\n".join(rows), b"-" * 100,
        )  # fmt: skip


def iterations_of_many_ranks() -> Iterator[bytes]:
    """Iteration lines of a language model with timers below, another rank's chatter in between."""
    step = 0
    while True:
        step += 1
        yield (
            b" iteration %8d/ 5000000 | consumed samples: %12d | elapsed time per iteration (ms): %.1f | "
            b"learning rate: %.3E | global batch size:  1024 | lm loss: %.6E | loss scale: 1024.0 | number of nan iterations:   0 |\n"
            b"time (ms) | forward: %.2f | backward: %.2f | optimizer: %.2f\n[rank%d]: step done in %.3f s, queue %d\n"
            % (step, step * 1024, 25000 + step % 977, 1e-5 * (step % 13), 2 + step % 7 / 7, step % 1000 + 0.5,
               step % 2000 + 0.2, step % 100, step % 64, step % 3 + 0.1, step % 11)
        )  # fmt: skip


def progress_bar() -> Iterator[bytes]:
    """One endless line of a progress bar with carriage returns only."""
    step = 0
    while True:
        step += 1
        yield b"\rloss=%.3f| sh degree=3| :  12%%|%s%s| %d/9000000 [%02d:%02d:%02d<10:00:00, %.2fit/s]" % (
            step % 97 / 1000, b"\xe2\x96\x88" * (step % 10), b" " * (10 - step % 10), step,
            step // 3600 % 24, step // 60 % 60, step % 60, 20 + step % 30 / 7,
        )  # fmt: skip


def failed_jobs(folder: Path) -> Iterator[bytes]:
    """All logs of a folder, one after the other, over and over: hardly a line that is like the one before."""
    logs = [path.read_bytes() for path in sorted(folder.rglob("*.log"))]
    while True:
        yield from logs


def nvidia_smi() -> Iterator[bytes]:
    """Eight GPUs, sampled every second, with header and units."""
    yield b"timestamp, index, utilization.gpu [%], memory.used [MiB], power.draw [W]\n"
    for t in itertools.count():
        at = b"2025/12/%02d %02d:%02d:%02d" % (t // 86400 % 28 + 1, t // 3600 % 24, t // 60 % 60, t % 60)
        for gpu in range(8):
            yield b"%s.%03d, %d, %d %%, %d MiB, %.2f W\n" % (
                at, t * 7 % 900 + gpu, gpu, (t * 13 + gpu) % 101, 4 + (t * 977 + gpu * 131) % 80_000, 60 + t * 31 % 34_000 / 100,
            )  # fmt: skip


def own_events() -> Iterator[bytes]:
    """Steps of two ranks, as `dist3dgs.runs.events` writes them."""
    yield b'{"t": 0.0, "rank": 0, "event": "start", "world_size": 2, "host": "n1", "device": "cuda"}\n'
    for i in itertools.count(1):
        yield b'{"t": %d.0, "rank": %d, "event": "step", "step": %d, "loss": 0.%04d, "num_gaussians": %d, "step_s": 0.1}\n' % (
            i, i % 2, i // 2, i % 9999, 100_000 + i,
        )  # fmt: skip


def metrics() -> Iterator[bytes]:
    yield b"step,time,train_loss,psnr\n"
    for i in itertools.count():
        yield b"%d,%.4f,%.6f,%.3f\n" % (i, 0.02 + i % 7 / 1000, 1 / (1 + i % 1000), 20 + i % 900 / 100)


KINDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "nerfstudio console": nerfstudio_console,
    "iterations of many ranks": iterations_of_many_ranks,
    "progress bar, one line": progress_bar,
    "nvidia-smi": nvidia_smi,
    "our own events": own_events,
    "metrics.csv": metrics,
}
#: Tables and events have no place for an error.
WITHOUT_ERROR = {"nvidia-smi", "our own events", "metrics.csv"}


def write_log(path: Path, pieces: Iterator[bytes], num_bytes: int) -> None:
    """Fill `path` with pieces up to `num_bytes`, then a failure that has to be found."""
    written = 0
    with path.open("wb") as f:
        while written < num_bytes:
            part = b"".join(itertools.islice(pieces, 10_000))
            written += f.write(part)
        f.write(
            b"\nRuntimeError: CUDA out of memory. Tried to allocate 1.86 GiB. GPU 0 has a total capacity of 23.65 GiB\n"
        )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds (own and children's)."""

    def cpu() -> float:
        use = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(u.ru_utime + u.ru_stime for u in use)

    wall, before = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - wall, cpu() - before


def measure(path: Path, repeats: int) -> dict[str, float]:
    """Return median MB/s of `grep -c` and of the scan, side by side."""
    from ..diagnosis.scan import scan
    from ..diagnosis.summary import summarise
    from ..diagnosis.verdict import judge

    size = path.stat().st_size / MB
    grep, ours = [], []
    for _ in range(repeats):
        grep.append(
            timed(lambda: subprocess.run(["grep", "-c", "Traceback", str(path)], stdout=subprocess.PIPE))
        )
        ours.append(timed(lambda: scan([path])))
    found = scan([path])
    cause = judge(found, summarise(found), {}).cause
    assert cause == "gpu_oom" or path.name in (FAILED, TABLE), cause
    medians = {
        "grep_wall": statistics.median(w for w, _ in grep),
        "grep_cpu": statistics.median(c for _, c in grep),
        "wall": statistics.median(w for w, _ in ours),
        "cpu": statistics.median(c for _, c in ours),
    }
    return {"mb": size, **{name: size / seconds for name, seconds in medians.items()}}


def report(rows: dict[str, dict[str, float]], arguments: str, repeats: int, peak_mib: float) -> str:
    lines = [
        "# Reading logs",
        "",
        f"`python -m dist3dgs.bench.readers {arguments}` on a {processor()}; Python "
        f"{platform.python_version()}. Median of {repeats}, `grep -c Traceback` and the scan of `dist3dgs diagnose` "
        f"on the same file in turn; load of the machine at the end: {os.getloadavg()[0]:.1f}. Each log of one job ends with an error that the verdict must find.",
        "",
        "| log | MB | grep -c, MB/s (CPU) | scan, MB/s (CPU) | grep -c, MB/s (wall) | scan, MB/s (wall) |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        numbers = (r["mb"], r["grep_cpu"], r["cpu"], r["grep_wall"], r["wall"])
        lines.append(f"| {name} | " + " | ".join(f"{x:,.0f}" for x in numbers) + " |")
    lines += ["", f"Peak memory of the whole benchmark: {peak_mib:.0f} MiB.", ""]
    return "\n".join(lines)


def processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{len(names)}-core {names[0]}" if names else platform.machine()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the logs are written; default: a temporary folder")
    parser.add_argument("--logs", type=Path, help="folder of *.log, read as one file of the given size too")
    parser.add_argument("--out", type=Path, help="e.g. docs/benchmarks/readers.md")
    args = parser.parse_args(argv)
    if args.mb < 1 or args.repeats < 1:
        parser.error("--mb and --repeats: at least 1")
    rows = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        kinds = dict(KINDS)
        if args.logs:
            kinds[f"the {len(list(args.logs.rglob('*.log')))} logs of {args.logs}"] = lambda: failed_jobs(
                args.logs
            )
        for name, make in kinds.items():
            path = Path(folder) / (TABLE if name in WITHOUT_ERROR else "job.log" if name in KINDS else FAILED)
            write_log(path, make(), args.mb * MB)
            rows[name] = measure(path, args.repeats)
            print(name, {k: round(v) for k, v in rows[name].items()}, flush=True)
            path.unlink()
    command = f"--mb {args.mb} --repeats {args.repeats}" + (f" --logs {args.logs}" if args.logs else "")
    text = report(rows, command, args.repeats, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(text)
    if args.out:
        write_text(args.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
