"""The report: self-contained, escaped, and true to its records."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dist3dgs import figures
from dist3dgs.analysis.points import point_rows
from dist3dgs.analysis.tables import read_table, tabulate
from dist3dgs.report import write_report
from dist3dgs.report.markup import Html, tag, with_code
from dist3dgs.report.verdict import headline, verdict
from tests.unit.helpers.records import make_record, make_workload, write_records

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m"


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.words = html, [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, name):
        return [attributes for tag_name, attributes in self.tags if tag_name == name]


@pytest.fixture
def report(tmp_path):
    def make(records, ingest=None, study=None, draw=(), renders=None):
        paths = write_records(tmp_path / "results", records)
        for path in paths:
            for name, picture in (renders or {}).items():
                (path.parent / "renders").mkdir(exist_ok=True)
                (path.parent / "renders" / name).write_bytes(picture)
        tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
        for name in draw:
            base = tmp_path / "figures" / name
            figures.draw(name, tmp_path / "runs.csv", tmp_path / "points.csv", paths, base)
        ingests = []
        if ingest is not None:
            ingests = [tmp_path / "data" / "builtin" / "ingest.json"]
            ingests[0].parent.mkdir(parents=True)
            ingests[0].write_text(ingest if isinstance(ingest, str) else json.dumps(ingest))
        write_report(tmp_path / "report.html", paths, tmp_path / "figures", tmp_path, ingests, study or {})
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


def png(shade: int = 90, size: tuple[int, int] = (64, 40)) -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_page_loads_nothing_and_runs_nothing(report):
    page = report(
        [make_record(), make_record(layout="n1g2")],
        draw=("speedup",),
        renders={"a.render.png": png(), "a.photo.png": png(80)},
    )
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    sources = [a["src"] for a in page.all("img")]
    assert sources and all(s.startswith("data:image/") for s in sources)
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert "url(" not in page.html and "@import" not in page.html
    (policy,) = (a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


@pytest.mark.slow
def test_hostile_text_is_shown_as_text(report):
    records = [
        make_record(),
        make_record(
            layout="n1g2",
            status="failed",
            evidence=ATTACK,
            remedy=ATTACK,
            settings={ATTACK: ATTACK},
        ),
    ]
    records[1] = records[1].model_copy(
        update={
            "environment": records[1].environment.model_copy(
                update={"hosts": [ATTACK], "devices": [ATTACK], "versions": {ATTACK: ATTACK}, "cpu": ATTACK}
            )
        }
    )
    ingest = {
        "left_out": [{"image": ATTACK, "reason": ATTACK}],
        "notes": [{"image": ATTACK, "note": ATTACK}],
        "resolutions": [{"width_px": ATTACK, "height_px": ATTACK}],
        "num_images": {"registered": ATTACK, "total": ATTACK},
        "timings_s": {ATTACK: 1.0},
    }
    study = {
        "flags": ["--configfile", ATTACK],
        "exclusions": [{"strategy": ATTACK, "reason": ATTACK}],
        "licences": {ATTACK: ATTACK},
    }
    page = report(records, ingest=ingest, study=study, draw=("journey",))
    assert not page.all("script")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert(1)</script>") >= 12, "shown, not dropped"


def test_tag_escapes_all_but_markup():
    assert tag("p", "<b>", tag("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert tag("p", Html("<b>")) == "<p><b></p>"
    assert tag("td", 3, None, class_=None) == "<td>3</td>"
    assert (
        tag("p", "a\x1b[31m\u202eb\ud800", title="\x00") == '<p title="\ufffd">a\ufffd[31m\ufffdb\ufffd</p>'
    )
    assert tag("p", "5\u00a0s\u202f×\n") == "<p>5\u00a0s\u202f×\n</p>", "spaces and line ends stay"


def test_backticks_become_code_and_stay_escaped():
    assert with_code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"
    assert with_code("odd ` one <") == "odd ` one &lt;"


def test_verdict_says_that_it_pays_and_what_it_costs(report):
    page = report([make_record(images_per_s=4.0), make_record(layout="n1g2", images_per_s=7.2)])
    assert "On builtin, replicated pays in time at n1g2: the quality of n1g1" in page.text
    assert "1.80 times the images per second" in page.text
    assert "throughput scaling, 90" in page.text and "rank-hours" in page.text
    assert "single run" in page.text


def test_verdict_of_negative_scaling(report):
    page = report([make_record(images_per_s=4.0), make_record(layout="n1g2", images_per_s=3.0)])
    assert "does not pay" in page.text and "slower than n1g1" in page.text


def test_more_than_ideal_is_remarked_upon(report):
    page = report([make_record(images_per_s=4.0), make_record(layout="n1g2", images_per_s=9.3)])
    assert "more than ideal" in page.text and "quiet machine" in page.text
    several = report([
        make_record(strategy=s, layout=f"n1g{n}", images_per_s=rate)
        for s in "ab" for n, rate in ((1, 4.0), (2, 9.3))
    ])  # fmt: skip
    assert (
        "more than ideal, so the baseline may have been disturbed." in several.text
    )  # in the first sentence


def test_several_strategies_begin_with_a_summary(report):
    rates = {("a", "n1g1"): 4.0, ("a", "n1g2"): 7.0, ("b", "n1g1"): 4.0, ("b", "n1g2"): 3.0}
    page = report([make_record(strategy=s, layout=x, images_per_s=r) for (s, x), r in rates.items()])
    assert "pays for 1 of 2 combinations of scene and strategy" in page.text
    assert "most on builtin with a at n1g2: equal quality 1.75 times sooner than n1g1" in page.text


def test_small_gain_of_single_runs_is_not_called_a_gain(report):
    page = report([make_record(images_per_s=4.0), make_record(layout="n1g2", images_per_s=4.1, psnr=27.399)])
    assert "no gain beyond the noise" in page.text and "(+0.00 dB)" in page.text, "no minus before zero"


def test_gain_smaller_than_the_spread_of_repeats_is_not_called_a_gain(tmp_path):
    rates = {"n1g1": (10.0, 10.0, 10.0), "n1g2": (9.0, 12.0, 12.5)}
    records = [
        make_record(layout=x, repeat=i, images_per_s=r) for x, rs in rates.items() for i, r in enumerate(rs)
    ]
    paths = write_records(tmp_path, records)
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    text, recommended = verdict(read_table(tmp_path / "points.csv"))
    assert "no gain beyond the noise" in text
    assert recommended.startswith("Recommendation. builtin: use n1g1: no larger layout gains")


def test_what_to_use_and_what_not_stands_with_the_verdict(report):
    rates = {("a", "n1g1"): 4.0, ("a", "n1g2"): 7.0, ("b", "n1g1"): 4.0, ("b", "n1g2"): 3.0}
    page = report([make_record(strategy=s, layout=x, images_per_s=r) for (s, x), r in rates.items()])
    assert "Recommendation. builtin: for the shortest time use a on n1g2" in page.text
    assert "Not b above 1" in page.text
    assert "Recommendation" not in report([make_record()]).text, "one point is too little"


def test_of_many_series_their_paragraphs_alone_are_collapsed(report):
    records = [make_record(strategy=s, layout=x) for s in "abcde" for x in ("n1g1", "n1g2")]
    box = report(records).html.split('class="verdict"')[1].split("</div>")[0]
    shown, hidden = re.sub("<details>.*</details>", "", box), re.findall("<details>.*</details>", box)
    assert "Recommendation." in shown and "Every point is a single run" in shown
    assert len(hidden) == 1 and "On builtin, e" in hidden[0] and "On builtin" not in shown


def test_no_run_and_no_success_are_said_plainly(report):
    assert "nothing is known" in report([]).text


def test_all_failed_is_not_known(report):
    page = report([make_record(status="failed", cause="host_oom")])
    assert (
        "has not succeeded yet (n1g1: host_oom)" in page.text and "whether it pays is not known" in page.text
    )


def test_failure_has_cause_place_evidence_and_remedy(report):
    page = report(
        [
            make_record(),
            make_record(layout="n1g2", status="failed", cause="host_oom", remedy="halve the batch"),
        ]
    )
    section = page.html[page.html.index('id="failures"') : page.html.index('id="sfm"')]
    for part in (
        "host_oom",
        "builtin/replicated/n1g2/r0",
        "phase step",
        "rank 1",
        "train.log:42",
        "SIGKILL",
        "halve the batch",
    ):
        assert part in section, part


def test_repeats_that_failed_alike_share_a_box(report):
    page = report([make_record(layout="n1g2", repeat=i, status="failed") for i in range(3)])
    boxes = [a for a in page.all("div") if a.get("class") == "failure"]
    assert len(boxes) == 1 and "n1g2/r2" in page.text


def test_stages_are_stated_and_add_up(report):
    ingest = {"timings_s": {"features": 10.0, "mapping": 30.0}}
    page = report([make_record(total_s=100.0)], ingest=ingest, draw=("memory",))
    for words in (
        "photographs to scene: builtin 40.0 s",
        "training 100.0 s",
        "tables and figures",
        "this report",
    ):
        assert words in page.text.replace("\u00a0", " "), words
    text = page.text.replace("\u00a0", " ")
    drawing, writing = (float(re.search(f"{x} ([\\d.]+) s", text)[1]) for x in ("and figures", "this report"))
    minutes, seconds = map(int, re.search(r"sum (\d+) min (\d+) s", text).groups())
    assert 60 * minutes + seconds == pytest.approx(140 + drawing + writing, abs=1)


def test_time_of_imported_logs_is_not_time_of_this_study(report):
    log = make_record(repeat=1, total_s=9000.0)
    log = log.model_copy(update={"provenance": log.provenance.model_copy(update={"source": "imported"})})
    text = report([make_record(total_s=100.0), log]).text.replace("\u00a0", " ")
    assert "training 100.0 s 1 runs" in text and "1 of them were imported" in text


def test_sfm_facts_and_pose_error(report):
    ingest = {
        "num_images": {"registered": 46, "total": 48},
        "resolutions": [{"width_px": 540, "height_px": 360, "num_images": 46}],
        "num_points": 9213,
        "reprojection_error_px": 0.412,
        "left_out": [{"image": "dark.jpg", "reason": "12 matches"}],
        "pose_error": {"rotation_median_deg": 0.041, "rotation_max_deg": 0.2, "position_median_percent": 0.1},
    }
    text = report([make_record()], ingest=ingest).text
    for part in (
        "46 of 48",
        "540 × 360 px",
        "0.41 px",
        "dark.jpg",
        "12 matches",
        "0.041° (max 0.2°)",
        "0.1 %",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    "ingest",
    ["{", "[]", "{}", '{"pose_error": null, "left_out": null, "timings_s": null}', '{"left_out": ["a.jpg"]}'],
)
def test_odd_ingest_files_do_not_cost_the_report(report, ingest):
    assert "replicated" in report([make_record()], ingest=ingest).text


def test_renders_stand_beside_photographs_with_the_difference(report):
    renders = {f"v{i}.{kind}.png": png(90 + i) for i in range(3) for kind in ("render", "photo")}
    page = report([make_record(), make_record(layout="n1g2")], renders=renders)
    captions = [a["alt"] for a in page.all("img") if a["src"].startswith("data:image/jpeg")]
    assert len(captions) == 3 * 4
    assert captions[0] == "photograph v0" and captions[1].startswith("rendered, replicated n1g1")
    assert captions[3] == "difference ×4, replicated n1g2"


def test_broken_render_is_said_and_survived(report):
    renders = {"v.render.png": b"\x89PNG\r\n\x1a\n torn", "v.photo.png": png()}
    page = report([make_record()], renders=renders)
    assert "v.render.png cannot be read" in page.text


def test_missing_figures_are_said_with_the_command(report):
    page = report([make_record()])
    assert (
        "Figure speedup has not been drawn; make it with: snakemake --profile profiles/local figures"
        in page.text
    )


@pytest.mark.slow
def test_every_figure_is_in_the_report_with_its_definition(report):
    lost = make_record(layout="n1g4", status="failed")
    page = report([make_record(), make_record(layout="n1g2"), lost], draw=figures.NAMES)
    images = [a for a in page.all("img") if a["src"].startswith("data:image/svg+xml")]
    assert len(images) == len(figures.NAMES)
    for name in figures.NAMES:
        assert figures.caption(name)[:60] in page.text, name


def test_provenance_has_commands_digests_and_versions(report):
    page = report([make_record(layout="n1g2")])
    assert re.search(
        r"snakemake --profile profiles/local \S+/results/builtin/replicated/n1g2/r0/record.json", page.text
    )
    assert "torch 2.13.0" in page.text and "0123456789ab" in page.text
    assert re.search(r"\b[0-9a-f]{64}\b", page.text), "the record's own sha256"


def test_make_it_again_is_by_commit_with_the_flags_of_the_study(report, tmp_path):
    records = [make_record(layout=layout) for layout in ("n1g1", "n1g2", "n1g4")]
    other = records[2].provenance.model_copy(update={"git_sha": "f" * 40, "git_dirty": True})
    records[2] = records[2].model_copy(update={"provenance": other})
    flags = ["--configfile", "config/journey.yaml"]
    page = report(records, study={"flags": flags})
    points = [
        f"{tmp_path}/results/builtin/replicated/{layout}/r0/record.json"
        for layout in ("n1g1", "n1g2", "n1g4")
    ]
    command = "snakemake --profile profiles/local --configfile config/journey.yaml --"
    sha = records[0].provenance.git_sha
    assert f"git checkout {sha} {command} \\ {points[0]} \\ {points[1]} git checkout {'f' * 40}" in page.text
    assert f"not committed {command} {points[2]}" in page.text


def test_what_the_config_leaves_out_and_the_licences_are_told(report):
    study = {
        "exclusions": [{"strategy": "sharded", "layout": "n8g8", "reason": "no such machine"}],
        "licences": {"builtin": "Apache-2.0"},
    }
    text = report([make_record()], study=study).text
    assert "sharded n8g8: no such machine" in text
    assert "builtin, Apache-2.0" in text


def test_stale_training_code_is_shown(report):
    assert "not the present one" in report([make_record()], study={"code_digest": "f" * 64}).text


def test_cards_count_runs_and_name_the_unit_of_cost(tmp_path):
    paths = write_records(
        tmp_path,
        [
            make_record(gpu=True, total_s=3600.0),
            make_record(layout="n1g2", status="failed", gpu=True, total_s=1800.0),
        ],
    )
    tabulate(paths, tmp_path / "runs.csv", tmp_path / "points.csv")
    cards = headline(read_table(tmp_path / "points.csv"), read_table(tmp_path / "runs.csv"))
    assert ("1 of 2", "runs succeeded", "1 did not: see below") in cards
    assert any(value == "2.00" and label == "GPU-hours spent" for value, label, _ in cards)


def test_runs_that_shared_their_nodes_are_marked_beside_the_numbers(report):
    records = [make_record(layout=layout) for layout in ("n1g1", "n1g2")]
    warning = "shared its node with other jobs: scaling numbers are not to be trusted"
    assert warning not in report(records).text and "†" not in report(records).text
    shared = records[1].environment.model_copy(update={"nodes_shared": True})
    page = report([records[0], records[1].model_copy(update={"environment": shared})])
    assert warning in page.text and "n1g2 †" in page.text and "n1g1 †" not in page.text


@pytest.mark.parametrize(
    ("strategy", "layout", "other", "baseline"),
    [("sharded", "n1g1", "n1g1", "n1g1"), ("replicated", "n2g2", "n1g4", "n1g4")],
)
def test_as_many_ranks_are_no_larger_layout(report, strategy, layout, other, baseline):
    """Another strategy on one rank, or the same ranks on more nodes, is faster: that is no gain of more ranks."""
    page = report(
        [
            make_record(layout=other, images_per_s=10.0),
            make_record(strategy=strategy, layout=layout, images_per_s=12.0),
        ]
    )
    assert not re.search(r"pays (in time|for)|times sooner", page.text)
    assert "whether more ranks pay is not known" in page.text


def test_a_faster_strategy_on_one_rank_does_not_hide_that_two_ranks_lose(report):
    rates = {("replicated", "n1g1"): 10.0, ("sharded", "n1g1"): 11.0, ("sharded", "n1g2"): 9.0}
    page = report([make_record(strategy=s, layout=x, images_per_s=r) for (s, x), r in rates.items()])
    assert "Distributed training does not pay here" in page.text
    assert "its best larger layout, n1g2, is slower than n1g1 (replicated)" in page.text


def test_workloads_are_told_in_their_own_words_each_variant_by_itself(report):
    runs = [
        make_workload("transformer", "small", images_per_s=200.0, accuracy=90.0, total_s=16.0),
        make_workload("transformer", "small", "n1g2", images_per_s=340.0, accuracy=90.0, total_s=14.0),
        make_workload("transformer", "large", images_per_s=36.0, accuracy=95.0, total_s=41.0),
        make_workload("transformer", "large", "n1g2", images_per_s=65.0, accuracy=80.0, total_s=28.0),
    ]
    page = report(runs, ingest={"num_points": 5948})
    text = page.text
    assert "transformer: a scaling study" in text and "Gaussian" not in text and "5 948" not in text
    assert "1 of 2 combinations of workload and variant that could be compared" in text
    assert "small at n1g2: 1.70 times the samples per second of n1g1 (at a validation accuracy of 90)" in text
    assert "n1g2 ended at a validation accuracy of 80, below the 94 to reach" in text
    assert "transformer, large: use n1g1: no larger layout gains (41 s for all samples" in text
    assert "transformer, small: for the shortest time use small on n1g2" in text
    assert "samples/s" in text and "R measured" in text
    # A variant is another program: its times say nothing of the others'.
    small = text.split("transformer, small:")[1].split("Recommendation")[0]
    assert "large" not in small.split("On transformer")[0]


def test_gaussians_beside_workloads_are_named_with_their_scene(report):
    page = report([make_record(), make_workload("resnet50", "default", images_per_s=500.0, unit="image")])
    assert "3D Gaussian Splatting on builtin; resnet50: a scaling study" in page.text


def test_the_first_sentence_says_that_nodes_were_shared(report):
    alone = [make_record(), make_record(layout="n1g2")]
    assert "shared with other jobs" not in report(alone).text
    points = [
        {**p, "n_shared": 1 if p["layout"] == "n1g2" else 0}
        for p in point_rows(
            [make_record(scene, layout=layout) for scene in ("a", "b") for layout in ("n1g1", "n1g2")]
        )
    ]
    assert "on nodes shared with other jobs, so that its times are not to be trusted" in verdict(points)[0]


def test_ranks_beyond_the_cores_are_named_where_throughput_falls():
    records = [make_record(layout=name, images_per_s=r) for name, r in (("n1g2", 40.0), ("n1g4", 30.0))]
    points = [{**p, "cores": 2} for p in point_rows([make_record(images_per_s=25.0), *records])]
    assert "scaling has turned; 4 ranks take turns on the 2 cores of a node." in " ".join(verdict(points))
    enough = [{**p, "cores": 8} for p in points]
    assert "scaling has turned." in " ".join(verdict(enough))


def test_the_first_sentence_says_that_it_rests_on_single_runs():
    def first(repeats: int, faster: float = 7.6) -> str:
        layouts = (
            ("replicated", "n1g1", 4.0),
            ("replicated", "n1g2", faster),
            ("sharded", "n1g2", faster - 0.6),
        )
        records = [
            make_record(strategy=s, layout=name, repeat=i, images_per_s=rate)
            for s, name, rate in layouts
            for i in range(repeats)
        ]
        return verdict(point_rows(records))[0]

    assert first(1).endswith("times sooner than n1g1 (single runs).")
    assert first(1, faster=3.0).endswith("none of 2 combinations of scene and strategy gains (single runs).")
    assert "single run" not in first(3) + first(3, faster=3.0)
