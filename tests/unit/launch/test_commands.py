"""The command lines that start ranks: compared whole with the files in golden/ (rewrite: UPDATE_GOLDEN=1
pytest ...)."""

import os
import shlex
import socket
import sys
from pathlib import Path

import pytest

from dist3dgs.config.naming import Layout
from dist3dgs.errors import UserError
from dist3dgs.launch import commands, node
from dist3dgs.slurm.allocation import Allocation, Node
from dist3dgs.slurm.site import read_site

GOLDEN = Path(__file__).parents[1] / "golden"
WORKER = ["-m", "dist3dgs.train.worker", "--run=results/bicycle/sharded/n1g1/r0/run.json"]


def allocation(nodes: int, gpus: int, job_id: int = 4711) -> Allocation:
    return Allocation(
        job_id=job_id,
        nodes=tuple(Node(name=f"gpu{i:02d}", address=f"10.0.0.{i}") for i in range(1, nodes + 1)),
        gpus_per_node=gpus,
    )


def check_golden(name: str, lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; if that is meant: UPDATE_GOLDEN=1 pytest {__file__}"


def argv(layout: str, **changes) -> list[str]:
    parsed = Layout.parse(layout)
    software = changes.pop("software", commands.Software(python="python3"))
    given = changes.pop("allocation", allocation(parsed.nodes, parsed.workers_per_node))
    worker = [w.replace("n1g1", layout) for w in WORKER]
    return commands.launch_argv(
        parsed,
        worker,
        cpus_per_node=8 * parsed.workers_per_node,
        allocation=given,
        software=software,
        **changes,
    )


@pytest.mark.parametrize(
    "layout", ["n1g1", "n1g2", "n1g4", "n2g1", "n2g2", "n2g4", "n8g8", "n16g8", "n125g4"]
)
def test_golden(layout):
    check_golden(layout, argv(layout))


def test_golden_with_modules_and_container():
    software = commands.Software(
        python="python3",
        modules=("cuda/12.8", "apptainer"),
        image="/sw/dist3dgs.sif",
        binds=("/scratch:/scratch",),
    )
    check_golden("n2g4-container", argv("n2g4", software=software, uses_gpus=True))


@pytest.mark.parametrize(
    ("there", "used"),
    [(["apptainer", "singularity"], "apptainer"), (["singularity"], "singularity"), ([], "apptainer")],
)
def test_the_container_program_that_is_there(tmp_path, monkeypatch, there, used):
    for name in there:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commands.software_of(read_site({"image": "x.sif"})).container_command == used


def test_module_names_are_never_shell_text():
    evil = commands.Software(python="python3", modules=("x; touch /tmp/evil",))
    words = argv("n1g1", software=evil)
    assert "evil" not in words[2] and "x; touch /tmp/evil" in words


def test_several_nodes_need_an_allocation():
    with pytest.raises(UserError, match="profiles/slurm"):
        argv("n2g2", allocation=None)
    with pytest.raises(UserError, match="needs 2 node"):
        argv("n2g2", allocation=allocation(1, 2))


def test_allocation_mismatch_names_both_numbers():
    assert allocation(1, 4).mismatch(Layout(1, 4), uses_gpus=True) is None
    text = allocation(1, 4).mismatch(Layout(1, 1), uses_gpus=True)
    assert text and "needs 1 GPU" in text and "has 4" in text
    assert allocation(1, 4).mismatch(Layout(1, 1), uses_gpus=False) is None


def test_ipv6_head_is_bracketed():
    given = Allocation(job_id=1, nodes=(Node(name="a", address="fd00::2"), Node(name="b", address="fd00::3")))
    assert any(w.startswith("--rdzv-endpoint=[fd00::2]:") for w in argv("n2g1", allocation=given))


def test_ports_of_neighbouring_jobs_do_not_meet():
    tried = [list(commands.port_candidates(job)) for job in range(500, 520)]
    assert all(
        commands.FIRST_PORT <= p < commands.FIRST_PORT + commands.NUM_PORTS for ports in tried for p in ports
    )
    assert len({p for ports in tried for p in ports}) == 20 * commands.PORT_TRIES


def test_a_taken_port_is_passed_over():
    first, second, *_ = commands.port_candidates(77)
    with socket.socket() as s:
        s.bind(("", first))
        s.listen()
        assert not commands.port_is_free(first)
        assert commands.choose_port(77) == second
    with pytest.raises(UserError, match="ss -ltnp"):
        commands.choose_port(77, is_free=lambda port: False)


def test_environment_keeps_the_job_and_drops_the_step():
    dirty = {
        "PATH": "/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_STEP_ID": "0",
        "SLURM_NNODES": "1",
        "SRUN_CPUS_PER_TASK": "1",
        "SLURMD_NODENAME": "gpu01",
        "TORCHELASTIC_RUN_ID": "x",
    }
    env = commands.launch_environment(dirty, Layout(2, 4), allocation(2, 4, job_id=7), cpus_per_node=32)
    assert env == {
        "PATH": "/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURMD_NODENAME": "gpu01",
        "OMP_NUM_THREADS": "8",
    }
    local = commands.launch_environment({"OMP_NUM_THREADS": "3"}, Layout(1, 4), None, cpus_per_node=2)
    assert local == {"OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ({"head": "10.0.0.2", "peer": "10.0.0.2"}, "10.0.0.2"),  # any node but the head
        ({"head": "127.0.1.1", "peer": "10.0.0.1"}, "10.0.0.1"),  # the head, as its own /etc/hosts names it
        ({"peer": "10.0.0.1"}, "10.0.0.1"),  # and where its name does not resolve at all
        ({"head": "127.0.0.1", "peer": "127.0.0.1"}, "127.0.0.1"),  # all nodes on one machine
        ({}, None),
    ],
)
def test_node_finds_its_address_on_the_way_to_the_others(monkeypatch, ways, expected):
    def local_address(other: str) -> str:
        if other not in ways:
            raise socket.gaierror(other)
        return ways[other]

    monkeypatch.setattr(node, "local_address", local_address)
    assert node.address_between("head", "peer") == expected


def test_node_chooses_the_interface_of_that_address():
    assert node.local_address("127.0.0.1") == "127.0.0.1"
    assert node.interface_of("127.0.0.1") == "lo" and node.interface_of(None) is None
    env = node.environment({"NCCL_SOCKET_IFNAME": "ib0"}, "eth1")
    assert env["NCCL_SOCKET_IFNAME"] == "ib0" and env["GLOO_SOCKET_IFNAME"] == "eth1"


@pytest.mark.parametrize(("node_id", "expected"), [("0", "is_host=true"), ("3", "is_host=false"), ("", "")])
def test_node_settles_who_hosts_the_store(node_id, expected):
    torchrun = commands.torchrun_argv(Layout(4, 1), ["x.py"], python="python3", rendezvous="10.0.0.1:20001")
    words = node.command(torchrun, {"SLURM_NODEID": node_id}, "10.0.0.4")
    assert "--local-addr=10.0.0.4" in words[: words.index("--max-restarts=0")]
    conf = "--rdzv-conf=join_timeout=300,read_timeout=300"
    assert (f"{conf},{expected}" if expected else conf) in words
    assert words[-1] == "x.py"


def test_node_usage(capsys):
    for words in (["--", "x"], ["--head=a", "--", "x"], ["--head=a", "--peer=b", "--"]):
        with pytest.raises(SystemExit, match="usage"):
            node.main(words)


@pytest.mark.slow
def test_one_node_line_really_runs(tmp_path):
    """The n1g2 line, as written, starts two ranks."""
    script = tmp_path / "with space.py"
    script.write_text(
        "import os; os.write(1, f\"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n\".encode())"
    )
    words = commands.launch_argv(Layout(1, 2), [str(script)], cpus_per_node=2)
    import subprocess

    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n"))[1:] == ["rank 0 of 2", "rank 1 of 2"]
    assert shlex.join(words).startswith(shlex.quote(sys.executable))


def test_ranks_on_gpus_number_them_as_nvml_does_and_users_settings_stay():
    settings = commands.gpu_settings({})
    assert settings == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert commands.gpu_settings({"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "PYTORCH_CUDA_ALLOC_CONF": "x"}) == {}
    assert "PYTORCH_ALLOC_CONF" not in commands.gpu_settings({"PYTORCH_ALLOC_CONF": "x"})
