"""What the planner and the plugin do with jobs that are refused, gone or will never start."""

import asyncio
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist3dgs.names import Point
from dist3dgs.slurm import planner as module
from dist3dgs.slurm import plugin
from dist3dgs.slurm.commands import SlurmError
from dist3dgs.slurm.jobs import Job, Queue, comment_of
from dist3dgs.slurm.planner import Planner
from dist3dgs.slurm.settings import read_site

POINT = Point.parse("garden", "sharded", "n1g4")


@pytest.fixture
def made(tmp_path, monkeypatch) -> Planner:
    """A planner whose queue is `made.queue._jobs`."""
    planner = Planner(tmp_path, read_site({"account": "lab", "gpu_type": "h100"}), Queue(tmp_path))
    monkeypatch.setattr(planner.queue, "jobs", lambda: planner.queue._jobs)
    planner.queue.answered = True
    return planner


def job(
    number: int, reason: str = "None", state: str = "PENDING", name: str = "x", point: Point = POINT
) -> Job:
    return Job(
        id=number, state=state, reason=reason, name=name, comment=comment_of(point), workdir="/", partition="gpu",
        nodes="", num_nodes=1, time_used="0:00", time_limit="10", start="N/A",
    )  # fmt: skip


def causes(planner: Planner) -> list[str]:
    paths = sorted(POINT.folder(planner.results).glob("attempts/*/launch.json"))
    return [json.loads(p.read_text())["ended"]["cause"] for p in paths]


def test_a_refusal_for_good_is_written_down_at_once(made, capsys):
    text = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    assert not made.refused(POINT, 1, "{}", text)
    assert causes(made) == ["submission_rejected"]
    assert "account 'lab' is not known" in capsys.readouterr().err
    assert made.finish(POINT, 2, "{}")  # the next try is the outcome, without a job
    assert json.loads((POINT.folder(made.results) / "launch.json").read_text())["published"]


def test_a_refusal_that_passes_is_waited_for_and_said_once_a_minute(made, capsys):
    full = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates"
    assert all(made.refused(POINT, 1, "{}", full) for _ in range(50))
    assert causes(made) == [] and capsys.readouterr().err.count("asking again") == 1


def test_unknown_words_are_tried_again_but_not_for_ever(made):
    answers = [made.refused(POINT, 1, "{}", "sbatch: error: lua: load the frobnicator") for _ in range(4)]
    assert answers == [True, True, True, False] and causes(made) == ["submission_rejected"]


def test_a_job_that_is_gone_is_asked_about_after_a_while(made, monkeypatch):
    ends = {
        7: ("PREEMPTED", "", 0.0),
        8: ("COMPLETED", "", 0.0),
        9: ("RUNNING", "", None),
        10: ("", "", None),
    }
    asked = []
    monkeypatch.setattr(module, "job_end", lambda number: asked.append(number) or ends[number])
    made.queue._jobs = [job(9, state="RUNNING")]
    assert [made.fate(n) for n in ends] == [None] * 4 and asked == []  # it may be about to show up
    monkeypatch.setattr(module, "GONE_S", 0.0)
    assert [made.fate(n) for n in ends] == [False, True, None, False] and 9 not in asked
    made.queue.answered = False
    assert made.fate(7) is None  # no answer is no end


def test_a_job_that_slurm_does_not_speak_of_is_waited_for(made, monkeypatch):
    def silent(number: int) -> None:
        raise SlurmError(["scontrol"], 1, "Unable to contact slurm controller")

    monkeypatch.setattr(module, "job_end", silent)
    monkeypatch.setattr(module, "GONE_S", 0.0)
    assert made.fate(7) is None


def test_a_job_that_will_never_start_is_cancelled_and_refused(made, monkeypatch):
    cancelled = []
    monkeypatch.setattr(module, "slurm", lambda *argv: cancelled.append(argv))
    made.resources(POINT, 1, "{}")  # the jobs of points that nobody asked about are another study's
    made.queue._jobs = [
        *(job(7, "PartitionTimeLimit"), job(8, "JobHeldUser"), job(9, "PartitionDown"), job(10, "Priority")),
        job(11, "PartitionConfig"),
    ]
    made.look()
    assert cancelled == []  # nodes that come back change such reasons
    monkeypatch.setattr(module, "NEVER_S", 0.0)
    made.look()
    made.look()
    assert cancelled == [("scancel", "7")]
    made.failed(POINT, 7, None, "{}")
    assert causes(made) == ["submission_rejected"]
    (path,) = POINT.folder(made.results).glob("attempts/*/train.log")
    assert "would never start" in path.read_text() and "site.runtime_min" in path.read_text()


@pytest.mark.slurm
def test_such_a_job_on_a_real_cluster(on_plain_cluster, monkeypatch, tmp_path):
    """The cluster without EnforcePartLimits takes five hours in a four-hour partition."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "NEVER_S", 0.0)
    number = on_plain_cluster(
        "sbatch", "--parsable", "-D", str(tmp_path), "-J", "a|b", "-p", "gpu", "-t", "300", "--wrap", "true"
    ).strip()
    try:
        planner, end = Planner(tmp_path, read_site({})), time.monotonic() + 20
        while int(number) not in planner._never:
            assert time.monotonic() < end
            planner.look()
            planner.queue.forget()
            time.sleep(0.2)
        while "CANCELLED" not in on_plain_cluster("scontrol", "show", "job", number):
            assert time.monotonic() < end
            time.sleep(0.2)
        monkeypatch.setattr(module, "GONE_S", 0.0)
        while planner.fate(int(number)) is not False:
            assert time.monotonic() < end
            planner.queue.forget()
            time.sleep(0.2)
    finally:
        on_plain_cluster("scancel", number, check=False)


def test_a_snakemake_within_a_job_of_the_user_is_not_the_one_within_the_plugins(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    site = read_site({})
    assert Planner(tmp_path, site).own_job is None and Planner(tmp_path, site, in_job=True).own_job == 7


def test_a_chosen_partition_is_chosen_again_when_the_job_is_submitted(tmp_path, monkeypatch):
    offers = iter(["slow", "fast"])
    made = Planner(tmp_path, read_site({"gpu_partition": "auto"}), Queue(tmp_path))
    monkeypatch.setattr(made.queue, "jobs", lambda: [])
    monkeypatch.setattr(
        module, "choose", lambda *a: SimpleNamespace(partition="", settings={"gpu_partition": next(offers)})
    )
    assert made.resources(POINT, 1, "{}")["slurm_partition"] == "slow"
    assert made.asks(POINT, 1, "{}") == {}  # a choice of just now stands
    monkeypatch.setattr(module, "CHOICE_S", -1.0)
    assert made.asks(POINT, 1, "{}") == {"slurm_partition": "fast"}


@pytest.fixture
def executor(monkeypatch):
    """The plugin's executor class, with what it would do replaced, and given back as it was."""
    from snakemake_executor_plugin_slurm import Executor

    told = []

    async def check(self, active):
        for info in active:
            if info.external_jobid == "1":
                self.report_job_success(info)
            elif info.external_jobid == "2":
                yield info  # and 3 is forgotten, as where squeue does not answer

    for name in ("run_job", "cancel_jobs"):
        monkeypatch.setattr(Executor, name, lambda self, job: None)
    monkeypatch.setattr(Executor, "check_active_jobs", check)
    monkeypatch.setattr(
        Executor, "report_job_success", lambda self, info: told.append(("ok", info.external_jobid))
    )
    monkeypatch.setattr(
        Executor,
        "report_job_error",
        lambda self, info, msg=None, **more: told.append(("error", info.external_jobid)),
    )
    made = Executor.__new__(Executor)
    made.told = told
    return made


class Listener:
    """Says what the test wants."""

    def __init__(self, fates: dict[int, bool | None], again: bool = False) -> None:
        self.fates, self.again, self.texts = fates, again, list[str]()

    def look(self) -> None: ...

    def failed(self, job, slurm_job: int, log: Path | None) -> None: ...

    def fate(self, slurm_job: int) -> bool | None:
        return self.fates[slurm_job]

    def refused(self, job, text: str) -> bool:
        self.texts.append(text)
        return self.again


def looked_at(executor, *numbers: int) -> list[str]:
    async def look() -> list[str]:
        infos = [SimpleNamespace(job=None, external_jobid=str(n), aux={}) for n in numbers]
        return [info.external_jobid async for info in executor.check_active_jobs(infos)]

    return asyncio.run(look())


def test_no_job_is_lost_where_squeue_fails(executor):
    assert plugin.listen(Listener({2: None, 3: None}))
    assert looked_at(executor, 1, 2, 3) == ["2", "3"] and executor.told == [("ok", "1")]


def test_a_job_that_is_gone_ends_as_it_did(executor):
    assert plugin.listen(Listener({2: True, 3: False}))
    assert looked_at(executor, 2, 3) == []
    assert executor.told == [("ok", "2"), ("error", "3")]


def test_a_submission_that_may_be_taken_later_is_no_error(executor, monkeypatch):
    submitted = []
    executor._job_submission_executor = SimpleNamespace(submit=lambda run, job: submitted.append(job))
    monkeypatch.setattr(plugin, "RESUBMIT_S", 0.0)
    said = "SLURM sbatch failed. The error message was 'sbatch: error: it isn't\nso'.\n    sbatch call:\n  x"
    listener = Listener({}, again=True)
    assert plugin.listen(listener)
    executor.report_job_error(SimpleNamespace(job="the job", external_jobid=None), msg=said)
    end = time.monotonic() + 10
    while not submitted:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert submitted == ["the job"] and executor.told == []
    assert listener.texts == ["sbatch: error: it isn't\nso"]
    listener.again = False
    executor.report_job_error(
        SimpleNamespace(job="the job", external_jobid=None),
        msg="Job submission failed with exception: no such account",
    )
    assert executor.told == [("error", None)] and listener.texts[-1] == "no such account"


def test_a_look_at_the_queue_is_early_where_a_job_has_left_its_outputs(tmp_path):
    """Most of what a point costs beside its training is the wait for the next look."""
    output, since = tmp_path / "launch.json", {}
    info = SimpleNamespace(external_jobid="7", job=SimpleNamespace(output=[str(output)]))
    output.touch()
    os.utime(output, (time.time() - 100, time.time() - 100))
    assert not plugin.has_outputs(info, since)  # an earlier attempt's
    output.unlink()
    assert not plugin.has_outputs(info, since)
    output.touch()
    os.utime(output, (time.time() + 1, time.time() + 1))
    assert plugin.has_outputs(info, since)
    since["7"] -= 1000
    os.utime(output, (time.time() - 100, time.time() - 100))
    assert not plugin.has_outputs(info, since)  # whatever else the job does, it is not about to end


def test_the_wait_ends_early_but_not_at_once(tmp_path, monkeypatch):
    from snakemake_executor_plugin_slurm import Executor

    monkeypatch.setattr(Executor, "sleep", Executor.sleep)
    monkeypatch.setattr(
        Executor, "next_seconds_between_status_checks", Executor.next_seconds_between_status_checks
    )
    assert plugin.limit_interval(1e6)
    monkeypatch.setattr(plugin, "QUICK_S", 0.2)
    monkeypatch.setattr(plugin, "has_outputs", lambda info, since: True)
    executor = Executor.__new__(Executor)
    executor.wait, executor.active_jobs = True, ["a job"]
    executor.next_seconds_between_status_checks = 1e6
    began = time.monotonic()
    asyncio.run(asyncio.wait_for(executor.sleep(), 60))
    assert time.monotonic() - began >= 0.2
