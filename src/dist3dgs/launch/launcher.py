"""Start one run's ranks, watch them, and leave evidence whatever happens.

    dist3dgs launch --spec "$(dist3dgs spec builtin/replicated/n1g2/r0)" \\
        --scene data/builtin/scene.safetensors --out results/builtin/replicated/n1g2/r0

Never imports torch. Exit status 0 means that the evidence is complete, not that the run went well: a failed
training is a row in the tables, not a hole in the graph. Only being stopped from outside gives another one
(128 + signal), so that a scheduler starts the run again, from its last checkpoint.
"""

import contextlib
import ctypes
import itertools
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .. import __version__
from ..config.matrix import AnySpec, load_spec, run_digest, spec_json
from ..config.naming import Layout, how_to_make
from ..config.workloads import WorkloadSpec
from ..errors import UserError
from ..files import TEMPORARY
from ..monitoring.nvml import driver_version
from ..monitoring.sampler import Monitor, peak_pss_gib, resources_path
from ..records.build import cause_of
from ..runs import resume
from ..runs.attempts import Attempt, attempts, new_attempt, open_attempts, publish, read_state
from ..runs.causes import retries_after
from ..runs.launch_summary import FILE, Ended, LaunchStatus, LaunchSummary, SlurmJob
from ..runs.provenance import code_digest, git_state
from ..slurm import allocation as slurm_allocation
from ..slurm.allocation import GPUS_PER_NODE, Allocation, CoTenancy, limit_gpus, node_name
from ..slurm.outcome import record_failed_part
from ..slurm.retry import EX_TEMPFAIL, next_action, next_loader_workers, take_turn
from ..slurm.site import Site, current_site
from ..workloads import process as workload_process
from . import commands, gsplat_build, node
from .disk_reserve import PROBE, RESERVE, Reserve
from .oom import OomWatch
from .supervisor import Watch, before_time_limit, srun_found_no_controller
from .world_check import check_world

#: After asking the ranks to stop: time for a checkpoint before they are killed.
GRACE_S = 60.0
#: In a Slurm job: how long to wait for the launcher of an earlier job of the point to exit.
LOCK_WAIT_S = 90.0
#: In an attempt's folder while it runs: PyTorch's cache of compiled code.
INDUCTOR = ".inductor"


def launch(
    spec_text: str,
    scene: Path | None,
    out: Path,
    weights: Path | None = None,
    resume_from: Path | None = None,
) -> int:
    """Run one point to its end; return the launcher's exit status. Raises `UserError` before anything is started.

    scene: a packed scene; None for a workload, which has its data in its settings.
    resume_from: a checkpoint, of any layout, to start from where the point has none of its own.
    """
    spec = load_spec(spec_text)
    if not isinstance(spec, WorkloadSpec):
        if scene is None:
            raise UserError(f"{spec.point}: give the packed scene that it trains on: --scene FILE")
        if not scene.is_file():
            raise UserError(f"{scene}: no packed scene{how_to_make(scene)}")
        if resume_from is not None:
            resume.check(resume_from, spec, scene)
    digest = run_digest(spec_json(spec))
    step = slurm_allocation.step()
    if step.task > 0:
        # Status 0: where Slurm ends a step with its first bad exit, task 0 must live to leave the record.
        print(
            f"task {step.task} of {step.tasks}: one launcher per job is enough; task 0 says why",
            file=sys.stderr,
        )
        return 0
    if note := record_failed_part(out, spec_text):
        print(f"{spec.point}: {note}", file=sys.stderr)
        return 0
    here, site = slurm_allocation.current(), current_site()
    if here is not None:
        if here.exclusive and spec.hardware.device != "cpu":
            limit_gpus(os.environ, spec.started.workers_per_node)
        decision = take_turn(out, digest, here, site)
        print(f"Slurm job {here.job_id}: {decision.reason}", file=sys.stderr, flush=True)
        if decision.action != "train":
            publish(out, decision.reason, spec_digest=digest, spec=spec.model_dump(mode="json"))
            return 0
    with _lock(out, wait_s=0.0 if here is None else LOCK_WAIT_S):
        _forget_finished(out, digest)
        if isinstance(spec, WorkloadSpec):
            _forget_other_settings(out, digest, workload_process.OUTPUT)
        elif spec.parts:
            _forget_other_settings(out, digest, "checkpoints")
        _remove_leftovers(out)
        (out / FILE).unlink(missing_ok=True)
        try:
            for restart in range(spec.hardware.max_restarts + 1):
                run = _Run(spec, digest, scene, out, new_attempt(out), weights, here, site)
                run.resume_from = resume_from
                run.may_restart = restart < spec.hardware.max_restarts
                status = run.execute()
                if not run.restarts:
                    break
            return status
        finally:
            _remove_leftovers(out)


class _Run:
    """One attempt."""

    def __init__(
        self, spec: AnySpec, digest: str, scene: Path | None, out: Path, attempt: Attempt, weights: Path | None,
        allocation: Allocation | None, site: Site,
    ) -> None:  # fmt: skip
        self.spec, self.scene, self.out, self.attempt, self.weights = spec, scene, out, attempt, weights
        self.layout, self.digest = spec.started, digest
        self.allocation, self.site = allocation, site
        self.may_restart = self.restarts = False
        self.resume_from: Path | None = None
        self.summary = LaunchSummary(
            spec_digest=digest,
            spec=spec.model_dump(mode="json"),
            attempt=attempt.number,
            status="running",
            started_at=time.time(),
            host=node_name(),
            cores=len(os.sched_getaffinity(0)),
            cpu=_cpu_model(),
            driver=driver_version() if spec.hardware.device != "cpu" else None,
            python=platform.python_version(),
            dist3dgs=__version__,
            code_digest=code_digest(),
            **git_state(),
            slurm=_slurm_job(self.allocation),
            scene_file=str(scene) if scene is not None else None,
            argv=[],
            **(_start_of_workload(spec, out, digest) if isinstance(spec, WorkloadSpec) else {}),
        )

    def execute(self) -> int:
        # To the end of the attempt: another Ctrl-C while the summary is written would leave a run that seems to run.
        with contextlib.ExitStack() as self._stoppers:
            return self._execute()

    def _execute(self) -> int:
        self._save()
        # Compare the layers' views of the world before anything is started.
        problem = check_world(self.spec, self.allocation)
        self._update(world=problem.layers, world_warning=problem.warning.strip() or None)
        if problem.message:
            self.attempt.log_path.write_text(problem.message + "\n", encoding="utf-8")
            self._update(refused=problem.message)
            print(problem.message, file=sys.stderr)
            return self._finish("refused", None)
        argv, environment = self._command(problem.uses_gpus)
        self._update(argv=argv)
        reserve = Reserve(self.attempt.folder)
        self._save()
        memory = OomWatch()
        tenancy = CoTenancy(self.allocation).start() if self.allocation is not None else None
        with self.attempt.log_path.open("ab", buffering=0) as log:
            log.write(f"{problem.warning}$ {shlex.join(argv)}\n".encode())
            is_ours = not isinstance(self.spec, WorkloadSpec)
            if is_ours and problem.uses_gpus and (status := self._prepare(environment, log)):
                return self._finish("failed", status)
            watch = self._start(argv, environment, log)
            with before_time_limit(self.allocation, lambda number: watch.request_stop(number)) as limit:
                self._wait(watch)
                while self._found_no_controller(watch):
                    watch = self._start(argv, environment, log)
                    self._wait(watch)
            process = watch.process
        if tenancy is not None:
            self._update(co_tenancy=tenancy.stop())
        if (full := reserve.release()) is not None:
            self._update(disk_full=full)
        if limit.reached:
            self._update(ended=Ended(cause="time_limit", note=limit.note, at=time.time()))
        elif process.returncode != 0 and (note := memory.note()):
            self._update(ended=Ended(cause="host_oom", note=note, at=time.time()))
        self._update(
            peak_pss_gib=peak_pss_gib(self.attempt.resources_paths()),
            signal=watch.stop_signal,
            stalled=watch.stalled,
        )
        return self._finish(self._status(watch), process.returncode)

    def _start(self, argv: list[str], environment: dict[str, str], log: IO[bytes]) -> Watch:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        return Watch(process, self.attempt, self.spec, GRACE_S)

    def _wait(self, watch: Watch) -> None:
        monitor = self._monitor(watch.process.pid)
        self._stoppers.enter_context(_forwarding(watch))
        watch.wait()
        if monitor is not None:
            monitor.stop()

    def _found_no_controller(self, watch: Watch) -> bool:
        """Return True if srun started nothing because the controller was away in that moment and has answered since."""
        if (
            self.allocation is None
            or self.layout.nodes == 1
            or watch.stop_signal
            or not watch.process.returncode
        ):
            return False
        if not srun_found_no_controller(self.attempt.log_path):
            return False
        return slurm_allocation.wait_for_controller(self.allocation.job_id, slurm_allocation.PATIENCE_S)

    def _monitor(self, pid: int) -> Monitor | None:
        """Start sampling this node; of several, each node's first process starts its own sampler (launch/node.py)."""
        if self.layout.nodes > 1:
            return None
        return Monitor(pid, resources_path(self.attempt.folder, node_name()), node_name()).start()

    def _prepare(self, environment: dict[str, str], log: IO[bytes]) -> int:
        """Build gsplat's extension if it is missing; return the exit status. Of several nodes each builds its own."""
        software = commands.software_of(self.site)
        if self.layout.nodes > 1 or (software.image is None and gsplat_build.is_ready()):
            return 0
        command = [*commands.wrapped(software, uses_gpus=True), software.python]
        command += ["-m", gsplat_build.MODULE, gsplat_build.HERE]
        return gsplat_build.prepare_in_child(command, environment, log, _end_with_parent)

    def _command(self, uses_gpus: bool) -> tuple[list[str], dict[str, str]]:
        """Return the command line and environment of the ranks."""
        cpus = len(os.sched_getaffinity(0))
        if self.allocation is not None and self.allocation.cpus_per_node:
            cpus = self.allocation.cpus_per_node
        files = ["--out", str(self.out), "--events", str(self.attempt.folder)]
        started = self.layout  # what torchrun starts
        if isinstance(self.spec, WorkloadSpec):
            worker = ["-m", "dist3dgs.workloads.process", *files]
            if self.spec.train.launch == "node":
                started = Layout(self.layout.nodes, 1)
        else:
            worker = ["-m", "dist3dgs.train.worker", "--spec", spec_json(self.spec)]
            worker += ["--scene", str(self.scene), *files]
            if self.resume_from is not None:
                worker += ["--resume-from", str(self.resume_from)]
        port = None
        if self.allocation is not None and self.layout.nodes > 1:
            port = commands.choose_port(self.allocation.job_id)
        argv = commands.launch_argv(
            started, worker, cpus_per_node=cpus, allocation=self.allocation, port=port,
            uses_gpus=uses_gpus, software=commands.software_of(self.site),
            join_timeout_s=self.spec.hardware.join_timeout_s,
        )  # fmt: skip
        environment = commands.launch_environment(
            os.environ, self.layout, self.allocation, cpus_per_node=cpus
        )
        threads = self.spec.hardware.threads_per_rank or max(1, cpus // self.layout.workers_per_node)
        # Libraries would otherwise take all cores in each rank.
        environment |= {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # Waiting threads sleep: spinning ones would take cores from other ranks and jobs.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        environment["PYTHONUNBUFFERED"] = "1"
        if isinstance(self.spec, WorkloadSpec):
            environment |= self._workload_environment(uses_gpus)
        elif uses_gpus:
            environment[node.USES_GPUS] = "1"
        if uses_gpus:
            environment |= commands.gpu_settings(environment)
            if self.allocation is not None and self.allocation.exclusive:
                environment[GPUS_PER_NODE] = str(self.layout.workers_per_node)
        # PyTorch makes this folder when DistributedDataParallel is imported, in /tmp unless told otherwise.
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.attempt.folder.resolve() / INDUCTOR))
        # A bounded buffer of each rank's last collectives, which NCCL's watchdog dumps into the attempt's folder.
        environment |= commands.flight_recorder(
            self.attempt.folder.resolve(), any_torch=isinstance(self.spec, WorkloadSpec)
        )
        environment["DIST3DGS_ATTEMPT"] = str(self.attempt.folder.resolve())
        if self.weights is not None:
            environment["DIST3DGS_LPIPS"] = str(self.weights.resolve())
        return argv, environment

    def _workload_environment(self, uses_gpus: bool) -> dict[str, str]:
        """Tell the process beside the program which port is free for it, and whether its ranks have GPUs."""
        job = self.allocation.job_id if self.allocation is not None else os.getpid()
        free = filter(commands.port_is_free, commands.port_candidates(job))
        # The first one is the rendezvous'.
        port = next(itertools.islice(free, 1, None), None)
        if port is None:
            raise UserError("no free port for the program on this node; see `ss -ltnp`")
        gpus = {workload_process.GPUS: "1"} if uses_gpus else {}
        return {workload_process.PORT: str(port), **gpus}

    def _status(self, watch: Watch) -> LaunchStatus:
        if watch.process.returncode == 0 and _ended(self.attempt):
            return "ok"
        return "stopped" if watch.stop_signal else "failed"

    def _finish(self, status: LaunchStatus, returncode: int | None) -> int:
        self._update(status=status, returncode=returncode, finished_at=time.time())
        ended = self.summary.ended is not None
        if status != "ok" and (ended or status != "stopped"):
            self._update(cause=cause_of(self.summary, self.attempt))
        # Ended by the scheduler or for want of memory: a restart here ends the same way, unless with fewer loaders.
        fewer = self.summary.cause == "host_oom" and bool(self.summary.loader_workers)
        self.restarts = self.may_restart and (fewer or not ended) and retries_after(self.summary.cause) > 0
        self._save()
        if self.restarts:
            print(f"{self.spec.point}: {self.summary.cause}; again from the last checkpoint", file=sys.stderr)
            return 1
        # A run that a signal stopped, and not its time limit, was asked to end: nothing is decided here.
        asked_to_stop = status == "stopped" and self.summary.ended is None
        if self.allocation is not None and status != "ok" and not asked_to_stop:
            me = self.allocation.job_id, self.allocation.restarts
            decision = next_action(self.out, self.digest, self.site, me=me, ignore_running=True)
            print(f"Slurm job {self.allocation.job_id}: {decision.reason}", file=sys.stderr, flush=True)
            if decision.action == "train":
                return EX_TEMPFAIL
        elif status == "stopped":
            return 128 + signal.Signals[self.summary.signal or "SIGTERM"].value
        # The rule's output: only now, so that a killed launcher leaves none and the run is started again.
        self._update(published=True)
        self.summary.save(self.attempt.folder, self.out)
        return 0

    def _update(self, **changes: Any) -> None:
        self.summary = self.summary.updated(**changes)

    def _save(self) -> None:
        self.summary.save(self.attempt.folder)


def _forget_finished(out: Path, digest: str) -> None:
    """Remove what is left of a finished run that is asked for again: its checkpoints must not shorten it."""
    same = [s for a in attempts(out) if (s := a.summary()).spec_digest == digest]
    if same and same[-1].status == "ok":
        for folder in ("checkpoints", workload_process.OUTPUT):
            shutil.rmtree(out / folder, ignore_errors=True)


def _forget_other_settings(out: Path, digest: str, folder: str) -> None:
    """Remove what was written under other settings: a workload's program must not go on from those checkpoints, nor a
    job of a point from what came of other blocks.
    """
    if (tried := attempts(out)) and tried[-1].summary().spec_digest not in (None, digest):
        shutil.rmtree(out / folder, ignore_errors=True)


def _start_of_workload(spec: WorkloadSpec, out: Path, digest: str) -> dict[str, Any]:
    """Return the loader workers of a workload's next attempt and the checkpoint it goes on from, for its summary."""
    before = [state for a in open_attempts(out, digest) if not (state := read_state(a)).running]
    workers, why = next_loader_workers(before)
    if workers is not None:
        print(f"{spec.point}: {why}", file=sys.stderr, flush=True)
    checkpoint = workload_process.newest_checkpoint(spec, out / workload_process.OUTPUT)
    return {
        "loader_workers": spec.train.loader_workers if workers is None else workers,
        "loader_workers_reason": why,
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }


def _remove_leftovers(out: Path) -> None:
    """Delete what a killed launcher or rank left behind; no process of this point runs now."""
    for attempt in attempts(out):
        shutil.rmtree(attempt.folder / INDUCTOR, ignore_errors=True)
        for path in (
            attempt.folder / RESERVE,
            attempt.folder / PROBE,
            *attempt.folder.glob("stacks.rank*.txt"),
        ):
            path.unlink(missing_ok=True)
    for folder in (out, *(a.folder for a in attempts(out)), out / "checkpoints", out / "renders"):
        for path in folder.glob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)


def _ended(attempt: Attempt) -> bool:
    return any(e["event"] == "end" and e.get("status") == "ok" for e in attempt.events())


@contextlib.contextmanager
def _lock(out: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the point's lock: one launcher at a time. The kernel releases it however the process ends.

    wait_s: how long to wait for a launcher that is about to end, as after Slurm has requeued its job.
    """
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + wait_s
    path = out / ".lock"
    while True:
        with path.open("w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(0.5)
                    continue
                raise UserError(
                    f"{out}: another launcher is running this point; wait for it, or find it with: fuser {path}"
                ) from None
            except OSError:  # a file system without locks: the scheduler is the only guard then
                pass
            if not _is_at(f, path):  # its owner has ended and removed it since it was opened
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(f: IO[Any], path: Path) -> bool:
    """Return True if `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the launcher dies. Runs in torchrun's process, before it starts."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


@contextlib.contextmanager
def _forwarding(watch: Watch) -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into an orderly stop of the ranks."""
    stoppers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {s: signal.signal(s, lambda number, frame: watch.request_stop(number)) for s in stoppers}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _slurm_job(allocation: Allocation | None) -> SlurmJob | None:
    if allocation is None:
        return None
    return SlurmJob(
        job_id=allocation.job_id,
        nodes=[n.name for n in allocation.nodes],
        partition=allocation.partition,
        exclusive=allocation.exclusive,
        restarts=allocation.restarts,
        time_left_s=allocation.time_left_s,
        log=allocation.log,
    )


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or None
