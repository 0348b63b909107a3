"""Say in words whether distributed training pays, from points.csv (its `outcome` decides: analysis/points.py)."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from ..analysis.points import SINGLE_RUN_NOISE, place
from ..predict.recommend import comparisons, sentences
from . import numbers

Row = dict[str, Any]

_SCALING = {"strong": "strong scaling", "throughput": "throughput scaling", "unknown": "global batch unknown"}
#: Gains beyond this share of the ideal are remarked upon.
SUPERLINEAR = 1.05


def verdict(points: Sequence[Row]) -> list[str]:
    """Say whether it pays: a summary where there are several series, what to use, each series, the limits."""
    return [text for part in verdict_parts(points) for text in part]


def verdict_parts(points: Sequence[Row]) -> tuple[list[str], list[str], list[str]]:
    """Return the verdict's paragraphs: the answer with what to use, each further series, the limits of the data."""
    if not points:
        return ["There are no runs yet: nothing is known. Start with: make demo"], [], []
    every = by_series(points)
    first, *series = [
        *([_summary(every)] if len(every) > 1 else []),
        *(_series(series, points) for series in every),
    ]
    return [first, *_recommendations(points)], series, _limits(points)


def _limits(points: Sequence[Row]) -> list[str]:
    """Say what the data cannot tell."""
    paragraphs = []
    measured = [p for p in points if p["n_ok"]]
    if shared := sum(1 for p in measured if p.get("n_shared")):
        paragraphs.append(
            f"At {shared} of {len(measured)} points other jobs were on the nodes (†): their times are not to be "
            "trusted. Whole nodes: site.exclusive in the profile."
        )
    if mixed := _mixed(points):
        paragraphs.append(mixed)
    if measured and all(p["n_ok"] == 1 for p in measured):
        paragraphs.append(
            "Every point is a single run, so nothing is known about the noise between runs; differences under "
            f"{100 * SINGLE_RUN_NOISE:.0f} % are called neither gain nor loss. Set repeats to 3 in the config."
        )
    return paragraphs


def _recommendations(points: Sequence[Row]) -> list[str]:
    """Say what to use and what not for each comparison that has the data for it."""
    said = (sentences(comparison, doubts=False) for comparison in comparisons(points))
    return [" ".join(["Recommendation.", *found]) for found in said if found]


def _summary(every: Sequence[Sequence[Row]]) -> str:
    """Sum up all scenes and strategies in one sentence."""
    compared = [series for series in every if any(_is_compared(p) for p in series)]
    if not compared:
        return "Whether distributed training pays is not known yet: no larger layout has succeeded beside a baseline."
    tops = [top for series in compared if (top := best(series)) is not None and top["outcome"] == "gain"]
    if not tops:
        what = (
            f"none of {len(compared)} combinations of {_kinds(compared)} gains"
            if len(compared) > 1
            else f"the one combination of {_kinds(compared)} that could be compared does not gain"
        )
        single = _single_runs(p for series in compared for p in series if p["n_ok"])
        return f"Distributed training does not pay here: {what}{_missed_by_all(compared)}{single}."
    # Ratios of times to quality and of images per second are not one scale: quality is what a study is for.
    judged = [t for t in tops if t["gain_of"] == "time to equal quality"] or tops
    top = max(judged, key=lambda p: p["gain"])
    kinds = f"of {_kinds(compared)} that could be compared"
    if len(compared) == 1:
        count = f"the one combination {kinds}:"
    elif len(tops) == len(compared):
        count = f"each of the {len(compared)} combinations {kinds}; most"
    else:
        count = f"{len(tops)} of {len(compared)} combinations {kinds}; most"
    best_of = f"{top['scene']} with {top['strategy']} at {place(top)}"
    beyond = ", more than ideal, so the baseline may have been disturbed" if _beyond_ideal(top) else ""
    pair = (top, _baseline_of(top, list(itertools.chain(*every))))
    single = _single_runs(pair)
    is_shared = any(p.get("n_shared") for p in pair)
    shared = ", on nodes shared with other jobs, so that its times are not to be trusted" if is_shared else ""
    return f"In time, distributed training pays for {count} on {best_of}: {_faster(top)}{single}{beyond}{shared}."


def _single_runs(points: Iterable[Row]) -> str:
    return " (single runs)" if any(p["n_ok"] == 1 for p in points) else ""


def _kinds(every: Sequence[Sequence[Row]]) -> str:
    """Name what a point's first two names are: a workload has variants where a scene has strategies."""
    kinds = {bool(p.get("unit_of_work")) for series in every for p in series}
    if kinds == {True}:
        return "workload and variant"
    return "scene and strategy" if kinds == {False} else "scene and strategy, or workload and variant,"


def _beyond_ideal(point: Row) -> bool:
    return (point.get("gain") or 0) > SUPERLINEAR * point["ranks"] / point["baseline_ranks"]


def _faster(point: Row) -> str:
    """Put a gain into words, by what was measured."""
    if point["gain_of"] == "time to equal quality":
        return f"equal quality {point['gain']:.2f} times sooner than {_baseline_name(point)}"
    known = (
        "quality not known"
        if point.get("target_accuracy") is None or point.get("accuracy") is None
        else f"at a validation accuracy of {numbers.plain(point['accuracy'])}"
    )
    return f"{point['gain']:.2f} times the {_speed_unit(point)} of {_baseline_name(point)} ({known})"


def _speed_unit(point: Row) -> str:
    """Name what the speedup is a ratio of; the log of another program may show its epochs' times alone."""
    unit = point.get("unit_of_work") or "image"
    return f"{unit}s per second" if point.get("images_per_s") else "epochs per hour"


def _baseline_name(point: Row) -> str:
    """Name the baseline's layout, with its strategy where that is another one."""
    layout, strategy = point["baseline_layout"], point["baseline_strategy"]
    return str(layout) if strategy == point["strategy"] else f"{layout} ({strategy})"


def _missed_by_all(compared: Sequence[Sequence[Row]]) -> str:
    """Name the reason where every larger layout misses the quality."""
    larger = [p for series in compared for p in series if _is_compared(p)]
    return ", and no larger layout reaches the baseline's quality" if all(map(_missed, larger)) else ""


def _mixed(points: Sequence[Row]) -> str | None:
    """Say which hardware was kept apart."""
    kinds = sorted({str(p["hardware"]) for p in points if p.get("hardware")})
    left = sum(1 for p in points if p.get("left_out"))
    text = ""
    if len(kinds) > 1:
        text = f"Runs on different hardware ({'; '.join(kinds)}) are not compared with each other. "
    if left:
        text += f"At {left} point{'s' if left > 1 else ''} runs that differ in hardware, code or data are left out."
    return text.strip() or None


def by_series(points: Sequence[Row]) -> list[list[Row]]:
    """Group points by scene and strategy, each group in the order of points.csv."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for p in points:
        groups.setdefault((p["scene"], p["strategy"]), []).append(p)
    return list(groups.values())


def _is_compared(point: Row) -> bool:
    """Return True if a point says something about more ranks: compared with a baseline that has fewer."""
    return (
        point["outcome"] in ("gain", "loss", "no_difference", "missed_quality")
        and point["ranks"] > point["baseline_ranks"]
    )


def _missed(point: Row) -> bool:
    return bool(point["outcome"] == "missed_quality")


def best(series: Sequence[Row]) -> Row | None:
    """Return the point that gains most over its baseline; one that misses the quality only where all do.

    Points of one series that have different baselines (hardware, code) are ranked by outcome before size of gain.
    """
    order = {"gain": 3, "no_difference": 2, "loss": 1, "missed_quality": 0}
    found = [p for p in series if _is_compared(p)]
    return max(found, key=lambda p: (order[p["outcome"]], p.get("gain") or 0.0), default=None)


def _series(series: Sequence[Row], points: Sequence[Row]) -> str:
    where = f"On {series[0]['scene']}, {series[0]['strategy']}"
    ok = [p for p in series if p["n_ok"]]
    if not ok:
        causes = ", ".join(f"{place(p)}: {p['causes'] or 'unknown'}" for p in series)
        return f"{where} has not succeeded yet ({causes}): whether it pays is not known."
    top = best(series)
    if top is None:
        own = next((p for p in ok if p["outcome"] == "baseline"), ok[0])
        at = f"{place(own)}{_finished(own)}{_alike(ok, own)}"
        alone = f"{where} has succeeded only at {at}: whether more ranks pay is not known."
        return " ".join([alone, *_losses(series)])
    baseline = _baseline_of(top, points)
    sentences = []
    if top["outcome"] == "gain":
        sentences += [f"{where} pays in time at {place(top)}: {_gains(top)}.", _cost(top, baseline)]
    elif _missed(top):
        sentences.append(
            f"{where} does not reach the quality of {_baseline_name(top)} at any larger layout: {_shortfall(top)}. "
            f"Its speed ({_rate(top)}) buys no time to equal quality."
        )
    elif top["outcome"] == "loss":
        sentences.append(
            f"{where} does not pay: even its best larger layout, {place(top)}, is slower than "
            f"{_baseline_name(top)} ({_gains(top)})."
        )
    else:
        sentences.append(f"{where} shows no gain beyond the noise: {place(top)} brings {_gains(top)}.")
    others = [p for p in series if _missed(p) and p is not top]
    if others and not _missed(top):
        sentences.append("; ".join(f"{place(p)} misses the quality: {_shortfall(p)}" for p in others) + ".")
    if _beyond_ideal(top):
        sentences.append(
            "That is more than ideal: either the baseline was disturbed (repeat it on a quiet machine) or more ranks "
            "have more cache and memory bandwidth together."
        )
    turns = _turns(ok) if top["outcome"] == "gain" else []
    sentences += _quality(top, baseline) + turns + _losses(series)
    return " ".join(s for s in sentences if s)


def _alike(ok: Sequence[Row], own: Row) -> str:
    """Name the other layouts that succeeded, which have no more ranks than the baseline."""
    others = [place(p) for p in ok if p is not own]
    return f" and, with no more ranks to compare, at {', '.join(others)}" if others else ""


def _baseline_of(point: Row, points: Sequence[Row]) -> Row:
    key = point["scene"], point["baseline_strategy"], point["baseline_layout"]
    return next(p for p in points if (p["scene"], p["strategy"], p["layout"]) == key)


def _shortfall(point: Row) -> str:
    """Say how far below the quality to reach a point ended."""
    if point.get("target_psnr") is None:
        accuracy, target = point["accuracy"], point["target_accuracy"]
        return (
            f"{place(point)} ended at a validation accuracy of {numbers.plain(accuracy)}, below the "
            f"{numbers.plain(target)} to reach"
        )
    if point.get("psnr") is None:
        return f"{place(point)} did not reach {point['target_psnr']:.2f} dB"
    deficit = point["target_psnr"] - point["psnr"]
    short = (
        f", {deficit:.2f} dB below the {point['target_psnr']:.2f} dB to reach"
        if deficit > 0
        else (f"; most of its runs ended below {point['target_psnr']:.2f} dB")
    )
    return f"{place(point)} ended at {point['psnr']:.2f} dB{short}"


def _rate(point: Row) -> str:
    value = point.get("speedup")
    return "not known" if value is None else f"{value:.2f} times the {_speed_unit(point)}"


def _finished(point: Row) -> str:
    parts = [numbers.decibel(point.get("psnr")), numbers.seconds(point.get("total_s"))]
    known = " in ".join(p for p in parts if p)
    return f" ({known})" if known else ""


def _gains(point: Row) -> str:
    parts = []
    if point.get("speedup_time_to_quality") is not None:
        value, q = point["speedup_time_to_quality"], point["target_psnr"]
        sooner = f"{value:.2f} times sooner" if value >= 1 else f"{1 / value:.2f} times later"
        if f"{max(value, 1 / value):.2f}" == "1.00":
            sooner = "at the same time"
        reached = point.get("n_reached")
        some = "" if reached in (None, point["n_ok"]) else f" ({reached} of {point['n_ok']} runs reached it)"
        parts.append(f"the quality of {_baseline_name(point)} ({q:.2f} dB) {sooner}{some}")
    if point.get("speedup") is not None:
        name = _SCALING.get(point["scaling"], "global batch changed")
        worth = point.get(f"efficiency_{point['scaling']}")
        efficient = f", {numbers.percent(worth)} efficient" if worth is not None else ""
        of = "" if parts else f" of {_baseline_name(point)}"
        parts.append(f"{point['speedup']:.2f} times the {_speed_unit(point)}{of} ({name}{efficient})")
    return " and ".join(parts)


def _cost(point: Row, baseline: Row) -> str:
    cost, reference = point.get("rank_hours"), baseline.get("rank_hours")
    if not cost or not reference or point.get("speedup_total") is None:
        return ""
    ratio = cost / reference
    share = f"{ratio:.2f} times the rank-hours" if ratio >= 1 else f"only {ratio:.2f} of the rank-hours"
    return (
        f"From launch to end the same work took {numbers.seconds(point.get('total_s'))} instead of "
        f"{numbers.seconds(baseline.get('total_s'))} ({point['speedup_total']:.2f} times faster), for {share}."
    )


def _quality(top: Row | None, baseline: Row) -> list[str]:
    if top is None or top.get("psnr") is None or baseline.get("psnr") is None:
        if top is None or _missed(top) or top.get("accuracy") is None or baseline.get("accuracy") is None:
            return []
        return [
            f"Validation accuracy: {numbers.plain(top['accuracy'])} against {numbers.plain(baseline['accuracy'])}."
        ]
    delta = top["psnr"] - baseline["psnr"]
    return [
        f"Held-out PSNR: {top['psnr']:.2f} dB against {baseline['psnr']:.2f} dB ({delta:+z.2f} dB).".replace(
            "(-", "(−"
        )
    ]


def _turns(ok: Sequence[Row]) -> list[str]:
    """Say where adding ranks starts to cost throughput, beyond the spread of the repeats."""
    rated = [p for p in ok if p.get("images_per_s")]
    for before, after in itertools.pairwise(rated):
        falls = after["images_per_s_max"] < before["images_per_s_min"] / (
            1 + (SINGLE_RUN_NOISE if min(before["n_ok"], after["n_ok"]) < 2 else 0)
        )
        if after["ranks"] > before["ranks"] and falls:
            why = ""
            if (cores := after.get("cores")) and after["workers_per_node"] > cores:
                why = f"; {after['workers_per_node']:g} ranks take turns on the {cores:g} cores of a node"
            return [
                f"Going from {place(before)} to {place(after)} lowers the throughput: scaling has turned{why}."
            ]
    return []


def _losses(series: Sequence[Row]) -> list[str]:
    lost = [p for p in series if p["n_failed"] or p["n_degraded"]]
    if not lost or not any(p["n_ok"] for p in series):
        return []
    parts = []
    for p in lost:
        total = p["n_ok"] + p["n_failed"] + p["n_degraded"] + p["n_other"]
        parts.append(f"{place(p)} in {p['n_failed'] + p['n_degraded']} of {total} runs ({p['causes']})")
    return [f"Not as asked: {', '.join(parts)}."]


def headline(points: Sequence[Row], runs: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(value, label, note) for the cards at the top."""
    cards = []
    tops = [t for s in by_series(points) if (t := best(s)) is not None and t.get("gain") is not None]
    sooner = max(
        (t for t in tops if t["gain_of"] == "time to equal quality"), key=lambda t: t["gain"], default=None
    )
    if sooner is not None:
        worth = numbers.percent(sooner["efficiency_time_to_quality"])
        note = f"{worth} efficient, {place(sooner)} over {_baseline_name(sooner)}, {_where(sooner, points)}"
        label = "time to equal quality, speedup"
        cards.append((f"{sooner['gain']:.2f}×", label, note))
    rated = max((t for t in tops if t.get("speedup") is not None), key=lambda t: t["speedup"], default=None)
    if rated is not None:
        definition = _SCALING.get(rated["scaling"], "global batch changed")
        against = f"{place(rated)} over {_baseline_name(rated)}, {_where(rated, points)}"
        cards.append((f"{rated['speedup']:.2f}×", f"{_speed_unit(rated)}, {definition}", against))
    if not tops and (missed := [p for p in points if p["outcome"] == "missed_quality"]):
        worst = max(missed, key=lambda p: p.get("psnr") or 0.0)
        cards.append(("missed", "the baseline's quality", _shortfall(worst)))
    good = max((p for p in points if p.get("psnr") is not None), key=lambda p: p["psnr"], default=None)
    if good is not None:
        cards.append(
            (f"{good['psnr']:.2f} dB", "best held-out PSNR", f"{place(good)}, {_where(good, points)}")
        )
    ok = sum(r["status"] == "ok" for r in runs)
    lost = len(runs) - ok
    cards.append(
        (f"{ok} of {len(runs)}", "runs succeeded", f"{lost} did not: see below" if lost else "none failed")
    )
    cost = [r["rank_hours"] for r in runs if r.get("rank_hours") is not None]
    if cost:
        value = numbers.hours(sum(cost), _unit(runs)) or ""
        number, unit = value.split(" ")
        cards.append((number, f"{unit} spent", "all ranks that were allocated"))
    return cards


def _unit(runs: Sequence[Row]) -> str:
    """Name the unit of a rank: a GPU if no run had a rank on anything else."""
    devices = [str(r["devices"]).lower() for r in runs if r.get("devices")]
    return "GPU" if devices and not any("cpu" in d for d in devices) else "rank"


def _where(point: Row, points: Sequence[Row]) -> str:
    one_scene = len({p["scene"] for p in points}) == 1
    return str(point["strategy"] if one_scene else f"{point['scene']} {point['strategy']}")
