"""Figures as a reader meets them: every line has its name, words have room, a page is enough."""

import importlib
import itertools

import pytest

from dist3dgs import figures
from dist3dgs.figures import rows, style
from tests.unit.helpers.drawn import Drawn, texts
from tests.unit.helpers.records import make_record

pytestmark = pytest.mark.slow  # draws studies of hundreds of runs

LONG = ("mip-nerf-360-bicycle-eighth-resolution", "tanks-and-temples-train-full")
STRATEGIES = ("default-densification", "mcmc", "replicated", "sharded", "sharded-mcmc")


def big_study(scenes=("bicycle",), strategies=STRATEGIES, layouts=("n1g1", "n1g2", "n1g4", "n2g4", "n4g4")):
    """mcmc is degraded at n1g4 between two successes, sharded failed at its largest."""
    records = []
    for number, (scene, strategy, layout) in enumerate(itertools.product(scenes, strategies, layouts)):
        status, cause = "ok", "killed"
        if (strategy, layout) == ("mcmc", "n1g4"):
            status, cause = "degraded", "allocation_mismatch"
        elif (strategy, layout) == ("sharded", layouts[-1]):
            status, cause = "failed", "gpu_oom"
        records.append(
            make_record(
                scene, strategy, layout, status=status, cause=cause, gpu=True, started_at=1000.0 * number,
                compute_s=80.0, timed_steps=1000,
                settings={"train": {"steps": 7000 + number, "schedule": "a long word about the learning rate" * 3}},
            )
        )  # fmt: skip
    return records


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Studies that once broke the layout, made once."""
    from tests.unit.analysis.test_resource_usage import write_samples

    studies = {
        "one": [make_record(), make_record(layout="n1g2")],
        "five strategies": big_study(),
        "two scenes with long names": big_study(LONG),
        "five scenes": big_study(
            [f"scene{i}" for i in range(5)], ("replicated", "sharded"), ("n1g1", "n1g2")
        ),
        "nine scenes": big_study(
            [f"scene{i}" for i in range(9)], ("replicated", "sharded"), ("n1g1", "n1g2")
        ),
        "thirty scenes": big_study([f"scene{i:02}" for i in range(30)], ("mcmc",), ("n1g1", "n1g4")),
    }
    made = {name: Drawn(tmp_path_factory.mktemp("study"), records) for name, records in studies.items()}
    for path in made["five strategies"].paths:
        write_samples(path.parent)
    return made


WORDY = (
    "one",
    "five strategies",
    "two scenes with long names",
    "five scenes",
    "nine scenes",
    "thirty scenes",
)


#: Studies in which something failed.
FAILING = ("five strategies", "two scenes with long names", "five scenes", "nine scenes")
#: Figures whose axes are as high as their rows.
IN_ROWS = (
    *("phases", "journey", "technical_challenges", "performance_comparison"),
    "computation_communication",
)


def drawable(study, name):
    """Leave out figures that have nothing to show: no samples, no success on several ranks, no failure."""
    if name == "compute_to_comm":
        return study not in ("one", "thirty scenes")
    if name in ("computation_communication", "technical_challenges"):
        return study != "one" and (name != "technical_challenges" or study in FAILING)
    if (
        name == "prediction"
    ):  # these records have no curve of Gaussians: tests/unit/predict/test_compare.py draws it
        return False
    return name != "resources" or study == "five strategies"


#: The studies that other tests draw as well are drawn in the fast tests too.
EVERY_FIGURE = pytest.mark.parametrize(
    ("study", "name"),
    [
        pytest.param(s, n, marks=[] if s in ("one", "five strategies") else pytest.mark.slow)
        for s in WORDY
        for n in figures.NAMES
        if drawable(s, n)
    ],
)


@EVERY_FIGURE
def test_no_words_overlap_or_leave_the_page(drawn, study, name):
    figure = drawn[study].picture(name)
    page = figure.bbox
    boxes = []
    for text in texts(figure):
        box = text.get_window_extent()
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < page.x1 + 1 and box.y1 < page.y1 + 1, text.get_text()
        if text.get_rotation() in (0, 90):  # the frame of slanted words says nothing
            boxes.append((box, text.get_text()))
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        overlap = (min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))
        assert min(overlap) < 2, f"{first!r} and {second!r}"


@EVERY_FIGURE
def test_figures_fit_a_page_and_panels_keep_their_room(drawn, study, name):
    figure = drawn[study].picture(name)
    width, height = figure.get_size_inches() * 25.4
    assert width in (pytest.approx(85), pytest.approx(180))
    panels_drawn = figure.axes[1:]
    # More panels than these, at their least height, are a figure that is taller than a page; none is left out.
    if len(panels_drawn) <= (24 if name == "quality_time" else 48):
        assert height <= style.MAX_HEIGHT_MM + 0.5
    if name not in IN_ROWS:
        for ax in figure.axes[1:]:
            box = ax.get_window_extent()
            assert box.width / figure.dpi * 25.4 > 25 and box.height / figure.dpi * 25.4 > 9


@pytest.mark.parametrize("name", ["speedup", "efficiency", "throughput", "step_time", "memory"])
def test_every_strategy_has_its_line_and_mark_before_its_name(drawn, name):
    figure = drawn["five strategies"].picture(name)
    samples = {(x.get_color(), x.get_marker(), str(x.get_linestyle())) for x in figure.axes[0].lines}
    curves = [x for ax in figure.axes[1:] for x in ax.lines if x.get_gid() == "line"]
    assert len({x.get_marker() for x in curves}) == 5, "told apart without colour"
    assert {(x.get_color(), x.get_marker(), str(x.get_linestyle())) for x in curves} <= samples
    assert set(STRATEGIES) <= {t.get_text() for t in texts(figure) if t.get_gid() == "key"}


@pytest.mark.parametrize("name", ["speedup", "efficiency", "throughput", "step_time", "memory"])
def test_no_line_goes_on_across_a_degraded_point(drawn, name):
    figure = drawn["five strategies"].picture(name)
    mcmc = style.series_style("mcmc", STRATEGIES)["color"]
    pieces = [
        x for ax in figure.axes[1:] for x in ax.lines if x.get_gid() == "line" and x.get_color() == mcmc
    ]
    spans = {tuple(round(v) for v in x.get_xdata()) for x in pieces}
    assert (1, 2) in spans and any(span[0] == 8 and len(span) == 2 for span in spans)
    assert not [span for span in spans if span[0] < 4 < span[-1]], "the degraded run has 4 ranks"


@pytest.mark.parametrize(
    "name", ["speedup", "efficiency", "throughput", "step_time", "memory", "quality_time", "phases"]
)
def test_degraded_is_a_diamond_and_failed_a_cross_in_every_figure(drawn, name):
    figure = drawn["five strategies"].picture(name)
    marks = {
        gid: {a.get_marker() for a in figure.findobj() if a.get_gid() == gid}
        for gid in ("degraded", "failed")
    }
    assert marks == {"degraded": {"d"}, "failed": {"X"}}
    words = {t.get_text() for t in texts(figure)}
    assert {"failed", "degraded: finished, not as asked"} <= words


@pytest.mark.parametrize("name", [n for n in figures.NAMES if drawable("one", n)])
def test_scene_and_strategy_are_named_even_where_there_is_one(drawn, name):
    words = " ".join(drawn["one"].words(name))
    assert "builtin" in words and "replicated" in words


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("speedup", "speedup [×], log scale"),
        ("throughput", "throughput [images/s], log scale"),
        ("efficiency", "efficiency [%]"),
        ("step_time", "median step time [ms]"),
        ("memory", "peak memory [GiB]"),
        ("quality_time", "held-out PSNR [dB]"),
    ],
)
def test_axes_say_their_unit_and_scale(drawn, name, label):
    assert label in drawn["one"].words(name)


@pytest.mark.parametrize("name", ["speedup", "throughput", "efficiency"])
def test_the_ideal_is_named_and_inside_the_panel(drawn, name):
    for study in ("one", "five strategies"):
        figure = drawn[study].picture(name)
        ideals = [a for a in figure.findobj() if a.get_gid() == "ideal"]
        assert ideals and "ideal" in [t.get_text() for t in texts(figure)]
        for line in ideals:
            low, high = line.axes.get_ylim()
            assert all(low <= y <= high for y in line.get_ydata())


def test_the_fitted_law_is_named(drawn):
    assert "fitted Universal Scalability Law" in drawn["five strategies"].words("speedup")
    assert "fitted Universal Scalability Law" not in drawn["one"].words("speedup")


def below_panels(study):
    """Return the text below the panels of quality over time."""
    found = [t.get_text() for t in texts(study.picture("quality_time")) if t.get_gid() == "reached"]
    return " ".join(found).replace("\u00a0", " ")


def test_time_to_the_target_is_printed_not_the_time_of_the_last_evaluation(drawn):
    study = drawn["one"]
    rows = {r["layout"]: r for r in study.rows("quality_time")}
    words = below_panels(study)
    for layout, row in rows.items():
        reached, last = float(row["time_to_target_s"]), float(row["elapsed_s"])
        assert reached < last - 1
        assert f"{layout}: {reached:.0f} s" in words
    assert f"time to {float(rows['n1g1']['target_psnr']):.2f} dB" in words


def test_a_layout_that_never_gets_there_is_said_so(tmp_path):
    study = Drawn(tmp_path, [make_record(psnr=27.0), make_record(layout="n1g2", psnr=25.0)])
    assert "n1g2: not reached" in below_panels(study)


def test_no_key_stands_inside_a_panel(drawn):
    for study, name in itertools.product(("one", "nine scenes"), figures.NAMES):
        if drawable(study, name):
            assert [ax for ax in drawn[study].picture(name).axes if ax.get_legend()] == [], name


STUDY_OF_NINE = (
    [f"scene{i}" for i in range(9)], ("replicated", "sharded"),
    ("n1g1", "n1g2", "n1g4", "n1g8", "n2g8", "n4g8"),
)  # fmt: skip


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """9 scenes, 2 strategies, 6 layouts, 3 repeats, some of them failed."""
    records = []
    for scene, strategy, layout in itertools.product(*STUDY_OF_NINE):
        for repeat in range(3):
            failed = scene == "scene3" and layout == "n2g8" and (strategy, repeat) != ("sharded", 0)
            records.append(
                make_record(
                    scene, strategy, layout, repeat, status="failed" if failed else "ok", cause="node_failure",
                    gpu=True, started_at=1000.0 * len(records), compute_s=80.0, timed_steps=1000,
                )
            )  # fmt: skip
    return Drawn(tmp_path_factory.mktemp("nine"), records)


@pytest.mark.parametrize("name", ["phases", "computation_communication", "performance_comparison"])
def test_every_bar_of_a_big_study_is_drawn(nine, name):
    """108 points, of which one has failures beside a success, so 109 rows; two of them have only failures."""
    figure = nine.picture(name)
    rows = [t for t in texts(figure) if t.get_gid() == "name" and t.get_text() in STUDY_OF_NINE[2]]
    assert len(rows) == 109 and len(figure.axes) == 10
    if name != "performance_comparison":
        bars = {(ax, round(p.get_y() + p.get_height() / 2, 1)) for ax in figure.axes[1:] for p in ax.patches}
        assert len(bars) == (109 if name == "phases" else 107)
    else:
        assert len(nine.artists(name, "measured_s")) == 107
    assert len(nine.artists(name, "failed")) == 2
    assert figure.get_size_inches()[1] * 25.4 <= style.MAX_HEIGHT_MM


@pytest.mark.parametrize("name", ["quality_time", "efficiency", "memory", "speedup", "cost_time"])
def test_every_panel_of_a_big_study_is_drawn(drawn, name):
    panels_drawn = drawn["thirty scenes"].picture(name).axes[1:]
    assert len(panels_drawn) == (90 if name in ("efficiency", "memory") else 30)


def test_a_definition_without_measurements_has_words_instead_of_a_panel(drawn):
    figure = drawn["one"].picture("efficiency")
    words = [t.get_text() for t in texts(figure)]
    assert any(w.startswith("Strong scaling: not measured: the global batch grows") for w in words)
    assert len(figure.axes) == 3, "the paper and two panels"


def test_without_samples_there_is_one_message_and_no_panel(tmp_path):
    study = Drawn(tmp_path, [make_record()])
    assert "resource samples" in importlib.import_module("dist3dgs.figures.resources").EMPTY
    svg = study.svg("resources")
    assert svg.count('id="axes_') == 1 and 'id="message"' in svg


def test_phases_stand_above_the_curves_and_in_the_key(drawn):
    figure = drawn["five strategies"].picture("resources")
    strips = [a for a in figure.findobj() if a.get_gid() == "phase"]
    assert strips and all(s.get_y() >= 1 for s in strips)
    inside = [t.get_text() for ax in figure.axes[1:] for t in ax.texts]
    assert inside == []
    words = [t.get_text() for t in texts(figure)]
    assert {"load", "step", "evaluate", "Memory [GiB]", "host: the job"} <= set(words)


def test_every_part_of_every_bar_has_its_number(drawn):
    study = drawn["one"]
    figure = study.picture("phases")
    numbers = [t.get_text() for t in texts(figure) if t.get_gid() == "number"]
    names = [t.get_text() for t in texts(figure) if t.get_gid() == "head"]
    assert len(numbers) == 2 * len(names) and "startup" in names and "total" in names
    for row in study.rows("phases"):
        assert any(abs(float(n) - float(row["s"])) <= 0.5 for n in numbers)


def test_hatches_do_not_bloat_the_file(drawn):
    assert len(drawn["one"].svg("phases")) < 120_000


def test_costs_are_in_the_unit_of_their_axis(drawn):
    words = drawn["one"].words("journey")
    assert "cost [rank-minutes]" in words
    assert any("rank-minutes (" in w and w.endswith(" wall)") for w in words)


def test_pdf_has_fonts_that_stay_text(drawn):
    pdf = drawn["one"].draw("speedup").with_name("speedup.pdf").read_bytes()
    assert b"/Type3" not in pdf and b"CIDFontType2" in pdf
    assert b"CreationDate" not in pdf


def test_names_are_shortened_in_the_middle_to_their_room():
    with style.styled():
        short = style.fit(LONG[0], 30, 7)
        assert short.startswith("mip-nerf") and short.endswith("resolution") and "…" in short
        assert style.width_mm(short, 7) <= 30
        assert style.fit("builtin", 30, 7) == "builtin"
        assert all(
            style.width_mm(line, 7) <= 20 for line in style.wrap(f"{LONG[0]} not measured here", 20, 7)
        )


def test_a_dozen_strategies_are_told_apart_and_all_their_marks_are_inside(tmp_path):
    names = [f"strategy-{chr(97 + i)}" for i in range(12)]
    looks = {(s["color"], s["marker"]) for s in (style.series_style(n, names) for n in names)}
    assert len(looks) == 12
    records = [make_record(strategy=n, layout=x) for n in names for x in ("n1g1", "n1g2", "n1g4", "n2g2")]
    ax = Drawn(tmp_path, records).picture("step_time").axes[1]
    places = [x for line in ax.lines if line.get_gid() == "line" for x in line.get_xdata()]
    assert len(places) == 48 and len(set(places)) == 48 and max(places) < ax.get_xlim()[1]
    assert [t.get_text().split() for t in ax.get_xticklabels(minor=True)] == [["n2g2"]]


def test_names_of_strategies_stand_in_full_beside_rows():
    with style.styled():
        figure = rows.draw([rows.Panel("builtin", [("sharded-pixels", "n1g2")])], "time").figure
        assert "sharded-pixels" in [t.get_text() for t in texts(figure)]
