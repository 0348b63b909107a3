"""The readers of logs, registered in `READERS`.

A reader is a module with one or more of these:

    FACTS                   patterns of text lines (`facts.FactPattern`)
    FORMAT, sniff, add      a file format of its own: its name; `sniff(head) -> bool` on a file's first lines;
                            `add(path, index, log) -> Added` puts the file's content into a `LogData`
    sniff_bytes             the same for a binary format: `sniff_bytes(head) -> bool` on a file's first bytes
    read_name(path, facts)  facts that a file's name states

Other distributions add readers with an entry point, see `runs/plugins.py`.
"""

from functools import cache
from types import ModuleType
from typing import Any

from ...runs import plugins
from ..facts import FactTable
from . import (
    elastic,
    ends,
    epochs,
    events,
    flight_recorder,
    gsplat,
    metrics_csv,
    nerfstudio,
    nvidia_smi,
    psrecord,
    resources,
    sacct,
    slurm,
)  # fmt: skip

#: The first format whose `sniff` accepts a file wins; so does the first of two patterns that read a line.
READERS: tuple[ModuleType, ...] = (
    events, flight_recorder, resources, nvidia_smi, psrecord, metrics_csv, nerfstudio, gsplat, elastic, slurm, sacct,
    epochs, ends,
)  # fmt: skip


@cache
def all_readers() -> tuple[ModuleType, ...]:
    """List the readers in their order, those of plug-ins first."""
    return (*plugins.modules(), *READERS)


@cache
def fact_table() -> FactTable:
    """Index the text patterns of all readers."""
    return FactTable(pattern for reader in all_readers() for pattern in getattr(reader, "FACTS", ()))


def format_of(head: str) -> Any:
    """Find the reader whose format a file is of by its first lines; None for plain text."""
    return next((r for r in all_readers() if hasattr(r, "sniff") and r.sniff(head)), None)


def binary_format_of(head: bytes) -> Any:
    """Find the reader whose binary format a file is of by its first bytes; None for none."""
    return next((r for r in all_readers() if hasattr(r, "sniff_bytes") and r.sniff_bytes(head)), None)
