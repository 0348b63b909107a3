"""Recommend layouts and strategies from a study's points, with the reasons and predicted alternatives.

`comparisons(points)` divides the rows of `analysis.points.point_rows` into those that are compared with each other;
`sentences` and `front`, the points that no other one beats in both time and cost, are of one of these. A prediction is
added where one is given.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..analysis.measures import R_PAYS
from ..analysis.points import place
from ..config.naming import Layout
from ..errors import UserError
from .model import Forecast, Predictor
from .workload import Workload

Row = dict[str, Any]
#: Predicts a strategy on a layout; None where there is no model of it.
Predict = Callable[[str, Layout], Forecast | None]
#: Images per rank and step of the alternative with a larger batch.
LARGER_BATCH = 4
#: Fewer sizes than this cannot tell how a strategy scales.
LEAST_SIZES = 3
#: Layouts that are listed by name as better not used.
_MOST_NAMES = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time and cost of a point for the work by which the points of its scene are compared."""

    row: Row
    time_s: float
    rank_hours: float

    @property
    def name(self) -> str:
        return f"{self.row['strategy']} on {place(self.row)}"


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Something else that could be tried, with its prediction."""

    what: str
    forecast: Forecast


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Points with one baseline, and those of the same strategies that did not succeed."""

    scene: str
    name: str
    """The scene, with the strategies where the scene has several baselines: other settings, variants of a workload."""
    points: list[Row]


def comparisons(points: Sequence[Row]) -> list[Comparison]:
    """Divide points into those with the same baseline; of a scene on several kinds of hardware, the usual one's."""
    found = []
    for scene in dict.fromkeys(p["scene"] for p in points):
        own = [p for p in points if p["scene"] == scene]
        kinds = [p.get("hardware") for p in own if p["n_ok"]]
        usual = max(kinds, key=kinds.count, default=None)
        groups: dict[tuple[Any, Any], list[Row]] = {}
        for p in own:
            if p["n_ok"] and p.get("hardware") == usual and p.get("baseline_layout"):
                groups.setdefault((p["baseline_strategy"], p["baseline_layout"]), []).append(p)
        parts = list(groups.values()) or [[]]
        placed = {id(p) for part in parts for p in part}
        for p in own:
            if id(p) not in placed and not (p["n_ok"] and p.get("hardware") != usual):
                alike = (part for part in parts if any(q["strategy"] == p["strategy"] for q in part))
                next(alike, parts[0]).append(p)
        for part in parts:
            strategies = dict.fromkeys(str(p["strategy"]) for p in part)
            name = scene if len(parts) == 1 else f"{scene}, {', '.join(strategies)}"
            found.append(Comparison(scene=scene, name=name, points=part))
    return found


def costs(points: Sequence[Row]) -> list[Cost]:
    """List the time and cost of a comparison's points that did the work; [] where no times can be compared.

    The work is the baseline's quality where it has one that was timed, else all images. Points that miss the quality or
    failed are not among them.
    """
    own = [p for p in points if p["n_ok"] and p["outcome"] != "missed_quality"]
    baseline = next((p for p in own if p["outcome"] == "baseline"), None)
    if baseline is None:
        return []
    by_quality = baseline.get("time_to_quality_s") is not None
    found = []
    for p in own:
        if by_quality:
            time_s = p.get("time_to_quality_s")
        elif p is baseline:
            time_s = p.get("total_s")
        else:
            ratio = p.get("speedup_total") or p.get("speedup")
            time_s = baseline["total_s"] / ratio if ratio and baseline.get("total_s") else None
        if time_s:
            # Ranks that were paid for at a time: fewer than there are blocks while one job trains the coarse model.
            known = p.get("rank_hours") and p.get("total_s")
            ranks = p["rank_hours"] * 3600 / p["total_s"] if known else p["ranks"]
            found.append(Cost(row=p, time_s=float(time_s), rank_hours=float(time_s) * ranks / 3600))
    return found


def front(points: Sequence[Row]) -> list[Cost]:
    """Return a comparison's Pareto front of time against cost, cheapest first: no other is faster and no dearer."""
    every = sorted(costs(points), key=lambda c: (c.rank_hours, c.time_s))
    kept: list[Cost] = []
    for cost in every:
        if not kept or cost.time_s < kept[-1].time_s:
            kept.append(cost)
    return kept


def paragraph(points: Sequence[Row], predict: dict[str, Predict] | None = None) -> str:
    """Say what to use and what not, and why: one paragraph for each comparison, joined by blank lines.

    Args:
        points: rows of points.csv.
        predict: by scene, for the next doubling where no point measured it.
    """
    return "\n\n".join(" ".join(sentences(c, (predict or {}).get(c.scene))) for c in comparisons(points))


def sentences(comparison: Comparison, predict: Predict | None = None, *, doubts: bool = True) -> list[str]:
    """Return a comparison's recommendation, most important sentence first.

    Args:
        doubts: say too what the data cannot tell; without, nothing is said where there are too few data.
    """
    own, name = comparison.points, comparison.name
    every = costs(own)
    least = min((c.row["ranks"] for c in every if c.row["outcome"] == "baseline"), default=0)
    judged = ("gain", "loss", "no_difference", "missed_quality")
    larger = [p for p in own if p["outcome"] in judged and p["ranks"] > least]
    if (not every or not larger) and not doubts:
        return []
    if not every or not larger:
        succeeded = ", ".join(f"{p['strategy']} on {place(p)}" for p in own if p["n_ok"]) or "nothing"
        return [
            f"{name}: too few data to recommend anything ({succeeded} succeeded); measure one rank and two or more."
        ]
    baseline = next(c for c in every if c.row["outcome"] == "baseline")
    gains = [c for c in every if c.row["outcome"] == "gain" and c.row["ranks"] > least]
    best = min(gains, key=lambda c: c.time_s, default=baseline)
    unit = _unit(baseline.row)
    said = [_use(name, best, baseline, unit)]
    said += _not(own, best, unit)
    said += _last_doubling(every, best, unit)
    said += _next_doubling(own, every, best, unit, predict)
    said += _front(own, every, unit)
    return said + (_doubts(own, every) if doubts else [])


def alternatives(
    made: Predictor, workload: Workload, layout: Layout, tried: Collection[tuple[str, Layout]] = ()
) -> list[Alternative]:
    """Predict what else could be done on a layout: a larger batch, the other strategy, fewer ranks.

    Args:
        tried: kinds of strategy and layouts that were measured; they are no alternatives to what was measured.
    """
    per_rank = max(1, workload.global_batch(layout) // workload.cells(layout))
    other = "sharded" if workload.is_replica else "replicated"
    tries = [
        (
            f"batch_per_rank: {per_rank * LARGER_BATCH} (gradient accumulation: {LARGER_BATCH} times the images in an"
            " exchange)",
            replace(workload, batch=per_rank * LARGER_BATCH * workload.cells(layout)),
            layout,
        ),
    ]
    if layout.world_size > 1:
        half = _half(layout)
        tries.append((f"{other} on {layout}", replace(workload, kind=other, compression="none"), layout))
        tries.append((f"fewer ranks, {half}", replace(workload, batch=per_rank * half.world_size), half))
    else:  # on one rank strategies are one program
        two = _double(layout)
        batch = per_rank * two.world_size
        tries.append(
            (
                f"{other} on {two}",
                replace(workload, kind=other, blocks=None, compression="none", batch=batch),
                two,
            )
        )
    found = []
    for what, changed, where in tries:
        is_larger_batch = (changed.kind, where) == (workload.kind, layout)
        if (changed.kind, where) in tried and not is_larger_batch:
            continue
        try:
            found.append(Alternative(what=what, forecast=made.forecast(changed, where)))
        except UserError:
            continue
    return found


def describe_alternatives(found: Sequence[Alternative], unit: str) -> str:
    """Put alternatives into one sentence, each with its predicted time and cost."""
    parts = [
        f"{a.what}: {duration(a.forecast.total_s.value)} ({duration(a.forecast.total_s.low)} to "
        f"{duration(a.forecast.total_s.high)}), {_paid(unit, a.forecast.rank_hours.value)}"
        + ("" if a.forecast.fits else ", but it does not fit in memory")
        for a in found
    ]
    return f"Predicted alternatives: {'; '.join(parts)}." if parts else ""


def _use(name: str, best: Cost, baseline: Cost, unit: str) -> str:
    work = (
        "to the baseline's quality"
        if baseline.row.get("time_to_quality_s") is not None
        else f"for all {baseline.row.get('unit_of_work') or 'image'}s"
    )
    if best is baseline:
        return (
            f"{name}: use {_one(baseline)}: no larger layout gains ({duration(baseline.time_s)} {work}, "
            f"{_paid(unit, baseline.rank_hours)})."
        )
    return (
        f"{name}: for the shortest time use {best.name}: {duration(best.time_s)} {work} instead of "
        f"{duration(baseline.time_s)} on {_one(baseline)} ({baseline.time_s / best.time_s:.2f} times sooner), for "
        f"{_paid(unit, best.rank_hours, baseline.rank_hours)}."
    )


def _one(baseline: Cost) -> str:
    return str(baseline.row["layout"])


def _not(own: Sequence[Row], best: Cost, unit: str) -> list[str]:
    """Say up to which size each strategy pays, and why not above."""
    said = []
    for strategy in dict.fromkeys(p["strategy"] for p in own):
        series = sorted((p for p in own if p["strategy"] == strategy), key=lambda p: (p["ranks"], p["nodes"]))
        pays = max((p["ranks"] for p in series if p["outcome"] == "gain"), default=1)
        bad = [
            p
            for p in series
            if p["ranks"] > pays and p["outcome"] in ("loss", "no_difference", "missed_quality")
        ]
        if bad:
            said.append(f"Not {strategy} above {pays} {unit}{'s' if pays > 1 else ''} here: {_why(bad[0])}.")
    return said


def _why(p: Row) -> str:
    if p["outcome"] == "missed_quality":
        if p.get("psnr") is None and p.get("target_accuracy") is not None:
            target = p["target_accuracy"]
            return (
                f"{p['layout']} ends at an accuracy of {p['accuracy']:.4g}, below the {target:.4g} to reach"
            )
        if p.get("psnr") is None:
            return f"{place(p)} misses the baseline's quality"
        return f"{place(p)} ends at {p['psnr']:.2f} dB, below the {p['target_psnr']:.2f} dB to reach"
    r = p.get("r_measured") or p.get("r_derived")
    ratio = p.get("gain") or p.get("speedup")
    pace = (
        f"{place(p)} is {ratio:.2f} times as fast as the baseline" if ratio else f"{place(p)} does not gain"
    )
    if r is None or r >= R_PAYS:  # communication is not what it is for
        return pace
    return f"R = {r:.1f} < {R_PAYS:g} ({pace})"


def _last_doubling(every: Sequence[Cost], best: Cost, unit: str) -> list[str]:
    """Say what the ranks of the best point saved and cost over half as many of the same strategy."""
    half = [c for c in every if 2 * c.row["ranks"] == best.row["ranks"] and _alike(c, best)]
    if not half:
        return []
    before = min(half, key=lambda c: c.time_s)
    head = f"The last doubling, {before.row['layout']} to {best.row['layout']},"
    return [f"{head} {_margin(before, best.time_s, best.rank_hours, unit, past=True)}"]


def _alike(cost: Cost, best: Cost) -> bool:
    """Return True if both are of one strategy; on one rank all strategies are one program."""
    return cost.row["strategy"] == best.row["strategy"] or cost.row["ranks"] == 1


def _next_doubling(
    own: Sequence[Row], every: Sequence[Cost], best: Cost, unit: str, predict: Predict | None
) -> list[str]:
    """Say what twice the ranks of the best point save and cost, measured or else predicted."""
    ranks = 2 * best.row["ranks"]
    doubled = min(
        (c for c in every if c.row["ranks"] == ranks and c.row["strategy"] == best.row["strategy"]),
        key=lambda c: c.time_s,
        default=None,
    )
    if doubled is not None:
        margin = _margin(best, doubled.time_s, doubled.rank_hours, unit)
        return [f"The next doubling, {doubled.row['layout']} (measured), {margin}"]
    strategy = best.row["strategy"]
    tried = any(p["ranks"] == ranks and p["strategy"] == strategy and p["n_ok"] for p in own)
    if predict is None or tried:  # what was tried and is not among the costs is told as not to be used
        return []
    here = Layout.parse(best.row["layout"])
    if here.world_size != best.row["ranks"]:  # block jobs: their number is a setting
        return []
    wider = _double(here)
    now, then = predict(strategy, here), predict(strategy, wider)
    if now is None or then is None:
        return [f"There is no prediction of the next doubling with {strategy}."]
    # Only the ratio is the model's: the point itself was measured.
    time_s = best.time_s * then.total_s.value / now.total_s.value
    how = f"predicted, within {100 * then.width:.0f} %" + (", simulation" if then.simulated else "")
    return [f"The next doubling, {wider} ({how}), {_margin(best, time_s, time_s * ranks / 3600, unit)}"]


def _margin(before: Cost, time_s: float, rank_hours: float, unit: str, *, past: bool = False) -> str:
    saved, more = before.time_s - time_s, rank_hours - before.rank_hours
    saves, costs = ("saved", "cost") if past else ("saves", "costs")
    if saved <= 0:
        return f"{saves} nothing and {costs} {_paid(unit, more, like=rank_hours)} more."
    if more <= 0:
        return f"{saves} {duration(saved)} and {_paid(unit, -more)}."
    each, paid = more / (saved / 3600), _paid(unit, more, like=rank_hours)
    return f"{saves} {duration(saved)} for {paid} more, {each:.3g} {unit}-hours for each hour saved."


def _front(own: Sequence[Row], every: Sequence[Cost], unit: str) -> list[str]:
    kept = front(own)
    if len(every) < 2:
        return []
    most = max(c.rank_hours for c in every)
    listed = ", ".join(
        f"{c.name} ({duration(c.time_s)}, {_paid(unit, c.rank_hours, like=most)})" for c in kept
    )
    dominated = [c.name for c in every if c not in kept]
    if len(dominated) > _MOST_NAMES:
        dominated[_MOST_NAMES - 1 :] = [f"and {len(dominated) - _MOST_NAMES + 1} more"]
    rest = f" Slower and no cheaper than one of these: {', '.join(dominated)}." if dominated else ""
    return [f"Best in time or cost: {listed}.{rest}"]


def _paid(unit: str, *rank_hours: float, like: float = 0.0) -> str:
    """Write one amount, or one instead of another, in hours, minutes or seconds of ranks.

    like: rank-hours that a reader compares it with; the unit is that of the largest.
    """
    most = max(map(abs, (*rank_hours, like)))
    scale, name = (1, "hours") if most >= 1 else (60, "minutes") if 60 * most >= 1 else (3600, "seconds")
    return f"{' instead of '.join(f'{scale * h:.3g}' for h in rank_hours)} {unit}-{name}"


def _doubts(own: Sequence[Row], every: Sequence[Cost]) -> list[str]:
    said = []
    if all(c.row["n_ok"] == 1 for c in every):
        said.append("Every point is a single run, so small differences may be noise.")
    sizes = {p["ranks"] for p in own if p["n_ok"]}
    if len(sizes) < LEAST_SIZES:
        listed = " and ".join(map(str, sorted(sizes)))
        said.append(f"Only {listed} ranks were measured: too few sizes to tell how it goes on.")
    failed = [f"{p['strategy']} on {place(p)}" for p in own if not p["n_ok"]]
    if failed:
        said.append(f"Nothing is known of {', '.join(failed)}: no successful run.")
    return said


def _unit(row: Row) -> str:
    return "rank" if str(row.get("hardware") or "cpu").startswith("cpu") else "GPU"


def _half(layout: Layout) -> Layout:
    if layout.nodes > 1:
        return Layout(max(1, layout.nodes // 2), layout.workers_per_node)
    return Layout(1, max(1, layout.workers_per_node // 2))


def _double(layout: Layout) -> Layout:
    """Twice the ranks: on as many more nodes where there are several or the node is full of eight, else on the node."""
    if layout.nodes > 1 or layout.workers_per_node >= 8:
        return Layout(2 * layout.nodes, layout.workers_per_node)
    return Layout(1, 2 * layout.workers_per_node)


def duration(seconds: float) -> str:
    """Format a duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
