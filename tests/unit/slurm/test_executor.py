"""The executor of the workflow: what it adds to the Slurm plugin's, and what it needs of that one's interface."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.settings.types import GroupSettings
from snakemake_executor_plugin_slurm import Executor as SlurmExecutor

from dist3dgs.slurm import executor as module
from dist3dgs.slurm.client import SlurmError
from dist3dgs.slurm.executor import Executor, has_outputs, interface_problem


class Listener:
    """Says what the test wants."""

    def __init__(self, fates: dict[int, bool | None], again: bool = False, done: bool = False) -> None:
        self.fates, self.again, self.done, self.texts = fates, again, done, list[str]()

    def finish(self, job) -> bool:
        return self.done

    def asks(self, job) -> dict[str, int | str]:
        return {"slurm_partition": "fast"}

    def look(self) -> None: ...

    def failed(self, job, slurm_job: int, log) -> None: ...

    def poll_final_state(self, slurm_job: int) -> bool | None:
        return self.fates[slurm_job]

    def refused(self, job, text: str) -> bool:
        self.texts.append(text)
        return self.again


@pytest.fixture
def make(monkeypatch):
    """`make(listener)`: the executor without its thread; what the plugin would do is noted in `told`."""
    told = []

    async def check(self, active_jobs):
        for info in active_jobs:
            if info.external_jobid == "1":
                self.report_job_success(info)
            elif info.external_jobid == "2":
                yield info  # and 3 is forgotten, as where squeue does not answer

    def note(word):
        return lambda self, info, *a, **k: told.append((word, info.external_jobid))

    monkeypatch.setattr(SlurmExecutor, "__init__", lambda self, workflow, logger: None)
    monkeypatch.setattr(SlurmExecutor, "check_active_jobs", check)
    monkeypatch.setattr(SlurmExecutor, "report_job_success", note("ok"))
    monkeypatch.setattr(SlurmExecutor, "report_job_error", note("error"))
    monkeypatch.setattr(SlurmExecutor, "run_job", lambda self, job: told.append(("submitted", job)))

    def made(listener: Listener) -> Executor:
        module.register(listener)
        executor = Executor(SimpleNamespace(group_settings=GroupSettings()), None)
        executor.told, executor.wait, executor.active_jobs, executor.lock = told, True, [], threading.Lock()
        executor.run_uuid, executor.slurm_logdir = "this run", Path("logs")
        executor.next_seconds_between_status_checks = None
        executor.workflow = SimpleNamespace(
            remote_execution_settings=SimpleNamespace(seconds_between_status_checks=10),
            scheduler=SimpleNamespace(submit_callback=lambda job: told.append(("begun", job))),
        )
        return executor

    yield made
    module.register(None)
    signal.signal(module.WAKE, signal.SIG_DFL)


def looked_at(executor: Executor, *numbers: int) -> list[str]:
    async def look() -> list[str]:
        infos = [SimpleNamespace(job=None, external_jobid=str(n), aux={}) for n in numbers]
        return [info.external_jobid async for info in executor.check_active_jobs(infos)]

    return asyncio.run(look())


def test_no_job_is_lost_where_squeue_fails(make):
    executor = make(Listener({2: None, 3: None}))
    assert looked_at(executor, 1, 2, 3) == ["2", "3"] and executor.told == [("ok", "1")]


def test_a_job_that_is_gone_ends_as_it_did(make):
    executor = make(Listener({2: True, 3: False}))
    assert looked_at(executor, 2, 3) == []
    assert executor.told == [("ok", "2"), ("error", "3")]


def test_a_job_asks_for_what_has_changed_since_it_was_scheduled(make):
    job = SimpleNamespace(resources=SimpleNamespace(slurm_partition="slow"))
    executor = make(Listener({}))
    executor.run_job(job)
    assert executor.told == [("submitted", job)] and job.resources.slurm_partition == "fast"


def test_a_job_that_is_finished_here_is_not_submitted(make):
    job = SimpleNamespace(register=lambda external_jobid: None)
    executor = make(Listener({}, done=True))
    executor.run_job(job)
    assert executor.told == [("begun", job), ("ok", None)] and executor.active_jobs == []


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def a_job(**more) -> SimpleNamespace:
    return SimpleNamespace(
        name="train", wildcards=["results/fox", "n1g4"], resources=SimpleNamespace(), **more
    )


def test_a_submission_that_may_be_taken_later_is_no_error(make, monkeypatch):
    monkeypatch.setattr(module, "RESUBMIT_S", 0.0)
    monkeypatch.setattr(module, "submitted_as", lambda run, comment: [])
    said = "SLURM sbatch failed. The error message was 'sbatch: error: it isn't\nso'.\n    sbatch call:\n  x"
    listener = Listener({}, again=True)
    executor, job = make(listener), a_job()
    executor.report_job_error(SimpleNamespace(job=job, external_jobid=None), msg=said)
    until(lambda: executor.told)
    assert executor.told == [("submitted", job)]
    assert listener.texts == ["sbatch: error: it isn't\nso"]
    listener.again = False
    executor.report_job_error(
        SimpleNamespace(job=job, external_jobid=None),
        msg="Job submission failed with exception: no such account",
    )
    assert executor.told[1:] == [("error", None)] and listener.texts[-1] == "no such account"


def test_a_job_whose_submission_was_not_answered_is_followed(make, monkeypatch):
    """sbatch fails where its answer is lost; a second job would hold as many GPUs. Jobs that are known are not it."""
    asked = []

    def queue(run: str, comment: str) -> list[int]:
        asked.append((run, comment))
        if len(asked) == 1:
            raise SlurmError(["squeue"], 1, "Socket timed out")
        return [41, 57]

    monkeypatch.setattr(module, "RESUBMIT_S", 0.0)
    monkeypatch.setattr(module, "submitted_as", queue)
    executor, job = make(Listener({}, again=True)), a_job(register=lambda external_jobid: None)
    before = SimpleNamespace(job=job, external_jobid="41", aux={})
    executor.report_job_submission(before)
    executor.report_job_error(SimpleNamespace(job=job, external_jobid=None), msg="Socket timed out")
    until(lambda: len(executor.active_jobs) == 2)
    followed = executor.active_jobs[1]
    assert followed.job is job and followed.external_jobid == "57"
    assert followed.aux["slurm_logfile"] == Path("logs/rule_train/results_fox_n1g4/57.log")
    assert asked == [("this run", "rule_train_wildcards_results_fox_n1g4")] * 2
    assert "submitted" not in [word for word, _ in executor.told]
    executor.submit_again(job)  # both are known now: what is in the queue is not what it asks about
    assert executor.told[-1] == ("submitted", job)


def test_nothing_is_submitted_after_the_end(make):
    executor = make(Listener({}))
    executor.wait = False
    executor.submit_again("a job")
    assert executor.told == []


def test_a_look_at_the_queue_is_early_where_a_job_has_left_its_outputs(tmp_path):
    """Most of what a point costs beside its training is the wait for the next look."""
    output, since = tmp_path / "launch.json", {}
    info = SimpleNamespace(external_jobid="7", job=SimpleNamespace(output=[str(output)]))
    output.touch()
    os.utime(output, (time.time() - 100, time.time() - 100))
    assert not has_outputs(info, since)  # an earlier attempt's
    output.unlink()
    assert not has_outputs(info, since)
    output.touch()
    os.utime(output, (time.time() + 1, time.time() + 1))
    assert has_outputs(info, since)
    since["7"] -= 1000
    os.utime(output, (time.time() - 100, time.time() - 100))
    assert not has_outputs(info, since)  # whatever else the job does, it is not about to end


def test_the_wait_ends_early_but_not_at_once(make, monkeypatch):
    slept_s = 0.0

    async def sleep(seconds):
        nonlocal slept_s
        slept_s += seconds

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: slept_s)
    monkeypatch.setattr(module, "has_outputs", lambda info, since: True)
    executor = make(Listener({}))
    executor.active_jobs = ["a job"]
    executor.poll_s = executor.next_seconds_between_status_checks = 1e6
    asyncio.run(executor.sleep())
    assert slept_s == module.QUICK_S


def test_an_interrupt_that_does_not_wake_the_main_thread_is_noticed(make):
    """One that another thread was given: the main thread, in a lock, does not see it by itself."""
    executor, lock, given_up = make(Listener({})), threading.Semaphore(0), threading.Event()
    executor.poll_s = executor.next_seconds_between_status_checks = 1e6

    def wait_between_looks():
        time.sleep(0.2)  # the main thread waits for the lock
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        try:
            asyncio.run(asyncio.wait_for(executor.sleep(), 10))
        except TimeoutError:
            given_up.set()
            lock.release()

    thread = threading.Thread(target=wait_between_looks)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        lock.acquire()
    executor.wait = False
    thread.join()
    assert not given_up.is_set()


def test_looks_at_the_queue_stay_regular(make):
    """The plugin raises its waiting time by ten seconds per look; capped, it stays where it was put."""
    executor = make(Listener({}))
    executor.poll_s = 15
    assert executor.next_seconds_between_status_checks == 10
    executor.next_seconds_between_status_checks = 180
    assert executor.next_seconds_between_status_checks == 15


def test_a_job_is_one_snakemake_by_a_path_that_may_have_a_space(make, monkeypatch):
    executor = make(Listener({}))
    assert executor.additional_general_args() == "" and executor.get_job_exec_prefix(None) == "trap : TERM"
    monkeypatch.setattr(SlurmExecutor, "get_python_executable", lambda self: "/my work/bin/python")
    assert executor.get_python_executable() == "'/my work/bin/python'"


def test_no_account_is_guessed(make, monkeypatch):
    """Slurm has a default account of its own; the plugin would take the last job's, whatever that was."""
    monkeypatch.setattr(SlurmExecutor, "get_account_arg", lambda self, job: iter([" -A from-the-plugin"]))
    executor = make(Listener({}))
    for account, argument in ((None, ""), ("mine", " -A from-the-plugin")):
        resources = {"slurm_account": account} if account else {}
        assert next(executor.get_account_arg(SimpleNamespace(resources=resources))) == argument


def test_another_workflow_is_told_that_nobody_plans_its_jobs():
    from snakemake_interface_common.exceptions import WorkflowError

    module.register(None)
    with pytest.raises(WorkflowError, match=r"workflow of dist3dgs alone.*--executor slurm"):
        Executor(None, None)


def test_groups_are_refused():
    from snakemake_interface_common.exceptions import WorkflowError

    grouped = SimpleNamespace(group_settings=GroupSettings(overwrite_groups={"train": "small"}))
    module.register(SimpleNamespace())
    try:
        with pytest.raises(WorkflowError, match=r"--groups.*lower `jobs`"):
            Executor(grouped, None)
    finally:
        module.register(None)


def test_the_installed_interface_is_the_tested_one():
    assert interface_problem() is None


def test_another_version_is_named_with_the_way_to_the_tested_one():
    pins = ["torch>=2", "snakemake-executor-plugin-slurm==2.8.*", 'snakemake-extra==1; extra == "dev"']
    assert interface_problem(requirements=pins, version=lambda name: "2.8.3") is None
    problem = interface_problem(requirements=pins, version=lambda name: "2.9.0")
    assert "snakemake-executor-plugin-slurm 2.9.0" in problem and "==2.8.*" in problem
    assert "pip install 'snakemake-executor-plugin-slurm==2.8.*'" in problem and "\n" not in problem


def test_a_changed_interface_is_named():
    class Renamed(SlurmExecutor):
        run_job = None

    class Changed(SlurmExecutor):
        def cancel_jobs(self, jobs, force): ...

    class Fixed(SlurmExecutor):
        next_seconds_between_status_checks = 10

    assert "run_job is missing" in interface_problem(Renamed)
    assert "takes (self, jobs, force), expected (self, active_jobs)" in interface_problem(Changed)
    assert "next_seconds_between_status_checks" in interface_problem(Fixed)


@pytest.mark.slow
def test_snakemake_stops_at_once_and_in_one_line(repository, tmp_path):
    """A newer plugin, by its metadata: no graph is built, other profiles run on."""
    info = tmp_path / "snakemake_executor_plugin_slurm-2.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: snakemake-executor-plugin-slurm\nVersion: 2.9.0\n"
    )

    def dry_run(profile: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--profile", f"profiles/{profile}", "-n", "--nolock", "train_all"],
            cwd=repository, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip

    done = dry_run("slurm")
    assert done.returncode == 2 and done.stdout == ""
    told = [line for line in done.stderr.splitlines() if not line.startswith("Using profile")]
    assert len(told) == 1 and "error: snakemake-executor-plugin-slurm 2.9.0 is not tested" in told[0]
    assert dry_run("local").returncode == 0
