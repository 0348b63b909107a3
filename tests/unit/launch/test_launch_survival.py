"""What is left when ranks are killed, hang, are told to stop, or cannot write. Real processes, a tiny scene."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dist3dgs.config.models import Hardware, RunSpec
from dist3dgs.records.build import verdict_of_run
from dist3dgs.runs.events import read_events
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import run_ranks, train

pytestmark = pytest.mark.slow
#: Hours on this scene: a run for tests to interfere with. Counts are of images, two per step.
LONG = {"steps": 100_000, "checkpoint_every": 20, "log_every": 2, "eval_every": 100_000, "sh_every": 20}
#: Nothing but steps after the start, so that whatever befalls a rank befalls it in one.
ONLY_STEPS = LONG | {"checkpoint_every": 100_000, "digest_every": 100_000, "densify": {"kind": "none"}}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Whatever becomes of a run, it leaves nothing in the folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert not list(folder.iterdir())


def final_state(out: Path) -> tuple[bytes, bytes]:
    """The exported model and everything the optimiser knows, to the last bit."""
    from safetensors import safe_open

    newest = max((out / "checkpoints").glob("*.safetensors"))
    with safe_open(newest, framework="np") as f:
        tensors = b"".join(k.encode() + f.get_tensor(k).tobytes() for k in sorted(f.keys()))
    return (out / "point_cloud.ply").read_bytes(), tensors


def test_a_killed_rank_is_named_and_nothing_is_left_running(tiny_scene, tmp_path):
    running = tiny.Running(tiny.spec("n1g2", **ONLY_STEPS), tiny_scene, tmp_path)
    running.wait_for("step", 12)
    # Its logging library replaces signal handlers: a rank that is to hear SIGTERM must not load it.
    assert "pycolmap" not in Path(f"/proc/{running.pid(1)}/maps").read_text()
    os.kill(running.pid(1), signal.SIGKILL)
    assert running.end(patience_s=60) == 0
    record = tiny.judged(tmp_path)
    assert record.status == "failed" and record.failure is not None
    assert record.failure.cause == "killed"
    assert (record.failure.rank, record.failure.phase) == (1, "step")
    assert record.failure.step is not None and record.failure.step >= 12
    assert "-9" in record.failure.evidence[0].text


def test_a_killed_rank_costs_one_checkpoint_interval_where_restarts_are_allowed(tiny_scene, tmp_path):
    """Blocks: the checkpoint before the kill is of ranks that train apart, and is gone on from."""
    strategy = {"kind": "blocks", "coarse_share": 0.1, "view_threshold": 0.01, "margin": 1.0}
    run = tiny.spec("n1g2", strategy=strategy, **LONG | {"steps": 100})
    run = run.model_copy(update={"hardware": Hardware(device="cpu", timeout_s=20, max_restarts=1)})
    running = tiny.Running(run, tiny_scene, tmp_path)
    running.wait_for("checkpoint", 10)
    reached = running.wait_for("step", 15)["step"]
    os.kill(running.pid(0), signal.SIGKILL)
    assert running.end(patience_s=120) == 0
    record = tiny.judged(tmp_path)
    assert record.status == "ok", record.failure
    assert record.provenance.attempt == 1
    assert reached - tiny.events(tmp_path, "resume")[0]["step"] <= 20 / 2
    assert [e["phase"] for e in tiny.events(tmp_path, "blocks", 0)] == ["blocks"]
    assert [e["phase"] for e in tiny.events(tmp_path, "blocks", 1)] == ["merged"]
    assert record.metrics.seam_psnr is not None
    assert all(rank.block_gaussians and rank.block_views for rank in record.metrics.ranks)


def on_one_thread(run: RunSpec) -> RunSpec:
    """Give each rank one thread, as ranks without a launcher have: results must be equal to the bit."""
    return run.model_copy(update={"hardware": run.hardware.model_copy(update={"threads_per_rank": 1})})


@pytest.mark.parametrize(
    "kind, densify", [("replicated", "default"), ("sharded", "mcmc"), ("hybrid", "default")]
)
def test_stopped_and_resumed_ends_bit_identical(kind, densify, tiny_scene, tmp_path):
    """SIGTERM leaves a checkpoint at once; damaged, the one before is taken, loudly; the end is the same."""
    run = on_one_thread(tiny.spec(
        "n1g2", strategy={"kind": kind} | ({"shard": 1} if kind == "hybrid" else {}),
        densify={"kind": densify, "start_step": 10, "every": 20, "stop_step": 90},
        **LONG | {"steps": 120},
    ))  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_ranks(2, train, run, tiny_scene, whole)
    assert sum(e["event"] == "densify" for e in read_events(whole / "events.jsonl")) >= 3

    running = tiny.Running(run, tiny_scene, cut)
    running.wait_for("step", 23)
    running.process.send_signal(signal.SIGTERM)
    assert running.end(patience_s=30) == 128 + signal.SIGTERM
    assert tiny.events(cut, "signal") and not (cut / "launch.json").exists()
    stopped = tiny.events(cut, "end")[0]
    assert stopped["status"] == "stopped"
    newest = max((cut / "checkpoints").glob("*.safetensors"))
    assert int(newest.name[5:13]) == stopped["step"] >= 23

    damaged = bytearray(newest.read_bytes())
    damaged[-100] ^= 1
    newest.write_bytes(damaged)
    record = tiny.launch(run, tiny_scene, cut)
    assert record.status == "ok"
    (earlier,) = record.earlier
    assert earlier.failure is not None and earlier.failure.phase in (
        "step",
        "densify",
        "evaluate",
        "checkpoint",
    )
    total_s = record.metrics.total_s
    assert total_s is not None and sum(record.metrics.phases_s.values()) <= total_s
    assert tiny.events(cut, "resume")[0]["step"] == max(s for s in range(0, 60, 10) if s < stopped["step"])
    assert any("checksums do not match" in e["message"] for e in tiny.events(cut, "warning"))
    assert f"WARNING: checkpoint {newest.name} is not used" in tiny.log(cut)
    assert final_state(cut) == final_state(whole)


@pytest.fixture(scope="module")
def many_held_out(tiny_scene, tmp_path_factory) -> Path:
    """The scene with its held-out views again and again: an evaluation that lasts for seconds on any machine."""
    from dist3dgs.scenes.pack import PackedScene, write_packed

    tiny_one = PackedScene.open(tiny_scene)
    which = [*tiny_one.train_ids, *([*tiny_one.test_ids] * (1500 // len(tiny_one.test_ids)))]
    held_out = np.arange(len(which)) >= len(tiny_one.train_ids)
    path = tmp_path_factory.mktemp("many held out") / "scene.safetensors"
    write_packed(
        path, name="tiny", view_names=[f"{i:06}.jpg" for i in range(len(which))],
        images=[tiny_one.image(v) for v in which], is_test=held_out, sizes=tiny_one.sizes[which],
        viewmats=tiny_one.viewmats[which], Ks=tiny_one.Ks[which], points=tiny_one.points, colors=tiny_one.colors,
        extent=tiny_one.extent, normalisation=tiny_one.normalisation,
    )  # fmt: skip
    return path


def status(pid: int, field: str) -> list[str]:
    """What the kernel says of each of a process's threads."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return [line.split()[1] for text in texts for line in text.splitlines() if line.startswith(field)]


def wait_until(true: Callable[[], object], patience_s: float = 45) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


EVALUATED = {"steps": 60, "log_every": 2, "checkpoint_every": 20}


@pytest.fixture(scope="module")
def not_stopped(tiny_scene, tmp_path_factory) -> tuple[bytes, bytes]:
    """The end of a run of two ranks that evaluates little: what is evaluated has no influence on it."""
    out = tmp_path_factory.mktemp("not stopped")
    run_ranks(2, train, tiny.spec("n1g2", eval_every=1000, **EVALUATED), tiny_scene, out)
    return final_state(out)


@pytest.mark.parametrize("last", [False, True])
def test_stopped_in_an_evaluation_and_resumed_ends_bit_identical(last, not_stopped, many_held_out, tmp_path):
    """The evaluation is left for a checkpoint, and done by whoever resumes: in the middle of a run and at its end."""
    run = on_one_thread(tiny.spec("n1g2", timeout_s=60, eval_every=1000 if last else 30, **EVALUATED))
    scene, cut = many_held_out, tmp_path / "cut"

    running = tiny.Running(run, scene, cut)
    running.wait_for("enter", phase="evaluate")
    # Held, this rank lets none end the evaluation before all have been told to stop.
    held = running.pid(1)
    os.kill(held, signal.SIGSTOP)
    wait_until(lambda: set(status(held, "State")) == {"T"})
    running.process.send_signal(signal.SIGTERM)
    wait_until(lambda: int(status(held, "ShdPnd")[0], 16) >> (signal.SIGTERM - 1) & 1)
    os.kill(held, signal.SIGCONT)
    assert running.end(patience_s=60) == 128 + signal.SIGTERM
    at = 30 if last else 15
    stopped = tiny.events(cut, "end")[0]
    assert (stopped["status"], stopped["step"]) == ("stopped", at)
    assert not tiny.events(cut, "eval"), "the evaluation came to its end"
    assert (cut / "checkpoints" / f"step-{at:08d}.safetensors").is_file()

    record = tiny.launch(run, scene, cut)
    assert record.status == "ok" and record.metrics.psnr is not None
    assert [e["step"] for e in tiny.events(cut, "eval")] == ([30] if last else [15, 30])
    assert final_state(cut) == not_stopped


def test_a_rank_that_hangs_leaves_all_stacks_and_costs_one_checkpoint_interval(tiny_scene, tmp_path):
    # A checkpoint, then steps alone for long, so that it hangs in one.
    run = tiny.spec("n1g2", **ONLY_STEPS | {"steps": 200, "checkpoint_every": 100})
    run = run.model_copy(update={"hardware": Hardware(device="cpu", timeout_s=8, max_restarts=1)})
    running = tiny.Running(run, tiny_scene, tmp_path)
    running.wait_for("checkpoint", 50)
    running.wait_for("step", 52)
    os.kill(running.pid(1), signal.SIGSTOP)
    assert running.end(patience_s=120) == 0
    record = tiny.judged(tmp_path)
    assert record.status == "ok", record.failure
    assert tiny.events(tmp_path, "resume")[0]["step"] == 50
    (earlier,) = record.earlier
    failure = earlier.failure
    assert failure is not None and failure.cause == "collective_timeout"
    assert (failure.rank, failure.phase) == (1, "step")
    text = tiny.log(tmp_path, 0)
    for rank in (0, 1):
        stacks = text.split(f"stacks of rank {rank} when it hung:")[1]
        assert "loop.py" in stacks
    hang = failure.collective
    # Where the rank was stopped inside the collective, both are in it.
    assert hang is not None and (hang.culprits, hang.waiting) in (([1], [0]), ([], [0, 1])), hang
    assert hang.op in failure.evidence[1].text
    verdict = verdict_of_run(tmp_path / "attempts/000/launch.json")
    assert verdict.failure() == failure, "dist3dgs diagnose of the attempt says what the record says"


def test_a_launcher_that_is_killed_takes_its_ranks_along(tiny_scene, tmp_path):
    running = tiny.Running(tiny.spec("n1g2", **LONG), tiny_scene, tmp_path)
    running.wait_for("step", 12)
    running.process.kill()
    end = time.monotonic() + 45
    while tiny.processes_of(tmp_path) and time.monotonic() < end:
        time.sleep(0.2)
    assert not tiny.processes_of(tmp_path)
    assert list((tmp_path / "checkpoints").glob("*.safetensors"))
    # What it could not remove any more, the next one does.
    hidden = [tmp_path / "attempts/000/.reserve", tmp_path / "checkpoints/.step.node.1.tmp"]
    assert hidden[0].exists()
    hidden[1].write_bytes(b"half a checkpoint")
    assert tiny.launch(tiny.spec("n1g1", steps=10), tiny_scene, tmp_path).status == "ok"
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]
    assert not list(tmp_path.rglob("stacks.*"))


@contextlib.contextmanager
def small_disk(folder: Path):
    """A file system of 500 kB, where we may mount one."""
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("may not mount a small file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_at_a_checkpoint(tiny_scene, tmp_path):
    with small_disk(tmp_path / "checkpoints"):
        record = tiny.launch(tiny.spec("n1g2", **LONG), tiny_scene, tmp_path)
        left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert record.status == "failed" and record.failure is not None
    assert record.failure.cause == "disk_full", record.failure
    assert (record.failure.rank, record.failure.phase) == (0, "checkpoint")
    assert record.failure.remedy and "df -h" in record.failure.remedy
    assert all(name.startswith("step-") for name in left), "half a file was left"
    assert not tiny.processes_of(tmp_path)


def test_a_disk_that_fills_up_while_stepping(tiny_scene, tmp_path):
    """No rank can write an event or a line about it: the launcher sees it, and has kept room to say so."""
    with small_disk(tmp_path / "attempts"):
        running = tiny.Running(tiny.spec("n1g2", **ONLY_STEPS), tiny_scene, tmp_path)
        running.wait_for("step", 12)
        with contextlib.suppress(OSError), (tmp_path / "attempts" / "filler").open("wb", buffering=0) as f:
            while True:
                f.write(bytes(512))
        assert running.end(patience_s=60) == 0
        record = tiny.judged(tmp_path)
        assert not list((tmp_path / "attempts" / "000").glob(".*"))
    assert record.status == "failed" and record.failure is not None
    assert (record.failure.cause, record.failure.phase) == ("disk_full", "step"), record.failure
    assert record.failure.remedy and "df -h" in record.failure.remedy


def test_a_quota_on_file_size_at_a_checkpoint(tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # no compiled module is cut off
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    record = tiny.launch(tiny.spec("n1g1", **LONG), tiny_scene, tmp_path, preexec_fn=limit)
    assert record.failure is not None
    assert (record.failure.cause, record.failure.phase) == ("disk_full", "checkpoint")
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_historic_crash_on_demand(tiny_scene, tmp_path):
    """PyTorch's own verification refuses ranks whose memory formats differ; next to it the broadcast start passes."""
    record = tiny.launch(tiny.spec("n1g2", strategy={"init": "independent"}), tiny_scene, tmp_path / "bad")
    assert record.status == "failed" and record.failure is not None
    assert (record.failure.cause, record.failure.phase) == ("parameter_mismatch", "init")
    said = record.failure.evidence[0].text
    assert "params[1] in this process" in said
    assert "appears not to match strides of the same param in process 0" in said
    good = tiny.launch(tiny.spec("n1g2", steps=20), tiny_scene, tmp_path / "good")
    assert good.status == "ok"
    digests = tiny.events(tmp_path / "good", "digest")
    assert digests[0]["step"] == 0 and all(len(set(e["digests"])) == 1 for e in digests)
