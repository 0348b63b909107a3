"""A big study on the test cluster with a trainer that does nothing: what does orchestration cost per point?

    python scripts/slurm/scale.py --points 200 --jobs 40 --out docs/benchmarks/slurm-scale.md

The graph, the profile, Snakemake, its plugin, sbatch and the two Snakemakes inside each job are the real ones; only
`dist3dgs launch` is replaced by a program that leaves the evidence of a finished run without training.
"""

import argparse
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/slurm"))

from cluster import Cluster
from study import Study, plain_bin

from dist3dgs.units import parse_duration_s

NO_OP = """#!{python}
import json, os, sys, time
args = sys.argv[1:]
if "launch" not in args:
    os.execv({dist3dgs!r}, [{dist3dgs!r}, *args])
from pathlib import Path
from dist3dgs.runs.attempts import new_attempt
from dist3dgs.runs.events import EventWriter, events_path
from dist3dgs.config.matrix import load_spec, run_digest, spec_json
value = dict(zip(args, args[1:]))
spec, out = load_spec(value["--spec"]), Path(value["--out"])
attempt, now = new_attempt(out), time.time()
write = EventWriter(events_path(attempt.folder, "none"), 0)
write("start", world_size=1, host="none", pid=os.getpid(), device="cpu")
write("end", status="ok", step=0)
summary = dict(spec=spec.model_dump(mode="json"), spec_digest=run_digest(spec_json(spec)), status="ok", host="none",
               attempt=attempt.number, started_at=now, finished_at=now, argv=[], slurm=None)
attempt.launch_path.write_text(json.dumps(summary))
(out / "launch.json").write_text(json.dumps(summary))
"""


@dataclass
class Result:
    """A big study's outcome."""

    points: int
    records: int
    attempts: int
    """of all points"""
    jobs_per_point: Counter[str]
    most_queued: int
    wall_s: float
    login_cpu_s: float
    job_cpu_s: float | None
    """of all jobs together, by sacct; None without accounting"""
    log: str
    """Snakemake's"""
    status: str
    """the first line of `dist3dgs status` when jobs were in the queue"""

    @property
    def lost(self) -> int:
        return self.points - self.records

    @property
    def doubled(self) -> int:
        """Jobs or trainings beyond one a point, whichever there are more of."""
        return max(self.jobs_per_point.total(), self.attempts) - self.points


def run(cluster: Cluster, folder: Path, points: int, jobs: int) -> Result:
    """Submit `points` points, at most `jobs` in the queue at once, and count."""
    study = Study(
        folder, cluster, layouts=["n1g1"], repeats=points, profile={"jobs": jobs},
        site={"gpu_request": "none", "cpus_per_gpu": 1, "mem_gib_per_gpu": 0.05},
    )  # fmt: skip
    shim = folder / "bin/dist3dgs"
    shim.parent.mkdir()
    # A shebang takes no path with a space.
    shim.write_text(NO_OP.format(python=plain_bin() / "python", dist3dgs=str(plain_bin() / "dist3dgs")))
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    started, most, seen = time.monotonic(), 0, ""
    submitted: dict[int, str] = {}  # the controller forgets ended jobs in time
    snakemake = study.start("train_all", path=shim.parent)
    while (ended := os.wait4(snakemake.pid, os.WNOHANG))[0] == 0:
        jobs = study.jobs()
        submitted |= {job: comment for job, _, comment in jobs}
        queued = sum(state in ("PENDING", "RUNNING", "CONFIGURING") for _, state, _ in jobs)
        most = max(most, queued)
        if queued and not seen:
            seen = _status(study)
        time.sleep(1)
    snakemake.returncode = os.waitstatus_to_exitcode(ended[1])
    assert snakemake.returncode == 0, study.log()[-3000:]
    # Snakemake's own time and that of what it has waited for: sbatch, squeue, the records.
    cpu_s = ended[2].ru_utime + ended[2].ru_stime
    records = len(list(folder.glob("results/tiny/replicated/n1g1/r*/record.json")))
    submitted |= {job: comment for job, _, comment in study.jobs()}
    return Result(
        points,
        records,
        len(list(folder.glob("results/tiny/replicated/n1g1/r*/attempts/*"))),
        Counter(submitted.values()),
        most,
        time.monotonic() - started,
        cpu_s,
        _job_cpu_s(cluster),
        study.log(),
        seen,
    )


def _status(study: Study) -> str:
    env = study.cluster.environment() | {"COLUMNS": "200"}
    done = subprocess.run(
        [str(plain_bin() / "dist3dgs"), "status"],
        cwd=study.folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[0].strip()


def _job_cpu_s(cluster: Cluster) -> float | None:
    if cluster.accounting == "none":
        return None
    lines = cluster("sacct", "-nP", "-S", "now-1days", "-o", "JobID,TotalCPU").splitlines()
    steps = [line.split("|")[1] for line in lines if ".batch|" in line]  # the jobs' own lines have none
    return sum(parse_duration_s(step) for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument(
        "--accounting", choices=["dbd", "none"], default="none", help="dbd: a cluster of its own"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cluster = Cluster(args.accounting)
    cluster.up()
    r = run(cluster, Path(tempfile.mkdtemp(prefix="dist3dgs scale ")), args.points, args.jobs)
    in_jobs = "not measured" if r.job_cpu_s is None else f"{r.job_cpu_s / r.points:.2f}"
    text = f"""# {r.points} points through Slurm with a trainer that does nothing

Generated by `python scripts/slurm/scale.py --points {args.points} --jobs {args.jobs} --accounting {args.accounting}`
on a {os.cpu_count()}-core machine.

| points | records | lost | doubled | most in the queue (limit) | wall s | CPU s per point, login node | in the job |
|---|---|---|---|---|---|---|---|
| {r.points} | {r.records} | {r.lost} | {r.doubled} | {r.most_queued} ({args.jobs}) | {r.wall_s:.0f} |\
 {r.login_cpu_s / r.points:.2f} | {in_jobs} |

*Login node*: Snakemake, its sbatch and squeue calls, the `record` jobs. *In the job*: the two Snakemakes that start
there, and the launcher that does nothing (sacct's TotalCPU).

`dist3dgs status` while it ran: {r.status}
"""
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
