"""HTML that cannot be left unescaped: text is escaped unless it was made by `tag`."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_VOID = {"img", "br", "hr", "meta"}
#: Terminal codes, characters that turn the reading direction around or are invisible, and halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


class Html(str):
    """Markup that is safe to put into a page as it is."""


def escape(value: object) -> Html:
    """Return markup as it is, anything else as text."""
    return value if isinstance(value, Html) else Html(html.escape(seen(str(value)), quote=True))


def seen(text: str) -> str:
    """Replace every character that is invisible or changes the reading direction by a visible mark."""
    return _UNSEEN.sub("\ufffd", text)


def join(parts: Iterable[object]) -> Html:
    return Html("".join(escape(p) for p in parts if p is not None))


def tag(name: str, /, *children: object, **attributes: str | None) -> Html:
    """Return `<name attr="...">children</name>`; None children and attributes are left out, `class_` is `class`."""
    given = "".join(
        f' {key.rstrip("_")}="{html.escape(seen(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def with_code(text: str) -> Html:
    """Return `text` with what stands between backticks as code; an unpaired backtick stays one."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return join(tag("code", part) if i % 2 else part for i, part in enumerate(parts))


def without_empty(
    head: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[list[str], list[list[object]]]:
    """Return the table less the columns that no row fills; efficiencies stay, their absence is a finding."""
    keep = [
        i for i, name in enumerate(head) if "efficiency" in name or any(row[i] is not None for row in rows)
    ]
    return [head[i] for i in keep], [[row[i] for i in keep] for row in rows]


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers_from: int | None = None) -> Html:
    """Return a table; columns from `numbers_from` on are set flush right. A None cell is shown as a dash."""

    def cell(kind: str, i: int, value: object) -> Html:
        right = numbers_from is not None and i >= numbers_from
        return tag(kind, "–" if value is None else value, class_="number" if right else None)

    body = [tag("tr", *(cell("td", i, v) for i, v in enumerate(row))) for row in rows]
    header = tag("tr", *(cell("th", i, v) for i, v in enumerate(head)))
    return tag("div", tag("table", tag("thead", header), tag("tbody", *body)), class_="scroll")


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture(path: Path, alt: str) -> Html | None:
    """Inline a figure as an image (scripts in an svg do not run there); None where the file is missing."""
    kinds = {".svg": "image/svg+xml", ".png": "image/png"}
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return tag("img", src=data_uri(kinds[path.suffix], content), alt=alt)
