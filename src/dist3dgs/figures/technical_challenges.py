"""Causes of failure that the study met: how often, at what cost, and whether they were overcome."""

from typing import Any

from ..analysis.journey import attempts, technical_challenges
from . import style, ticks
from .page import EDGE_MM, Entry, Page
from .study import Study

TITLE = "Technical challenges"
CAPTION = (
    "Every cause that made an attempt fail or finish otherwise than asked, in the order in which they were "
    "first met. Bars: hours of all allocated ranks that those attempts took. Overcome: a later attempt of the "
    "same scene and layout succeeded after the last failure of the cause."
)
EMPTY = "none was met: every attempt succeeded, or none was made yet"
COLUMNS = (
    "cause",
    "attempts",
    "first_attempt",
    "last_attempt",
    "rank_hours",
    "n_unknown_cost",
    "overcome",
    "solved_by_attempt",
)
Row = dict[str, Any]

_NAME_MM, _BARS_MM, _ROW_MM, _FOOT_MM, _PT = 38.0, 62.0, 5.6, 8.5, 6.5
_LOOKS = {
    "overcome": {"facecolor": style.BLUE, "hatch": "", "edgecolor": style.INK, "linewidth": 0.4},
    "not yet overcome": {"facecolor": style.FAILED, "hatch": "xxx", "edgecolor": style.INK, "linewidth": 0.4},
}


def data(study: Study) -> list[Row]:
    journey = attempts([r for r in study.records if r.status != "excluded"])
    cost = {a.number: a.rank_hours for a in journey}
    rows = []
    for c in technical_challenges(journey):
        costs = [cost[n] for n in c.attempts]
        known = [hours for hours in costs if hours is not None]
        rows.append(
            {
                "cause": c.cause,
                "attempts": len(c.attempts),
                "first_attempt": c.attempts[0],
                "last_attempt": c.attempts[-1],
                "rank_hours": sum(known),
                "n_unknown_cost": len(costs) - len(known),
                "overcome": c.solved_by is not None,
                "solved_by_attempt": c.solved_by,
            }
        )
    return rows


def plot(rows: list[Row]) -> Any:
    """Return a bar per cause; beside it how often it was met and what became of it."""
    largest = max(r["rank_hours"] for r in rows)
    factor, unit = (1.0, "rank-hours") if largest >= 1 else (60.0, "rank-minutes")
    present = [name for name in _LOOKS if any(_name(r) == name for r in rows)]
    key = [Entry(name, _LOOKS[name]) for name in present]
    page = Page(style.DOUBLE_MM, _ROW_MM * len(rows) + _FOOT_MM, key=key)
    ax = page.axes(_NAME_MM, page.top_mm, _BARS_MM, _ROW_MM * len(rows))
    ax.set_ylim(len(rows), 0)
    ax.set_yticks([])
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    ax.set_xlim(0, 1.05 * largest * factor or 1.0)
    ax.xaxis.set_major_locator(ticks.linear(_BARS_MM / 1.5))
    ax.set_xlabel(f"cost of the attempts lost to it [{unit}]")
    for i, r in enumerate(rows):
        ax.barh(i + 0.5, r["rank_hours"] * factor, height=0.62, zorder=2, gid="challenge", **_LOOKS[_name(r)])
        y = page.top_mm + _ROW_MM * (i + 0.5)
        name = style.fit(r["cause"], _NAME_MM - EDGE_MM - 2, _PT)
        page.text(_NAME_MM - 1.5, y, name, size_pt=_PT, ha="right", gid="name")
        left = _NAME_MM + _BARS_MM + 3.0
        text = style.fit(_words(r, factor, unit), page.width_mm - EDGE_MM - left, _PT)
        page.text(left, y, text, size_pt=_PT, gid="outcome")
    return page.figure


def _name(r: Row) -> str:
    return "overcome" if r["overcome"] else "not yet overcome"


def _words(r: Row, factor: float, unit: str) -> str:
    n, unknown = r["attempts"], r["n_unknown_cost"]
    met = f"{n} attempt{'s' if n > 1 else ''} from #{r['first_attempt']}"
    cost = f"{r['rank_hours'] * factor:.3g} {unit}" + (f", {unknown} of unknown cost" if unknown else "")
    end = f"overcome by #{r['solved_by_attempt']}" if r["overcome"] else "not yet overcome"
    return f"{met}, {cost}, {end}"
