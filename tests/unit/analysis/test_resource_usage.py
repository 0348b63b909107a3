"""Samples beside the records: peaks, means, modes, energy; phases behind them."""

import csv
import json

import pytest

from dist3dgs import figures
from dist3dgs.analysis.resource_usage import (
    Samples,
    Span,
    energy_wh,
    merge,
    read_chain,
    read_samples,
    read_spans,
    thin,
)
from dist3dgs.analysis.tables import tabulate
from dist3dgs.monitoring.sampler import COLUMNS
from dist3dgs.runs.record import GpuTotals
from tests.unit.helpers.records import make_record, write_records


def write_samples(point, num_gpus=2, power_w=300.0, num=11):
    """Eleven samples, two seconds apart, as the monitor writes them; then a torn row."""
    folder = point / "attempts" / "000"
    folder.mkdir(parents=True)
    lines = [",".join(COLUMNS)]
    for i in range(num):
        node = f"{1000 + 2 * i},node01,{100 + i},1.5,{1 + 0.1 * i:.1f},3"
        counters = f"{2**20 * i},0,{2**10 * i},0,{3 * 2**20 * i},0"
        for gpu in range(num_gpus):
            lines.append(f"{node},{gpu},{10 + gpu},{90 + i % 2},{power_w},{counters}")
        if not num_gpus:
            lines.append(f"{node},,,,,{counters}")
    lines.append("1022,node01,1")
    (folder / "resources.node01.csv").write_text("\n".join(lines) + "\n1024,no")
    events = [
        {"t": 1000, "event": "enter", "phase": "load"},
        {"t": 1003, "event": "leave", "phase": "load", "s": 3},
        {"t": 1003, "event": "enter", "phase": "step"},
        {"t": 1010, "event": "enter", "phase": "evaluate"},
        {"t": 1015, "event": "leave", "phase": "evaluate", "s": 5},
        {"t": 1020, "event": "warning", "message": "the run died here"},
    ]
    text = "\n".join(json.dumps(e | {"rank": 0}) for e in events)
    (folder / "events.jsonl").write_text(
        text + "\n" + text.replace('"rank": 0', '"rank": 1').replace("10", "77")
    )


@pytest.fixture
def point(tmp_path):
    write_samples(tmp_path / "p")
    return tmp_path / "p"


def pick(samples, quantity, gpu=None):
    return next(s for s in samples if s.quantity == quantity and s.gpu == gpu)


def test_node_values_are_counted_once_however_many_gpus(point):
    host = pick(read_samples(point), "pss_gib")
    assert len(host.values) == 11 and host.peak == 2.0 and host.average == pytest.approx(1.5)


def test_every_gpu_has_its_own(point):
    samples = read_samples(point)
    assert pick(samples, "gpu_mem_gib", 0).peak == 10 and pick(samples, "gpu_mem_gib", 1).peak == 11
    assert len(pick(samples, "gpu_util_percent", 1).values) == 11


def test_energy_is_power_over_time(point):
    assert energy_wh(read_samples(point)) == pytest.approx(2 * 300 * 20 / 3600)


def test_energy_does_not_bridge_a_gap():
    power = Samples(node="a", gpu=0, quantity="gpu_power_w", times=[0, 10, 5000, 5010], values=[100.0] * 4)
    assert power.integral() == pytest.approx(2000)


def test_no_power_is_not_zero_energy(tmp_path):
    write_samples(tmp_path, num_gpus=0)
    assert energy_wh(read_samples(tmp_path)) is None


def test_mode_is_the_most_frequent_not_the_mean():
    s = Samples(node="a", gpu=0, quantity="gpu_mem_gib", times=[0, 1, 2, 3], values=[1.1, 20.05, 20.1, 20.2])
    assert s.mode == pytest.approx(20.1) and s.average == pytest.approx(15.36, abs=0.01)


def test_counters_give_what_they_rose_by(point):
    assert pick(read_samples(point), "net_rx_bytes").growth() == 10 * 2**20


def test_no_folder_and_foreign_files_give_nothing(tmp_path):
    assert read_samples(tmp_path) == [] and read_spans(tmp_path) == []
    folder = tmp_path / "attempts" / "000"
    folder.mkdir(parents=True)
    (folder / "resources.x.csv").write_bytes(b"\x00\xff\n\xfe,\x00\n")
    assert read_samples(tmp_path) == []


def test_nested_phases_are_cut_out_and_an_open_one_lasts_to_the_end(point):
    assert read_spans(point) == [
        Span("load", 1000, 1003),
        Span("step", 1003, 1010),
        Span("evaluate", 1010, 1015),
        Span("step", 1015, 1020),
    ]


def test_short_densifications_belong_to_stepping():
    spans = [Span("step", 0, 10), Span("densify", 10, 10.1), Span("step", 10.1, 20), Span("densify", 20, 25)]
    assert merge(spans) == [Span("step", 0, 20), Span("densify", 20, 25)]


def test_thinning_keeps_the_peak():
    s = Samples(node="a", gpu=None, quantity="pss_gib", times=list(range(10_000)), values=[1.0] * 10_000)
    s.values[7777] = 9.0
    times, values = thin(s, 100)
    assert len(times) <= 100 and max(values) == 9.0 and times[values.index(9.0)] == 7777
    assert times == sorted(times)


def test_figure_has_samples_and_phases_of_the_first_repeats(tmp_path):
    from dist3dgs.analysis.tables import read_table

    paths = write_records(tmp_path, [make_record(repeat=i) for i in range(2)])
    for path in paths:
        write_samples(path.parent)
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    figures.draw("resources", tmp_path / "runs.csv", tmp_path / "points.csv", paths, tmp_path / "resources")
    lines = (tmp_path / "resources.csv").read_text().splitlines()
    assert sum(",phase," in line for line in lines[1:]) == 4
    assert sum(",gpu_mem_gib," in line for line in lines) == 22
    assert {line.split(",")[0] for line in lines[1:]} == {"builtin replicated n1g1"}
    assert read_table(tmp_path / "runs.csv")[0]["status"] == "ok"


def test_report_states_peaks_and_energy(tmp_path):
    from dist3dgs.report import write_report

    paths = write_records(tmp_path, [make_record(total_s=360.0)])
    write_samples(paths[0].parent)
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    write_report(tmp_path / "report.html", paths, tmp_path, tmp_path, [], {})
    text = (tmp_path / "report.html").read_text()
    section = text[text.index('id="resources"') : text.index('id="failures"')]
    for part in ("host node01", "GPU 1 of node01", ">3.33<", ">1.67<", "6.0 rank-minutes"):
        assert part in section, part


def table(tmp_path, name):
    with (tmp_path / name).open(newline="") as f:
        return list(csv.DictReader(f))


def copy_as_next_attempt(point, digest="d", resumes=True, shift=1000):
    """A second attempt, 1000 s later, which continues the first."""
    first, second = point / "attempts" / "000", point / "attempts" / "001"
    second.mkdir()
    rows = (first / "resources.node01.csv").read_text().splitlines()
    moved = [f"{float(r.split(',')[0]) + shift:g},{r.split(',', 1)[1]}" for r in rows[1:-1]]
    (second / "resources.node01.csv").write_text("\n".join([rows[0], *moved]))
    event = {"t": 1000 + shift, "rank": 0, "event": "resume" if resumes else "start", "step": 5}
    (second / "events.jsonl").write_text(json.dumps(event) + "\n")
    for folder, name in ((first, "d"), (second, digest)):
        (folder / "launch.json").write_text(json.dumps({"spec_digest": name}))


def test_energy_is_that_of_all_attempts_whose_time_the_record_adds_up(point):
    one = 2 * 300 * 20 / 3600
    copy_as_next_attempt(point)
    assert energy_wh(read_samples(point)) == pytest.approx(one)
    assert energy_wh(read_chain(point)) == pytest.approx(2 * one), "the wait between them is no use of energy"
    rx = pick(read_chain(point), "net_rx_bytes")
    assert rx.growth() == 2 * 10 * 2**20, "a counter that starts anew has not fallen"


@pytest.mark.parametrize("change", [{"digest": "other"}, {"resumes": False}])
def test_attempts_that_are_another_story_cost_another_run(point, change):
    copy_as_next_attempt(point, **change)
    assert energy_wh(read_chain(point)) == pytest.approx(2 * 300 * 20 / 3600)


def test_resources_are_a_table_and_columns_of_the_runs(tmp_path):
    paths = write_records(
        tmp_path,
        [
            make_record(layout="n1g2", gpu=True, psnr=25.0, total_s=3600.0),
            make_record(layout="n1g1", psnr=25.0),
            make_record(strategy="imported", gpu=True),
        ],
    )
    write_samples(paths[0].parent)
    copy_as_next_attempt(paths[0].parent)
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    host, *gpus = table(tmp_path, "resources.csv")
    assert (host["node"], host["gpu"], host["energy_wh"], host["power_average_w"]) == ("node01", "", "", "")
    assert float(host["memory_peak_gib"]) == 2.0 and float(host["use_peak_percent"]) == 110
    assert [g["gpu"] for g in gpus] == ["0", "1"]
    assert [float(g["memory_mode_gib"]) for g in gpus] == [10, 11]
    energy = 2 * 2 * 300 * 20 / 3600
    assert sum(float(g["energy_wh"]) for g in gpus) == pytest.approx(energy)
    rows = {(r["strategy"], r["layout"]): r for r in table(tmp_path, "runs.csv")}
    run = rows["replicated", "n1g2"]
    assert float(run["energy_wh"]) == pytest.approx(energy)
    assert (float(run["gpu0_memory_peak_gib"]), float(run["gpu0_memory_mode_gib"])) == (10, 10)
    assert float(run["gpu_power_average_w"]) == 300 and 90 < float(run["gpu_util_average_percent"]) < 91
    empty = rows["replicated", "n1g1"]
    assert [empty[c] for c in ("energy_wh", "gpu0_memory_peak_gib", "gpu_power_average_w")] == [""] * 3, (
        "unknown is not 0"
    )


def test_an_imported_runs_gpus_are_rows_too(tmp_path):
    record = make_record(strategy="imported", gpu=True, psnr=20.0)
    gpus = [
        GpuTotals(gpu=str(i), memory_peak_gib=9.0, power_average_w=250.0, energy_wh=50.0 if i else None)
        for i in (0, 1)
    ]
    record = record.model_copy(update={"metrics": record.metrics.model_copy(update={"gpus": gpus})})
    tabulate(write_records(tmp_path, [record]), tmp_path / "runs.csv", tmp_path / "points.csv")
    assert [r["energy_wh"] for r in table(tmp_path, "resources.csv")] == ["", "50.0"]
    (run,) = table(tmp_path, "runs.csv")
    assert run["gpu_power_average_w"] == "250.0"
    assert run["gpu0_memory_peak_gib"] == "9.0"
    assert run["energy_wh"] == "" == run["wh_per_db_gained"], "half of the energy is not the energy"


def test_records_alone_say_whose_samples_are_elsewhere_and_how_to_get_them(tmp_path):
    from dist3dgs.report import write_report

    def sampled(layout):
        record = make_record(layout=layout)
        digests = {"events.jsonl": "0", "resources.node01.csv": "0"}
        provenance = record.provenance.model_copy(update={"evidence_sha256": digests})
        return record.model_copy(update={"provenance": provenance})

    def page():
        tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
        write_report(tmp_path / "report.html", paths, tmp_path / "figures", tmp_path, [], {})
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    never = make_record(layout="n1g4")
    paths = write_records(tmp_path / "my results", [sampled("n1g1"), sampled("n1g2"), never])
    text = page()
    said = text[text.index("The resource samples of") :].split("</p>")[0]
    assert "n1g1" in said and "n1g2" in said and "n1g4" not in said, "it was never sampled"
    assert "rsync" in said and "my results&#x27;/" in said and "attempts/***" in said
    for path in paths[:2]:
        write_samples(path.parent)
    assert "The resource samples of" not in page()
