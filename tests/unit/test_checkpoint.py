"""Checkpoints: whole or not at all, checked when read, bound to their settings."""

import pytest
import torch

from dist3dgs.train.checkpoint import Checkpoint, Header, candidates, load, save, settings_digest

from . import tiny

ROWS = {"means": torch.arange(12.0).reshape(4, 3), "statistics/count": torch.arange(4)}


def written(folder, step=7, keep=2):
    header = Header(step=step, elapsed_s=1.5, adam_steps={"means": 3.0}, shards=[1, 3])
    return save(folder, Checkpoint(header, ROWS), "digest", keep)


def test_what_is_read_is_what_was_written(tmp_path):
    got = load(written(tmp_path), "digest")
    assert got.header == Header(step=7, elapsed_s=1.5, adam_steps={"means": 3.0}, shards=[1, 3])
    assert set(got.rows) == set(ROWS) and all(torch.equal(got.rows[k], t) for k, t in ROWS.items())


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 30, 4):
        written(tmp_path, step)
    assert [int(p.name[5:13]) for p in candidates(tmp_path)] == [30, 4]


def flip(data):
    return data[:-5] + bytes([data[-5] ^ 16]) + data[-4:]


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: d[:-1], flip, lambda d: b"\xff" * len(d)]
)
def test_damage_is_found(damage, tmp_path):
    path = written(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot be read|checksums do not match"):
        load(path, "digest")


def test_other_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="other settings"):
        load(written(tmp_path), "another")


def test_the_digest_knows_what_changes_the_mathematics_and_what_does_not():
    base = settings_digest(tiny.spec("n1g2", global_batch=4), "scene")
    assert settings_digest(tiny.spec("n1g4", global_batch=4, log_every=3), "scene") == base
    assert settings_digest(tiny.spec("n1g2", global_batch=4, strategy={"kind": "sharded"}), "scene") == base
    assert settings_digest(tiny.spec("n1g2", global_batch=8), "scene") != base
    assert settings_digest(tiny.spec("n1g2", global_batch=4, ssim_weight=0.3), "scene") != base
    assert settings_digest(tiny.spec("n1g2", global_batch=4), "other") != base
