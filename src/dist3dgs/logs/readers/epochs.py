"""Lines of the many small trainers that print one per epoch, and their summary of each GPU's memory."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ...units import parse_duration_s
from .. import attribution
from ..facts import FactPattern, number

_C = re.compile


def _evaluation(m: re.Match[str]) -> tuple[str, float]:
    """Return wording and rank, so that repeated lines count once, and seconds."""
    rank = next((found[1] for p in attribution.RANK_IN_LINE if (found := p.search(m.string))), "")
    return re.sub(r"[\d\W]+", "", m[0]) + rank, number(m[1])


def _gpu_memory(m: re.Match[str]) -> tuple[str, float, float, float]:
    """Return the index of the GPU; peak, average and most frequent MiB."""
    return m[1], number(m[2]), number(m[3]), number(m[4])


_N = r"([\d.]+(?:[eE][+-]?\d+)?)"
_MIB = r"([\d.]+) ?MiB"

FACTS = (
    FactPattern("loss", _C(r"Loss \(train, val\): " + _N), lambda m: number(m[1]), "last", often=True),
    FactPattern("val_loss", _C(r"Loss \(train, val\): [\d.]+, " + _N), lambda m: number(m[1]), "last", often=True),
    FactPattern("train_accuracy", _C(r"Accuracy \(train, val\): ([\d.]+)%"), lambda m: number(m[1]), "last", often=True),
    FactPattern("accuracy", _C(r"Accuracy \(train, val\): [\d.]+%, ([\d.]+)%"), lambda m: number(m[1]), "last", often=True),
    FactPattern("accuracy", _C(r"\b(?:val(?:idation)?|test)[ _]acc(?:uracy)?\s*[:=]\s*([\d.]+) ?%?", re.I), lambda m: number(m[1]), "last", often=True),
    FactPattern("evaluation_s", _C(r"\b[Ee]val(?:uation)?(?:uated)? (?:time|took|done in|finished in|completed in)\s*[:=]?\s*([\d.]+) ?s(?:ec(?:onds?)?)?\b"), _evaluation, "list", often=True),
    FactPattern("gpu_memory", _C(r"^\s*\[[\w.-]+ - GPU (\d+)\] Peak = " + _MIB + ", Avg = " + _MIB + ", Mode = " + _MIB), _gpu_memory, "set", often=True),
    FactPattern("duration_s", _C(r"^\W*Total time\s*:\s*(\d+:\d\d:\d\d)\s*$"), lambda m: parse_duration_s(m[1]), "last"),
    FactPattern("train_s", _C(r"^(?:Total )?[Tt]raining time\s*[:=]\s*([\d.]+) ?s", re.M), lambda m: number(m[1]), "last"),
)  # fmt: skip
