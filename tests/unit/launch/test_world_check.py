"""The launcher's table: every disagreement between the layers is refused in seconds, in words, and recorded."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs.config.matrix import spec_json
from dist3dgs.config.models import RunSpec
from dist3dgs.launch import world_check
from dist3dgs.launch.world_check import check_world, layers_of, refusal, visible_gpus
from dist3dgs.monitoring.nvml import GpuIdentity
from dist3dgs.runs.events import read_events
from dist3dgs.slurm.allocation import Allocation, Node, Step, node_cpus, step
from tests.unit.helpers import tiny


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an nvidia-smi on PATH that lists so many GPUs."""

    def put(count: int) -> None:
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.parent.mkdir(exist_ok=True)
        smi.write_text("#!/bin/sh\n" + "".join(f"echo GPU-{i}\n" for i in range(count)))
        smi.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return put


def spec(layout: str, device: str = "auto", **options) -> RunSpec:
    run = tiny.spec(layout, **options)
    return run.model_copy(update={"hardware": run.hardware.model_copy(update={"device": device})})


def job(nodes: int, gpus_per_node: int, tasks: int | None = None) -> Allocation:
    names = tuple(Node(name=f"n{i}", address=f"n{i}") for i in range(nodes))
    return Allocation(job_id=7, nodes=names, gpus_per_node=gpus_per_node, tasks=tasks)


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("2", 1),
        ("0,3", 2),
        ("GPU-0,GPU-1,", 2),
        ("NoDevFiles", 0),
        ("0,void,1", 1),
    ],
)
def test_visible_gpus_are_those_listed(gpus, monkeypatch, listed, seen):
    gpus(4)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert len(visible_gpus()) == seen


def test_no_driver_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(world_check, "identities", lambda: [])
    monkeypatch.setattr(world_check, "DEVICES", tmp_path)
    assert visible_gpus() == []


@pytest.mark.parametrize("fails", [False, True])
def test_what_nvidia_smi_remarks_is_no_gpu(monkeypatch, tmp_path, fails):
    """A node with a driver alone, whose answer some versions call a success, and one that has lost a GPU."""
    smi = tmp_path / "nvidia-smi"
    answer = "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error\nGPU-1, Disabled"
    smi.write_text(f"#!/bin/sh\necho '{answer if fails else 'No devices were found'}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(world_check, "identities", lambda: [])
    monkeypatch.setattr(world_check, "DEVICES", tmp_path)
    assert visible_gpus() == (["GPU-1"] if fails else [])


def test_gpus_are_seen_without_nvidia_smi(monkeypatch, tmp_path):
    """It is missing from many containers, and takes longer than any patience on a node without persistence mode."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(world_check, "SMI_TIMEOUT_S", 0.2)
    slow = tmp_path / "nvidia-smi"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    slow.chmod(0o755)
    found = [GpuIdentity(0, "GPU-a", "9.0"), GpuIdentity(1, "GPU-b", "9.0")]
    monkeypatch.setattr(world_check, "identities", lambda: found)
    assert visible_gpus() == ["GPU-a", "GPU-b"]
    monkeypatch.setattr(world_check, "identities", lambda: [])
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(world_check, "DEVICES", tmp_path)
    assert visible_gpus() == ["0", "2", "10"]


def test_a_split_gpu_counts_as_its_instances(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -L ]; then\n'
        'echo "GPU 0: NVIDIA H100 (UUID: GPU-a)"\n'
        'echo "  MIG 3g.40gb     Device  0: (UUID: MIG-1)"\n'
        'echo "  MIG 3g.40gb     Device  1: (UUID: MIG-2)"\n'
        'echo "GPU 1: NVIDIA H100 (UUID: GPU-b)"\n'
        "else\necho GPU-a, Enabled\necho GPU-b, Disabled\nfi\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["MIG-1", "MIG-2", "GPU-b"]


@pytest.mark.parametrize(
    ("layout", "count", "allocation", "here", "says"),
    [
        ("n1g2", 4, None, Step(), "4 GPU(s) are visible on this node, more than the 2 of n1g2; ask for n1g4"),
        (
            "n1g4",
            2,
            None,
            Step(),
            "2 GPU(s) are visible on this node, fewer than the 4 of n1g4; ask for n1g2",
        ),
        ("n2g4", 4, None, Step(), "needs 2 nodes but this is not a Slurm job"),
        ("n2g4", 4, job(1, 4), Step(), "needs 2 node(s), Slurm job 7 has 1"),
        ("n1g4", 4, job(1, 8), Step(), "needs 4 GPU(s) per node, Slurm job 7 has 8"),
        ("n1g4", 4, job(1, 4, 4), Step(task=0, tasks=4), "--ntasks=1"),
    ],
)
def test_every_disagreement_is_refused_with_the_table_and_the_setting(
    gpus, layout, count, allocation, here, says
):
    gpus(count)
    world = check_world(spec(layout), allocation, here)
    first, *table = world.message.splitlines()
    assert first.startswith("allocation mismatch: ") and says in first
    rows = dict(line.strip().split("  ", 1) for line in table)
    assert {"layout", "Slurm allocation", "visible GPUs"} <= rows.keys()
    assert rows["visible GPUs"].strip() == f"{count} on this node"
    if allocation is not None:
        assert rows["Slurm allocation"].strip().startswith("job 7: ") and "GPU(s)" in rows["Slurm allocation"]


def test_a_world_that_fits_passes(gpus):
    gpus(4)
    world = check_world(spec("n2g4"), job(2, 4, 2), Step())
    assert (world.message, world.warning, world.uses_gpus) == ("", "", True)
    assert world.layers["Slurm allocation"] == "job 7: 2 node(s) x 4 GPU(s), 2 task(s)"
    # The job's tasks alone start nothing: a batch script runs once, however many it asked for.
    assert check_world(spec("n1g4"), job(1, 4, 4), Step()).message == ""
    one = check_world(spec("n1g4", strategy={"ranks": "one"}), job(1, 4, 1), Step())
    assert one.message == "" and "`ranks: one`" in one.warning


def test_the_step_is_sruns_not_the_jobs():
    assert step({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == Step()
    assert step({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}) == Step(task=3, tasks=4)
    assert step({}) == Step()


def test_cpus_of_a_node_are_those_of_all_its_tasks():
    assert node_cpus({"CPUs/Task": "8", "NumTasks": "4", "NumCPUs": "32"}, 1) == 32
    assert node_cpus({"CPUs/Task": "8", "NumTasks": "2", "NumCPUs": "16"}, 2) == 8
    assert node_cpus({"CPUs/Task": "1", "NumTasks": "1", "NumCPUs": "6"}, 1) == 6


def test_the_ranks_go_on_with_the_launchers_table(tmp_path):
    (tmp_path / "launch.json").write_text('{"world": {"visible GPUs": "4 on this node"}}')
    run = spec("n1g4")
    layers = layers_of(run, {"DIST3DGS_ATTEMPT": str(tmp_path)})
    assert layers == {"layout": "1 node(s) x 4 worker(s)", "visible GPUs": "4 on this node"}
    assert refusal("why", layers).splitlines()[1:] == [
        "  layout        1 node(s) x 4 worker(s)", "  visible GPUs  4 on this node",
    ]  # fmt: skip
    assert (
        layers_of(run, {})
        == layers_of(run, {"DIST3DGS_ATTEMPT": "/nonexistent"})
        == {"layout": "1 node(s) x 4 worker(s)"}
    )


@pytest.mark.slow
def test_a_refused_launch_leaves_a_record_without_a_rank(gpus, tmp_path):
    """More GPUs than workers: nothing is started, and the point's record says why."""
    gpus(4)
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    record = tiny.launch(spec("n1g2"), scene, tmp_path / "out")
    assert record.status == "failed" and record.failure is not None
    assert (record.failure.cause, record.failure.phase) == ("allocation_mismatch", "startup")
    launch = tiny.summary(tmp_path / "out")
    assert launch["world"]["visible GPUs"] == "4 on this node" and launch["argv"] == []
    assert tiny.log(tmp_path / "out").startswith("allocation mismatch: 4 GPU(s) are visible")


def train(run: RunSpec, out: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """One rank by hand."""
    argv = [
        sys.executable,
        "-m",
        "dist3dgs.train.worker",
        "--spec",
        spec_json(run),
        "--scene",
        "none",
        "--out",
        str(out),
    ]
    return subprocess.run(argv, env=os.environ | environ, capture_output=True, text=True, timeout=100)


@pytest.mark.slow
def test_tasks_of_srun_that_know_nothing_of_each_other_are_refused(tmp_path):
    done = train(spec("n1g1", "cpu"), tmp_path, SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="2")
    assert done.returncode == 2 and "as many independent runs would write one folder" in done.stderr
    assert (
        "srun step  4 tasks, this is task 2" in done.stderr
        and "srun --ntasks-per-node=1 torchrun" in done.stderr
    )


@pytest.mark.slow
def test_another_number_of_ranks_than_the_layouts_is_refused_with_the_table(tmp_path):
    done = train(spec("n2g4", "cpu"), tmp_path, WORLD_SIZE="4", LOCAL_WORLD_SIZE="4", RANK="0")
    assert done.returncode == 2
    assert "needs 8 ranks but 4 were started; run: torchrun --nnodes=2 --nproc-per-node=4" in done.stderr
    assert "torchrun  4 rank(s), 4 on this node" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_whose_others_never_come_ends_after_the_setting(tmp_path, rank):
    """Without torchrun, which would end with its first rank: rank 0 hosts the store, rank 1 looks for it."""
    run = spec("n1g2", "cpu", timeout_s=600)
    run = run.model_copy(update={"hardware": run.hardware.model_copy(update={"join_timeout_s": 1.0})})
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    world = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = train(run, tmp_path, **world)  # ends within its limit of 100 s, where timeout_s would take 600
    assert done.returncode == 2 and "hardware.join_timeout_s" in done.stderr
    (error,) = [e for e in read_events(tmp_path) if e["event"] == "error"]
    assert (error["type"], error["phase"]) == ("RendezvousTimeoutError", "startup")


@pytest.mark.slow
def test_of_several_launchers_in_a_step_the_first_alone_speaks(gpus, tmp_path):
    gpus(0)
    scene = tiny.write_tiny(tmp_path / "scene.safetensors")
    argv = tiny.launch_argv(spec("n1g2", "cpu"), scene, tmp_path / "out")
    for task in ("1", "0"):
        env = os.environ | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": task}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "attempts").exists() == (task == "0")
    failure = tiny.judged(tmp_path / "out").failure
    assert failure is not None and failure.cause == "allocation_mismatch"
    assert tiny.summary(tmp_path / "out")["world"]["srun step"] == "2 tasks, this is task 0"
