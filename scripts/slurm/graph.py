"""What the graph of a big study costs: `snakemake -n` of many points with the Slurm profile.

    python scripts/slurm/graph.py --points 10000

Beside it the floor: the same two jobs per point in a Snakefile of two rules that say nothing but input and output.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/slurm"))

from cluster import Cluster
from study import Study, plain_bin

LAYOUTS = ["n1g1", "n1g2", "n1g4", "n1g8", "n2g1", "n2g2", "n2g4", "n2g8", "n4g4", "n8g8"]
BARE = """
rule train_all:
    input:
        [f"results/r{{i}}/record.json" for i in range({points})],
rule train:
    output:
        "results/{{repeat}}/launch.json",
    shell:
        "true {{output}}"
rule record:
    input:
        rules.train.output[0],
    output:
        "results/{{repeat}}/record.json",
    shell:
        "true {{output}}"
"""


@dataclass
class Cost:
    """Of one dry-run: CPU seconds, peak memory, jobs in the graph."""

    cpu_s: float
    peak_mb: float
    jobs: int


def dry_run(folder: Path, *options: str) -> Cost:
    """`snakemake -n train_all` in `folder`."""
    with (folder / "dry-run.txt").open("w+") as out:
        process = subprocess.Popen(
            [str(plain_bin() / "python"), "-m", "snakemake", *options, "-n", "train_all"],
            cwd=folder, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    assert process.returncode == 0, text[-3000:]
    total = next((line.split()[1] for line in text.splitlines() if line.startswith("total")), "0")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, int(total))


def of_study(folder: Path, points: int) -> Cost:
    Study(folder, Cluster("none"), layouts=LAYOUTS, repeats=points // len(LAYOUTS))
    return dry_run(folder, "--profile", "profiles/slurm")


def of_bare_snakemake(folder: Path, points: int) -> Cost:
    (folder / "Snakefile").write_text(BARE.format(points=points))
    return dry_run(folder, "-j1", "--scheduler", "greedy")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=10_000)
    args = parser.parse_args()
    for name, measure in (("study", of_study), ("bare Snakemake", of_bare_snakemake)):
        cost = measure(Path(tempfile.mkdtemp(prefix="dist3dgs graph ")), args.points)
        print(f"{name}: {cost.jobs} jobs, {cost.cpu_s:.1f} CPU s, {cost.peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
