#!/usr/bin/env python3
"""A real Slurm on this one machine, to test against: no systemd, no network, standard library only.

    python3 tests/slurm/cluster.py up [--accounting none]   # start what is not running; prints how to use it
    python3 tests/slurm/cluster.py down                     # stop everything, remove its folder
    python3 tests/slurm/cluster.py status
    eval "$(python3 tests/slurm/cluster.py env)"            # put its sbatch, squeue, ... on PATH in this shell

Nodes gpu01, gpu02 (4 "h100" each), gpu03 (4 "l40s") and cpu01; partitions gpu, l40s, cpu, and low/high, where high
preempts low. With `--accounting dbd` (the default) slurmdbd and MariaDB run as well; `none` is a cluster without
sacct. Both kinds can be up at once. State lives under $DIST3DGS_SLURM_DIR or the system's temporary folder, never in
the source tree, as Slurm's files cannot hold a path with a space in it.

Debian's slurmd is built to run several times on a host (`slurmd -N gpu01`), so jobs really are placed, limited,
preempted and killed by Slurm; only the GPUs are character devices that do nothing.
"""

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import accounting
from daemons import PATH, ClusterError, Daemons, name_of

ETC = Path(__file__).resolve().parent / "etc"
NODES = ("gpu01", "gpu02", "gpu03", "cpu01")
PACKAGES = {"none": "slurm-wlm munge", "dbd": "slurm-wlm munge slurmdbd mariadb-server"}
PROGRAMS = {"none": ("slurmctld", "slurmd", "munged"), "dbd": ("slurmdbd", "mariadbd", "mariadb-install-db")}
CLIENTS = [
    "sbatch",
    "srun",
    "salloc",
    "squeue",
    "sinfo",
    "scontrol",
    "scancel",
    "sacct",
    "sacctmgr",
    "sshare",
    "sstat",
]
PORTS_FROM, PORTS_PER_CLUSTER, JOBS_PER_CLUSTER, NUM_CLUSTERS = 15000, 8, 10_001, 600
#: In the environment of a node's slurmd and of the step daemons it starts.
MARK = "DIST3DGS_TEST_NODE"


def missing(accounting: str = "dbd") -> str | None:
    """Why a cluster of this kind cannot run on this machine, with the line that mends it, or None."""
    wanted = PROGRAMS["none"] + (PROGRAMS["dbd"] if accounting == "dbd" else ())
    absent = [p for p in wanted if shutil.which(p, path=PATH) is None]
    if absent:
        return (
            f"Slurm is not installed ({', '.join(absent)} missing): apt-get install -y {PACKAGES[accounting]}"
        )
    if os.geteuid() != 0:
        return "the test cluster needs root (slurmd starts jobs as their user): sudo python3 tests/slurm/cluster.py up"
    return None


def default_folder() -> Path:
    """Folder of this checkout's clusters."""
    key = hashlib.sha256(str(ETC).encode()).hexdigest()[:8]
    return Path(os.environ.get("DIST3DGS_SLURM_DIR") or Path(tempfile.gettempdir(), f"dist3dgs-slurm-{key}"))


class Cluster(Daemons):
    """One cluster and its folder."""

    def __init__(self, accounting: str = "dbd", root: Path | None = None) -> None:
        self.accounting = accounting
        super().__init__(root or default_folder() / accounting)
        self.bin, self.conf = self.root / "bin", self.root / "etc/slurm.conf"
        # Clusters in other folders (another checkout, another kind) keep other ports.
        number = int(hashlib.sha256(str(self.root).encode()).hexdigest(), 16) % NUM_CLUSTERS
        self.first_port = PORTS_FROM + PORTS_PER_CLUSTER * number
        # Jobs too: the port at which a job's ranks meet comes from its id, and all clusters run on one host.
        self.first_job = 1 + JOBS_PER_CLUSTER * number
        if any(c.isspace() or c in "#'\"" for c in str(self.root)):
            raise ClusterError(
                f"{self.root}: Slurm cannot use a path with spaces; set DIST3DGS_SLURM_DIR to another"
            )

    # -- using it

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """`environ` with this cluster's commands first on PATH."""
        kept = {k: v for k, v in environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return kept | {"PATH": f"{self.bin}:{environ.get('PATH', PATH)}", "SLURM_CONF": str(self.conf)}

    def __call__(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """Run a client command and return its output."""
        done = subprocess.run(
            argv,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise ClusterError(f"{shlex.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def works(self, *argv: str) -> bool:
        try:
            self(*argv)
        except (ClusterError, subprocess.TimeoutExpired):
            return False
        return True

    def is_up(self) -> bool:
        daemons = ["slurmctld", *(f"slurmd.{n}" for n in NODES)]
        return self.conf.exists() and all(self.alive(d) for d in daemons)

    # -- starting

    def up(self) -> None:
        """Start whatever is not running, and wait until every node takes jobs. Nothing happens to what is up."""
        if reason := missing(self.accounting):
            raise ClusterError(reason)
        self._make_folders()
        self._write_configuration()
        self._start_munge()
        if self.accounting == "dbd":
            accounting.start_database(self, self.first_port + 7)
            accounting.start_dbd(self)
        self.start_controller()
        if self.accounting == "dbd":
            accounting.add_accounts(self)
        for node in NODES:
            self.start_node(node)
        self.wait(60, "nodes to come up", lambda: set(self._node_states()) <= {"idle", "mixed", "allocated"})

    def _make_folders(self) -> None:
        for folder in ("run", "log", "state/controller", "dev", "munge", "bin", "etc"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        if self.root.stat().st_uid != os.geteuid():
            raise ClusterError(
                f"{self.root} belongs to another user; set DIST3DGS_SLURM_DIR to a folder of yours"
            )
        for path in (self.root.parent, self.root, self.run):
            path.chmod(0o755)
        for i in range(4):
            device = self.root / f"dev/nvidia{i}"
            if not device.exists():
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        prolog = self.root / "etc/prolog"
        prolog.write_text(f'#!/bin/sh\n[ ! -e "{self.root}/state/$SLURMD_NODENAME.broken" ]\n')
        prolog.chmod(0o755)
        mail = self.root / "etc/mail"
        mail.write_text(f'#!/bin/sh\necho "$@" >> "{self.root}/mail.txt"\n')
        mail.chmod(0o755)
        # Snakemake's job step drops SLURM_CONF from the environment; these wrappers put it back.
        for client in CLIENTS:
            if real := shutil.which(client, path="/usr/bin:/usr/local/bin"):
                wrapper = self.bin / client
                wrapper.write_text(f'#!/bin/sh\nexport SLURM_CONF={self.conf}\nexec {real} "$@"\n')
                wrapper.chmod(0o755)

    def _write_configuration(self) -> None:
        # The cluster without accounting lets impossible jobs wait in the queue, as many sites do.
        accounting = "AccountingStorageType=accounting_storage/none\nEnforcePartLimits=NO"
        first = self.first_port
        if self.accounting == "dbd":
            accounting = "\n".join(
                [
                    "AccountingStorageType=accounting_storage/slurmdbd",
                    "AccountingStorageHost=127.0.0.1",
                    f"AccountingStoragePort={first + 6}",
                    f"AccountingStoragePass={self.run}/munge.socket",
                    "AccountingStorageTRES=gres/gpu",
                    "AccountingStorageEnforce=associations,limits,qos",
                    "EnforcePartLimits=ALL",
                ]
            )
        values = {f"port{i}": str(first + i) for i in range(8)}
        values |= {"host": socket.gethostname().split(".")[0], "root": str(self.root), "run": str(self.run)}
        values |= {"accounting": accounting, "first_job": str(self.first_job)}
        for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
            text = (ETC / f"{name}.in").read_text().format(**values)
            path = self.root / "etc" / name
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
            path.chmod(0o600 if name == "slurmdbd.conf" else 0o644)

    def _start_munge(self) -> None:
        if self.alive("munged"):
            return
        key = self.root / "munge/munge.key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(os.urandom(1024))
        key.parent.chmod(0o700)
        for old in self.run.glob("munge.socket*"):
            old.unlink()
        self.daemon(
            "munged",
            f"--socket={self.run}/munge.socket",
            f"--key-file={key}",
            f"--pid-file={self.run}/munged.pid",
            f"--log-file={self.root}/munge/munged.log",
            f"--seed-file={self.root}/munge/seed",
        )
        self.wait(10, "munge", lambda: (self.run / "munge.socket").exists())

    def start_controller(self) -> None:
        if not self.alive("slurmctld"):
            self.daemon("slurmctld")
        self.wait(30, "slurmctld", lambda: "UP" in self("scontrol", "ping", check=False))

    def start_node(self, node: str) -> None:
        if self.alive(f"slurmd.{node}"):
            return
        (self.root / "state" / node).mkdir(parents=True, exist_ok=True)
        self.daemon("slurmd", "-N", node, env={MARK: f"{self.root}:{node}"})

    # -- breaking and stopping

    def stop_controller(self) -> None:
        self.stop("slurmctld")

    def kill_node(self, node: str) -> None:
        """What a power cut does: slurmd, its step daemons and the job's processes on the node are gone at once."""
        self.signal(f"slurmd.{node}", signal.SIGKILL)
        # Step daemons first: one that sees its processes die would report them as failed, as no dead node can.
        for pid in sorted(self._processes_of(node), key=lambda pid: "slurmstepd" not in name_of(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def break_prolog(self, node: str) -> None:
        """From now on the node's prolog fails, as a health check of a site would: Slurm drains it, holds the job."""
        (self.root / f"state/{node}.broken").touch()

    def mend_prolog(self, node: str) -> None:
        (self.root / f"state/{node}.broken").unlink(missing_ok=True)
        self("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    def _processes_of(self, node: str) -> list[int]:
        """Processes that this cluster started for a node: recognised by what is in their environment alone."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            paths = next((w[5:].split(b":") for w in words if w.startswith(b"PATH=")), [])
            here = f"SLURM_CONF={self.conf}".encode() in words or str(self.bin).encode() in paths
            mine = f"{MARK}={self.root}:{node}".encode() in words  # slurmd and its step daemons
            if mine or (here and f"SLURMD_NODENAME={node}".encode() in words):
                found.append(int(entry.name))
        return found

    def down(self) -> None:
        """Cancel all jobs, stop every daemon, remove the folder."""
        if self.alive("slurmctld"):
            try:
                self("scancel", "--user=root", check=False, timeout=10)
                self.wait(15, "jobs to end", lambda: not self("squeue", "-h", check=False).strip())
            except (ClusterError, subprocess.TimeoutExpired):
                pass
        for daemon in (*(f"slurmd.{n}" for n in NODES), "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.stop(daemon)
        for node in NODES:
            for pid in self._processes_of(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    # -- details

    def _node_states(self) -> list[str]:
        states = self("sinfo", "-hN", "-o", "%N %T", check=False).split("\n")
        for node, state in (line.split() for line in states if line.strip()):
            if state.rstrip("*").startswith(("down", "drain")) and self.alive(f"slurmd.{node}"):
                self("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        return [line.split()[1] for line in states if line.strip()] or ["unknown"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["up", "down", "status", "env"])
    parser.add_argument("--accounting", choices=["dbd", "none"], default="dbd")
    args = parser.parse_args()
    cluster = Cluster(args.accounting)
    if args.verb == "up":
        started = time.monotonic()
        cluster.up()
        print(f"Slurm is up after {time.monotonic() - started:.1f} s. Use it in this shell with:")
        print(f'  eval "$(python3 tests/slurm/cluster.py env --accounting {args.accounting})"')
        print(cluster("sinfo"), end="")
    elif args.verb == "down":
        cluster.down()
        print("Slurm is down.")
    elif args.verb == "env":
        env = cluster.environment()
        print(f"export PATH={shlex.quote(env['PATH'])} SLURM_CONF={shlex.quote(env['SLURM_CONF'])}")
    elif cluster.is_up():
        print(cluster("sinfo"), cluster("squeue"), sep="\n", end="")
    else:
        sys.exit("Slurm is down. Start it: python3 tests/slurm/cluster.py up")


if __name__ == "__main__":
    try:
        main()
    except ClusterError as e:
        sys.exit(f"cluster.py: {e}")
