"""Foreign logs as records: what is kept, and what is refused."""

import hashlib
from pathlib import Path

import pytest

from dist3dgs.analysis import rank_unit
from dist3dgs.cli.logs import run_import
from dist3dgs.errors import UserError
from dist3dgs.records.import_record import import_record
from dist3dgs.runs.record import RunRecord, load_record, save_record
from tests.unit.helpers.records import make_record

EPOCHS = (
    "2025-01-01 10:00:00 SLURM_JOB_ID=4711\nSLURM_GPUS_ON_NODE=2\nworld_size: 2\n"
    "Epoch [1/2] Loss (train, val): 5.1, 5.6 | Accuracy (train, val): 2.2%, 1.9% | Throughput: 700.0 img/s\n"
    "Epoch [2/2] Loss (train, val): 4.1, 4.6 | Accuracy (train, val): 3.2%, 2.9% | Throughput: 710.0 img/s\n"
    "2025-01-01 10:10:00 Training finished\n"
)
MEGATRON = "world_size: 2\n" + "".join(
    f" iteration {i:5d}/   10 | elapsed time per iteration (ms): 250.0 | loss: 1.0 |\n" for i in range(1, 11)
)
SMI = "timestamp, index, utilization.gpu [%], memory.used [MiB], power.draw [W]\n" + "".join(
    f"2025/01/01 10:{m:02d}:00.000, {g}, 80 %, {2048 + 1024 * (m == 5)} MiB, 300.00 W\n"
    for m in range(11)
    for g in (0, 1)
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def put(tmp_path: Path, *logs: Path, layout: str = "n1g2", force: bool = False) -> RunRecord:
    assert run_import(logs, scene="garden", layout=layout, results=tmp_path / "results", force=force) == 0
    return load_record(tmp_path / f"results/garden/imported/{layout}/r0/record.json")


def test_what_the_log_says_is_kept(tmp_path: Path) -> None:
    log, smi = write(tmp_path / "job.log", EPOCHS), write(tmp_path / "smi.csv", SMI)
    record = put(tmp_path, log, smi)
    m = record.metrics
    assert record.status == "ok" and record.provenance.slurm_job_id == "4711"
    assert (m.loss, m.accuracy, m.epochs, m.images_per_s, m.total_s) == (4.1, 2.9, 2, 710.0, 600)
    assert m.step_s is None and m.steps_per_s is None, "seconds per epoch are no step times"
    started, finished = record.provenance.started_at, record.provenance.finished_at
    assert started is not None and finished == started + 600
    assert record.provenance.evidence_sha256 == {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (log, smi)
    }
    assert [g.gpu for g in m.gpus] == ["0", "1"]
    gpu = m.gpus[0]
    assert (gpu.memory_peak_gib, gpu.memory_mode_gib) == (3.0, 2.0)
    assert gpu.memory_average_gib == pytest.approx((10 * 2 + 3) / 11)
    assert (gpu.utilisation_average_percent, gpu.power_average_w) == (80, 300)
    assert gpu.energy_wh == pytest.approx(300 * 600 / 3600)


def test_rates_follow_from_step_times(tmp_path: Path) -> None:
    m = put(tmp_path, write(tmp_path / "a.log", MEGATRON)).metrics
    assert m.step_s is not None and m.step_s.mean == 0.25 and m.steps_per_s == 4.0
    assert (m.steps, m.train_s, len(m.ranks)) == (10, 2.5, 2)
    assert m.images is None and m.images_per_s is None


@pytest.mark.parametrize("layout, said", [("n1g1", "2 devices.*allocated"), ("n1g4", "2 devices.*allocated")])
def test_a_layout_that_the_log_contradicts_is_refused(tmp_path: Path, layout: str, said: str) -> None:
    log = write(tmp_path / "job.log", EPOCHS)
    with pytest.raises(UserError, match=said):
        put(tmp_path, log, layout=layout)
    assert not (tmp_path / "results").exists()
    assert put(tmp_path, log, layout=layout, force=True).run.layout == layout


def test_more_devices_used_than_the_layout_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 devices.*used"):
        put(tmp_path, write(tmp_path / "a.log", MEGATRON), layout="n1g1")


def test_another_logs_record_is_not_replaced(tmp_path: Path) -> None:
    first = write(tmp_path / "a.log", EPOCHS)
    put(tmp_path, first)
    assert put(tmp_path, first).status == "ok", "the same log again"
    other = write(tmp_path / "b.log", EPOCHS.replace("4.1", "4.0"))
    with pytest.raises(UserError, match=r"other logs.*a\.log"):
        put(tmp_path, other)
    assert put(tmp_path, other, force=True).metrics.loss == 4.0


def test_a_record_of_our_own_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results/garden/imported/n1g2/r0/record.json"
    save_record(make_record("garden", "imported", "n1g2"), path)
    before = path.read_bytes()
    for force in (False, True):
        with pytest.raises(UserError, match="a run of our own"):
            put(tmp_path, write(tmp_path / "a.log", EPOCHS), force=force)
    assert path.read_bytes() == before


def test_nothing_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        put(tmp_path, write(tmp_path / "a.log", ""))
    with pytest.raises(UserError, match="logs of 2 jobs"):
        put(tmp_path, write(tmp_path / "a-47110.log", EPOCHS), write(tmp_path / "a-47120.log", EPOCHS))


def test_gsplat_runs_on_gpus(tmp_path: Path) -> None:
    log = write(
        tmp_path / "a.log",
        "python simple_trainer.py default\nStep:  99 {'mem': 1.0, 'ellipse_time': 9.0, 'num_GS': 10}\n",
    )
    record, _ = import_record([log], scene="garden", layout="n1g1", results=tmp_path)
    assert rank_unit(record) == "GPU" and record.environment.devices == ["GPU"]
