"""Company on a run's nodes: seen while it runs, recorded, and kept away by `site.exclusive`."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest

from dist3dgs.analysis.tables import tabulate
from dist3dgs.runs.launch_summary import SharedNodes
from dist3dgs.slurm import allocation
from dist3dgs.slurm.allocation import HIDDEN, Allocation, CoTenancy, Node

JOB = ["sbatch", "--parsable", "-A", "lab", "-p", "gpu", "-t", "10", "-o", "/dev/null", "--mem=100"]


def start(cluster, *options: str, command: str = "sleep 300") -> str:
    job = cluster(*JOB, *options, "--wrap", command).strip()
    end = time.monotonic() + 20
    while "PENDING" in cluster("squeue", "-h", "-t", "all", "-j", job, "-o", "%T"):
        assert time.monotonic() < end, cluster("squeue")
        time.sleep(0.1)
    return job


@pytest.mark.slurm
def test_a_job_beside_it_is_recorded_and_shown(make_study, cluster):
    study = make_study(layouts=["n1g1"])
    other = start(cluster, "-N2", "--ntasks-per-node=1", "--gres=gpu:1")
    try:
        study.run("train_all")
    finally:
        cluster("scancel", other)
    record = study.record("n1g1")
    assert record["environment"]["nodes_shared"] is True
    assert list(record["environment"]["neighbours"].values()) == [[other]]
    tables = study.folder / "tables"
    tabulate([study.point("n1g1") / "record.json"], tables / "runs.csv", tables / "points.csv")
    assert next(csv.DictReader((tables / "runs.csv").open()))["nodes_shared"] == "yes"
    assert next(csv.DictReader((tables / "points.csv").open()))["n_shared"] == "1"


@pytest.mark.slurm
def test_whole_nodes_have_no_company(make_study, cluster):
    """A job with a GPU to spare beside it has to wait."""
    study = make_study(layouts=["n2g1"], site={"exclusive": True}, train={"steps": 400})
    running = study.start("train_all")
    try:
        study.wait(lambda: study.last_step("n2g1"), "the run to train")
        other = cluster(*JOB, "--gres=gpu:1", "--wrap", "true").strip()
        assert "PENDING" in cluster("squeue", "-h", "-j", other, "-o", "%T")
        assert running.wait(200) == 0, study.log()
    finally:
        running.kill()
        cluster("scancel", other)
    record, attempt = study.record("n2g1"), study.attempts("n2g1")[-1]
    assert record["status"] == "ok" and record["environment"]["nodes_shared"] is False
    assert attempt["slurm"]["exclusive"] is True
    assert attempt["world"]["Slurm allocation"].startswith(
        f"job {attempt['slurm']['job_id']}: 2 node(s) x 1 GPU(s)"
    )


@pytest.mark.slurm
def test_ranks_see_the_gpus_of_their_layout_on_a_whole_node(cluster, tmp_path):
    """With --exclusive Slurm lists all GPUs of the node, whatever was asked for."""
    out = tmp_path / "seen.json"
    code = (
        "import json, os, sys; from dist3dgs.slurm import allocation as a; here = a.current();"
        "before = os.environ['CUDA_VISIBLE_DEVICES']; a.limit_gpus(os.environ, here.gpus_per_node);"
        "json.dump([here.exclusive, before, os.environ['CUDA_VISIBLE_DEVICES']], open(sys.argv[1], 'w'))"
    )
    script = tmp_path / "job.sh"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" {out}\n')
    argv = ["sbatch", "--wait", *JOB[2:], "--exclusive", "--gres=gpu:2", str(script)]
    subprocess.run(argv, env=cluster.environment(), check=True, capture_output=True, timeout=60)
    assert json.loads(out.read_text()) == [True, "0,1,2,3", "0,1"]


@pytest.mark.slurm
def test_who_came_and_went_between_two_looks_is_seen(on_cluster):
    own = start(on_cluster, "-w", "gpu01", "--gres=gpu:1")
    try:
        given = allocation.read(int(own))
        watch = CoTenancy(given, every_s=3600).start()
        time.sleep(2.5)  # Slurm's times are whole seconds
        passer = start(on_cluster, "-w", "gpu01", command="sleep 1")
        elsewhere = start(on_cluster, "-w", "gpu02", command="sleep 1")
        end = time.monotonic() + 30
        while any(j in on_cluster("squeue", "-h", "-o", "%i").split() for j in (passer, elsewhere)):
            assert time.monotonic() < end
            time.sleep(0.2)
        time.sleep(1)
        assert watch.stop() == SharedNodes(shared=True, jobs={"gpu01": [passer]}, reason=None)
        # Who had left before it began was no company.
        assert CoTenancy(given).start().stop() == SharedNodes(shared=False, jobs={}, reason=None)
    finally:
        on_cluster("scancel", own)


GIVEN = Allocation(job_id=7, nodes=(Node(name="n1", address="n1"), Node(name="n2", address="n2")))


def test_only_the_gpus_of_the_layout_stay_visible():
    environ = {"CUDA_VISIBLE_DEVICES": "2,3,5", "SLURM_JOB_GPUS": "2,3,5", "SLURM_STEP_GPUS": "2,3,5"}
    allocation.limit_gpus(environ, 2)
    assert environ == {"CUDA_VISIBLE_DEVICES": "2,3"}
    for listed in ({}, {"CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_GPUS": "1"}):
        environ = dict(listed)
        allocation.limit_gpus(environ, 2)
        assert environ == listed


class Fake:
    """squeue and scontrol that print what the real ones print to a user who may not see others' jobs."""

    def __init__(self, folder, monkeypatch) -> None:
        self.folder = folder
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def cluster(self, allocated: tuple[int, int], own: str) -> None:
        self.script("squeue", "echo '7|RUNNING|n[1-2]|2026-01-01T00:00:00|2026-01-02T00:00:00'")
        nodes = "\n".join(f"NodeName=n{i} CPUAlloc={n} CPUTot=64" for i, n in enumerate(allocated, 1))
        self.script(
            "scontrol",
            f"case \"$*\" in *config*) echo 'PrivateData             = jobs,usage' ;;\n"
            f"*node*) echo '{nodes}' ;;\n*) echo '{own}' ;; esac",
        )


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def test_jobs_that_are_hidden_show_in_the_cpus_of_the_node(fake):
    fake.cluster((4, 36), "JobId=7 NodeList=n[1-2] Nodes=n[1-2] CPU_IDs=0-2,8 Mem=1")
    assert CoTenancy(GIVEN).start().stop() == SharedNodes(shared=True, jobs={"n2": [HIDDEN]}, reason=None)
    fake.cluster((4, 6), "JobId=7 Nodes=n1 CPU_IDs=0-3 Mem=1 Nodes=n2 CPU_IDs=0-5 Mem=1")
    assert CoTenancy(GIVEN).start().stop().shared is False


def test_what_cannot_be_seen_is_unknown_for_a_reason(fake):
    fake.cluster((4, 36), "JobId=7 NodeList=n[1-2]")
    found = CoTenancy(GIVEN).start().stop()
    assert found.shared is None and "PrivateData" in (found.reason or "")
    fake.script("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    found = CoTenancy(GIVEN).start().stop()
    assert found.shared is None and "Unable to contact" in (found.reason or "")
