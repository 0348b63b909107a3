"""The two files of one Slurm job: `.out` and `.err`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

_PAIRS = ((".out", ".err"), (".err", ".out"), ("_out.", "_err."), ("_err.", "_out."))


def other_half(path: Path) -> Path | None:
    """`job.err` for `job.out` and the other way round, whether it is there or not; None for other names."""
    for a, b in _PAIRS:
        if a in path.name:
            return path.with_name(b.join(path.name.rsplit(a, 1)))
    return None


def missing_halves(paths: Sequence[Path]) -> Iterator[Path]:
    """The other halves that are not among `paths`."""
    given = set(paths)
    for path in paths:
        other = other_half(path)
        if other is not None and other not in given:
            yield other
