"""Evidence in, verdict out."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist3dgs.diagnosis import diagnose
from dist3dgs.errors import UserError
from dist3dgs.records.build import judge, verdict_of_run
from dist3dgs.runs.events import events_path
from tests.unit.helpers.evidence import (
    comm,
    evaluation,
    healthy,
    phase,
    spec,
    start,
    step,
    timing,
    write_attempt,
)


def test_a_healthy_run(tmp_path: Path) -> None:
    record = judge(write_attempt(tmp_path, spec(), healthy(), peak_pss_gib=2.5))
    m = record.metrics
    assert record.status == "ok" and record.failure is None
    assert (m.psnr, m.steps, m.images, m.num_gaussians) == (25.0, 50, 100, 12)
    assert m.train_s == 72.0, "the slowest rank counts"
    assert m.images_per_s == pytest.approx(2 / (72 / 50))
    assert m.comm_s == 7.0 and m.exposed_comm_s == 6.0, "the broadcast at the start is no part of the steps"
    assert m.peak_rss_gib == 1.7 and m.peak_host_gib == 2.5
    assert m.compute_s == pytest.approx(72 - 6) and m.compute_to_comm == pytest.approx((72 - 6) / 7)
    assert m.phases_s["startup"] == pytest.approx(6.0), (
        "from the launcher's start to the last rank having joined"
    )
    assert [r.phases_s["startup"] for r in m.ranks] == pytest.approx([5.0, 6.0])
    assert m.total_s == pytest.approx(100.0)
    assert [r.parameter_digest for r in m.ranks] == ["aa", "aa"]
    assert set(record.provenance.evidence_sha256) == {"launch.json", "events.jsonl", "train.log"}


def test_event_files_of_several_nodes_are_one_run(tmp_path: Path) -> None:
    """One event file per node is read like the single file of an earlier version; evidence names the node's."""
    error = {
        "t": 1020.0,
        "rank": 1,
        "event": "error",
        "type": "RuntimeError",
        "message": "boom",
        "phase": "step",
    }
    failing = [*(e for e in healthy() if e["event"] != "end"), error]
    for events, status in ((healthy(), "ok"), (failing, "failed")):
        whole = judge(write_attempt(tmp_path / status, spec(), events, status=status))
        launch = write_attempt(tmp_path / f"{status}-split", spec(), [], status=status)
        folder = launch.parent / "attempts/000"
        (folder / "events.jsonl").unlink()
        for rank in (0, 1):
            own = [e for e in events if e["rank"] == rank]
            events_path(folder, f"n{rank}").write_text("".join(json.dumps(e) + "\n" for e in own))
        split = judge(launch)
        assert (split.status, split.metrics) == (whole.status, whole.metrics)
        names = {"launch.json", "train.log", "events.n0.jsonl", "events.n1.jsonl"}
        assert set(split.provenance.evidence_sha256) == names
    assert split.failure is not None and whole.failure is not None
    assert split.failure.evidence[0].file.endswith("events.n1.jsonl")
    assert (split.failure.cause, split.failure.rank) == (whole.failure.cause, whole.failure.rank)


def with_collectives(*collectives: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for e in healthy() if e["event"] != "comm"] + list(collectives)


def test_collectives_are_the_slowest_ranks_own_by_phase(tmp_path: Path) -> None:
    """Rank 0 is the faster one; it waits longer for gradients, and all that is gathered comes to it."""
    events = with_collectives(
        comm(0, "all_reduce(gradients)", 30.0, 29.0), comm(1, "all_reduce(gradients)", 7.0, 6.0),
        comm(0, "all_to_all(projections)", 1.0, 1.0), comm(1, "all_to_all(projections)", 2.0, 1.0),
        comm(0, "all_to_all(projections)", 50.0, 50.0, "evaluate"),
        comm(1, "all_to_all(projections)", 40.0, 40.0, "evaluate"),
        comm(0, "all_to_all(gather)", 9.0, 9.0, "checkpoint", 0),
        comm(1, "all_to_all(gather)", 3.0, 3.0, "checkpoint", 5000),
    )  # fmt: skip
    m = judge(write_attempt(tmp_path, spec(), events)).metrics
    assert (m.comm_s, m.exposed_comm_s) == (9.0, 7.0) and m.compute_s == pytest.approx(72 - 7)
    assert (m.ranks[0].comm_s, m.ranks[1].comm_s) == (31.0, 9.0)
    assert [(c.phase, c.op, c.s, c.bytes, c.bytes_all_ranks) for c in m.collectives] == [
        ("step", "all_reduce(gradients)", 7.0, 1000, 2000),
        ("step", "all_to_all(projections)", 2.0, 1000, 2000),
        ("evaluate", "all_to_all(projections)", 40.0, 1000, 2000),
        ("checkpoint", "all_to_all(gather)", 3.0, 5000, 5000),
    ]


SHARES = ("compute_s", "comm_s", "exposed_comm_s", "compute_to_comm")


@pytest.mark.parametrize("case", ["no step sampled", "older evidence"])
def test_shares_that_were_not_measured_are_null_with_a_reason(case: str, tmp_path: Path) -> None:
    if case == "no step sampled":  # as a GPU run of five steps
        events = with_collectives(comm(0, "all_reduce", None, None), comm(1, "all_reduce", None, None))
        events = [e | {"parts_s": {}} if e["event"] == "timing" else e for e in events]
    else:
        events = with_collectives(
            comm(0, "all_reduce", 5.0, 4.0, None), comm(1, "all_reduce", 5.0, 4.0, None)
        )
    record = judge(write_attempt(tmp_path, spec(), events))
    for name in SHARES:
        assert getattr(record.metrics, name) is None and record.reasons[name], name
    assert all(r.compute_s is None and r.comm_s is None for r in record.metrics.ranks)
    assert record.metrics.collectives[0].bytes_all_ranks == 2000


def test_one_rank_only_computes(tmp_path: Path) -> None:
    events = [start(0), step(50, 1080.0), timing(0, 70.0)]
    record = judge(write_attempt(tmp_path, spec("n1g1"), events))
    assert record.metrics.compute_s == pytest.approx(70.0) and record.metrics.comm_s is None
    assert "one rank" in record.reasons["comm_s"] and "compute_s" not in record.reasons


def test_what_is_not_known_is_null_with_a_reason(tmp_path: Path) -> None:
    record = judge(write_attempt(tmp_path, spec(), healthy()))
    for name in ("lpips", "peak_gpu_gib"):
        assert getattr(record.metrics, name) is None and record.reasons[name]


def test_a_rank_killed_while_stepping(tmp_path: Path) -> None:
    events = [start(0), start(1), phase("enter", "step", 1007.0), step(25, 1040.0)]
    log = "W torch.distributed.elastic\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 42)\n"
    record = judge(write_attempt(tmp_path, spec(), events, log=log, status="failed", returncode=1))
    assert record.status == "failed" and record.failure
    assert (record.failure.phase, record.failure.step) == ("step", 25)
    assert record.failure.evidence and "-9" in record.failure.evidence[0].text
    assert record.metrics.psnr is None and record.reasons["psnr"]


@pytest.mark.parametrize(
    "log, returncode, cause",
    [
        ("traceback : Signal 8 (SIGFPE) received by PID 42\n", 1, "crashed"),
        ("traceback : Signal 11 (SIGSEGV) received by PID 42\n", 1, "gpu_fault"),
        ("training\n", -8, "crashed"),
        ("training\n", 134, "crashed"),
        ("training\n", 1, "unknown"),
    ],
)
def test_a_rank_that_a_signal_ended(tmp_path: Path, log: str, returncode: int, cause: str) -> None:
    events = [start(0), start(1), phase("enter", "step", 1007.0), step(25, 1040.0)]
    record = judge(write_attempt(tmp_path, spec(), events, log=log, status="failed", returncode=returncode))
    assert record.failure and (record.failure.cause, record.failure.phase) == (cause, "step")
    assert record.failure.evidence and record.failure.remedy


def test_the_first_error_counts_not_those_who_noticed(tmp_path: Path) -> None:
    def error(rank: int, t: float, kind: str, text: str) -> dict[str, object]:
        fields = {"type": kind, "message": text, "traceback": "", "phase": "densify", "step": 30}
        return {"t": t, "rank": rank, "event": "error", **fields}

    events = [
        start(0),
        start(1),
        error(0, 1050.0, "RuntimeError", "Connection closed by peer"),
        error(1, 1049.0, "Diverged", "loss is nan at step 30"),
    ]
    record = judge(write_attempt(tmp_path, spec(), events, status="failed", returncode=1))
    assert record.failure
    assert (record.failure.rank, record.failure.cause, record.failure.phase) == (1, "diverged", "densify")
    assert record.failure.remedy


def test_fewer_devices_than_workers_is_degraded(tmp_path: Path) -> None:
    events = [start(r, device="cuda:0") for r in range(2)] + healthy()[2:]
    record = judge(write_attempt(tmp_path, spec(), events))
    assert record.status == "degraded" and record.failure
    assert record.failure.cause == "allocation_mismatch"


def test_a_resumed_run_is_one_story(tmp_path: Path) -> None:
    first = [start(0), start(1), step(20, 1030.0), evaluation(20, 20.0)]
    write_attempt(tmp_path, spec(), first, status="stopped", started_at=500.0, finished_at=540.0)
    second = [start(0), start(1), {"t": 1004.0, "rank": 0, "event": "resume", "step": 20}, *healthy()[2:]]
    second = [e | {"steps": 30} if e["event"] == "timing" else e for e in second]
    record = judge(write_attempt(tmp_path, spec(), second))
    assert (record.metrics.steps, record.metrics.timed_steps) == (50, 30)
    assert "30 steps since the last resume" in record.reasons["comm_s"] and record.metrics.comm_s
    assert [p.step for p in record.metrics.curve] == [20, 50]
    assert record.metrics.total_s == pytest.approx(140.0), "the wait between attempts is not counted"
    assert record.provenance.attempt == 1


def test_attempts_under_other_settings_are_another_story(tmp_path: Path) -> None:
    write_attempt(tmp_path, spec(), [evaluation(10, 99.0)], digest="other")
    record = judge(write_attempt(tmp_path, spec(), healthy()))
    assert len(record.metrics.curve) == 1


def test_no_evidence_at_all_is_unknown_not_invented(tmp_path: Path) -> None:
    record = judge(write_attempt(tmp_path, spec(), [], status="failed", returncode=1))
    assert record.status == "failed" and record.failure and record.failure.cause == "unknown"
    assert record.failure.phase == "startup"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_broken_summary_is_answered_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results/mine/replicated/n1g2/r0/launch.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=rf"launch\.json.*snakemake .*{path}"):
        judge(path)
    elsewhere = tmp_path / "launch.json"
    elsewhere.write_text(text)
    with pytest.raises(UserError) as e:
        judge(elsewhere)
    assert "snakemake" not in str(e.value), "no target has that path"


def test_what_became_of_earlier_attempts_is_kept(tmp_path: Path) -> None:
    lost = {"cause": "node_failure", "note": "State=NODE_FAIL", "at": 540.0}
    write_attempt(tmp_path, spec(), [start(0), start(1)], status="running", ended=lost, finished_at=None)
    write_attempt(tmp_path, spec(), [start(0), start(1)], status="stopped", signal="SIGTERM", returncode=1)
    record = judge(write_attempt(tmp_path, spec(), healthy()))
    assert record.status == "ok"
    assert [(e.attempt, e.failure and e.failure.cause) for e in record.earlier] == [
        (0, "node_failure"),
        (1, "cancelled"),
    ]
    assert record.earlier[0].finished_at == 540.0


def test_evidence_names_the_line_of_the_event(tmp_path: Path) -> None:
    fault = {"type": "KeyError", "message": "'means'", "traceback": "", "phase": "step", "step": 3}
    events = [start(0), start(1), {"t": 1005.0, "rank": 1, "event": "error", **fault}]
    record = judge(write_attempt(tmp_path, spec(), events, status="failed", returncode=1))
    assert record.failure and record.failure.evidence[0].line == 3


@pytest.mark.parametrize(
    ("cause", "silent_s", "expected"),
    [
        ("time_limit", 7200.0, "no_progress"),
        ("cancelled", 1900.0, "no_progress"),
        ("time_limit", 600.0, "time_limit"),
        ("node_failure", 7200.0, "node_failure"),
    ],
)
def test_a_stop_after_a_long_silence_is_no_progress(
    tmp_path: Path, cause: str, silent_s: float, expected: str
) -> None:
    events = [start(0), start(1), phase("enter", "step", 1004.0), step(25, 1040.0)]
    ended = {"cause": cause, "note": "State=TIMEOUT", "at": 1040.0 + silent_s}
    record = judge(write_attempt(tmp_path, spec(), events, status="failed", returncode=1, ended=ended))
    assert record.failure and record.failure.cause == expected
    if expected == "no_progress":
        assert (record.failure.step, record.failure.phase) == (25, "step")
        assert record.failure.evidence[0].line == 4


def test_a_run_without_a_step_gets_an_hour(tmp_path: Path) -> None:
    for seconds, expected in ((3000.0, "time_limit"), (4000.0, "no_progress")):
        ended = {"cause": "time_limit", "note": "State=TIMEOUT", "at": 1003.0 + seconds}
        path = tmp_path / expected
        record = judge(write_attempt(path, spec(), [start(0), start(1)], status="failed", ended=ended))
        assert record.failure and record.failure.cause == expected


def test_what_the_launcher_ended_for_want_of_events_is_no_progress(tmp_path: Path) -> None:
    events = [start(0), start(1), phase("enter", "step", 1004.0), step(25, 1040.0)]
    record = judge(
        write_attempt(
            tmp_path, spec(), events, status="failed", returncode=1, stalled=True, finished_at=2300.0
        )
    )
    assert record.failure and record.failure.cause == "no_progress"
    assert "1260 s" in record.failure.evidence[1].text


def test_what_torchrun_printed_counts_where_no_rank_wrote_an_event(tmp_path: Path) -> None:
    log = (
        "$ python -m torch.distributed.run\n"
        "Traceback (most recent call last):\n"
        '  File "dist3dgs/train/__main__.py", line 3, in <module>\n'
        "    import torch\n"
        "ModuleNotFoundError: No module named 'torch'\n"
        "E0101 10:00:00.0 7 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: 1) local_rank: 0\n"
    )
    record = judge(write_attempt(tmp_path, spec(), [], log=log, status="failed", returncode=1))
    assert record.failure and record.failure.cause == "environment"
    (first, *_) = record.failure.evidence
    assert (first.file, first.line) == ("attempts/000/train.log", 5)


def nccl_abort(rank: int) -> str:
    """What NCCL's watchdog and torchrun print when a collective of that rank timed out."""
    prefix = f"[rank{rank}]:[E1103 09:00:00.1 ProcessGroupNCCL.cpp:683] "
    return (
        f"{prefix}[Rank {rank}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=812, OpType=ALLREDUCE, "
        "NumelIn=59, NumelOut=59, Timeout(ms)=600000) ran for 600061 milliseconds before timing out.\n"
        f"{prefix}[PG ID 0 PG GUID 0(default_pg) Rank {rank}] Process group watchdog thread terminated with exception: "
        f"[Rank {rank}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=812, OpType=ALLREDUCE)\n"
    )


@pytest.mark.parametrize("silent", [0, 1, 3])
def test_the_rank_that_nccl_waited_for_is_the_one_whose_watchdog_said_nothing(
    tmp_path: Path, silent: int
) -> None:
    events = [*(start(r, host=f"node{r}") for r in range(4)), step(25, 1040.0)]
    events += [phase("enter", "step" if r != silent else "evaluate", 1007.0 + r, rank=r) for r in range(4)]
    log = "".join(nccl_abort(r) for r in (2, 0, 3, 1) if r != silent)
    log += (
        "Root Cause (first observed failure):\n  rank      : 2 (local_rank: 2)\n  exitcode  : -6 (pid: 42)\n"
    )
    log += "  traceback : Signal 6 (SIGABRT) received by PID 42\n"
    run = spec("n1g4")
    record = judge(write_attempt(tmp_path, run, events, log=log, status="failed", returncode=1))
    assert record.failure
    assert record.failure.cause == "collective_timeout", record.failure
    assert (record.failure.rank, record.failure.phase) == (silent, "evaluate")
    assert (record.failure.step, record.failure.node) == (25, f"node{silent}")


def test_where_every_watchdog_spoke_no_rank_is_accused(tmp_path: Path) -> None:
    log = nccl_abort(0) + nccl_abort(1)
    events = [start(0), start(1), phase("enter", "step", 1007.0), step(25, 1040.0)]
    record = judge(write_attempt(tmp_path, spec(), events, log=log, status="failed", returncode=1))
    assert record.failure and record.failure.cause == "collective_timeout"


def test_a_disk_so_full_that_no_rank_could_say_so(tmp_path: Path) -> None:
    full = "OSError: [Errno 28] No space left on device: attempts/000"
    events = [start(0), start(1), phase("enter", "step", 1007.0), step(25, 1040.0)]
    record = judge(write_attempt(tmp_path, spec(), events, status="failed", returncode=1, disk_full=full))
    assert record.failure and (record.failure.cause, record.failure.phase) == ("disk_full", "step")
    assert record.failure.evidence[0].text == full and "df -h" in (record.failure.remedy or "")


def test_a_long_evaluation_that_went_on_was_no_standstill(tmp_path: Path) -> None:
    events = [start(0), start(1), step(25, 1040.0), phase("enter", "evaluate", 1041.0)]
    events += [
        {"t": 1041.0 + s, "rank": 0, "event": "progress", "phase": "evaluate", "step": 25, "views": s}
        for s in range(0, 7200, 600)
    ]
    ended = {"cause": "time_limit", "note": "State=TIMEOUT", "at": 1041.0 + 7200}
    record = judge(write_attempt(tmp_path, spec(), events, status="failed", returncode=1, ended=ended))
    assert record.failure and record.failure.cause == "time_limit"


def test_the_node_of_the_rank_that_failed(tmp_path: Path) -> None:
    fault = {"type": "KeyError", "message": "'means'", "traceback": "", "phase": "step", "step": 3}
    events = [start(0), start(1, host="node2"), {"t": 1005.0, "rank": 1, "event": "error", **fault}]
    record = judge(write_attempt(tmp_path, spec(), events, status="failed", returncode=1))
    assert record.failure and (record.failure.rank, record.failure.node) == (1, "node2")


def test_ranks_that_never_began_and_were_ended_by_the_launcher_were_not_killed_by_somebody(
    tmp_path: Path,
) -> None:
    record = judge(write_attempt(tmp_path, spec(), [], status="failed", returncode=-9, stalled=True))
    assert record.failure and (record.failure.cause, record.failure.phase) == ("no_progress", "startup")
    assert "no event at all in 100 s" in record.failure.evidence[0].text


def stepping(until: float, last_step: int, stopped: bool) -> list[dict[str, Any]]:
    """An attempt from 1000 s on: joined at 1005 s, loaded in 5 s, then steps with 10 s of evaluation among them."""
    events = [
        start(0),
        start(1),
        *(phase("leave", "startup", 1005.0, rank=r, s=2.0) for r in (0, 1)),
        *(phase("enter", "load", 1005.0, rank=r) for r in (0, 1)),
        *(phase("leave", "load", 1010.0, rank=r, s=5.0) for r in (0, 1)),
        *(phase("enter", "step", 1010.0, rank=r) for r in (0, 1)),
        *(phase("enter", "evaluate", 1020.0, rank=r) for r in (0, 1)),
        *(phase("leave", "evaluate", 1030.0, rank=r, s=10.0) for r in (0, 1)),
        step(last_step, until - 10),
    ]
    if stopped:
        events += [
            *({"t": until - 5, "rank": r, "event": "signal", "signal": "SIGTERM"} for r in (0, 1)),
            *(phase("enter", "checkpoint", until - 3, rank=r) for r in (0, 1)),
            *(phase("leave", "checkpoint", until - 1, rank=r, s=2.0) for r in (0, 1)),
            {"t": until - 1, "rank": 0, "event": "end", "status": "stopped", "step": last_step},
            *(phase("leave", "step", until, rank=r, s=until - 1010) for r in (0, 1)),
        ]
    return events


def resumed() -> list[dict[str, Any]]:
    return [start(0), start(1), {"t": 1004.0, "rank": 0, "event": "resume", "step": 20}, *healthy()[2:]]


@pytest.mark.parametrize("stopped", [True, False])
def test_phases_of_all_attempts_add_up_as_the_total_does(tmp_path: Path, stopped: bool) -> None:
    """Told to stop, or killed without a word in the middle of a step."""
    told = {"status": "stopped", "signal": "SIGTERM"} if stopped else {"status": "failed", "returncode": -9}
    write_attempt(tmp_path, spec(), stepping(1100.0, 1870, stopped), **told)
    record = judge(write_attempt(tmp_path, spec(), resumed()))
    m = record.metrics
    assert m.total_s == 200.0
    assert m.phases_s["startup"] == pytest.approx(5 + 6)
    assert m.phases_s["load"] == pytest.approx(5 + 0.1)
    assert m.phases_s["evaluate"] == pytest.approx(10)
    saved = 2.0 if stopped else 0.0
    assert m.phases_s.get("checkpoint", 0.0) == pytest.approx(saved)
    assert m.phases_s["step"] == pytest.approx(90 - 10 - saved + 72), "nested phases are not counted twice"
    assert sum(m.phases_s.values()) <= m.total_s
    for rank in m.ranks:
        assert rank.phases_s["step"] == pytest.approx(90 - 10 - saved + (70, 72)[rank.rank])


@pytest.mark.parametrize("stopped", [True, False])
def test_an_earlier_failure_is_of_the_phase_it_happened_in(tmp_path: Path, stopped: bool) -> None:
    events = stepping(1100.0, 1870, stopped)
    lost = {"cause": "preempted", "note": "State=PREEMPTED", "at": 1100.0}
    write_attempt(tmp_path, spec(), events, status="stopped" if stopped else "running", ended=lost)
    (earlier,) = judge(write_attempt(tmp_path, spec(), resumed())).earlier
    assert earlier.failure is not None
    assert (earlier.failure.cause, earlier.failure.phase, earlier.failure.step) == ("preempted", "step", 1870)


def test_a_signal_during_evaluation_found_the_run_there(tmp_path: Path) -> None:
    events = [e for e in stepping(1100.0, 1870, True) if e["event"] != "signal"]
    at = next(i for i, e in enumerate(events) if e.get("phase") == "evaluate" and e["event"] == "leave")
    events.insert(at, {"t": 1025.0, "rank": 0, "event": "signal", "signal": "SIGTERM"})
    write_attempt(tmp_path, spec(), events, status="stopped", signal="SIGTERM")
    (earlier,) = judge(write_attempt(tmp_path, spec(), resumed())).earlier
    assert earlier.failure is not None and earlier.failure.phase == "evaluate"


def test_an_attempt_that_was_not_continued_counts_in_neither(tmp_path: Path) -> None:
    write_attempt(tmp_path, spec(), stepping(1100.0, 1870, True), status="stopped", signal="SIGTERM")
    m = judge(write_attempt(tmp_path, spec(), healthy())).metrics
    assert m.total_s == 100.0 and m.phases_s["step"] == pytest.approx(72.0)


def judged(folder: Path, *attempts: dict[str, Any]) -> Any:
    """The record of a run that was resumed once per further attempt."""
    for i, facts in enumerate(attempts):
        resumed = [{"t": 1004.0, "rank": 0, "event": "resume", "step": 10}] if i else []
        path = write_attempt(folder, spec(), [*healthy(), *resumed], **facts)
    return judge(path)


def test_other_jobs_on_its_nodes_are_recorded(tmp_path: Path) -> None:
    slurm = {"job_id": 1, "nodes": ["a"]}
    alone = {"slurm": slurm, "co_tenancy": {"shared": False, "jobs": {}, "reason": None}}
    company = {"slurm": slurm, "co_tenancy": {"shared": True, "jobs": {"a": ["12"]}, "reason": None}}
    blind = {"slurm": slurm, "co_tenancy": {"shared": None, "jobs": {}, "reason": "no answer"}}
    found = judged(tmp_path / "alone", alone)
    assert found.environment.nodes_shared is False and "nodes_shared" not in found.reasons
    # Company of an attempt that the last one continues counts: its steps are in the totals.
    found = judged(tmp_path / "resumed", company, alone)
    assert found.environment.nodes_shared is True and found.environment.neighbours == {"a": ["12"]}
    for name, facts, reason in (
        ("blind", blind, "no answer"),
        ("killed", {"slurm": slurm}, "was killed"),
        ("local", {}, "not a Slurm job"),
    ):
        found = judged(tmp_path / name, facts)
        assert found.environment.nodes_shared is None and reason in found.reasons["nodes_shared"]


def error(kind: str, t: float, rank: int = 1, message: str = "'means'") -> dict[str, Any]:
    fields = {"type": kind, "message": message, "traceback": "", "phase": "step", "step": 26}
    return {"t": t, "rank": rank, "event": "error", **fields}


@pytest.mark.parametrize("error_t, cause", [(1050.0, "code_error"), (1070.0, "preempted")])
def test_an_error_before_the_end_from_outside_explains_it_and_one_after_it_does_not(
    tmp_path: Path, error_t: float, cause: str
) -> None:
    events = [
        start(0),
        start(1),
        phase("enter", "step", 1004.0),
        step(25, 1040.0),
        error("KeyError", error_t),
    ]
    events.append({"t": 1060.0, "rank": 0, "event": "signal", "signal": "SIGTERM"})
    ended = {"cause": "preempted", "note": "State=PREEMPTED", "at": 1090.0}
    launch = write_attempt(tmp_path, spec(), events, status="running", ended=ended, finished_at=None)
    verdict = verdict_of_run(launch)
    assert (verdict.status, verdict.cause) == ("failed", cause)
    other = {"code_error": "preempted", "preempted": "code_error"}[cause]
    assert [r.cause for r in verdict.ruled_out] == [other], "what was not chosen is named with the reason"


def test_a_hang_before_the_first_step_is_no_progress_though_the_ranks_answered_the_signal(
    tmp_path: Path,
) -> None:
    events = [start(0), start(1), phase("enter", "load", 1004.0)]
    events += [{"t": 5100.0, "rank": r, "event": "signal", "signal": "SIGTERM"} for r in (0, 1)]
    ended = {"cause": "time_limit", "note": "State=TIMEOUT", "at": 5100.0}
    record = judge(write_attempt(tmp_path, spec(), events, status="failed", returncode=1, ended=ended))
    assert record.failure and (record.failure.cause, record.failure.phase) == ("no_progress", "load")


def test_lost_peers_do_not_hide_that_the_run_was_stopped(tmp_path: Path) -> None:
    """The first peers to be gone had been told to stop."""
    events = [start(0), start(1), error("RuntimeError", 1050.0, 0, "[gloo] Connection closed by peer")]
    write_attempt(tmp_path, spec(), events, status="stopped", signal="SIGTERM", returncode=1)
    (earlier,) = judge(write_attempt(tmp_path, spec(), healthy())).earlier
    assert earlier.failure and earlier.failure.cause == "cancelled"


def test_files_given_by_name_are_judged_as_the_run_is(tmp_path: Path) -> None:
    """`diagnose` with the launcher's summary among the files: the same evidence, the same root cause."""
    ended = {"cause": "host_oom", "note": "memory.events: oom_kill 1", "at": 1090.0}
    log = "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 42)\n"
    cases: list[dict[str, Any]] = [
        {"log": log},
        {"ended": ended, "log": log},
        {"stalled": True},
        {"returncode": -8},
        {"disk_full": "OSError: [Errno 28] No space left on device: a"},
        {"refused": "4 workers asked for, 2 GPUs here", "status": "refused"},
        {},
    ]
    for i, facts in enumerate(cases):
        events = [start(0), start(1, pid=42), phase("enter", "step", 1007.0), step(25, 1040.0)]
        launch = write_attempt(
            tmp_path / str(i), spec(), events, **{"status": "failed", "returncode": 1, **facts}
        )
        want = verdict_of_run(launch)
        folder = launch.parent / "attempts/000"
        found = diagnose(sorted(folder.iterdir()))
        names = ("status", "cause", "phase", "step", "rank", "node", "remedy")
        if want.cause == "unknown":  # it names the log by its path
            names = names[:-1]
        assert [getattr(found, n) for n in names] == [getattr(want, n) for n in names], facts
