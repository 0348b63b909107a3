"""Our own runs: events of the ranks are judged by the same table."""

# ruff: noqa: E501 (lines of logs are as long as they are)

import json
from pathlib import Path

from dist3dgs.diagnosis import diagnose


def events(path: Path, *rows: tuple[float, int, str, dict]) -> Path:
    path.write_text("".join(json.dumps({"t": t, "rank": r, "event": e, **f}) + "\n" for t, r, e, f in rows))
    return path


START = [(float(r), r, "start", {"world_size": 2, "host": f"n{r}", "device": "cpu"}) for r in (0, 1)]


def test_the_rank_that_failed_first(tmp_path: Path) -> None:
    path = events(
        tmp_path / "events.jsonl",
        *START,
        (5, 0, "step", {"step": 120, "loss": 0.1}),
        (7, 0, "error", {"type": "RuntimeError", "message": "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", "traceback": "", "phase": "step", "step": 121}),
        (6, 1, "error", {"type": "OSError", "message": "[Errno 28] No space left on device: 'ckpt'", "traceback": 'File "a.py", line 1', "phase": "checkpoint", "step": 120}),
    )  # fmt: skip
    verdict = diagnose([path])
    assert (verdict.status, verdict.cause, verdict.rank, verdict.node) == ("failed", "disk_full", 1, "n1")
    assert (verdict.phase, verdict.step) == ("checkpoint", 120)


def test_an_unnamed_error_is_the_codes(tmp_path: Path) -> None:
    path = events(
        tmp_path / "events.jsonl",
        *START,
        (
            3,
            0,
            "error",
            {"type": "KeyError", "message": "'means'", "traceback": "", "phase": "init", "step": None},
        ),
    )
    assert diagnose([path]).cause == "code_error"


def test_a_killed_rank(tmp_path: Path) -> None:
    path = events(tmp_path / "events.jsonl", *START, (5, 0, "step", {"step": 50, "loss": 0.1}))
    verdict = diagnose([path], {"signal": 9, "rank": 1, "own_run": True})
    assert (verdict.cause, verdict.rank, verdict.node, verdict.step) == ("killed", 1, "n1", 50)


def test_setting_that_cannot_be(tmp_path: Path) -> None:
    path = events(
        tmp_path / "events.jsonl",
        *START,
        (
            3,
            0,
            "error",
            {"type": "UserError", "message": "train.steps: expected at least 1", "traceback": ""},
        ),
    )
    assert diagnose([path]).cause == "misconfiguration"


def test_ok_and_degraded(tmp_path: Path) -> None:
    path = events(
        tmp_path / "events.jsonl",
        *START,
        (5, 0, "step", {"step": 50, "loss": 0.1}),
        (6, 0, "end", {"status": "ok", "step": 50}),
    )
    assert diagnose([path]).status == "ok"
    verdict = diagnose([path], {"devices_asked": 4})
    assert (verdict.status, verdict.cause) == ("degraded", "allocation_mismatch")


def test_classify_one_error() -> None:
    from dist3dgs.diagnosis.rules import classify

    causes = {
        "OSError: [Errno 28] No space left on device": "disk_full",
        "DiskFull: results/ckpt": "disk_full",
        "ReplicasDiffer: step 500": "parameter_mismatch",
        "RowsDiffer: after a rebalance": "parameter_mismatch",
        "Diverged: loss is nan at step 12": "diverged",
        "WorldMismatch: 4 asked, 2 joined": "allocation_mismatch",
        "CollectiveTimeout: all_reduce": "collective_timeout",
        "UserError: train.steps": "misconfiguration",
        "KeyError: 'x'": "code_error",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB": "gpu_oom",
    }
    for text, cause in causes.items():
        rule = classify(text)
        assert rule is not None and rule.cause == cause, text
    barrier = ['  File "train.py", line 3, in main', "    torch.distributed.barrier()"]
    rule = classify("RuntimeError: CUDA error: out of memory", barrier)
    assert rule is not None and rule.cause == "gpu_fault"
    rule = classify("RuntimeError: CUDA error: out of memory", barrier, steps=100)
    assert rule is not None and rule.cause == "gpu_oom"


def test_a_cancelled_run_whose_events_had_stopped_long_before_is_no_progress(tmp_path: Path) -> None:
    err = tmp_path / "job.err"
    err.write_text("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2025-05-05T16:00:00 ***\n")
    for last_t, cause in ((4000.0, "no_progress"), (400.0, "cancelled")):
        path = events(
            tmp_path / "events.jsonl",
            *START,
            (300, 0, "step", {"step": 120, "loss": 0.1, "step_s": 0.1}),
            (last_t, 0, "signal", {"signal": "SIGTERM"}),
        )
        verdict = diagnose([path, err])
        assert verdict.cause == cause
