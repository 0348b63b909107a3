"""Further wordings of causes, each in as few lines as prove it, and what must not be taken for one."""

# ruff: noqa: E501 (lines of logs are as long as they are)

from pathlib import Path

import pytest

from dist3dgs.diagnose import diagnose

#: A traceback up to the exception's own line.
TRACE = 'Traceback (most recent call last):\n  File "t.py", line 3, in f\n    g()\n'
#: A job's end by its time limit.
LIMIT = "\nslurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-05-02T12:00:01 DUE TO TIME LIMIT ***\n"

CASES = [
    (
        "environment",
        TRACE + "FileNotFoundError: [Errno 13] Permission denied: '/nfs/home/kim/.config/matplotlib'",
    ),
    (
        "environment",
        TRACE
        + "OSError: Matplotlib requires access to a writable cache directory, but the default path (/home/kim/.config/matplotlib) is not a writable directory, and a temporary directory could not be created; set the MPLCONFIGDIR environment variable to a writable directory.",
    ),
    (
        "environment",
        "FATAL:   while creating cache: mkdir /home/kim/.apptainer: read-only file system\nsrun: error: n: task 0: Exited with exit code 255",
    ),
    (
        "environment",
        TRACE
        + "RuntimeError: cannot cache function '_f': no locator available for file '/env/lib/python3.11/site-packages/x/y.py'",
    ),
    ("environment", TRACE + "PermissionError: [Errno 13] Permission denied: '/nfs/home/kim'"),
    ("environment", TRACE + "OSError: [Errno 30] Read-only file system: '/root/.triton/cache/x'"),
    (
        "environment",
        "[rank3]: "
        + TRACE.replace("\n", "\n[rank3]: ")
        + "OSError: [Errno 122] Disk quota exceeded: '/p/home/kim/.cache/torch/hub/checkpoints/a.pth.partial'",
    ),
    ("disk_full", TRACE + "OSError: [Errno 122] Disk quota exceeded: '/scratch/results/a.pt'"),
    ("disk_full", TRACE + "OSError: [Errno 122] Disk quota exceeded: 'results/room/ckpt.pt'"),
    ("code_error", TRACE + "PermissionError: [Errno 13] Permission denied: '/data/shared/scene/images'"),
    (
        "diverged",
        "Step 500: Culled 2 gaussians (1 below alpha thresh, 1 too bigs, 88100 remaining)\nStep 900: Culled 88098 gaussians (88098 below alpha thresh, 0 too bigs, 2 remaining)\n"
        + TRACE
        + "RuntimeError: x",
    ),
    (
        "diverged",
        "step 100 loss 0.2 gaussians 50000\nstep 200 loss 0.5 gaussians 0\n"
        + TRACE
        + "IndexError: index 0 is out of bounds",
    ),
    (
        "crashed",
        "step 3 loss 0.2\ntorch.multiprocessing.spawn.ProcessExitedException: process 0 terminated with signal SIGFPE",
    ),
    ("crashed", "step 3 loss 0.2\nFAILED|0:6|n1\nState: FAILED ExitCode 0:6"),
    ("crashed", "job: line 3: 3 Aborted                 (core dumped) ./a"),
    ("gpu_fault", "/x/slurm_script: line 14: 20117 Segmentation fault(core dumped) python a.py"),
    ("shared_memory", "/x/slurm_script: line 14: 20117 Bus error(core dumped) python a.py"),
    ("environment", "/x/slurm_script: line 14: 20117 Illegal instruction(core dumped) python a.py"),
    ("host_oom", "/x/slurm_script: line 14: 20117 Killed python a.py"),
    ("sfm_failed", "[N] Number of points before initialization :  0\n" + TRACE + "RuntimeError: bad"),
    ("sfm_failed", "Number of points: 0, mean track length: 0\n" + TRACE + "RuntimeError: bad"),
    ("sfm_failed", "Reading 0 points\n" + TRACE + "RuntimeError: bad"),
    (
        "sfm_failed",
        "I20260621 12:18:58.277217 77 model.cc:12] Points: 0\nI20260621 12:18:58.277217 77 model.cc:12] Observations: 0\n"
        + TRACE
        + "RuntimeError: bad",
    ),
    (
        "sfm_failed",
        TRACE.replace("g()", "knn(points)")
        + "ValueError: Expected n_neighbors <= n_samples_fit, but n_neighbors = 4, n_samples_fit = 0",
    ),
    ("no_progress", "\n".join(f"[{m // 60:02d}:{m % 60:02d}:00] alive" for m in range(0, 90)) + LIMIT),
    (
        "no_progress",
        "\n".join(f"t={60 * k} s GPU util {k % 3}% no iterations completed" for k in range(1, 60)) + LIMIT,
    ),
    (
        "no_progress",
        "\n".join(
            f"2026-05-02T11:{k:02d}:00 worker 0: waiting for rank 1 to join ({k} min)" for k in range(1, 60)
        )
        + LIMIT,
    ),
    ("time_limit", "\n".join(f"2026-05-02T11:{k:02d}:00 step {k} loss 0.1" for k in range(1, 60)) + LIMIT),
    ("allocation_mismatch", "Rank 14/2 starting\n" + TRACE + "RuntimeError: x"),
    (
        "allocation_mismatch",
        "rank: 14 | world_size: 2\n" + TRACE + "RuntimeError: NCCL error in: x, unhandled system error",
    ),
    (
        "allocation_mismatch",
        TRACE + "ValueError: world_size (2) is smaller than SLURM_NTASKS (16): too many tasks",
    ),
    (
        "code_error",
        "NVRM: Xid error 31 on GPU 0\n" + TRACE + "RuntimeError: CUDA error: unspecified launch failure",
    ),
    (
        "gpu_fault",
        "NVRM: Xid 31 on GPU 0\nXid 79\n" + TRACE + "RuntimeError: CUDA error: unspecified launch failure",
    ),
    (
        "gpu_fault",
        "NVRM: Xid 31 on GPU 0\nuncorrectable ECC error encountered\n"
        + TRACE
        + "RuntimeError: CUDA error: unspecified launch failure",
    ),
    (
        "code_error",
        TRACE.replace("g()", "out = voxel_cuda.forward(x)")
        + "RuntimeError: CUDA error: an illegal memory access was encountered",
    ),
    (
        "code_error",
        TRACE.replace("g()", "_fwd[grid](x, y)")
        + "RuntimeError: CUDA error: an illegal memory access was encountered",
    ),
    (
        "code_error",
        "CUDA error at csrc/kernels.cu:120: an illegal memory access was encountered\nsrun: error: n: task 0: Exited with exit code 1",
    ),
    (
        "code_error",
        "========= Invalid __global__ read of size 4 bytes\n=========     at renderCUDA\nsrun: error: n: task 0: Exited with exit code 1",
    ),
    ("gpu_fault", TRACE + "RuntimeError: CUDA error: an illegal memory access was encountered"),
    ("unknown", "rank 4/4 ready, world_size 4\nloading"),
    ("unknown", "Signal 8 channels\nsignal: 6 dB\ntest_abort SIGABRT handled ... ok\nloading"),
    ("unknown", "heartbeat\nheartbeat\nloading"),
    (
        "unknown",
        "densify: found 0 gaussians to split\nscene has 0 points outside the box\nNamespace(num_points=0)\nloading",
    ),
    (
        "unknown",
        "node rank: 1, world size: 1\nlocal rank 3, world size 2\nlora rank 16, world size 2\nloading",
    ),
    (
        "unknown",
        "ls: cannot open directory '/home/kim/.cache': Permission denied\nslurmstepd: error: couldn't chdir to `/home/kim/.x': Permission denied: going to /tmp instead\nloading",
    ),
    ("unknown", "traps floating point exceptions\nFloating point exception handling enabled\nloading"),
    ("allocation_mismatch", "r14: initialized, global rank 14, world size 2\n" + TRACE + "RuntimeError: x"),
]


@pytest.mark.parametrize("cause, text", CASES, ids=[f"{i}-{cause}" for i, (cause, _) in enumerate(CASES)])
def test_cause(tmp_path: Path, cause: str, text: str) -> None:
    log = tmp_path / "job.log"
    log.write_text(text + "\n", encoding="utf-8")
    verdict = diagnose([log])
    assert verdict.cause == cause, verdict
    assert cause == "unknown" or (verdict.status == "failed" and verdict.evidence and verdict.remedy)


@pytest.mark.parametrize(
    "context, cause",
    [
        ({"exit_code": 136}, "crashed"),
        ({"signal": 6}, "crashed"),
        ({"exit_code": 139}, "gpu_fault"),
        ({"exit_code": 1}, "unknown"),
    ],
)
def test_a_signal_that_only_the_caller_knows(tmp_path: Path, context: dict[str, int], cause: str) -> None:
    log = tmp_path / "job.log"
    log.write_text("loading\n")
    verdict = diagnose([log], context)
    assert (verdict.status, verdict.cause) == ("failed", cause)


def test_no_progress_does_not_ask_for_more_time(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("\n".join(f"[{60 * k}s] heartbeat" for k in range(1, 60)) + LIMIT)
    verdict = diagnose([log])
    assert verdict.cause == "no_progress" and "time" not in (verdict.remedy or "").split("timeout")[0]


def test_heartbeats_in_one_file_and_steps_in_the_other(tmp_path: Path) -> None:
    (tmp_path / "job.out").write_text("\n".join(f"step {k}/3000 loss 0.1" for k in range(1, 60)))
    (tmp_path / "job.err").write_text("\n".join(f"[{60 * k}s] heartbeat" for k in range(1, 60)) + LIMIT)
    assert diagnose([tmp_path / "job.out"]).cause == "time_limit"


def test_heartbeats_in_one_file_and_the_limit_in_the_other(tmp_path: Path) -> None:
    (tmp_path / "job.out").write_text("\n".join(f"[{60 * k}s] heartbeat" for k in range(1, 60)))
    (tmp_path / "job.err").write_text(LIMIT)
    assert diagnose([tmp_path / "job.out"]).cause == "no_progress"


def test_a_collapse_long_before_the_end(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    counts = [*range(50_000, 60_000, 100), *[2] * 300]
    log.write_text(
        "\n".join(f"Step {100 * i}: 5 GSs pruned. Now having {n} GSs." for i, n in enumerate(counts))
        + "\n"
        + TRACE
        + "RuntimeError: x"
    )
    assert diagnose([log]).cause == "diverged"
