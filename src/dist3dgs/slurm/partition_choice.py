"""Find the partition where a layout would start and end first: `dist3dgs partitions`.

The start comes from `sbatch --test-only` (the scheduler's own plan of the queue), the end from that start plus the run
time, longer on slower GPUs. The run time is predicted from the records of other runs. Estimates age: a job that ends
early or a new one with a higher priority moves them.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..config.naming import Layout
from ..units import format_duration, parse_time_stamp
from .partitions import Partition, read_partitions, sizes
from .queue import Queue, describe
from .runtime_prediction import Prediction
from .site import Site
from .submission import excess, test_only


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The answer of one partition for one layout. Times are Unix seconds."""

    partition: str
    gpu_type: str | None
    speed: float
    speed_known: bool
    start: float | None
    end: float | None
    refusal: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # of the site block, with which it was asked


def offers(layout: Layout, partitions: Sequence[Partition], site: Site, runtime_s: float) -> list[Offer]:
    """Ask each partition that could take `layout`; those that end first come first.

    The partition that the site names is asked exactly as a submission would ask it; the others with the site's settings
    lowered to what their nodes have (`Offer.settings`). Where ranks run on CPUs (`gpu_request: none`) the partitions
    compared are those whose nodes have no GPUs, and the one that the site names.

    Args:
        runtime_s: predicted run time on the fastest GPU type (speed 1).
    """
    from .resources import layout_resources

    found = []
    for p in partitions:
        if not p.up or not _compared(site, p):
            continue
        settings = {} if _is_own(site, p, partitions) else fitted(site, p, layout)
        here = site.model_copy(update=settings)
        on_cpus = site.gpu_request == "none"
        speed = 1.0 if on_cpus else site.gpu_speed.get(p.gpu_type or "", 1.0)
        request = layout_resources(layout, here)
        start, end, why = None, None, "; ".join(e.reason for e in excess(request, [p])) or None
        if why is None:
            forecast = test_only(request, site.account)
            if forecast.refusal is None:
                start = max(time.time(), parse_time_stamp(forecast.start or "") or time.time())
                end = start + runtime_s / speed
            else:
                why = forecast.refusal.reason
        offer = Offer(
            partition=p.name, gpu_type=p.gpu_type, speed=speed, speed_known=on_cpus or p.gpu_type in site.gpu_speed,
            start=start, end=end, refusal=why, settings=settings,
        )  # fmt: skip
        found.append(offer)
    return sorted(found, key=lambda o: (o.end is None, o.end or 0.0, o.start or 0.0))


def _compared(site: Site, p: Partition) -> bool:
    if site.gpu_request == "none":
        return p.gpus_per_node == 0 or p.name == site.cpu_partition
    return p.gpus_per_node > 0


def _is_own(site: Site, p: Partition, partitions: Sequence[Partition]) -> bool:
    """Return True if, by the site's settings, a submission goes to nodes of this kind and no other."""
    if site.gpu_request == "none":
        return p.name == site.cpu_partition
    kinds = [q for q in partitions if q.name == p.name and q.gpus_per_node]
    return p.name == site.gpu_partition and (
        site.gpu_type == p.gpu_type or (not site.gpu_type and len(kinds) == 1)
    )


def fitted(site: Site, p: Partition, layout: Layout) -> dict[str, Any]:
    """Return the settings of `site` that differ on the nodes of `p`: no rank gets more than its share of a node."""
    on_cpus = site.gpu_request == "none"
    most = sizes(p, workers=layout.workers_per_node if on_cpus else p.gpus_per_node)
    lowered = {name: min(getattr(site, name), value) for name, value in most.items() if name != "runtime_min"}
    runtime = {"runtime_min": min(site.runtime_min, lowered["max_runtime_min"])}
    where = {"cpu_partition": p.name} if on_cpus else {"gpu_partition": p.name, "gpu_type": p.gpu_type}
    return where | lowered | runtime


def trade_off(found: Sequence[Offer], now: float | None = None) -> str:
    """Describe the choice in one line: the partition that ends first against the one with the fastest GPUs."""
    now = time.time() if now is None else now
    able = [o for o in found if o.end is not None]
    if not able:
        return "no partition takes it: " + "; ".join(f"{o.partition}: {o.refusal}" for o in found)
    best = able[0]
    fastest = max(able, key=lambda o: (o.speed, -(o.end or 0.0)))
    line = f"{_label(best)}: starts {_when(best.start, now)}, ends {_when(best.end, now)}"
    if fastest.speed > best.speed and best.end is not None and fastest.end is not None:
        gain = fastest.end - best.end
        line = (
            f"{_label(best)} at {best.speed / fastest.speed:.2f}x the speed, starts {_when(best.start, now)}, ends "
            f"{format_duration(gain)} earlier than {_label(fastest)}, which starts {_when(fastest.start, now)}"
        )
    elif len(able) > 1 and able[1].end is not None and best.end is not None:
        gain = able[1].end - best.end
        line += (
            f", {format_duration(gain)} before {_label(able[1])}"
            if gain >= 60
            else f", as does {_label(able[1])}"
        )
    unknown = sorted({o.gpu_type or o.partition for o in able if not o.speed_known})
    if unknown and len({o.gpu_type for o in able}) > 1:
        line += f" (speed of {', '.join(unknown)} not in site.gpu_speed: taken as 1)"
    return line


def _label(o: Offer) -> str:
    return f"{o.partition} ({o.gpu_type})" if o.gpu_type else o.partition


def _when(at: float | None, now: float) -> str:
    if at is None:
        return "never"
    return "now" if at - now < 60 else f"in {format_duration(at - now)}"


def choose(layout: Layout, site: Site, runtime_s: float) -> Offer | None:
    """Find the partition where `layout` would end first; None if none takes it."""
    able = [o for o in offers(layout, read_partitions(), site, runtime_s) if o.end is not None]
    return able[0] if able else None


def run(
    layouts: Sequence[Layout], site: Site, predictions: Mapping[Layout, Prediction], *, as_json: bool = False
) -> tuple[str, list[Layout]]:
    """Return text (or JSON) for `dist3dgs partitions`, and the layouts that no partition takes."""
    partitions = read_partitions()
    found = {
        layout: offers(layout, partitions, site, predictions[layout].seconds)
        for layout in dict.fromkeys(layouts)
    }
    refused = [layout for layout, offered in found.items() if all(o.end is None for o in offered)]
    if as_json:
        answer = {
            str(layout): {
                "runtime_s": predictions[layout].seconds,
                "runtime_most_s": predictions[layout].most_s,
                "runtime_from": predictions[layout].source,
                "offers": [asdict(offer) for offer in offered],
            }
            for layout, offered in found.items()
        }
        return json.dumps(answer), refused
    tables = [_table(layout, predictions[layout], offered, site) for layout, offered in found.items()]
    queued = [
        f"  job {job.id} {job.comment}: {describe(job)}" for job in Queue().jobs() if job.state == "PENDING"
    ]
    return "\n\n".join(
        [*tables, *(["\n".join(["queued from this folder:", *queued])] if queued else [])]
    ), refused


def _table(layout: Layout, predicted: Prediction, found: Sequence[Offer], site: Site) -> str:
    now = time.time()
    devices = "CPUs" if site.gpu_request == "none" else "the fastest GPUs"
    most = "" if predicted.most_s is None else f", at most {format_duration(predicted.most_s)}"
    lines = [f"{layout}, {format_duration(predicted.seconds)}{most} on {devices} ({predicted.source})"]
    for o in found:
        times = (
            o.refusal or f"starts {_when(o.start, now)}, ends {_when(o.end, now)}{_with_settings(o, site)}"
        )
        lines.append(f"  {o.partition:<16} {o.gpu_type or '-':<10} {o.speed:>5.2f}x  {times}")
    if not found:
        lines.append(
            f"  this cluster has no partition {'without' if devices == 'CPUs' else 'with'} GPUs that is up"
        )
    return "\n".join([*lines, f"  -> {trade_off(found, now)}"] if found else lines)


#: Settings of the site block that a job asks with, beside its partition.
_OF_A_JOB = ("gpu_type", "cpus_per_gpu", "mem_gib_per_gpu", "runtime_min")


def _with_settings(o: Offer, site: Site) -> str:
    """Format the settings that differ in this partition, as ` (with gpu_type: l40s)`."""
    known = site.model_dump()
    changed = {k: v for k, v in o.settings.items() if v != known[k] and k in _OF_A_JOB}
    return f" (with {', '.join(f'{k}: {v}' for k, v in changed.items())})" if changed else ""
