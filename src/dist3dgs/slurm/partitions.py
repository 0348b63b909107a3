"""Where a layout would start first and end first: `dist3dgs partitions`.

Partitions come from sinfo and scontrol, the start from `sbatch --test-only` (the scheduler's own plan of the queue),
the end from that start plus the run time, longer on slower GPUs. Estimates age: a job that ends early or a new
one with a higher priority moves them.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import UserError
from ..names import Layout
from .commands import (
    SlurmError,
    blocks,
    format_time,
    parse_gpus,
    parse_mem_mb,
    parse_time_s,
    require,
    rows,
    slurm,
)
from .settings import Site
from .submission import Refusal, test_only


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition and its largest kind of node."""

    name: str
    default: bool
    up: bool
    max_time_s: float
    max_nodes: float
    num_nodes: int
    num_idle: int
    cpus_per_node: int
    mem_mb_per_node: float
    gpus_per_node: int
    gpu_type: str | None
    priority: int
    preemptible: bool


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one partition would do with one layout. Times are Unix seconds."""

    partition: str
    gpu_type: str | None
    speed: float
    speed_known: bool
    start: float | None
    end: float | None
    refusal: str | None = None


def read_partitions() -> list[Partition]:
    """All partitions this user can see. Raises `UserError` where Slurm does not answer."""
    require()
    try:
        lines = rows(slurm("sinfo", "-h", "-e", "-o", "%R|%a|%l|%D|%c|%m|%G|%T"), 8)
        shown = {b["PartitionName"]: b for b in blocks(slurm("scontrol", "-o", "show", "partition"))}
        preempts = (
            "PreemptType" in (config := slurm("scontrol", "show", "config")) and "preempt/none" not in config
        )
    except SlurmError as e:
        raise UserError(f"cannot read the cluster's partitions: {e}") from None
    tiers = [int(b.get("PriorityTier", "1")) for b in shown.values()]
    found = []
    for name in dict.fromkeys(line[0] for line in lines):
        block, mine = shown.get(name, {}), [line for line in lines if line[0] == name]
        gpus = [parse_gpus(line[6]) for line in mine]
        most = max(gpus, key=lambda g: sum(g.values()), default={})
        tier = int(block.get("PriorityTier", "1"))
        found.append(
            Partition(
                name=name,
                default=block.get("Default") == "YES",
                up=mine[0][1] == "up",
                max_time_s=parse_time_s(mine[0][2].replace("infinite", "UNLIMITED")),
                max_nodes=float(block["MaxNodes"]) if block.get("MaxNodes", "").isdigit() else math.inf,
                num_nodes=sum(int(line[3]) for line in mine),
                num_idle=sum(int(line[3]) for line in mine if line[7].startswith("idle")),
                cpus_per_node=max(int(line[4].rstrip("+")) for line in mine),
                mem_mb_per_node=max(parse_mem_mb(line[5]) for line in mine),
                gpus_per_node=sum(most.values()),
                gpu_type=next(iter(most), "") or None,
                priority=tier,
                preemptible=preempts and block.get("PreemptMode", "OFF") != "OFF" and tier < max(tiers),
            )
        )
    return found


def offers(layout: Layout, partitions: Sequence[Partition], site: Site, runtime_s: float) -> list[Offer]:
    """What each partition with GPUs would do with `layout`, those that end first first.

    `runtime_s` is the predicted run time on the fastest GPU type (speed 1).
    """
    from .resources import layout_resources

    found = []
    for p in partitions:
        if not p.up or p.gpus_per_node < 1:
            continue
        known = p.gpu_type in site.gpu_speed
        speed = site.gpu_speed.get(p.gpu_type or "", 1.0)
        need_s = runtime_s / speed
        here = site.model_copy(update={"gpu_partition": p.name, "gpu_type": p.gpu_type})
        request = layout_resources(layout, here)
        request["runtime"] = max(1, math.ceil(need_s / 60))
        refusal = _too_small(p, layout) or test_only(request, site.account)
        if isinstance(refusal, str) or refusal.refusal:
            text = refusal if isinstance(refusal, str) else _short(refusal.refusal)
            found.append(_offer(p, speed, known, None, None, text))
            continue
        start = max(time.time(), _unix(refusal.start or "") or time.time())
        found.append(_offer(p, speed, known, start, start + need_s, None))
    return sorted(found, key=lambda o: (o.end is None, o.end or 0.0, o.start or 0.0))


def _offer(
    p: Partition, speed: float, known: bool, start: float | None, end: float | None, why: str | None
) -> Offer:
    return Offer(
        partition=p.name,
        gpu_type=p.gpu_type,
        speed=speed,
        speed_known=known,
        start=start,
        end=end,
        refusal=why,
    )


def _too_small(p: Partition, layout: Layout) -> str | None:
    if layout.nodes > min(p.num_nodes, p.max_nodes):
        return f"{layout.nodes} nodes asked for, {int(min(p.num_nodes, p.max_nodes))} there"
    if layout.workers_per_node > p.gpus_per_node:
        return f"{layout.workers_per_node} GPUs per node asked for, {p.gpus_per_node} there"
    return None


def _short(refusal: Refusal | None) -> str:
    return refusal.reason if refusal else ""


def trade_off(found: Sequence[Offer], now: float | None = None) -> str:
    """The choice in one line: the partition that ends first against the one with the fastest GPUs."""
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
            f"{format_time(gain)} earlier than {_label(fastest)}, which starts {_when(fastest.start, now)}"
        )
    elif len(able) > 1 and able[1].end is not None and best.end is not None:
        gain = able[1].end - best.end
        line += (
            f", {format_time(gain)} before {_label(able[1])}"
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
    return "now" if at - now < 60 else f"in {format_time(at - now)}"


def choose(layout: Layout, site: Site, runtime_s: float) -> Offer | None:
    """The partition where `layout` would end first; None if none takes it."""
    able = [o for o in offers(layout, read_partitions(), site, runtime_s) if o.end is not None]
    return able[0] if able else None


def run(
    layouts: Sequence[Layout],
    site: Site,
    runtimes_s: Mapping[Layout, float] | None = None,
    *,
    as_json: bool = False,
) -> str:
    """Text (or JSON) for `dist3dgs partitions`: per layout the offers and the choice."""
    partitions = read_partitions()
    answer = {}
    for layout in layouts:
        runtime_s = (runtimes_s or {}).get(layout, site.runtime_min * 60.0)
        answer[str(layout)] = (runtime_s, offers(layout, partitions, site, runtime_s))
    if as_json:
        return json.dumps(
            {k: {"runtime_s": r, "offers": [asdict(o) for o in v]} for k, (r, v) in answer.items()}
        )
    return "\n\n".join(_table(name, runtime_s, found) for name, (runtime_s, found) in answer.items())


def _table(layout: str, runtime_s: float, found: Sequence[Offer]) -> str:
    now = time.time()
    lines = [f"{layout}, {format_time(runtime_s)} on the fastest GPUs"]
    for o in found:
        times = o.refusal or f"starts {_when(o.start, now)}, ends {_when(o.end, now)}"
        lines.append(f"  {o.partition:<16} {o.gpu_type or '-':<10} {o.speed:>5.2f}x  {times}")
    return "\n".join([*lines, f"  -> {trade_off(found, now)}"])


def _unix(text: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
