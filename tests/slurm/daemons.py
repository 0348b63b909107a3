"""Programs of a test cluster: started into the background, found again by their pid files, stopped."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PATH = f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"


class ClusterError(RuntimeError):
    """The cluster cannot be started here; the message says what to do."""


class Daemons:
    """The programs whose pid files are in `root`/run and whose logs are in `root`/log."""

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, root / "run"

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        return dict(environ)

    def daemon(self, program: str, *args: str, env: Mapping[str, str] | None = None) -> None:
        """Start a program that puts itself into the background (or does its work and ends)."""
        argv = [shutil.which(program, path=PATH) or program, *args]
        with (self.root / f"log/{program}.start.log").open("ab") as log:
            environ = self.environment() | {"PATH": PATH} | dict(env or {})
            done = subprocess.run(
                argv, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120, check=False
            )
        if done.returncode != 0:
            tail = Path(log.name).read_text(errors="replace").strip().splitlines()[-5:]
            raise ClusterError(f"{shlex.join(argv)} failed: {' / '.join(tail)} (logs: {self.root}/log)")

    def pid(self, daemon: str) -> int | None:
        try:
            return int((self.run / f"{daemon}.pid").read_text())
        except (OSError, ValueError):
            return None

    def alive(self, daemon: str) -> bool:
        """Whether the pid file's process runs and is this program (pids are reused)."""
        pid = self.pid(daemon)
        try:
            return pid is not None and Path(f"/proc/{pid}/comm").read_text().strip() == daemon.split(".")[0]
        except OSError:
            return False

    def signal(self, daemon: str, number: signal.Signals) -> None:
        pid = self.pid(daemon)
        if pid is not None and self.alive(daemon):
            os.kill(pid, number)

    def stop(self, daemon: str) -> None:
        self.signal(daemon, signal.SIGTERM)
        try:
            self.wait(15, f"{daemon} to stop", lambda: not self.alive(daemon))
        except ClusterError:
            self.signal(daemon, signal.SIGKILL)
        (self.run / f"{daemon}.pid").unlink(missing_ok=True)

    def wait(self, seconds: float, what: str, done: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise ClusterError(f"waited {seconds:.0f} s for {what}; see the logs in {self.root}/log")
            time.sleep(0.1)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
