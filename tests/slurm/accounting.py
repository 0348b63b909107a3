"""slurmdbd, its MariaDB and the accounts of a test cluster."""

import shutil
import subprocess
from typing import TYPE_CHECKING

from daemons import PATH

if TYPE_CHECKING:
    from cluster import Cluster


def start_database(cluster: "Cluster", port: int) -> None:
    if cluster.alive("mariadbd"):
        return
    data, sock = cluster.root / "mysql", cluster.run / "mysqld.sock"
    if not (data / "mysql").is_dir():
        install = ["--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        cluster.daemon("mariadb-install-db", *install, "--auth-root-authentication-method=socket")
    program = shutil.which("mariadbd", path=PATH) or "mariadbd"
    files = [f"--datadir={data}", f"--socket={sock}", f"--pid-file={cluster.run}/mariadbd.pid"]
    network = ["--bind-address=127.0.0.1", f"--port={port}"]
    innodb = ["buffer-pool-size=64M", "lock-wait-timeout=900", "flush-log-at-trx-commit=0"]
    argv = [program, "--no-defaults", "--user=root", *files, *network, *(f"--innodb-{o}" for o in innodb)]
    with (cluster.root / "log/mariadb.log").open("ab") as log:
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    client = ["--no-defaults", f"--socket={sock}"]
    cluster.wait(60, "MariaDB", lambda: not _run(["mariadb-admin", *client, "ping"]).returncode)
    grants = "".join(
        f"CREATE USER IF NOT EXISTS 'slurm'@'{h}' IDENTIFIED BY 'slurm'; "
        f"GRANT ALL ON slurm_acct_db.* TO 'slurm'@'{h}'; "
        for h in ("%", "localhost")
    )
    _run(["mariadb", *client, "-e", f"CREATE DATABASE IF NOT EXISTS slurm_acct_db; {grants}"], check=True)


def start_dbd(cluster: "Cluster") -> None:
    if not cluster.alive("slurmdbd"):
        cluster.daemon("slurmdbd")
    cluster.wait(60, "slurmdbd", lambda: cluster.works("sacctmgr", "-nP", "list", "cluster"))
    if "mini" not in cluster("sacctmgr", "-nP", "list", "cluster", "format=cluster").split():
        cluster("sacctmgr", "-iQ", "add", "cluster", "mini")


def add_accounts(cluster: "Cluster") -> None:
    """`lab` may use everything, jobs of `poor` at most two GPUs. The controller must have made GPUs known."""
    if "poor" in cluster("sacctmgr", "-nP", "list", "account", "format=account").split():
        return
    cluster.wait(
        30, "the GPU count", lambda: "gpu" in cluster("sacctmgr", "-nP", "list", "tres", "format=name")
    )
    for account, limits in (("lab", []), ("poor", ["MaxTRESPerJob=gres/gpu=2"])):
        cluster("sacctmgr", "-iQ", "add", "account", account, "Cluster=mini", f"Description={account}")
        cluster("sacctmgr", "-iQ", "add", "user", "root", f"Account={account}", *limits)
    cluster("sacctmgr", "-iQ", "modify", "user", "root", "set", "DefaultAccount=lab")


def _run(argv: list[str], check: bool = False) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=check)
