"""Which files and rows belong to a job, and what Slurm's own words say of it."""

# ruff: noqa: E501 (lines of logs are as long as they are)

import json
from pathlib import Path

import pytest

from dist3dgs.cli.logs import run_read
from dist3dgs.diagnosis import diagnose
from dist3dgs.diagnosis.summary import read_logs
from dist3dgs.logs.jobs import by_job, id_in_name

TABLE = (
    "JobID|JobName|State|ExitCode|Elapsed|MaxRSS|AllocTRES\n"
    "4410_1|sweep|COMPLETED|0:0|00:10:00||gres/gpu=1\n4410_1.batch|batch|COMPLETED|0:0|00:10:00|2097152K|\n"
    "4410_2|sweep|FAILED|1:0|00:01:00||gres/gpu=2\n4410_2.batch|batch|FAILED|1:0|00:01:00|9437184K|\n"
    "4410_3|sweep|TIMEOUT|0:0|04:00:00||gres/gpu=4\n"
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def names(jobs: list) -> list[tuple[str | None, list[str]]]:
    return [(job.job_id, [p.name for p in job]) for job in jobs]


@pytest.mark.parametrize(
    ("name", "job_id"),
    [("slurm-4410.out", "4410"), ("slurm-7_3.out", "7_3"), ("4gpu_9097883.err", "9097883"), ("sweep-4410_12.out", "4410_12"), ("run-31958.log", "31958"),
     ("train_20251211.log", None), ("rank_0001.log", None), ("lr-2024.log", None), ("out.log", None), ("train_step29999.json", None)],
)  # fmt: skip
def test_job_ids_in_names(name: str, job_id: str | None) -> None:
    assert id_in_name(Path(name)) == job_id


def test_files_are_put_together_by_job(tmp_path: Path) -> None:
    out, err = write(tmp_path / "a_91001.out", "x\n"), write(tmp_path / "a_91001.err", "x\n")
    other = write(tmp_path / "plain.out", "SLURM_JOB_ID=91002\n")
    half = write(tmp_path / "plain.err", "x\n")
    loose = write(tmp_path / "gpu.csv", "index, memory.used [MiB]\n0, 1 MiB\n")
    missing = tmp_path / "b_91003.out"
    assert names(by_job([out, other, err, half])) == [
        ("91001", ["a_91001.out", "a_91001.err"]),
        ("91002", ["plain.out", "plain.err"]),
    ]
    assert names(by_job([out, loose, err])) == [("91001", ["a_91001.out", "gpu.csv", "a_91001.err"])]
    assert names(by_job([loose, half])) == [(None, ["gpu.csv", "plain.err"])]
    assert names(by_job([out, other, loose])) == [
        ("91001", ["a_91001.out"]),
        ("91002", ["plain.out"]),
        (None, ["gpu.csv"]),
    ]
    assert names(by_job([out, missing])) == [("91001", ["a_91001.out"]), ("91003", ["b_91003.out"])]
    assert by_job([]) == []


def test_read_gives_one_summary_per_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a_91001.out", "Duration: 617 seconds\n")
    b = write(tmp_path / "a_91002.out", "Duration: 79 seconds\n")
    run_read([a, b], True)
    assert [(s["job_id"], s["total_s"]) for s in json.loads(capsys.readouterr().out)] == [
        ("91001", 617),
        ("91002", 79),
    ]
    run_read([a, b], False)
    first, second = capsys.readouterr().out.split("\n\n")
    assert "91001" in first and "617 s" in first and "91002" not in first and "79.0 s" in second


def test_rows_of_a_table_belong_to_their_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "sacct.txt", TABLE)
    found = [read_logs(job) for job in by_job([table])]
    assert [(s.job_id, s.total_s, s.devices_asked, s.host_peak_gib) for s in found] == [
        ("4410_1", 600, 1, 2.0),
        ("4410_2", 60, 2, 9.0),
        ("4410_3", 14_400, 4, None),
    ]
    assert [diagnose(job).status for job in by_job([table])] == ["ok", "failed", "failed"]
    log = write(tmp_path / "slurm-4410_3.out", "hello\n")
    s = read_logs([log, table])
    assert (s.job_id, s.total_s, s.files[1].note) == ("4410_3", 14_400, "3 jobs, read of 4410_3")
    s = read_logs([write(tmp_path / "slurm-5555.out", "hello\n"), table])
    assert (s.job_id, s.total_s, s.files[1].note) == ("5555", None, "no row of job 5555")


@pytest.mark.parametrize("well", [True, False])
def test_steps_explain_only_a_job_that_did_not_complete(tmp_path: Path, well: bool) -> None:
    state = "COMPLETED|0:0" if well else "FAILED|0:9"
    text = f"JobID|State|ExitCode|Elapsed\n9|{state}|00:10:00\n9.0|OUT_OF_MEMORY|0:9|00:10:00\n9.extern|CANCELLED|0:0|00:10:00\n"
    verdict = diagnose([write(tmp_path / "sacct.txt", text)])
    assert (verdict.status, verdict.cause) == (("ok", None) if well else ("failed", "host_oom"))
    columns = "JobID      State      ExitCode\n---------- ---------- --------\n1          COMPLETED  0:0\n1.extern   CANCELLED  0:0\n"
    assert diagnose([write(tmp_path / "columns.txt", columns)]).status == "ok"


def test_a_job_that_was_requeued_ended_as_its_last_row_says(tmp_path: Path) -> None:
    text = "JobID|State|ExitCode|Elapsed\n9|NODE_FAIL|0:0|00:10:00\n9|COMPLETED|0:0|00:20:00\n"
    path = write(tmp_path / "sacct.txt", text)
    assert diagnose([path]).status == "ok" and read_logs([path]).total_s == 1200


@pytest.mark.parametrize(
    ("text", "asked"),
    [("SLURM_GPUS_ON_NODE=4\nSLURM_TASKS_PER_NODE=1(x2)\n", 8), ("SLURM_GPUS_ON_NODE=4\nSLURM_JOB_CPUS_PER_NODE=4(x2),2\n", 12),
     ("SLURM_GPUS_ON_NODE=4\nSLURM_TASKS_PER_NODE=8\n", 4), ("SLURM_GPUS_ON_NODE=4\nSLURM_TASKS_PER_NODE=1\nSLURM_NNODES=2\n", 8)],
)  # fmt: skip
def test_nodes_are_counted_from_what_each_of_them_has(tmp_path: Path, text: str, asked: int) -> None:
    assert read_logs([write(tmp_path / "a.out", text)]).devices_asked == asked


def test_hosts_that_lines_name(tmp_path: Path) -> None:
    text = (
        "SLURMD_NODENAME=g01\ng01:12:34 [0] NCCL INFO x\ng02:12:34 [1] NCCL INFO x\nsrun: error: g03: task 2: Exited with exit code 1\n"
        "slurmstepd: error: *** STEP 12345.0 ON g04 CANCELLED AT 2024-11-20T12:00:09 ***\n  host      : g01.cluster.org\n"
    )
    assert read_logs([write(tmp_path / "a.out", text)]).nodes == ["g01", "g02", "g03", "g04"]
    listed = "SLURM_JOB_NODELIST=n[1-2]\n" + text
    assert read_logs([write(tmp_path / "b.out", listed)]).nodes == ["n1", "n2"]


def test_ranks_that_speak_count_but_silent_ones_are_not_idle(tmp_path: Path) -> None:
    lines = "".join(f"[rank{r}]: hello from here\n" for r in range(8))
    assert read_logs([write(tmp_path / "a.out", lines)]).devices_used == 8
    few = "SLURM_GPUS_ON_NODE=8\n[rank0]: hello\n[rank1]: hello\nTraining complete.\n"
    assert read_logs([write(tmp_path / "b.out", few)]).devices_used is None
    assert diagnose([tmp_path / "b.out"]).status == "ok"
