"""The report as a LaTeX document: the same verdict, tables and figures, for plain pdflatex.

It needs the packages of Debian's texlive-latex-base and texlive-latex-recommended only, and takes the figures as pdf
files from the folder of figures beside it.
"""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .. import __version__, figures
from ..analysis.scaling_tables import (
    CAPTION,
    OVER_SCENES_CAPTION,
    OVER_SCENES_COLUMNS,
    SCALING_COLUMNS,
    cells,
    numbers_from,
    shown_columns,
)
from ..analysis.trainers import TRAINERS_COLUMNS
from ..analysis.trainers import caption as trainers_caption
from ..analysis.typeset import tabular, tex
from . import failures, results
from .content import Content
from .markup import Html
from .study import SPLATTING, programs, subject
from .verdict import headline, verdict

_PREAMBLE = r"""% Made by dist3dgs from records. Compile it here, twice for the widths of tables: pdflatex report.tex
\documentclass[a4paper,10pt]{article}
\usepackage[margin=15mm]{geometry}
\usepackage{graphicx,booktabs,longtable}
\setlength{\parindent}{0pt}\setlength{\parskip}{4pt}
\setlength{\tabcolsep}{3pt}\setlength{\LTcapwidth}{\textwidth}
\renewcommand{\labelitemi}{$\bullet$}
\newcounter{shown}
\sloppy
"""
_MAX_EVIDENCE = 160


def document(content: Content) -> str:
    """Return the LaTeX source; figures are named relative to the folder of the report."""
    parts = [
        _PREAMBLE,
        rf"\title{{Does distributed training pay?\\\large {tex(subject(content.records))}}}",
        rf"\author{{Made by dist3dgs {tex(__version__)} from {len(content.records)} records}}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
        r"\section*{Verdict}",
        "\n\n".join(tex(text) for text in verdict(content.points)),
        _headline(content),
        r"\section*{Numbers}",
        *(_long(*one) for one in _tables(content)),
        r"\section*{Figures}",
        *(_figure(content, name) for name in figures.names() if _belongs(content, name)),
        r"\section*{What did not succeed}",
        _failures(content),
        r"\end{document}",
    ]
    return "\n".join(parts) + "\n"


def _headline(content: Content) -> str:
    if not content.runs:
        return ""
    items = "".join(
        f"\\item \\textbf{{{tex(value)}}} {tex(label)} ({tex(note)})\n"
        for value, label, note in headline(content.points, content.runs)
    )
    return f"\\begin{{itemize}}\n{items}\\end{{itemize}}"


Table = tuple[Sequence[str], Sequence[Sequence[str | None]], int, str]


def _tables(content: Content) -> list[Table]:
    """Return head, cells, first column of numbers and caption of each table that has rows."""
    found: list[Table] = []
    for title, head, rows, first, note in results.tables(content):
        narrow = [h if len(h) < 10 else h.replace(" ", "\n", 1) for h in head]
        found.append((narrow, [[plain(c) for c in row] for row in rows], first, f"{title}. {note}"))
    for rows_, columns, caption in (
        (content.trainers, TRAINERS_COLUMNS, trainers_caption(content.trainers)),
        (content.scaling, SCALING_COLUMNS, CAPTION),
        (
            content.over_scenes if results.covers_scenes(content) else [],
            OVER_SCENES_COLUMNS,
            OVER_SCENES_CAPTION,
        ),
    ):
        shown = shown_columns(rows_, columns)
        found.append((*cells(rows_, shown), numbers_from(shown), caption))
    return [table for table in found if table[1]]


def plain(cell: object) -> str | None:
    """Return a cell of an HTML table as text."""
    if cell is None:
        return None
    return html.unescape(re.sub(r"<[^>]*>", "", cell)) if isinstance(cell, Html) else str(cell)


def _long(head: Sequence[str], rows: Sequence[Sequence[str | None]], first: int, caption: str) -> str:
    return "{\\scriptsize\n" + tabular(head, rows, numbers_from=first, caption=caption) + "}"


def _belongs(content: Content, name: str) -> bool:
    return name != "quality_time" or SPLATTING in programs(content.records)


def _figure(content: Content, name: str) -> str:
    title, caption = figures.title(name), figures.caption(name)
    path = content.figures_dir / f"{name}.pdf"
    if not path.is_file():
        return f"Figure {tex(name)} has not been drawn.\n"
    width = r"\linewidth" if results.is_wide(path.with_suffix(".svg")) else "85mm"
    where = Path(os.path.relpath(content.figures_dir, content.out_dir)).as_posix()
    return "\n".join(
        [
            r"\begin{minipage}{\linewidth}\centering",
            rf"\includegraphics[width={width},height=0.8\textheight,keepaspectratio]{{\detokenize{{{where}}}/{name}.pdf}}",
            rf"\par\raggedright\small\refstepcounter{{shown}}\textbf{{Figure \theshown: {tex(title)}.}} {tex(caption)}",
            r"\end{minipage}\par\bigskip",
        ]
    )


def _failures(content: Content) -> str:
    lost = [r for r in content.records if r.status in ("failed", "degraded", "unknown")]
    if not lost:
        return "Every run succeeded." if content.records else "No run has left a record yet."
    items = []
    for same in failures.group(lost):
        record = same[0]
        cause = record.failure.cause if record.failure else "unknown"
        line = next((x for r in same if r.failure for x in failures.evidence_lines(r.failure)), None)
        remedy = record.failure.remedy if record.failure else None
        names = ", ".join(failures.name(r) for r in same)
        text = f"\\item \\textbf{{{tex(record.status)}: {tex(cause)}}}, {tex(names)}."
        if line:
            text += f" Evidence: \\texttt{{{tex(' '.join(line.split())[:_MAX_EVIDENCE])}}}."
        items.append(text + (f" Remedy: {tex(remedy)}" if remedy else ""))
    return "\\begin{itemize}\n" + "\n".join(items) + "\n\\end{itemize}"
