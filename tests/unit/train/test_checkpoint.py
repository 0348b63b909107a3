"""Checkpoints: whole or not at all, checked when read, bound to their settings."""

import json
import os
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from dist3dgs.runs.resume import differences, identity
from dist3dgs.train import checkpoint
from dist3dgs.train.checkpoint import Checkpoint, Header, Saver, candidates, load, newest, save
from tests.unit.helpers import tiny

ROWS = {"means": torch.arange(12.0).reshape(4, 3), "statistics/count": torch.arange(4)}


def of(layout="n1g1", scene="scene", **train):
    return identity(tiny.spec(layout, **train), scene)


OURS = of()


def written(folder, step=7, keep=2, run=OURS):
    header = Header(step=step, elapsed_s=1.5, adam_steps={"means": 3.0}, shards=[1, 3])
    return save(folder, Checkpoint(header, ROWS), run, keep)


def steps(folder):
    return [int(p.name[5:13]) for p in candidates(folder)]


def found(folder, run=OURS, keep=2):
    """Step of the newest good checkpoint and what was said."""
    said = []
    read = newest(folder, run, keep, said.append)
    return read and read.header.step, said


def test_what_is_read_is_what_was_written(tmp_path):
    got = load(written(tmp_path), OURS)
    assert got.header == Header(step=7, elapsed_s=1.5, adam_steps={"means": 3.0}, shards=[1, 3])
    assert set(got.rows) == set(ROWS) and all(torch.equal(got.rows[k], t) for k, t in ROWS.items())


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 4, 30):
        written(tmp_path, step)
    assert steps(tmp_path) == [30, 4]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_written_stays_whatever_higher_numbers_lie_about(keep, tmp_path):
    for step in (1500, 2000):
        written(tmp_path, step)
    written(tmp_path, 500, keep)
    assert 500 in steps(tmp_path)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_is_set_aside_and_no_later_save_is_lost(keep, tmp_path):
    written(tmp_path, 10)
    damaged = written(tmp_path, 20)
    damaged.write_bytes(flip(damaged.read_bytes()))
    step, said = found(tmp_path, keep=keep)
    assert step == 10
    assert any("step-00000020" in s and "checksums do not match" in s for s in said)
    for step in (12, 14, 16):
        written(tmp_path, step, keep)
        assert steps(tmp_path)[0] == step and len(steps(tmp_path)) <= keep
    assert damaged.with_name(damaged.name + ".unusable").exists()


def test_other_settings_are_set_aside_and_come_back_with_them(tmp_path):
    """Diverged, so the rate was lowered and the run started again; then the old settings are wanted again."""
    theirs = of(lr={"means": 1e-3})
    for step in (1500, 2000):
        written(tmp_path, step, run=theirs)
    step, said = found(tmp_path)
    assert step is None and all("train.lr.means is 0.001 there" in s for s in said) and len(said) == 2
    written(tmp_path, 500)
    assert steps(tmp_path) == [500]
    step, _ = found(tmp_path, theirs)
    assert step == 2000 and steps(tmp_path) == [2000, 1500]
    step, _ = found(tmp_path)
    assert step == 500


def test_what_is_set_aside_does_not_grow_for_ever_and_goes_loudly(tmp_path):
    for i in range(5):
        run = of(lr={"means": 1e-3 * (i + 1)})
        _, said = found(tmp_path, run)
        for step in (10, 20):
            path = written(tmp_path, step, run=run)
            os.utime(path, (i, 10 * i + step))  # writing them takes no time here
    assert len(list(path.parent.iterdir())) <= 2 + 2
    assert any("is removed" in s for s in said)


def test_a_file_of_an_earlier_version_is_called_so(tmp_path):
    path = written(tmp_path)
    save_file(ROWS, path, {"settings": "0123abc"})
    step, said = found(tmp_path)
    assert step is None and "another version of dist3dgs wrote it" in said[0]


def flip(data):
    return data[:-5] + bytes([data[-5] ^ 16]) + data[-4:]


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: d[:-1], flip, lambda d: b"\xff" * len(d)]
)
def test_damage_is_found(damage, tmp_path):
    path = written(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot be read|checksums"):
        load(path, OURS)


def test_other_settings_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"train\.ssim_weight.*0\.2.*0\.3"):
        load(written(tmp_path), of(ssim_weight=0.3))


def test_what_changes_the_mathematics_and_what_does_not():
    base = of("n1g2", global_batch=4)
    assert not differences(base, of("n1g4", global_batch=4, log_every=3))
    assert not differences(
        base, identity(tiny.spec("n1g2", global_batch=4, strategy={"kind": "sharded"}), "scene")
    )
    assert differences(base, of("n1g2", global_batch=4, densify={"every": 7}))
    (line,) = differences(base, of("n1g2", global_batch=8))
    assert "set train.global_batch to 4" in line
    (line,) = differences(base, of("n1g2", scene="other", global_batch=4))
    assert "another packed scene" in line


def test_a_setting_younger_than_the_checkpoint_had_its_default():
    now = of()
    settings = json.loads(now["settings"])
    del settings["train.optimizer"], settings["train.densify.score_views"]
    before = now | {"settings": json.dumps(settings)}
    assert not differences(before, now)
    (line,) = differences(before, of(optimizer="selective"))
    assert "train.optimizer is adam there and selective here" in line


def test_a_save_in_the_background_holds_what_was_there_when_it_began(tmp_path, monkeypatch):
    go, names = threading.Event(), []
    original = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *args: go.wait(20) and original(*args))
    saver, rows = Saver(tmp_path, OURS, 2), {k: t.clone() for k, t in ROWS.items()}
    saver.start(Checkpoint(Header(step=7), rows), lambda path: names.append(path.name))
    for tensor in rows.values():
        tensor.zero_()  # the training goes on
    assert not names and not candidates(tmp_path) and not saver.failed
    go.set()
    saver.wait()
    (path,) = candidates(tmp_path)
    assert names == [path.name]
    assert all(torch.equal(load(path, OURS).rows[k], t) for k, t in ROWS.items())


def test_a_save_that_fails_is_told_by_the_next_wait(tmp_path):
    saver, written = Saver(tmp_path, OURS, 2), []
    (tmp_path / "checkpoints").write_text("no folder")
    saver.start(Checkpoint(Header(step=7), ROWS), written.append)
    end = time.monotonic() + 20
    while not saver.failed and time.monotonic() < end:
        time.sleep(0.01)
    assert saver.failed and not written
    with pytest.raises(OSError, match="checkpoints"):
        saver.start(Checkpoint(Header(step=8), ROWS), written.append)
    assert not saver.failed
