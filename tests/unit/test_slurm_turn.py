"""The launcher's turn in a job: a small job does not train, whatever its CPU is counted as."""

from pathlib import Path

import pytest

from dist3dgs.slurm import allocation, turn
from dist3dgs.slurm.allocation import Allocation, Node, read
from dist3dgs.slurm.settings import VARIABLE, read_site


def given(nodes: int = 1, gpus: int = 0, cpus: int | None = 1) -> Allocation:
    names = tuple(Node(name=f"n{i}", address="127.0.0.1") for i in range(nodes))
    return Allocation(job_id=7, nodes=names, gpus_per_node=gpus, cpus_per_node=cpus)


@pytest.mark.parametrize(
    ("layout", "has", "site", "small"),
    [
        ("n1g4", given(cpus=1), {}, True),
        ("n1g4", given(cpus=2), {}, True),  # one core, two threads
        ("n1g1", given(cpus=2), {"cpus_per_gpu": 1}, True),
        ("n2g1", given(cpus=4), {"gpu_request": "none", "cpus_per_gpu": 1}, True),
        ("n1g1", given(cpus=2), {"gpu_request": "none", "cpus_per_gpu": 1}, False),
        ("n1g4", given(gpus=4, cpus=2), {}, False),
        ("n1g4", given(gpus=2, cpus=16), {}, False),  # a mismatch, which the guard names
        ("n1g4", given(cpus=32), {}, False),
        ("n2g4", given(nodes=2, gpus=4, cpus=32), {}, False),
        ("n1g4", given(cpus=None), {}, False),
    ],
)
def test_small_jobs_do_not_train(monkeypatch, layout, has, site, small):
    monkeypatch.setenv(VARIABLE, "{}")
    assert bool(turn._too_small(Path(f"results/s/t/{layout}/r0"), has, read_site(site))) == small


def test_by_hand_any_allocation_trains(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert turn._too_small(Path("results/s/t/n1g4/r0"), given(), read_site({})) is None


@pytest.mark.parametrize(
    ("job", "gres", "gpus"),
    [
        ("TresPerNode=gres/gpu:h100:4", "N/A", 4),
        ("TresPerNode=gres:gpu:a100-sxm4-80gb:2", "N/A", 2),
        ("TresPerJob=gres:gpu:8 TRES=cpu=2,mem=1G,node=2,billing=2,gres/gpu=8", "N/A", 4),
        ("AllocTRES=cpu=2,node=2,gres/gpu=8,gres/gpu:a100=8 ReqTRES=cpu=2", "N/A", 4),
        ("TRES=cpu=2,node=2,gres/gpu=5", "N/A", 3),  # unevenly: no layout fits
        ("TRES=cpu=2,mem=1G,node=2", "N/A", 0),
        ("", "gpu:2", 2),
    ],
)
def test_gpus_of_an_allocation(monkeypatch, job, gres, gpus):
    """As scontrol 22.05 and later print them."""
    answers = {
        "squeue": f"n[1-2]|gpu|10:00|{gres}",
        "node": "NodeName=n1 NodeAddr=127.0.0.1\nNodeName=n2 NodeAddr=127.0.0.1",
        "job": f"JobId=7 NumNodes=2 NumCPUs=2 {job}",
    }
    monkeypatch.setattr(
        allocation, "slurm", lambda *argv: answers[argv[0] if argv[0] == "squeue" else argv[3]]
    )
    assert read(7).gpus_per_node == gpus


AWAY = """srun: error: Unable to confirm allocation for job 134: Unable to contact slurm controller (connect failure)
srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 134
"""


def test_an_srun_that_found_no_controller_is_told_from_other_ends(tmp_path):
    log = tmp_path / "train.log"
    assert not turn.srun_found_no_controller(log)
    log.write_text(f"$ srun --overlap\n{AWAY}")
    assert turn.srun_found_no_controller(log)
    log.write_text(
        f"$ srun --overlap\n{AWAY}node gpu01: interface ib0\nTraceback\nValueError\nsrun: error: gpu01\n"
    )
    assert not turn.srun_found_no_controller(log)  # the next one began


@pytest.mark.parametrize(("answers", "starts"), [(True, 2), (False, 1)])
def test_such_an_srun_is_started_again(tmp_path, monkeypatch, answers, starts):
    from dist3dgs import launch
    from dist3dgs.matrix import spec_json
    from dist3dgs.spec import Hardware, RunSpec, Strategy, TrainSettings

    spec = RunSpec(
        scene="s", strategy="t", layout="n2g1", repeat=0, seed=1, parallel=Strategy(), train=TrainSettings(),
        hardware=Hardware(device="cpu"),
    )  # fmt: skip
    (tmp_path / "scene").touch()
    (tmp_path / "away").write_text(AWAY)
    script = f'cd "{tmp_path}"; echo >> starts; [ -e away ] && cat away >&2 && rm away && exit 1; echo else >&2; exit 2'
    monkeypatch.setattr(launch.slurm_allocation, "current", lambda: given(nodes=2))
    monkeypatch.setattr(launch.slurm_allocation, "wait_for_controller", lambda job, patience_s: answers)
    monkeypatch.setattr(launch.plan, "launch_argv", lambda *a, **k: ["sh", "-c", script])
    launch.launch(spec_json(spec), tmp_path / "scene", tmp_path / "s/t/n2g1/r0")
    assert (tmp_path / "starts").read_text().count("\n") == starts
