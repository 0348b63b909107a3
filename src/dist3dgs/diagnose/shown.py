"""The summary of a job as text for a terminal."""

import time
from collections.abc import Iterator

from .machines import GpuUse, HostUse
from .summary import LogSummary, ReadFile

LABELS = (16, 28)  # width of the first column, at least and at most
#: What consoles draw around a banner.
BOX = " ─╭╮╰╯│═=#*-"


def lines(s: LogSummary) -> list[str]:
    """What the files tell, one topic a line; below it what they do not tell, and why."""
    topics = list(_topics(s))
    width = min(max([LABELS[0], *(len(name) for name, _ in topics)]), LABELS[1])
    shown = [
        f"{name if i == 0 else '':<{width}} {value}".rstrip()
        for name, values in topics
        for i, value in enumerate(values)
    ]
    unknown = [f"  {name:<{width - 2}} {reason}" for name, reason in s.reasons.items()]
    return [*shown, *(["not known", *unknown] if unknown else [])]


def _topics(s: LogSummary) -> Iterator[tuple[str, list[str]]]:
    if s.job_id or s.job_name:
        yield "job", ["  ".join(x for x in (s.job_id, s.job_name) if x)]
    yield "files", [_file(f) for f in s.files]
    if s.trainer:
        yield "trainer", [s.trainer]
    if s.nodes:
        yield "nodes", [_names(s.nodes)]
    if s.devices_asked or s.devices_used:
        yield "devices", [f"{_or_unknown(s.devices_asked)} asked for, {_or_unknown(s.devices_used)} used"]
    if s.started_at is not None:
        yield "started", [time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(s.started_at))]
    if s.total_s is not None:
        yield "total", [duration(s.total_s)]
    whole = s.total_s if s.total_s and sum(s.phases_s.values()) <= 1.01 * s.total_s else None
    for name, seconds in s.phases_s.items():
        share = f"{100 * seconds / whole:4.0f} %" if whole else ""
        yield f"  {name}", [f"{duration(seconds):<24}{share}"]
    if s.iterations is not None:
        yield (
            "iterations",
            [f"{s.iterations:,}" + (f" of {s.iterations_asked:,}" if s.iterations_asked else "")],
        )
    if s.epochs is not None:
        yield "epochs", [f"{s.epochs:,}"]
    yield from _pace(s)
    if s.throughput:
        yield (
            "throughput",
            [f"{_amount(r.mean)} {r.unit} on average, {_amount(r.last)} at the end" for r in s.throughput],
        )
    if s.quality:
        yield "quality", [f"{name} {value:.5g}" for name, value in s.quality.items()]
    if s.num_gaussians is not None:
        yield "gaussians", [f"{s.num_gaussians:,}"]
    for g in s.gpus:
        yield f"gpu {g.gpu}", list(_gpu(g))
    if s.gpu_peak_gib is not None and not s.gpus:
        yield "gpu memory", [f"peak {s.gpu_peak_gib:.2f} GiB"]
    for h in s.hosts:
        yield f"host {h.host}", [_host(h)]
    if s.host_peak_gib is not None and not s.hosts:
        yield "host memory", [f"peak {s.host_peak_gib:.2f} GiB"]
    for name, end in (("finished", s.finished), ("ended", s.ended if s.finished is None else None)):
        if end is not None:
            yield name, [end.text.strip(BOX), f"({end.file}{f':{end.line}' if end.line else ''})"]


def _pace(s: LogSummary) -> Iterator[tuple[str, list[str]]]:
    t = s.step_s or s.step_s_shown
    if t is None:
        return
    kind = {"moving average": "as a moving average", "between lines": "from the times on the lines"}
    notes = [kind[s.step_s_kind]] if s.step_s_kind in kind else []
    if s.steps_shown:
        what = "epochs" if s.step_s_kind == "per epoch" else "steps"
        notes.append(f"only of {what} {s.steps_shown[0]:,} to {s.steps_shown[1]:,}")
    if s.step_s_sampled:
        notes.append("of a sample")
    values = ((t.median, "median"), (t.mean, "mean"), (t.p5, "5th"), (t.p95, "95th percentile"))
    text = ", ".join(f"{name} {_short(value)}" for value, name in values)
    yield (
        "epoch time" if s.step_s_kind == "per epoch" else "step time",
        [text, *([f"({'; '.join(notes)})"] if notes else [])],
    )


def _file(f: ReadFile) -> str:
    if f.note and not f.bytes:
        return f"{f.path}: {f.note}"
    size = f"{f.format}, {_size(f.bytes)}" + (f", {_count(f.lines, 'line')}" if f.lines else "")
    return f"{f.path} ({size})" + (f": {f.note}" if f.note else "")


def _gpu(g: GpuUse) -> Iterator[str]:
    if g.name:
        yield g.name
    if g.memory_peak_gib is not None:
        values = (("peak", g.memory_peak_gib), ("average", g.memory_average_gib), ("mode", g.memory_mode_gib))
        yield "memory " + ", ".join(f"{name} {value:.2f}" for name, value in values) + " GiB"
    use = []
    if g.utilisation_average_percent is not None:
        use.append(f"busy {g.utilisation_average_percent:.0f} %")
    if g.power_average_w is not None:
        use.append(f"power {g.power_average_w:.0f} W")
    if g.energy_wh is not None:
        use.append(f"energy {g.energy_wh:.3g} Wh")
    over = f" over {duration(g.seconds)}" if g.seconds else ""
    sampled = _count(g.num_samples, "sample") if g.num_samples else "as the log states"
    yield ", ".join(use) + (", " if use else "") + sampled + over


def _host(h: HostUse) -> str:
    parts = []
    if h.memory_peak_gib is not None:
        parts.append(f"memory peak {h.memory_peak_gib:.2f}, average {h.memory_average_gib:.2f} GiB")
    if h.cpu_average_percent is not None:
        peak = f", peak {h.cpu_peak_percent:.0f} %" if h.cpu_peak_percent is not None else ""
        parts.append(f"CPU average {h.cpu_average_percent:.0f} %{peak}")
    return "; ".join([*parts, _count(h.num_samples, "sample")])


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:6])} ... {names[-1]} ({len(names)})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """`617 s (10 min 17 s)`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    words = f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
    return f"{whole:,} s ({words})"


def _short(seconds: float) -> str:
    """Three digits and the unit that suits them."""
    return (
        f"{seconds * 1e3:.3g} ms"
        if seconds < 0.9995
        else f"{seconds:.3g} s"
        if seconds < 999.5
        else f"{seconds:,.0f} s"
    )


def _amount(value: float) -> str:
    return f"{value / 1e6:.4g} M" if value >= 1e6 else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} B"
