"""Figures: true for every kind of study, the same bytes when redrawn, failures marked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs import figures
from dist3dgs.analysis.tables import tabulate
from dist3dgs.errors import UserError
from dist3dgs.figures import style
from tests.unit.helpers.drawn import Drawn, texts
from tests.unit.helpers.records import make_record, make_workload, usl_rate

ENDINGS = ("svg", "png", "pdf", "csv")

STUDIES = {
    "none": [],
    "one run": [make_record()],
    "one layout": [make_record(repeat=i) for i in range(3)],
    "all failed": [make_record(status="failed"), make_record(layout="n1g2", status="failed", cause="host_oom")],
    "failed without a number": [make_record(status="failed", curve=[], phases_s={}, total_s=None, step_s=None)],
    "nothing measured": [
        make_record(
            curve=[], phases_s={}, total_s=None, step_s=None, images_per_s=None, images=1, psnr=1.0, comm_s=None,
            peak_rss_gib=None, peak_host_gib=None, views=[],
        )
    ],
    "same ranks, two layouts": [make_record(layout=x) for x in ("n1g1", "n1g4", "n2g2")],
}  # fmt: skip


#: Drawn by the fast tests: lines over layouts, and bars. Other tests draw the rest as well.
_FAST = ("speedup", "phases")
_ALL = ("none", "one run", "all failed", "nothing measured")
_CASES = [
    pytest.param(study, name, marks=[] if study == "one run" and name in _FAST else pytest.mark.slow)
    for study in STUDIES
    for name in (figures.NAMES if study in _ALL else ("speedup", "phases"))
]


@pytest.mark.parametrize(("study", "name"), _CASES)
def test_every_study_draws_something(tmp_path, study, name):
    base = Drawn(tmp_path, STUDIES[study]).draw(name)
    for end in ENDINGS:
        assert base.with_name(f"{name}.{end}").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", figures.NAMES)
def test_redrawing_gives_the_same_bytes(tmp_path, name):
    records = [make_record(layout=x, repeat=i) for x in ("n1g1", "n1g2") for i in range(2)]
    study = Drawn(tmp_path, [*records, make_record(layout="n1g4", status="failed")])
    first, again = study.draw(name, "a"), study.draw(name, "b")
    for end in ENDINGS:
        a, b = (p.with_name(f"{name}.{end}").read_bytes() for p in (first, again))
        assert a == b, end


@pytest.mark.slow
def test_redrawing_in_another_process_with_a_foreign_style_gives_the_same_bytes(tmp_path):
    study = Drawn(tmp_path, [make_record(), make_record(layout="n1g2")])
    here = study.draw("speedup", "here")
    (tmp_path / "matplotlibrc").write_text("font.family: serif\nsavefig.dpi: 55\nlines.linewidth: 9\n")
    code = (
        "import sys; from pathlib import Path; from dist3dgs import figures\n"
        "f = Path(sys.argv[1]); figures.draw('speedup', f/'runs.csv', f/'points.csv', "
        "[Path(p) for p in sys.argv[2:]], f/'there'/'speedup')"
    )
    environment = os.environ | {
        "MATPLOTLIBRC": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path / "mpl"),
        "PYTHONHASHSEED": "7",
    }
    command = [sys.executable, "-c", code, str(tmp_path), *map(str, study.paths)]
    subprocess.run(command, check=True, env=environment, timeout=120)
    for end in ("svg", "png", "pdf"):
        there = tmp_path / "there" / f"speedup.{end}"
        assert here.with_name(f"speedup.{end}").read_bytes() == there.read_bytes(), end


def test_no_dates_and_no_versions_in_files(tmp_path):
    study = Drawn(tmp_path, [make_record()])
    svg = study.svg("speedup")
    assert "dc:date" not in svg and "matplotlib.org" not in svg
    png = (tmp_path / "figures" / "speedup.png").read_bytes()
    assert b"Software" not in png and b"Matplotlib" not in png


def test_ideal_line_and_negative_zone_are_in_the_speedup(tmp_path):
    study = Drawn(
        tmp_path, [make_record(layout=x, images_per_s=r) for x, r in (("n1g1", 10.0), ("n1g4", 6.0))]
    )
    (ideal,) = study.artists("speedup", "ideal")
    assert list(ideal.get_xdata()) == [1, 4] and list(ideal.get_ydata()) == [1, 4]
    (zone,) = study.artists("speedup", "negative-scaling")
    corners = zone.get_extents().transformed(zone.axes.transData.inverted())
    assert corners.y1 == pytest.approx(1.0)
    assert corners.y0 < 0.6, "the slow point lies inside the shaded zone"


@pytest.mark.parametrize(
    "name", ["speedup", "throughput", "step_time", "efficiency", "memory", "quality_time"]
)
def test_failed_point_is_marked_in_every_figure_over_layouts(tmp_path, name):
    ok = [make_record(layout=x) for x in ("n1g1", "n1g2")]
    study = Drawn(tmp_path, ok)
    assert study.artists(name, "failed") == []
    study = Drawn(tmp_path / "lost", [*ok, make_record(layout="n1g4", status="failed", cause="gpu_oom")])
    assert study.artists(name, "failed")
    assert any(r["cause"] == "gpu_oom" for r in study.rows(name))


def test_failed_run_is_a_bar_up_to_where_it_came(tmp_path):
    study = Drawn(tmp_path, [make_record(), make_record(layout="n1g2", status="failed", cause="host_oom")])
    rows = [r for r in study.rows("phases") if r["layout"] == "n1g2"]
    assert {r["cause"] for r in rows} == {"host_oom"} and {r["status"] for r in rows} == {"failed"}
    assert "compute" in {r["phase"] for r in rows} and "export" not in {r["phase"] for r in rows}


def test_degraded_run_is_shown_where_it_was_measured_but_not_joined(tmp_path):
    study = Drawn(
        tmp_path,
        [
            make_record(layout="n1g1", images_per_s=10.0),
            make_record(layout="n1g4", status="degraded", cause="allocation_mismatch", images_per_s=11.0),
        ],
    )
    (mark,) = study.artists("speedup", "degraded")
    assert list(mark.get_xdata()) == [4] and list(mark.get_ydata()) == [pytest.approx(1.1)]
    ok = [r for r in study.rows("speedup") if r["status"] == "ok"]
    assert {r["layout"] for r in ok} == {"n1g1"}


def test_layouts_of_equal_size_are_marked_but_not_joined(tmp_path):
    rates = {"n1g1": 10.0, "n1g2": 19.0, "n2g1": 15.0, "n1g4": 30.0}
    study = Drawn(tmp_path, [make_record(layout=x, images_per_s=r) for x, r in rates.items()])
    marked = [list(x.get_ydata()) for x in study.artists("throughput", "line")]
    assert [10.0, 19.0, 30.0] in marked and [15.0] in marked


def test_programs_of_different_units_have_each_their_own_below_their_name(tmp_path):
    layouts = {"n1g1": 1.0, "n1g2": 1.8, "n1g4": 3.1}
    programs = {"resnet50": ("image", 400.0), "planner": ("sample", 90.0), "llm": ("token", 62_000.0)}
    records = [make_record(layout=x) for x in layouts]
    for name, (unit, rate) in programs.items():
        records += [
            make_workload(name, "small", x, images_per_s=rate * f, unit=unit) for x, f in layouts.items()
        ]
    study = Drawn(tmp_path, records)
    words = study.words("throughput")
    assert "throughput, log scale" in words
    names = [t.get_text() for t in study.artists("throughput", "title") if t.get_text()]
    assert sorted(zip(names[::2], names[1::2], strict=True)) == [
        ("builtin", "images/s"), ("llm", "tokens/s"), ("planner", "samples/s"), ("resnet50", "images/s")
    ]  # fmt: skip
    assert "100k" in words and not any(len(w) > 5 and w.isdigit() for w in words), (
        "they run into other panels"
    )
    marks = [tuple(x.get_ydata()) for x in study.artists("throughput", "line")]
    for _, rate in programs.values():
        assert tuple(rate * f for f in layouts.values()) in marks
    for line in study.artists("throughput", "ideal"):
        firsts = [(x.get_xdata()[0], x.get_ydata()[0]) for x in study.artists("throughput", "line")]
        assert (line.get_xdata()[0], line.get_ydata()[0]) in firsts, "the ideal goes through the first mark"


def test_one_unit_is_on_the_axis(tmp_path):
    records = [make_workload(name, "small", "n1g2", images_per_s=9.0) for name in ("planner", "transformer")]
    words = Drawn(tmp_path, records).words("throughput")
    assert "throughput [samples/s], log scale" in words and "samples/s" not in words


def test_phases_of_a_run_add_up_to_its_total(tmp_path):
    record = make_record(layout="n1g2")
    rows = Drawn(tmp_path, [record]).rows("phases")
    assert sum(float(r["s"]) for r in rows) == pytest.approx(record.metrics.total_s)
    exposed = next(float(r["s"]) for r in rows if r["phase"] == "communication")
    assert exposed == pytest.approx(record.metrics.exposed_comm_s)


def test_phases_name_a_scene_once_and_a_strategy_beside_its_first_bar(tmp_path):
    points = [
        ("builtin", "replicated", "n1g1"),
        ("builtin", "replicated", "n1g2"),
        ("builtin", "sharded", "n1g2"),
    ]
    points += [("fox", "sharded", "n1g4")]
    study = Drawn(tmp_path, [make_record(scene, s, layout) for scene, s, layout in points])
    titles = sorted(study.artists("phases", "title"), key=lambda t: t.get_position()[1])
    assert [t.get_text() for t in titles] == ["builtin", "replicated", "sharded", "fox", "sharded"]
    bars = {}
    for text in texts(study.picture("phases")):
        if text.get_text() in {layout for _, _, layout in points}:
            bars[round(text.get_position()[1], 4)] = text.get_text()
    beside = {t.get_text(): bars.get(round(t.get_position()[1], 4)) for t in titles[:3]}
    assert beside == {"builtin": None, "replicated": "n1g1", "sharded": "n1g2"}


def test_phases_are_means_over_repeats(tmp_path):
    records = [
        make_record(repeat=i, phases_s={"step": s}, total_s=s, exposed_comm_s=None)
        for i, s in enumerate((1.0, 2.0, 6.0))
    ]
    (row,) = Drawn(tmp_path, records).rows("phases")
    assert (row["phase"], row["n"], float(row["s"])) == ("compute", "3", 3.0)


def test_efficiency_says_why_a_definition_is_not_measured(tmp_path):
    study = Drawn(tmp_path, [make_record(layout=x) for x in ("n1g1", "n1g2")])
    notes = {r["definition"]: r["note"] for r in study.rows("efficiency") if r["status"] == "note"}
    assert list(notes) == ["strong"] and "global batch grows" in notes["strong"]
    study = Drawn(tmp_path / "one", [make_record()])
    notes = {r["definition"]: r["note"] for r in study.rows("efficiency") if r["status"] == "note"}
    assert set(notes) == {"strong", "throughput", "time_to_quality"}
    assert all("second layout" in n for n in notes.values())


def test_a_strategy_that_shares_the_baseline_of_another_has_its_efficiency(tmp_path):
    """The demo's: one rank of replicated, two ranks of both strategies."""
    points = [("replicated", "n1g1"), ("replicated", "n1g2"), ("sharded", "n1g2")]
    study = Drawn(tmp_path, [make_record(strategy=s, layout=x) for s, x in points])
    for definition in ("throughput", "time_to_quality"):
        drawn = [r for r in study.rows("efficiency") if r["definition"] == definition]
        assert [(r["series"], r["layout"]) for r in drawn] == points


def test_a_failed_layout_takes_the_quality_to_reach_from_no_other(tmp_path):
    records = [make_record(), make_record(layout="n1g2"), make_record(layout="n1g4", status="failed")]
    rows = Drawn(tmp_path, records).rows("quality_time")
    assert {r["layout"] for r in rows} == {"n1g1", "n1g2", "n1g4"}
    assert all(r["target_psnr"] for r in rows)


def test_law_is_drawn_only_where_it_can_be_checked(tmp_path):
    three = [make_record(layout=f"n1g{p}", images_per_s=usl_rate(p)) for p in (1, 2, 4)]
    assert not [r for r in Drawn(tmp_path / "a", three).rows("speedup") if r["status"] == "fit"]
    four = [*three, make_record(layout="n1g8", images_per_s=usl_rate(8))]
    fitted = [r for r in Drawn(tmp_path / "b", four).rows("speedup") if r["status"] == "fit"]
    assert fitted and "serial share 5.0 %" in fitted[0]["note"]


def test_a_point_without_a_run_on_fewer_ranks_is_marked_as_its_own_baseline(tmp_path):
    other = {"train": {"steps": 2000, "batch_per_rank": 1, "densify": {"kind": "mcmc"}}}
    alone = [make_record(strategy="mcmc", layout=x, settings=other) for x in ("n1g4", "n1g8")]
    study = Drawn(tmp_path, [make_record(), make_record(layout="n1g2"), *alone])
    for name in ("speedup", "efficiency"):
        marks = study.artists(name, "own-baseline")
        assert marks and all(round(float(m.get_xdata()[0])) == 4 for m in marks), name
        assert any("its own baseline" in w for w in study.words(name))
        assert {r["series"] for r in study.rows(name) if r["own_baseline"]} == {"mcmc"}
    assert not Drawn(tmp_path / "two", [make_record(), make_record(layout="n1g2")]).artists(
        "speedup", "own-baseline"
    )


def test_the_pareto_front_has_what_nothing_beats_in_time_and_cost(tmp_path):
    """Two ranks cost as much as one and are faster; four cost more; three of another strategy are beaten by two."""
    rates = {("replicated", "n1g1"): 10.0, ("replicated", "n1g2"): 20.0, ("replicated", "n1g4"): 30.0}
    rates |= {("sharded", "n1g3"): 15.0}
    records = [make_record(strategy=s, layout=x, images_per_s=r, curve=[]) for (s, x), r in rates.items()]
    records = [
        r.model_copy(update={"metrics": r.metrics.model_copy(update={"psnr": None, "total_s": 2000 / rate})})
        for r, rate in zip(records, rates.values(), strict=True)
    ]
    study = Drawn(tmp_path, records)
    rows = {r["layout"]: r for r in study.rows("cost_time")}
    assert {x for x, r in rows.items() if r["on_front"] == "yes"} == {"n1g2", "n1g4"}
    assert float(rows["n1g4"]["rank_hours"]) == pytest.approx(4 * 2000 / 30 / 3600)
    (front,) = study.artists("cost_time", "front")
    assert len(front.get_xdata()) == 2 and len(study.artists("cost_time", "point")) == 4


def test_points_that_miss_the_quality_are_named_below_cost_against_time(tmp_path):
    study = Drawn(
        tmp_path, [make_record(), make_record(layout="n1g2"), make_record(layout="n1g4", psnr=20.0)]
    )
    assert "not drawn, misses the quality: replicated n1g4" in study.words("cost_time")
    assert {r["layout"]: r["status"] for r in study.rows("cost_time")}["n1g4"] == "not_drawn"


def test_a_strategy_looks_the_same_where_another_is_not_drawn(tmp_path):
    missed = make_record(strategy="hybrid", layout="n1g2", psnr=20.0)
    study = Drawn(tmp_path, [make_record(), make_record(layout="n1g2"), missed])
    looks = {artist.get_color() for artist in study.artists("cost_time", "point")}
    assert looks == {style.series_style("replicated", ["hybrid", "replicated"])["color"]}


def test_a_strategy_has_the_look_of_the_whole_study_in_a_figure_without_the_others():
    with style.styled(["bf16", "blocks", "sharded"]):
        alone = style.series_style("sharded", ["sharded"])
    assert alone == style.series_style("sharded", ["bf16", "blocks", "sharded"])


def test_a_step_is_computation_overlap_and_exposed_communication(tmp_path):
    """Of 50 ms computation 5 ms run beside collectives; 20 more are waited for."""
    record = make_record(
        layout="n1g2",
        steps=1000,
        images=2000,
        timed_steps=1000,
        compute_s=50.0,
        comm_s=25.0,
        exposed_comm_s=20.0,
    )
    rows = Drawn(tmp_path, [record]).rows("computation_communication")
    parts = {r["part"]: float(r["s"]) for r in rows}
    assert parts == pytest.approx({"computation": 0.045, "overlapped": 0.005, "exposed communication": 0.02})


def test_challenges_show_what_they_cost_and_which_are_overcome(tmp_path):
    lost = make_record(layout="n1g2", status="failed", cause="host_oom", total_s=1800.0, started_at=1.0)
    again = make_record(layout="n1g2", repeat=1, started_at=2.0)
    open_one = make_record(layout="n1g4", status="failed", cause="gpu_oom", total_s=900.0, started_at=3.0)
    study = Drawn(tmp_path, [lost, again, open_one])
    rows = {r["cause"]: r for r in study.rows("technical_challenges")}
    assert (float(rows["host_oom"]["rank_hours"]), rows["host_oom"]["overcome"]) == (1.0, "yes")
    assert (float(rows["gpu_oom"]["rank_hours"]), rows["gpu_oom"]["overcome"]) == (1.0, "no")
    words = study.words("technical_challenges")
    assert "1 attempt from #1, 1 rank-hours, overcome by #2" in words


def test_performance_is_the_median_of_a_points_runs(tmp_path):
    times = (100.0, 300.0, 110.0)
    records = [make_record(total_s=200.0, phases_s={"step": 100.0})]
    records += [
        make_record(layout="n1g2", repeat=i, total_s=t, phases_s={"step": 60.0}) for i, t in enumerate(times)
    ]
    study = Drawn(tmp_path, records)
    row = next(r for r in study.rows("performance_comparison") if r["layout"] == "n1g2")
    assert (float(row["expected_s"]), float(row["measured_s"]), row["n"]) == (100.0, 110.0, "3")
    assert float(row["best_possible_s"]) == pytest.approx(110 - 60 + 50)
    assert len(study.artists("performance_comparison", "measured_s")) == 2


def test_records_alone_name_the_hosts_that_have_the_samples(tmp_path):
    record = make_record()
    provenance = record.provenance.model_copy(update={"evidence_sha256": {"resources.node01.csv": "0"}})
    study = Drawn(tmp_path, [record.model_copy(update={"provenance": provenance})])
    study.draw("resources")
    from dist3dgs.figures import resources
    from dist3dgs.figures.study import Study

    said = resources.empty(Study.load(tmp_path / "runs.csv", tmp_path / "points.csv", study.paths))
    assert "1 runs were sampled on node01: rsync" in said and "attempts" in said


ADDED = """
TITLE, CAPTION, EMPTY, COLUMNS = "Loss", "Loss per point.", "no loss yet", ("layout", "loss")

def data(study):
    return [{"layout": p["layout"], "loss": p["loss"]} for p in study.points if p["loss"] is not None]

def plot(rows):
    from dist3dgs.figures.page import message
    return message(f"{len(rows)} losses")
"""


@pytest.mark.slow
def test_a_figure_is_added_from_outside(tmp_path):
    """By an entry point alone: it can be drawn, and is in the list that graph and report follow."""
    study = Drawn(tmp_path / "study", [make_record(loss=0.5)])
    (tmp_path / "acme-1.0.dist-info").mkdir()
    (tmp_path / "acme_loss.py").write_text(ADDED)
    (tmp_path / "acme-1.0.dist-info/METADATA").write_text("Name: acme\nVersion: 1.0\n")
    entry_points = tmp_path / "acme-1.0.dist-info/entry_points.txt"
    entry_points.write_text("[dist3dgs.figures]\nloss = acme_loss\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    folder = study.folder
    tables = ["--runs", str(folder / "runs.csv"), "--points", str(folder / "points.csv")]
    command = [sys.executable, "-m", "dist3dgs.cli", "figure", "loss", *tables, "--out", str(folder / "loss")]
    done = subprocess.run(
        [*command, "--records", *map(str, study.paths)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "loss.csv").read_text() == "layout,loss\nn1g1,0.5\n" and (folder / "loss.svg").is_file()
    code = "from dist3dgs import figures as f; print(*f.names(), f.title('loss'), f.code_file('loss'))"
    listed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == [*figures.NAMES, "loss", "Loss", str(tmp_path / "acme_loss.py")]
    entry_points.write_text("[dist3dgs.figures]\nspeedup = acme_loss\n")
    done = subprocess.run([*command], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "'speedup' cannot be the name of a figure" in done.stderr


@pytest.mark.slow
def test_hostile_names_stay_text(tmp_path):
    records = [
        make_record(scene="s", evidence="<script>alert(1)</script>", status="failed"),
        make_record(scene="a.b-c_d"),
    ]
    for name in ("phases", "journey"):
        assert "<script" not in Drawn(tmp_path / name, records).svg(name)


def test_terminal_codes_in_settings_leave_a_readable_svg(tmp_path):
    from xml.etree import ElementTree

    records = [
        make_record(settings={"a": "b"}),
        make_record(repeat=1, settings={"a": "\x1b[31m\x00-->\ufffe"}),
    ]
    ElementTree.fromstring(Drawn(tmp_path, records).svg("journey"))


def test_mathtext_in_names_is_not_interpreted(tmp_path):
    from dist3dgs.figures.page import message

    with style.styled():
        words = message(r"$\frac{1}{2}$").findobj(lambda a: a.get_gid() == "message")
    assert [w.get_parse_math() for w in words] == [False]


def test_unknown_figure_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="speedup"):
        Drawn(tmp_path, []).draw("../../etc/passwd")


@pytest.mark.slow
def test_analysis_side_never_imports_torch(tmp_path):
    study = Drawn(tmp_path, [make_record(), make_record(layout="n1g2")])
    code = (
        "import sys; from pathlib import Path; from dist3dgs import analysis, figures, report\n"
        "assert 'matplotlib' not in sys.modules and 'pandas' not in sys.modules\n"
        "f = Path(sys.argv[1]); paths = [Path(p) for p in sys.argv[2:]]\n"
        "figures.draw('phases', f/'runs.csv', f/'points.csv', paths, f/'x'/'phases')\n"
        "report.write_report(f/'x.html', paths, f/'x', f, [], {})\n"
        "assert not {'torch', 'pycolmap', 'llvmlite'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *map(str, study.paths)], check=True, timeout=120
    )


def test_a_foreign_table_is_refused_with_the_columns_it_lacks(tmp_path):
    study = Drawn(tmp_path, [make_record()])
    (tmp_path / "points.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"points\.csv.*scene, strategy.*tables"):
        study.draw("speedup")


def test_without_records_the_tables_say_how_to_make_one(tmp_path, capsys):
    from dist3dgs.cli import main

    tables = ["--runs", str(tmp_path / "runs.csv"), "--points", str(tmp_path / "points.csv")]
    assert main(["tabulate", *tables, "--records"]) == 2
    said = capsys.readouterr().err
    assert "no records" in said and "snakemake" in said and "dist3dgs import" in said
    assert not (tmp_path / "runs.csv").exists()


def test_the_readmes_picture_is_that_of_the_reference_records(tmp_path):
    """Elsewise: make reference && cp results/reference/figures/speedup.png docs/images/"""
    import numpy as np
    from matplotlib.image import imread

    root = Path(__file__).parents[3]
    paths = sorted((root / "results/reference").glob("*/*/*/r*/record.json"))
    assert paths
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    figures.draw("speedup", tmp_path / "runs.csv", tmp_path / "points.csv", paths, tmp_path / "speedup")
    shown, drawn_now = imread(root / "docs/images/speedup.png"), imread(tmp_path / "speedup.png")
    assert shown.shape == drawn_now.shape and np.array_equal(shown, drawn_now)
