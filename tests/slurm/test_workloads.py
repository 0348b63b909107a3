"""A program of others on two nodes of the real Slurm: one process per rank, and one per node."""

import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PROGRAM = """
import sys
print("I am", sys.argv[1:], flush=True)
print("rate 5.0")
"""
ENTRY = {
    "application": "{python} program.py {rank} {node_rank} {local_rank} {ranks} {nodes} {master_addr}",
    "figures_of_merit": {"images_per_s": {"regex": r"rate ([\d.]+)", "over_ranks": "sum"}},
}


def test_on_two_nodes(make_study):
    study = make_study(layouts=["n2g2"])
    library = {"ranks": ENTRY, "nodes": ENTRY | {"launch": "node"}}
    config = {"scenes": [], "workloads": list(library), "workload_library": library}
    (study.folder / "mine.yaml").write_text(yaml.safe_dump(config))
    (study.folder / "program.py").write_text(PROGRAM)
    study.run("--configfile", "mine.yaml", "--", "train_all", timeout=400)
    for name, processes in (("ranks", 4), ("nodes", 2)):
        folder = study.folder / f"results/{name}/default/n2g2/r0"
        record = yaml.safe_load((folder / "record.json").read_text())
        assert record["status"] == "ok", record["failure"]
        assert record["metrics"]["images_per_s"] == 5.0 * processes
        assert len(record["metrics"]["ranks"]) == 4 and len(record["environment"]["hosts"]) == 2
        outputs = sorted(folder.glob("attempts/000/output.rank*.log"))
        said = [path.read_text().splitlines()[0] for path in outputs]
        assert len(set(said)) == len(said) == processes
        assert all("'4', '2', '" in line for line in said)
        samples = list(folder.glob("attempts/000/resources.*.csv"))
        assert len(samples) == 2, "each node has its samples"
