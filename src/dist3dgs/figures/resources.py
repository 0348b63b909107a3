"""What the nodes and GPUs were doing over time, with the phases behind."""

from collections.abc import Sequence
from typing import Any

from ..names import Layout
from ..scaling.resources import Samples, Span, read_samples, read_spans, thin
from . import style
from .study import Study

TITLE = "Resources over time"
CAPTION = (
    "Samples of a run's newest attempt over wall time, one row per run (the first repeat of each layout, at "
    "most six). Left: memory in GiB: of all processes of the job on a node (PSS, shared pages once), of the "
    "node's page cache, and of each GPU. Right: per cent: processor time of the job (100 % is one core) and "
    "utilisation of each GPU. Shaded behind: the phases of rank 0, named at the top. A long run is thinned, "
    "keeping the peak of every stretch."
)
COLUMNS = ("run", "status", "kind", "node", "gpu", "quantity", "phase", "t_s", "end_s", "value")
Row = dict[str, Any]

MAX_RUNS = 6
_NUM_POINTS = 400
_LEFT = {"pss_gib": "job, host", "page_cache_gib": "page cache", "gpu_mem_gib": "GPU"}
_RIGHT = {"cpu_percent": "job, CPU", "gpu_util_percent": "GPU"}
_LOOKS: dict[str, dict[str, Any]] = {
    "pss_gib": {"color": style.BLUE, "linestyle": "-"},
    "page_cache_gib": {"color": style.GREY, "linestyle": (0, (4, 2))},
    "gpu_mem_gib": {"color": style.VERMILLION, "linestyle": (0, (1.2, 1.2))},
    "cpu_percent": {"color": style.BLUE, "linestyle": "-"},
    "gpu_util_percent": {"color": style.VERMILLION, "linestyle": (0, (1.2, 1.2))},
}


def data(study: Study) -> list[Row]:
    rows: list[Row] = []
    num_runs = 0
    for record, path in sorted(zip(study.records, study.paths, strict=True), key=lambda x: _order(x[0])):
        run = record.run
        if run.repeat != min(r.run.repeat for r in study.records if _point(r) == _point(record)):
            continue
        samples = read_samples(path.parent)
        if not samples or num_runs == MAX_RUNS:
            continue
        num_runs += 1
        key = {"run": f"{run.scene} {run.strategy} {run.layout}", "status": record.status}
        rows += _sample_rows(key, samples, read_spans(path.parent))
    return rows


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
    runs = list(dict.fromkeys(r["run"] for r in rows))
    figure = style.new_figure(style.DOUBLE_MM, 12 + 38 * max(len(runs), 1))
    axes = figure.subplots(max(len(runs), 1), 2, squeeze=False)
    if not runs:
        for ax in axes[0]:
            ax.text(
                0.5, 0.5, "no resource samples beside these records", transform=ax.transAxes, ha="center",
                va="center", color=style.GREY,
            )  # fmt: skip
            ax.set_xticks([])
            ax.set_yticks([])
    for (left, right), run in zip(axes, runs, strict=False):
        part = [r for r in rows if r["run"] == run]
        status = "" if part[0]["status"] == "ok" else f" ({part[0]['status']})"
        left.set_title(run + status)
        _panel(left, part, _LEFT, "memory [GiB]")
        _panel(right, part, _RIGHT, "use [%]")
    for ax in axes[-1]:
        ax.set_xlabel("wall time [s]")
    return figure


def _panel(ax: Any, rows: Sequence[Row], quantities: dict[str, str], ylabel: str) -> None:
    from .labels import direct_labels

    ax.set_ylabel(ylabel)
    samples = [r for r in rows if r["kind"] == "sample" and r["quantity"] in quantities]
    ends = []
    lines = list(dict.fromkeys((r["node"], r["gpu"], r["quantity"]) for r in samples))
    for node, gpu, quantity in lines:
        line = [r for r in samples if (r["node"], r["gpu"], r["quantity"]) == (node, gpu, quantity)]
        ax.plot([r["t_s"] for r in line], [r["value"] for r in line], lw=0.9, zorder=3, **_LOOKS[quantity])
        name = quantities[quantity] + ("" if gpu is None else f" {gpu}")
        ends.append((line[-1]["value"], name, style.ink(_LOOKS[quantity]["color"])))
    if not samples:
        return
    last = max(r["t_s"] for r in rows if r["kind"] == "sample")
    ax.set_xlim(0, max(last, 1e-3))
    ax.set_ylim(0, 1.22 * max(max(r["value"] for r in samples), 1e-3))
    _phases(ax, [r for r in rows if r["kind"] == "phase"], last)
    # Many GPUs that do the same would be many equal labels: name each kind once.
    named = {name.rstrip("0123456789 "): (y, name.rstrip("0123456789 "), colour) for y, name, colour in ends}
    direct_labels(ax, list(named.values()), fontsize=6)


def _phases(ax: Any, spans: Sequence[Row], last: float) -> None:
    """Shade the phases; each has its name once, in its longest band, upright where that is narrow."""
    shown = [(max(r["t_s"], 0.0), min(r["end_s"], last), r["phase"]) for r in spans]
    shown = [band for band in shown if band[1] > band[0]]
    longest = {phase: max(e - s for s, e, p in shown if p == phase) for _, _, phase in shown}
    for start, end, phase in shown:
        colour, hatch = style.phase_style(phase)
        ax.axvspan(start, end, facecolor=colour, alpha=0.16, lw=0, hatch=hatch, edgecolor="#333333", zorder=0)
        share = (end - start) / last
        if share > 0.03 and end - start == longest[phase]:
            ax.text(
                (start + end) / 2, 0.97, phase, transform=ax.get_xaxis_transform(), ha="center", va="top",
                fontsize=5.5, color="#333333", rotation=0 if share > 0.09 else 90, zorder=4,
            )  # fmt: skip
