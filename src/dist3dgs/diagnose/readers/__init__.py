"""One file per format of log. `read_logs` reads all files of a job into one summary."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..summary import LogSummary


def read_logs(paths: Sequence[Path | str]) -> "LogSummary":
    """Summary of one job from all its files. See `dist3dgs.diagnose.summary.LogSummary`.

    Raises `UserError` if nothing can be read.
    """
    from ..scan import scan
    from ..summary import summarise

    return summarise(scan(paths))
