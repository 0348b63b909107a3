"""The failure drill: every failure injected into a real training on the real Slurm, and what became of it.

    python scripts/slurm/drill.py --out docs/benchmarks/slurm-drill.md

Each drill has a study and a Snakemake of its own; they run side by side on the same cluster. Times are read from what
the runs left behind (launch.json, events.*.jsonl, Snakemake's log), seconds after the injection.
"""

import argparse
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/slurm"))

import yaml
from cluster import Cluster
from study import Study

from dist3dgs.config.naming import Layout

#: Long enough to be broken in the middle, short enough to be finished twice.
STEPS = {"steps": 240, "checkpoint_every": 40}
BREAK_AT = 90
#: Held ranks are let run for so long at a time until they have come to their step.
SLICE_S = 0.05
#: On two cores more of them wait for each other until time limits are met that none was meant to meet.
SIDE_BY_SIDE = 6


@dataclass
class Outcome:
    """What happened in one drill. Times in seconds after the injection."""

    name: str
    study: Study
    layout: str
    injected_at: float
    noticed_s: float | None = None
    resumed_s: float | None = None
    done_s: float | None = None
    steps_lost: int | None = None
    exit_code: int | None = None
    #: When the controller was away, from and until, by the clock of `time.time`.
    away: tuple[float, float] | None = None

    @property
    def record(self) -> dict[str, Any]:
        return self.study.record(self.layout)

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return self.study.attempts(self.layout)

    @property
    def ends(self) -> list[str | None]:
        """How each attempt ended: a cause, or ok."""
        return [
            (a.get("ended") or {}).get("cause") or a.get("cause") or a.get("status") for a in self.attempts
        ]

    @property
    def first_steps(self) -> list[int]:
        """The step each attempt began with."""
        firsts: dict[int, int] = {}
        for e in self.study.events(self.layout, "step"):
            firsts.setdefault(e["attempt"], e["step"])
        return [firsts[k] for k in sorted(firsts)]

    def measure(self) -> "Outcome":
        """Fill in the times from the evidence."""
        first, events = self.attempts[0], self.study.events(self.layout)
        later = [
            e["t"]
            for e in events
            if e["event"] == "resume" and e["attempt"] > 0 and e["t"] > self.injected_at
        ]
        ended = (first.get("ended") or {}).get("at") or first.get("finished_at")
        self.noticed_s = ended - self.injected_at if ended else None
        self.resumed_s = min(later) - self.injected_at if later else None
        self.done_s = (self.study.point(self.layout) / "record.json").stat().st_mtime - self.injected_at
        if len(self.first_steps) > 1:
            before = max(e["step"] for e in events if e["event"] == "step" and e["attempt"] == 0)
            self.steps_lost = before - (self.first_steps[1] - 1)
        return self


class Held:
    """The ranks of a run, stopped: on a machine of any speed the run is not over before what befalls it has come.

    They run in slices from their start on, so that they are held close to the step that is wanted.
    """

    def __init__(self, study: Study, layout: str, at: int) -> None:
        self.study = study
        world_size = Layout.parse(layout).world_size
        study.wait(lambda: len(study.events(layout, "start")) == world_size, f"{layout}: its ranks", 400)
        self.pids = [e["pid"] for e in study.events(layout, "start")]
        self._signal(signal.SIGSTOP)
        study.wait(lambda: self._slice() or study.last_step(layout) >= at, f"{layout}: step {at}", 400)
        study.wait(lambda: all(map(_is_held, self.pids)), f"{layout}: its ranks to be held", 60)

    def release_when_told_to_stop(self, seconds: float = 300) -> None:
        """Let them go on once each has a SIGTERM to answer, or is gone."""
        self.study.wait(
            lambda: all(map(_is_told_to_stop, self.pids)), "the ranks to be told to stop", seconds
        )
        self.release()

    def release(self) -> None:
        self._signal(signal.SIGCONT)

    def _slice(self) -> None:
        self._signal(signal.SIGCONT)
        time.sleep(SLICE_S)
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _status(pid: int) -> dict[str, str]:
    """Linux's fields about a process; none if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {k: v.strip() for k, v in (line.split(":", 1) for line in lines if ":" in line)}


def _is_held(pid: int) -> bool:
    return _status(pid).get("State", "").startswith(("T", "t"))


def _is_told_to_stop(pid: int) -> bool:
    status = _status(pid)
    if not status or status["State"].startswith("Z"):
        return True
    return bool(int(status["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)


@contextlib.contextmanager
def _killed_on_error(snakemake: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.killpg(snakemake.pid, signal.SIGKILL)
        raise


class Drills:
    """All drills on one cluster; each method injects one failure and returns its outcome."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        #: Set once the drill that must start alone has started.
        self.may_start = threading.Event()

    def _study(
        self,
        name: str,
        layout: str,
        *,
        train: dict[str, Any] | None = None,
        profile: dict[str, Any] | None = None,
        **site: Any,
    ) -> Study:
        folder = self.folder / name
        folder.mkdir(parents=True)
        settings = {"train": {**STEPS, **(train or {})}, "site": site, "profile": profile or {}}
        return Study(folder, self.cluster, layouts=[layout], **settings)

    def _broken(
        self,
        name: str,
        layout: str,
        inject: Callable[[Study, int], None],
        *,
        timeout: float = 900,
        **options: Any,
    ) -> Outcome:
        """Run a study, inject once its first attempt is past a checkpoint, let it come to its end."""
        study = self._study(name, layout, **options)
        snakemake = study.start("train_all")
        with _killed_on_error(snakemake):
            held = Held(study, layout, BREAK_AT)
            job = study.attempts(layout)[0]["slurm"]["job_id"]
            outcome = Outcome(name, study, layout, time.time())
            inject(study, job)
            held.release_when_told_to_stop()
            outcome.exit_code = snakemake.wait(timeout)
        return outcome.measure()

    def _release_requeued(self, study: Study, job: int) -> None:
        """Slurm holds a requeued job back for two minutes; the drill releases it as soon as it may run."""

        def runs_again() -> bool:
            shown = self.cluster("scontrol", "-o", "show", "job", str(job), check=False)
            if "Restarts=0" not in shown and "JobState=PENDING" in shown:
                self.cluster("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            return "Restarts=0" not in shown and "JobState=RUNNING" in shown

        study.wait(runs_again, f"job {job} to run again", 300)

    # -- the failures

    def rank_killed(self) -> Outcome:
        """SIGKILL to one of two ranks."""

        def inject(study: Study, job: int) -> None:
            os.kill(next(e["pid"] for e in study.events("n1g2", "start") if e["rank"] == 1), signal.SIGKILL)

        return self._broken("one rank killed", "n1g2", inject, gpu_request="none")

    def cancelled(self) -> Outcome:
        """The user's scancel."""

        def inject(study: Study, job: int) -> None:
            self.cluster("scancel", str(job))

        return self._broken("scancel by the user", "n1g1", inject, gpu_request="none")

    def preempted(self) -> Outcome:
        """A job of higher priority takes the node for five seconds."""

        def inject(study: Study, job: int) -> None:
            account = ["-A", "lab"] if self.cluster.accounting == "dbd" else []
            high = ["sbatch", "-p", "high", *account, "--gres=gpu:4", "-t", "1", "-o", "/dev/null"]
            self.cluster(*high, "--wrap", "sleep 5")
            self._release_requeued(study, job)

        return self._broken("preempted and requeued", "n1g1", inject, gpu_partition="low", gpu_type="l40s")

    def node_lost(self) -> Outcome:
        """The node's slurmd, step daemons and processes are killed at once."""

        def inject(study: Study, job: int) -> None:
            self.cluster.kill_node(study.attempts("n1g1")[0]["slurm"]["nodes"][0])
            self._release_requeued(study, job)

        outcome = self._broken("node lost", "n1g1", inject)
        self.cluster.start_node(outcome.attempts[0]["slurm"]["nodes"][0])
        return outcome

    def time_limit(self) -> Outcome:
        """Two minutes for a run that takes longer: stopped before the limit, submitted again with more time.

        Held from its first steps on, the run takes longer on a machine of any speed, and not much longer. It starts
        alone, as its limit does not wait for a machine that is busy starting other drills.
        """
        try:
            study = self._study("time limit", "n1g1", gpu_request="none", runtime_min=2)
            snakemake = study.start("train_all")
            with _killed_on_error(snakemake):
                held = Held(study, "n1g1", at=1)
                self.may_start.set()
                held.release_when_told_to_stop()
                code = snakemake.wait(900)
        finally:
            self.may_start.set()
        first = study.attempts("n1g1")[0]
        return Outcome("time limit", study, "n1g1", first["ended"]["at"], exit_code=code).measure()

    def out_of_memory(self) -> Outcome:
        """Less memory than the ranks need: killed, submitted again with half as much again."""
        tight = {"mem_gib_per_gpu": 0.05, "cpus_per_gpu": 1}
        study = self._study("memory", "n1g3", gpu_request="none", **tight)
        code = study.run("train_all", timeout=900)
        return Outcome(
            "host out of memory", study, "n1g3", study.attempts("n1g3")[0]["started_at"], exit_code=code
        ).measure()

    def loaders_out_of_memory(self) -> Outcome:
        """More data loaders than the job's memory holds: killed, submitted again with half as many."""
        study = self._study("loaders", "n1g1", gpu_request="none", mem_gib_per_gpu=1.5)
        study.pair = "planner/small"
        entry = {
            "loader_workers": 4,
            "variants": {"small": {"loader_gib": 0.2}},
            "process_gib": None,
            "loader_gib": None,
        }
        value = {"workload_library": {"planner": entry}}
        (study.folder / "loaders.yaml").write_text(yaml.safe_dump(value))
        # Without stated sizes, by which it would be refused before it is submitted.
        code = study.run("--configfile", "loaders.yaml", "--", study.target("n1g1"), timeout=900)
        began = study.attempts("n1g1")[0]["started_at"]
        return Outcome("loaders out of memory", study, "n1g1", began, exit_code=code).measure()

    def refused(self) -> Outcome:
        """Two nodes of a partition of one: refused, recorded with the reason; the other point goes on."""
        name = "too many nodes"
        study = self._study(name, "n2g1", gpu_request="none", train={"steps": 60})
        path = study.folder / "config/config.yaml"
        path.write_text(path.read_text().replace("- n2g1", "- n2g1\n- n1g1"))
        return self._refused(name, study, "n2g1")

    def too_many_gpus(self) -> Outcome:
        return self._refused_everywhere("too many GPUs", "n1g8")

    def too_long(self) -> Outcome:
        return self._refused_everywhere("time over the limit", runtime_min=2000, max_runtime_min=3000)

    def bad_account(self) -> Outcome:
        """An account that is not there: no job at all can be submitted, and the point gets its row all the same."""
        return self._refused_everywhere("bad account", account="nobody")

    def _refused_everywhere(self, name: str, layout: str = "n1g1", **site: Any) -> Outcome:
        return self._refused(name, self._study(name, layout, train={"steps": 60}, **site), layout)

    def _refused(self, name: str, study: Study, layout: str) -> Outcome:
        started = time.time()
        snakemake = study.start("train_all")
        with _killed_on_error(snakemake):
            study.wait(lambda: "Job stats:" in study.log(), "the graph", 200)
            graph = time.time()
            study.wait(lambda: "cannot be submitted" in study.log(), "the reason", 200)
            said = time.time()
            code = snakemake.wait(900)
        outcome = Outcome(name, study, layout, started, exit_code=code).measure()
        outcome.noticed_s = said - graph
        return outcome

    def never_starts(self) -> Outcome:
        """A module that is not there ends every job before the launcher has started."""
        name, profile = "job dies before the launcher", {"precommand": "module load nothing/1"}
        study = self._study(name, "n1g1", train={"steps": 60}, gpu_request="none", profile=profile)
        started = time.time()
        code = study.run("train_all", timeout=300)
        return Outcome(name, study, "n1g1", started, exit_code=code).measure()

    def interrupted(self) -> Outcome:
        """Ctrl-C on Snakemake, which cancels its jobs; the same command again goes on where they were."""
        study = self._study("Ctrl-C on Snakemake", "n1g1", gpu_request="none")
        first = study.start("train_all")
        with _killed_on_error(first):
            held = Held(study, "n1g1", BREAK_AT)
            outcome = Outcome("Ctrl-C on Snakemake", study, "n1g1", time.time())
            first.send_signal(signal.SIGINT)
            held.release_when_told_to_stop()
            first.wait(300)
        outcome.exit_code = study.run("train_all", timeout=900)
        return outcome.measure()

    def snakemake_killed(self) -> Outcome:
        """kill -9 on Snakemake; a new one finds the running job and uses its result."""
        study = self._study("snakemake killed", "n1g1", gpu_request="none")
        first = study.start("train_all")
        with _killed_on_error(first):
            held = Held(study, "n1g1", BREAK_AT)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        outcome = Outcome("Snakemake killed (-9)", study, "n1g1", time.time())
        study.run("--unlock")
        second = study.start("train_all")
        study.wait(lambda: "already trains it" in study.log(), "the running job to be found", 400)
        held.release()
        outcome.exit_code = second.wait(900)
        return outcome.measure()

    def controller_away(self) -> Outcome:
        """The controller is away for 20 s, and the run ends meanwhile."""
        study = self._study("controller away", "n1g1", gpu_request="none")
        snakemake = study.start("train_all")
        with _killed_on_error(snakemake):
            held = Held(study, "n1g1", BREAK_AT)
            outcome = Outcome("controller away for 20 s", study, "n1g1", time.time())
            self.cluster.stop_controller()
            stopped_at = time.time()
            try:
                held.release()
                time.sleep(20)
            finally:
                outcome.away = stopped_at, time.time()
                self.cluster.start_controller()
            outcome.exit_code = snakemake.wait(900)
        return outcome.measure()


NAMES = (
    "time_limit",
    "out_of_memory",
    "loaders_out_of_memory",
    "node_lost",
    "preempted",
    "rank_killed",
    "cancelled",
    "interrupted",
    "snakemake_killed",
    "refused",
    "too_many_gpus",
    "too_long",
    "bad_account",
    "never_starts",
    "controller_away",
)


def run_all(
    cluster: Cluster, folder: Path, names: tuple[str, ...] = NAMES
) -> dict[str, Outcome | BaseException]:
    """All drills, some side by side; an exception stands where a drill did not come to its end."""
    drills = Drills(cluster, folder)
    together = [name for name in names if name not in ("time_limit", "controller_away")]
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = {}
        if "time_limit" in names:
            futures["time_limit"] = pool.submit(drills.time_limit)
            drills.may_start.wait()
        futures |= {name: pool.submit(getattr(drills, name)) for name in together}
        concurrent.futures.wait(futures.values())
        if "controller_away" in names:  # the others need it
            futures["controller_away"] = pool.submit(drills.controller_away)
        return {name: f.exception() or f.result() for name, f in futures.items()}


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{max(0.0, value):.0f}"  # Slurm's times are whole seconds


def table(outcomes: dict[str, Outcome | BaseException]) -> str:
    """Markdown table of what happened."""
    lines = [
        "| failure | attempts ended | noticed s | resumed s | done s | steps lost | record |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, o in outcomes.items():
        if isinstance(o, BaseException):
            lines.append(f"| {name} | did not end: {str(o).splitlines()[0]} | | | | | |")
            continue
        record = o.record
        verdict = record["status"] + (f" ({record['failure']['cause']})" if record["failure"] else "")
        lost = "-" if o.steps_lost is None else str(o.steps_lost)
        cells = [o.name, ", ".join(map(str, o.ends)), _seconds(o.noticed_s), _seconds(o.resumed_s)]
        lines.append(f"| {' | '.join([*cells, _seconds(o.done_s), lost, verdict])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write a page with the table")
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--folder", type=Path, help="keep the studies here")
    args = parser.parse_args()
    cluster = Cluster("dbd")
    cluster.up()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="dist3dgs drill "))
    started = time.monotonic()
    text = table(run_all(cluster, folder, tuple(args.only)))
    print(text)
    if args.out:
        args.out.write_text(page(text, time.monotonic() - started, cluster("sinfo", "--version").strip()))


def page(text: str, wall_s: float, version: str) -> str:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    cpu = models[0].split(":", 1)[1].strip() if models else "unknown CPU"
    return f"""# Failure drill on a real Slurm

Generated by `python scripts/slurm/drill.py --out docs/benchmarks/slurm-drill.md` on a {os.cpu_count()}-core machine
({cpu}), {version}, in {wall_s:.0f} s: {SIDE_BY_SIDE} drills side by side, each a Snakemake with
jobs of its own, training on CPU ranks. Checkpoints every {STEPS["checkpoint_every"]} steps, a look at the queue every
two seconds (a study: every 10 s).

{text}

* *noticed*: the scheduler or the launcher knew that the attempt had ended, seconds after the injection (of the time
  limit: after the launcher stopped the run; of the memory: after the attempt began).
* *resumed*: the first step from the checkpoint in the next attempt. *done*: the record was there.
* *steps lost*: steps of the broken attempt that had to be done again.
* A node is given up by Slurm after SlurmdTimeout (here 20 s, by default 300 s).
"""


if __name__ == "__main__":
    main()
