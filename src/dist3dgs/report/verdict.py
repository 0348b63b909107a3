"""Does it pay? In words, from points.csv."""

import itertools
from collections.abc import Sequence
from typing import Any

from . import numbers

Row = dict[str, Any]

_SCALING = {"strong": "strong scaling", "throughput": "throughput scaling"}
#: With one run per point nothing is known about the noise; smaller gains are not called gains.
SINGLE_RUN_NOISE = 0.05
#: Gains beyond this share of the ideal are remarked upon.
SUPERLINEAR = 1.05


def verdict(points: Sequence[Row]) -> list[str]:
    """A summary where there is more than one scene or strategy, a paragraph for each, then what limits the answer."""
    if not points:
        return ["There are no runs yet: nothing is known. Start with: make demo"]
    every = by_series(points)
    paragraphs = [_summary(every)] if len(every) > 1 else []
    paragraphs += [_series(series) for series in every]
    measured = [p for p in points if p["n_ok"]]
    if measured and all(p["n_ok"] == 1 for p in measured):
        paragraphs.append(
            "Every point is a single run, so nothing is known about the noise between runs; gains under "
            f"{100 * SINGLE_RUN_NOISE:.0f} % are not called gains. Set repeats to 3 in the config to know it."
        )
    return paragraphs


def _summary(every: Sequence[Sequence[Row]]) -> str:
    """One sentence over all scenes and strategies."""
    tops = [top for series in every if (top := best(series)) is not None]
    if not tops:
        return "Whether distributed training pays is not known yet: no larger layout has succeeded beside a baseline."
    gains = [top for top in tops if is_gain(top)]
    if not gains:
        return f"Distributed training does not pay here: none of {len(tops)} combinations of scene and strategy gains."
    top = max(gains, key=lambda p: gain(p) or 0.0)
    what = "equal quality" if top.get("speedup_time_to_quality") is not None else "the same number of images"
    if len(tops) == 1:
        count = "the one combination of scene and strategy that could be compared:"
    elif len(gains) == len(tops):
        count = f"each of the {len(tops)} combinations of scene and strategy that could be compared; most"
    else:
        count = f"{len(gains)} of {len(tops)} combinations of scene and strategy that could be compared; most"
    best_of = f"{top['scene']} with {top['strategy']} at {top['layout']}"
    return (
        f"In time, distributed training pays for {count} on {best_of}: {what} {gain(top):.2f} times sooner than "
        f"{top['baseline_layout']}."
    )


def by_series(points: Sequence[Row]) -> list[list[Row]]:
    """Points grouped by scene and strategy, each sorted by ranks as in points.csv."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for p in points:
        groups.setdefault((p["scene"], p["strategy"]), []).append(p)
    return list(groups.values())


def gain(point: Row) -> float | None:
    """What a layout gains in time: to equal quality where that is known, else in images/s."""
    to_quality: float | None = point.get("speedup_time_to_quality")
    rate: float | None = point.get("speedup")
    return to_quality if to_quality is not None else rate


def best(series: Sequence[Row]) -> Row | None:
    """The layout larger than the baseline that gains most, or None."""
    larger = [p for p in series if p["n_ok"] and p["layout"] != p["baseline_layout"] and gain(p) is not None]
    return max(larger, key=lambda p: gain(p) or 0.0, default=None)


def is_gain(point: Row) -> bool:
    """Faster than the baseline beyond the noise: every repeat, or one run by more than 5 %."""
    name = "speedup_time_to_quality" if point.get("speedup_time_to_quality") is not None else "speedup"
    lowest, value = point.get(f"{name}_min"), point.get(name)
    if value is None:
        return False
    return bool(value > 1 + SINGLE_RUN_NOISE if point["n_ok"] < 2 or lowest is None else lowest > 1)


def _series(series: Sequence[Row]) -> str:
    where = f"On {series[0]['scene']}, {series[0]['strategy']}"
    ok = [p for p in series if p["n_ok"]]
    if not ok:
        causes = ", ".join(f"{p['layout']}: {p['causes'] or 'unknown'}" for p in series)
        return f"{where} has not succeeded yet ({causes}): whether it pays is not known."
    baseline = next(p for p in ok if p["layout"] == p["baseline_layout"])
    sentences = []
    top = best(series)
    if top is None:
        sentences.append(
            f"{where} has succeeded only at {baseline['layout']}"
            f"{_outcome(baseline)}: whether more ranks pay is not known."
        )
    elif is_gain(top):
        sentences.append(f"{where} pays in time at {top['layout']}: {_gains(top)}.")
        sentences.append(_cost(top, baseline))
    elif (gain(top) or 0) < 1:
        sentences.append(
            f"{where} does not pay: even its best larger layout, {top['layout']}, is slower than "
            f"{baseline['layout']} ({_gains(top)})."
        )
    else:
        sentences.append(f"{where} shows no gain beyond the noise: {top['layout']} brings {_gains(top)}.")
    turns = _turns(ok) if top is not None and is_gain(top) else []
    if top is not None and (gain(top) or 0) > SUPERLINEAR * top["ranks"] / top["baseline_ranks"]:
        sentences.append(
            "That is more than ideal: either the baseline was disturbed (repeat it on a quiet machine) or more ranks "
            "have more cache and memory bandwidth together."
        )
    sentences += _quality(top, baseline) + turns + _losses(series)
    return " ".join(s for s in sentences if s)


def _outcome(point: Row) -> str:
    parts = [numbers.decibel(point.get("psnr")), numbers.seconds(point.get("total_s"))]
    known = " in ".join(p for p in parts if p)
    return f" ({known})" if known else ""


def _gains(point: Row) -> str:
    parts = []
    if point.get("speedup") is not None:
        name = _SCALING.get(point["scaling"], "global batch changed")
        worth = point.get(f"efficiency_{point['scaling']}")
        efficient = f", {numbers.percent(worth)} efficient" if worth is not None else ""
        parts.append(
            f"{point['speedup']:.2f} times the images per second of {point['baseline_layout']} ({name}{efficient})"
        )
    if point.get("speedup_time_to_quality") is not None:
        value, q = point["speedup_time_to_quality"], point["target_psnr"]
        sooner = f"{value:.2f} times sooner" if value >= 1 else f"{1 / value:.2f} times later"
        parts.append(f"the baseline's quality ({q:.2f} dB) {sooner}")
    return " and ".join(parts)


def _cost(point: Row, baseline: Row) -> str:
    cost, reference = point.get("rank_hours"), baseline.get("rank_hours")
    if not cost or not reference or point.get("speedup_total") is None:
        return ""
    ratio = cost / reference
    share = f"{ratio:.2f} times the rank-hours" if ratio >= 1 else f"only {ratio:.2f} of the rank-hours"
    return (
        f"From launch to end the same number of images took {numbers.seconds(point.get('total_s'))} instead of "
        f"{numbers.seconds(baseline.get('total_s'))} ({point['speedup_total']:.2f} times faster), for {share}."
    )


def _quality(top: Row | None, baseline: Row) -> list[str]:
    if top is None or top.get("psnr") is None or baseline.get("psnr") is None:
        return []
    delta = top["psnr"] - baseline["psnr"]
    return [
        f"Held-out PSNR: {top['psnr']:.2f} dB against {baseline['psnr']:.2f} dB ({delta:+.2f} dB).".replace(
            "(-", "(−"
        )
    ]


def _turns(ok: Sequence[Row]) -> list[str]:
    """Where adding ranks starts to cost throughput."""
    rated = [p for p in ok if p.get("images_per_s")]
    for before, after in itertools.pairwise(rated):
        if after["ranks"] > before["ranks"] and after["images_per_s"] < before["images_per_s"]:
            return [
                f"Going from {before['layout']} to {after['layout']} lowers the throughput: scaling has turned."
            ]
    return []


def _losses(series: Sequence[Row]) -> list[str]:
    lost = [p for p in series if p["n_failed"] or p["n_degraded"]]
    if not lost or not any(p["n_ok"] for p in series):
        return []
    parts = []
    for p in lost:
        total = p["n_ok"] + p["n_failed"] + p["n_degraded"] + p["n_other"]
        parts.append(f"{p['layout']} in {p['n_failed'] + p['n_degraded']} of {total} runs ({p['causes']})")
    return [f"Not as asked: {', '.join(parts)}."]


def headline(points: Sequence[Row], runs: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(value, label, note) for the cards at the top."""
    cards = []
    tops = [t for s in by_series(points) if (t := best(s)) is not None]
    rated = max((t for t in tops if t.get("speedup") is not None), key=lambda t: t["speedup"], default=None)
    if rated is not None:
        definition = _SCALING.get(rated["scaling"], "images/s")
        against = f"{rated['layout']} over {rated['baseline_layout']}, {_where(rated, points)}"
        cards.append((f"{rated['speedup']:.2f}×", f"speedup, {definition}", against))
    sooner = max(
        (t for t in tops if t.get("speedup_time_to_quality") is not None),
        key=lambda t: t["speedup_time_to_quality"],
        default=None,
    )
    if sooner is not None:
        worth = numbers.percent(sooner["efficiency_time_to_quality"])
        note = f"{worth} efficient, {sooner['layout']}, {_where(sooner, points)}"
        cards.append((f"{sooner['speedup_time_to_quality']:.2f}×", "sooner to equal quality", note))
    good = max((p for p in points if p.get("psnr") is not None), key=lambda p: p["psnr"], default=None)
    if good is not None:
        cards.append(
            (f"{good['psnr']:.2f} dB", "best held-out PSNR", f"{good['layout']}, {_where(good, points)}")
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
    """What a rank is: a GPU if no run had a rank on anything else."""
    devices = [str(r["devices"]).lower() for r in runs if r.get("devices")]
    return "GPU" if devices and not any("cpu" in d for d in devices) else "rank"


def _where(point: Row, points: Sequence[Row]) -> str:
    one_scene = len({p["scene"] for p in points}) == 1
    return str(point["strategy"] if one_scene else f"{point['scene']} {point['strategy']}")
