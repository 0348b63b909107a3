"""The kernel's count of processes killed for memory: from folders as Slurm makes them, and from the real kernel."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs.config.matrix import spec_json
from dist3dgs.launch.oom import ROOT, OomWatch, oom_kills
from tests.unit.helpers import tiny

V2 = "0::/system.slice/slurmstepd.scope/job_7/step_batch/user/task_0\n"
V1 = "9:name=systemd:/\n4:cpu,memory:/slurm/uid_0/job_7/step_0/task_0\n0::/\n"


def write(path: Path, kills: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"low 0\noom 3\noom_kill {kills}\noom_group_kill 0\n")


def test_version_2_counts_the_whole_job(tmp_path):
    """Ranks of several nodes are a step of their own beside the launcher's."""
    (tmp_path / "cgroup").write_text(V2)
    events = tmp_path / "fs/system.slice/slurmstepd.scope/job_7/memory.events"
    write(events, 1)
    watch = OomWatch(tmp_path / "cgroup", tmp_path / "fs")
    assert watch.note() is None
    write(events, 3)
    note = watch.note()
    assert note is not None and "killed 2 process(es)" in note


def test_version_1_counts_each_folder_for_itself(tmp_path):
    (tmp_path / "cgroup").write_text(V1)
    job = tmp_path / "fs/memory/slurm/uid_0/job_7"
    for folder, kills in ((job, 0), (job / "step_0/task_0", 1), (job / "step_1/task_0", 2)):
        write(folder / "memory.oom_control", kills)
    assert oom_kills(tmp_path / "cgroup", tmp_path / "fs") == 3


def test_without_slurm_it_is_the_own_cgroup(tmp_path):
    (tmp_path / "cgroup").write_text("0::/user.slice/a.scope\n")
    write(tmp_path / "fs/user.slice/a.scope/memory.events", 4)
    assert oom_kills(tmp_path / "cgroup", tmp_path / "fs") == 4


def test_where_it_cannot_be_told_nothing_is_said(tmp_path):
    assert oom_kills(tmp_path / "none", tmp_path) is None
    (tmp_path / "cgroup").write_text("0::/\nnonsense\n")
    assert OomWatch(tmp_path / "cgroup", tmp_path).note() is None


SCRIPT = """
import subprocess, sys
from dist3dgs.launch.oom import OomWatch
watch = OomWatch()
eat = "x = []\\nwhile True: x.append(bytearray(b'x' * 10_000_000))"
print(subprocess.run([sys.executable, "-c", eat]).returncode, watch.note())
"""


def test_the_kernel_counts(tmp_path):
    """A child with more memory than its cgroup has, under the launcher's eyes."""
    version_1 = (ROOT / "memory/memory.limit_in_bytes").exists()
    name = f"dist3dgs-test-{os.getpid()}"
    folder = (ROOT / "memory" if version_1 else ROOT) / name
    limit = folder / ("memory.limit_in_bytes" if version_1 else "memory.max")
    try:
        folder.mkdir()
        limit.write_text(str(100 << 20))
    except OSError as e:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"cgroups cannot be made here: {e}")
    try:
        words = [
            "sh",
            "-c",
            f'echo $$ > "{folder}/cgroup.procs" && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            SCRIPT,
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    finally:
        folder.rmdir()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("-9 the kernel killed 1 process(es)"), done.stdout


def test_a_rank_that_the_kernel_killed_is_a_lack_of_memory(tmp_path, monkeypatch):
    """To the launcher it is a rank that died of SIGKILL; the count says why."""
    from dist3dgs.launch import launcher

    class Killed(OomWatch):
        def note(self) -> str | None:
            return "the kernel killed 1 process(es)"

    (tmp_path / "scene").touch()
    monkeypatch.setattr(launcher, "OomWatch", Killed)
    monkeypatch.setattr(launcher.commands, "launch_argv", lambda *a, **k: ["sh", "-c", "kill -9 $$"])
    assert launcher.launch(spec_json(tiny.spec("n1g1")), tmp_path / "scene", tmp_path / "out") == 0
    failure = tiny.judged(tmp_path / "out").failure
    assert failure is not None and failure.cause == "host_oom" and "mem_gib_per_gpu" in (failure.remedy or "")
