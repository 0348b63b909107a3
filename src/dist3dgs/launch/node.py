"""Program that srun starts once on every node: choose the network interface and the store's host, become torchrun.

`python -m dist3dgs.launch.node --head=ADDRESS --peer=ADDRESS -- python -m torch.distributed.run --rdzv-endpoint=...`

* NCCL and Gloo pick the first interface that is up, which on cluster nodes is often a management network or a container
  bridge that other nodes cannot reach; the run then hangs in its first collective. The kernel's route to the head node
  names the right one (NCCL uses InfiniBand verbs regardless: this is for sockets and bootstrap). On the head itself,
  whose name may resolve to 127.0.1.1 there, it is the route to its peer.
* The node of rank 0 announces itself by its host name, which need not resolve elsewhere: torchrun is given the node's
  address on that route.
* torchrun decides by name resolution whether it is the rendezvous host, and gets it wrong where a node's own name
  resolves to 127.0.1.1: nobody listens and all wait. srun's node number says it for certain.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ..monitoring.sampler import start_beside
from ..slurm.allocation import GPUS_PER_NODE, limit_gpus, node_name
from . import gsplat_build

#: Set by the launcher where the ranks compute on GPUs.
USES_GPUS = "DIST3DGS_USES_GPUS"
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def local_address(head: str) -> str:
    """Return this machine's IP address on the route to `head`; no packet is sent. Raises OSError without a route."""
    family, _, _, _, address = socket.getaddrinfo(head, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect(address)
        return str(s.getsockname()[0])


def address_between(head: str, peer: str) -> str | None:
    """Return this machine's address on the way to the other nodes: loopback only if all are on this machine."""
    found = None
    for other in (head, peer):
        try:
            address = local_address(other)
        except OSError:
            continue
        if not ipaddress.ip_address(address.split("%")[0]).is_loopback:
            return address
        found = found or address
    return found


def interface_of(ip: str | None) -> str | None:
    """Return the name of the network interface with this address; None if unknown."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.split("%")[0] == ip for a in addresses):
            return name
    return None


def environment(environ: Mapping[str, str], interface: str | None) -> dict[str, str]:
    """Copy `environ` with the interface set for NCCL and Gloo, unless the user has chosen one."""
    result = dict(environ)
    if interface:
        for variable in INTERFACE_VARIABLES:
            result.setdefault(variable, interface)
    return result


def command(torchrun: Sequence[str], environ: Mapping[str, str], address: str | None = None) -> list[str]:
    """Return `torchrun` with this node's address; srun's node number decides who hosts the store: node 0."""
    node_id = environ.get("SLURM_NODEID", "")
    is_host = f",is_host={'true' if int(node_id) == 0 else 'false'}" if node_id.isdigit() else ""
    words = [w + is_host if w.startswith("--rdzv-conf=") else w for w in torchrun]
    at = next(i for i, word in enumerate(words) if word.startswith("--rdzv-endpoint="))
    return [*words[: at + 1], *([f"--local-addr={address}"] if address else []), *words[at + 1 :]]


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    options = [word.partition("=")[0] for word in argv[:3]]
    if len(argv) < 4 or options != ["--head", "--peer", "--"]:
        sys.exit("usage: python -m dist3dgs.launch.node --head=ADDRESS --peer=ADDRESS -- COMMAND...")
    head, peer, torchrun = argv[0].removeprefix("--head="), argv[1].removeprefix("--peer="), argv[3:]
    address = address_between(head, peer)
    interface = interface_of(address)
    env = environment(os.environ, interface)
    if gpus := env.pop(GPUS_PER_NODE, ""):
        limit_gpus(env, int(gpus))
        limit_gpus(os.environ, int(gpus))  # the sampler of this node inherits it
    print(
        f"node {env.get('SLURMD_NODENAME', socket.gethostname())}: interface {interface or 'unknown'} to {head}, "
        f"address {address or 'unknown'}, NCCL_SOCKET_IFNAME={env.get('NCCL_SOCKET_IFNAME', '')}",
        file=sys.stderr,
        flush=True,
    )
    if env.pop(USES_GPUS, "") and not gsplat_build.is_ready():
        # Here rather than in a rank: nodes that share the folder wait for each other, and torchrun for all of them.
        status = gsplat_build.prepare_in_child(
            [sys.executable, "-m", gsplat_build.MODULE, gsplat_build.HERE], env
        )
        if status:
            sys.exit(status)
    if attempt := env.get("DIST3DGS_ATTEMPT"):
        # This process becomes torchrun and keeps its pid: what runs below it is this node's part of the job.
        start_beside(os.getpid(), Path(attempt), node_name(env))
    run = command(torchrun, env, address)
    os.execvpe(run[0], run, env)  # becomes torchrun: signals and exit status are its own


if __name__ == "__main__":
    main()
