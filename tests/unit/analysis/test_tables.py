"""runs.csv and points.csv: every run a row, nothing invented."""

import csv
import json
import math

import pytest

from dist3dgs.analysis.measures import known_metrics
from dist3dgs.analysis.tables import read_table, tabulate
from dist3dgs.errors import UserError
from dist3dgs.runs.record import METRICS, Metrics
from tests.unit.helpers.records import make_record, write_records


@pytest.fixture
def tables(tmp_path):
    def make(records):
        paths = write_records(tmp_path / "results", records)
        tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
        return read_table(tmp_path / "runs.csv"), read_table(tmp_path / "points.csv")

    return make


def test_failed_run_is_a_row_with_its_cause(tables):
    runs, points = tables([make_record(), make_record(layout="n1g2", status="failed", cause="host_oom")])
    row = next(r for r in runs if r["layout"] == "n1g2")
    assert (row["status"], row["cause"], row["phase"], row["rank"]) == ("failed", "host_oom", "step", 1)
    assert row["evidence"].startswith("train.log:42: torch.distributed.elastic") and row["remedy"]
    point = next(p for p in points if p["layout"] == "n1g2")
    assert (point["n_ok"], point["n_failed"], point["causes"]) == (0, 1, "host_oom")
    assert point["images_per_s"] is None, "a failed point has no throughput, not 0"


def test_repeats_are_aggregated_with_their_spread(tables):
    rates = [10.0, 12.0, 11.5]
    runs, points = tables([make_record(repeat=i, images_per_s=r) for i, r in enumerate(rates)])
    assert [r["repeat"] for r in runs] == [0, 1, 2]
    (point,) = points
    assert point["n_ok"] == 3
    assert (point["images_per_s"], point["images_per_s_min"], point["images_per_s_max"]) == (11.5, 10.0, 12.0)
    assert point["baseline_layout"] == "n1g1" and point["scaling"] == "baseline"


def test_no_records_give_empty_tables_with_headers(tables, tmp_path):
    assert tables([]) == ([], [])
    assert (tmp_path / "runs.csv").read_text().startswith("scene,strategy,layout,repeat,")


def test_layouts_are_sorted_by_ranks_not_by_letters(tables):
    _, points = tables([make_record(layout=x) for x in ("n1g16", "n1g2", "n2g4", "n1g8")])
    assert [p["layout"] for p in points] == ["n1g2", "n1g8", "n2g4", "n1g16"]


def test_same_records_give_the_same_bytes_in_any_order(tmp_path):
    paths = write_records(
        tmp_path, [make_record(layout=x, repeat=i) for x in ("n1g1", "n1g2") for i in range(2)]
    )
    tabulate(paths, tmp_path / "a.csv", tmp_path / "b.csv")
    tabulate(paths[::-1], tmp_path / "c.csv", tmp_path / "d.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "d.csv").read_bytes()


def test_numbers_survive_the_file_exactly(tables):
    runs, _ = tables([make_record(images_per_s=1 / 3)])
    assert runs[0]["images_per_s"] == 1 / 3 and isinstance(runs[0]["ranks"], int)


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1", "-2", "@SUM(A1)", "\t=1", "\r\n=1"])
def test_evidence_cannot_become_a_spreadsheet_formula(tables, tmp_path, text):
    record = make_record(status="failed", remedy=text)
    tables([record])
    with (tmp_path / "runs.csv").open(newline="") as f:
        (row,) = csv.DictReader(f)
    assert row["remedy"].startswith("'")


def test_evidence_with_control_characters_stays_on_one_line(tables, tmp_path):
    tables([make_record(status="failed", evidence="a\x1b[31mred\nb\x00c\u202egnp.exe")])
    lines = (tmp_path / "runs.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and "\x1b" not in lines[1] and "\x00" not in lines[1] and "\u202e" not in lines[1]


def test_foreign_phases_become_columns(tables):
    runs, _ = tables([make_record(phases_s={"step": 284.0, "caching": 249.0})])
    assert runs[0]["phase_caching_s"] == 249.0 and runs[0]["phase_step_s"] == 284.0


def test_two_records_of_one_run_are_refused(tmp_path):
    a = write_records(tmp_path / "a", [make_record()])
    b = write_records(tmp_path / "b", [make_record()])
    with pytest.raises(UserError, match="same run"):
        tabulate(a + b, tmp_path / "runs.csv", tmp_path / "points.csv")
    assert not (tmp_path / "runs.csv").exists()


def test_a_file_that_is_not_a_record_is_named(tmp_path):
    bad = tmp_path / "record.json"
    bad.write_text('{"run": 3}')
    with pytest.raises(UserError, match=r"record\.json"):
        tabulate([bad], tmp_path / "runs.csv", tmp_path / "points.csv")


@pytest.mark.parametrize("content", [b"scene,ranks\nx,many\n", b"\xff\xfe\x00"])
def test_a_table_edited_by_hand_is_refused_with_the_way_out(tmp_path, content):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"snakemake .*tables"):
        read_table(path)
    with pytest.raises(UserError, match=r"snakemake .*tables"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("field", "value"),
    [("images_per_s", "NaN"), ("total_s", "Infinity"), ("train_s", "-3.0"), ("steps", "-1")],
)
def test_one_bad_record_is_a_row_with_its_reason(tmp_path, field, value):
    good, bad = write_records(tmp_path, [make_record(), make_record(layout="n1g2")])
    record = json.loads(bad.read_text())
    record["metrics"][field] = "BAD"
    bad.write_text(json.dumps(record).replace('"BAD"', value))
    tabulate([good, bad], tmp_path / "runs.csv", tmp_path / "points.csv")
    rows = {r["layout"]: r for r in read_table(tmp_path / "runs.csv")}
    assert rows["n1g1"]["status"] == "ok" and rows["n1g2"]["status"] == "unknown"
    assert field in rows["n1g2"]["evidence"] and rows["n1g2"]["images_per_s"] is None
    assert "http" not in rows["n1g2"]["evidence"], "the reason in a line, not the validator's"


def test_a_record_cut_in_half_is_a_row_too(tmp_path):
    (path,) = write_records(tmp_path, [make_record()])
    path.write_text(path.read_text()[:100])
    tabulate([path], tmp_path / "runs.csv", tmp_path / "points.csv")
    (row,) = read_table(tmp_path / "runs.csv")
    assert row["status"] == "unknown" and "not a run record" in row["evidence"]


def test_what_is_not_finite_is_left_out_of_the_metrics_with_its_reason():
    metrics, reasons = Metrics.known({"psnr": math.nan, "train_s": -1.0, "images_per_s": 3.0, "loss": -0.5})
    assert metrics.psnr is None and metrics.train_s is None
    assert metrics.images_per_s == 3.0 and metrics.loss == -0.5
    assert "nan" in reasons["psnr"] and "greater than or equal to 0" in reasons["train_s"]


def test_the_cost_of_a_decibel_is_that_of_those_gained_on_the_baseline(tables):
    """2 rank-hours more for half a decibel more; 0.05 dB are within the tolerance, and fewer are none."""
    finals = {"n1g1": 27.0, "n1g2": 27.5, "n1g4": 27.05, "n1g8": 26.0}
    hours = {"n1g1": 1.0, "n1g2": 3.0, "n1g4": 2.0, "n1g8": 4.0}
    records = []
    for layout, psnr in finals.items():
        record = make_record(layout=layout, total_s=3600 * hours[layout] / int(layout[3:]))
        metrics = record.metrics.model_copy(update={"psnr": psnr})
        records.append(record.model_copy(update={"metrics": metrics}))
    runs, _ = tables(records)
    assert {r["layout"]: r["psnr_over_baseline_db"] for r in runs} == pytest.approx(
        {"n1g1": 0.0, "n1g2": 0.5, "n1g4": 0.05, "n1g8": -1.0}
    )
    costs = {r["layout"]: r["rank_hours_per_db_gained"] for r in runs}
    assert costs == {"n1g1": None, "n1g2": pytest.approx(4.0), "n1g4": None, "n1g8": None}


def test_the_committed_reference_records_load_and_have_their_columns(repository, tmp_path):
    """Records of an earlier version, which know nothing of metrics that were added since."""
    paths = sorted((repository / "results/reference").glob("*/*/*/r*/record.json"))
    assert paths
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    runs = read_table(tmp_path / "runs.csv")
    raw = [json.loads(p.read_text())["metrics"] for p in paths]
    for row, metrics in zip(runs, raw, strict=True):
        assert row["status"] == "ok" and row["loss"] is None
        for name in set(METRICS) & set(metrics):
            assert row[name] == metrics[name], name


def test_every_metric_of_the_table_is_a_column_and_those_over_repeats_are_in_the_points(tables):
    runs, points = tables([make_record(loss=0.25)])
    for name, m in known_metrics().items():
        assert name in runs[0]
        assert (name in points[0]) == (m.over_repeats is not None or name == "global_batch"), name
    assert runs[0]["loss"] == points[0]["loss"] == points[0]["loss_max"] == 0.25
