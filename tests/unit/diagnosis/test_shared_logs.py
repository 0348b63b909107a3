"""The real logs of other people's jobs, where they are at hand."""

# ruff: noqa: E501 (lines of logs are as long as they are)

import json
import shutil
from pathlib import Path

import pytest

from dist3dgs.analysis import rank_unit
from dist3dgs.analysis.journey import attempts, performance_comparison
from dist3dgs.diagnosis import diagnose
from dist3dgs.diagnosis.summary import read_logs
from dist3dgs.records.import_record import import_record

CATEGORIES = {
    1: {"allocation_mismatch"}, 2: {"parameter_mismatch"}, 3: {"host_oom"}, 4: {"gpu_oom"}, 5: {"rendezvous"}, 6: {"collective_timeout"},
    7: {"nccl_error"}, 8: {"port_in_use"}, 9: {"time_limit"}, 10: {"node_failure", "preempted"}, 11: {"disk_full"}, 12: {"environment"},
    13: {"extension_build"}, 14: {"diverged"}, 15: {"sfm_failed"}, 16: {"dataset_corrupt"}, 17: {"shared_memory"}, 18: {"unused_parameters"},
    19: {"gpu_fault"}, 20: {None}, 21: {"submission_rejected"}, 22: {"code_error"}, 23: {"code_error"},
}  # fmt: skip


def test_at_least_42_of_44_with_the_line_that_proves_it(shared: Path) -> None:
    folder = shared / "failure-logs"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    wrong, strictly_wrong, false_alarms = [], [], []
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for entry in index:
        verdict = diagnose([folder / entry["file"]])
        named = want = CATEGORIES[int(entry["category"].split("_")[0])]
        # One half of a job that proves nothing by itself: saying so is right.
        if entry["key_evidence_line"] is None or entry["verdict"] == "unknown":
            want = {"unknown"}
        key = entry["key_evidence_line"] or ""
        shown = (
            verdict.status == "ok"
            or any(key.strip() in e.text or e.text in key for e in verdict.evidence)
            or not key
        )
        if verdict.cause not in named:
            strictly_wrong.append(entry["file"][:3])
        if verdict.cause not in want or not shown:
            wrong.append((entry["file"], verdict.status, verdict.cause))
        if entry["verdict"] == "healthy" and verdict.status in ("failed", "degraded"):
            false_alarms.append(entry["file"])
    assert len(index) - len(wrong) >= 43, wrong
    # Counted strictly, `unknown` is wrong for a half that proves nothing: stderr of 002 and 003 shows no devices, 008 no
    # end, and 004 is the stdout of a crash whose stderr is 005.
    assert set(strictly_wrong) <= {"002", "003", "004", "008"}, strictly_wrong
    assert not false_alarms


def test_the_allocation_of_four_that_used_one(shared: Path) -> None:
    job = shared / "nova-logs" / "4gpu_9097883.out"
    if not job.exists():
        pytest.skip(f"{job} is not there")
    s = read_logs([job, job.with_suffix(".err")])
    assert (s.job_id, s.devices_asked, s.devices_used, s.iterations, s.total_s) == (
        "9097883",
        4,
        1,
        7000,
        617,
    )
    assert s.phases_s["caching"] == 249 and s.phases_s["stepping"] == pytest.approx(284, abs=3)
    assert s.step_s is not None and s.step_s.mean == pytest.approx(0.0407, abs=0.0002)
    assert s.step_s.p5 < 0.01 and s.step_s.p95 < 0.083  # from 7 ms to 83 ms: the last line is not the average
    verdict = diagnose([job, job.with_suffix(".err")])
    assert (verdict.status, verdict.cause) == ("degraded", "allocation_mismatch")
    assert verdict.remedy is not None and "--machine.num-devices 4" in verdict.remedy


def test_the_stride_crash_that_says_training_complete(shared: Path, tmp_path: Path) -> None:
    job = shared / "nova-logs" / "4gpu_9104940.out"
    if not job.exists():
        pytest.skip(f"{job} is not there")
    verdict = diagnose([job, job.with_suffix(".err")])
    assert (verdict.status, verdict.cause, verdict.rank) == ("failed", "parameter_mismatch", 1)
    assert (
        verdict.remedy is not None and "init: broadcast" not in verdict.remedy
    )  # nerfstudio has no such setting
    alone = diagnose([shutil.copy(job, tmp_path)])
    assert alone.status == "failed" and any("Training Complete!" in e.text for e in alone.evidence)


def test_the_two_real_jobs_tell_their_story(shared: Path, tmp_path: Path) -> None:
    logs = shared / "nova-logs"
    if not (logs / "4gpu_9097883.out").exists():
        pytest.skip(f"{logs} has no jobs")
    records = []
    for repeat, job in ((1, "4gpu_9097883"), (0, "4gpu_9104940")):  # named against their order in time
        paths = [logs / f"{job}.{half}" for half in ("out", "err")]
        records.append(
            import_record(paths, scene="bicycle", layout="n1g4", repeat=f"r{repeat}", results=tmp_path)[0]
        )
    journey = attempts(records)
    assert [a.record.provenance.slurm_job_id for a in journey] == ["9097883", "9104940"]
    assert journey[1].changes == ["devices 1 → 4"]
    assert [rank_unit(a.record) for a in journey] == ["GPU", "GPU"]
    assert [a.rank_hours for a in journey] == pytest.approx([4 * 617 / 3600, 4 * 79 / 3600])
    assert journey[0].record.metrics.images == 7000
    used_one, crashed = performance_comparison(journey)
    assert (used_one.expected_s, used_one.measured_s) == (pytest.approx(617 / 4), 617)
    assert used_one.best_possible_s == pytest.approx(403, abs=1)
    assert crashed.measured_s is None and crashed.expected_s == used_one.expected_s
