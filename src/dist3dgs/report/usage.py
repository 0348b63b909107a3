"""Show what the runs used: memory, utilisation, power and energy, from the samples beside the records."""

from collections.abc import Sequence
from typing import Any

from ..analysis import QUALITY_TOLERANCE_DB, rank_hours, rank_unit
from ..analysis.resource_usage import Samples, copy_command, energy_wh, read_chain, samples_elsewhere
from ..runs.record import RunRecord
from . import numbers
from .content import Content, Row
from .failures import name
from .markup import Html, join, table, tag, without_empty

_MAX_ROWS = 64
_MAX_NAMES = 8
_HEAD = (
    *("run", "where", "memory GiB: peak", "average", "mode", "use %: peak", "average", "mode"),
    *("power W: average", "energy Wh"),
)
#: Network: of the whole node, so also what others on it sent. Disk: of the job's own processes.
_COUNTERS = (
    *("net_tx_bytes", "net_rx_bytes", "ib_tx_bytes", "ib_rx_bytes", "disk_read_bytes", "disk_write_bytes"),
)
_COST_HEAD = (
    "run",
    "cost",
    "PSNR",
    "over the baseline",
    "rank-minutes per dB gained",
    "energy Wh",
    "Wh per dB gained",
    *("sent MiB", "received MiB", "sent by InfiniBand", "received by it", "read MiB", "written MiB"),
)


def section(content: Content) -> Html:
    sampled = [
        (record, samples)
        for record, path in zip(content.records, content.paths, strict=True)
        if (samples := read_chain(path.parent))
    ]
    elsewhere = _elsewhere(content)
    imported = [row for record in content.records for row in _imported(record)]
    if not sampled and not imported:
        return elsewhere or tag("p", "No resource samples lie beside these records.", class_="missing")
    rows = [*imported, *(row for record, samples in sampled for row in _rows(record, samples))]
    tables = [
        elsewhere,
        table(*without_empty(_HEAD, rows[:_MAX_ROWS]), numbers_from=2),
        tag(
            "p",
            f"First {_MAX_ROWS} of {len(rows)} rows. " if len(rows) > _MAX_ROWS else None,
            "Host: all processes of the job on a node, shared pages once; 100 % is one core. GPU: memory in use on the "
            "card, utilisation as the driver states it. Mode: the most frequent value.",
            class_="note",
        ),
    ]
    if not sampled:
        return join(tables)
    runs = {(r["scene"], r["strategy"], r["layout"], r["repeat"]): r for r in content.runs}

    def row_of(record: RunRecord) -> Row:
        run = record.run
        return runs.get((run.scene, run.strategy, run.layout, run.repeat), {})

    tables += [
        tag("h3", "Cost"),
        table(
            *without_empty(_COST_HEAD, [_cost(r, row_of(r), s) for r, s in sampled[:_MAX_ROWS]]),
            numbers_from=1,
        ),
        tag(
            "p",
            "Cost: wall time of all ranks that were allocated. Per dB gained: cost beyond the baseline's over the "
            f"decibels beyond the baseline's, where these are more than {QUALITY_TOLERANCE_DB} dB. Energy: power "
            "integrated over the samples of all GPUs, where power was sampled, over all attempts that the run's time "
            "adds up. Sent and received: counters of the nodes, whoever used them. Read and written: by the job's own "
            "processes.",
            class_="note",
        ),
    ]
    return join(tables)


def _elsewhere(content: Content) -> Html | None:
    """Say which runs' samples were not copied with their records, what lacks them, and how to get them."""
    found = samples_elsewhere(content.records, content.paths)
    if not found:
        return None
    names = [name(record) for record, _ in found]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    hosts = ", ".join(sorted({host for record, _ in found for host in record.environment.hosts})[:_MAX_NAMES])
    return tag(
        "p",
        f"The resource samples of {', '.join(names[:_MAX_NAMES])}{more} are not beside their records, so this "
        "section, the figure of resources, resources.csv and the energy and utilisation in runs.csv lack them; all "
        f"else is made from the records alone. They are where the runs were made{f' (on {hosts})' if hosts else ''}: ",
        tag("code", copy_command(found[0][1])),
        " and make the tables, figures and this page again.",
        class_="missing",
    )


def _rows(record: RunRecord, samples: Sequence[Samples]) -> list[tuple[Any, ...]]:
    """Return one row per node, and one per GPU."""
    places = list(dict.fromkeys((s.node, s.gpu) for s in samples))
    rows = []
    for node, gpu in sorted(places, key=lambda x: (x[0], -1 if x[1] is None else x[1])):
        by = {s.quantity: s for s in samples if (s.node, s.gpu) == (node, gpu)}
        memory = by.get("pss_gib" if gpu is None else "gpu_mem_gib")
        use = by.get("cpu_percent" if gpu is None else "gpu_util_percent")
        power = by.get("gpu_power_w")
        energy = energy_wh(list(by.values()))
        rows.append(
            (
                name(record),
                f"host {node}" if gpu is None else f"GPU {gpu} of {node}",
                *_three(memory, 3),
                *_three(use, 3),
                None if power is None else numbers.plain(power.average),
                None if energy is None else numbers.plain(energy),
            )
        )
    return rows


def _imported(record: RunRecord) -> list[tuple[Any, ...]]:
    """Return one row per GPU, as the log of another program has it."""
    return [
        (
            name(record),
            f"GPU {gpu.gpu}",
            *(
                numbers.plain(v, 3)
                for v in (gpu.memory_peak_gib, gpu.memory_average_gib, gpu.memory_mode_gib)
            ),
            *(None, numbers.plain(gpu.utilisation_average_percent, 3), None),
            numbers.plain(gpu.power_average_w),
            numbers.plain(gpu.energy_wh),
        )
        for gpu in record.metrics.gpus
    ]


def _three(samples: Samples | None, digits: int) -> tuple[str | None, ...]:
    values = (None,) * 3 if samples is None else (samples.peak, samples.average, samples.mode)
    return tuple(numbers.plain(v, digits) for v in values)


def _cost(record: RunRecord, row: Row, samples: Sequence[Samples]) -> tuple[Any, ...]:
    """Return one run's cost. row: of runs.csv."""
    gained, hours_per_db = row.get("psnr_over_baseline_db"), row.get("rank_hours_per_db_gained")
    return (
        name(record),
        numbers.hours(rank_hours(record), rank_unit(record)),
        numbers.decibel(record.metrics.psnr),
        None if gained is None else f"{gained:+z.2f}\u00a0dB",
        None if hours_per_db is None else numbers.plain(60 * hours_per_db),
        numbers.plain(energy_wh(samples)),
        numbers.plain(row.get("wh_per_db_gained")),
        *(_grown(samples, counter) for counter in _COUNTERS),
    )


def _grown(samples: Sequence[Samples], quantity: str) -> str | None:
    """MiB that a counter rose by while the job lived, all nodes together."""
    found = [s.growth() for s in samples if s.quantity == quantity]
    return numbers.count(sum(found) / 2**20) if found else None
