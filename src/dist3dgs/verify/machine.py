"""Check Slurm, the network between nodes, and shared memory."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..config.naming import Layout
from ..launch import node
from ..slurm import client
from ..slurm.allocation import node_name, reachable
from ..slurm.partitions import read_partitions
from ..slurm.site import Site
from ..units import format_bytes
from .setup import Result, Setup, Status, output

#: NCCL keeps buffers between the ranks of a node there, some 10 MiB for each pair.
MIN_SHM_BYTES, GOOD_SHM_BYTES = 64 << 20, 1 << 30
#: Interfaces that other nodes cannot reach.
BRIDGES = ("docker", "virbr", "veth", "podman", "cni", "br-")
#: What Slurm's commands say where they were never configured.
_NO_CLUSTER = re.compile(r"establish a? ?configuration source|DNS SRV lookup failed")


def check_slurm(s: Setup) -> Iterator[Result]:
    """Check Slurm's commands and controller, and the partitions of the site."""
    if not client.available():
        yield Result("slurm", "ok", "not on this machine; only --profile profiles/slurm needs it")
        return
    version = (output("sinfo", "--version") or "slurm").strip()
    if s.slurm_problem is not None:
        # Client commands without a cluster, as on a laptop, do not prevent a local study.
        status: Status = "warn" if _NO_CLUSTER.search(s.slurm_problem) else "fail"
        text = f"{version} does not answer: {(s.slurm_problem.splitlines() or ['no message'])[-1].strip()}"
        yield Result("slurm", status, text, "scontrol ping; export SLURM_CONF=FILE names its configuration")
        return
    up = {p.name for p in read_partitions() if p.up}
    wanted = {"cpu_partition": s.site.cpu_partition, "gpu_partition": s.site.gpu_partition}
    if s.site.gpu_request == "none" or s.site.gpu_partition == "auto":
        del wanted["gpu_partition"]
    absent = [f"site.{key}: {name}" for key, name in wanted.items() if name and name not in up]
    if absent:
        text = f"{version}; no partition is up for you by the name of {', '.join(absent)}"
        yield Result("slurm", "fail", text, "dist3dgs site init --force")
    else:
        yield Result("slurm", "ok", f"{version}; whether it takes each layout's job: dist3dgs preflight")


def check_network(s: Setup) -> Iterator[Result]:
    """Check the interface over which NCCL and Gloo would reach other nodes."""
    known = sorted(psutil.net_if_addrs())
    for variable in node.INTERFACE_VARIABLES:
        named = os.environ.get(variable, "")
        words = [word for word in named.lstrip("=").split(",") if word]
        # NCCL takes prefixes of names; ^ excludes them.
        if words and not named.startswith("^") and not any(k.startswith(w) for w in words for k in known):
            fix = f"unset {variable}, or set it to one of: {' '.join(known)}"
            yield Result("network", "fail", f"{variable}={named}, and there is no such interface", fix)
            return
    layouts = [Layout.parse(text) for text in (s.study.config.layouts if s.study else [])]
    if all(layout.nodes == 1 for layout in layouts):
        yield Result("network", "ok", "not needed: every layout has one node")
        return
    if not s.has_slurm:
        text = "layouts of several nodes need Slurm, which does not answer here"
        yield Result("network", "warn", text, "dist3dgs verify, on the cluster's login node")
        return
    other = _other_node(s.site)
    if other is None:
        yield Result(
            "network", "warn", "no other node of the partition is known, so no route to it", "sinfo -N"
        )
        return
    name, address = other
    interface = node.interface_of(node.address_between(address, address))
    choose = "export NCCL_SOCKET_IFNAME=NAME GLOO_SOCKET_IFNAME=NAME, of: ip -brief address"
    if interface is None:
        yield Result("network", "fail", f"no route to {name} ({address})", f"ip route get {address}")
    elif interface.startswith(BRIDGES):
        yield Result("network", "warn", f"the route to {name} is a container bridge: {interface}", choose)
    else:
        ib = ", InfiniBand" if any(Path("/sys/class/infiniband").glob("*")) else ""
        yield Result("network", "ok", f"{interface} to {name} ({address}){ib}")


def check_shared_memory(s: Setup) -> Iterator[Result]:
    """Check /dev/shm, which NCCL uses between GPUs without peer access."""
    try:
        total = os.statvfs(s.shm)
        size, free = total.f_blocks * total.f_frsize, total.f_bavail * total.f_frsize
        with tempfile.TemporaryFile(dir=s.shm):
            pass
    except OSError as e:
        yield Result("shared memory", "fail", f"{s.shm}: {e.strerror}", f"mount -t tmpfs tmpfs {s.shm}")
        return
    text = f"{s.shm}: {format_bytes(free)} of {format_bytes(size)} free"
    fix = f"mount -o remount,size=8G {s.shm} (a container: --shm-size=8g); delete what dead jobs left there"
    if free < GOOD_SHM_BYTES and (s.computes_on_gpus or s.elsewhere):
        yield Result("shared memory", "fail" if free < MIN_SHM_BYTES else "warn", text, fix)
    else:
        yield Result("shared memory", "ok", text)


def _other_node(site: Site) -> tuple[str, str] | None:
    """Return name and address of another node of the training partition."""
    partition = site.cpu_partition if site.gpu_request == "none" else site.gpu_partition
    chosen = [f"--partition={partition}"] if partition and partition != "auto" else []
    names = dict.fromkeys(client.slurm("sinfo", "-h", "-N", "-o", "%N", *chosen).split())
    for name in names:
        if name != node_name():
            (shown, *_) = client.blocks(client.slurm("scontrol", "-o", "show", "node", name)) or [{}]
            return name, reachable(name, shown.get("NodeAddr", name))
    return None
