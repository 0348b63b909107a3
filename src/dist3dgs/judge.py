"""From evidence to verdict: what the attempts of one point left behind becomes its record.

Fast and without torch, so that all runs can be judged again whenever the judge gets better.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError
from .events import read_events
from .evidence import Attempt, attempts
from .files import sha256
from .record import (
    Cause,
    Collective,
    Environment,
    Evidence,
    Failure,
    Metrics,
    Provenance,
    QualityPoint,
    RankMetrics,
    Run,
    RunRecord,
    StepTime,
    ViewQuality,
)

Events = list[dict[str, Any]]


def judge(launch_json: Path) -> RunRecord:
    """Make the record of the point whose `launch.json` this is. Raises `UserError` if it cannot be read."""
    launch_json = Path(launch_json)
    try:
        launch = json.loads(launch_json.read_text(encoding="utf-8"))
        digest, spec = launch["spec_digest"], launch["spec"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{launch_json}: not a launch summary ({e}); train the point again: snakemake {launch_json}"
        ) from None
    # Attempts under other settings tell another story; these belong to this run, oldest first.
    story = [a for a in attempts(launch_json.parent) if a.launch().get("spec_digest") == digest]
    if not story:
        raise UserError(
            f"{launch_json.parent}/attempts: no attempt of this run; train it again: snakemake {launch_json}"
        )
    return _Case(launch, spec, story).record()


def cause_of(launch: dict[str, Any], attempt: Attempt) -> Cause:
    """The cause of an attempt that has just failed, for the decision whether to try again."""
    return _Case(launch, launch["spec"], [attempt])._failure().cause


class _Case:
    def __init__(self, launch: dict[str, Any], spec: dict[str, Any], story: list[Attempt]) -> None:
        self.launch, self.spec, self.story = launch, spec, story
        self.last = story[-1]
        self.diary: Events = [e for a in self._since_fresh_start(story) for e in read_events(a.events_path)]
        self.events: Events = list(read_events(self.last.events_path))
        self.reasons: dict[str, str] = {}

    @staticmethod
    def _since_fresh_start(story: list[Attempt]) -> list[Attempt]:
        """The attempts that the last one continues: resumed ones hang together through a checkpoint."""
        first = len(story) - 1
        while first > 0 and any(e["event"] == "resume" for e in read_events(story[first].events_path)):
            first -= 1
        return story[first:]

    def record(self) -> RunRecord:
        metrics = self._metrics()
        status, failure = self._verdict(metrics)
        return RunRecord(
            run=Run(
                scene=self.spec["scene"],
                strategy=self.spec["strategy"],
                layout=self.spec["layout"],
                repeat=self.spec["repeat"],
                seed=self.spec["seed"],
                settings=self.spec,
            ),
            status=status,
            failure=failure,
            metrics=metrics,
            reasons=self.reasons,
            environment=self._environment(),
            provenance=self._provenance(),
        )

    # ---------------------------------------------------------------- verdict

    def _verdict(self, metrics: Metrics) -> tuple[Any, Failure | None]:
        world = self._world_size()
        if self.launch.get("status") == "ok":
            joined = {e["rank"] for e in self._of("start")}
            devices = {
                (e.get("host"), e.get("device")) for e in self._of("start") if e.get("device") != "cpu"
            }
            given = max((e.get("visible_devices") or 0 for e in self._of("start")), default=0)
            idle = bool(devices) and given > world // max(1, len({host for host, _ in devices}))
            if len(joined) < world or (devices and len(devices) < world) or idle:
                used = len(devices) or len(joined)
                text = f"{world} workers asked for by {self.spec['layout']}, {used} in use"
                text += f", {given} devices given on a node" if idle else ""
                evidence = [Evidence(file=self._name("events.jsonl"), line=None, text=text)]
                remedy = "compare the layers in launch.json: `world`; give every rank its own device"
                return "degraded", Failure(
                    cause="allocation_mismatch", phase="startup", evidence=evidence, remedy=remedy
                )
            return "ok", None
        return "failed", self._failure()

    def _failure(self) -> Failure:
        first = self._first_error()
        phase, step, rank = self._where(first)
        chosen = self._own_words(first, phase)
        return chosen.model_copy(
            update={
                "phase": chosen.phase or phase,
                "step": chosen.step if chosen.step is not None else step,
                "rank": chosen.rank if chosen.rank is not None else rank,
            }
        )

    def _first_error(self) -> dict[str, Any] | None:
        """The error that came first, not those of ranks which noticed that another was gone."""
        errors = sorted(self._of("error"), key=lambda e: e["t"])
        own = [e for e in errors if not _NOTICED.search(str(e.get("message")))]
        if errors and not own and _line_with(self.last.log_path, _tells_of_a_kill):
            return None  # a rank that could not write an event any more was first
        first = own or errors
        return first[0] if first else None

    def _where(self, error: dict[str, Any] | None) -> tuple[str, int | None, int | None]:
        """Phase, step and rank of the failure; without an error event, of the rank that fell silent first."""
        rank = self._silent_rank(error)
        noticed = error or next(iter(sorted(self._of("error"), key=lambda e: e["t"])), None)
        if rank is not None and noticed is not None:
            # Nobody knows better how far the one got that fell silent than those who worked in step with it.
            return self._open_phase(rank), noticed.get("step"), rank
        if error is not None and error.get("phase"):
            return error["phase"], error.get("step"), error["rank"]
        if rank is not None:
            return self._open_phase(rank), self._last_step(), rank
        if not self.events:
            return "startup", None, None
        last_seen: dict[int, float] = {}
        for e in self.events:
            last_seen[e["rank"]] = e["t"]
        steps = [e["step"] for e in self._of("step")]
        return self._open_phase(0), (steps[-1] if steps else None), None

    def _silent_rank(self, error: dict[str, Any] | None) -> int | None:
        """The rank that was killed, or that the others waited for in vain, if that was the failure."""
        started = {e["rank"]: e.get("pid") for e in self._of("start")}
        if error is not None and error["type"] == "CollectiveTimeout":
            # All who wait for it give up before it is heard of again, if it ever is (woken up to write its stacks).
            heard = {e["rank"]: e["t"] for e in reversed(self._of("error"))}
            return max(started, key=lambda r: heard.get(r, math.inf), default=None)
        killed = _line_with(self.last.log_path, _tells_of_a_kill) if error is None else None
        pid = re.search(r"pid: (\d+)", killed[1]) if killed else None
        return next((r for r, p in started.items() if pid and p == int(pid[1])), None)

    def _open_phase(self, rank: int) -> str:
        """The innermost phase that the rank entered and did not leave."""
        stack = ["startup"]
        for e in self.events:
            if e["rank"] != rank:
                continue
            if e["event"] == "enter":
                stack.append(e["phase"])
            elif e["event"] == "leave" and len(stack) > 1 and stack[-1] == e["phase"]:
                stack.pop()
        return stack[-1]

    def _own_words(self, error: dict[str, Any] | None, phase: str) -> Failure:
        log = self._name("train.log")
        ended = self.launch.get("ended")
        if ended and ended.get("cause"):  # killed or stopped from outside: the scheduler's own words
            evidence = [Evidence(file=self._name("launch.json"), text=ended["note"])]
            remedy = _ENDED_REMEDIES.get(ended["cause"]) or self.launch.get("closing_note")
            return Failure(cause=ended["cause"], phase=phase, evidence=evidence, remedy=remedy)
        if self.launch.get("refused"):
            evidence = [Evidence(file=log, line=1, text=self.launch["refused"])]
            remedy = "ask for a layout that fits what the machine or the allocation has"
            return Failure(cause="allocation_mismatch", phase="startup", evidence=evidence, remedy=remedy)
        if error is not None:
            cause = _CAUSES.get(error["type"], "code_error")
            evidence = [
                Evidence(file=self._name("events.jsonl"), text=f"{error['type']}: {error['message']}")
            ]
            return Failure(cause=cause, phase=phase, evidence=evidence, remedy=_REMEDIES.get(cause))
        killed = _line_with(self.last.log_path, _tells_of_a_kill)
        if killed or self.launch.get("returncode") in (-9, 137):
            number, text = killed or (None, f"exit status {self.launch.get('returncode')}")
            remedy = "see whether the kernel's out-of-memory killer did it (dmesg -T | grep -i oom); then train again"
            evidence = [Evidence(file=log, line=number, text=text)]
            return Failure(cause="killed", phase=phase, evidence=evidence, remedy=remedy)
        text = f"exit status {self.launch.get('returncode')} and no error event"
        evidence = [Evidence(file=self._name("launch.json"), text=text)]
        return Failure(cause="unknown", phase=phase, evidence=evidence, remedy=f"read {self.last.log_path}")

    # ---------------------------------------------------------------- measurements

    def _metrics(self) -> Metrics:
        timing = {e["rank"]: e for e in self._of("timing")}
        slowest = max(timing.values(), key=lambda e: e["train_s"], default=None)
        evals = [e for e in self.diary if e["event"] == "eval"]
        final = evals[-1] if evals else {}
        comm = self._collectives()
        values: dict[str, Any] = {
            "total_s": self._total_s(),
            "phases_s": self._phases(timing),
            "collectives": comm,
            "curve": [_curve_point(e) for e in evals],
            "views": [_view(v) for v in final.get("views", [])],
            "ranks": self._ranks(timing),
            "psnr": final.get("psnr"),
            "ssim": final.get("ssim"),
            "lpips": final.get("lpips"),
            "num_gaussians": final.get("num_gaussians"),
            "peak_host_gib": self.launch.get("peak_pss_gib"),
        }
        if slowest:
            values |= self._speed(slowest, comm)
        memory = self._of("memory")
        values["peak_rss_gib"] = max(
            (e["peak_rss_gib"] for e in memory if e.get("peak_rss_gib")), default=None
        )
        values["peak_gpu_gib"] = max(
            (e["peak_gpu_gib"] for e in memory if e.get("peak_gpu_gib")), default=None
        )
        self._explain(values, slowest is not None)
        return Metrics(**values)

    def _speed(self, slowest: dict[str, Any], comm: list[Collective]) -> dict[str, Any]:
        steps, train_s = slowest["steps"], slowest["train_s"]
        step_comm = [c for c in comm if c.op not in _OUTSIDE_STEPS]
        comm_s = sum(c.s for c in step_comm)
        exposed_s = sum(c.exposed_s or 0.0 for c in step_comm)
        measured_s = sum(slowest["parts_s"].values())
        images_per_step = slowest["images"] / max(1, self._last_step())
        mean_s = slowest["step_s"]["mean"] if slowest["step_s"] else None
        return {
            "train_s": train_s,
            "step_parts_s": slowest["parts_s"],
            "steps": self._last_step(),
            "images": slowest["images"],
            "step_s": StepTime(**slowest["step_s"]) if slowest["step_s"] else None,
            "steps_per_s": 1 / mean_s if mean_s else None,
            "images_per_s": images_per_step / mean_s if mean_s else None,
            "compute_s": measured_s - exposed_s,
            "comm_s": comm_s if step_comm and steps else None,
            "exposed_comm_s": exposed_s if step_comm and steps else None,
            "compute_to_comm": (measured_s - exposed_s) / comm_s if comm_s > 0 else None,
        }

    def _explain(self, values: dict[str, Any], timed: bool) -> None:
        """Why a null is null."""
        if not timed:
            for name in ("train_s", "steps", "step_s", "images_per_s", "peak_rss_gib"):
                self.reasons[name] = "the run did not reach its end, where ranks write their totals"
        if values["lpips"] is None:
            self.reasons["lpips"] = (
                "its weights are not on disk (dist3dgs fetch-weights) or `train.lpips` is false"
            )
        if values["psnr"] is None:
            self.reasons["psnr"] = "no evaluation was reached"
        if values.get("comm_s") is None:
            one = self._world_size() == 1
            self.reasons["comm_s"] = "one rank: nothing to communicate" if one else "no totals were written"
        if values["peak_gpu_gib"] is None:
            cpu = all(e.get("device") == "cpu" for e in self._of("start"))
            self.reasons["peak_gpu_gib"] = "trained on the CPU" if cpu else "the ranks did not report it"

    def _collectives(self) -> list[Collective]:
        by_op: dict[str, dict[str, Any]] = {}
        for e in self._of("comm"):
            if e["op"] not in by_op or e["s"] > by_op[e["op"]]["s"]:
                by_op[e["op"]] = e
        return [
            Collective(op=op, calls=e["calls"], bytes=e["bytes"], s=e["s"], exposed_s=e["exposed_s"])
            for op, e in sorted(by_op.items())
        ]

    def _ranks(self, timing: dict[int, dict[str, Any]]) -> list[RankMetrics]:
        digests = [e["digests"] for e in self._of("digest")]
        memory = {e["rank"]: e for e in self._of("memory")}
        ranks = []
        for e in sorted(self._of("start"), key=lambda e: e["rank"]):
            r = e["rank"]
            mine = [c for c in self._of("comm") if c["rank"] == r and c["op"] not in _OUTSIDE_STEPS]
            parts = timing.get(r, {}).get("parts_s", {})
            exposed_s = sum(c["exposed_s"] for c in mine)
            ranks.append(
                RankMetrics(
                    rank=r,
                    host=e.get("host"),
                    device=e.get("device"),
                    phases_s=timing.get(r, {}).get("phases_s", {}),
                    step_parts_s=parts,
                    compute_s=sum(parts.values()) - exposed_s if parts else None,
                    comm_s=sum(c["s"] for c in mine) if mine else None,
                    exposed_comm_s=exposed_s if mine else None,
                    peak_rss_gib=memory.get(r, {}).get("peak_rss_gib"),
                    peak_gpu_gib=memory.get(r, {}).get("peak_gpu_gib"),
                    parameter_digest=digests[-1][r] if digests and r < len(digests[-1]) else None,
                )
            )
        return ranks

    def _phases(self, timing: dict[int, dict[str, Any]]) -> dict[str, float]:
        """Slowest rank's seconds per phase; of a run that did not end, what rank 0 had booked by then.

        `startup` is from the launcher's start to the ranks having joined.
        """
        if timing:
            names = {p for e in timing.values() for p in e["phases_s"]}
            phases = {p: max(e["phases_s"].get(p, 0.0) for e in timing.values()) for p in names}
        else:
            phases = {}
            for e in self.events:
                if e["event"] == "leave" and e["rank"] == 0:
                    phases[e["phase"]] = phases.get(e["phase"], 0.0) + e["s"]
        started = self.launch.get("started_at")
        joined = [e["t"] for e in self._of("leave") if e["phase"] == "startup"]
        if started and joined:
            phases["startup"] = max(joined) - started
        return phases

    def _total_s(self) -> float | None:
        """From first start to last end; waiting between attempts is not training and not counted."""
        total = 0.0
        for attempt in self._since_fresh_start(self.story):
            launch = self.launch if attempt == self.last else attempt.launch()
            ends = [launch.get("finished_at")] if launch.get("finished_at") else []
            ends = ends or [e["t"] for e in read_events(attempt.events_path)][-1:]
            if launch.get("started_at") and ends:
                total += ends[0] - launch["started_at"]
        return total or None

    def _last_step(self) -> int:
        return max((e["step"] for e in self.events if isinstance(e.get("step"), int)), default=0)

    # ---------------------------------------------------------------- where and from what

    def _environment(self) -> Environment:
        starts = sorted(self._of("start"), key=lambda e: e["rank"])
        versions = dict(starts[0].get("versions", {})) if starts else {}
        return Environment(
            hosts=sorted({e["host"] for e in starts if e.get("host")}) or [self.launch["host"]],
            devices=[e.get("device_name") or e.get("device") or "unknown" for e in starts],
            cpu=self.launch.get("cpu"),
            cores=self.launch.get("cores"),
            python=self.launch.get("python"),
            versions=versions,
        )

    def _provenance(self) -> Provenance:
        scene_digest = next((e["digest"] for e in self.events if e["event"] == "scene"), None)
        files = [
            self.last.launch_path,
            self.last.events_path,
            self.last.log_path,
            *self.last.resources_paths(),
        ]
        slurm = self.launch.get("slurm") or {}
        return Provenance(
            git_sha=self.launch.get("git_sha"),
            git_dirty=self.launch.get("git_dirty"),
            code_digest=self.launch.get("code_digest"),
            scene_digest=scene_digest,
            slurm_job_id=str(slurm["job_id"]) if slurm.get("job_id") else None,
            attempt=self.last.number,
            argv=[str(a) for a in self.launch.get("argv", [])],
            started_at=self.launch.get("started_at"),
            finished_at=self.launch.get("finished_at"),
            evidence_sha256={p.name: sha256(p) for p in files if p.is_file()},
        )

    def _of(self, kind: str) -> Events:
        return [e for e in self.events if e["event"] == kind]

    def _world_size(self) -> int:
        from .names import Layout

        return Layout.parse(self.spec["layout"]).world_size

    def _name(self, file: str) -> str:
        return f"attempts/{self.last.folder.name}/{file}"


#: What a rank says when another one has gone.
_NOTICED = re.compile(
    r"connection (reset|closed)|closed by peer|broken pipe|remote (worker|process)", re.IGNORECASE
)


def _tells_of_a_kill(line: str) -> bool:
    return "exitcode" in line and "-9" in line


#: Collectives that are no part of a training step.
_OUTSIDE_STEPS = (
    "broadcast",
    "all_gather",
    "barrier",
    "all_reduce(stop)",
    "all_reduce(loss)",
    "all_reduce(statistics)",
    "all_to_all(distribute)",
    "all_to_all(gather)",
    "all_to_all(rebalance)",
    "all_gather(shards)",
)

#: Of runs that the scheduler ended, when no further attempt followed.
_ENDED_REMEDIES: dict[str, str] = {
    "time_limit": "raise site.runtime_min in profiles/slurm/config.yaml, or lower train.checkpoint_every",
    "host_oom": "raise site.mem_gib_per_gpu in profiles/slurm/config.yaml",
    "node_failure": "train again on other nodes (slurm-exclude-failed-nodes)",
    "cancelled": "train again with: snakemake --profile profiles/slurm --forcerun train RECORD",
    "submission_rejected": "change what the message names in profiles/slurm/config.yaml, then train again",
}

#: Our own exceptions by name, for failures that leave an error event.
_CAUSES: dict[str, Any] = {
    "Diverged": "diverged",
    "ReplicasDiffer": "parameter_mismatch",
    "UserError": "misconfiguration",
    "WorldMismatch": "allocation_mismatch",
    "CollectiveTimeout": "collective_timeout",
    "DiskFull": "disk_full",
    "ParameterMismatch": "parameter_mismatch",
}
_REMEDIES: dict[str, str] = {
    "diverged": "lower the learning rates (`train.lr`), then train again",
    "parameter_mismatch": "use `init: broadcast`; if it is, please report this with events.jsonl",
    "allocation_mismatch": "change what the message names, so that layout, allocation and devices agree",
    "collective_timeout": "read the stacks of all ranks at the end of train.log: the one outside a collective is stuck",
    "disk_full": "make room or raise the quota where `results` lies, then train again: it goes on from a checkpoint",
    "misconfiguration": "change the setting that the message names",
    "code_error": "read the traceback in train.log",
}


def _curve_point(e: dict[str, Any]) -> QualityPoint:
    names = ("step", "elapsed_s", "psnr", "ssim", "lpips", "num_gaussians")
    return QualityPoint(**{k: e.get(k) for k in names})


def _view(v: dict[str, Any]) -> ViewQuality:
    return ViewQuality(name=v["name"], psnr=v["psnr"], ssim=v.get("ssim"), lpips=v.get("lpips"))


def _line_with(path: Path, wanted: Callable[[str], bool]) -> tuple[int, str] | None:
    """Number and text of the first line that `wanted` accepts."""
    try:
        with path.open(encoding="utf-8", errors="replace") as f:
            for number, line in enumerate(f, 1):
                if wanted(line):
                    return number, line.strip()[:2000]
    except OSError:
        pass
    return None
