"""Workloads through the launcher and torchrun: records as our own trainings have them."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from dist3dgs.cli import main
from dist3dgs.config.load import Layers
from dist3dgs.config.matrix import Study, spec_json
from dist3dgs.config.models import Hardware
from dist3dgs.config.naming import Point
from dist3dgs.config.workloads import Criteria
from dist3dgs.errors import UserError
from dist3dgs.launch.launcher import launch
from dist3dgs.records.build import judge
from dist3dgs.runs.record import RunRecord

pytestmark = pytest.mark.slow
#: A program of one process per node that starts its own ranks.
NODE = """
import os, subprocess, sys
assert "RANK" not in os.environ and "WORLD_SIZE" not in os.environ
code = "import sys; print('rank ' + sys.argv[1])"
ranks = [subprocess.Popen([sys.executable, "-c", code, str(r)]) for r in range(int(sys.argv[1]))]
assert not any(r.wait() for r in ranks)
print("rate 12.5")
"""


def study(repository: Path, overlay: dict[str, Any]) -> Study:
    layers = Layers.read(
        repository / "config" / f"{name}.yaml" for name in ("config", "scenes", "strategies", "workloads")
    )
    layers = Layers((*layers.layers, ("overlay", overlay)))
    return Study.from_config(layers.merged(), layers)


def run(point: str, made: Study, results: Path, **hardware: Any) -> tuple[RunRecord, Path]:
    spec = made.spec(Point.named(point))
    spec = spec.model_copy(update={"hardware": Hardware(device="cpu", timeout_s=60, **hardware)})
    out = spec.point.folder(results)
    assert launch(spec_json(spec), None, out) == 0
    return judge(out / "launch.json"), out


def test_a_transformer_on_two_ranks(repository: Path, tmp_path: Path) -> None:
    small = {"epochs": 3, "samples": 64}
    made = study(repository, {"workload_library": {"transformer": {"variables": small}}})
    record, out = run("transformer/small/n1g2", made, tmp_path)
    assert record.status == "ok", record.failure
    m = record.metrics
    assert m.images_per_s and m.epoch_s and m.epochs == 3 and m.accuracy is not None and m.loss
    assert m.images_per_s == pytest.approx(64 / m.epoch_s, rel=0.3)
    assert m.compute_s and m.comm_s and m.exposed_comm_s is not None
    assert m.exposed_comm_s <= m.train_s and m.compute_to_comm == m.compute_s / m.comm_s
    assert m.train_s == pytest.approx(3 * m.epoch_s) and m.images == 3 * 64
    assert m.phases_s["step"] == pytest.approx(m.train_s), "loading torch and validating are not training"
    assert m.compute_s + m.exposed_comm_s == pytest.approx(m.train_s, rel=0.2)
    assert m.figures_of_merit["images_per_s"].unit == "samples/s" and m.figures_of_merit["epoch_s"].count == 3
    assert "sample" in record.reasons["images_per_s"] and len(m.ranks) == 2
    assert m.peak_rss_gib and m.peak_host_gib and m.phases_s["step"] > 0
    assert "data: generated" in (out / "attempts/000/train.log").read_text()

    # Read again for something else, without running it again.
    criteria = Criteria.model_validate({"figures_of_merit": {"epoch_s": {"regex": r"epochs took ([\d.]+)"}}})
    argv = ["record", "--launch", str(out / "launch.json"), "--out", str(tmp_path / "record.json")]
    assert main([*argv, "--criteria", criteria.model_dump_json()]) == 0
    failure = json.loads((tmp_path / "record.json").read_text())["failure"]
    assert (
        failure["cause"] == "no_result" and "no figure of merit 'epoch_s'" in failure["evidence"][0]["text"]
    )


def entry(tmp_path: Path, code: str, **settings: Any) -> dict[str, Any]:
    (tmp_path / "program.py").write_text(code)
    figures = {"figures_of_merit": {"images_per_s": {"regex": r"rate ([\d.]+)"}}}
    command = {"application": ["{python}", str(tmp_path / "program.py"), "{ranks}"]}
    return {"workload_library": {"mine": command | figures | settings}}


def test_one_process_for_a_node(repository: Path, tmp_path: Path) -> None:
    made = study(repository, entry(tmp_path, NODE, launch="node", work_per_epoch=5))
    record, out = run("mine/default/n1g3", made, tmp_path)
    assert record.status == "ok", record.failure
    assert record.metrics.images_per_s == 12.5 and len(record.metrics.ranks) == 3
    text = (out / "attempts/000/output.rank0.log").read_text()
    assert all(f"rank {r}" in text for r in range(3))


def test_a_second_launcher_of_a_point_is_refused(repository: Path, tmp_path: Path) -> None:
    spec = study(repository, entry(tmp_path, "print('rate 1')")).spec(Point.named("mine/default/n1g1"))
    out = spec.point.folder(tmp_path)
    out.mkdir(parents=True)
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another launcher is running this point.*fuser"):
            launch(spec_json(spec), None, out)


CRASH = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    {end}
print("rate 1.0", flush=True)
time.sleep(60)
"""


def test_failures_of_foreign_programs_are_diagnosed(repository: Path, tmp_path: Path) -> None:
    end = "raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')"
    record, _ = run("mine/default/n1g2", study(repository, entry(tmp_path, CRASH.format(end=end))), tmp_path)
    assert record.status == "failed" and record.failure is not None
    assert record.failure.cause == "gpu_oom" and record.failure.evidence


#: Killed once on rank 1, after rank 0 has left a checkpoint.
KILLED_ONCE = """
import os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[2])
saved, killed = out / "step-1.pt", out / "killed"
if not killed.exists():
    if os.environ["RANK"] == "0":
        saved.with_suffix(".tmp").write_text("1")
        saved.with_suffix(".tmp").rename(saved)
        time.sleep(60)
    while not saved.exists():
        time.sleep(0.05)
    killed.touch()
    os.kill(os.getpid(), signal.SIGKILL)
print("rate 1.0 with", sys.argv[3:])
"""


def test_a_killed_rank_is_started_again_and_the_record_says_what_was_lost(
    repository: Path, tmp_path: Path
) -> None:
    command = ["{python}", str(tmp_path / "program.py"), "{ranks}", "{out}"]
    resumes = {"checkpoint": "*.pt", "resume": "--from {checkpoint}"}
    made = study(repository, entry(tmp_path, KILLED_ONCE, application=command, **resumes))
    record, out = run("mine/default/n1g2", made, tmp_path, max_restarts=1)
    assert record.status == "ok", record.failure
    (first,) = record.earlier
    assert first.failure is not None and first.failure.cause == "killed" and first.failure.rank == 1
    assert first.started_at and first.finished_at and first.lost_s
    m, took_s = record.metrics, first.finished_at - first.started_at
    assert (m.lost_s, m.lost_gpu_hours) == (first.lost_s, pytest.approx(first.lost_s / 1800))
    assert first.lost_s < took_s and m.total_s and m.total_s > took_s
    assert "attempt 0 (killed)" in record.reasons["lost_s"] and "all of it" not in record.reasons["lost_s"]
    told = ["--from", str(out / "output/step-1.pt")]
    assert f"with {told}" in (out / "attempts/001/output.rank0.log").read_text()

    # Had the program begun from zero, all of the first attempt would be lost.
    (path,) = (out / "attempts/001").glob("events.*.jsonl")
    path.write_text("".join(x for x in path.read_text().splitlines(True) if '"event": "resume"' not in x))
    record = judge(out / "launch.json")
    assert record.metrics.lost_s == pytest.approx(took_s) and "all of it" in record.reasons["lost_s"]
    assert record.metrics.total_s and record.metrics.total_s < m.total_s


def test_status_0_is_not_success(repository: Path, tmp_path: Path) -> None:
    made = study(repository, entry(tmp_path, "print('speed 1')", success={"lines": ["Complete"]}))
    record, _ = run("mine/default/n1g1", made, tmp_path)
    assert record.status == "failed" and record.failure is not None
    assert record.failure.cause == "no_result" and record.metrics.images_per_s is None
    assert ["rate" in e.text for e in record.failure.evidence] == [True, False]
    assert "Complete" in record.failure.evidence[1].text
