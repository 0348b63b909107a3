"""The planner handles jobs that are refused, gone or will never start."""

import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dist3dgs.config.matrix import load_study, spec_json
from dist3dgs.config.naming import Point
from dist3dgs.runs.launch_summary import LaunchSummary
from dist3dgs.slurm import planner as module
from dist3dgs.slurm.client import SlurmError
from dist3dgs.slurm.planner import Planner, TrainJobs
from dist3dgs.slurm.queue import Job, Queue, comment_of
from dist3dgs.slurm.resources import MemoryCheck
from dist3dgs.slurm.site import read_site

POINT = Point.parse("garden", "sharded", "n1g4")


@pytest.fixture
def jobs() -> list[Job]:
    """Slurm's queue, to be filled."""
    return []


@pytest.fixture
def made(tmp_path, monkeypatch, jobs) -> Planner:
    """A planner that sees `jobs`."""
    planner = Planner(tmp_path, read_site({"account": "lab", "gpu_type": "h100"}), Queue(tmp_path))
    monkeypatch.setattr(planner.queue, "jobs", lambda: jobs)
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


def test_a_refusal_for_good_is_written_down_at_once(made, caplog):
    text = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    assert not made.refused(POINT, 1, "{}", text)
    assert causes(made) == ["submission_rejected"]
    assert "account 'lab' is not known" in caplog.text
    assert made.finish(POINT, 2, "{}")  # the next attempt is the outcome, without a job
    assert json.loads((POINT.folder(made.results) / "launch.json").read_text())["published"]


def test_a_point_that_cannot_fit_is_refused_with_the_setting_and_costs_no_job(
    repository, tmp_path, jobs, caplog
):
    """16 ranks with 8 loaders each of 8 GiB on 4 nodes; with 2 loaders each they are submitted."""
    site = read_site({"mem_gib_per_gpu": 60, "max_mem_gib": 256})
    overlay = tmp_path / "eight.yaml"
    overlay.write_text("{scenes: [], workloads: [planner], workload_library: {planner: {loader_workers: 8}}}")
    point = Point.named("planner/full/n4g4")
    for overlays, fits in (([overlay], False), ([], True)):
        study = load_study(repository / "config", overlays)
        check = MemoryCheck(study, site, repository / "config")
        planner = Planner(tmp_path / str(fits), site, Queue(tmp_path), refusal=check)
        planner.queue.jobs = lambda: jobs
        assert planner.finish(point, 1, spec_json(study.spec(point))) is not fits
        asked = planner.resources(point, 1, "{}")
        assert (asked["nodes"], asked["mem_mb"] > 200_000) == ((4, True) if fits else (1, False))
    summary = LaunchSummary.load(point.folder(tmp_path / "False") / "launch.json")
    assert summary.published and summary.ended.cause == "submission_rejected"
    assert "4 ranks x (6.0 GiB + 8 workers x 8.0 GiB)" in summary.ended.note
    assert "at most 6 workers per rank fit" in summary.ended.note and "cannot be submitted" in caplog.text


def test_a_training_that_gpu_memory_cannot_hold_is_refused_unless_the_site_says_otherwise(
    repository, tmp_path
):
    """60 million Gaussians are 57 GB of parameters, gradients and moments alone; four shards of them fit in 40 GB."""
    overlay = tmp_path / "large.yaml"
    overlay.write_text("{scenes: [garden], train: {densify: {kind: mcmc, max_gaussians: 60000000}}}")
    study = load_study(repository / "config", [overlay])

    def refusal(name: str, **site: object) -> str | None:
        here = read_site({"gpu_type": "a100-sxm4-40gb", "mem_gib_per_gpu": 100, **site})
        return MemoryCheck(study, here, repository / "config")(Point.named(name))

    why = refusal("garden/replicated/n1g4")
    assert why and why.startswith("GPU memory: ") and "train.densify.max_gaussians: at most" in why
    assert refusal("garden/sharded/n1g4") is None
    assert refusal("garden/replicated/n1g4", check_memory=False) is None
    assert refusal("garden/replicated/n1g4", gpu_type="unheard-of") is None


def test_a_run_that_has_begun_is_not_refused_for_its_memory(tmp_path, jobs):
    """What has trained fits, whatever a model says."""
    made = Planner(tmp_path, read_site({}), Queue(tmp_path), refusal=lambda point: "too large")
    made.queue.jobs = lambda: jobs
    path = POINT.folder(tmp_path) / "attempts/000/launch.json"
    path.parent.mkdir(parents=True)
    ended = {"cause": "preempted", "note": "", "at": 1100.0}
    path.write_text(
        json.dumps(
            {"started_at": 1000.0, "finished_at": 1100.0, "status": "failed", "ended": ended, "spec": {}}
        )
    )
    assert not made.finish(POINT, 1, "{}") and int(made.resources(POINT, 1, "{}")["mem_mb"]) > 20_000


def test_a_refusal_that_passes_is_waited_for_and_said_once_a_minute(made, caplog):
    full = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates"
    other = replace(POINT, repeat=POINT.repeat + 1)
    assert all(made.refused(point, 1, "{}", full) for point in [POINT, other] * 25)
    assert causes(made) == [] and caplog.text.count("asking again") == 1


def test_unknown_words_are_tried_again_but_not_for_ever(made):
    answers = [made.refused(POINT, 1, "{}", "sbatch: error: lua: load the frobnicator") for _ in range(4)]
    assert answers == [True, True, True, False] and causes(made) == ["submission_rejected"]


def test_a_job_that_is_gone_is_asked_about_after_a_while(made, jobs, monkeypatch):
    ends = {
        7: ("PREEMPTED", "", 0.0),
        8: ("COMPLETED", "", 0.0),
        9: ("RUNNING", "", None),
        10: ("", "", None),
    }
    asked = []
    monkeypatch.setattr(module, "job_end", lambda number: asked.append(number) or ends[number])
    jobs.append(job(9, state="RUNNING"))
    assert [made.poll_final_state(n) for n in ends] == [
        None
    ] * 4 and asked == []  # it may be about to show up
    monkeypatch.setattr(module, "GONE_S", 0.0)
    assert [made.poll_final_state(n) for n in ends] == [False, True, None, False] and 9 not in asked
    made.queue.answered = False
    assert made.poll_final_state(7) is None  # no answer is no end


def test_a_job_that_slurm_does_not_speak_of_is_waited_for(made, monkeypatch):
    def silent(number: int) -> None:
        raise SlurmError(["scontrol"], 1, "Unable to contact slurm controller")

    monkeypatch.setattr(module, "job_end", silent)
    monkeypatch.setattr(module, "GONE_S", 0.0)
    assert made.poll_final_state(7) is None


def test_a_job_that_will_never_start_is_cancelled_and_refused(made, jobs, monkeypatch):
    cancelled = []
    monkeypatch.setattr(module, "slurm", lambda *argv: cancelled.append(argv))
    made.resources(POINT, 1, "{}")  # the jobs of points that nobody asked about are another study's
    jobs += [
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
        while "CANCELLED" not in on_plain_cluster("scontrol", "show", "job", number):
            assert time.monotonic() < end
            planner.look()
            planner.queue.forget()
            time.sleep(0.2)
        monkeypatch.setattr(module, "GONE_S", 0.0)
        while planner.poll_final_state(int(number)) is not False:
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
def ingest(tmp_path):
    """Snakemake's job of another rule, with its log."""
    log = tmp_path / "ingest.log"
    rule = SimpleNamespace(name="ingest")
    return SimpleNamespace(
        is_group=lambda: False, rule=rule, name="ingest", wildcards=["garden"], log=[str(log)],
        resources={"slurm_partition": "cpu", "runtime": 90, "mem_mb": 5000, "nodes": 1, "cpus_per_task": 4},
    )  # fmt: skip


def jobs_of(made) -> TrainJobs:
    return TrainJobs(made, lambda wildcards: POINT, lambda point: "{}")


def test_a_failed_ingest_is_told_in_one_line_with_its_log(made, ingest, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "job_end", lambda number: ("FAILED", "JobState=TIMEOUT", None))
    slurm_log, (log,) = tmp_path / "7.log", ingest.log
    listener = jobs_of(made)

    def told() -> str:
        caplog.clear()
        listener.failed(ingest, 7, slurm_log)
        (line,) = caplog.messages
        assert line.startswith("dist3dgs: ingest garden failed: ")
        return line

    # Before the rule began: what Slurm says, and the job's own log.
    slurm_log.write_text("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n")
    assert (
        "JobState=TIMEOUT" in (line := told())
        and "DUE TO TIME LIMIT" in line
        and f"(log: {slurm_log})" in line
    )
    # Its own last words; those of an earlier job are not.
    (tmp_path / "ingest.log").write_text("ingest: packing\nerror: sfm_failed: no two match\n")
    os.utime(log, (1, 1))
    assert "sfm_failed" not in told()
    os.utime(log)
    listener.since = 0.0
    assert "sfm_failed: no two match" in (line := told()) and f"(log: {log})" in line
    (tmp_path / "ingest.log").write_text("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n")
    assert "KeyError: 'a'" in told()


def test_a_refused_ingest_is_asked_again_or_told_with_its_settings(made, ingest, caplog):
    listener = jobs_of(made)
    assert listener.refused(ingest, "sbatch: error: Unable to contact slurm controller")
    assert "ingest garden is not taken yet" in caplog.text
    assert not listener.refused(ingest, "sbatch: error: Requested time limit is invalid")
    line = caplog.messages[-1]
    assert "cannot be submitted: 90 minutes" in line and "site.ingest_runtime_min" in line
    assert "\n" not in line


def test_other_rules_have_no_say_of_the_planner(made, ingest):
    listener = jobs_of(made)
    assert not listener.finish(ingest) and listener.asks(ingest) == {}
    listener.interrupted([ingest])
