"""The one table of rules. What a line belongs to is decided by the first rule that takes it, so the order is from
the most specific wording to the most general."""

from collections.abc import Iterator, Sequence

from ..facts import Line
from ..words import WordIndex
from . import communication, data, gpu, host, scheduler, software
from .rule import Hit, Rule, Tier

_BY_NAME = {r.name: r for m in (scheduler, host, gpu, communication, software, data) for r in m.RULES}

RULES: tuple[Rule, ...] = tuple(
    _BY_NAME[name]
    for name in (
        "submission-refused", "node-lost", "oom-killer", "shared-memory", "cache-not-writable", "disk-full",
        "host-allocation-failed",
        "gpu-hardware", "oom-on-an-empty-gpu", "gpu-oom", "device-assert", "kernel-fault", "gpu-fault",
        "ddp-parameters-differ", "ddp-unused-parameters", "ranks-beyond-the-world", "duplicate-gpu",
        "port-in-use", "port-warned",
        "extension-build", "diverged", "collapsed", "no-points", "sfm-failed", "corrupt-data",
        "time-limit", "preempted", "cancelled",
        "collective-timeout", "nccl-network", "rendezvous", "nccl-error", "no-step", "peer-lost",
        "environment", "command-line", "settings", "torch-misuse", "exception", "ignored-exception", "bare-exception",
        "segmentation-fault", "bus-error", "illegal-instruction", "floating-point-exception", "aborted", "other-signal",
        "signal-from-outside", "killed-by-signal", "killed", "terminated",
        "loader-worker-gone", "worker-failed", "terminate", "module-unknown",
    )
)  # fmt: skip
assert len(RULES) == len(_BY_NAME), "every rule has its place in the order"

_PATTERNS = [(rule, i) for rule in RULES for i in range(len(rule.patterns))]
_INDEX = WordIndex([rule.patterns[i] for rule, i in _PATTERNS])


def candidates(texts: Sequence[str]) -> list[list[int]]:
    """For each text what `takers` has to try, found for all of them at once."""
    return _INDEX.candidates_of(texts)


def takers(text: str, tried: Sequence[int] | None = None) -> Iterator[tuple[Rule, int]]:
    """The rules whose wording `text` has, in the table's order, each with its first pattern that is found."""
    last: Rule | None = None
    for at in _INDEX.candidates(text) if tried is None else tried:
        rule, i = _PATTERNS[at]
        if rule is last or not rule.patterns[i].search(text):
            continue
        last = rule
        if rule.unless is None or not rule.unless.search(text):
            yield rule, i


def classify(text: str, frames: Sequence[str] = (), steps: int = 0) -> Rule | None:
    """The rule that takes one uncaught error, e.g. `OSError: [Errno 28] No space left on device`.

    `frames` are the lines of its traceback, `steps` the training steps done before it. An error that no rule names is
    the code's own (`exception`); None only for text that is no error at all.
    """
    hit = error_hit(Line("", None, text), frames, steps)
    return hit.rule if hit is not None else None


def error_hit(line: Line, frames: Sequence[str], steps: int) -> Hit | None:
    """As `classify`, with the place where the text stands."""
    for rule, found in takers(line.text):
        if RULES.index(rule) >= RULES.index(_BY_NAME["torch-misuse"]):
            break
        hit = _hit_of_error(rule, found, line, frames, steps)
        if rule.accept is None or rule.accept(hit):
            return hit
    return _hit_of_error(_BY_NAME["exception"], 0, line, frames, steps) if line.text.strip() else None


def remedy(rule_name: str, trainer: str | None) -> str:
    """What mends what the rule of that name finds, in the words of the trainer's own settings where there are some."""
    return _BY_NAME[rule_name].remedy_for(trainer)


def _hit_of_error(rule: Rule, found: int, line: Line, frames: Sequence[str], steps: int) -> Hit:
    return Hit(rule, found, line, 0, 0, lambda n: list(frames[-n:]), steps_before=steps)


__all__ = ["RULES", "Hit", "Rule", "Tier", "candidates", "classify", "error_hit", "remedy", "takers"]
