"""`metrics.csv`: one row per epoch (or step) with times, losses and accuracies, columns found by their names."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..csv_columns import Table
from ..facts import Facts, Line
from ..lines import clean, read_blocks
from ..log_data import Added, LogData
from ..step_series import ProgressLine, StepFormat, StepSeries

EPOCHS = StepFormat(
    "metrics.csv", re.compile(rb"$^"), lambda g: ProgressLine(0), rate_unit="img/s", epochs=True
)
STEPS = StepFormat("metrics.csv steps", re.compile(rb"$^"), lambda g: ProgressLine(0), rate_unit="img/s")

#: column name (lower case, without brackets) -> what it is
COLUMNS = {
    r"epoch(?:_?(?:id|number|idx))?": "epoch",
    r"(?:global_)?(?:step|iteration|iter)": "step",
    r"(?:epoch_?)?(?:time|duration|seconds)(?:_?s(?:ec)?)?|(?:time|sec(?:onds)?)_per_epoch|epoch_time.*": "seconds",
    r"(?:throughput|(?:images?|img|samples?|tokens?)_(?:per_)?s(?:ec(?:ond)?)?)": "rate",
    r"(?:train(?:ing)?_)?loss": "loss",
    r"(?:val(?:idation)?|test)_loss": "val_loss",
    r"train(?:ing)?_acc(?:uracy)?": "train_accuracy",
    r"(?:val(?:idation)?|test)?_?acc(?:uracy)?(?:_?top_?1)?": "accuracy",
    r"(?:val_|test_)?psnr": "psnr",
    r"(?:val_|test_)?ssim": "ssim",
    r"world_size|num_gpus|n_gpus": "world_size",
}

SHOWN = ("loss", "val_loss", "accuracy", "train_accuracy", "psnr", "ssim", "world_size")


FORMAT = "metrics.csv"


def sniff(head: str) -> bool:
    first = next((line for line in head.splitlines() if line.strip()), "")
    names = set(_names(first).values())
    return "," in first and bool(names & {"epoch", "step"}) and len(names) >= 2


def _names(header: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for i, cell in enumerate(header.split(",")):
        name = (
            re.sub(r"\s*[\[(].*?[\])]", "", cell.strip().strip('"').lower())
            .replace(" ", "_")
            .replace("/", "_")
        )
        for pattern, what in COLUMNS.items():
            if what not in found.values() and re.fullmatch(pattern, name):
                found[i] = what
                break
    return found


def add(path: Path, index: int, log: LogData) -> Added:
    """Add the table's epochs as a series of the file, and its last values as facts."""
    read(path, log.facts, lambda fmt: log.series_of(index, fmt))
    return Added()


def read(path: Path, facts: Facts, begin: Callable[[StepFormat], StepSeries] = StepSeries) -> StepSeries:
    """Read the table into the series that `begin` makes for its epochs (steps, where it has no epochs).

    The last finite loss, accuracy, PSNR ... and the number of ranks go into `facts`.
    """
    columns: dict[int, str] = {}
    width = 0
    series: StepSeries | None = None
    for block in read_blocks(path):
        if series is None:
            header = next((clean(raw) for raw in block.lines if raw.strip()), "")
            columns, width = _names(header), len(header.split(","))
            series = begin(EPOCHS if "epoch" in columns.values() else STEPS)
            series.rate_unit = _unit(header)
        table = Table.of(block.data.replace(b"\r", b""), width)
        if not len(table.rows):
            continue
        found = {what: table.numbers(k) for k, what in columns.items()}
        at = found.get("epoch", found.get("step"))
        if at is None:
            continue
        valid = (at >= 0) & (at < 1e15)
        series.add_all(at[valid], {k: found[k][valid] for k in ("seconds", "rate", "loss") if k in found})
        for what in SHOWN:
            if what not in found:
                continue
            known = np.flatnonzero(valid & np.isfinite(found[what]))
            if len(known):
                i = int(table.rows[known[-1]])
                line = Line(str(path), block.number(i), clean(block.line(i)))
                value = float(found[what][known[-1]])
                facts.add(what, int(value) if what == "world_size" else value, line, "last")
    return series or begin(EPOCHS)


def _unit(header: str) -> str:
    low = header.lower()
    return next(
        (f"{what}/s" for what in ("samples", "tokens") if re.search(rf"\b{what}(?:_per_s|/s)", low)), "img/s"
    )
