"""The page: the answer first, then the evidence."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import __version__
from . import failures, ingestion, journey, origin, results, usage
from .content import Content, Row
from .markup import Html, join, tag
from .study import SPLATTING, programs, subject
from .verdict import headline, verdict_parts

#: A verdict of more is shortened.
_MANY_PARAGRAPHS = 5


def page(content: Content, elapsed_s: Callable[[], float]) -> str:
    """Return the whole document; `elapsed_s` gives the seconds since the report was begun."""
    sections = [
        ("results", "What ran, and the numbers", results.numbers_section(content)),
        ("figures", "Figures", results.figures_section(content)),
        ("views", "Held-out views", results.views_section(content)),
        ("resources", "What the runs used", usage.section(content)),
        ("failures", "What did not succeed", failures.section(content)),
        ("sfm", "From photographs to a scene", ingestion.section(content)),
        ("journey", "The journey", journey.section(content)),
        ("time", "Where the time went", origin.time_section(content, elapsed_s)),
        ("provenance", "Provenance, and how to make it again", origin.provenance_section(content)),
    ]
    if SPLATTING not in programs(content.records):
        sections = [s for s in sections if s[0] not in ("views", "sfm")]
    title = f"dist3dgs: {', '.join(content.scenes) or 'no runs yet'}"
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Nothing may be loaded or run, whatever stands in a log line.
        tag(
            "meta",
            **{
                "http-equiv": "Content-Security-Policy",
                "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
            },
        ),
        tag("title", title),
        Html(f"<style>\n{style}</style>"),
    )
    body = tag(
        "body",
        _top(content),
        tag("nav", *(tag("a", name, href=f"#{key}") for key, name, _ in sections)),
        *(tag("section", tag("h2", name), text, id=key) for key, name, text in sections),
        tag(
            "footer",
            f"Made by dist3dgs {__version__} with Python {platform.python_version()} from records alone.",
        ),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _top(content: Content) -> Html:
    cards = [
        tag("div", tag("b", value), tag("span", label), tag("small", note), class_="card")
        for value, label, note in headline(content.points, content.runs)
    ]
    return join(
        [
            tag("h1", "Does distributed training pay?"),
            tag("p", f"{subject(content.records)}: a scaling study", class_="lead"),
            _verdict(content.points),
            tag("div", *cards, class_="cards") if content.runs else None,
        ]
    )


def _verdict(points: Sequence[Row]) -> Html:
    """Return the verdict in a box; where there are many series, each one's paragraph is collapsed."""
    answer, series, limits = ([tag("p", text) for text in part] for part in verdict_parts(points))
    if len(answer) + len(series) + len(limits) > _MANY_PARAGRAPHS and series:
        series = [tag("details", tag("summary", "For each scene and strategy"), *series)]
    return tag("div", *answer, *series, *limits, class_="verdict")
