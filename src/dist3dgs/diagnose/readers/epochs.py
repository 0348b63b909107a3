"""Workshop-style lines, one per epoch, and the loss and accuracy that many small trainers print."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from .. import where
from ..facts import FactPattern, number

_C = re.compile


def _evaluation(m: re.Match[str]) -> tuple[str, float]:
    """Wording and rank, so that what is told twice counts once, and seconds."""
    rank = next((found[1] for p in where.RANK_IN_LINE if (found := p.search(m.string))), "")
    return re.sub(r"[\d\W]+", "", m[0]) + rank, number(m[1])


_N = r"([\d.]+(?:[eE][+-]?\d+)?)"

FACTS = (
    FactPattern("loss", _C(r"Loss \(train, val\): " + _N), lambda m: number(m[1]), "last", often=True),
    FactPattern("val_loss", _C(r"Loss \(train, val\): [\d.]+, " + _N), lambda m: number(m[1]), "last", often=True),
    FactPattern("train_accuracy", _C(r"Accuracy \(train, val\): ([\d.]+)%"), lambda m: number(m[1]), "last", often=True),
    FactPattern("accuracy", _C(r"Accuracy \(train, val\): [\d.]+%, ([\d.]+)%"), lambda m: number(m[1]), "last", often=True),
    FactPattern("accuracy", _C(r"\b(?:val(?:idation)?|test)[ _]acc(?:uracy)?\s*[:=]\s*([\d.]+) ?%?", re.I), lambda m: number(m[1]), "last", often=True),
    FactPattern("evaluation_s", _C(r"\b[Ee]val(?:uation)?(?:uated)? (?:time|took|done in|finished in|completed in)\s*[:=]?\s*([\d.]+) ?s(?:ec(?:onds?)?)?\b"), _evaluation, "list", often=True),
    FactPattern("train_s", _C(r"^(?:Total )?[Tt]raining time\s*[:=]\s*([\d.]+) ?s", re.M), lambda m: number(m[1]), "last"),
)  # fmt: skip
