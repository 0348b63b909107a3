"""Run a workload's program on one rank, or one node, and leave the evidence that a rank of our own trainer leaves.

torchrun starts `python -m dist3dgs.workloads.process --out POINT --events ATTEMPT` in the place of a rank; it reads the
run's spec from the attempt's launch.json, starts the program, copies what it prints into `output.rankN.log` beside the
events, and sees that nothing of it is left when it ends.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from ..config.matrix import read_spec
from ..config.workloads import Application, WorkloadSpec, expand
from ..errors import UserError
from ..files import write_json
from ..monitoring.sampler import GIB
from ..runs.attempts import Attempt
from ..runs.events import EventWriter, events_path
from ..runs.launch_summary import LaunchSummary
from ..runs.provenance import content_digest

#: A port on the node of rank 0, set by the launcher, that nothing of ours listens on.
PORT = "DIST3DGS_WORKLOAD_PORT"
#: Set by the launcher where the ranks have GPUs.
GPUS = "DIST3DGS_WORKLOAD_GPUS"
#: In a COLMAP folder that a packed scene was exported to; written last.
EXPORT_FILE = "export.json"
#: The folder {out}, in the point's.
OUTPUT = "output"
#: This many bytes of the start and of the end of a program's output are kept, and as many go to the attempt's log.
HEAD_BYTES, TAIL_BYTES = 32 << 20, 8 << 20
#: Output is read in blocks of at most this size, and a line without an end is cut after it.
LINE_BYTES = 1 << 16
#: Interval between heartbeats while a program prints.
PULSE_S = 5.0
#: Interval between looks at a program's memory: each reads what the kernel has on every process of the node.
MEASURE_S = 1.0
#: After a request to stop: time for the program to end before it is killed; less than the launcher gives us.
GRACE_S = 45.0


def output_path(attempt: Path, rank: int) -> Path:
    """Return the file with what the program of a rank printed."""
    return Path(attempt, f"output.rank{rank}.log")


def output_paths(attempt: Path) -> list[Path]:
    """List those of all ranks, rank 0 first."""
    return sorted(
        attempt.glob("output.rank*.log"), key=lambda p: int(p.name.split(".")[1].removeprefix("rank"))
    )


def newest_checkpoint(spec: WorkloadSpec, out: Path) -> Path | None:
    """Return the newest file or folder below {out} that the workload's `checkpoint` matches; None without any."""
    if spec.train.checkpoint is None:
        return None
    found = _by_time(spec.train.checkpoint, out)
    return max(found)[1] if found else None


def _by_time(pattern: str, out: Path) -> list[tuple[int, Path]]:
    found = []
    for path in out.glob(pattern):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    return found


def values_of(
    spec: WorkloadSpec, out: Path, environ: Mapping[str, str], loader_workers: int | None = None
) -> dict[str, Any]:
    """Return the templates' variables on this rank.

    Args:
        environ: torchrun's variables; where one process stands for a node, its ranks are the nodes.
        loader_workers: instead of those of the settings.
    """
    layout, app = spec.started, spec.train
    number, local = int(environ.get("RANK", 0)), int(environ.get("LOCAL_RANK", 0))
    node = int(environ.get("GROUP_RANK", 0))
    rank = number if app.launch == "rank" else node * layout.workers_per_node
    return app.variables | {
        "ranks": layout.world_size,
        "nodes": layout.nodes,
        "ranks_per_node": layout.workers_per_node,
        "node_rank": node,
        "rank": rank,
        "local_rank": local,
        "master_addr": environ.get("MASTER_ADDR", "127.0.0.1"),
        "master_port": environ.get(PORT) or environ.get("MASTER_PORT", "29500"),
        "batch_per_rank": spec.global_batch // layout.world_size,
        "global_batch": spec.global_batch,
        "steps": spec.num_steps,
        "images": app.images or spec.num_steps * spec.global_batch,
        "steps_scaler": 1 / spec.global_batch,
        "data": app.data,
        "test_every": app.test_every,
        "out": out,
        "seed": spec.seed,
        "loader_workers": app.loader_workers if loader_workers is None else loader_workers,
        "python": sys.executable,
    }


def environment_of(
    spec: WorkloadSpec, values: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the program's environment, with only those of torchrun's variables that it can use.

    A program that starts its own ranks must not take itself for one of torchrun's.
    """
    kept = {k: v for k, v in environ.items() if not k.startswith("DIST3DGS_")}
    if spec.train.launch == "node":
        ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"}
        ranks |= {"ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"}
        kept = {k: v for k, v in kept.items() if k not in ranks and not k.startswith("TORCHELASTIC_")}
    given = {name: expand(text, values) for name, text in spec.train.environment.items()}
    # An empty value removes a variable: a program may read torchrun's before its own.
    result = {k: v for k, v in (kept | given).items() if v or k not in given}
    return result | ({"CUDA_VISIBLE_DEVICES": ""} if spec.hardware.device == "cpu" else {})


class Checkpoints:
    """Writes an event for each new checkpoint of a program: what a later attempt can go on from.

    Args:
        pattern: of the files below `out`.
    """

    def __init__(self, pattern: str, out: Path, write: EventWriter) -> None:
        self.pattern, self.out, self.write = pattern, out, write
        self._newest = max(_by_time(pattern, out), default=None)
        self._due = time.monotonic() + PULSE_S

    def look(self, at_once: bool = False) -> None:
        """Look for a new one every `PULSE_S`, or at once."""
        if not at_once and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + PULSE_S
        newest = max(_by_time(self.pattern, self.out), default=None)
        if newest is not None and newest != self._newest:
            self._newest = newest
            self.write("checkpoint", step=None, path=str(newest[1]), s=None)


class Program:
    """One run of the program, with everything that it starts."""

    def __init__(
        self,
        argv: list[str],
        environment: dict[str, str],
        write: EventWriter,
        output: Path,
        saves: Checkpoints | None = None,
        phase: str = "step",
    ) -> None:
        self.write, self.output, self.saves, self.phase = write, output, saves, phase
        self.peak_rss_bytes = 0
        self.lines = 0
        # Whatever the program starts becomes our child when its parent ends, so that it can be found.
        _prctl(36, 1)
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        self.stop_at: float | None = None

    def request_stop(self) -> None:
        """Ask the program to end; after `GRACE_S` it is killed."""
        if self.stop_at is None:
            self.stop_at = time.monotonic() + GRACE_S
            self.signal_all(signal.SIGTERM)

    def wait(self) -> int:
        """Return the program's exit status once it has ended and nothing of it is left."""
        reader = threading.Thread(target=self._copy, daemon=True)
        reader.start()
        due = time.monotonic()
        while self.process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() >= due:
                due = time.monotonic() + MEASURE_S
                self._measure()
            if self.saves is not None:
                self.saves.look()
            if self.stop_at is not None and time.monotonic() > self.stop_at:
                self.signal_all(signal.SIGKILL)
        # A child that it left behind may hold the pipe open.
        reader.join(1.0)
        if self.saves is not None:
            self.saves.look(at_once=True)
        left = self._family()
        self.signal_all(signal.SIGKILL)
        psutil.wait_procs(left, timeout=5.0)
        reader.join(10.0)
        return int(self.process.returncode)

    def _copy(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        kept, rest, pulse = _Kept(), b"", time.monotonic()
        with self.output.open("wb" if self.phase == "step" else "ab") as out:
            while block := os.read(stream.fileno(), LINE_BYTES):
                self.lines += block.count(b"\n")
                # Whole lines, as those of all ranks meet in the attempt's log; one without an end is cut.
                whole, end, rest = (rest + block).rpartition(b"\n")
                piece = whole + end
                if len(rest) >= LINE_BYTES:
                    piece, rest = piece + rest, b""
                _write(out, kept.take(piece))
                if time.monotonic() - pulse > PULSE_S:
                    pulse = time.monotonic()
                    self.write("progress", phase=self.phase, step=None, lines=self.lines)
            _write(out, kept.take(rest) + kept.end())

    def _measure(self) -> None:
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        self.peak_rss_bytes = max(self.peak_rss_bytes, total)

    def _family(self) -> list[psutil.Process]:
        return psutil.Process().children(recursive=True)

    def signal_all(self, number: int) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


class _Kept:
    """Keeps the first `HEAD_BYTES` and the last `TAIL_BYTES` of an output, in little more memory than that."""

    def __init__(self) -> None:
        self._room = HEAD_BYTES
        self._tail: deque[bytes] = deque()
        self._tail_bytes = self._left_out = 0

    def take(self, piece: bytes) -> bytes:
        """Return what of the next piece belongs to the start; keep the rest of it for the end."""
        head = piece if len(piece) <= self._room else piece[: piece.rfind(b"\n", 0, self._room) + 1]
        self._room -= len(head)
        if after := piece[len(head) :]:
            self._room = 0
            self._tail.append(after)
            self._tail_bytes += len(after)
            while self._tail_bytes - len(self._tail[0]) > TAIL_BYTES:
                self._tail_bytes -= len(self._tail[0])
                self._left_out += len(self._tail.popleft())
        return head

    def end(self) -> bytes:
        """Return the end of the output, with the number of bytes that are left out before it."""
        tail = b"".join(self._tail)
        if len(tail) > TAIL_BYTES:
            start = tail.find(b"\n", len(tail) - TAIL_BYTES) + 1 or len(tail) - TAIL_BYTES
            self._left_out, tail = self._left_out + start, tail[start:]
        return f"\n... {self._left_out} bytes left out ...\n".encode() + tail if self._left_out else tail


def _write(out: IO[bytes], text: bytes) -> None:
    if not text:
        return
    out.write(text)
    out.flush()
    # Also into the attempt's log, which torchrun passes on: the diagnosis reads it.
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value)  # 1: PR_SET_PDEATHSIG, 36: PR_SET_CHILD_SUBREAPER


def _end_with_parent() -> None:
    _prctl(1, signal.SIGKILL)


def run(spec: WorkloadSpec, out: Path, attempt: Path, summary: LaunchSummary) -> int:
    """Run the program of this rank to its end; the exit status for torchrun.

    summary: of the attempt; the same for all ranks, as the launcher has written it before it started them.
    """
    values = values_of(spec, out, os.environ, summary.loader_workers)
    rank, first = values["rank"], values["rank"] == 0
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    write = EventWriter(events_path(attempt, node), rank)
    ranks = range(rank, rank + (1 if spec.train.launch == "rank" else values["ranks_per_node"]))
    for each in ranks:
        fields = {
            "world_size": values["ranks"],
            "host": node,
            "pid": os.getpid(),
            "device": _device(each, values),
        }
        EventWriter(events_path(attempt, node), each)("start", **fields, device_name=None, versions={})
    if first and (digest := data_digest(spec.train, attempt / "inputs.json")):
        write("scene", digest=digest)
    commands = {"step": [expand(word, values) for word in spec.train.application]}
    if summary.checkpoint is not None:
        told = values | {"checkpoint": summary.checkpoint}
        commands["step"] += [expand(word, told) for word in spec.train.resume]
        if first:
            write("resume", step=None, path=summary.checkpoint)
    if first and spec.train.evaluation:
        commands["evaluate"] = [expand(word, values) for word in spec.train.evaluation]
    environment = environment_of(spec, values, os.environ)
    out.mkdir(parents=True, exist_ok=True)
    for phase, argv in commands.items():
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            setting = "application" if phase == "step" else "evaluation"
            message = f"executable file not found in $PATH: {argv[0]!r}; fix `{setting}` of {spec.scene}"
            write("error", type="FileNotFoundError", message=message, traceback="", phase="startup", step=0)
            return 127
    write("leave", phase="startup", s=0.0)
    pattern = spec.train.checkpoint
    saves = Checkpoints(pattern, out, write) if first and pattern is not None else None
    status, peak_rss_bytes = 0, 0
    for phase, argv in commands.items():
        started = time.time()
        write("enter", phase=phase)
        program = Program(argv, environment, write, output_path(attempt, rank), saves, phase)
        status = _wait(program, write)
        peak_rss_bytes = max(peak_rss_bytes, program.peak_rss_bytes)
        write("leave", phase=phase, s=time.time() - started)
        if status != 0:
            break
    write("memory", peak_rss_gib=peak_rss_bytes / GIB, peak_gpu_gib=None)
    if status == 0:
        if first:
            write("end", status="ok", step=None)
        return 0
    if status < 0 and program.stop_at is None:  # killed: torchrun reports its end as this rank's
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return 128 - status if status < 0 else status


def _wait(program: Program, write: EventWriter) -> int:
    """Return the program's exit status; what asks us to stop asks it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: _stop(program, write, n))
    # The launcher asks a rank that hangs for its stacks, and kills it next; nothing of the program must outlive it.
    signal.signal(signal.SIGUSR1, lambda n, frame: program.signal_all(signal.SIGKILL))
    return program.wait()


def _stop(program: Program, write: EventWriter, number: int) -> None:
    write("signal", signal=signal.Signals(number).name)
    program.request_stop()


def _device(rank: int, values: Mapping[str, Any]) -> str:
    """Name the device of a rank: its GPU where the launcher found any, else the processor."""
    return f"cuda:{rank % values['ranks_per_node']}" if os.environ.get(GPUS) else "cpu"


def data_digest(app: Application, cache: Path) -> str | None:
    """Digest of what a workload trains on: that of its packed scene, or of its input files; None if it has neither."""
    if app.scene is None:
        return inputs_digest(app.inputs, cache) if app.inputs else None
    path = Path(str(app.data), EXPORT_FILE)
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no exported scene; make it with `snakemake {path}`") from None


def run_setup(name: str, app: Application, out: Path, log: Path | None) -> None:
    """Run a workload's set-up and write `out`, which says what was run. Raises `UserError` where it fails."""
    setup = app.setup
    if setup is None:
        raise UserError(f"the workload {name} has no `setup`")
    out.unlink(missing_ok=True)
    values = app.variables | {"python": sys.executable}
    argv = [expand(word, values) for word in setup.command]
    where = f"; its output is in {log}" if log else ""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise UserError(f"setup of the workload {name}: {argv[0]}: {error.strerror}") from None
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    if status := process.wait():
        raise UserError(f"setup of the workload {name} ended with status {status}: {last[:200]}{where}")
    if missing := [path for path in setup.creates if not Path(path).exists()]:
        raise UserError(f"setup of the workload {name} has not made {', '.join(missing)}{where}")
    write_json(out, {"workload": name, "digest": setup_digest(app)})


def setup_digest(app: Application) -> str:
    """Digest of what a workload's set-up depends on: its command and the variables that the command has."""
    setup = app.setup
    assert setup is not None
    text = json.dumps([setup.model_dump(mode="json"), app.setup_variables()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def inputs_digest(inputs: Iterable[str], cache: Path) -> str:
    """Digest of the content of a workload's input files. Raises `UserError` for one that is not there.

    cache: as of `content_digest`; a plain file, made anew.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{path}: no such input; fix `inputs` of the workload in config/workloads.yaml")
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return content_digest(files, cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--events", type=Path, required=True)
    args = parser.parse_args()
    summary = Attempt(args.events).summary()
    spec = read_spec(summary.spec, str(args.events / "launch.json"))
    if not isinstance(spec, WorkloadSpec):
        sys.exit("this runs workloads; a training is started by `dist3dgs launch`")
    sys.exit(run(spec, args.out / OUTPUT, args.events, summary))


if __name__ == "__main__":
    main()
