"""The one table of rules. What a line belongs to is decided by the first rule that takes it, so the order is from
the most specific wording to the most general."""

from collections.abc import Sequence

from ..facts import Line
from . import communication, data, gpu, host, scheduler, software
from .rule import Hit, Rule, Tier

_BY_NAME = {r.name: r for m in (scheduler, host, gpu, communication, software, data) for r in m.RULES}

RULES: tuple[Rule, ...] = tuple(
    _BY_NAME[name]
    for name in (
        "submission-refused", "node-lost", "oom-killer", "shared-memory", "disk-full", "host-allocation-failed",
        "gpu-hardware", "oom-on-an-empty-gpu", "gpu-oom", "device-assert", "gpu-fault",
        "ddp-parameters-differ", "ddp-unused-parameters", "duplicate-gpu", "port-in-use",
        "extension-build", "diverged", "sfm-failed", "corrupt-data",
        "time-limit", "preempted", "cancelled",
        "collective-timeout", "nccl-network", "rendezvous", "nccl-error", "no-step", "peer-lost",
        "environment", "command-line", "settings", "exception", "ignored-exception", "bare-exception",
        "segmentation-fault", "bus-error", "killed-by-signal", "killed", "worker-failed", "terminate", "module-unknown",
    )
)  # fmt: skip
assert len(RULES) == len(_BY_NAME), "every rule has its place in the order"

#: Lower-case words, one of which is in every line that any rule takes; the rest of a log is never looked at closely.
HINTS = (
    "err", "fail", "fatal", "except", "kill", "cancel", "preempt", "requeue", "time", "oom", "memory",
    "full", "quota", "space", "no such", "not found", "not in", "not match", "registered", "unknown",
    "abort", "signal", "sig", "segmentation", "nan", "inf", "non-finite", "diverg", "explod",
    "eaddrinuse", "in use", "warn", "watchdog", "ran for", "peer", "pipe", "no training", "joined",
    "rendezvous", "xid", "fallen", "lost", "ecc", "duplicate gpu", "ordinal", "slots",
    "nodes which are", "corrupt", "truncat", "invalid", "mismatch", "differ", "not equal", "bad",
    "unable", "cannot", "can't", "could", "couldn't", "no module", "not available", "terminated",
    "root cause", "stuck", "stall", "hung", "hang", "no progress", "no step", "unexpected",
    "pytorchstream", "unpickling", "no good", "mapper", "colmap", "too few", "not enough", "received",
    "reduction", "receive grad", "not used", "ready only", "expects same", "params", "node_fail",
    "deadline", "exceed", "reached", "what():", "check failed", "assert", "libpng", "premature", "spot",
    "requested", "machine only", "no cuda", "driver", "kernel image", "torch not compiled", "undefined",
    "interpreter", "conda", "retries exceeded", "connect to", "unreachable", "ntasks", "ninja", "gai ",
    "closed", "refused", "reset", "broken", "overflow", "submit", "qosmax", "assocmax", "bsub",
    "scancel", "boot_fail", "term_", "enospc", "edquot", "os error", "code: ", "bus ", "ancdata",
    "bad_alloc", "alloc", "ibv_", "retry counter", "ncclsys", "nccl", "state", "bytes", "socket",
    "more processes", "per_node", "per-node", "weights", "loss", "grad", "missing", "abi", "numpy",
    "pyxis", "enroot", "gnu version", "nvcc", '"', "exit",
)  # fmt: skip


def classify(text: str, frames: Sequence[str] = (), steps: int = 0) -> Rule | None:
    """The rule that takes one uncaught error, e.g. `OSError: [Errno 28] No space left on device`.

    `frames` are the lines of its traceback, `steps` the training steps done before it. An error that no rule names is
    the code's own (`exception`); None only for text that is no error at all.
    """
    hit = error_hit(Line("", None, text), frames, steps)
    return hit.rule if hit is not None else None


def error_hit(line: Line, frames: Sequence[str], steps: int) -> Hit | None:
    """As `classify`, with the place where the text stands."""
    for rule in RULES:
        found = rule.match(line.text)
        if rule.name == "exception" and found is None and line.text.strip():
            found = 0
        if found is None:
            continue
        hit = Hit(rule, found, line, 0, 0, lambda n: list(frames[-n:]), steps_before=steps)
        if rule.name == "exception" or rule.accept is None or rule.accept(hit):
            return hit
    return None


__all__ = ["HINTS", "RULES", "Hit", "Rule", "Tier", "classify", "error_hit"]
