"""Use of nodes and GPUs over time, with the phases behind."""

from collections.abc import Sequence
from typing import Any

from ..analysis.resource_usage import (
    Samples,
    Span,
    copy_command,
    read_samples,
    read_spans,
    samples_elsewhere,
    thin,
)
from ..analysis.tables import phase_order
from ..config.naming import Layout
from . import panels, style, ticks
from .page import Entry, size_mm
from .study import Study

TITLE = "Resources over time"
CAPTION = (
    "Samples of a run's newest attempt over wall time, one row per run (the first repeat of each layout, at "
    "most six). Left: memory in GiB: of all processes of the job on a node (PSS, shared pages once), of the "
    "node's page cache, and of each GPU. Right: per cent: processor time of the job (100 % is one core) and "
    "utilisation of each GPU. The band above a panel: the phases of rank 0. A long run is thinned, keeping the "
    "peak of every stretch."
)
EMPTY = (
    "there are no resource samples beside these records; this figure alone needs the runs' attempts folders, to be "
    "copied from where they ran"
)
COLUMNS = ("run", "status", "kind", "node", "gpu", "quantity", "phase", "t_s", "end_s", "value", "note")
Row = dict[str, Any]

MAX_RUNS = 6
_NUM_POINTS = 400
_BAND_MM = 1.8
_LEFT = ("pss_gib", "page_cache_gib", "gpu_mem_gib")
_RIGHT = ("cpu_percent", "gpu_util_percent")
_JOB = {"color": style.BLUE, "linestyle": "-"}
_GPU = {"color": style.ORANGE, "linestyle": (0, (2.5, 1))}
_LOOKS: dict[str, dict[str, Any]] = {
    "pss_gib": _JOB,
    "cpu_percent": _JOB,
    "gpu_mem_gib": _GPU,
    "gpu_util_percent": _GPU,
    "page_cache_gib": {"color": style.GREY, "linestyle": (0, (1.2, 1.2))},
}
_KEY = {"pss_gib": "host: the job", "page_cache_gib": "host: page cache", "gpu_mem_gib": "each GPU"}


def empty(study: Study) -> str:
    """Say where the samples are that this figure needs, and how to get them."""
    return f"{EMPTY}. {_elsewhere(study)}" if samples_elsewhere(study.records, study.paths) else EMPTY


def _elsewhere(study: Study) -> str:
    found = samples_elsewhere(study.records, study.paths)
    hosts = sorted({host for record, _ in found for host in record.environment.hosts})
    where = f" on {', '.join(hosts[:4])}{' …' if len(hosts) > 4 else ''}" if hosts else ""
    return f"{len(found)} runs were sampled{where}: {copy_command(found[0][1])}"


def data(study: Study) -> list[Row]:
    """Return rows of samples and phases, and of notes on what is not drawn."""
    rows: list[Row] = []
    num_runs = num_more = 0
    for record, path in sorted(zip(study.records, study.paths, strict=True), key=lambda x: _order(x[0])):
        run = record.run
        if run.repeat != min(r.run.repeat for r in study.records if _point(r) == _point(record)):
            continue
        samples = read_samples(path.parent)
        if not samples:
            continue
        if num_runs == MAX_RUNS:
            num_more += 1
            continue
        num_runs += 1
        key = {"run": f"{run.scene} {run.strategy} {run.layout}", "status": record.status}
        rows += _sample_rows(key, samples, read_spans(path.parent))
    notes = [f"{num_more} more layouts were sampled: see resources.csv"] if num_more else []
    if rows and samples_elsewhere(study.records, study.paths):
        notes.append(f"Not here: {_elsewhere(study)}")
    return [*rows, *({"kind": "note", "note": note} for note in notes)]


def _point(record: Any) -> tuple[str, str, str]:
    return record.run.scene, record.run.strategy, record.run.layout


def _order(record: Any) -> tuple[Any, ...]:
    layout = Layout.parse(record.run.layout)
    return record.run.scene, record.run.strategy, layout.world_size, layout, record.run.repeat


def _sample_rows(key: Row, samples: Sequence[Samples], spans: Sequence[Span]) -> list[Row]:
    start = min(s.times[0] for s in samples)
    rows = [
        key
        | {
            "kind": "phase",
            "phase": s.phase,
            "t_s": round(s.start - start, 3),
            "end_s": round(s.end - start, 3),
        }
        for s in spans
    ]
    for s in samples:
        if s.quantity in _LOOKS:
            times, values = thin(s, _NUM_POINTS)
            rows += [
                key | {"kind": "sample", "node": s.node, "gpu": s.gpu, "quantity": s.quantity}
                | {"t_s": round(t - start, 3), "value": v}
                for t, v in zip(times, values, strict=True)
            ]  # fmt: skip
    return rows


def plot(rows: list[Row]) -> Any:
    """Return a row per run: memory, use."""
    notes = [r["note"] for r in rows if r["kind"] == "note"]
    rows = [r for r in rows if r["kind"] != "note"]
    runs = list(dict.fromkeys(r["run"] for r in rows))
    titles = []
    for run in runs:
        status = next(r["status"] for r in rows if r["run"] == run)
        titles += [(run if status == "ok" else f"{run} ({status})", ""), ("", "")]
    sheet = panels.Sheet(
        titles=titles,
        columns=2,
        headings=("Memory [GiB]", "Use [%], 100 % is one core or one GPU"),
        xlabel="wall time [s]",
        ylabel="",
        ticks_mm=3.0,
        band_mm=_BAND_MM,
        own_x=True,
    )
    figure, axes = sheet.draw(key=_key(rows), notes=notes)
    for i, run in enumerate(runs):
        part = [r for r in rows if r["run"] == run]
        _panel(axes[2 * i], part, _LEFT)
        _panel(axes[2 * i + 1], part, _RIGHT)
    return figure


def _key(rows: Sequence[Row]) -> list[Entry]:
    quantities = {r.get("quantity") for r in rows}
    phases = phase_order({r["phase"] for r in rows if r["kind"] == "phase"})
    entries = [Entry(name, _LOOKS[q]) for q, name in _KEY.items() if q in quantities]
    return entries + [Entry(phase, style.phase_look(phase)) for phase in phases]


def _panel(ax: Any, rows: Sequence[Row], quantities: Sequence[str]) -> None:
    samples = [r for r in rows if r["kind"] == "sample" and r["quantity"] in quantities]
    if not samples:
        panels.say(ax, "not sampled")
        return
    for node, gpu, quantity in dict.fromkeys((r["node"], r["gpu"], r["quantity"]) for r in samples):
        line = [r for r in samples if (r["node"], r["gpu"], r["quantity"]) == (node, gpu, quantity)]
        ax.plot([r["t_s"] for r in line], [r["value"] for r in line], lw=0.9, zorder=3, **_LOOKS[quantity])
    last = max(r["t_s"] for r in rows if r["kind"] == "sample")
    ax.set_xlim(0, max(last, 1e-3))
    ax.set_ylim(0, 1.08 * max(max(r["value"] for r in samples), 1e-3))
    ax.xaxis.set_major_locator(ticks.linear(size_mm(ax)[0] / 1.5))
    ax.yaxis.set_major_locator(ticks.linear(size_mm(ax)[1]))
    _band(ax, [r for r in rows if r["kind"] == "phase"], last)


def _band(ax: Any, spans: Sequence[Row], last: float) -> None:
    """Phases as a strip on top of the panel, clear of the curves."""
    from matplotlib.patches import Rectangle

    height = _BAND_MM / size_mm(ax)[1]
    for r in spans:
        start, end = max(r["t_s"], 0.0), min(r["end_s"], last)
        if end > start:
            strip = Rectangle((start, 1.0), end - start, height, **style.phase_look(r["phase"]))
            strip.set(transform=ax.get_xaxis_transform(), clip_on=False, gid="phase")
            ax.add_patch(strip)
