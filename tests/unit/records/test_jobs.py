"""Records of points whose blocks train in jobs of their own: times, cost, ranks, the cause of a failed part."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist3dgs.analysis.measures import rank_hours
from dist3dgs.analysis.points import place, point_rows
from dist3dgs.config.matrix import run_digest, spec_json
from dist3dgs.config.models import RunSpec
from dist3dgs.errors import UserError
from dist3dgs.records.build import judge
from dist3dgs.slurm.outcome import record_failed_part
from tests.unit.helpers import evidence as e


def job(
    folder: Path, part: str, seconds: float, train_s: float, *more: dict[str, Any], **launch: Any
) -> RunSpec:
    """Leave the evidence of one job of a point of two blocks, of `seconds` from start to end."""
    values = e.spec("n1g1", steps=100, global_batch=2).model_dump()
    values |= {"strategy": "blocks-jobs", "part": part}
    values["parallel"] |= {"kind": "blocks", "blocks": 2}
    run = RunSpec(**values)
    events = [
        e.start(0),
        {"t": 1004.0, "rank": 0, "event": "scene", "digest": "s"},
        *more,
        *(
            [e.timing(0, train_s, steps=10 if part == "coarse" else 40)]
            if part
            else [e.timing(0, train_s) | {"step_s": None, "parts_s": {}, "steps": 0}]
        ),
        {"t": 1097.0, "rank": 0, "event": "memory", "peak_rss_gib": seconds / 100, "peak_gpu_gib": None},
    ]
    if launch.get("status", "ok") == "ok":
        events.append({"t": 1098.0, "rank": 0, "event": "end", "status": "ok", "step": 50})
    place = folder / "parts" / part if part else folder
    place.mkdir(parents=True, exist_ok=True)
    digest = run_digest(spec_json(run))
    e.write_attempt(
        place, run, events, digest=digest, started_at=1000.0, finished_at=1000.0 + seconds, **launch
    )
    return run


def cut(step: int, phase: str, **numbers: list[int]) -> dict[str, Any]:
    return {"t": 1010.0, "rank": 0, "event": "blocks", "step": step, "phase": phase, **numbers}


def a_point(folder: Path) -> None:
    job(folder, "coarse", 30.0, 20.0, cut(10, "blocks", gaussians=[5, 6], views=[3, 4]))
    job(folder, "block-0", 60.0, 50.0)
    job(folder, "block-1", 80.0, 70.0)
    job(folder, "", 10.0, 70.0, cut(50, "merged", gaussians=[7, 9]), e.evaluation(50, 25.0))


def test_times_are_of_the_jobs_that_follow_each_other_and_the_cost_of_all(tmp_path):
    a_point(tmp_path)
    record = judge(tmp_path / "launch.json")
    m = record.metrics
    assert record.status == "ok" and record.world_size == 2
    assert (m.total_s, m.train_s) == (30 + 80 + 10, 70.0)
    assert rank_hours(record) == pytest.approx((30 + 60 + 80 + 10) / 3600)
    assert [(j.name, j.total_s, j.gaussians, j.views) for j in m.jobs] == [
        ("coarse", 30, None, None), ("block-0", 60, 7, 3), ("block-1", 80, 9, 4), ("merge", 10, 12, None)
    ]  # fmt: skip
    assert [(r.rank, r.block_gaussians, r.block_views) for r in m.ranks] == [(0, 7, 3), (1, 9, 4)]
    # 10 steps of 2 s of the coarse training, 40 of 1.75 s of the slower block.
    assert m.timed_steps == 50 and m.images_per_s == pytest.approx(2 * 50 / (20 + 70))
    assert (m.peak_rss_gib, m.psnr) == (0.8, 25.0)
    assert record.environment.devices == ["cpu", "cpu"]
    assert "parts/block-1/events.jsonl" in record.provenance.evidence_sha256
    (row,) = point_rows([record])
    assert row["ranks"] == 2 and place(row) == "n1g1 (2 block jobs)" and "all 4 jobs" in row["reason"]


def test_without_its_parts_a_point_has_no_times(tmp_path):
    a_point(tmp_path)
    (tmp_path / "parts/block-1/launch.json").unlink()
    record = judge(tmp_path / "launch.json")
    assert record.metrics.total_s is None and record.metrics.psnr == 25.0 and rank_hours(record) is None
    assert record.reasons["total_s"] == "the folders of some of the point's parts are gone"


def test_a_failed_part_is_the_points_failure(tmp_path):
    """The jobs after it are ended without a training; the record quotes the part's own evidence."""
    error = {
        "t": 1050.0, "rank": 0, "event": "error", "type": "Diverged", "message": "loss is nan at step 20",
        "traceback": "", "phase": "step", "step": 20,
    }  # fmt: skip
    job(tmp_path, "coarse", 30.0, 20.0)
    job(tmp_path, "block-0", 60.0, 50.0)
    job(tmp_path, "block-1", 80.0, 70.0, error, status="failed", returncode=1, cause="diverged")
    merge = job(tmp_path / "elsewhere", "", 10.0, 70.0)
    note = record_failed_part(tmp_path, spec_json(merge))
    assert note is not None and note.startswith("block-1 ended with diverged, see ")
    assert json.loads((tmp_path / "launch.json").read_text())["published"]
    record = judge(tmp_path / "launch.json")
    assert record.status == "failed" and record.failure is not None
    assert (record.failure.cause, record.failure.step) == ("diverged", 20)
    assert record.failure.evidence[0].file.startswith("parts/block-1/attempts/000/")
    assert [j.status for j in record.metrics.jobs] == ["ok", "ok", "failed", "failed"]

    block = merge.model_copy(update={"part": "block-0"})
    assert record_failed_part(tmp_path / "parts/block-0", spec_json(block)) is None
    (tmp_path / "parts/coarse/launch.json").unlink()
    with pytest.raises(UserError, match="block-0 goes on from this job, which has not ended"):
        record_failed_part(tmp_path / "parts/block-0", spec_json(block))
