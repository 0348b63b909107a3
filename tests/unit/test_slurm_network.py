"""Two nodes with networks of their own: the lines of plan.py and node.py bring them together, whatever names say.

On the test cluster all nodes are 127.0.0.1. Here each is a network namespace with one address, a host name and an
/etc/hosts of its own, joined by a cable (veth); nothing but these reaches the other node.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist3dgs.names import Layout
from dist3dgs.slurm import plan
from dist3dgs.slurm.allocation import Allocation, Node

pytestmark = pytest.mark.slow

HEAD, PEER = "10.99.7.1", "10.99.7.2"
WORKER = """
import os
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
print("met", dist.get_rank(), int(total), os.environ["MASTER_ADDR"], os.environ["GLOO_SOCKET_IFNAME"], flush=True)
dist.destroy_process_group()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs ip and unshare: apt-get install iproute2 util-linux")
    names = f"d3a{os.getpid()}", f"d3b{os.getpid()}"
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip(
                "link",
                "add",
                "ib0",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "ib0",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as e:
            pytest.skip(f"network namespaces are not permitted here: {e.stderr.decode().strip()}")
        for name, address in zip(names, (HEAD, PEER), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "ib0")
            for link in ("ib0", "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.mark.parametrize(
    ("addresses", "hosts"),
    [
        # No name resolves, not even a node's own.
        ((HEAD, PEER), ("", "")),
        # NodeAddr is a number; each node calls itself 127.0.1.1, as Debian's installer writes it, and knows no other.
        ((HEAD, PEER), ("127.0.1.1 gpu01\n", "127.0.1.1 gpu02\n")),
        # NodeAddr is a name, which is 127.0.1.1 on the node itself.
        (("gpu01", "gpu02"), (f"127.0.1.1 gpu01\n{PEER} gpu02\n", f"{HEAD} gpu01\n127.0.1.1 gpu02\n")),
    ],
    ids=["no-names", "own-name-is-loopback", "names"],
)
def test_two_nodes_meet(namespaces, tmp_path: Path, addresses, hosts):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    given = Allocation(
        job_id=7, nodes=tuple(Node(name=f"gpu0{i + 1}", address=a) for i, a in enumerate(addresses))
    )
    words = plan.launch_argv(Layout(2, 1), [str(worker)], cpus_per_node=2, allocation=given)
    words = words[words.index(sys.executable) :]  # what srun starts
    (tmp_path / "resolv.conf").write_text("")
    processes = []
    for number, (space, known) in enumerate(zip(namespaces, hosts, strict=True)):
        (tmp_path / f"hosts{number}").write_text(f"127.0.0.1 localhost\n{known}")
        own = (
            f"hostname gpu0{number + 1} && mount --bind '{tmp_path}/hosts{number}' /etc/hosts && "
            f"mount --bind '{tmp_path}/resolv.conf' /etc/resolv.conf && exec \"$@\""
        )
        environ = {k: v for k, v in os.environ.items() if not k.endswith("SOCKET_IFNAME")}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", space, "unshare", "--mount", "--uts", "sh", "-c", own, "sh", *words],
                env=environ | {"SLURM_NODEID": str(number), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    try:
        said = [p.communicate(timeout=200)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    met = sorted(line.split() for text in said for line in text.splitlines() if line.startswith("met "))
    assert [m[1:3] for m in met] == [[str(rank), "3"] for rank in range(2)], "\n".join(said)
    # Rank 0 may be on either node; its address is one that the other reaches.
    assert {m[3] for m in met} <= {HEAD, PEER} and len({m[3] for m in met}) == 1
    assert {m[4] for m in met} == {"ib0"}
