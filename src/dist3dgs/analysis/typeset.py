"""Tables as Markdown and as LaTeX (booktabs), and text escaped for them."""

import unicodedata
from collections.abc import Sequence

#: Characters that LaTeX reads as commands, and those that its default fonts lack.
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "-": "{-}",
    "\u00d7": r"$\times$", "\u2212": "$-$", "\u2192": r"$\to$", "\u00b7": r"$\cdot$", "\u00b1": r"$\pm$",
    "\u03bb": r"$\lambda$", "\u03c3": r"$\sigma$", "\u03ba": r"$\kappa$", "\u2264": r"$\le$", "\u2265": r"$\ge$",
    "\u00a0": "~", "\u202f": r"\,", "\u2013": "--", "\u2026": r"\dots{}", "\u00b0": r"$^\circ$",
    "\u2020": r"$\dagger$", "\u2016": r"$\Vert$",
}  # fmt: skip


def tex(text: object) -> str:
    """Return plain text as LaTeX: nothing in it is a command, and pdflatex has every character."""
    parts = []
    for c in str(text):
        if c in _TEX:
            parts.append(_TEX[c])
        elif c.isascii() and (c.isprintable() or c == "\n"):
            parts.append(c)
        elif unicodedata.category(c).startswith("L") and (plain := _without_accents(c)):
            parts.append(plain)
        else:
            parts.append(" " if c.isspace() else "?")
    return "".join(parts)


def _without_accents(c: str) -> str:
    return unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()


def markdown(head: Sequence[str], rows: Sequence[Sequence[str | None]], *, numbers_from: int) -> str:
    """Return a pipe table; columns from `numbers_from` on are set flush right, None is an empty cell."""

    def line(cells: Sequence[str | None]) -> str:
        return f"| {' | '.join((c or '').replace('|', chr(92) + '|') for c in cells)} |"

    rule = ["---:" if i >= numbers_from else "---" for i in range(len(head))]
    return "\n".join([line(head), line(rule), *(line(row) for row in rows)]) + "\n"


def tabular(
    head: Sequence[str], rows: Sequence[Sequence[str | None]], *, numbers_from: int, caption: str = ""
) -> str:
    """Return a LaTeX `longtable` with booktabs rules, which may be longer than a page; None is a dash."""

    def line(cells: Sequence[str | None]) -> str:
        return " & ".join("--" if c is None else tex(c) for c in cells) + r" \\"

    columns = "".join("r" if i >= numbers_from else "l" for i in range(len(head)))
    heading = " & ".join(
        rf"\shortstack[{side}]{{{_stacked(h)}}}" for h, side in zip(head, columns, strict=True)
    )
    top = [r"\toprule", heading + r" \\", r"\midrule"]
    lines = [
        rf"\begin{{longtable}}{{@{{}}{columns}@{{}}}}",
        *([rf"\caption{{{tex(caption)}}}\\"] if caption else []),
        *top,
        r"\endfirsthead",
        *top,
        r"\endhead",
        r"\bottomrule",
        r"\endlastfoot",
        *(line(row) for row in rows),
        r"\end{longtable}",
    ]
    return "\n".join(lines) + "\n"


def _stacked(heading: str) -> str:
    """Break a heading where it has line breaks."""
    # The braces keep a bracket from being taken for the line break's argument.
    return r"\\{}".join(tex(part) for part in heading.split("\n"))
