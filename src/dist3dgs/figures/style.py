"""The one style of all figures.

Widths are those of journals: 85 mm for one column, 180 mm for two. Colours are Okabe and Ito's (2008), which people
with any common colour blindness tell apart; markers, line styles and hatches tell series apart in grey. The font is
the DejaVu Sans that comes with matplotlib, never one of the machine, so that a figure is the same bytes everywhere.
"""

import colorsys
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

SINGLE_MM, DOUBLE_MM = 85.0, 180.0
#: A figure that is taller than this is shrunk on a printed page.
MAX_HEIGHT_MM = 240.0
MM_PER_PT = 25.4 / 72
DPI = 300

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

#: Vermillion marks failures only.
FAILED = VERMILLION
INK, GREY, LIGHT_GREY = "#333333", "#6B6B6B", "#C9C9C9"
SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK, "#8A8A00")
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "h")
SERIES_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))

#: Phase -> (colour, hatch). `compute` and `communication` are the two parts of `step`. No dots or circles: a hatch of
#: them is 150 kB of an svg.
PHASE_STYLES: dict[str, tuple[str, str]] = {
    "startup": ("#8F8F8F", ""),
    "load": ("#D9D9D9", ""),
    "init": ("#FFFFFF", "///"),
    "compute": (BLUE, ""),
    "communication": (ORANGE, "\\\\\\"),
    "step": (BLUE, ""),
    "densify": (SKY, "xxx"),
    "evaluate": (GREEN, "---"),
    "checkpoint": (PURPLE, "|||"),
    "export": (YELLOW, "+++"),
    "other": ("#F1F1F1", ""),
}
_FOREIGN_PHASES = ((YELLOW, "xxx"), (PURPLE, "---"), (SKY, "///"), (GREEN, "\\\\\\"))

_FAMILY = "dist3dgs DejaVu Sans"


def rc() -> dict[str, Any]:
    return {
        "font.family": _FAMILY,
        "font.size": 7,
        "axes.labelsize": 7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.edgecolor": "#333333",
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.5,
        "xtick.labelsize": 6.5,
        "ytick.labelsize": 6.5,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.color": "#333333",
        "ytick.color": "#333333",
        "lines.linewidth": 1.2,
        "lines.markersize": 4.4,
        "hatch.linewidth": 0.5,
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "figure.facecolor": "white",
        "svg.fonttype": "path",  # the same with any viewer's fonts
        "pdf.fonttype": 42,  # TrueType: text stays text
        "svg.hashsalt": "dist3dgs",
        "path.simplify": False,
        "text.parse_math": False,  # a "$" in a name is a "$"
    }


#: Strategies of the study whose figure is being drawn.
_strategies: ContextVar[Sequence[str]] = ContextVar("strategies", default=())


@contextmanager
def styled(strategies: Sequence[str] = ()) -> Iterator[None]:
    """Apply the style of all figures on top of matplotlib's defaults, whatever a matplotlibrc says.

    strategies: all of the study, each of which looks the same in a figure that leaves others out.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        _add_bundled_font()
        settings: Any = rc()
        matplotlib.rcParams.update(settings)
        token = _strategies.set(tuple(strategies))
        try:
            yield
        finally:
            _strategies.reset(token)


def _add_bundled_font() -> None:
    import matplotlib
    from matplotlib.font_manager import FontEntry, fontManager

    if any(entry.name == _FAMILY for entry in fontManager.ttflist):
        return
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for file, style, weight in (
        ("DejaVuSans.ttf", "normal", "normal"),
        ("DejaVuSans-Bold.ttf", "normal", "bold"),
        ("DejaVuSans-Oblique.ttf", "italic", "normal"),
    ):
        fontManager.ttflist.append(
            FontEntry(fname=str(folder / file), name=_FAMILY, style=style, weight=weight, size="scalable")
        )


@lru_cache(maxsize=4096)
def width_mm(text: str, size_pt: float, *, bold: bool = False) -> float:
    """Return the width of one line of text, in mm."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=_FAMILY, size=size_pt, weight="bold" if bold else "normal")
    width_pt, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width_pt) * MM_PER_PT


def fit(text: str, room_mm: float, size_pt: float, *, bold: bool = False) -> str:
    """Shorten text to `room_mm`; names differ at their ends, so the middle is left out."""
    if width_mm(text, size_pt, bold=bold) <= room_mm:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
        if width_mm(short, size_pt, bold=bold) <= room_mm:
            return short
    return "…"


def wrap(text: str, room_mm: float, size_pt: float, *, indent: str = "") -> list[str]:
    """Return lines no wider than `room_mm`, broken at spaces that may break; `indent` before all but the first."""
    lines: list[str] = []
    for word in re.split(r"[ \t\n]+", text.strip(" \t\n")):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_mm(longer, size_pt) <= room_mm:
            lines[-1] = longer
        else:
            lines.append(fit(f"{indent}{word}" if lines else word, room_mm, size_pt))
    return lines


def series_style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Return colour, marker and line of a series, by its place among the study's strategies, else among `names`.

    Of up to 49 series no two have both colour and marker in common.
    """
    i = sorted(_strategies.get() if name in _strategies.get() else names).index(name)
    again, place = divmod(i, len(SERIES_COLOURS))
    return {
        "color": SERIES_COLOURS[place],
        "marker": SERIES_MARKERS[(place + again) % len(SERIES_MARKERS)],
        "linestyle": SERIES_LINES[i % len(SERIES_LINES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def phase_style(name: str) -> tuple[str, str]:
    """Colour and hatch of a phase; foreign names (imported logs) get one of four by their letters."""
    return PHASE_STYLES.get(name) or _FOREIGN_PHASES[sum(name.encode()) % len(_FOREIGN_PHASES)]


def phase_look(name: str) -> dict[str, Any]:
    """Return the properties of a phase's patch."""
    colour, hatch = phase_style(name)
    return {"facecolor": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.4}


def ink(colour: str) -> str:
    """Return a darker shade of a colour that can be read as text on white."""
    import matplotlib.colors

    hue, lightness, saturation = colorsys.rgb_to_hls(*matplotlib.colors.to_rgb(colour))
    return matplotlib.colors.to_hex(colorsys.hls_to_rgb(hue, min(lightness, 0.33), saturation))


#: File ending -> metadata that matplotlib would add: its version, the date.
_METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": "dist3dgs"},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": "dist3dgs", "Producer": None},
}


def save(figure: Any, out_base: Path) -> list[Path]:
    """Write `out_base`.svg, .png and .pdf without dates, versions and random ids: redrawing gives the same bytes."""
    from ..files import replacing

    paths = []
    for ending, metadata in _METADATA.items():
        paths.append(out_base.with_name(f"{out_base.name}.{ending}"))
        with replacing(paths[-1]) as temporary:
            figure.savefig(temporary, format=ending, metadata=metadata)
    return paths
