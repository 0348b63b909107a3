"""The numbers, the figures, the views."""

from typing import Any

from .. import figures
from ..analysis import fit_amdahl, fit_gustafson, fit_usl, fitted_points, told_apart
from ..analysis.scaling_tables import (
    CAPTION,
    OVER_SCENES_CAPTION,
    OVER_SCENES_COLUMNS,
    SCALING_COLUMNS,
    cells,
    numbers_from,
    shown_columns,
)
from ..analysis.tables import summarise
from ..analysis.trainers import TRAINERS_COLUMNS
from ..analysis.trainers import caption as trainers_caption
from ..errors import snakemake
from . import numbers, renders
from .content import Content, Row
from .markup import Html, join, picture, table, tag, without_empty
from .study import SPLATTING, programs
from .verdict import by_series

_OWN_SECTION = ("journey", "technical_challenges", "performance_comparison")
_NARROW = '<figure class="single">'


_TIME_HEAD = (
    *("scene", "strategy", "layout", "ranks", "runs ok", "batch"),
    *("images/s", "step", "sent", "R measured", "R derived", "training", "total"),
)
_TIME_NOTE = (
    "Medians over the successful runs, with the smallest and largest where there are repeats. Batch: images per step "
    "over all ranks (a workload counts in its own unit: images, samples, tokens). Sent: by a rank in a step, mean over "
    "ranks and steps, densification included. R: computing of one rank / communication of N ranks, for the same "
    "images: measured, or derived from the speedup, which counts every loss. "
    "Training: steps and densification. Total: from launch to end, wall clock."
)
_SCALING_HEAD = (
    *("scene", "strategy", "layout", "speedup", "efficiency: strong", "efficiency: throughput"),
    *("efficiency: equal quality", "PSNR", "SSIM", "LPIPS", "accuracy", "Gaussians", "GiB per rank"),
)
_SCALING_NOTE = (
    "Against the baseline: the scene's smallest successful layout, whichever strategy ran it, or the one that the "
    "config names. The efficiencies differ in what is held equal: strong, the global batch; throughput, the batch per "
    "rank; equal quality, the held-out PSNR reached (the baseline's final one less 0.1 dB). Accuracy: on validation "
    "data, as the program states it; below 99 % of the baseline's a speedup is no gain."
)


_SHARED_MARK = "†"
_SHARED_NOTE = (
    "At least one of the runs shared its node with other jobs: scaling numbers are not to be trusted. Which runs: "
    "nodes_shared in runs.csv. Whole nodes: site.exclusive in the profile."
)


#: Title, head, rows, first column of numbers, and what the columns are.
Table = tuple[str, list[str], list[list[object]], int, str]


def tables(content: Content) -> list[Table]:
    """Return the tables of the points, without the columns that no row fills."""
    if not content.points:
        return []
    # One scene needs no column for it.
    skip = 1 if len(content.scenes) == 1 else 0
    rates = dict.fromkeys(f"{p.get('unit_of_work') or 'image'}s/s" for p in content.points)
    head = [" or ".join(rates) if name == "images/s" else name for name in _TIME_HEAD]
    times = [_time_row(p)[skip:] for p in content.points]
    scaling = [_scaling_row(p)[skip:] for p in content.points]
    return [
        ("Time", *without_empty(head[skip:], times), 3 - skip, _TIME_NOTE),
        ("Scaling and quality", *without_empty(_SCALING_HEAD[skip:], scaling), 3 - skip, _SCALING_NOTE),
    ]


def numbers_section(content: Content) -> Html:
    if not content.points:
        return tag("p", "No run has left a record yet.", class_="missing")
    parts: list[Html | None] = [tag("p", _where_it_ran(content))]
    for title, head, rows, first, note in tables(content):
        parts += [tag("h3", title), table(head, rows, numbers_from=first), tag("p", note, class_="note")]
    return join([*parts, _shared(content), _reasons(content), _workshop(content), _fits(content)])


def _workshop(content: Content) -> Html | None:
    """Show the tables of a scaling workshop, which are also files; long ones are collapsed."""
    parts = []
    trainers = content.trainers
    for title, name, rows, columns, caption in (
        ("Trainers side by side", "trainers", trainers, TRAINERS_COLUMNS, trainers_caption(trainers)),
        ("Versus one GPU and one node", "scaling", content.scaling, SCALING_COLUMNS, CAPTION),
        ("Over scenes", "over_scenes", content.over_scenes, OVER_SCENES_COLUMNS, OVER_SCENES_CAPTION),
    ):
        if not rows or (name == "over_scenes" and not covers_scenes(content)):
            continue
        shown = shown_columns(rows, columns)
        head, body = cells(rows, shown)
        html = table([h.replace("\n", " ") for h in head], body, numbers_from=numbers_from(shown))
        note = f"{caption} Also in tables/{name}.csv, .md and .tex."
        if len(rows) > 24:
            html = tag("details", tag("summary", f"{len(rows)} rows"), html)
        parts += [tag("h3", title), html, tag("p", note, class_="note")]
    return join(parts) if parts else None


def covers_scenes(content: Content) -> bool:
    """Return True if some layout ran on several scenes, so that there is something to average."""
    return any(r["n_scenes"] > 1 for r in content.over_scenes)


def _layout(p: Row) -> str:
    return f"{p['layout']} {_SHARED_MARK}" if p.get("n_shared") else str(p["layout"])


def _shared(content: Content) -> Html | None:
    """Return the footnote on layouts whose nodes were shared with other jobs."""
    if not any(p.get("n_shared") for p in content.points):
        return None
    return tag("p", f"{_SHARED_MARK} {_SHARED_NOTE}", class_="note bad")


def _where_it_ran(content: Content) -> str:
    e = [r.environment for r in content.records]
    devices = summarise(sorted({d for x in e for d in x.devices})) or "unknown devices"
    hosts = sorted({h for x in e for h in x.hosts})
    cpus = sorted({f"{x.cpu}{f' ({x.cores} cores)' if x.cores else ''}" for x in e if x.cpu})
    imported = sum(r.provenance.source == "imported" for r in content.records)
    text = f"{len(content.records)} runs on {len(hosts) or 'unknown'} host{'s' if len(hosts) != 1 else ''}"
    text += f", ranks on {devices}" + (f"; processors: {', '.join(cpus)}" if cpus else "") + "."
    return text + (f" {imported} of them were imported from logs of other programs." if imported else "")


def _time_row(p: Row) -> tuple[Any, ...]:
    runs = p["n_ok"] + p["n_failed"] + p["n_degraded"] + p["n_other"]
    return (
        *(p["scene"], p["strategy"], _layout(p), p["ranks"]),
        f"{p['n_ok']} of {runs}"
        if p["n_ok"] == runs
        else tag("span", f"{p['n_ok']} of {runs}", class_="bad"),
        "unknown" if p["global_batch"] is None and p["n_ok"] else p["global_batch"],
        _spread(p, "images_per_s", numbers.plain),
        _spread(p, "step_s", numbers.milliseconds),
        numbers.megabytes(p["sent_mb_per_step"]),
        numbers.plain(p["r_measured"]),
        numbers.plain(p["r_derived"]),
        numbers.seconds(p["train_s"]),
        numbers.seconds(p["total_s"]),
    )


def _scaling_row(p: Row) -> tuple[Any, ...]:
    gpu, host = p["peak_gpu_gib"], p["peak_rss_gib"]
    memory = numbers.plain(gpu if gpu is not None else host)
    return (
        *(p["scene"], p["strategy"], _layout(p)),
        _spread(p, "speedup", numbers.times),
        numbers.percent(p["efficiency_strong"]),
        numbers.percent(p["efficiency_throughput"]),
        numbers.percent(p["efficiency_time_to_quality"]),
        numbers.decibel(p["psnr"]),
        numbers.plain(p["ssim"]),
        numbers.plain(p["lpips"]),
        numbers.plain(p["accuracy"]),
        numbers.count(p["num_gaussians"]),
        None if memory is None else f"{memory} {'GPU' if gpu is not None else 'host'}",
    )


def _spread(p: Row, name: str, form: Any) -> str | None:
    return numbers.spread(form(p[name]), form(p[f"{name}_min"]), form(p[f"{name}_max"]), p["n_ok"])


def _reasons(content: Content) -> Html | None:
    """Return the reason for an empty cell of the table."""
    given = [(p, p["reason"]) for p in content.points if p.get("reason") and p["n_ok"]]
    if not given:
        return None
    alike: dict[str, list[str]] = {}
    for p, reason in given:
        alike.setdefault(reason, []).append(f"{p['scene']} {p['strategy']} {p['layout']}")
    items = [tag("li", f"{', '.join(points)}: {reason}") for reason, points in alike.items()]
    return tag("details", tag("summary", "Why some cells are empty"), tag("ul", *items))


def _fits(content: Content) -> Html | None:
    """Show the laws fitted to every series with enough sizes, and how well they describe it."""
    lines = []
    for series in by_series(content.points):
        rated = fitted_points(series, content.points)
        sizes, rates = [p["ranks"] for p in rated], [p["images_per_s"] for p in rated]
        fits = [f for fit in (fit_amdahl, fit_gustafson, fit_usl) if rated and (f := fit(sizes, rates))]
        where = f"{series[0]['scene']} {series[0]['strategy']}"
        lines += [tag("li", f"{where}, {fit.describe()}") for fit in fits]
        if apart := told_apart(fits):
            lines.append(tag("li", f"{where}: {apart}"))
    if not lines:
        return None
    fitted = tag("ul", *lines)
    if len(lines) > 12:
        fitted = tag("details", tag("summary", f"{len(lines)} lines"), fitted)
    return join(
        [
            tag("h3", "Fitted laws"),
            fitted,
            tag(
                "p",
                "Throughput over ranks p as X(p) = λp / (1 + σ(p − 1) + κp(p − 1)): σ is the serial share (Amdahl when "
                "κ = 0), κ the cost of keeping every pair of ranks coherent (Universal Scalability Law, USL). "
                "Gustafson: X(p) = λ(σ + (1 − σ)p), for batches that grow with the ranks.",
                class_="note",
            ),
        ]
    )


def figures_section(content: Content) -> Html:
    """Place narrow figures that follow each other side by side."""
    without = _OWN_SECTION if SPLATTING in programs(content.records) else (*_OWN_SECTION, "quality_time")
    drawn = [figure(content, name) for name in figures.names() if name not in without]
    rows: list[list[Html]] = []
    for html in drawn:
        narrow = html.startswith(_NARROW)
        if narrow and rows and len(rows[-1]) == 1 and rows[-1][0].startswith(_NARROW):
            rows[-1].append(html)
        else:
            rows.append([html])
    return join(row[0] if len(row) == 1 else tag("div", *row, class_="pair") for row in rows)


def figure(content: Content, name: str) -> Html:
    """Return one figure with the caption that defines it, or the note that it is missing."""
    path = content.figures_dir / f"{name}.svg"
    title, caption = figures.title(name), figures.caption(name)
    image = picture(path, f"{title}. {caption}")
    if image is None:
        return tag(
            "p", f"Figure {name} has not been drawn; make it with: {snakemake('figures')}", class_="missing"
        )
    return tag(
        "figure",
        image,
        tag("figcaption", tag("b", f"{title}. "), caption, f" Data: {name}.csv."),
        class_="double" if is_wide(path) else "single",
    )


def is_wide(path: Any) -> bool:
    """Return True if an svg of ours is drawn two columns wide: its width in points stands at its head."""
    import re

    found = re.search(
        r'<svg[^>]*\swidth="([0-9.]+)pt"', path.read_text(encoding="utf-8", errors="replace")[:2000]
    )
    return found is None or float(found[1]) > 300


def views_section(content: Content) -> Html:
    parts, without = [], []
    for scene in content.scenes:
        views = renders.comparison(content, scene)
        if views is None:
            without.append(scene)
        else:
            parts += [tag("h3", scene) if len(content.scenes) > 1 else None, views]
    if parts:
        parts.append(
            tag(
                "p",
                "Photographs that training never saw, beside what the trained Gaussians show from there: the "
                "worst, the middle and the best by PSNR where there are more than three. Last: absolute "
                f"difference, {renders.DIFFERENCE_GAIN} times brighter. Shown as JPEG of quality "
                f"{renders.JPEG_QUALITY}, at most {renders.MAX_WIDTH_PX} px wide; metrics are of the full images.",
                class_="note",
            )
        )
    if without or not content.scenes:
        parts.append(tag("p", renders.missing(without or ["any scene"]), class_="missing"))
    return join(parts)
