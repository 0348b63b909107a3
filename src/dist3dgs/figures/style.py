"""The one style of all figures.

Widths are those of journals: 85 mm for one column, 175 mm for two. Colours are Okabe and Ito's (2008), which people
with any common colour blindness tell apart; markers, line styles and hatches say the same again in grey. The font is
the DejaVu Sans that comes with matplotlib, never one of the machine, so that a figure is the same bytes everywhere.
"""

import colorsys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SINGLE_MM, DOUBLE_MM = 85.0, 175.0
DPI = 300

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

#: Vermillion is kept for what failed.
FAILED = VERMILLION
GREY, LIGHT_GREY, FAINT = "#6B6B6B", "#C9C9C9", "#F1F1F1"
SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK, "#8A8A00")
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "h")
SERIES_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))

#: Phase -> (colour, hatch). `compute` and `communication` are the two parts of `step`.
PHASE_STYLES: dict[str, tuple[str, str]] = {
    "startup": ("#8F8F8F", ""),
    "load": ("#D9D9D9", "...."),
    "init": ("#FFFFFF", "////"),
    "compute": (BLUE, ""),
    "communication": (ORANGE, "\\\\\\\\"),
    "step": (BLUE, ""),
    "densify": (SKY, "xxxx"),
    "evaluate": (GREEN, "----"),
    "checkpoint": (PURPLE, "||||"),
    "export": (YELLOW, "++++"),
    "other": ("#F1F1F1", ""),
}
_FOREIGN_PHASES = ((YELLOW, "oo"), (PURPLE, ".."), (SKY, "**"), (GREEN, "\\\\"))

_FAMILY = "dist3dgs DejaVu Sans"


def rc() -> dict[str, Any]:
    return {
        "font.family": _FAMILY,
        "font.size": 7,
        "axes.titlesize": 7.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
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
        "lines.markersize": 4,
        "hatch.linewidth": 0.5,
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "svg.fonttype": "path",
        "svg.hashsalt": "dist3dgs",
        "path.simplify": False,
        "text.parse_math": False,  # a "$" in a name is a "$"
    }


@contextmanager
def styled() -> Iterator[None]:
    """Within: the style of all figures on top of matplotlib's own defaults, whatever a matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        _add_bundled_font()
        settings: Any = rc()
        matplotlib.rcParams.update(settings)
        yield


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


def new_figure(width_mm: float, height_mm: float) -> Any:
    """An empty figure without any window system behind it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")


def series_style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Colour, marker and line of a series: by its place among all of the study, so that figures agree."""
    i = sorted(names).index(name)
    return {
        "color": SERIES_COLOURS[i % len(SERIES_COLOURS)],
        "marker": SERIES_MARKERS[i % len(SERIES_MARKERS)],
        "linestyle": SERIES_LINES[i % len(SERIES_LINES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def phase_style(name: str) -> tuple[str, str]:
    """Colour and hatch of a phase; foreign names (imported logs) get one of four by their letters."""
    return PHASE_STYLES.get(name) or _FOREIGN_PHASES[sum(name.encode()) % len(_FOREIGN_PHASES)]


def ink(colour: str) -> str:
    """A darker shade of a colour that can be read as text on white."""
    import matplotlib.colors

    hue, lightness, saturation = colorsys.rgb_to_hls(*matplotlib.colors.to_rgb(colour))
    return matplotlib.colors.to_hex(colorsys.hls_to_rgb(hue, min(lightness, 0.33), saturation))


def save(figure: Any, out_base: Path) -> list[Path]:
    """Write `out_base`.svg and .png: no dates, no versions, no random ids, so that redrawing gives the same"
    " bytes."""
    from matplotlib.text import Text

    from ..files import replacing

    for text in figure.findobj(Text):
        # A terminal code in a log or a name would make the svg unreadable.
        text.set_text("".join(c if c.isprintable() or c == "\n" else " " for c in text.get_text()))
    paths = [out_base.with_name(f"{out_base.name}.{end}") for end in ("svg", "png")]
    with replacing(paths[0]) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": "dist3dgs"})
    with replacing(paths[1]) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return paths
