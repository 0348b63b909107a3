"""Parse progress lines of many trainers' consoles.

A format is searched for in whole blocks of a log, and only after one of its lines was seen. Each step counts once:
nerfstudio draws its table anew with every row, eight ranks print the same step, a progress bar is redrawn.
"""

# ruff: noqa: E501 (a pattern is read best on one line)

import calendar
import re
from collections.abc import Sequence

from ..units import parse_duration_s
from .step_series import ProgressLine, StepFormat

MULTIPLE = {b"": 1.0, b"K": 1e3, b"M": 1e6, b"B": 1e9}


def _number(text: bytes) -> float:
    return float(text.replace(b",", b""))


def _int(text: bytes) -> int | None:
    return int(text) if text else None


def _nerfstudio(g: Sequence[bytes]) -> ProgressLine:
    rate = re.search(rb" ([\d.]+) ?([KMB]?)$", g[3].rstrip())
    return ProgressLine(
        int(g[0]),
        percent=float(g[1]),
        seconds=parse_duration_s(g[2].decode()) if g[2] else None,
        rate=float(rate[1]) * MULTIPLE[rate[2]] if rate else None,
    )


def _tqdm(g: Sequence[bytes]) -> ProgressLine:
    rate = float(g[3])
    seconds = rate if g[4] == b"s/it" else (1 / rate if rate > 0 else None)
    return ProgressLine(int(g[0]), int(g[1]), seconds=seconds, elapsed_s=parse_duration_s(g[2].decode()))


def _megatron(g: Sequence[bytes]) -> ProgressLine:
    return ProgressLine(int(g[0]), int(g[1]), seconds=float(g[3]) * (1e-3 if g[2] == b"ms" else 1))


def _epoch(g: Sequence[bytes]) -> ProgressLine:
    unit = f"{g[4].decode().replace('images', 'img')}/s" if g[4] else None
    return ProgressLine(int(g[0]), _int(g[1]), seconds=float(g[2]) if g[2] else None, rate=_number(g[3]) if g[3] else None, rate_unit=unit)  # fmt: skip


def _stamped(g: Sequence[bytes]) -> ProgressLine:
    """Parse a step on a line that begins with date and time: year, month, day, hour, minute, second, its fraction."""
    date = tuple(int(x) for x in g[:6])
    if not (1 <= date[1] <= 12 and 1 <= date[2] <= 31 and date[3] < 24 and date[4] < 60 and date[5] < 62):
        raise ValueError("no such time")
    clock_s = calendar.timegm(date) + (float(b"0." + g[6]) if g[6] else 0.0)
    return ProgressLine(int(g[7]), _int(g[8]), clock_s=clock_s)


NUM = rb"([\d.]+)"
#: `time: 42.3s`, `time=42.34s`, `epoch_time=42.34s`, `Time 42.34 s`.
EPOCH_TIME = rb"(?:\b|_)[Tt]ime[:=]? *"
STAMP = rb"(?m)^[^\n]{0,24}?\b(20\d\d)[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?"
KEY_VALUE = (
    rb"(?:\b[Ss]tep|\b[Ii]ter(?:ation)?|opt_step|global_step)s?\]?[ \t=:#\[]+(\d+)(?: ?/ ?(\d+))?\b"
    rb"(?=[^\n]*(?:loss|lr\b|learning rate|samples|tokens|psnr|elapsed))"
)
FORMATS: tuple[StepFormat, ...] = (
    StepFormat(
        "nerfstudio",
        re.compile(rb"(?m)^\r?(\d+) \((\d+\.\d+)%\)(?: +((?:[\d.]+ (?:ms|[dhms])(?:, )?)+))?([^\n\x1b]*)"),
        _nerfstudio,
        rate_unit="rays/s",
        redrawn=True,
        smoothed=True,
        from_zero=True,
        skip_first=20,
    ),
    StepFormat(
        "tqdm",
        re.compile(rb"%\|[^|\n]*\| *(\d+)/(\d+) \[([\d:]+)<[^,\]\n]*, +" + NUM + rb"(it/s|s/it)"),
        _tqdm,
        smoothed=True,
        bar=True,
    ),
    StepFormat(
        "megatron",
        re.compile(rb"iteration +(\d+)/ *(\d+) \|[^\n]*?elapsed time per iteration \((ms|s)\): " + NUM),
        _megatron,
    ),
    StepFormat(
        "epochs",
        re.compile(rb"[Ee]poch[:=]? *\[?(\d+)(?:/(\d+)\]?(?![^\n]*it/s)|(?!\d|\]?[\[/.])(?=[^\n]{0,400}?" + EPOCH_TIME + rb"[\d.]+ ?s\b)(?![^\n]{0,400}(?:it/s|[Bb]atch|[Ss]tep|[Ii]ter)))(?:[^\n]*?" + EPOCH_TIME + NUM + rb" ?s\b)?(?:[^\n]*?\b[Tt]hroughput[:=] *" + NUM + rb" *(img|images|samples|tokens)/s)?"),
        _epoch,
        rate_unit="img/s",
        epochs=True,
    ),
    StepFormat(
        "step dt",
        re.compile(rb"[Ss]tep (\d+)(?:/(\d+))? \([\d.]+%\) \|[^\n]*?dt: ([\d.]+)ms"),
        lambda g: ProgressLine(int(g[0]), _int(g[1]), seconds=float(g[2]) * 1e-3),
    ),
    StepFormat(
        "detectron",
        re.compile(rb"iter: (\d+) [^\n]*?\btime: " + NUM),
        lambda g: ProgressLine(int(g[0]), seconds=float(g[1])),
        smoothed=True,
    ),
    StepFormat(
        "mmengine",
        re.compile(rb"Epoch ?(?:\(train\))? *\[(\d+)\]\[ *(\d+)/(\d+)\][^\n]*?\b[Tt]ime:? +" + NUM),
        lambda g: ProgressLine((int(g[0]) - 1) * int(g[2]) + int(g[1]), seconds=float(g[3])),
    ),
    StepFormat(
        "gsplat stats",
        re.compile(rb"Step: +(\d+) \{[^\n]*?'ellipse_time': " + NUM),
        lambda g: ProgressLine(int(g[0]), elapsed_s=float(g[1])),
        from_zero=True,
    ),
    StepFormat(
        "opensplat", re.compile(rb"Step (\d+): [\d.]+ \(\d+%\)"), lambda g: ProgressLine(int(g[0]))
    ),
    StepFormat("key value with time", re.compile(STAMP + rb"[^\n]{0,80}?" + KEY_VALUE), _stamped),
    StepFormat("key value", re.compile(KEY_VALUE), lambda g: ProgressLine(int(g[0]), _int(g[1]))),
    StepFormat(
        "trainer dict",
        re.compile(rb"\{'loss': [^\n]*?'epoch': " + NUM + rb"\}"),
        lambda g: ProgressLine(int(float(g[0]) * 1e6)),
    ),
)  # fmt: skip
