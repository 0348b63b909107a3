"""The run record: what one scaling point did, in one JSON file (`record.json`).

A record is a verdict over evidence (`launch.json`, `events.jsonl`, `train.log`, `resources.csv`); it can be made
again from them at any time. What is not known is null, and `reasons` says why; it is never 0.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..config.naming import Layout, Point, how_to_make
from ..errors import UserError
from ..files import write_json
from .causes import Cause
from .metrics import declared, metric

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "degraded", "unknown"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Evidence(Model):
    """A line that proves a cause."""

    file: str
    line: int | None = Field(None, description="1-based line number")
    text: str


class HungCollective(Model):
    """The collective at which the ranks came to a standstill, from the dumps of torch's flight recorder."""

    group: str = Field(description="name of the process group")
    seq: int = Field(description="number of the collective in its group, from 1")
    op: str
    step: int | None = Field(None, description="training step; null if no dump states it")
    waiting: list[int] = Field([], description="ranks that began it")
    missing: list[int] = Field([], description="ranks whose dump shows that they never began it")
    silent: list[int] = Field([], description="ranks of the group that left no dump")
    ops: dict[int, str] = Field(
        {}, description="rank -> operation and sizes, where ranks are in different collectives"
    )

    @property
    def culprits(self) -> list[int]:
        """Ranks to look at first: those that never began it, else those that left no dump."""
        return self.missing or self.silent


class Straggler(Model):
    """A rank that is slower than the others, so that they wait for it in every step."""

    rank: int
    node: str | None = None
    step_s: float | None = Field(None, description="seconds per step, exposed communication not counted")
    others_s: float | None = Field(None, description="the same, median of the other ranks")
    late_s: float | None = Field(
        None, description="seconds by which it begins collectives after the first rank, median; of hung runs"
    )


class Failure(Model):
    """Why a run failed or is degraded."""

    cause: Cause
    phase: str | None = Field(None, description="phase the run was in, see events.PHASES")
    step: int | None = None
    rank: int | None = Field(None, description="the rank that failed first")
    node: str | None = None
    evidence: list[Evidence] = []
    remedy: str | None = Field(None, description="the setting to change or the next command")
    collective: HungCollective | None = Field(
        None, description="where ranks waited for each other; null if no flight recorder was dumped"
    )


class Run(Model):
    """The run as it was asked for."""

    scene: str
    strategy: str
    layout: str
    repeat: int
    seed: int | None
    settings: dict[str, Any] = Field({}, description="the run's full settings; empty for imported logs")


class StepTime(Model):
    """Seconds per training step on the slowest rank, over all steps after the warm-up."""

    median: float
    mean: float
    p5: float
    p95: float


class QualityPoint(Model):
    """Held-out quality at one moment of the run."""

    step: int
    elapsed_s: float = Field(description="training seconds so far, evaluation not counted")
    psnr: float | None = Field(None, description="dB, mean over held-out views")
    ssim: float | None = None
    lpips: float | None = None
    num_gaussians: int | None = None


class ViewQuality(Model):
    """Final quality of one held-out view."""

    name: str
    psnr: float
    ssim: float | None = None
    lpips: float | None = None


class Collective(Model):
    """Totals of one collective operation in one phase of the last attempt, all on the slowest rank."""

    op: str
    phase: str | None = Field(
        None,
        description="a phase as in phases_s; `step` is the training steps' inside alone, `between steps` what ranks "
        "tell each other between two (stop, loss, digests); null in records made before this was told apart",
    )
    calls: int
    bytes: int = Field(description="payload bytes sent by the slowest rank")
    bytes_all_ranks: int | None = Field(None, description="payload bytes sent by all ranks together")
    s: float | None = Field(None, description="seconds under way; no second is in two collectives")
    exposed_s: float | None = Field(None, description="seconds not hidden behind computation")


class RankMetrics(Model):
    """One rank's share."""

    rank: int = Field(
        description="where blocks train in jobs of their own: number of the block, whose job this is"
    )
    host: str | None = None
    device: str | None = None
    phases_s: dict[str, float] = Field({}, description="as Metrics.phases_s, of this rank")
    step_parts_s: dict[str, float] = Field(
        {}, description="as Metrics.step_parts_s; `data` is the wait for data"
    )
    compute_s: float | None = Field(None, description="seconds in steps, exposed communication not counted")
    comm_s: float | None = None
    exposed_comm_s: float | None = None
    peak_rss_gib: float | None = None
    peak_gpu_gib: float | None = None
    parameter_digest: str | None = None
    block_gaussians: int | None = Field(None, description="of strategies of blocks: Gaussians at the merge")
    block_views: int | None = Field(None, description="of strategies of blocks: training views of its block")


class JobMetrics(Model):
    """One of the jobs of a point whose blocks train in jobs of their own (`parallel.blocks`)."""

    name: str = Field(description="coarse, block-0, ..., merge")
    status: Status
    host: str | None = None
    slurm_job_id: str | None = None
    attempts: int = Field(1, description="starts under these settings")
    total_s: float | None = Field(None, description="as Metrics.total_s, of this job alone")
    train_s: float | None = Field(
        None, description="as Metrics.train_s, with that of the jobs that it went on from"
    )
    lost_s: float | None = None
    gaussians: int | None = Field(None, description="of blocks: at the merge; of others: at its end")
    views: int | None = Field(None, description="of blocks: training views")


class FigureOfMerit(Model):
    """A number that a workload is measured by."""

    value: float
    unit: str = ""
    count: int = Field(0, description="numbers of rank 0 that it is the statistic of, warm-up included")


class GpuTotals(Model):
    """One GPU over an imported run, as its nvidia-smi log has it. Our own runs have samples beside their records."""

    gpu: str
    memory_peak_gib: float | None = None
    memory_average_gib: float | None = None
    memory_mode_gib: float | None = Field(None, description="the most frequent value")
    utilisation_average_percent: float | None = None
    power_average_w: float | None = None
    energy_wh: float | None = None


class Metrics(Model):
    """Measurements; a null has its reason in the record's `reasons`. Fields declared with `metric` are the metrics."""

    total_s: float | None = metric(
        "total",
        "s",
        description="launcher's start to its end, wall clock; of several `jobs` that of the coarse training, of the "
        "block that took longest and of the merge, as if all blocks ran at once",
    )
    train_s: float | None = metric(
        "training",
        "s",
        description="time in steps and densification, evaluation not counted; of several `jobs` as total_s",
    )
    jobs: list[JobMetrics] = Field(
        [],
        description="where blocks train in jobs of their own; the cost in `rank_hours` is the sum of their total_s",
    )
    phases_s: dict[str, float] = Field(
        {},
        description="wall seconds per phase, of each attempt that total_s adds up those of its slowest rank; `startup` "
        "is from the launcher's start to having joined",
    )
    step_parts_s: dict[str, float] = Field(
        {},
        description="wall seconds per part of a step (data, render, loss, ...) over all timed steps, slowest rank",
    )
    steps: int | None = metric("steps")
    timed_steps: int | None = metric(
        "timed steps",
        over_repeats=None,
        description="steps of the last attempt, which step_s, step_parts_s, compute_s, comm_s and collectives cover; "
        "fewer than `steps` after a resume",
    )
    images: int | None = metric("images", description="training images seen, all ranks together")
    step_s: StepTime | None = None
    steps_per_s: float | None = metric("steps per second", "1/s")
    images_per_s: float | None = metric("throughput", "images/s")
    compute_s: float | None = metric(
        "computation", "s", description="seconds in steps, exposed communication not counted, slowest rank"
    )
    comm_s: float | None = metric(
        "communication", "s", description="seconds in collectives during steps, slowest rank"
    )
    exposed_comm_s: float | None = metric(
        "exposed communication", "s", description="the part of comm_s that computation does not hide"
    )
    compute_to_comm: float | None = metric(
        "computation / communication", description="compute_s / comm_s, on each of the ranks"
    )
    collectives: list[Collective] = []
    lost_s: float | None = metric(
        "lost in earlier attempts",
        "s",
        description="of the attempts before it, the sum of `earlier[].lost_s`",
    )
    lost_gpu_hours: float | None = metric(
        "lost in earlier attempts", "GPU-hours", description="lost_s on all ranks, GPUs or CPU ranks"
    )
    loader_workers: int | None = metric(
        "loader workers",
        over_repeats=None,
        description="of workloads: data-loading processes of each rank in the last attempt; fewer than in its settings "
        "after one that ran out of host memory, see `reasons`",
    )
    peak_rss_gib: float | None = metric(
        "host memory per rank", "GiB", event="memory", description="largest resident set of any rank"
    )
    peak_host_gib: float | None = metric(
        "host memory per node", "GiB", description="peak PSS of the whole process tree, per node maximum"
    )
    peak_gpu_gib: float | None = metric(
        "GPU memory per rank", "GiB", event="memory", description="largest allocation on any rank's GPU"
    )
    num_gaussians: int | None = metric("Gaussians")
    psnr: float | None = metric("PSNR", "dB", low=None, description="mean over held-out views")
    ssim: float | None = metric("SSIM", low=None, description="mean over held-out views")
    lpips: float | None = metric("LPIPS", low=None, description="mean over held-out views")
    seam_psnr: float | None = metric(
        "PSNR along seams",
        "dB",
        low=None,
        over_repeats=None,
        description="of blocks that were trained apart: over the held-out pixels along their cuts",
    )
    loss: float | None = metric(
        "loss", low=None, description="of imported runs: the last training loss that the log shows"
    )
    train_accuracy: float | None = metric(
        "training accuracy",
        description="of imported runs: on training data, as the log shows it, in percent or not",
    )
    accuracy: float | None = metric(
        "validation accuracy",
        description="of imported runs: on validation data, as the log shows it, in percent or not",
    )
    epochs: int | None = metric("epochs", description="of imported runs")
    epoch_s: float | None = metric(
        "epoch",
        "s",
        description="of imported runs: seconds of the last epoch, or the mean or median over all, as "
        "settings.epoch_statistic says; images_per_s is of the same epochs",
    )
    figures_of_merit: dict[str, FigureOfMerit] = Field(
        {}, description="of workloads: by name, as config/workloads.yaml defines them"
    )
    gpus: list[GpuTotals] = Field([], description="of imported runs with an nvidia-smi log")
    curve: list[QualityPoint] = []
    views: list[ViewQuality] = []
    ranks: list[RankMetrics] = []
    added: dict[str, float] = Field(
        {}, description="metrics of other distributions (entry points `dist3dgs.metrics`), by name"
    )

    @field_validator("phases_s", "step_parts_s")
    @classmethod
    def _not_negative(cls, seconds: dict[str, float]) -> dict[str, float]:
        if any(s < 0 for s in seconds.values()):
            raise ValueError("must not be negative")
        return seconds

    @classmethod
    def known(cls, values: Mapping[str, Any]) -> "tuple[Metrics, dict[str, str]]":
        """Make metrics of what is finite and within bounds; return them and, for each name left out, the reason."""
        try:
            return cls(**values), {}
        except ValidationError as e:
            wrong = {
                str(error["loc"][0]): f"{error['msg']}: {error['input']!r}"[:200] for error in e.errors()
            }
        made, more = cls.known({name: value for name, value in values.items() if name not in wrong})
        return made, wrong | more


#: The table of recorded metrics, see `runs/metrics.py`.
METRICS = declared(Metrics)


class Environment(Model):
    """Machines and software that it ran on."""

    hosts: list[str] = []
    devices: list[str] = Field([], description="device name per rank, e.g. 'NVIDIA H200' or 'cpu'")
    cpu: str | None = None
    cores: int | None = None
    nodes_shared: bool | None = Field(
        None,
        description="whether other Slurm jobs were on its nodes while it ran, so that its timings are not those of the "
        "machine alone; null: not known, see `reasons`",
    )
    neighbours: dict[str, list[str]] = Field(
        {}, description="node -> ids of those jobs; `not visible` for jobs that Slurm hides from this user"
    )
    driver: str | None = Field(None, description="version of the NVIDIA driver where the launcher ran")
    python: str | None = None
    versions: dict[str, str] = {}


class Provenance(Model):
    """Code, data and evidence that it was made from."""

    git_sha: str | None = None
    git_dirty: bool | None = None
    code_digest: str | None = Field(None, description="sha256 over the package's training code")
    scene_digest: str | None = None
    slurm_job_id: str | None = None
    attempt: int | None = None
    argv: list[str] = []
    started_at: float | None = Field(None, description="Unix seconds")
    finished_at: float | None = None
    evidence_sha256: dict[str, str] = Field(
        {}, description="file name -> sha256 of what this record was read from"
    )
    source: Literal["dist3dgs", "imported"] = "dist3dgs"


class EarlierAttempt(Model):
    """One start of the run under the same settings, before the one that the record is about."""

    attempt: int
    started_at: float | None = Field(None, description="Unix seconds")
    finished_at: float | None = None
    failure: Failure | None = Field(None, description="null if it succeeded and was asked for again")
    lost_s: float | None = Field(
        None,
        ge=0,
        description="seconds of it that no later attempt went on from: after its last checkpoint, or all of it; 0 if "
        "it succeeded, null if its times are not known",
    )
    lost_gpu_hours: float | None = Field(None, ge=0, description="lost_s on all its ranks")


class RunRecord(Model):
    schema_version: Literal[1] = 1
    run: Run
    status: Status
    failure: Failure | None = Field(
        None, description="present if and only if status is failed, degraded or unknown"
    )
    metrics: Metrics = Metrics()
    reasons: dict[str, str] = Field(
        {}, description="metric name -> why it is null, or what it does not cover"
    )
    stragglers: list[Straggler] = Field([], description="ranks that are slower than the others by a fifth")
    earlier: list[EarlierAttempt] = Field([], description="oldest first")
    environment: Environment = Environment()
    provenance: Provenance = Provenance()

    @property
    def world_size(self) -> int:
        """Ranks that work at once: those of the layout, or the blocks that train in jobs of their own."""
        parallel = self.run.settings.get("parallel")
        blocks = parallel.get("blocks") if isinstance(parallel, dict) else None
        return blocks if isinstance(blocks, int) else Layout.parse(self.run.layout).world_size


def load_record(path: Path) -> RunRecord:
    """Read and validate a record. Raises `UserError` naming the file and the field."""
    try:
        return RunRecord.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such record{how_to_make(path)}") from None
    except ValidationError as e:
        wrong = [f"`{'.'.join(map(str, x['loc']))}`: {x['msg']}" for x in e.errors()[:3]]
        raise UserError(f"{path}: not a run record of schema {SCHEMA_VERSION}: {'; '.join(wrong)}") from None
    except ValueError as e:
        raise UserError(f"{path}: not a run record of schema {SCHEMA_VERSION}: {e}") from None


def load_or_explain(path: Path) -> RunRecord:
    """Read a record; of one that cannot be read, return a stand-in of status `unknown` that says why.

    Raises `UserError` if not even its path says which run it is of.
    """
    try:
        return load_record(path)
    except UserError as e:
        names = Path(path).absolute().parts[-5:-1]
        try:
            point = Point.parse(*names)
        except (UserError, TypeError):
            raise e from None
        problem = Evidence(file=Path(path).name, text=str(e).replace("\n", "; ")[:500])
        return RunRecord(
            run=Run(
                scene=point.scene,
                strategy=point.strategy,
                layout=str(point.layout),
                repeat=point.repeat,
                seed=None,
            ),
            status="unknown",
            failure=Failure(
                cause="unknown",
                evidence=[problem],
                remedy=f"delete it{how_to_make(path, ' and make it again: ')}",
            ),
        )


def save_record(record: RunRecord, path: Path) -> None:
    write_json(path, record.model_dump(mode="json"))
