"""`metrics.csv`: one row per epoch (or step) with times, losses and accuracies, columns found by their names."""

import math
import re
from pathlib import Path

from ..facts import Facts, Line
from ..lines import cells, clean, read_blocks
from ..steps import Progress, StepFormat, StepSeries

EPOCHS = StepFormat("metrics.csv", re.compile(rb"$^"), lambda g: Progress(0), rate_unit="img/s", epochs=True)
STEPS = StepFormat("metrics.csv steps", re.compile(rb"$^"), lambda g: Progress(0), rate_unit="img/s")

#: column name (lower case, without brackets) -> what it is
COLUMNS = {
    r"epoch(?:_?(?:id|number|idx))?": "epoch",
    r"(?:global_)?(?:step|iteration|iter)": "step",
    r"(?:epoch_?)?(?:time|duration|seconds)(?:_?s(?:ec)?)?|(?:time|sec(?:onds)?)_per_epoch|epoch_time.*": "seconds",
    r"(?:throughput|images?_per_s(?:ec(?:ond)?)?|img_s)": "rate",
    r"(?:train(?:ing)?_)?loss": "loss",
    r"(?:val(?:idation)?|test)_loss": "val_loss",
    r"train(?:ing)?_acc(?:uracy)?": "train_accuracy",
    r"(?:val(?:idation)?|test)?_?acc(?:uracy)?(?:_?top_?1)?": "accuracy",
    r"(?:val_|test_)?psnr": "psnr",
    r"(?:val_|test_)?ssim": "ssim",
}

SHOWN = ("loss", "val_loss", "accuracy", "train_accuracy", "psnr", "ssim")


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


def read(path: Path, facts: Facts) -> StepSeries:
    """The series of epochs (steps, where no epoch is given); last finite loss, accuracy, PSNR go into `facts`."""
    columns: dict[int, str] = {}
    series: StepSeries | None = None
    for block in read_blocks(path):
        last: dict[str, tuple[float, int]] = {}
        for i, raw in enumerate(block.lines):
            if not columns:
                columns = _names(clean(raw))
                series = StepSeries(EPOCHS if "epoch" in columns.values() else STEPS)
                continue
            found = cells(raw)
            row = {what: _finite(found[k]) for k, what in columns.items() if k < len(found)}
            at = row.get("epoch", row.get("step"))
            if at is None or series is None or not 0 <= at < 1e15:
                continue
            series.add(
                Progress(int(at), seconds=row.get("seconds"), rate=row.get("rate"), loss=row.get("loss"))
            )
            last |= {what: (value, i) for what in SHOWN if (value := row.get(what)) is not None}
        for what, (value, i) in last.items():
            facts.add(what, value, Line(str(path), block.number(i), clean(block.lines[i])), "last")
    return series or StepSeries(EPOCHS)


def _finite(text: str) -> float | None:
    try:
        value = float(text.strip().rstrip("%"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
