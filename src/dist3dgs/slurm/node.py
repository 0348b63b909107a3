"""What srun starts once on every node: choose the network interface, say who hosts the store, become
torchrun.

`python -m dist3dgs.slurm.node --head=ADDRESS -- python -m torch.distributed.run --rdzv-endpoint=...`

* NCCL and Gloo pick the first interface that is up, which on cluster nodes is often a management network or a
  container bridge that other nodes cannot reach; the run then hangs in its first collective. The kernel's
  route to the
  head node names the right one (InfiniBand verbs are used by NCCL regardless: this is for sockets and
  bootstrap).
* torchrun decides by name resolution whether it is the rendezvous host, and gets it wrong where a node's own
  name
  resolves to 127.0.1.1: nobody listens and all wait. srun's node number says it for certain.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from .. import extension
from ..monitor import start_beside
from .allocation import node_name

#: Set by the launcher where the ranks compute on GPUs.
USES_GPUS = "DIST3DGS_USES_GPUS"
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def local_address(head: str) -> str:
    """This machine's IP address on the route to `head`. No packet is sent. Raises OSError if there is no
    route."""
    family, _, _, _, address = socket.getaddrinfo(head, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect(address)
        return str(s.getsockname()[0])


def interface_to(head: str) -> str | None:
    """Name of the network interface that leads to `head`, or None if it cannot be told."""
    try:
        ip = local_address(head)
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.split("%")[0] == ip for a in addresses):
            return name
    return None


def environment(environ: Mapping[str, str], interface: str | None) -> dict[str, str]:
    """`environ` with the interface set for NCCL and Gloo, unless the user has chosen one."""
    result = dict(environ)
    if interface:
        for variable in INTERFACE_VARIABLES:
            result.setdefault(variable, interface)
    return result


def command(torchrun: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """`torchrun` with the store's host settled by srun's node number: node 0 hosts, the others connect."""
    node_id = environ.get("SLURM_NODEID", "")
    if not node_id.isdigit():
        return list(torchrun)
    is_host = "true" if int(node_id) == 0 else "false"
    return [f"{w},is_host={is_host}" if w.startswith("--rdzv-conf=") else w for w in torchrun]


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) < 3 or not argv[0].startswith("--head=") or argv[1] != "--":
        sys.exit("usage: python -m dist3dgs.slurm.node --head=ADDRESS -- COMMAND...")
    head, torchrun = argv[0].removeprefix("--head="), argv[2:]
    interface = interface_to(head)
    env = environment(os.environ, interface)
    print(
        f"node {env.get('SLURMD_NODENAME', socket.gethostname())}: interface {interface or 'unknown'} to "
        f"{head}, "
        f"NCCL_SOCKET_IFNAME={env.get('NCCL_SOCKET_IFNAME', '')}",
        file=sys.stderr,
        flush=True,
    )
    if env.pop(USES_GPUS, "") and not extension.is_ready():
        # Here rather than in a rank: nodes that share the folder wait for each other, and torchrun for all of them.
        status = extension.prepare_in_child([sys.executable, "-m", extension.MODULE], env)
        if status:
            sys.exit(status)
    if attempt := env.get("DIST3DGS_ATTEMPT"):
        # This process becomes torchrun and keeps its pid: what runs below it is this node's part of the job.
        start_beside(os.getpid(), Path(attempt), node_name(env))
    run = command(torchrun, env)
    os.execvpe(run[0], run, env)  # becomes torchrun: signals and exit status are its own


if __name__ == "__main__":
    main()
